"""The example package, installed: fit → go on → test → predict, also from Python; refused where
unnamed."""

from __future__ import annotations

import csv
import importlib.metadata
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE, SAMPLE = ROOT / "examples/plugin", ROOT / "timeseries/samples/electricity_demand.csv"
SIZES = ["--model.context=48", "--data.context=48", "--model.horizon=24", "--data.horizon=24"]
FIT = [
    "timeseries",
    "fit",
    "--model=LevelForecaster",
    "--data.path=electricity_demand",
    *SIZES,
    "--model.metrics=[longseq_leaky.metric.Bias]",
    "--model.total_steps=6",
    "--data.batch_size=4",
    "--trainer.limit_val_batches=2",
    "--trainer.limit_test_batches=2",
    "--trainer.val_check_interval=2",
    "--trainer.enable_model_summary=false",
]
LAST = "outputs/timeseries/r/version_0/checkpoints/last.ckpt"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which the package is installed, without a network."""
    try:
        old = int(importlib.metadata.version("setuptools").partition(".")[0]) < 77
    except importlib.metadata.PackageNotFoundError:
        old = True
    if old:
        pytest.skip("the example is built by setuptools 77 or newer (pip install 'setuptools>=77')")
    copy, target = tmp_path_factory.mktemp("source") / "plugin", tmp_path_factory.mktemp("site")
    shutil.copytree(EXAMPLE, copy)  # a build leaves files beside the sources
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
    ]
    command += ["--no-index", "--target", str(target), str(copy)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return target


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


def python(code: str, folder: Path, *paths: Path) -> subprocess.CompletedProcess[str]:
    """Runs code in a process of its own that finds packages in ``paths`` beside this one's."""
    found = os.pathsep.join([*map(str, paths), *sys.path])
    environment = {**os.environ, "PYTHONPATH": found, "LONGSEQ_CACHE_DIR": str(folder / "cache")}
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def commands(*lines: list[str]) -> str:
    """Returns code that runs commands until one fails."""
    head = "import sys\nfrom longseq.core.shell.cli import main\n"
    return head + "".join(f"if main({line!r}): sys.exit(2)\n" for line in lines)


@pytest.fixture(scope="module")
def trained(site: Path, workdir: Path) -> Path:
    """The folder in which the commands ran, with the package installed and nothing named."""
    predict = ["timeseries", "predict", str(SAMPLE), "--out", "f.csv", "--ckpt_path", LAST]
    code = commands(
        ["--help"],
        [*FIT, "--name=r", "--trainer.max_steps=4"],
        ["timeseries", "fit", "--ckpt_path", LAST, "--name=more", "--trainer.max_steps=6"],
        ["timeseries", "test", "--ckpt_path", LAST],
        predict,
        [
            "genomics",
            "fit",
            "--data.fasta=tiny",
            "--model.mixer=leaky_average",
            "--data.length=64",
            "--model.d_model=8",
            "--model.n_layers=1",
            "--trainer.max_steps=1",
            "--trainer.logger=false",
            "--trainer.val_check_interval=1",
            "--trainer.enable_checkpointing=false",
        ],
    )
    done = python(code, workdir, site)
    assert done.returncode == 0, done.stderr
    assert "plug-ins: leaky (longseq-leaky 0.1.0)" in done.stdout
    assert "test/bias" in done.stdout and "note:" not in done.stderr
    return workdir


def test_the_commands(trained: Path) -> None:
    assert (trained / "outputs/timeseries/more/version_0/checkpoints/last.ckpt").is_file()
    with (trained / "f.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 24 and "LevelForecaster" in rows[0]


def test_from_python_bit_for_bit(trained: Path, site: Path) -> None:
    code = f"""
import torch
from longseq.core.testing import check_mixer
from longseq.core.training import fit, load_task, seed_everything
from longseq.timeseries import ForecastData
from longseq_leaky.forecaster import LevelForecaster
from longseq_leaky.mixer import LeakyAverage

check_mixer(LeakyAverage, slowest=20.0)
seed_everything(0)
task = LevelForecaster(48, 24, total_steps=6, metrics=["longseq_leaky.metric.Bias"])
data = ForecastData("electricity_demand", context=48, horizon=24, batch_size=4)
run = fit(task, data, out="python", max_steps=4, limit_val_batches=2, val_check_interval=2)
loaded = load_task(run.last, "timeseries", allow=["longseq_leaky"])
by_command = load_task({LAST!r}, "timeseries")  # installed: allowed already
for (name, one), two in zip(loaded.named_parameters(), by_command.parameters()):
    assert torch.equal(one, two), name
assert "val/bias" in run.metrics
"""
    done = python(code, trained, site)
    assert done.returncode == 0, done.stderr


def test_refused_where_it_is_not_named(trained: Path) -> None:
    """The package can be imported but is neither installed nor named."""
    test = ["timeseries", "test", "--ckpt_path", LAST]
    done = python(commands(test), trained, EXAMPLE)
    (line,) = [text for text in done.stderr.splitlines() if text.startswith("error: ")]
    assert done.returncode == 2 and "is of longseq_leaky.forecaster.LevelForecaster" in line
    assert "--import longseq_leaky.forecaster on the command line" in line
    done = python(commands([*test, "--import", "longseq_leaky.plugin"]), trained, EXAMPLE)
    assert done.returncode == 0, done.stderr
