"""Fine-tuning of the zero-shot forecaster: it begins where the packaged one is."""

import numpy as np
import pandas as pd
import pytest
import torch

from longseq.core.errors import ConfigError
from longseq.core.shell.cli import main
from longseq.core.training.loading import load_task
from longseq.timeseries.data.frames import panel_of
from longseq.timeseries.data.protocols import Part
from longseq.timeseries.data.windows import Scaler, Windows
from longseq.timeseries.forecaster import Forecaster
from longseq.timeseries.models.zero_shot import ZeroShot as Network
from longseq.timeseries.zero_shot import Quantiles
from longseq.timeseries.zero_shot_task import ZeroShot, _series


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


@pytest.mark.parametrize("networks, named", [(1, None), (1, False), (2, True)])
def test_a_checkpoint_of_fewer_networks_is_still_read(networks, named, wide_csv, workdir, capsys):
    fit = ["timeseries", "fit", "--model", "ZeroShot", f"--data.path={wide_csv}", "--name=r"]
    fit += ["--data.context=48", "--data.horizon=8", "--data.batch_size=4"]
    fit += ["--trainer.max_steps=1", "--trainer.val_check_interval=1"]
    assert main([*fit, f"--model.networks={networks}"]) == 0
    content = torch.load(next(workdir.rglob("last.ckpt")), weights_only=True)
    assert content["hyper_parameters"].pop("networks") == networks
    if named is not None:
        content["hyper_parameters"]["second"] = named
    torch.save(content, "earlier.ckpt")
    task = load_task("earlier.ckpt", "timeseries")
    assert isinstance(task.model, Network) == (networks == 1)
    assert task.hparams["networks"] == networks and "second" not in task.hparams
    if networks == 2:  # what they read and their shares stay what they were
        assert task.average.networks[0].reads == 512
        expected = torch.tensor([[2 / 3, 1 / 3], [1 / 3, 2 / 3]])
        torch.testing.assert_close(task.average.shares, expected)
    for name, value in task.state_dict().items():
        torch.testing.assert_close(value, content["state_dict"][name])
    capsys.readouterr()
    assert main([*fit, "--ckpt_path=earlier.ckpt", "--trainer.max_steps=2"]) == 0
    count = {1: "697,676", 2: "1,094,552"}[networks]
    assert f"{count} parameters" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="networks must lie between 1 and 3"):
        ZeroShot(networks=4)


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
