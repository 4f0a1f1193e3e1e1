"""The published names after ``install``: what they find, what stays the original's."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from longseq.core import compat
from longseq.core.compat._finder import environment, install_by_environment
from longseq.core.errors import ConfigError
from longseq.core.shell import cli
from longseq.core.shell.run import _check_module

MODULES = {
    "mamba_ssm": "Mamba Mamba2 Mamba2Simple MambaLMHeadModel selective_scan_fn mamba_inner_fn",
    "mamba_ssm.ops.selective_scan_interface": "selective_scan_fn selective_scan_ref mamba_inner_fn "
    "mamba_inner_ref mamba_inner_fn_no_out_proj bimamba_inner_fn bimamba_inner_ref",
    "mamba_ssm.ops.triton.layer_norm": "RMSNorm layer_norm_fn rms_norm_fn layer_norm_ref",
    "mamba_ssm.ops.triton.layernorm": "RMSNorm layer_norm_fn rms_norm_fn",
    "mamba_ssm.ops.triton.layernorm_gated": "RMSNorm LayerNorm layernorm_fn rmsnorm_fn",
    "mamba_ssm.ops.triton.ssd_combined": "mamba_chunk_scan_combined mamba_chunk_scan "
    "mamba_split_conv1d_scan_combined ssd_selective_scan",
    "mamba_ssm.ops.triton.ssd_chunk_state": "chunk_state chunk_state_varlen",
    "mamba_ssm.ops.triton.ssd_state_passing": "state_passing",
    "mamba_ssm.ops.triton.ssd_chunk_scan": "chunk_scan",
    "mamba_ssm.ops.triton.selective_state_update": "selective_state_update",
    "mamba_ssm.modules.mamba_simple": "Mamba Block",
    "mamba_ssm.modules.mamba2": "Mamba2",
    "mamba_ssm.modules.mamba2_simple": "Mamba2Simple",
    "mamba_ssm.modules.block": "Block",
    "mamba_ssm.modules.mha": "MHA",
    "mamba_ssm.modules.mlp": "GatedMLP",
    "mamba_ssm.models.mixer_seq_simple": "MambaLMHeadModel MixerModel create_block _init_weights",
    "mamba_ssm.models.config_mamba": "MambaConfig",
    "mamba_ssm.distributed.tensor_parallel": "ColumnParallelLinear RowParallelLinear "
    "parallel_linear_func VocabParallelEmbedding ColumnParallelEmbedding ParallelEmbeddings",
    "mamba_ssm.distributed.distributed_utils": "all_reduce all_gather reduce_scatter "
    "get_dim_for_local_rank sync_shared_params",
    "mamba_ssm.utils.generation": "InferenceParams GenerationMixin decode sample",
    "mamba_ssm.utils.hf": "load_config_hf load_state_dict_hf",
    "causal_conv1d": "causal_conv1d_fn causal_conv1d_update",
    "causal_conv1d.causal_conv1d_interface": "causal_conv1d_fn causal_conv1d_ref",
    "causal_conv1d.causal_conv1d_varlen": "causal_conv1d_varlen_states",
    "causal_conv1d.cpp_functions": "causal_conv1d_fwd_function causal_conv1d_bwd_function",
    "accelerated_scan.scalar": "scan",
    "accelerated_scan.warp": "scan",
    "accelerated_scan.complex": "scan",
    "accelerated_scan.ref": "scan",
    "selective_scan_cuda": "fwd bwd",
    "selective_scan_cuda_core": "fwd bwd",
    "selective_scan_cuda_oflex": "fwd bwd",
    "causal_conv1d_cuda": "causal_conv1d_fwd causal_conv1d_bwd causal_conv1d_update",
}


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No name is ours before a test, nor after it; originals of this environment stay aside."""
    compat.uninstall()
    monkeypatch.delenv(compat.VARIABLE, raising=False)
    for name in compat.STAND_INS:
        if importlib.util.find_spec(name) is not None:
            pytest.skip(f"{name} is installed here")
    yield
    compat.uninstall()
    for name in list(sys.modules):
        if name.split(".")[0] in compat.STAND_INS:  # a test's own original
            del sys.modules[name]


@pytest.mark.parametrize("module", MODULES)
def test_a_published_module_is_found(module: str) -> None:
    compat.install()
    found = importlib.import_module(module)
    assert found is importlib.import_module(f"longseq.core.compat.{module}")
    assert found is sys.modules[module] and found.__name__ == f"longseq.core.compat.{module}"
    for name in MODULES[module].split():
        assert callable(getattr(found, name))
    assert importlib.util.find_spec(module) is not None


def test_what_is_not_offered_is_said_by_name() -> None:
    compat.install()
    with pytest.raises(ImportError, match="mamba_ssm does not offer 'Mamba3'; it offers Mamba, "):
        from mamba_ssm import Mamba3  # noqa: F401
    with pytest.raises(ImportError, match=r"mamba_ssm\.modules\.mamba2 does not offer 'Other'"):
        from mamba_ssm.modules.mamba2 import Other  # noqa: F401
    with pytest.raises(
        ModuleNotFoundError, match=r"no module mamba_ssm\.modules\.mamba3: .*mixer 'ma"
    ):
        importlib.import_module("mamba_ssm.modules.mamba3")
    import mamba_ssm
    from mamba_ssm import ops  # a module inside a package is no missing name

    assert ops is mamba_ssm.ops and not hasattr(mamba_ssm, "Mamba3")
    with pytest.raises(AttributeError, match="does not offer 'Mamba3'"):
        mamba_ssm.Mamba3  # noqa: B018


def test_nothing_is_found_before_and_after() -> None:
    assert importlib.util.find_spec("mamba_ssm") is None
    assert set(compat.install()) == set(compat.STAND_INS)
    compat.install()  # twice is once
    import mamba_ssm  # noqa: F401

    compat.uninstall()
    assert "mamba_ssm" not in sys.modules and importlib.util.find_spec("mamba_ssm") is None


def test_versions_are_told() -> None:
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        importlib.metadata.version("mamba_ssm")
    compat.install()
    import causal_conv1d
    import mamba_ssm

    for name in ("mamba_ssm", "mamba-ssm", "Mamba_SSM"):
        assert importlib.metadata.version(name) == mamba_ssm.__version__
    assert importlib.metadata.version("causal_conv1d") == causal_conv1d.__version__
    assert mamba_ssm.__version__.endswith("+longseq")
    names = {one.name for one in importlib.metadata.distributions()}
    assert {"mamba-ssm", "causal-conv1d", "accelerated-scan"} <= names


def test_an_original_is_shadowed_only_if_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mamba_ssm").mkdir()
    (tmp_path / "mamba_ssm" / "__init__.py").write_text("__version__ = 'original'")
    (tmp_path / "causal_conv1d").mkdir()  # a folder without code is no package
    monkeypatch.syspath_prepend(tmp_path)
    assert "mamba_ssm" not in compat.install() and "causal_conv1d" in compat.install()
    import mamba_ssm

    assert mamba_ssm.__version__ == "original"
    with pytest.raises(ModuleNotFoundError, match=r"No module named 'mamba_ssm\.ops'"):
        importlib.import_module("mamba_ssm.ops")  # the original's modules are its own
    assert importlib.import_module("selective_scan_cuda").__name__.startswith("longseq.")
    assert importlib.import_module("causal_conv1d").__version__.endswith("+longseq")
    assert "mamba_ssm" in compat.install(force=True)
    assert importlib.import_module("mamba_ssm").__version__.endswith("+longseq")
    assert importlib.import_module("mamba_ssm.ops").__name__ == "longseq.core.compat.mamba_ssm.ops"
    compat.uninstall()
    assert importlib.import_module("mamba_ssm").__version__ == "original"


def test_the_environment_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    for value, found in (("0", False), ("", False), ("1", True), ("force", True)):
        monkeypatch.setenv(compat.VARIABLE, value)
        compat.uninstall()
        install_by_environment()
        assert (importlib.util.find_spec("mamba_ssm") is not None) is found
    monkeypatch.setenv(compat.VARIABLE, "yes")
    with pytest.raises(ConfigError, match="LONGSEQ_COMPAT must be 0, 1 or force, got 'yes'"):
        install_by_environment()


SCRIPT = """
import subprocess, sys
import mamba_ssm
from beside import WORD
print(sys.argv, WORD, __name__, mamba_ssm.__name__, flush=True)
child = "import sys, mamba_ssm; print('torch' in sys.modules, mamba_ssm.__name__)"
subprocess.run([sys.executable, "-c", child], check=True)
sys.exit(int(sys.argv[-1]))
"""


def run(*args: str, folder: Path, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "longseq.core.shell.cli", *args]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=folder, env={**os.environ, **env}
    )


def test_a_script_runs_unchanged_and_what_it_starts_too(tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("WORD = 'found'")
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text("import sys; sys.stderr.write('theirs ')")
    paths = os.pathsep.join([str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")])
    done = run("run", "script.py", "--import", "no_such", "3", folder=tmp_path, PYTHONPATH=paths)
    lines = done.stdout.splitlines()
    assert lines[0] == (
        "['script.py', '--import', 'no_such', '3'] found __main__ longseq.core.compat.mamba_ssm"
    )
    assert lines[1].endswith("longseq.core.compat.mamba_ssm"), done.stderr
    assert done.returncode == 3  # the script's own
    assert done.stderr.count("theirs ") == 2  # the environment's sitecustomize is not hidden


def test_a_module_runs_and_wrong_usage_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "beside.py").write_text("import sys, selective_scan_cuda; print(sys.argv[1:])")
    done = run("run", "-m", "beside", "a", "-h", folder=tmp_path)
    assert done.stdout.strip() == "['a', '-h']" and done.returncode == 0, done.stderr
    for args in (["run", "nothing.py"], ["run", "-m"], ["run", "--other"], ["run", "--force"]):
        assert cli.main(args) == 2
        assert capsys.readouterr().err.startswith("error: ")
    for name, missing in (
        ("nope", "nope"),
        ("a..b", "a..b"),
        ("json.nope", "json.nope"),
        ("email", "email.__main__"),
    ):
        with pytest.raises(ConfigError, match=f"-m {name}: no module {missing};"):
            _check_module(name)
    # In a process of its own: the names stay in the one that runs a program.
    done = run("run", "-m", "nope", folder=tmp_path)
    assert done.returncode == 2 and done.stderr.startswith("error: -m nope: no module nope;")
    assert cli.main(["run", "--help"]) == 0 and "usage: longseq run" in capsys.readouterr().out
    (tmp_path / "fails.py").write_text(
        "from longseq.core.errors import ConfigError\nraise ConfigError('mine')"
    )
    done = run("run", "fails.py", folder=tmp_path)
    assert done.returncode == 1 and "fails.py" in done.stderr  # with the place


@pytest.mark.parametrize(
    ("line", "status", "said"),
    [
        ("sys.exit('no such file of mine')", 1, "no such file of mine\n"),
        ("sys.exit(None)", 0, ""),
        ("sys.exit(7)", 7, ""),
        ("raise MemoryError('mine')", 1, "fails.py"),
        ("import torch; torch.empty(10**15)", 1, "fails.py"),
    ],
)
def test_a_script_ends_as_it_does_without_us(
    line: str, status: int, said: str, tmp_path: Path
) -> None:
    """What it says at its end is told, and an error with the place."""
    (tmp_path / "fails.py").write_text(f"import sys\n{line}\n")
    done = run("run", "fails.py", folder=tmp_path)
    assert done.returncode == status and said in done.stderr
    assert said or not done.stderr


def test_variables_for_other_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "here")
    first = environment()
    folder = Path(first["PYTHONPATH"].split(os.pathsep)[0])
    assert first["LONGSEQ_COMPAT"] == "1" and (folder / "sitecustomize.py").is_file()
    monkeypatch.setenv("PYTHONPATH", first["PYTHONPATH"])
    assert environment(force=True) == {**first, "LONGSEQ_COMPAT": "force"}
