"""Fine-tuning of the zero-shot forecaster: it begins where the packaged one is."""

import numpy as np
import pandas as pd
import pytest
import torch

from longseq.core.checkpoints.safe import load_weights, save_weights
from longseq.core.errors import ConfigError
from longseq.core.shell.cli import main
from longseq.core.training.loading import load_task
from longseq.timeseries.data.frames import panel_of
from longseq.timeseries.data.protocols import Part
from longseq.timeseries.data.windows import Scaler, Windows
from longseq.timeseries.forecaster import Forecaster
from longseq.timeseries.models.zero_shot import QUANTILES
from longseq.timeseries.models.zero_shot import ZeroShot as Network
from longseq.timeseries.quantiles import pinball
from longseq.timeseries.zero_shot import Quantiles
from longseq.timeseries.zero_shot_task import ZeroShot, _series, generated_loss


def waves(n: int, period: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return 10 * np.sin(2 * np.pi * np.arange(n) / period) + 0.1 * rng.standard_normal(n)


def _tuned(level: float, count: int = 5) -> tuple[ZeroShot, dict[str, torch.Tensor], np.ndarray]:
    """A forecaster before its first step, windows of one positive series, and its known values."""
    days = pd.date_range("2024-01-01", periods=120)
    values = np.stack([level * (50 + k + waves(120, 7, k)) for k in range(count)], 1)
    values[30:34, 1] = np.nan
    values[:17, 2] = np.nan
    panel = panel_of(pd.DataFrame(values, index=days), source="m")
    windows = Windows(panel, Scaler.fit(panel, Part(0, 90)), [100], 100, 20, 20)
    task = ZeroShot(context=100, horizon=20, season=7)
    return task, windows.batch_of_pairs(range(count)), values[:100]


@pytest.mark.parametrize("level", [1.0, -1.0, 1e9, 1e-9])
def test_a_tuned_forecaster_begins_where_the_packaged_one_is(level: float):
    task, batch, values = _tuned(level)
    series = [one[np.isfinite(one).argmax() :] for one in values.T]
    expected = Quantiles().forecast(series, 20, 7)
    mean, unit = (batch[key].double().numpy()[..., None] for key in ("mean", "unit"))
    with torch.no_grad():
        found = task.eval()._forecasts(batch)[:, :, 0].numpy() * unit + mean
    np.testing.assert_allclose((found - expected) / unit, 0, atol=2e-3)
    # What is trained is what forecasts, but for the calibration.
    plain = Quantiles(calibrated=False).forecast(series, 20, 7)
    rows, seen, zero = _series(batch["x"], batch["x_mask"], batch)
    copies = task.train()._copies(rows, seen, zero)[:, :20]
    np.testing.assert_allclose(copies.detach().numpy(), (plain - mean) / unit, atol=2e-3)
    loss = task.training_loss(batch, None)
    loss.backward()
    gradients = [one.grad for one in task.model.parameters() if one.grad is not None]
    assert loss.isfinite() and all(one.isfinite().all() for one in gradients)
    assert max(float(one.abs().max()) for one in gradients) > 0


NAMED = {"pretrained": True, "n_layers": 3, "local": False}  # sizes were not those of the weights
EARLIER = {  # what their hyper-parameters say, what that is today, and its sizes
    "one": ({"pretrained": True}, "", "697,676"),
    "first of two": ({"pretrained": True, "second": False}, "", "697,676"),
    "first of three": ({"pretrained": True, "networks": 1}, "", "697,676"),
    "pretrained here": ({"pretrained": False, "networks": 3}, "", "697,676"),
    "named here": ({"pretrained": False, "networks": "plain+local"}, "", "697,676"),
    "named later": ({"pretrained": False, "networks": "plain+slstm"}, "", "697,676"),
    "two": ({"pretrained": True, "second": True}, "recurrent+plain", "1,094,552"),
    "three": ({"pretrained": True, "networks": 3}, "recurrent+plain+local", "1,534,743"),
    "pair": ({"pretrained": True, "networks": "plain+local"}, "plain+local", "837,067"),
    "pair with a layer": (
        {"pretrained": True, "networks": "plain+slstm"},
        "plain+slstm",
        "937,419",
    ),
    "plain": (NAMED | {"networks": "plain"}, "", "396,876"),
    "local": (NAMED | {"networks": "local"}, "", "440,191"),
    "slstm": (NAMED | {"networks": "slstm"}, "", "540,543"),
}
SIZES = {  # of the single ones that were packaged
    "plain": ["--model.n_layers=0"],
    "local": ["--model.n_layers=0", "--model.local=true"],
    "slstm": ["--model.n_layers=1", "--model.local=true", "--model.reads=64"],
}
SHARES = {
    "recurrent+plain": ([[2 / 3, 1 / 3], [1 / 3, 2 / 3]], [512, 2048]),
    "recurrent+plain+local": ([[1 / 3, 1 / 4], [0, 1 / 2], [2 / 3, 1 / 4]], [256, 2048, 2048]),
    "plain+local": ([[1 / 4, 1 / 2], [3 / 4, 1 / 2]], [2048, 2048]),
    "plain+slstm": ([[1 / 4, 1 / 3], [3 / 4, 2 / 3]], [2048, 64]),
}


@pytest.mark.parametrize("kind", EARLIER)
def test_an_earlier_checkpoint_is_still_read(kind, wide_csv, workdir, capsys):
    said, names, count = EARLIER[kind]
    fit = ["timeseries", "fit", "--model", "ZeroShot", f"--data.path={wide_csv}", "--name=r"]
    fit += ["--data.context=48", "--data.horizon=8", "--data.batch_size=4"]
    fit += ["--trainer.max_steps=1", "--trainer.val_check_interval=1", f"--model.networks={names}"]
    fit += SIZES.get(kind, [])
    assert main([*fit, "--model.pretrained=false"]) == 0
    content = torch.load(next(workdir.rglob("last.ckpt")), weights_only=True)
    hyper = content["hyper_parameters"]
    del hyper["networks"]
    hyper |= said
    torch.save(content, "earlier.ckpt")
    task = load_task("earlier.ckpt", "timeseries")
    assert isinstance(task.model, Network) == (names not in SHARES)
    assert kind != "slstm" or task.average.reads == 64
    assert task.hparams["networks"] == names and "second" not in task.hparams
    if names in SHARES:  # what they read and their shares stay what they were
        shares, reads = SHARES[names]
        assert [one.reads for one in task.average.networks] == reads
        torch.testing.assert_close(task.average.shares, torch.tensor(shares))
    for name, value in task.state_dict().items():
        torch.testing.assert_close(value, content["state_dict"][name])
    capsys.readouterr()
    more = ["--ckpt_path=earlier.ckpt", "--trainer.max_steps=2", "--model.pretrained=false"]
    assert main([*fit, *more]) == 0
    assert f"{count} parameters" in capsys.readouterr().err


def test_the_packaged_network_has_sizes_of_its_own():
    task = ZeroShot()
    assert isinstance(task.model, Network) and len(task.model.backbone.layers) == 2
    assert task.average.reads == 64
    for size in ({"n_layers": 0}, {"local": True}, {"hidden": 128}, {"networks": "plain+slstm"}):
        with pytest.raises(ConfigError, match="sizes of its own"):
            ZeroShot(**size)
        assert ZeroShot(pretrained=False, **size).model is not None
    with pytest.raises(ConfigError, match=r"no packaged networks 'plain'.*plain\+"):
        ZeroShot(pretrained=False, networks="plain")


def test_a_training_from_weights_begins_with_what_forecasts(tmp_path):
    torch.manual_seed(0)
    before = ZeroShot(pretrained=False, d_model=16, n_layers=1, hidden=24)
    with torch.no_grad():
        for one in before.average.parameters():
            one.add_(torch.randn_like(one))
    path = tmp_path / "before.safetensors"
    save_weights(path, before, {})
    after = ZeroShot(pretrained=False, d_model=16, n_layers=1, hidden=24)
    load_weights(path, after)
    for name, value in before.average.state_dict().items():
        assert torch.equal(after.model.state_dict()[name], value)
        assert torch.equal(after.average.state_dict()[name], value)


def test_a_tuned_forecaster_has_quantiles_and_no_other_loss():
    task, batch, _ = _tuned(1.0)
    with torch.inference_mode():
        ends = task.eval().quantile_windows(batch, np.array([0.1, 0.5, 0.9]))
        found = task.compute(batch)
    assert ends.shape == (5, 20, 1, 3) and (np.diff(ends, axis=-1) >= 0).all()
    torch.testing.assert_close(found["forecast"], torch.from_numpy(ends[..., 1]).float())
    assert found["quantiles"].shape == (5, 20, 1, 9)
    with pytest.raises(ConfigError, match="own loss"):
        ZeroShot(loss="torch.nn.L1Loss")
    with pytest.raises(ConfigError, match="intervals: hold rows back"):
        Forecaster("tuned_zero_shot", conformal=20)


def test_a_tuned_forecaster_from_python_takes_any_horizon(tmp_path, workdir):
    days = pd.date_range("2024-01-01", periods=100)
    frame = pd.DataFrame({f"s{k}": 50 + waves(100, 7, k) for k in range(2)}, index=days)
    made = Forecaster("tuned_zero_shot", horizon=6, context=40, max_steps=2).fit(frame)
    found = made.predict(80)
    assert len(found) == 160
    low, middle, high = (found[f"ZeroShot{end}"] for end in ("-lo-80", "", "-hi-80"))
    assert (low <= middle).all() and (middle <= high).all() and (low < high).any()
    # Two steps change little.
    plain = Forecaster("zero_shot").fit(frame).predict(80)["ZeroShot"]
    assert (found["ZeroShot"] - plain).abs().mean() < 2.0
    made.save(tmp_path / "kept")
    again = Forecaster.load(tmp_path / "kept").predict(80)
    pd.testing.assert_frame_equal(again, found)


def test_no_end_of_counts_is_negative(workdir):
    days = pd.date_range("2024-01-01", periods=120)
    drawn = np.random.default_rng(0).poisson(2, (120, 2)).astype(float)
    frame = pd.DataFrame({"with_zeros": drawn[:, 0], "without": drawn[:, 1].clip(1)}, index=days)
    frame["other"] = drawn[:, 0] - 0.5  # may be negative, and is
    arguments = {"horizon": 12, "context": 128, "max_steps": 1, "levels": (80, 99)}
    for name in ("zero_shot", "tuned_zero_shot"):
        found = Forecaster(name, **arguments).fit(frame).predict(12)
        least = found.groupby("unique_id")["ZeroShot-lo-99"].min()
        assert least["with_zeros"] == 0 and least["without"] == 0 and least["other"] < -0.5
        assert (found[found.unique_id != "other"][found.columns[4:]] >= 0).all(axis=None)


def test_the_loss_of_both_copies_is_that_of_what_is_forecast():
    torch.manual_seed(0)
    network, levels = (
        Network(16, 1, hidden=24, reads=32, local=True).eval(),
        torch.tensor(QUANTILES),
    )
    rng = np.random.default_rng(0)
    walks = np.exp(0.05 * rng.standard_normal((6, 192)).cumsum(1))
    x = np.concatenate([walks, rng.standard_normal((6, 192)), np.full((1, 192), 3.0)])
    x[rng.random(x.shape) < 0.1] = np.nan
    hint = torch.from_numpy(np.where(np.arange(13) % 2, 7, 0))
    batch = {"x": torch.from_numpy(x).float(), "hint": hint, "cutoffs": [128]}
    batch["reach"] = torch.full((13,), 64)
    with torch.no_grad():
        loss, found, target, mask = generated_loss(network, batch, levels, both=True)
    assert loss.isfinite()
    forecast = Quantiles(network, calibrated=False)
    for i in range(13):
        expected = forecast.forecast([x[i, :128]], 64, int(hint[i]))[0]
        seen = mask[i].numpy()
        # A unit of what the network reads is not one of the series: lines through the targets.
        a, b = target[i].double().numpy()[seen], x[i, 128:][seen]
        unit = np.ptp(b) / np.ptp(a) if np.ptp(b) > 0 else 1.0
        level = b.mean() - unit * a.mean()
        size = np.abs(expected).max()
        np.testing.assert_allclose(found[i] * unit + level, expected, atol=2e-3 * size)


def test_smooth_series_count_by_what_can_be_known_of_them():
    """Of a line with little noise a plain forecast misses much, local models next to nothing."""
    levels, noise = torch.tensor(QUANTILES), np.random.default_rng(0).standard_normal((2, 192))
    x = torch.from_numpy(np.stack([np.arange(192) + 0.01 * noise[0], noise[1]])).float()
    known, hint = torch.ones(2, 128, dtype=torch.bool), torch.zeros(2, dtype=torch.long)
    batch = {"x": x, "hint": hint, "cutoffs": [128], "reach": torch.full((2,), 8)}
    losses = {}
    for local in (False, True):
        network = Network(16, 0, hidden=24, local=local).eval()
        with torch.no_grad():
            out = network(x[:, :128], known, hint)
            losses[local] = float(generated_loss(network, batch, levels)[0])
            _, nine, target, mask = generated_loss(network, batch, levels)
        assert len(out.expected) == local
    share = out.expected[0][:, :8].mean(1) / out.error[0]
    assert share[0] < 0.03 and 0.3 < share[1] < 1
    each = (pinball(nine, target, levels) * mask).sum(1) / mask.sum(1) / out.error[0]
    each = each / share.clamp(min=0.01) ** 0.6
    each = torch.where(each < 4, each, 4 + 2 * ((each - 2).clamp(min=1e-3) / 2).log())
    assert losses[True] == pytest.approx(float(each.mean()), rel=1e-5)
