"""Intervals of a panel: scaled by what was missed one horizon earlier, and by nothing later."""

from statistics import NormalDist

import numpy as np
import pandas as pd
import pytest

from longseq.core.errors import ConfigError
from longseq.core.shell.cli import main
from longseq.timeseries.calibrated import PANEL, panel_intervals, width_factors
from longseq.timeseries.data.frames import Panel
from longseq.timeseries.forecaster import Forecaster
from longseq.timeseries.zero_shot import LEVELS, Quantiles, zero_shot_frame

NORMAL = np.array([NormalDist().inv_cdf(float(level)) for level in LEVELS])


def walks(count: int, rows: int = 40, seed: int = 0) -> np.ndarray:
    """Walks (T, C) that become three times as restless in their last quarter."""
    steps = np.random.default_rng(seed).standard_normal((rows, count))
    steps[rows - rows // 4 :] *= 3
    return 50 + np.cumsum(steps, 0)


def panel(values: np.ndarray) -> Panel:
    ds = pd.date_range("2020-01-01", periods=len(values), freq="D")
    names = [f"s{i}" for i in range(values.shape[1])]
    return Panel(values, names, ds, pd.tseries.frequencies.to_offset("D"), "walks")


def last_value(contexts) -> np.ndarray:
    """A forecaster of two rows: the last value, and the intervals of a unit walk."""
    last = np.array([one[np.isfinite(one)][-1] for one in contexts])
    wide = np.sqrt([1.0, 2.0])[:, None] * NORMAL
    return last[:, None, None] + wide


@pytest.mark.parametrize("spread", [0.7, 1.0, 1.6])
def test_factors_go_two_thirds_of_the_way_to_what_the_errors_say(spread):
    n = 40_000
    targets = spread * np.random.default_rng(0).standard_normal((n, 1))
    found = width_factors(np.broadcast_to(NORMAL, (n, 1, 9)), targets)
    assert found[4] == 1
    # A sample quantile is sure to √(p (1 - p) / n) over the density: 2/3 of five times that.
    for factor, level, z in zip(found, LEVELS, NORMAL):
        if level != 0.5:
            density = np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)
            error = np.sqrt(level * (1 - level) / n) / density / abs(z)
            assert abs(np.log(factor) - n / (1.5 * n + 20) * np.log(spread)) < 5 / 1.5 * error


def test_factors_have_the_least_loss_of_a_grid():
    rng = np.random.default_rng(1)
    forecasts = np.sort(rng.standard_normal((60, 7, 9)), -1) * rng.uniform(0.1, 10, (60, 1, 1))
    targets = forecasts[..., 4] + rng.standard_normal((60, 7)) * rng.uniform(0.1, 5, (60, 1))
    targets[rng.random((60, 7)) < 0.2] = np.nan
    best = width_factors(forecasts, targets) ** ((1.5 * 60 + 20) / 60)
    width = (forecasts[..., -1] - forecasts[..., 0]).mean(1)[:, None, None]

    def losses(factors: np.ndarray) -> np.ndarray:
        middle = forecasts[..., 4:5]
        error = targets[..., None] - middle - factors * (forecasts - middle)
        return np.nansum(np.maximum(LEVELS * error, (LEVELS - 1) * error) / width, (0, 1))

    least = losses(best)
    for factor in np.linspace(0.5, 2, 151):
        assert (least <= losses(np.full(9, factor)) * (1 + 1e-9)).all()


def test_few_series_move_little_and_many_no_further_than_two_thirds_of_the_way_to_two():
    def factor(n: int) -> float:
        targets = np.where(np.arange(n) % 2, 100.0, -100.0)[:, None]
        return float(width_factors(np.broadcast_to(NORMAL, (n, 1, 9)), targets)[0])

    assert factor(2) == pytest.approx(2 ** (2 / 23))
    assert factor(2000) == pytest.approx(2 ** (2000 / 3020))
    same = width_factors(np.zeros((60, 3, 9)), np.ones((60, 3)))  # of no width: nothing to scale
    np.testing.assert_array_equal(same, 1.0)


def test_a_panel_is_scaled_from_fifty_series_on_and_medians_stay():
    contexts = list(walks(PANEL, 41).T)
    found = last_value(contexts)
    scaled = panel_intervals(last_value, contexts, found)
    np.testing.assert_array_equal(scaled[..., 4], found[..., 4])
    assert ((scaled[..., 8] - scaled[..., 0]) > 1.3 * (found[..., 8] - found[..., 0])).all()
    assert (np.diff(scaled, axis=-1) >= 0).all()
    np.testing.assert_array_equal(panel_intervals(last_value, contexts, found, None, False), found)
    few = panel_intervals(last_value, contexts[1:], found[1:])
    np.testing.assert_array_equal(few, found[1:])
    assert (panel_intervals(last_value, contexts[1:], found[1:], None, True) != found[1:]).any()


def test_what_cannot_be_held_back_is_not_asked():
    contexts = [*walks(PANEL, 41).T, np.arange(5.0), np.full(30, 7.0)]
    contexts.append(np.concatenate([np.arange(30.0) % 7, [np.nan, np.nan]]))
    scaled = panel_intervals(last_value, contexts, last_value(contexts))
    fewer = panel_intervals(last_value, contexts[:PANEL], last_value(contexts[:PANEL]))
    np.testing.assert_array_equal(scaled[:PANEL], fewer)
    short = [one[:5] for one in contexts[:PANEL]]
    np.testing.assert_array_equal(
        panel_intervals(last_value, short, last_value(short), None, True), last_value(short)
    )


def test_each_cutoff_has_its_own_factors_and_256_series_are_asked():
    calm, restless = list(walks(PANEL, 30).T), list(walks(PANEL, 40, 1).T)
    calm = [one[:20] for one in calm]
    both = [one for pair in zip(calm, restless) for one in pair]
    scaled = panel_intervals(last_value, both, last_value(both), [0, 1] * PANEL)
    for group, at in ((calm, 0), (restless, 1)):
        alone = panel_intervals(last_value, group, last_value(group))
        np.testing.assert_array_equal(scaled[at::2], alone)
    asked = []

    def counted(contexts):
        asked.append(len(contexts))
        return last_value(contexts)

    many = list(walks(600, 20).T)
    panel_intervals(counted, many, last_value(many))
    assert asked == [256]


def test_nothing_after_the_cutoff_and_no_batch_changes_calibrated_intervals():
    values, network = walks(PANEL, 60), Quantiles()
    expected = zero_shot_frame(panel(values[:50]), 5, quantiles=network)
    changed = values.copy()
    changed[50:] = 1e3 * np.random.default_rng(3).standard_normal(changed[50:].shape)
    for given in (values, changed):
        found = zero_shot_frame(panel(given), 5, [45, 50], quantiles=network)
        late = found[found["cutoff"] == found["cutoff"].max()].reset_index(drop=True)
        columns = ["ZeroShot", "ZeroShot-lo-80", "ZeroShot-hi-80"]
        np.testing.assert_allclose(late[columns], expected[columns], rtol=1e-5)
    others = [
        zero_shot_frame(panel(values[:50]), 5, batch_size=size, quantiles=network)
        for size in (1, 7)
    ]
    for one in others:
        np.testing.assert_allclose(one.iloc[:, 4:], expected.iloc[:, 4:], rtol=1e-5)
    own = zero_shot_frame(panel(values[:50]), 5, quantiles=network, calibrate=False)
    assert (own["ZeroShot-hi-80"] < expected["ZeroShot-hi-80"]).mean() > 0.9
    np.testing.assert_array_equal(own["ZeroShot"], expected["ZeroShot"])


def test_counts_have_no_negative_end():
    rng = np.random.default_rng(4)
    counts = rng.poisson(0.7, (60, PANEL)).astype(float)
    counts[50:] = rng.poisson(5, (10, PANEL))
    found = zero_shot_frame(panel(counts), 5, levels=(80, 95))
    assert (found.filter(like="ZeroShot-lo") >= 0).all(axis=None)
    contexts = list(counts.T)
    own = np.maximum(last_value(contexts), 0)
    scaled = panel_intervals(last_value, contexts, own)
    assert scaled.min() == 0 and (scaled[..., 8] > own[..., 8]).all()


def test_the_command_and_the_forecaster_calibrate_alike(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    values = walks(PANEL, 50)
    long = panel(values)
    frame = pd.DataFrame(
        {
            "unique_id": np.repeat(long.ids, len(values)),
            "ds": np.tile(long.ds, PANEL),
            "y": values.T.ravel(),
        }
    )
    frame.to_csv("walks.csv", index=False)
    frame.to_parquet("walks.parquet", index=False)
    made = {}
    for how in ("auto", "yes", "no"):
        command = ["timeseries", "predict", "walks.csv", "--horizon", "5", "--out", f"{how}.csv"]
        assert main([*command, "--calibrate", how]) == 0
        made[how] = pd.read_csv(f"{how}.csv")["ZeroShot-hi-80"]
    pd.testing.assert_series_equal(made["auto"], made["yes"])
    assert (made["no"] < made["auto"]).mean() > 0.9
    for conformal, how in ((None, "auto"), (0, "no")):
        found = Forecaster("zero_shot", conformal=conformal).fit(frame).predict(5)
        np.testing.assert_allclose(found["ZeroShot-hi-80"], made[how], rtol=1e-5)
    # Neither a piece of many series nor one of few is calibrated.
    monkeypatch.setattr("longseq.timeseries.calibrated.PANEL", 2)
    command = ["timeseries", "predict", "walks.parquet", "--horizon", "5", "--in_pieces", "yes"]
    assert main(command) == 0
    assert "in pieces, intervals are not calibrated" in capsys.readouterr().out
    pieces = pd.read_csv("forecasts.csv")["ZeroShot-hi-80"]
    np.testing.assert_allclose(pieces, made["no"], rtol=1e-5)
    whole = Forecaster("zero_shot").predict(5, "walks.parquet", out="out.csv")
    np.testing.assert_allclose(pd.read_csv(whole)["ZeroShot-hi-80"], made["no"], rtol=1e-5)
    assert main([*command, "--calibrate", "yes"]) != 0
    assert "--calibrate needs the whole file" in capsys.readouterr().err
    assert main(["timeseries", "predict", "x.csv", "--ckpt_path", "x", "--calibrate", "no"]) != 0
    assert "--calibrate is for the packaged forecaster" in capsys.readouterr().err


def test_a_saved_forecaster_keeps_how_it_calibrates(tmp_path):
    frame = pd.DataFrame({"ds": pd.date_range("2020", periods=30, freq="D"), "a": np.arange(30.0)})
    for i, conformal in enumerate((None, 0)):
        Forecaster("zero_shot", conformal=conformal).fit(frame).save(tmp_path / str(i))
        assert Forecaster.load(tmp_path / str(i)).conformal == conformal
    with pytest.raises(ConfigError, match="rows that would calibrate"):
        Forecaster("mixer_forecaster", conformal=3)
