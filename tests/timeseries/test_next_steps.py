"""What ``fit`` and ``test`` print as the next command runs, for every data module."""

import re
import shlex
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from longseq.core.shell.cli import main

SMALL = ["--model=MixerForecaster", "--model.d_model=8", "--model.n_layers=1"]
STEPS = ["--data.context=28", "--data.horizon=7", "--data.batch_size=4", "--trainer.max_steps=2"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    rng, count = np.random.default_rng(0), 150
    parts = [
        pd.DataFrame(
            {
                "shop": f"s{i}",
                "when": pd.date_range("2024-01-01", periods=count, freq="15min"),
                "sold": rng.normal(size=count),
                "promo": rng.integers(0, 2, count),
            }
        )
        for i in range(3)
    ]
    pd.concat(parts).to_parquet("the sales.parquet", index=False, row_group_size=200)
    return tmp_path


def next_command(text: str) -> list[str]:
    (said,) = re.findall(r"^next: longseq (.*)$", text, re.MULTILINE)
    return shlex.split(said)


ROLES = [
    "--data.path=the sales.parquet",
    "--data.id=shop",
    "--data.time=when",
    "--data.target=sold",
]


@pytest.mark.parametrize(
    "more",
    [
        ["--data=ForecastData", *ROLES],
        ["--data=ForecastData", *ROLES, "--data.future=[promo]"],
        ["--data=LongFileData", *ROLES, "--data.pool=450"],
    ],
    ids=["whole", "covariates", "in pieces"],
)
def test_each_printed_command_runs(
    more: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if "--data.future=[promo]" in more:
        more = [*more, "--model.covariates=[future:promo]"]
    assert main(["timeseries", "fit", *SMALL, *more, *STEPS]) == 0
    command = next_command(capsys.readouterr().err)
    assert command[:2] == ["timeseries", "test"] and main(command) == 0
    said = capsys.readouterr()
    # A season of 96 rows is not in a context of 28: that baseline is left out by name.
    assert "note: seasonal_naive is left out: a context of 28 rows" in said.err
    assert "nlinear_ridge" in said.out and "all that was measured" in said.out
    command = next_command(said.err)
    assert command[:3] == ["timeseries", "predict", "the sales.parquet"] and main(command) == 0
    assert len(pd.read_csv(folder / "forecasts.csv")) == 3 * 7


def test_no_test_is_proposed_where_there_is_nothing_to_test_on(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = ["--data.batch_size=16", "--data.steps_per_epoch=2", "--data.valid_batches=1"]
    model = ["--model.d_model=16", "--model.n_layers=1", "--model.hidden=16"]
    run = ["timeseries", "fit", "--config", "zero_shot", *sizes, *model, "--trainer.max_steps=2"]
    assert main(run) == 0
    assert "next:" not in capsys.readouterr().err
    assert main(["timeseries", "test", "--ckpt_path", "last"]) == 2
    assert "generated series have no test: score the checkpoint" in capsys.readouterr().err


def test_what_is_refused_leaves_no_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    none = ["--data=LongFileData", "--data.path=none.parquet"]
    assert main(["timeseries", "fit", *SMALL, *none, *STEPS]) == 2
    assert "none.parquet: no such time-series file" in capsys.readouterr().err
    assert list(folder.rglob("outputs/*")) == []
    (folder / "outputs/timeseries/fit/version_0").mkdir(parents=True)
    (folder / "outputs/timeseries/fit/version_0/notes.txt").write_text("kept")
    assert main(["timeseries", "fit", *SMALL, *none, *STEPS]) == 2
    assert [str(one.relative_to(folder)) for one in folder.rglob("version_*")] == [
        "outputs/timeseries/fit/version_0"
    ]
