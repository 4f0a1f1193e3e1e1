"""Forecasters: what they must not look at, what they must not depend on, and what the published
ones do."""

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from longseq.core.errors import ConfigError
from longseq.timeseries import Forecaster
from longseq.timeseries.models.autoformer import Autoformer, decompose
from longseq.timeseries.models.informer import Informer
from longseq.timeseries.models.inverted_forecaster import InvertedForecaster
from longseq.timeseries.models.mixer_forecaster import MixerForecaster
from longseq.timeseries.models.spacetime import SpaceTime
from longseq.timeseries.models.tpgn import TPGN

C, L, H, LABEL, F = 3, 32, 8, 16, 4
TRANSFORMER = {
    "channels": C,
    "context": L,
    "horizon": H,
    "label": LABEL,
    "features": F,
    "d_model": 16,
    "n_heads": 2,
    "d_ff": 32,
}


def make(name: str, compat: bool = False) -> nn.Module:
    torch.manual_seed(0)
    if name == "informer":
        return Informer(**TRANSFORMER, factor=2, compat=compat).eval()
    if name == "autoformer":
        return Autoformer(**TRANSFORMER, moving_average=5, factor=1, compat=compat).eval()
    if name == "spacetime":
        return SpaceTime(H, 8, 6, compat=compat).eval()
    if name == "tpgn":
        return TPGN(C, L, H, 12, F, 4).eval()  # neither length is a multiple of the period
    if name == "inverted":
        return InvertedForecaster(L, H, 8, 1, mixer_kwargs={"n_heads": 2}).eval()
    if name == "inverted_mamba":
        return InvertedForecaster(L, H, 8, 1, "bidirectional", {"mixer": "mamba"}).eval()
    heads = {"n_heads": 2} if name == "attention" else None
    return MixerForecaster(L, H, 8, 1, name, heads, patch=8, stride=4).eval()


def inputs(batch: int = 5, seed: int = 1) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, L, C, generator=generator)
    marks = [torch.rand(batch, n, F, generator=generator) - 0.5 for n in (L, H)]
    return x, *marks


def run(
    model: nn.Module, x: torch.Tensor, x_mark: torch.Tensor, y_mark: torch.Tensor
) -> torch.Tensor:
    if isinstance(model, TPGN):
        return model(x, x_mark)
    takes_marks = isinstance(model, (Informer, Autoformer))
    return model(x, x_mark, y_mark) if takes_marks else model(x)


NAMES = [
    *("mamba", "companion", "attention", "informer", "autoformer", "spacetime"),
    *("tpgn", "inverted", "inverted_mamba"),
]


@pytest.mark.parametrize("name", NAMES)
def test_forecasts_have_the_shape_and_every_weight_in_use_gets_a_gradient(name: str) -> None:
    model = make(name).train()
    x, x_mark, y_mark = inputs()
    y = run(model, x, x_mark, y_mark)
    assert y.shape == (5, H, C)
    loss = y.square().sum()
    if isinstance(model, SpaceTime):
        loss = loss + model.loss(x, torch.zeros_like(y))
    loss.backward()
    lost = [key for key, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert lost == []


@pytest.mark.parametrize("name", NAMES)
def test_a_forecast_does_not_depend_on_its_neighbours_nor_on_the_batch_size(name: str) -> None:
    model, (x, x_mark, y_mark) = make(name), inputs()
    with torch.no_grad():
        whole = run(model, x, x_mark, y_mark)
        other = x.clone()
        other[1:] = 100 * torch.randn_like(other[1:])
        torch.testing.assert_close(run(model, other, x_mark, y_mark)[0], whole[0], rtol=0, atol=0)
        rows = [run(model, x[i : i + 1], x_mark[i : i + 1], y_mark[i : i + 1]) for i in range(5)]
    torch.testing.assert_close(torch.cat(rows), whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_forecasts_are_deterministic_whatever_the_random_stream(name: str) -> None:
    model, given_ = make(name), inputs()
    with torch.no_grad():
        torch.manual_seed(1)
        first = run(model, *given_)
        torch.manual_seed(2)
        torch.testing.assert_close(run(model, *given_), first, rtol=0, atol=0)


def test_the_published_informer_draws_keys_anew() -> None:
    model, given_ = make("informer", compat=True), inputs()
    with torch.no_grad():
        torch.manual_seed(1)
        first = run(model, *given_)
        torch.manual_seed(3)
        assert not torch.equal(run(model, *given_), first)


@pytest.mark.parametrize("name", ["informer", "autoformer"])
def test_no_convolution_wraps_round_but_the_published_ones_do(name: str) -> None:
    x, x_mark, _ = inputs()
    changed = x.clone()
    changed[:, -1] += 5
    for compat in (False, True):
        embedding = make(name, compat).enc_embedding
        with torch.no_grad():
            moved = (embedding(changed, x_mark) - embedding(x, x_mark)).abs().amax((0, 2)) > 0
        assert moved[-1] and bool(moved[0]) is compat
        assert bool(moved[1:-2].any()) is False


def test_a_row_of_informers_forecast_sees_no_later_row_but_the_published_one_does() -> None:
    x, x_mark, y_mark = inputs()
    later = y_mark.clone()
    later[:, 5:] += 1
    for compat in (False, True):
        model = make("informer", compat)
        with torch.no_grad():
            torch.manual_seed(0)
            first = run(model, x, x_mark, y_mark)
            torch.manual_seed(0)
            same = torch.allclose(
                run(model, x, x_mark, later)[:, :5], first[:, :5], rtol=0, atol=1e-6
            )
        assert same is not compat


def test_autoformers_rows_have_their_own_delays_in_training_but_the_published_ones_share_them() -> (
    None
):
    x, x_mark, y_mark = inputs()
    other = x.clone()
    other[1:] = 10 * torch.randn_like(other[1:])
    for compat in (False, True):
        model = make("autoformer", compat).train()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        with torch.no_grad():
            same = torch.equal(
                run(model, x, x_mark, y_mark)[0], run(model, other, x_mark, y_mark)[0]
            )
        assert same is not compat


@settings(max_examples=20, deadline=None)
@given(window=st.integers(1, 12), length=st.integers(1, 20))
def test_decomposition_adds_up_for_any_window(window: int, length: int) -> None:
    x = torch.randn(2, length, 3, generator=torch.Generator().manual_seed(window))
    season, trend = decompose(x, window)
    assert season.shape == x.shape
    torch.testing.assert_close(season + trend, x)
    torch.testing.assert_close(decompose(torch.ones_like(x), window)[1], torch.ones_like(x))


def test_spacetimes_closed_loop_is_the_open_loop_fed_with_its_own_predictions() -> None:
    model = make("spacetime").double()
    loop = model._loop
    x = inputs()[0].double()
    u, _ = model._series(x)
    with torch.no_grad():
        forecast, z, _ = model._closed(u)
        k = loop.k / loop.k.abs().sum(-1, keepdim=True)
        _, state = loop(z)
        ssm, outputs = state["ssm"], []
        for _ in range(H):
            c = loop.c / loop.c.abs().sum(-1, keepdim=True)
            outputs.append((c * ssm).sum(-1))
            _, following = loop.step((k * ssm).sum(-1), {"ssm": ssm})
            ssm = following["ssm"]
        fed_back = model.output(torch.stack(outputs, 1))
    torch.testing.assert_close(forecast, fed_back, rtol=1e-9, atol=1e-9)


@settings(max_examples=15, deadline=None)
@given(shift=st.floats(-50, 50), scale=st.floats(0.1, 50))
def test_revin_makes_the_forecast_follow_level_and_scale(shift: float, scale: float) -> None:
    model, x = make("mamba").double(), inputs()[0].double()
    with torch.no_grad():
        moved, plain = model(scale * x + shift), model(x)
    torch.testing.assert_close(moved, scale * plain + shift, rtol=1e-3, atol=1e-3 * scale)


def test_last_value_normalisation_follows_the_level() -> None:
    torch.manual_seed(0)
    model = MixerForecaster(
        L, H, 8, 1, normalise="last", patch=1, stride=1, head="last", linear_skip=False
    ).eval()
    x = inputs()[0]
    with torch.no_grad():
        torch.testing.assert_close(model(x + 7), model(x) + 7, rtol=1e-4, atol=1e-4)


def test_channels_do_not_touch_each_other_in_channel_independent_models() -> None:
    x = inputs()[0]
    other = x.clone()
    other[..., 1:] += 10
    for name in ("mamba", "spacetime"):
        model = make(name)
        with torch.no_grad():
            torch.testing.assert_close(model(other)[..., 0], model(x)[..., 0], rtol=0, atol=0)


def test_wrong_sizes_are_refused() -> None:
    for wrong in ({"label": L + 1}, {"context": 6000}, {"n_heads": 3}, {"channels": 0}):
        with pytest.raises(ConfigError):
            Informer(**{**TRANSFORMER, **wrong})
        with pytest.raises(ConfigError):
            Autoformer(**{**TRANSFORMER, **wrong})
    with pytest.raises(ConfigError, match="patch"):
        MixerForecaster(8, 4, 8, 1, patch=9)
    with pytest.raises(ConfigError, match="context of 32"):
        make("mamba")(torch.zeros(1, 31, 2))
    with pytest.raises(ConfigError, match="divisible"):
        SpaceTime(H, 12)
    with pytest.raises(ConfigError, match="of more than"):
        make("spacetime").loss(torch.zeros(1, 7, 1), torch.zeros(1, H, 1))


def test_the_inverted_forecaster_knows_no_order_of_the_series() -> None:
    model, (x, *_) = make("inverted"), inputs()
    order = torch.tensor([2, 0, 1])
    with torch.no_grad():
        torch.testing.assert_close(model(x[..., order]), model(x)[..., order])
        # More series than it was made with, and each sees the others.
        assert model(torch.cat([x, x], -1)).shape == (5, H, 2 * C)
        changed = x.clone()
        changed[:, 3, 0] += 5
        assert not torch.equal(model(changed)[..., 1], model(x)[..., 1])
    with pytest.raises(ConfigError, match="context of 32 rows, got 31"):
        model(x[:, 1:])


@pytest.mark.parametrize(("context", "horizon", "period"), [(30, 7, 12), (13, 25, 12), (24, 1, 12)])
def test_tpgn_takes_any_context_horizon_and_period(context, horizon, period) -> None:
    torch.manual_seed(0)
    model = TPGN(2, context, horizon, period, F, 4).eval()
    x, marks = torch.randn(3, context, 2), torch.rand(3, context, F)
    with torch.no_grad():
        y = model(x, marks)
        assert y.shape == (3, horizon, 2) and bool(y.isfinite().all())
        # A horizon cut from whole periods begins with the same rows.
        longer = TPGN(2, context, -(-horizon // period) * period, period, F, 4).eval()
        longer.load_state_dict(model.state_dict(), strict=True)
        torch.testing.assert_close(longer(x, marks)[:, :horizon], y, rtol=0, atol=0)
        # Series have their own weights, and none sees another.
        other = x.clone()
        other[..., 1] = 0
        torch.testing.assert_close(model(other, marks)[..., 0], y[..., 0], rtol=0, atol=0)
    with pytest.raises(ConfigError, match="longer than the period"):
        TPGN(2, 12, 4, 12, F, 4)


@pytest.mark.parametrize("name", ["informer", "autoformer"])
def test_a_context_of_one_row_and_times_without_a_calendar(name: str) -> None:
    df = pd.DataFrame({"ds": pd.date_range("2024-01-01", periods=30), "y": np.arange(30.0) % 7})
    options = {"max_steps": 1, "horizon": 1, "context": 1, "d_model": 8, "n_heads": 2, "d_ff": 8}
    assert Forecaster(name, **options).fit(df).predict(2).notna().iloc[:, -2].all()
    with pytest.raises(ConfigError, match="reads the calendar, and the times are whole numbers"):
        Forecaster(name, **options).fit(df.assign(ds=range(30)))
