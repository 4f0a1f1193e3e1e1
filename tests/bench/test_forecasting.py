"""The forecasting benchmark: sets are read as they say, and scores are what they are called."""

import numpy as np
import pandas as pd
import pytest

from longseq.bench.forecasting import Case, geometric_means, quantile_forecasts, read_case, score
from longseq.core.errors import ConfigError, DataError
from longseq.core.shell.cli import main


@pytest.fixture
def frame(tmp_path) -> str:
    t = np.arange(120)
    y = 20 + 5 * np.sin(2 * np.pi * t / 12) + np.random.default_rng(0).normal(size=120)
    days = pd.date_range("2010-01-01", periods=120, freq="MS")
    pd.DataFrame({"ds": days, "a": y, "b": 2 * y}).to_csv(tmp_path / "m.csv", index=False)
    return str(tmp_path / "m.csv")


def test_sets_are_read_from_frames_rows_and_tsf(frame, tmp_path):
    case = read_case(f"{frame},horizon=6,season=12,windows=3,step=5")
    assert case.name == "m" and len(case.windows) == 6
    x, y = case.windows[1]
    assert len(x) == 109 and len(y) == 6
    assert case.cutoffs == (0, 1, 2, 0, 1, 2)
    assert read_case(f"{frame},horizon=6,windows=3", 3).cutoffs == (0, 2, 1)
    assert len(read_case(f"{frame},horizon=6,windows=3", 2).windows) == 2
    (tmp_path / "y.tsf").write_text("# c\n@data\ns1:1800:1,2,4,3\ns2:1,1,1,1\n")
    assert len(read_case(f"{tmp_path / 'y.tsf'},horizon=1").windows) == 1  # s2 is constant
    for name, rows in (("a", "V1,V2,V3,V4\nx,1,2,4\n"), ("b", "V1,V2\nx,5\n")):
        (tmp_path / f"{name}.csv").write_text(rows)
    pair = read_case(f"{tmp_path / 'a.csv'}+{tmp_path / 'b.csv'},horizon=1")
    assert pair.windows[0][0].tolist() == [1, 2, 4] and pair.windows[0][1].tolist() == [5]


@pytest.mark.parametrize(
    ("more", "named"),
    [(",season=3", "horizon"), (",horizont=3", "did you mean 'horizon'"), (",horizon=x", "whole")],
)
def test_wrong_specifications_are_named(more, named, frame):
    with pytest.raises(ConfigError, match=named):
        read_case(frame + more)


def test_a_set_without_series_is_refused(frame):
    with pytest.raises(DataError, match="no series that is long enough"):
        read_case(f"{frame},horizon=118")


def test_scores_of_a_forecast_that_is_right_and_of_the_naive_one(frame):
    case = read_case(f"{frame},horizon=6,season=12")
    right = np.stack([y for _, y in case.windows])[..., None] + np.zeros(9)
    row = score(case, "oracle", right, True, 0.0)
    assert (row.mase, row.relative, row.quantile_loss, row.coverage) == (0, 0, 0, 1)
    naive, quantiles = quantile_forecasts("seasonal_naive", case)
    row = score(case, "naive", naive, quantiles, 0.0)
    assert row.relative == pytest.approx(1) and np.isnan(row.quantile_loss)
    assert geometric_means([row])["naive"][0] == pytest.approx(1)


def test_the_command_prints_means_and_a_verdict(frame, tmp_path, capsys):
    argv = ["bench", "forecasting", f"{frame},horizon=6,season=12", "--models"]
    assert main([*argv, "zero_shot,theta,seasonal_naive", "--out", str(tmp_path / "t.csv")]) == 0
    said = capsys.readouterr().out
    assert "geometric means" in said and "the best is" in said
    table = pd.read_csv(tmp_path / "t.csv")
    assert list(table["model"]) == ["zero_shot", "theta", "seasonal_naive"]
    assert table["coverage"][0] > 0 and table["relative"][2] == pytest.approx(1)
    assert main([*argv, "thetta"]) == 2
    assert "did you mean 'theta'" in capsys.readouterr().err


def test_quantiles_of_every_window_have_one_shape():
    case = Case("c", 5, 1, [(np.arange(20.0), np.arange(5.0)), (np.arange(9.0), np.arange(5.0))])
    for name in ("zero_shot", "ses", "theta", "ar", "croston", "tsb"):
        assert quantile_forecasts(name, case)[0].shape == (2, 5, 9)
    with pytest.raises(ConfigError, match="no local model"):
        quantile_forecasts("nlinear_ridge", case)


def test_intervals_of_a_panel_are_calibrated_cutoff_by_cutoff():
    """Windows of one cutoff may follow the targets of another: they must not be pooled."""
    rng = np.random.default_rng(0)
    steps = rng.normal(size=(60, 50))
    steps[-20:] *= 5
    walks = np.cumsum(steps, 0).T
    windows = [(one[: 55 - 5 * i], one[55 - 5 * i : 60 - 5 * i]) for one in walks for i in (0, 1)]
    both = Case("w", 5, 1, windows, (0, 1) * 50)
    found, _ = quantile_forecasts("zero_shot", both)
    own, _ = quantile_forecasts("zero_shot", both, False)
    assert (np.ptp(found, axis=-1) > np.ptp(own, axis=-1)).mean() > 0.9
    for i in (0, 1):
        alone, _ = quantile_forecasts("zero_shot", Case("w", 5, 1, windows[i::2], (i,) * 50))
        np.testing.assert_allclose(found[i::2], alone, rtol=1e-5, atol=1e-5)
    few = Case("w", 5, 1, windows[:98], (0, 1) * 49)
    np.testing.assert_allclose(
        quantile_forecasts("zero_shot", few)[0],
        quantile_forecasts("zero_shot", few, False)[0],
    )
