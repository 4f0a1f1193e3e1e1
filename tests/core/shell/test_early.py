"""Mistakes in flags and files are told before torch or Lightning is imported, in the words of the
parser."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest
from lightning.pytorch import Trainer

from longseq.core.domain import DOMAINS, TASK_COMMANDS, load_domain
from longseq.core.errors import ConfigError, DataError
from longseq.core.shell import early

CODE = """
import sys
from longseq.core.shell.cli import main
status = main(sys.argv[1:])
print("heavy" if "torch" in sys.modules or "lightning" in sys.modules else "light", file=sys.stderr)
sys.exit(status)
"""
MISTAKES = {
    "file": ("timeseries fit --data.path bad.csv", "bad.csv: "),
    "no file": ("genomics fit --data.fasta none.fa", "none.fa: no such genome file"),
    "no BED": ("genomics fit --data.fasta tiny --data.bed none.bed", "none.bed: no such BED file"),
    "model": (
        "timeseries fit --config mixer_forecaster --model.normalize=x",
        "did you mean 'normalise'",
    ),
    "recipe": (
        "audio fit --model.optimizr=adamw",
        "SongDetector has no such argument; did you mean 'opt",
    ),
    "data": (
        "vision fit --data.sorce=x.zip",
        "ImageData has no such argument; did you mean 'source'",
    ),
    "trainer": ("weather fit --trainer.max_stepz 3", "did you mean 'trainer.max_steps'"),
    "section": ("genomics fit --modle.lr 3", "--modle.lr: no such option; did you mean 'model'"),
    "YAML": ("genomics fit --config bad.yaml", "bad.yaml: line 1: is not valid YAML"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told_without_torch(name: str, tmp_path: Path) -> None:
    (tmp_path / "bad.csv").write_text("a,b\n")
    (tmp_path / "bad.yaml").write_text("model: [")
    line, words = MISTAKES[name]
    run = subprocess.run(
        [sys.executable, "-c", CODE, *line.split()],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    error, weight = run.stderr.splitlines()
    assert run.returncode == 2 and error.startswith("error: ") and words in error, run.stderr
    assert weight == "light"


@pytest.mark.parametrize("name", DOMAINS)
def test_arguments_read_from_the_source_are_those_of_the_class(name: str) -> None:
    domain = load_domain(name)
    for module in domain.modules:
        for key, cls in vars(importlib.import_module(module)).items():
            if not inspect.isclass(cls) or cls.__module__ != module or inspect.isabstract(cls):
                continue
            found = early.arguments_of(f"{module}.{key}")
            if found is not None:
                assert set(inspect.signature(cls).parameters) <= set(found), cls
    for side in ("model", "data"):
        path = early.class_of(domain, [], [], side)
        assert path is not None and early.arguments_of(path) is not None, path
    found = early.arguments_of("lightning.pytorch.trainer.trainer.Trainer")
    assert found is not None and set(found) == set(inspect.signature(Trainer).parameters)


def test_what_cannot_be_told_is_left_to_the_parser(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text("class Free:\n    def __init__(self, **anything): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    domain = load_domain("timeseries")
    assert early.arguments_of("mine.Free") is None and early.arguments_of("nowhere.Model") is None
    early.check_flags(
        domain, ["--model=mine.Free", "--model.whatever=1", "--model.init_args.x=2"], []
    )
    early.check(domain, ["--data=mine.Free", "--data.path=none.csv"], [])
    with pytest.raises(DataError, match=r"none\.csv: no such time-series file"):
        early.check(domain, ["--data.path=none.csv"], [])
    with pytest.raises(ConfigError, match="SpaceTime has no such argument"):
        early.check_flags(domain, ["--model", "SpaceTime", "--model.mixer=mamba"], [])


def test_options_of_every_command_are_known() -> None:
    """Lightning's own arguments of the four commands reach the parser."""
    given = {"self", "model", "train_dataloaders", "val_dataloaders", "dataloaders", "datamodule"}
    for command in TASK_COMMANDS:
        assert set(inspect.signature(getattr(Trainer, command)).parameters) - given <= set(
            early.RUN
        ), command
    domain = load_domain("timeseries")
    early.check(domain, ["--print_config", "--model.help"], [])
    early.check(
        domain, ["--model=./mine.yaml", "--model.x=1", '--data={"class_path": "ForecastData"}'], []
    )
    early.check(domain, ["--data.series+", "a", "--verbose", "false"], [])
    with pytest.raises(DataError, match=r"none\.csv"):
        early.check(domain, ["--data.init_args.path=none.csv"], [])


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--data"], r"argument --data: expected one argument; a file is --data\.path FILE"),
        (["--data", "--trainer.max_steps", "3"], r"argument --data: expected one argument"),
        (["--data.path"], r"argument --data\.path: expected one argument$"),
        (["--model", "--data.path=none.csv"], r"argument --model: expected one argument$"),
        (
            ["--data.static", "--data.path=none.csv"],
            r"argument --data\.static: expected one argument; a list is --data\.static '\[NAME, ",
        ),
        (["--data", "sales.csv"], r"--data sales\.csv: .* a file is --data\.path sales\.csv"),
        (["--data=sales.csv.gz"], r"a file is --data\.path sales\.csv\.gz"),
        (["--model", "best.ckpt"], r"--model best\.ckpt: .*--ckpt_path FILE or --init_from FILE"),
    ],
)
def test_options_without_value_and_files_for_classes(argv: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        early.check(load_domain("timeseries"), argv, [])


@pytest.mark.parametrize("domain", ["genomics", "timeseries", "vision", "audio", "weather"])
def test_every_domain_says_where_a_file_goes(domain: str, tmp_path: Path) -> None:
    file = tmp_path / "mine"
    file.touch()
    found = load_domain(domain)
    usual = early.class_of(found, [], [], "data")
    with pytest.raises(ConfigError, match="is a file") as caught:
        early.check(found, ["--data", str(file)], [])
    option = str(caught.value).rpartition("--data.")[2].split()[0]
    assert usual is not None and option in (early.arguments_of(usual) or ())


def test_a_configuration_names_the_class_and_the_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("model: SpaceTime\ndata: {init_args: {path: none.csv}}")
    domain = load_domain("timeseries")
    assert early.class_of(domain, [], [str(file)], "model") == "longseq.timeseries.task.SpaceTime"
    with pytest.raises(DataError, match=r"none\.csv"):
        early.check(domain, [], [str(file)])


def test_a_checkpoint_decides_what_its_classes_take(tmp_path: Path) -> None:
    """Its data may be of another class than the domain's own."""
    domain = load_domain("genomics")
    argv = ["--ckpt_path", "m.ckpt", "--data.genes", "x.gff3"]
    early.check_flags(domain, argv, [])
    for wrong in (argv[2:], ["--data=GenomeData", *argv], [*argv, "--trainer.max_stepz=1"]):
        with pytest.raises(ConfigError, match=r"GenomeData has no such|trainer\.max_steps"):
            early.check_flags(domain, wrong, [])
