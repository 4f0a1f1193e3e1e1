"""The command line: help without torch, exit statuses, one-line errors, checkpoints against
arguments."""

from __future__ import annotations

import dataclasses
import re
import runpy
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from longseq.core import domain as domains
from longseq.core.errors import ConfigError, DataError
from longseq.core.shell.arguments import output_folder, resumed_settings
from longseq.core.shell.cli import main, one_line
from longseq.core.yaml_files import read_yaml

HELPER = Path(__file__).parents[1] / "training" / "fake_domain.py"
QUIET = ["--trainer.enable_model_summary=false"]


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.chdir(tmp_path)
    module: ModuleType = runpy.run_path(str(HELPER))["install"]()
    yield module
    domains.unregister_domain("toy")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a run of 4 steps with a learning rate from the command line."""
    runpy.run_path(str(HELPER))["install"]()
    root = tmp_path_factory.mktemp("trained")
    arguments = [
        "--trainer.max_steps=6",
        "--model.lr=0.02",
        "--data.seed=3",
        "--name=run",
        "--trainer.log_every_n_steps=2",
        *QUIET,
    ]
    assert main(["toy", "fit", f"--trainer.default_root_dir={root}", *arguments]) == 0
    domains.unregister_domain("toy")
    return root / "run" / "version_0" / "checkpoints" / "last.ckpt"


def _error(capsys: pytest.CaptureFixture[str], *argv: str, status: int = 2) -> str:
    capsys.readouterr()
    assert main(argv) == status
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize(
    "argv",
    [
        ["--help"],
        ["--version"],
        ["toy", "--help"],
        ["nonsense"],
        ["audio", "--help"],
        ["toy", "fitt"],
    ],
)
def test_light_commands_do_not_import_torch(argv: list[str]) -> None:
    code = (
        "import sys\n"
        "from longseq.core.shell.cli import main\n"
        "from longseq.core.domain import Domain, register_domain\n"
        "register_domain(Domain('toy', 'toys', task='longseq.core.training.task.BaseTask'))\n"
        f"main({argv!r})\n"
        "heavy = {'torch', 'lightning', 'numpy', 'jsonargparse', 'matplotlib'}\n"
        "print('imported:', sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "imported: []"


def test_help_lists_what_is_there(toy: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert "toy" in text and "doctor" in text and "demo" in text and "weather" in text
    assert main(["toy"]) == 0
    assert "fit" in capsys.readouterr().out
    assert main(["demo", "toy", "a"]) == 0
    assert capsys.readouterr().out == "demo a\n"


def test_fit_writes_everything(trained: Path) -> None:
    folder = trained.parents[1]
    names = {path.name for path in folder.iterdir()}
    assert {"checkpoints", "config.yaml", "metrics.csv", "loss_curve.png"} <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    assert {path.name for path in trained.parent.iterdir()} == {"last.ckpt", "best.ckpt"}
    header = (folder / "metrics.csv").read_text().splitlines()[0]
    for column in ("train/loss", "train/lr", "train/samples_per_s", "val/loss", "val/mse"):
        assert column in header.split(",")
    assert torch.load(trained, weights_only=True)["global_step"] == 6


BAD = {
    "toy fit --model.width.x 3": "--model.width: takes one value; it has no part x",
    "toy fit --model.widht 3": "--model.widht: ToyTask has no such argument; did you mean 'width'?",
    "toy fit --model.width abc": "--model.width: expected int, got abc",
    "toy fit --trainer.max_stepz 3": "--trainer.max_stepz: no such option; did you mean "
    "'trainer.max_steps'?",
    "toy fit --config key.yaml": "key.yaml: model.widht: ToyTask has no such argument; did you "
    "mean 'width'?",
    "toy fit --config trainer.yaml": "trainer.yaml: trainer.max_stepz: no such option; did you",
    "toy fit --config type.yaml": "type.yaml: trainer.max_steps: expected int, got many",
    "toy fit --config syntax.yaml": "syntax.yaml: line 2: is not valid YAML",
    "toy fit --config nowhere.yaml": "no such file or packaged configuration",
    "toy fit --model Toy": "no class named 'Toy'; did you mean 'ToyTask'?",
    "toy fit --model.dropout 7": "dropout probability has to be between 0 and 1",
    "toy fit --data.num_workers=-1 --trainer.logger=false": "num_workers and start_step must be",
    "toy fit --trainer.accelerator abc": "--trainer: You selected an invalid accelerator name",
    "toy fit --ckpt_path nowhere.ckpt": "nowhere.ckpt: no such checkpoint",
    "toy fit --ckpt_path last": "holds no last.ckpt",
    "toy validate": "needs --ckpt_path",
    "toy fti": "did you mean 'fit'?",
    "toi fit": "did you mean 'toy'?",
    "--frobnicate": "no option '--frobnicate'",
}


@pytest.mark.parametrize("line", BAD)
def test_bad_usage_is_one_line(
    line: str, toy: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("key.yaml").write_text("model:\n  class_path: ToyTask\n  init_args:\n    widht: 3\n")
    Path("trainer.yaml").write_text("trainer:\n  max_stepz: 3\n")
    Path("type.yaml").write_text("trainer:\n  max_steps: many\n")
    Path("syntax.yaml").write_text("a: [1\n")
    assert BAD[line] in _error(capsys, *line.split())


def test_other_statuses(
    toy: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(argv: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(toy, "demo", interrupted)
    assert main(["toy", "demo"]) == 130
    monkeypatch.setattr(toy, "demo", lambda argv: 1 // 0)
    assert main(["toy", "demo"]) == 1
    assert "ZeroDivisionError" in capsys.readouterr().err
    monkeypatch.setattr(toy.ToyTask, "training_step", lambda *_: interrupted([]))
    before = signal.getsignal(signal.SIGINT)
    assert main(["toy", "fit", "--trainer.logger=false", *QUIET]) == 130
    assert signal.getsignal(signal.SIGINT) is before  # Lightning has it ignored


def test_a_missing_requirement_is_named(
    toy: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    domains.register_domain(domains.Domain("toy", "", requires=("os", "absent_module"), task="x.Y"))
    text = _error(capsys, "toy", "fit")
    assert text == 'error: longseq toy needs absent_module: pip install "longseq[toy]"'
    assert main(["toy", "--help"]) == 0


def test_what_is_required_is_said(toy: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    domains.register_domain(dataclasses.replace(domains.load_domain("toy"), defaults={}))
    text = _error(capsys, "toy", "fit")
    assert text == "error: --data and --model needed: --config file.yaml (longseq toy fit --help)"


def test_packaged_configurations(
    toy: ModuleType,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "package" / "configs").mkdir(parents=True)
    (tmp_path / "package" / "configs" / "tiny.yaml").write_text("trainer:\n  max_steps: 2\n")
    monkeypatch.setattr(toy, "__path__", [str(tmp_path / "package")], raising=False)
    for name in ("tiny", "tiny.yaml"):
        assert main(["toy", "fit", f"--config={name}", "--trainer.logger=false", *QUIET]) == 0
        assert "step 2/2" in capsys.readouterr().err
    assert "did you mean 'tiny'?" in _error(capsys, "toy", "fit", "--config", "tinny")


def test_checkpoint_and_arguments(
    toy: ModuleType, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ckpt, off = ["--ckpt_path", str(trained)], ["--trainer.logger=false", *QUIET]
    # No configuration is needed; the data's values can be changed.
    assert main(["toy", "validate", *ckpt, *off, "--data.seed=4"]) == 0
    assert main(["toy", "test", *ckpt, *off]) == 0
    assert main(["toy", "predict", *ckpt, *off]) == 0
    # What was not said is the checkpoint's, also with a configuration that does not say it.
    Path("same.yaml").write_text("model:\n  class_path: ToyTask\n  init_args:\n    width: 4\n")
    capsys.readouterr()
    assert main(["toy", "fit", "--config", "same.yaml", *ckpt, *off, "--trainer.max_steps=8"]) == 0
    text = capsys.readouterr().err
    assert "step 8/8" in text and "note:" not in text
    assert main(["toy", "fit", *ckpt, *off, "--trainer.max_steps=7", "--data.seed=4"]) == 0
    assert "note: --data.seed 4 where the checkpoint's training had 3" in capsys.readouterr().err
    # What contradicts it is an error.
    text = _error(capsys, "toy", "fit", *ckpt, "--model.lr", "0.5")
    assert "--model.lr 0.5 contradicts" in text and "trained with lr 0.02" in text
    Path("other.yaml").write_text("model:\n  class_path: ToyTask\n  init_args:\n    width: 5\n")
    assert "--model.width 5 contradicts" in _error(
        capsys, "toy", "fit", "--config", "other.yaml", *ckpt
    )
    assert "another shape" in _error(
        capsys, "toy", "fit", "--init_from", str(trained), "--model.width=5", *off
    )
    assert (
        main(
            [
                "toy",
                "fit",
                "--init_from",
                str(trained),
                "--model.lr=0.5",
                "--trainer.max_steps=1",
                *off,
            ]
        )
        == 0
    )


def test_last_is_the_newest_checkpoint(
    toy: ModuleType, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = f"--trainer.default_root_dir={trained.parents[3]}"
    assert (
        main(
            [
                "toy",
                "fit",
                "--ckpt_path",
                "last",
                root,
                "--name=more",
                "--trainer.max_steps=7",
                *QUIET,
            ]
        )
        == 0
    )
    again = torch.load(
        trained.parents[3] / "more" / "version_0" / "checkpoints" / "last.ckpt", weights_only=True
    )
    assert again["global_step"] == 7
    assert again["hyper_parameters"]["lr"] == 0.02


def test_last_is_looked_for_where_the_configuration_writes(tmp_path: Path) -> None:
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    first.write_text("trainer: {default_root_dir: runs/mine}")
    second.write_text("trainer: {max_steps: 3}")
    assert output_folder([], [str(first), str(second)]) == "runs/mine"
    assert output_folder(["--trainer.default_root_dir", "here"], [str(first)]) == "here"
    assert output_folder([], [str(second)]) is None


def test_the_screen_says_what_is_true_and_what_to_type_next(
    toy: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["toy", "fit", "--progress=lines", "--trainer.max_steps=4", *QUIET]) == 0
    err = capsys.readouterr().err
    assert re.search(r"^ToyTask: [\d,]+ parameters, on 1 × cpu$", err, re.MULTILINE)
    for noise in ("FLOPs", "available", "Tip", "stopped", "Seed set"):
        assert noise not in err, noise
    next_line = re.search(r"^next: (longseq toy test --ckpt_path (\S+))$", err, re.MULTILINE)
    assert next_line and Path(next_line[2]).is_file() and not Path(next_line[2]).is_absolute()
    assert main(next_line[1].split()[1:]) == 0


def test_a_checkpoint_of_another_domain(
    toy: ModuleType, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    zoo = domains.Domain("zoo", "", task="longseq.core.training.task.BaseTask", package="json")
    domains.register_domain(zoo)
    try:
        text = _error(capsys, "zoo", "predict", "--ckpt_path", str(trained))
    finally:
        domains.unregister_domain("zoo")
    assert "is a checkpoint of toy, not of zoo" in text


def test_one_line_of_a_worker_error() -> None:
    odd = DataError("is damaged", path="a\x1b[31m\udcff[bold].csv")
    assert one_line(odd) == "a\\x1b[31m\\udcff[bold].csv: is damaged"
    text = "Caught DataError in DataLoader worker process 0.\n"
    text += "Original Traceback (most recent call last):\n"
    error = DataError(text + "  File x\nlongseq.core.errors.DataError: a.fa: record 3: bad base")
    assert one_line(error) == "a.fa: record 3: bad base"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        ("`list` within local rank has zero length. Please", "fewer validation or test samples"),
        ("[gloo/transport/tcp/pair.cc:561] Connection closed by peer", "another process of this"),
        ("[gloo/transport/tcp/pair.cc:545] Read error: Connection reset by peer", "another proc"),
        ("shapes do not match", "Traceback"),
    ],
)
def test_what_goes_wrong_between_processes_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: str, said: str
) -> None:
    def fail(args: list[str]) -> int:
        raise RuntimeError(error)

    monkeypatch.setattr("longseq.core.shell.cli._dispatch", fail)
    assert main([]) == (1 if said == "Traceback" else 2)
    text = capsys.readouterr().err
    assert said in text and (said == "Traceback" or text.count("\n") == 1)


def test_doctor(toy: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    status = main(["doctor"])
    out = capsys.readouterr()
    for word in ("torch", "CPU", "CUDA", "threads", "memory", "toy"):
        assert word in out.out
    assert status in (0, 1)
    assert ("do not load" in out.err) == (status == 1)


def test_bench_lists_and_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench"]) == 0 and "recall" in capsys.readouterr().out
    assert main(["bench", "recal"]) == 2
    assert "did you mean 'recall'?" in capsys.readouterr().err


def test_a_domain_left_out_of_an_installation(
    monkeypatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("longseq.core.domain._present", lambda name: name != "audio")
    assert main(["audio", "fit"]) == 2
    assert "audio is not part of this version; available: genomics" in capsys.readouterr().err


def test_a_run_goes_on_with_its_trainer_settings(tmp_path: Path) -> None:
    """They stand beside the checkpoint; what is typed or configured anew holds instead."""
    checkpoint = str(tmp_path / "run/checkpoints/last.ckpt")
    assert resumed_settings(checkpoint, [], []) == {}
    own = "trainer: {max_steps: 60, val_check_interval: 20, precision: bf16-mixed, devices: 4, "
    own += "max_epochs: null, max_time: {minutes: 3}"
    file, other = tmp_path / "run/config.yaml", tmp_path / "other.yaml"
    file.parent.mkdir()
    file.write_text(f"seed_everything: 7\ncheckpoint_every: 50\n{own}}}")
    before = {"seed_everything": 7, "checkpoint_every": 50, "trainer.max_steps": 60}
    before |= {"trainer.val_check_interval": 20, "trainer.precision": "bf16-mixed"}
    assert resumed_settings(checkpoint, [], []) == before
    other.write_text("trainer: {precision: 32-true}\nseed_everything: 1")
    typed = ["--trainer.max_epochs=2", "--checkpoint_every", "5"]
    assert resumed_settings(checkpoint, typed, [str(other)]) == {"trainer.val_check_interval": 20}


EMA = "lightning.pytorch.callbacks.EMAWeightAveraging"


def _with_callbacks(folder: Path, text: str) -> str:
    """Returns the checkpoint of a run whose trainer had these callbacks; it is not written."""
    folder.mkdir()
    (folder / "config.yaml").write_text(f"trainer: {{callbacks: {text}}}")
    return str(folder / "checkpoints/last.ckpt")


def test_a_run_goes_on_with_its_callbacks(tmp_path: Path) -> None:
    """Those that are typed or configured anew hold instead."""
    text = f"[{{class_path: {EMA}, init_args: {{decay: 0.9, device: null}}}}]"
    checkpoint = _with_callbacks(tmp_path / "run", text)
    own = {"trainer.callbacks": [{"class_path": EMA, "init_args": {"decay": 0.9}}]}
    assert resumed_settings(checkpoint, [], []) == own
    theme = "{class_path: lightning.pytorch.callbacks.RichProgressBar, "
    theme += "init_args: {theme: {progress_bar: '#6206E0', metrics: null}}}"
    stop = "{class_path: lightning.pytorch.callbacks.EarlyStopping, "
    stop += "init_args: {monitor: val/loss.mean, patience: 3}}"
    found = resumed_settings(_with_callbacks(tmp_path / "more", f"[{theme}, {stop}]"), [], [])
    bar, early = (one["init_args"] for one in found["trainer.callbacks"])
    assert bar == {"theme": {"progress_bar": "#6206E0", "metrics": None}}
    assert early == {"monitor": "val/loss.mean", "patience": 3}
    other = tmp_path / "other.yaml"
    other.write_text("trainer: {callbacks: null}")
    assert resumed_settings(checkpoint, [], [str(other)]) == {}
    for typed in ("--trainer.callbacks+=x.Y", "--trainer.callbacks.decay=1"):
        assert resumed_settings(checkpoint, [typed], []) == {}


@pytest.mark.parametrize(
    ("callback", "said"),
    [
        ("my_module.Mine", "--import my_module, or give --trainer.callbacks again"),
        ("os.path.Mine", "code from outside longseq"),
        ("lightning.pytorch.callbacks.Nothing", "is not there"),
        ("{class_path: lightning.pytorch.callbacks.LambdaCallback, "
         "init_args: {on_fit_start: os.abort}}", "on_fit_start 'os.abort', which may stand for"),
        ("{class_path: lightning.pytorch.callbacks.ModelCheckpoint, "
         "init_args: {dirpath: /home/other}}", "dirpath '/home/other', a place outside"),
        ("{class_path: lightning.pytorch.callbacks.ModelCheckpoint, "
         "init_args: {filename: a/../../b}}", "filename 'a/../../b', a place outside"),
        (f"{{class_path: {EMA}, init_args: {{avg_fn: os.abort}}}}", "avg_fn 'os.abort'"),
        (f"{{class_path: {EMA}, init_args: {{device: {{class_path: os.abort}}}}}}", "device"),
        (f"{{class_path: {EMA}, init_args: {{decay: my_module.Decay}}}}", "decay"),
        (f"{{class_path: {EMA}, init_args: {{decay: [my_module.Decay]}}}}", "decay"),
        ("3", "names no class"),
    ],
)  # fmt: skip
def test_a_file_never_decides_which_callback_runs(tmp_path: Path, callback: str, said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        resumed_settings(_with_callbacks(tmp_path / "run", f"[{callback}]"), [], [])


def test_a_broken_run_goes_on_without_flags_to_the_same_end(
    toy: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was typed under --trainer is that of the run's config.yaml: the end is bit-equal."""
    flags = ["--trainer.max_steps=11", "--trainer.val_check_interval=3", "--checkpoint_every=4"]
    flags += ["--trainer.limit_val_batches=1", "--trainer.gradient_clip_val=0.5", *QUIET]
    flags += ["--seed_everything=3", f"--trainer.callbacks+={EMA}", "--trainer.callbacks.decay=0.5"]
    flags += ["--trainer.callbacks+=lightning.pytorch.callbacks.EarlyStopping"]
    flags += ["--trainer.callbacks.monitor=val/loss", "--trainer.callbacks.patience=9"]
    root = "--trainer.default_root_dir"
    assert main(["toy", "fit", f"{root}={tmp_path / 'whole'}", "--name=r", *flags]) == 0

    compute = toy.ToyTask.compute

    def stop(task: Any, batch: Any) -> Any:
        if task.training and task.global_step == 6:
            raise KeyboardInterrupt
        return compute(task, batch)

    with monkeypatch.context() as patch:
        patch.setattr(toy.ToyTask, "compute", stop)
        broken = ["toy", "fit", f"{root}={tmp_path / 'broken'}", "--name=r", *flags]
        assert main(broken) != 0
    again = ["toy", "fit", f"{root}={tmp_path / 'broken'}", "--ckpt_path=last", *QUIET]
    # Without averages it is refused, and keeps in its config.yaml the callbacks that it needs.
    assert main([*again, "--trainer.callbacks=null"]) == 2
    assert main(again) == 0
    ends = []
    for name in ("whole", "broken"):
        found = sorted(tmp_path.glob(f"{name}/r/version_*/checkpoints/last.ckpt"))[-1]
        config = read_yaml(found.parents[1] / "config.yaml")
        assert (config["seed_everything"], config["checkpoint_every"]) == (3, 4)
        assert config["ckpt_path"] is None  # by which it would not train the same, but go on
        trainer = config["trainer"]
        assert (trainer["max_steps"], trainer["val_check_interval"]) == (11, 3)
        assert (trainer["limit_val_batches"], trainer["gradient_clip_val"]) == (1, 0.5)
        ends.append(torch.load(found, weights_only=True))
    assert ends[0]["global_step"] == ends[1]["global_step"] == 11
    assert ends[0]["lr_schedulers"] == ends[1]["lr_schedulers"]
    for whole, broken in zip(ends[0]["optimizer_states"], ends[1]["optimizer_states"]):
        torch.testing.assert_close(whole["state"], broken["state"], rtol=0, atol=0)
    for one in ("state_dict", "current_model_state"):
        torch.testing.assert_close(ends[0][one], ends[1][one], rtol=0, atol=0)
    stops = [[v for k, v in one["callbacks"].items() if "EarlyStopping" in k] for one in ends]
    assert len(stops[0]) == 1 and stops[0] == stops[1]


def test_a_name_whose_run_is_not_the_newest_is_said(
    toy: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A killed run without a last.ckpt was taken to go on: the weights were another run's."""
    flags = [f"--trainer.default_root_dir={tmp_path}", "--trainer.limit_val_batches=1", *QUIET]
    said = "the newest run is not s, which becomes a fork of it"
    assert main(["toy", "fit", "--name=r", "--trainer.max_steps=2", *flags]) == 0
    again = ["toy", "fit", "--name=s", "--ckpt_path=last", *flags]
    assert main([*again, "--trainer.max_steps=3"]) == 0
    assert said in capsys.readouterr().err
    assert main([*again, "--trainer.max_steps=4"]) == 0
    assert said not in capsys.readouterr().err
