"""The zero-shot forecaster: any series, any horizon, gaps; and its generated series."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from longseq.core.errors import ConfigError, DataError
from longseq.core.shell.cli import main
from longseq.core.training.loading import load_task
from longseq.timeseries.compare import _parameters
from longseq.timeseries.data.chaos import SYSTEMS, simulate
from longseq.timeseries.data.frames import panel_of
from longseq.timeseries.data.pretraining import make_batch
from longseq.timeseries.data.synthetic import FAMILIES, generate, recursive, season_shape
from longseq.timeseries.models._seasons import fill_forward, find_periods
from longseq.timeseries.models.zero_shot import MeanOfNetworks, _prepare
from longseq.timeseries.models.zero_shot import ZeroShot as Network
from longseq.timeseries.packaged import PACKAGED, mean_of_networks
from longseq.timeseries.quantiles import at_levels, naive_error, pinball, smape
from longseq.timeseries.zero_shot import (
    LEVELS,
    Quantiles,
    _grow,
    _growth,
    zero_shot_frame,
)
from longseq.timeseries.zero_shot_task import ZeroShot


@pytest.fixture(scope="module")
def packaged() -> Quantiles:
    return Quantiles()


def waves(n: int, period: int = 24, noise: float = 0.1, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    t = np.arange(n)
    return 50 + 10 * np.sin(2 * np.pi * t / period) + noise * rng.standard_normal(n)


def test_the_package_is_small_and_knows_a_season(packaged):
    assert PACKAGED.stat().st_size <= 5e6
    assert PACKAGED.with_suffix(".md").is_file()
    series = waves(300)
    found = packaged.forecast([series[:240]], 60)[0]
    assert np.abs(found[:, 4] - series[240:]).mean() < 1.0
    assert (np.diff(found, axis=1) >= 0).all()


@pytest.mark.parametrize("n", [1, 2, 5, 17, 64, 65, 400, 2500])
def test_any_length_and_horizon(packaged, n):
    for horizon in (1, 64, 65, 200):
        found = packaged.forecast([waves(n)], horizon, 24)
        assert found.shape == (1, horizon, 9) and np.isfinite(found).all()
        assert (np.diff(found, axis=-1) >= -1e-9).all()


def test_batches_order_and_neighbours_change_nothing(packaged):
    contexts = [waves(n, seed=n) for n in (3, 30, 200, 200, 31, 600, 7, 64)]
    whole = packaged.forecast(contexts, 20, 24)
    for size in (1, 3):
        np.testing.assert_allclose(packaged.forecast(contexts, 20, 24, size), whole, rtol=1e-5)
    alone = packaged.forecast([contexts[3]], 20, 24)
    np.testing.assert_allclose(alone[0], whole[3], rtol=1e-5)


@pytest.mark.parametrize("season", [0, 7])
def test_one_seven_and_512_at_once(packaged, season):
    rng = np.random.default_rng(4)
    kinds = (
        lambda n: waves(n, 7),
        lambda n: np.exp(0.1 * np.cumsum(rng.standard_normal(n))),
        lambda n: rng.poisson(0.4, n).astype(float),
        lambda n: np.where(rng.random(n) < 0.2, np.nan, np.cumsum(rng.standard_normal(n))),
        lambda n: np.full(n, 3.0),
    )
    contexts = [kinds[i % 5](int(n)) for i, n in enumerate(rng.integers(6, 90, 512))]
    for one in contexts:
        one[0] = 1.0
    whole = packaged.forecast(contexts, 10, season, 512)
    assert (np.diff(whole, axis=-1) >= -1e-9).all() and np.isfinite(whole).all()
    # Of the deviation of what is forecast, or of the size of what never changes.
    spread = np.array([np.nanstd(one) or np.nanmax(one) for one in contexts])[:, None, None]
    for size, some in ((7, slice(0, 512)), (1, slice(0, 60))):
        found = packaged.forecast(contexts[some], 10, season, size)
        assert (np.abs(found - whole[some]) < 1e-6 * spread[some]).all()


@pytest.mark.parametrize("length", [64, 512])
def test_neighbours_change_no_rounding_of_what_follows_in_closed_form(length):
    rng, t = np.random.default_rng(0), np.arange(length)
    season = np.round(100 * (1 + np.sin(2 * np.pi * t / 7)))  # exact: its local scale is tiny
    rows = np.stack([season, np.log(np.exp(0.05 * t) + rng.random(length)), *np.zeros((5, length))])
    rows[2:] = np.cumsum(rng.standard_normal((5, length)), 1)
    x = torch.from_numpy(rows / np.abs(rows).max(1, keepdims=True)).float()
    known, hint = torch.ones_like(x, dtype=torch.bool), torch.zeros(7, dtype=torch.int64)
    every = _prepare(x, known, hint, None, torch.float64).plain[0]
    for i in (0, 1):
        one = slice(i, i + 1)
        alone = _prepare(x[one], known[one], hint[one], None, torch.float64).plain[0]
        torch.testing.assert_close(every.inputs[one], alone.inputs, rtol=0, atol=5e-7)
        torch.testing.assert_close(every.forecasts[one], alone.forecasts, rtol=0, atol=5e-7)


def test_the_spread_of_a_walk_goes_on_to_grow_and_that_of_a_season_does_not(packaged):
    rng = np.random.default_rng(0)
    contexts = [np.cumsum(rng.standard_normal(800)) for _ in range(16)]
    contexts += [waves(800, noise=4.0, seed=i) for i in range(4)]
    found = packaged.forecast(contexts, 1024)
    assert (np.diff(found, axis=-1) >= -1e-9).all()
    width = found[..., 8] - found[..., 0]
    grown = width[:, -1] / width[:, 63]
    # Of a walk it grows by the root of the steps, fourfold.
    assert 3 < grown[:16].mean() < 5
    assert grown[16:].max() < 2


@pytest.mark.parametrize(("rows", "rate", "horizon"), [(1800, 0.002, 2000), (60, 0.012, 200)])
def test_growth_far_ahead_ends_at_no_bound(packaged, rows, rate, horizon):
    t = np.arange(rows + horizon)
    y = np.exp(rate * t + 0.005 * np.random.default_rng(0).standard_normal(len(t)))
    found = packaged.forecast([y[:rows]], horizon)[0]
    steps = np.diff(found[:, 4])
    assert (steps[-20:] > 0.25 * np.diff(y)[rows:].mean()).all()
    # What is nearer does not depend on how far ahead is asked for.
    np.testing.assert_allclose(packaged.forecast([y[:rows]], 100)[0], found[:100], rtol=1e-9)


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
def test_lines_of_any_scale_go_on(packaged, scale):
    t = np.arange(60.0)
    for line in (scale * (3 + t), scale * (3 - t)):
        found = packaged.forecast([line[:40]], 6)[0]
        assert np.abs(found[:, 4] - line[40:46]).mean() < 1.5 * scale
        assert (np.diff(found, axis=1) >= 0).all()


@pytest.mark.parametrize("value", [4.7e-12, -3e-20, 0.01, 7.3, 1e15])
def test_a_series_that_never_changes_goes_on_at_any_scale(packaged, value):
    for series in (np.full(50, value), np.array([value])):
        found = packaged.forecast([series], 100)[0]
        np.testing.assert_allclose(found, value, rtol=1e-3)


def test_scale_level_and_sign_of_the_series(packaged):
    series = waves(200)

    def same(network, one, factor, shift):
        base = network.forecast([one], 30)[0]
        found = network.forecast([factor * one + shift], 30)[0]
        expected = factor * base + shift
        expected = expected[:, ::-1] if factor < 0 else expected
        np.testing.assert_allclose(found, expected, atol=2e-3 * abs(factor) * one.std())

    for factor in (1e-6, 1e8):
        same(packaged, series, factor, 0.0)
    # Of a series of both signs no logarithms are taken: upside down it is the other copy.
    same(packaged, series - 50, -1.0, 0.0)
    same(Quantiles(copies=False), series, 1.0, 1e9)


def test_growth_by_a_share_is_forecast_as_such(packaged):
    grown = 100 * 1.08 ** np.arange(36) * np.exp(0.01 * waves(36, 5))
    middle = packaged.forecast([grown[:30]], 6)[0, :, 4]
    plain = Quantiles(copies=False).forecast([grown[:30]], 6)[0, :, 4]
    assert np.abs(middle - grown[30:]).mean() < np.abs(plain - grown[30:]).mean()
    # A value that is almost zero makes no logarithm of use, and none overflows.
    spiky = np.where(np.arange(60) % 7 == 0, 1e-9, 5.0)
    assert np.isfinite(packaged.forecast([spiky], 200)).all()
    assert packaged.forecast([np.geomspace(1, 900, 40)], 300).max() < 1e7


def test_intervals_of_few_values_are_as_wide_as_a_walk_asks():
    drifting = 50 + np.cumsum(np.random.default_rng(0).standard_normal(30))
    regular = 50 + 10.0 * (np.arange(32) % 2) + 0.1 * np.random.default_rng(0).standard_normal(32)
    shares = []
    for one in (drifting, regular, waves(400, 5, 3)):
        raw, own = (Quantiles(calibrated=on).forecast([one], 4)[0] for on in (False, True))
        np.testing.assert_allclose(own[:, 4], raw[:, 4], rtol=1e-4)
        width = (own[:, 8] - own[:, 0]) / (raw[:, 8] - raw[:, 0])
        np.testing.assert_allclose(width, width[0], rtol=1e-6)
        shares.append(width[0])
    assert shares == pytest.approx([np.exp(0.25), np.exp(0.05), 1.0], rel=1e-2)


def test_constant_series_gaps_and_counts(packaged):
    constant = packaged.forecast([np.full(50, 7.3)], 10)[0]
    np.testing.assert_allclose(constant, 7.3, atol=0.1)
    gaps = waves(300)
    gaps[np.random.default_rng(0).random(300) < 0.3] = np.nan
    gaps[-5:] = np.nan
    found = packaged.forecast([gaps], 24, 24)[0]
    assert np.abs(found[:, 4] - waves(324, noise=0)[300:]).mean() < 2.5
    counts = np.random.default_rng(1).poisson(0.3, 200).astype(float)
    assert packaged.forecast([counts], 100).min() >= 0
    with pytest.raises(ConfigError, match="context 1 holds no number"):
        packaged.forecast([counts, np.full(9, np.nan)], 3)


def test_a_season_goes_on_after_a_long_gap(packaged):
    y = waves(400)
    found = packaged.forecast([np.r_[y[:300], np.full(100, np.nan)], y], 24)
    truth = waves(424, noise=0)[400:]
    assert np.abs(found[:, :, 4] - truth).mean(1).max() < 1.0
    whole = packaged.forecast([y[:300]], 124)[0, 100:]
    np.testing.assert_allclose(found[0], whole)


def test_a_walk_of_a_tiny_scale_has_the_intervals_of_one_of_scale_1(packaged):
    walk = np.cumsum(np.random.default_rng(2).standard_normal(200))
    one, tiny = packaged.forecast([walk, np.ldexp(walk, -700)], 100)
    np.testing.assert_allclose(np.ldexp(tiny, 700), one, rtol=1e-6)


def test_a_frame_of_ragged_series(packaged):
    days = pd.date_range("2024-01-01", periods=90)
    rows = [(0, 90), (40, 80), (85, 90)]
    parts = [
        pd.DataFrame({"unique_id": f"s{i}", "ds": days[a:b], "y": waves(90, 7)[a:b]})
        for i, (a, b) in enumerate(rows)
    ]
    panel = panel_of(pd.concat(parts), source="m")
    frame = zero_shot_frame(panel, 14, levels=(80, 95), quantiles=packaged)
    assert len(frame) == 3 * 14 and frame.iloc[:, 4:].notna().all(axis=None)
    assert (frame["ZeroShot-lo-95"] <= frame["ZeroShot-lo-80"]).all()
    early = zero_shot_frame(panel, 5, [60, 70], quantiles=packaged)
    assert set(early["unique_id"]) == {"s0", "s1"}
    # Nothing after the cutoff counts.
    changed = panel.values.copy()
    changed[60:] = 1e6
    other = zero_shot_frame(
        panel_of(pd.DataFrame(changed, index=days), source="m"), 5, [60], quantiles=packaged
    )
    mine = early[(early["cutoff"] == days[59])]["ZeroShot"].to_numpy()
    np.testing.assert_allclose(other["ZeroShot"][: len(mine)], mine, rtol=1e-6)
    with pytest.raises(DataError, match="no series has begun"):
        zero_shot_frame(panel.select(["s2"]), 5, [3], quantiles=packaged)


def test_a_single_value_gives_no_interval_to_rely_on(packaged, capsys):
    days = pd.date_range("2024-01-01", periods=30)
    frame = pd.DataFrame({"ds": days, "long": waves(30, 7), "new": np.nan})
    frame.loc[29, "new"] = 5.0
    panel = panel_of(frame, source="m")
    zero_shot_frame(panel, 3, quantiles=packaged)
    said = capsys.readouterr().err
    assert "single value" in said and "'new'" in said and "'long'" not in said
    zero_shot_frame(panel.select(["long"]), 3, quantiles=packaged)
    zero_shot_frame(panel, 3, levels=(), quantiles=packaged)
    assert capsys.readouterr().err == ""


def test_predict_needs_no_checkpoint(tmp_path, workdir, capsys):
    days = pd.date_range("2024-01-01", periods=90)
    pd.DataFrame({"ds": days, "y": waves(90, 7)}).to_csv(tmp_path / "sales.csv", index=False)
    assert main(["timeseries", "predict", str(tmp_path / "sales.csv"), "--horizon", "28"]) == 0
    found = pd.read_csv("forecasts.csv")
    assert len(found) == 28 and {"ZeroShot", "ZeroShot-lo-80", "SeasonalNaive"} <= set(found)
    assert "packaged zero-shot forecaster" in capsys.readouterr().out
    command = ["timeseries", "predict", str(tmp_path / "sales.csv"), "--out", "b.csv"]
    assert main([*command, "--horizon", "7", "--cutoffs", "3"]) == 0
    assert "best baseline" in capsys.readouterr().out
    for more, named in (([], "--horizon 28"), (["--horizon", "0"], "at least 1")):
        assert main([*command, *more]) == 2
        assert named in capsys.readouterr().err


def test_a_network_of_generated_series_forecasts_short_series(tmp_path, workdir, capsys):
    fit = ["timeseries", "fit", "--config", "zero_shot", "--trainer.max_steps", "1", "--name", "a"]
    small = {"n_layers": "0", "d_model": "16", "hidden": "32"}
    fit += [part for key, value in small.items() for part in (f"--model.{key}", value)]
    fit += ["--data.batch_size", "8", "--data.valid_batches", "1", "--trainer.val_check_interval"]
    assert main([*fit, "1"]) == 0
    capsys.readouterr()
    days = pd.date_range("2024-01-01", periods=60)
    frame = pd.DataFrame({"unique_id": "a", "ds": days, "y": waves(60, 7)})
    frame.to_parquet(tmp_path / "sales.parquet")
    checkpoint = "outputs/timeseries/a/version_0/checkpoints/last.ckpt"
    command = ["timeseries", "predict", str(tmp_path / "sales.parquet"), "--ckpt_path", checkpoint]
    assert main([*command, "--horizon", "9"]) == 0
    assert "packaged" not in capsys.readouterr().out
    found = pd.read_csv("forecasts.csv")
    network = Quantiles(load_task(checkpoint, "timeseries").average, calibrated=True)
    mine = network.forecast([frame["y"].to_numpy()], 9, 7)[0]
    np.testing.assert_allclose(found["ZeroShot"], mine[:, 4])
    np.testing.assert_allclose(found["ZeroShot-lo-80"], mine[:, 0])
    assert main([*command, "--in_pieces", "yes"]) == 2
    assert "--in_pieces no" in capsys.readouterr().err
    assert main(["timeseries", "test", "--ckpt_path", checkpoint]) == 2
    assert "--cutoffs 3" in capsys.readouterr().err


def test_fine_tuning_begins_with_the_packaged_weights(wide_csv: Path, workdir: Path):
    argv = ["timeseries", "fit", "--model", "ZeroShot", f"--data.path={wide_csv}"]
    argv += ["--data.context=96", "--data.horizon=12", "--data.batch_size=4"]
    argv += ["--trainer.max_steps=2", "--trainer.val_check_interval=2", "--name=r"]
    assert main(argv) == 0
    checkpoint = next(workdir.rglob("last.ckpt"))
    command = ["timeseries", "predict", str(wide_csv), "--ckpt_path", str(checkpoint)]
    assert main([*command, "--out", "f.csv", "--level", "80"]) == 0
    found = pd.read_csv("f.csv")
    # Two steps change little: it forecasts about what the packaged one does.
    panel = panel_of(pd.read_csv(wide_csv), source="m")
    packaged = zero_shot_frame(panel, 12)
    spread = panel.values.std()
    assert np.abs(found["ZeroShot"] - packaged["ZeroShot"]).mean() < 0.3 * spread


def test_a_tuned_forecaster_reads_no_value_that_was_not_observed():
    task = ZeroShot(context=64, horizon=8).eval()
    x = torch.from_numpy(waves(64)).float()[None, :, None]
    known = torch.ones_like(x, dtype=torch.bool)
    known[:, :20] = known[:, 40:44] = False
    batch = {"x": x, "x_mask": known}
    with torch.inference_mode():
        found = task.predict_windows(batch)
        other = task.predict_windows(batch | {"x": torch.where(known, x, 7.0)})
        torch.testing.assert_close(found, other)
        whole = task.predict_windows(batch | {"x_mask": torch.ones_like(known)})
        assert (whole - found).abs().max() > 1e-3
        assert task.predict_windows(batch | {"x_mask": ~known & known}).isfinite().all()


def test_averaged_weights_are_no_parameters_of_a_tuned_forecaster():
    own = sum(one.numel() for one in ZeroShot().model.parameters())
    assert _parameters(ZeroShot()) == own


def test_pretraining_batches_are_a_function_of_the_step_and_train():
    a, b = make_batch(0, 3, 16), make_batch(0, 3, 16)
    assert torch.equal(a["x"].nan_to_num(), b["x"].nan_to_num()) and a["cutoffs"] == b["cutoffs"]
    assert not torch.equal(a["x"].nan_to_num(), make_batch(1, 3, 16)["x"].nan_to_num())
    task = ZeroShot(pretrained=False, d_model=16, n_layers=1, hidden=16).train()
    for step in range(6):
        out = task.compute(make_batch(0, step, 16))
        out["loss"].backward()
        assert out["loss"].isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in task.parameters())


@pytest.mark.parametrize("layers", [0, 1])
def test_the_network_reads_no_value_after_a_cutoff(layers):
    torch.manual_seed(0)
    network = Network(16, layers, hidden=16).eval()
    x = torch.randn(4, 128)
    known, hint = torch.rand(4, 128) < 0.9, torch.zeros(4, dtype=torch.int64)
    wild = torch.cat([x[:, :64], 100 * torch.randn(4, 64)], 1)
    first, other = (network(one, known, hint, [64, 128]) for one in (x, wild))
    torch.testing.assert_close(first.quantiles[0], other.quantiles[0], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(first.quantiles[1], other.quantiles[1])


@pytest.mark.parametrize(
    "names, shares",
    [
        ("plain+slstm", ((1 / 3, 2 / 3), (1 / 4, 3 / 4))),
        ("plain+local", ((1 / 2, 1 / 2), (1 / 4, 3 / 4))),
        ("recurrent+plain", ((1 / 3, 2 / 3), (2 / 3, 1 / 3))),
        ("recurrent+plain+local", ((1 / 4, 1 / 2, 1 / 4), (1 / 3, 0, 2 / 3))),
    ],
)
def test_a_forecaster_of_networks_is_their_weighted_mean(names, shares):
    torch.manual_seed(0)
    all_ = mean_of_networks(names).eval()
    x = torch.from_numpy(np.stack([waves(640, 24), np.linspace(0.0, 9.0, 640)])).float()
    known, hint = torch.ones_like(x, dtype=torch.bool), torch.tensor([24, 0])
    with torch.inference_mode():
        mean, parts = all_(x, known, hint), [one(x, known, hint) for one in all_.networks]
    assert len(parts) == len(shares[0])
    for one in range(2):
        for other in parts[1:]:
            same = parts[0].quantiles[0][one], other.quantiles[0][one]
            assert not torch.allclose(*same, atol=1e-3)
    # The first series has a season of 24 rows, the second, a line, has none.
    weights = torch.tensor(shares).T[:, :, None, None]
    weighted = sum(weight * part.quantiles[0] for weight, part in zip(weights, parts))
    torch.testing.assert_close(mean.quantiles[0], weighted)
    for name in ("error", "level", "spread"):
        torch.testing.assert_close(getattr(mean, name), getattr(parts[0], name))
    with pytest.raises(ConfigError, match="patches are of 8 and of 16 rows"):
        MeanOfNetworks([Network(16, 0, patch=8), Network(16, 0)], [(1, 1), (0, 0)])


def test_the_backbone_reads_the_last_rows_that_it_is_told_to():
    torch.manual_seed(0)
    network = Network(16, 1, hidden=16).eval()
    x = torch.randn(3, 160).cumsum(1)
    known, hint = torch.ones_like(x, dtype=torch.bool), torch.zeros(3, dtype=torch.int64)

    def found(reads: int, cutoffs: list[int] | None = None) -> torch.Tensor:
        network.reads = reads
        with torch.inference_mode():
            return network(x, known, hint, cutoffs).quantiles[-1]

    torch.testing.assert_close(found(160), found(2048), rtol=0, atol=0)
    torch.testing.assert_close(found(33), found(48), rtol=0, atol=0)  # whole patches of 16
    assert not torch.allclose(found(48), found(2048), atol=1e-6)
    # So before every cutoff: one sixteen, a shorter context, and two of a length.
    ends = [16, 32, 80, 96, 160]
    network.reads = 48
    with torch.inference_mode():
        several = network(x, known, hint, ends)
        for k, end in enumerate(ends):
            one = network(x[:, :end], known[:, :end], hint, [16, end] if k else [16])
            torch.testing.assert_close(several.quantiles[k], one.quantiles[-1])
    assert not torch.allclose(found(48, ends), found(2048, ends), atol=1e-6)


def test_states_of_the_cutoffs_alone_are_those_of_all_patches():
    torch.manual_seed(0)
    network = Network(16, 0, hidden=16).eval()
    x = torch.randn(3, 128).cumsum(1)
    known, hint = torch.rand(3, 128) < 0.9, torch.zeros(3, dtype=torch.int64)
    few = network(x, known, hint, [64, 128]).quantiles
    network.backbone = lambda z, keep_states: (z, None)  # reads every patch, changes none
    every = network(x, known, hint, [64, 128]).quantiles
    for one, other in zip(few, every):
        torch.testing.assert_close(one, other)


def test_recursions_and_seasons_of_generated_series():
    e, phi = np.random.default_rng(0).standard_normal((3, 40)), np.array([[0.5, -0.3]] * 3)
    x = recursive(e, phi)
    np.testing.assert_allclose(x[:, 2:], 0.5 * x[:, 1:-1] - 0.3 * x[:, :-2] + e[:, 2:], rtol=1e-12)
    periods, phase = np.array([7, 12, 24]), np.array([0, 5, 100])
    season = season_shape(np.random.default_rng(1), 3, 120, periods, phase)
    for one, period in zip(season, periods):
        np.testing.assert_allclose(one[period:], one[:-period], atol=1e-9)


# Lags 47 and 48 of a sine differ by 1%: with the noise of the others 47 is found.
@pytest.mark.parametrize(("period", "noise"), [(4, 0.5), (7, 0.5), (12, 0.5), (24, 0.5), (48, 0.1)])
def test_periods_are_found(period, noise):
    series = torch.from_numpy(waves(10 * period, period, noise=noise)).float()[None]
    history = fill_forward(series, torch.ones_like(series, dtype=torch.bool))
    assert find_periods(history, torch.zeros(1, dtype=torch.int64)).first.item() in (
        period,
        2 * period,
    )
    walk = torch.randn(1, 200, generator=torch.Generator().manual_seed(0)).cumsum(1)
    history = fill_forward(walk, torch.ones_like(walk, dtype=torch.bool))
    assert find_periods(history, torch.zeros(1, dtype=torch.int64)).strength[0, 0] < 0.5


@pytest.mark.parametrize("family", FAMILIES, ids=lambda one: one.__name__)
@pytest.mark.parametrize("length", [40, 300])
def test_every_family_gives_finite_series(family, length):
    x, periods = family(np.random.default_rng(0), 20, length)
    assert x.shape == (20, length) and np.isfinite(x).all() and periods.shape == (20,)
    y, _ = generate(np.random.default_rng(1), 33, length)
    assert y.shape == (33, length) and np.isfinite(y).any(1).all()


@pytest.mark.parametrize("name", SYSTEMS)
def test_flows_stay_on_their_attractors(name):
    path = simulate(name, 300, 2, seed=1)
    assert np.isfinite(path).all() and np.abs(path).max() < 500
    assert (path.std(1) > 1e-3).all(0).any()


def test_quantiles_that_grew_unevenly_do_not_cross_in_later_blocks():
    block = np.zeros((1, 64, 9))
    block += np.linspace(-4, 4, 9)
    block[:, 1:, 7] += 0.9  # the seventh decile grew, the ends did not
    block[:, 1:, 1] -= 0.9
    again = _grow(block, _growth(block))
    assert (np.diff(block, axis=-1) > 0).all()
    assert (np.diff(again, axis=-1) > 0).all()


def test_scores_of_quantiles():
    levels = torch.tensor([0.1, 0.5, 0.9])
    q, y = torch.tensor([[0.0, 1.0, 2.0]]), torch.tensor([3.0])
    expected = 2 * (0.1 * 3 + 0.5 * 2 + 0.9 * 1) / 3
    assert pinball(q, y, levels).item() == pytest.approx(expected)
    grid = at_levels(
        np.array([[-1.2816, 0.0, 1.2816]]), np.array([0.1, 0.5, 0.9]), np.array([0.05])
    )
    assert grid[0, 0] == pytest.approx(-1.645, abs=1e-3)
    assert naive_error(np.array([1.0, 2.0, 4.0, np.nan]), 1) == 1.5
    assert np.isnan(naive_error(np.full(5, 2.0), 1))
    assert smape(np.array([1.0, 0.0, 5.0]), np.array([3.0, 0.0, np.nan])) == pytest.approx(50.0)
    assert len(LEVELS) == 9
