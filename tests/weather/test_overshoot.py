"""``longseq weather overshoot``: the energy balance, the world that it makes, and one short run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from longseq.core.shell.cli import main
from longseq.weather import overshoot
from longseq.weather.baselines import exponential_filter, with_lags
from longseq.weather.data.grid import Grid


def test_filters_are_their_recurrence() -> None:
    x = np.array([[1.0], [3.0], [2.0]])
    keep = np.exp(-1 / 5)
    expected = [1.0, keep + (1 - keep) * 3]
    expected.append(keep * expected[1] + (1 - keep) * 2)
    np.testing.assert_allclose(exponential_filter(x, 5.0)[:, 0], expected, rtol=1e-14)
    assert with_lags(x, (5.0, 50.0)).shape == (3, 3)


def test_patterns_have_a_mean_of_one() -> None:
    grid = Grid.of(np.linspace(-85, 85, 18), np.arange(5.0, 360, 10))
    for pattern in overshoot.patterns(grid):
        assert float((pattern * grid.weights()).sum() / grid.weights().sum()) == pytest.approx(1)


def test_a_short_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(overshoot, "STEPS", 2)
    monkeypatch.setattr(overshoot, "BASELINE_NAMES", ("zero", "lps", "lagged"))
    out = tmp_path / "out"
    assert main(["weather", "overshoot", "--seeds", "0", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "ssp534-over" in said and "S5 emulator" in said and "best baseline, lagged" in said
    assert (out / "scores.csv").is_file() and (out / "hysteresis.png").stat().st_size > 10_000
    rows = [line.split(",") for line in (out / "scores.csv").read_text().splitlines()]
    scores = {row[0]: float(row[rows[0].index("spatial_rmse")]) for row in rows[1:4]}
    assert scores["lagged"] < 0.6 * scores["lps"] < scores["zero"]


def test_an_unknown_predictor_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["weather", "overshoot", "--predictor", "rain"]) == 2
    assert "--predictor is temperature or forcing, got 'rain'" in capsys.readouterr().err
