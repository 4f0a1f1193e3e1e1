"""What was not observed neither trains nor scores, in windows, losses, metrics and intervals."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from longseq.core.errors import DataError
from longseq.timeseries.baselines import make_baseline
from longseq.timeseries.compare import ForecastComparison, evaluate
from longseq.timeseries.conformal import radii
from longseq.timeseries.data.frames import panel_of, read_panel
from longseq.timeseries.data.module import ForecastData
from longseq.timeseries.data.panel import Panel
from longseq.timeseries.data.protocols import Part
from longseq.timeseries.data.windows import Scaler, Windows, spread
from longseq.timeseries.forecast import forecast_frame
from longseq.timeseries.task import Informer, MixerForecaster, SpaceTime

L, H = 48, 12


@pytest.fixture
def dead(tmp_path, make_wide) -> str:
    """Two series of noise; the first has no value after row 480."""
    wide = make_wide(600)
    wide.loc[480:, "s0"] = np.nan
    wide.to_csv(tmp_path / "dead.csv", index=False)
    return str(tmp_path / "dead.csv")


@pytest.mark.parametrize("name", ForecastComparison.usual)
def test_a_dead_sensor_is_not_scored(name, dead):
    whole, alone = (ForecastData(dead, "ratio", L, H, series) for series in (None, ["s1"]))
    figures = []
    for data in (whole, alone):
        model = make_baseline(name, H, 24)
        model.fit(ForecastData(dead, "ratio", L, H, ["s1"]).windows("train"))
        figures.append(evaluate(model, data.windows("test")))
    np.testing.assert_allclose(figures[0], figures[1], rtol=1e-12)
    sensor = ForecastData(dead, "ratio", L, H, ["s0"])
    model = make_baseline("repeat", H)
    assert np.isnan(evaluate(model, sensor.windows("test"))).all()


@pytest.mark.parametrize(
    ("cls", "more"),
    [
        (MixerForecaster, {"n_layers": 1, "dropout": 0.0}),
        (SpaceTime, {"d_state": 6, "dropout": 0.0}),
        (Informer, {"n_heads": 2, "d_ff": 16, "label": 24, "channels": 2, "dropout": 0.0}),
    ],
)
def test_targets_that_were_not_observed_give_no_gradient(cls, more, wide_csv):
    data = ForecastData(str(wide_csv), "ratio", L, H)
    torch.manual_seed(0)
    task = cls(context=L, horizon=H, d_model=16, **more).train()
    batch = data.windows("train").batch(range(6))
    mask = torch.rand(batch["y"].shape, generator=torch.Generator().manual_seed(1)) < 0.6

    def gradient(target: torch.Tensor) -> tuple[float, torch.Tensor]:
        torch.manual_seed(5)
        loss = task.compute({**batch, "y": target, "y_mask": mask})["loss"]
        task.zero_grad()
        loss.backward()
        found = [p.grad.flatten() for p in task.parameters() if p.grad is not None]
        return loss.item(), torch.cat(found)

    first = gradient(batch["y"])
    other = gradient(torch.where(mask, batch["y"], 1e3))
    # The second term of SpaceTime's loss reads the first target, which is then the forecast.
    assert first[0] == pytest.approx(other[0], rel=1e-6)
    torch.testing.assert_close(first[1], other[1], rtol=1e-5, atol=1e-7)


def test_the_loss_is_the_mean_over_what_was_observed(wide_csv):
    data = ForecastData(str(wide_csv), "ratio", L, H)
    task = MixerForecaster(L, H, d_model=8, n_layers=1).eval()
    batch = data.windows("train").batch(range(4))
    batch["y_mask"] = torch.rand(batch["y"].shape) < 0.5
    out = task.compute(batch)
    error = (out["forecast"] - batch["y"])[batch["y_mask"]]
    torch.testing.assert_close(out["loss"], error.square().mean())
    assert out["pair"][0].shape == out["pair"][1].shape == (int(batch["y_mask"].sum()),)


def test_the_scaler_and_windows_leave_out_what_is_missing(make_wide):
    wide = make_wide(100)
    wide.loc[10:39, "s0"] = np.nan
    panel = panel_of(wide, source="m")
    mean, std = spread(panel.values)
    known = wide["s0"].dropna().to_numpy()
    assert mean[0] == pytest.approx(known.mean()) and std[0] == pytest.approx(known.std())
    scaler = Scaler(panel.ids, mean, std)
    windows = Windows(panel, scaler, range(20, 80), 20, 10)
    batch = windows.batch([0, 5])
    assert not batch["x_mask"][0, 10:, 0].any() and batch["x_mask"][..., 1].all()
    assert batch["x"].isfinite().all()
    # Cutoffs 20 to 30 have no target of the first series at all.
    pairs = windows.pairs
    assert len(pairs) == 60 + 60 - 11 and windows.batch_of_pairs(pairs[:3])["x"].shape == (3, 20, 1)
    torch.testing.assert_close(
        windows.batch_of_pairs(pairs[-2:])["y"][:, :, 0], windows.batch([59])["y"][0].T
    )


@pytest.mark.parametrize("cells", [1, 100, 301])
def test_what_is_worked_on_at_once_changes_no_result(cells, make_wide, monkeypatch):
    table = make_wide(50).iloc[:, 1:].to_numpy(np.float64)
    values = np.concatenate([table, table[:, ::-1] + 1], 1)
    values[:9, 0], values[40:, 1], values[20:23, 2], values[:, 3] = (np.nan,) * 4
    days = pd.date_range("2024-01-01", periods=50)
    ids = tuple(f"s{i}" for i in range(values.shape[1]))

    def found() -> list[np.ndarray]:
        panel = Panel(values, ids, days, days.freq)
        windows = Windows(panel, Scaler.fit(panel, Part(0, 40)), range(5, 46), 8, 4, least=2)
        return [panel.carried(), *spread(values), windows.values.numpy(), windows.pairs]

    whole = found()
    for name in ("panel", "windows"):
        monkeypatch.setattr(f"longseq.timeseries.data.{name}.CELLS", cells)
    for before, after in zip(whole, found(), strict=True):
        np.testing.assert_allclose(after, before, rtol=1e-12 if after.dtype == float else 1e-6)
    expected = [
        place * len(ids) + c
        for place, row in enumerate(range(5, 46))
        for c in range(len(ids))
        if (seen := np.flatnonzero(~np.isnan(values[:, c]))).size
        and seen[0] + 2 <= row
        and ((seen >= row) & (seen < row + 4)).any()
    ]
    assert whole[-1].tolist() == expected


def test_short_contexts_are_padded_on_the_left(make_wide):
    panel = panel_of(make_wide(60), source="m")
    windows = Windows(panel, Scaler(panel.ids, *spread(panel.values)), [5, 40], 16, 4, least=3)
    batch = windows.batch([0])
    assert batch["x_mask"][0, :, 0].tolist() == [False] * 11 + [True] * 5
    assert (batch["x"][0, :11] == batch["x"][0, 11]).all()
    assert len(windows.pairs) == 4
    assert len(Windows(panel, Scaler(panel.ids, *spread(panel.values)), [5, 40], 16, 4).pairs) == 2


def test_a_column_of_rounding_is_not_blown_up():
    noise = 1e-7 * np.random.default_rng(0).standard_normal(500)
    mean, std = spread(np.stack([1e6 + noise, noise, np.full(500, 3.0)], 1))
    assert std[0] == 1 and std[1] == pytest.approx(1e-7, rel=0.2) and std[2] == 1
    assert mean[2] == 3


@pytest.mark.parametrize("power", [-1060, -560, -140, 140, 490])
def test_the_scale_of_values_changes_no_deviation(power):
    values = 10 + np.random.default_rng(0).standard_normal((50, 2))
    values[3, 1] = np.nan
    mean, std = spread(values)
    np.testing.assert_allclose(std, np.nanstd(values, 0), rtol=1e-14)
    few = power < -1022  # digits are lost below the normal numbers
    found = spread(np.ldexp(values, power))
    for one, wanted in zip(found, (mean, std)):
        np.testing.assert_allclose(np.ldexp(one, -power), wanted, rtol=1e-3 if few else 1e-14)


@pytest.mark.parametrize("scale", [1e-170, 1e-45, 1e45])
def test_windows_say_where_0_lies_at_every_scale(scale):
    days = pd.date_range("2024-01-01", periods=60)
    panel = panel_of(pd.DataFrame({"a": scale * (10 + np.arange(60.0) % 7)}, days), source="m")
    windows = Windows(panel, Scaler.fit(panel, Part(0, 40)), [50], 16, 4)
    plain = replace(panel, values=panel.values / scale)
    ones = Windows(plain, Scaler.fit(plain, Part(0, 40)), [50], 16, 4)
    for found in (windows.batch([0]), windows.batch_of_pairs([0])):
        wanted = ones.batch([0])["zero"]
        np.testing.assert_allclose(found["zero"], wanted, rtol=1e-5)
        assert found["zero"] == pytest.approx(-6.0, abs=1.5)


def test_a_context_with_gaps_gives_a_forecast(wide_csv):
    panel = read_panel(wide_csv)
    data = ForecastData(str(wide_csv), "ratio", L, H)
    task = MixerForecaster(L, H, d_model=8, n_layers=1)
    task.facts = data.facts()
    values = panel.values.copy()
    values[-30:-20, 0] = np.nan
    frame = forecast_frame(task, replace(panel, values=values), levels=(80,))
    assert frame["MixerForecaster"].notna().all() and len(frame) == 2 * H
    values[:, 0] = np.nan
    with pytest.raises(DataError, match="'s0' has no value"):
        forecast_frame(task, replace(panel, values=values))


def test_every_series_is_forecast_from_its_own_end(wide_csv):
    panel = read_panel(wide_csv)
    task = MixerForecaster(L, H, d_model=8, n_layers=1)
    task.facts = ForecastData(str(wide_csv), "ratio", L, H).facts()
    values = panel.values.copy()
    values[550:, 1] = np.nan
    frame = forecast_frame(task, replace(panel, values=values))
    ends = frame.groupby("unique_id")["cutoff"].first()
    assert ends["s0"] == panel.ds[-1] and ends["s1"] == panel.ds[549]
    cut = replace(panel, values=panel.values[:550], ds=panel.ds[:550])
    expected = forecast_frame(task, cut)
    for column in ("ds", "MixerForecaster", "SeasonalNaive"):
        mine, other = (one[one["unique_id"] == "s1"][column] for one in (frame, expected))
        assert (mine.to_numpy() == other.to_numpy()).all()


@pytest.mark.parametrize("context", [L, 560])
def test_intervals_of_a_series_that_begins_late_count_no_row_before_it(context, wide_csv):
    panel = read_panel(wide_csv)
    values = panel.values.copy()
    values[:500, 1] = np.nan
    panel = replace(panel, values=values)
    data = ForecastData(str(wide_csv), "ratio", context, H, min_context=8)
    task = MixerForecaster(context, H, d_model=8, n_layers=1)
    task.facts = data.facts()
    frame = forecast_frame(task, panel, levels=(80,))
    for name, first in (("s0", 420), ("s1", 508)):
        mine = frame[frame["unique_id"] == name]
        half = (mine["MixerForecaster-hi-80"] - mine["MixerForecaster"]).to_numpy()
        past = forecast_frame(task, panel.select([name]), list(range(first, 600 - H + 1)))
        errors = (past["y"] - past["MixerForecaster"]).abs().to_numpy().reshape(-1, H)
        np.testing.assert_allclose(half, radii(errors, [80])[0], rtol=1e-5)


def test_another_frequency_is_refused(wide_csv, make_wide):
    task = MixerForecaster(L, H, d_model=8, n_layers=1)
    task.facts = ForecastData(str(wide_csv), "ratio", L, H).facts()
    daily = panel_of(make_wide(100, freq="D"), source="daily.csv")
    with pytest.raises(DataError, match=r"daily.csv: has a row every D, .* every h"):
        forecast_frame(task, daily)


def test_intervals_count_observed_errors_only():
    errors = np.array([[1.0, np.nan], [2.0, 4.0], [3.0, np.nan], [4.0, 5.0]])
    width = radii(errors, (50, 75))
    assert width[:, 0].tolist() == [3, 4]
    assert width[0, 1] == 5 and np.isinf(width[1, 1])


def test_training_memory_and_batches_do_not_depend_on_the_number_of_series():
    days = pd.date_range("2020-01-01", periods=120)
    shapes = set()
    for count in (3, 400):
        frame = pd.DataFrame(np.random.default_rng(0).random((120, count)), index=days)
        data = ForecastData("none", "ratio", 14, 7, batch_size=32)
        data._panel = panel_of(frame, source="m")
        batch = next(iter(data.train_dataloader()))
        shapes.add((batch["x"].shape, batch["y"].shape))
    assert shapes == {((32, 14, 1), (32, 7, 1))}
