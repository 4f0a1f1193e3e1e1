"""Forecasts at irregular stations: places, messages and their symmetries, gaps, the command."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from longseq.core.errors import ArgumentError, ConfigError
from longseq.core.shell.cli import main
from longseq.core.training import fit
from longseq.weather.forecasting.linear_inverse import BestRidge
from longseq.weather.forecasting.places import differences, draw_places, neighbours, sample
from longseq.weather.forecasting.station_task import StationData, StationForecaster
from longseq.weather.forecasting.stations import StationModel, fill_forward
from longseq.weather.forecasting.task import FlowData, FlowForecaster

SMALL = {"size": 8, "members": 2, "frames": 12, "every": 2, "spin_up": 20, "leads": 3}
SMALL |= {"horizon": 2, "eval_members": 1, "batch_size": 2}


def small(**more: object) -> StationData:
    return StationData(**{**SMALL, "stations": 6, **more})  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(8, 10), (7, 9), (1, 12), (1, 1)])
def test_a_field_at_places_is_its_trigonometric_polynomial(shape: tuple[int, int]) -> None:
    rows, columns = shape
    places = draw_places(40, shape, 3).double()
    assert (places >= 0).all() and (places < 1).all() and places[:, 1].any() == (columns > 1)
    grid = torch.cartesian_prod(*(torch.arange(n, dtype=torch.float64) / n for n in shape))

    def wave(at: torch.Tensor) -> torch.Tensor:
        y, x = (2 * math.pi * at).unbind(-1)
        high = (columns - 1) // 2
        return 1 + torch.cos(((rows - 1) // 2) * y + 0.3) * torch.sin(high * x - 0.2)

    field = wave(grid).reshape(shape)
    torch.testing.assert_close(sample(field, places), wave(places), atol=1e-12, rtol=0)
    # On the points themselves the values of the points, of any leading axes.
    stack = torch.stack([field, 2 * field])
    torch.testing.assert_close(sample(stack, grid), stack.flatten(1), atol=1e-12, rtol=0)


def test_ways_lead_round_the_domain() -> None:
    places = torch.tensor([[[0.95, 0.5], [0.05, 0.5], [0.6, 0.5], [0.95, 0.1]]])
    index, way = neighbours(places, 1)
    assert index[0, :, 0].tolist() == [1, 0, 0, 0]
    torch.testing.assert_close(way[0, 0, 0], torch.tensor([0.1, 0.0]))
    torch.testing.assert_close(way[0, 3, 0], torch.tensor([0.0, 0.4]))
    assert neighbours(places, 9)[0].shape == (1, 4, 3)
    assert neighbours(places[:, :1], 9)[0].shape == (1, 1, 0)
    assert differences(places, places[:, :2]).shape == (1, 4, 2, 2)
    for wrong in (places[0], places[..., :1], places.clone().fill_(math.nan)):
        with pytest.raises(ArgumentError, match="finite"):
            neighbours(wrong, 1)


def model_and_frames(**options: object) -> tuple[StationModel, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    model = StationModel(2, 8, 2, neighbours=3, **options).double()  # type: ignore[arg-type]
    torch.nn.init.normal_(model.head.weight)  # zero at first
    frames = torch.randn(2, 5, 2, 1, 9, dtype=torch.float64)
    frames[torch.rand(2, 5, 1, 1, 9).expand_as(frames) < 0.3] = math.nan
    return model, frames, torch.rand(2, 9, 2, dtype=torch.float64)


@pytest.mark.parametrize("virtual", [True, False])
@pytest.mark.parametrize("mixer", ["rg_lru", "none"])
def test_symmetries_and_order_in_time(virtual: bool, mixer: str) -> None:
    model, frames, places = model_and_frames(virtual=virtual, mixer=mixer)
    whole, _ = model(frames, places)
    assert whole.isfinite().all() and whole.std() > 0.5
    close = {"atol": 1e-9, "rtol": 0.0}
    order = torch.randperm(9)
    turned, _ = model(frames[..., order], places[:, order])
    torch.testing.assert_close(turned, whole[..., order], **close)
    moved, _ = model(frames, (places + torch.tensor([0.37, 0.81])) % 1)
    torch.testing.assert_close(moved, whole, **close)
    # Not of no consequence: places in another arrangement change the forecast.
    other, _ = model(frames, places[:, order])
    assert (other - whole).abs().max() > 1e-3
    # Later frames change nothing before them, and pieces are as good as the whole.
    later = frames.clone()
    later[:, 3:] = 7.0
    torch.testing.assert_close(model(later, places)[0][:, :3], whole[:, :3], **close)
    first, memory = model(frames[:, :2], places)
    rest, _ = model(frames[:, 2:], places, memory)
    torch.testing.assert_close(torch.cat([first, rest], 1), whole, **close)


def test_the_virtual_node_reaches_every_station() -> None:
    for virtual in (True, False):
        model, frames, places = model_and_frames(virtual=virtual)
        model = StationModel(2, 8, 1, neighbours=1, virtual=virtual).double()
        torch.nn.init.normal_(model.head.weight)
        changed = frames.clone().nan_to_num()
        changed[:, :, :, :, 4] += 1
        gap = (model(changed, places)[0] - model(frames.nan_to_num(), places)[0]).abs()
        reached = int((gap.amax((0, 1, 2, 3)) > 1e-9).sum())
        assert reached == 9 if virtual else reached < 9


def test_one_station_one_frame_and_nothing_known() -> None:
    model, frames, places = model_and_frames()
    alone, _ = model(frames[:, :1, :, :, :1], places[:, :1])
    assert alone.shape == (2, 1, 2, 1, 1) and alone.isfinite().all()
    nothing, _ = model(torch.full_like(frames, math.nan), places)
    assert nothing.isfinite().all()
    made = list(model.rollout(frames, places, 3))
    assert len(made) == 3 and made[0].shape == (2, 2, 1, 9)
    # That a value is missing is seen: a forecast with the last value in its place is another.
    filled = fill_forward(frames, torch.zeros_like(frames[:, :1]))
    assert not filled.isnan().any()
    assert (model(filled, places)[0] - model(frames, places)[0]).abs().max() > 1e-3
    half, _ = model.bfloat16()(frames.bfloat16(), places)
    assert half.dtype == torch.bfloat16 and half.isfinite().all()


def test_filling_forward() -> None:
    nan = math.nan
    frames = torch.tensor([[nan, 1.0, nan, nan, 3.0]])
    assert fill_forward(frames, torch.tensor([[9.0]])).tolist() == [[9.0, 1.0, 1.0, 1.0, 3.0]]
    assert fill_forward(frames[:, :0], torch.tensor([[9.0]])).shape == (1, 0)


def test_what_stations_hold() -> None:
    data, grid = small(missing=0.4), FlowData(**SMALL)  # type: ignore[arg-type]
    for part in ("train", "valid", "test"):
        seen, whole = data.runs(part), data.whole(part)
        lost = seen.isnan()
        assert seen.shape == (2 if part == "train" else 1, 12, 2, 1, 6)
        assert 0.2 < lost.float().mean() < 0.6 and torch.equal(lost[:, :, 0], lost[:, :, 1])
        assert torch.equal(seen[~lost], whole[~lost])
        torch.testing.assert_close(whole[..., 0, :], sample(grid.runs(part), data.places))
    # The same whatever part is asked for first.
    torch.testing.assert_close(small(missing=0.4).runs("test"), data.runs("test"), equal_nan=True)
    item = data.windows("test")[0]
    assert item["video"][4:].isfinite().all() and item["places"].shape == (6, 2)
    torch.testing.assert_close(item["video"][:4], data.runs("test")[0, :4], equal_nan=True)
    assert torch.equal(item["video"][4:], data.whole("test")[0, 4:7])
    drawn = data.train_dataloader().dataset[0]
    assert drawn["video"].shape == (2, 6, 2, 1, 6) and drawn["places"].shape == (2, 6, 2)
    assert drawn["video"][:, 4:].isnan().any()
    assert not data.fill(data.runs("train")).isnan().any()


def test_the_loss_is_of_values_that_are_there() -> None:
    torch.manual_seed(0)
    task = StationForecaster(8, 1, 2)
    torch.nn.init.normal_(task.model.head.weight)
    batch = small(missing=0.4).train_windows()[0]
    loss = task.compute(batch)["loss"]
    video = batch["video"]
    made, _ = task.model(video[:, :-1], batch["places"])
    ahead = task(video[:, :4], batch["places"], 2)
    expected = ((made - video[:, 1:]) ** 2).nanmean() + ((ahead - video[:, 4:]) ** 2).nanmean()
    torch.testing.assert_close(loss, expected / 2)
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in task.parameters())
    nothing = {**batch, "video": torch.full_like(video, math.nan)}
    assert task.compute(nothing)["loss"] == 0


def test_the_ridge_forecast_finds_a_second_order_system() -> None:
    rng = np.random.default_rng(0)
    first, second = 0.5 * np.linalg.qr(rng.standard_normal((2, 3, 3)))[0]
    runs = rng.standard_normal((200, 60, 3))
    for time in range(2, 60):
        past = runs[:, time - 1] @ first + runs[:, time - 2] @ second
        runs[:, time] = past + 0.3 * runs[:, time]
    model = BestRidge().fit(runs[:160], runs[160:], 3, 2)
    context = rng.standard_normal((5, 3, 3))
    one = context[:, 2] @ first + context[:, 1] @ second
    two = one @ first + context[:, 2] @ second
    made = model.forecast(context)
    np.testing.assert_allclose(made[:, 0], one, atol=0.1)
    np.testing.assert_allclose(made[:, 1], two, atol=0.1)


def test_the_ridge_forecast_of_noise_is_the_mean_and_of_slow_change_the_last() -> None:
    rng = np.random.default_rng(1)
    noise = 2 + rng.standard_normal((2, 12, 8))  # fewer windows than regressors
    valid = 2 + rng.standard_normal((6, 40, 8))
    flat = BestRidge().fit(noise, valid, 2, 3).forecast(valid[:, :2])
    assert np.abs(flat - noise.mean((0, 1))).max() < 0.5
    slow = rng.standard_normal((4, 1, 8)) + 0.01 * noise[:1].repeat(4, 0)
    stay = BestRidge().fit(slow[:3], slow[3:], 2, 3).forecast(slow[3:, :2])
    np.testing.assert_allclose(stay[0], slow[3, 1:2].repeat(3, 0), atol=0.1)


def test_a_short_run_of_the_command(tmp_path: Path, capsys) -> None:
    argv = ["weather", "forecast", "--stations", "5", "--missing", "0.3", "--steps", "1", "--size"]
    argv += ["8", "--members", "2", "--frames", "14", "--leads", "5", "--spin_up", "20"]
    assert main([*argv, "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "5 stations" in said and "ridge VAR" in said
    rows = list(csv.DictReader((tmp_path / "scores.csv").open()))
    names = ["persistence", "context mean", "climatology", "linear inverse"]
    names += ["ridge VAR", "graph", "graph_local"]
    assert [row["model"] for row in rows[::5]] == names
    assert all(np.isfinite(float(row["rmse"])) for row in rows)


def test_fit_and_test_from_the_command_line(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    argv = ["weather", "fit", "--model", "StationForecaster", "--data", "StationData"]
    argv += ["--data.stations", "4", "--data.missing", "0.2", "--data.flow", "shallow_water"]
    argv += ["--model.width", "4", "--model.n_layers", "1", "--trainer.max_steps", "1"]
    argv += [f"--data.{name}={value}" for name, value in SMALL.items()]
    assert main(argv) == 0
    (checkpoint, *_) = tmp_path.rglob("last.ckpt")
    assert main(["weather", "test", "--ckpt_path", str(checkpoint)]) == 0


def test_what_does_not_fit_is_refused(tmp_path: Path, capsys) -> None:
    with pytest.raises(ConfigError, match="StationForecaster"):
        fit(FlowForecaster("fno", 4, 1, modes=2), small(), tmp_path, 1)
    with pytest.raises(ConfigError, match="StationData"):
        fit(StationForecaster(4, 1), FlowData(**SMALL), tmp_path, 1)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="context"):
        fit(StationForecaster(4, 1, context=3), small(), tmp_path, 1)
    for wrong in ({"stations": 0}, {"missing": 1.0}, {"missing": -0.1}, {"missing": math.nan}):
        with pytest.raises(ConfigError):
            small(**wrong)
    for wrong in ({"reach": 0.0}, {"neighbours": 0}, {"mixer": "rg_lr"}):
        with pytest.raises(ConfigError):
            StationModel(**wrong)  # type: ignore[arg-type]
    model, frames, places = model_and_frames()
    for args in ((frames[:, :, :1], places), (frames, places[:, 1:]), (frames[:, :0], places)):
        with pytest.raises(ArgumentError):
            model(*args)
    assert main(["weather", "forecast", "--models", "graph"]) == 2
    assert "no model 'graph'" in capsys.readouterr().err
    assert main(["weather", "forecast", "--missing", "0.1"]) == 2
    assert "--stations" in capsys.readouterr().err
