"""The baselines: exact where they should be, and the figures of ETTh1."""

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from longseq.core.errors import ConfigError, DataError
from longseq.timeseries.baselines import (
    DLinearRidge,
    NLinearRidge,
    Repeat,
    SeasonalNaive,
    make_baseline,
)
from longseq.timeseries.compare import ForecastComparison, evaluate
from longseq.timeseries.data.module import ForecastData
from longseq.timeseries.data.panel import Panel
from longseq.timeseries.data.protocols import Part
from longseq.timeseries.data.windows import Scaler, Windows
from longseq.timeseries.models.seasonal_residual import SeasonalResidual


def test_repeat_and_seasonal_naive() -> None:
    x = torch.arange(20.0).reshape(1, 10, 2)
    assert Repeat(3).forecast(x)[0].tolist() == [[18, 19]] * 3
    assert SeasonalNaive(5, 3).forecast(x)[0, :, 0].tolist() == [14, 16, 18, 14, 16]
    torch.testing.assert_close(SeasonalNaive(4, 1).forecast(x), Repeat(4).forecast(x))
    with pytest.raises(ConfigError, match="one season of 11"):
        SeasonalNaive(2, 11).forecast(x)


@pytest.mark.parametrize("cls", [NLinearRidge, DLinearRidge])
def test_ridge_solves_the_penalised_least_squares_problem(cls, wide_csv) -> None:
    data = ForecastData(str(wide_csv), "ratio", 40, 5)
    windows = data.windows("train")
    model = cls(5, ridge=3.0)
    model.fit(windows)
    batch = windows.batch(range(len(windows)))
    x = batch["x"].transpose(1, 2).reshape(-1, 40).double()
    y = batch["y"].transpose(1, 2).reshape(-1, 5).double()
    to_features, to_level = model.features(40)
    phi, target = x @ to_features, y - x @ to_level.unsqueeze(1)
    # The stationary point of ‖target - φw - b‖² + 3‖w‖², b not penalised: by an independent solver.
    centred, mean = phi - phi.mean(0), target.mean(0)
    stacked = torch.cat([centred, 3.0**0.5 * torch.eye(phi.shape[1], dtype=torch.float64)])
    weight = torch.linalg.lstsq(
        stacked, torch.cat([target - mean, target.new_zeros(phi.shape[1], 5)])
    ).solution
    expected = centred @ weight + mean + x @ to_level.unsqueeze(1)
    actual = model.forecast(batch["x"]).transpose(1, 2).reshape(-1, 5).double()
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)
    assert model.parameters == (phi.shape[1] + 1) * 5


def test_nlinear_shifts_with_the_level(wide_csv) -> None:
    data = ForecastData(str(wide_csv), "ratio", 40, 5)
    model = NLinearRidge(5)
    model.fit(data.windows("train"))
    x = data.windows("test").batch([0])["x"]
    torch.testing.assert_close(model.forecast(x + 3), model.forecast(x) + 3)


def test_figures_do_not_depend_on_the_batch_size(wide_csv) -> None:
    data = ForecastData(str(wide_csv), "ratio", 48, 12)
    for name in ForecastComparison.usual:
        model = make_baseline(name, 12, 24)
        model.fit(data.windows("train"))
        figures = [evaluate(model, data.windows("test"), size) for size in (1, 7, 1000)]
        np.testing.assert_allclose(figures, [figures[0]] * 3, rtol=1e-6)


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ConfigError, match="did you mean 'nlinear_ridge'"):
        make_baseline("nlinear_rigde", 3)
    with pytest.raises(ConfigError, match="ridge"):
        NLinearRidge(3, 0.0)
    with pytest.raises(ConfigError, match="not fitted"):
        NLinearRidge(3).forecast(torch.zeros(1, 9, 1))


# Mean squared errors of ETTh1 at h = 96, and 0.002 of the reference's rounding.
ETTH1_96 = {
    "repeat": 1.294,
    "seasonal_naive": 0.512,
    "nlinear_ridge": 0.370,
    "dlinear_ridge": 0.370,
}


def test_etth1(etth1) -> None:
    data = ForecastData(str(etth1), "ett", 336, 96)
    comparison = ForecastComparison(data)
    rows = {name: comparison.baseline(name)[0] for name in ETTH1_96}
    for name, value in ETTH1_96.items():
        assert rows[name].numbers["windows"] == 2785
        assert rows[name].value == pytest.approx(value, abs=0.002), name


def test_generalised_cross_validation_shrinks_noise_and_keeps_a_signal() -> None:
    rng, t = np.random.default_rng(0), np.arange(900)
    days = pd.date_range("2024-01-01", periods=900, freq="h")
    found = {}
    for name, y in (("noise", rng.normal(size=900)), ("wave", np.sin(2 * np.pi * t / 24))):
        panel = Panel(y[:, None], ("a",), days, pd.tseries.frequencies.to_offset("h"), "a.csv")
        windows = Windows(panel, Scaler.fit(panel, Part(0, 900)), range(48, 877), 48, 24)
        model = make_baseline("nlinear_gcv", 24)
        model.fit(windows)
        batch = windows.batch(range(0, 829, 40))
        found[name] = model.ridge, float((model.forecast(batch["x"]) - batch["y"]).square().mean())
        # No intercept: a context at zero is forecast at zero.
        assert model.forecast(torch.zeros(1, 48, 1)).abs().max() == 0
    assert found["noise"][0] > 1e3 > found["wave"][0]
    assert found["wave"][1] < 1e-4 and found["noise"][1] < 1.2


def test_a_correction_changes_the_shape_and_never_the_level() -> None:
    torch.manual_seed(0)
    network = SeasonalResidual(48, 30, 12).eval()
    x = torch.randn(4, 48)
    assert network(x).abs().max() == 0  # before training
    torch.nn.init.normal_(network.head.weight)
    y = network(x).detach()
    for start, end in ((0, 12), (12, 24), (24, 30)):
        torch.testing.assert_close(y[:, start:end].mean(1), torch.zeros(4), atol=1e-6, rtol=0)
    torch.testing.assert_close(network(x[1:2]), y[1:2])
    assert SeasonalResidual(48, 5, 1).shape(torch.randn(2, 5)).abs().max() == 0


def test_the_closed_form_chooses_inside_the_training_rows(wide_csv: Path) -> None:
    data = ForecastData(str(wide_csv), "ratio", 48, 12)
    windows = data.windows("train")
    model = make_baseline("closed_form", 12, 24)
    model.steps = (0, 5)
    model.fit(windows)
    assert set(model.chosen) == {"ridge", "steps"} and model.chosen["steps"] in (0, 5)
    plain = make_baseline("seasonal_naive", 12, 24)
    test = data.windows("test")
    assert evaluate(model, test)[0] < evaluate(plain, test)[0]
    # What lies after the training rows changes nothing of it.
    values = data.panel.values.copy()
    values[data.split().train.end :] = 1e3
    other = Windows(
        dataclasses.replace(data.panel, values=values), windows.scaler, windows.cutoffs, 48, 12
    )
    again = make_baseline("closed_form", 12, 24)
    again.steps = (0, 5)
    again.fit(other)
    assert again.chosen == model.chosen
    x = torch.randn(2, 48, 2, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(again.forecast(x), model.forecast(x), rtol=0, atol=0)


def test_a_ridge_needs_whole_windows_and_says_so(wide_csv) -> None:
    data = ForecastData(str(wide_csv), "ratio", 40, 5, min_context=4)
    windows = data.windows("train")
    assert windows.cutoffs[0] == 4
    padded, whole = NLinearRidge(5), NLinearRidge(5)
    padded.fit(windows)
    whole.fit(windows.at(range(40, windows.cutoffs[-1] + 1)))
    x = torch.randn(2, 40, 1)
    torch.testing.assert_close(padded.forecast(x), whole.forecast(x), rtol=0, atol=0)
    windows.observed = windows.observed.clone()
    windows.observed[::5] = False
    with pytest.raises(DataError, match=r"no training window.*--resample"):
        NLinearRidge(5).fit(windows)
    with pytest.raises(DataError, match="no training window"):
        NLinearRidge(5).fit(windows.at(range(4, 20)))
