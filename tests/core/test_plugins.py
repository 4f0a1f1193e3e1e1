"""Code from outside: named modules are imported, others refused with the fix, and plug-ins load
once."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from longseq.core import domain as domains
from longseq.core import plugins
from longseq.core.backbone import Backbone
from longseq.core.checkpoints.foreign import check_reloadable
from longseq.core.errors import ConfigError, DataError
from longseq.core.mixers import base
from longseq.core.shell.cli import main
from longseq.core.training.loading import load_task
from longseq.genomics.data.module import GenomeData
from longseq.genomics.data.samples import SAMPLES
from longseq.genomics.task import CausalLanguageModel

MINE = '''
"""A user's own mixer, task, data and domain, outside longseq."""
import torch
from longseq.core.domain import Command, Domain, register_domain
from longseq.core.mixers import Mixer, register_mixer
from longseq.genomics.data.module import GenomeData
from longseq.genomics.task import CausalLanguageModel


@register_mixer("mine")
class Mine(Mixer):
    def __init__(self, d_model: int, gain: float = 1.0):
        super().__init__(d_model)
        self.gain, self.out_proj = gain, torch.nn.Linear(d_model, d_model)

    def init_state(self, batch, device=None, dtype=None):
        return {"n": torch.zeros(batch, 1)}

    def forward(self, x, state=None, segment_ids=None):
        return self.gain * self.out_proj(x), {"n": torch.zeros(x.shape[0], 1)}


class MyModel(CausalLanguageModel):
    pass


class MyData(GenomeData):
    pass


register_domain(Domain(
    "planets", "orbits, for tests", package="mine", task="longseq.core.training.task.BaseTask",
    commands={"count": Command("how many there are", "mine:count")},
))


def count(argv):
    print("eight", *argv)
    return 0
'''
SMALL = [
    "--data.fasta=tiny",
    "--model.d_model=8",
    "--model.n_layers=1",
    "--data.length=64",
    "--data.batch_size=2",
    "--trainer.max_steps=2",
    "--trainer.val_check_interval=2",
    "--trainer.enable_model_summary=false",
]


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with ``mine.py``, in which the command runs; what it registers is forgotten
    afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LONGSEQ_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(plugins, "_named", {})
    (tmp_path / "mine.py").write_text(MINE)
    yield tmp_path
    sys.modules.pop("mine", None)
    base.MIXERS._things.pop("mine", None)
    domains.unregister_domain("planets")


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a new process in which nothing was named."""
    sys.modules.pop("mine", None)
    base.MIXERS._things.pop("mine", None)
    monkeypatch.setattr(plugins, "_named", {})


def error_of(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    capsys.readouterr()
    assert main(argv) == 2
    (line,) = [text for text in capsys.readouterr().err.splitlines() if text.startswith("error: ")]
    return line


def test_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGSEQ_IMPORT", "a, b.c")
    rest, names = plugins.take_imports(["x", "--import", "d", "--import=e,a", "--y", "1"])
    assert rest == ["x", "--y", "1"] and names == ["a", "b.c", "d", "e"]
    for argv in (["--import"], ["--import="], ["--import", "--y"]):
        with pytest.raises(ConfigError, match="--import needs the name of a module"):
            plugins.take_imports(argv)


def test_own_mixer_and_task(
    mine: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "one of your own needs --import" in error_of(
        capsys, "genomics", "fit", "--model.mixer=zzzz", *SMALL, "--trainer.logger=false"
    )
    assert (
        "--model: no module mine for mine.MyModel; one in this folder is found by --import mine"
        in error_of(
            capsys, "genomics", "fit", "--model=mine.MyModel", *SMALL, "--trainer.logger=false"
        )
    )
    named = ["--import", "mine"]
    fit = ["genomics", "fit", "--model=mine.MyModel", "--data=mine.MyData", "--model.mixer=mine"]
    fit += ["--model.mixer_kwargs={gain: 0.5}", "--name=r", *SMALL]
    assert main([*fit, *named]) == 0
    assert "note:" not in capsys.readouterr().err
    checkpoint = mine / "outputs/genomics/r/version_0/checkpoints/last.ckpt"
    content = torch.load(checkpoint, weights_only=True)
    assert content["longseq"]["modules"] == ["mine"]
    ckpt = ["--ckpt_path", str(checkpoint), "--trainer.logger=false"]
    assert main(["genomics", "test", *ckpt, *named]) == 0
    assert main(["genomics", "fit", *ckpt, *named, "--trainer.max_steps=3"]) == 0
    # In a new process, unnamed: one line with both fixes, and nothing is imported.
    forget(monkeypatch)
    for command in ("test", "predict"):
        target = [str(SAMPLES.path("tiny"))] if command == "predict" else []
        out = ["--out", "s.parquet"] if command == "predict" else []
        line = error_of(capsys, "genomics", command, *target, "--ckpt_path", str(checkpoint), *out)
        assert (
            "last.ckpt: is of mine.MyModel" in line
            and "(--import mine on the command line, " in line
        )
        assert 'load_task(…, allow=["mine"])' in line and "mine" not in sys.modules
    with pytest.raises(DataError, match=r"is of mine\.MyModel"):
        load_task(checkpoint, "genomics")
    task = load_task(checkpoint, "genomics", allow=["mine"])
    assert (
        type(task).__name__ == "MyModel"
        and type(task.model.backbone.layers[0].mixer).__name__ == "Mine"
    )
    with pytest.raises(DataError, match="is a checkpoint of planets and genomics, not of vision"):
        load_task(checkpoint, "vision", allow=["mine"])
    # By the environment.
    forget(monkeypatch)
    monkeypatch.setenv("LONGSEQ_IMPORT", "mine")
    assert main(["genomics", "test", *ckpt]) == 0


def test_a_task_of_longseq_with_a_foreign_mixer(
    mine: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["genomics", "fit", "--model.mixer=mine", "--import=mine", "--name=r", *SMALL]) == 0
    checkpoint = mine / "outputs/genomics/r/version_0/checkpoints/last.ckpt"
    forget(monkeypatch)
    line = error_of(capsys, "genomics", "test", "--ckpt_path", str(checkpoint))
    assert "needs the module mine" in line and "--import mine on the command line" in line


def test_what_is_not_named_is_said_when_training_begins(
    mine: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(mine)  # as by PYTHONPATH=.
    assert main(["genomics", "fit", "--model=mine.MyModel", *SMALL, "--trainer.logger=false"]) == 0
    assert (
        "note: to use the checkpoints of this run, name their code: --import mine"
        in capsys.readouterr().err
    )


def test_an_own_domain(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--import", "mine", "--help"]) == 0
    assert "orbits, for tests" in capsys.readouterr().out
    assert main(["planets", "count", "--import", "mine", "--all"]) == 0
    assert capsys.readouterr().out == "eight --all\n"
    assert main(["planets", "--help"]) == 0 and "how many there are" in capsys.readouterr().out


def test_modules_that_cannot_be_imported(
    mine: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (mine / "broken.py").write_text("x = 1\nraise RuntimeError('no\\nmoon')\n")
    (mine / "needs.py").write_text("import absent_moon\n")
    (mine / "exits.py").write_text("import sys\nsys.exit(3)\n")
    (mine / "syntax.py").write_text("x = 1\nx = = 2\n")
    register = (
        "from longseq.core.mixers import register_mixer\n\n@register_mixer({})\nclass X: {}\n"
    )
    (mine / "no_mixer.py").write_text(register.format("'x'", "pass"))
    twice = "import longseq.core.mixers as m\nm.register_mixer('mine')(type('X', (m.Mixer,), {}))\n"
    (mine / "twice.py").write_text("import mine\n" + twice)
    cases = {
        "nowhere": "--import nowhere: there is no module nowhere in this folder or on PYTHONPATH",
        "mine.part": "--import mine.part: there is no module mine.part",
        "mine.py": "--import mine.py: the name of a module is needed, for example --import mine",
        "./a/b.py": "the name of a module is needed, for example --import a.b",
        "/a/b.py": "the name of a module is needed, for example --import b",
        "a-b": "the name of a module is needed, for example --import my_module",
        "broken": "--import broken: RuntimeError: no moon (broken.py, line 2)",
        "needs": "--import needs: ModuleNotFoundError: No module named 'absent_moon' (needs.py, "
        "line 1)",
        "exits": "--import exits: it ends the program with sys.exit(3) (exits.py, line 2)",
        "syntax": "--import syntax: SyntaxError: invalid syntax (syntax.py, line 2)",
        "no_mixer": "register_mixer('x'): X is no Mixer (no_mixer.py, line 3)",
        "twice": "a mixer named 'mine' is registered already, by mine (twice.py, line 3)",
    }
    for name, says in cases.items():
        assert says in error_of(capsys, "genomics", "fit", "--import", name)
    monkeypatch.setenv("LONGSEQ_IMPORT", "nowhere")
    assert "LONGSEQ_IMPORT nowhere: there is no" in error_of(capsys, "genomics", "fit")


def installed(monkeypatch: pytest.MonkeyPatch, *modules: str) -> None:
    dist = SimpleNamespace(name="moons", version="2.1")
    entries = [SimpleNamespace(name=one, value=one, dist=dist) for one in modules]
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: entries)
    plugins.installed.cache_clear()
    plugins.load_installed.cache_clear()


@pytest.fixture
def no_plugins() -> Iterator[None]:
    yield
    plugins.installed.cache_clear()
    plugins.load_installed.cache_clear()


def test_plug_ins_of_installed_packages(
    mine: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    no_plugins: None,
) -> None:
    (mine / "broken.py").write_text("raise RuntimeError('no moon')\n")
    monkeypatch.syspath_prepend(mine)
    installed(monkeypatch, "broken", "mine")
    assert main(["--help"]) == 0
    out = capsys.readouterr()
    assert "plug-ins: broken (moons 2.1), mine (moons 2.1)" in out.out
    assert "mine" not in sys.modules and out.err == ""  # help imports none of them
    assert main(["planets", "count"]) == 0
    out = capsys.readouterr()
    assert out.out == "eight\n"
    assert (
        out.err
        == "note: the plug-in broken of moons 2.1 is left out: RuntimeError: no moon (broken.py, "
        "line 1)\n"
    )
    assert plugins.is_allowed("mine.part") and not plugins.is_allowed("theirs")
    assert main(["doctor", "--no-speed"]) in (0, 1)
    out = capsys.readouterr()
    assert (
        "left out: RuntimeError: no moon" in " ".join(out.out.split())
        and out.err.count("note:") == 0
    )
    assert base.create_mixer("mine", 4).d_model == 4


def test_named_classes_of_a_checkpoint_are_gated(mine: Path, tmp_path: Path) -> None:
    """A file that does not admit to a module cannot have it imported through a hyper-parameter
    either."""
    task = CausalLanguageModel(8, 1)
    hyper = dict(task.hparams)
    for change in (
        {"optimizer": "mine.Lion"},
        {"metrics": ["mine.Score"]},
        {"_class_path": "mine.MyModel"},
    ):
        torch.save(
            {"state_dict": task.state_dict(), "hyper_parameters": {**hyper, **change}},
            tmp_path / "x.ckpt",
        )
        with pytest.raises(DataError, match="imported only where it is named"):
            load_task(tmp_path / "x.ckpt")
        assert "mine" not in sys.modules


class Nested:
    class Inner(GenomeData):
        pass


def test_what_could_not_be_loaded_again_is_refused_at_the_start(mine: Path) -> None:
    class Local(CausalLanguageModel):
        pass

    with pytest.raises(
        ConfigError, match=r"Local could not be loaded again: it is defined inside a function"
    ):
        check_reloadable(Local(8, 1))
    with pytest.raises(
        ConfigError, match="inside a function or another class; put it into a module of its"
    ):
        check_reloadable(CausalLanguageModel(8, 1), Nested.Inner("tiny"))
    check_reloadable(CausalLanguageModel(8, 1), GenomeData("tiny"))
    program = """
from longseq.core.checkpoints.foreign import check_reloadable
from longseq.genomics.task import CausalLanguageModel

class Mine(CausalLanguageModel):
    pass

check_reloadable(Mine(8, 1))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert "it is defined in the running script or notebook; put it into a module" in done.stderr


def test_a_mixer_is_registered_properly_or_refused() -> None:
    class Other(base.Mixer):
        pass

    with pytest.raises(ConfigError, match=r'as in @register_mixer\("mine"\), got \'Other\''):
        base.register_mixer(Other)  # type: ignore[arg-type]  # without a name
    for name in ("Win dow", "9", ""):
        with pytest.raises(ConfigError, match="needs a name in lower snake case"):
            base.register_mixer(name)
    with pytest.raises(ConfigError, match=r"register_mixer\('mine'\): int is no Mixer"):
        base.register_mixer("mine")(int)  # type: ignore[type-var]
    with pytest.raises(ConfigError, match="a mixer named 'mamba' is registered already"):
        base.register_mixer("mamba")(Other)
    # Another class of the same name.
    same_name = type("Mamba", (base.Mixer,), {"__module__": "mine"})
    with pytest.raises(ConfigError, match="a mixer named 'mamba' is registered already"):
        base.register_mixer("mamba")(same_name)


def test_a_mixer_that_does_not_initialise_its_base_is_named() -> None:
    class Forgetful(base.Mixer):
        def __init__(self, d_model: int) -> None:
            self.projection = torch.nn.Linear(d_model, d_model)

    with pytest.raises(
        ConfigError, match=r"'mine' \(.*Forgetful\): defines no forward and no init"
    ):
        base.construct(Forgetful, 4, {}, "mine")
    whole = {"forward": lambda self, x, state=None, ids=None: (x, state), "init_state": dict}
    with pytest.raises(ConfigError, match=r"'mine' \(.*\): its __init__ must call super"):
        base.construct(type("Whole", (Forgetful,), whole), 4, {}, "mine")


def test_a_mixer_of_another_form_is_named() -> None:
    class Alone(base.Mixer):
        def init_state(self, batch, device=None, dtype=None):
            return {}

        def forward(self, x):
            return x, {}

    class Wide(base.Mixer):
        def init_state(self, batch, device=None, dtype=None):
            return {}

        def forward(self, x, state=None, segment_ids=None):
            return torch.cat([x, x], -1), {}

    with pytest.raises(ConfigError, match=r"'mine' \(.*Alone\): forward takes \(self, x\), where"):
        base.construct(Alone, 4, {}, "mine")
    layer = Backbone(8, 1, "mamba").layers[0]
    layer.mixer = Wide(8)
    with pytest.raises(ConfigError, match=r"shape of x, \(1, 2, 8\), and returned \(1, 2, 16\)"):
        layer(torch.zeros(1, 2, 8), None, None)


def test_a_mixer_that_returns_no_state_is_named() -> None:
    class Half(base.Mixer):
        def init_state(self, batch, device=None, dtype=None):
            return {}

        def forward(self, x, state=None, segment_ids=None):
            return x

    layer = Backbone(8, 1, "mamba").layers[0]
    layer.mixer = Half(8)
    with pytest.raises(
        ConfigError, match=r"Half\.forward must return \(y, state\), and returned Tensor"
    ):
        layer(torch.zeros(1, 2, 8), None, None)
