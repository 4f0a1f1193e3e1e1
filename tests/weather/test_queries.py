"""Continuous queries: symmetries, sets of any size, baselines against arithmetic, the command."""

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
from longseq.weather.forecasting.places import sample
from longseq.weather.forecasting.queries import QueryModel
from longseq.weather.forecasting.query_baselines import GaussianProcess, InverseDistance
from longseq.weather.forecasting.query_task import FieldQuery, QueryData
from longseq.weather.forecasting.task import FlowData, FlowForecaster

SMALL = {"span": 3, "least": 2, "most": 12, "questions": 5, "size": 8, "members": 2, "frames": 9}
SMALL |= {"every": 2, "spin_up": 20, "eval_members": 1, "batch_size": 2}
CLOSE = {"atol": 1e-10, "rtol": 0.0}


def small(**more: object) -> QueryData:
    return QueryData(**{**SMALL, **more})  # type: ignore[arg-type]


def model_and_set(layers: int = 2) -> tuple[QueryModel, torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    model = QueryModel(2, 16, layers, heads=4, waves=3).double()
    values = torch.randn(2, 11, 2, dtype=torch.float64)
    where, ask = (torch.rand(2, n, 3, dtype=torch.float64) for n in (11, 7))
    return model, values, where, ask


@pytest.mark.parametrize("layers", [1, 3])
def test_symmetries(layers: int) -> None:
    model, values, where, ask = model_and_set(layers)
    made = model(values, where, ask)
    assert made.shape == (2, 7, 2) and made.std() > 0.01
    order = torch.randperm(11)
    torch.testing.assert_close(model(values[:, order], where[:, order], ask), made, **CLOSE)
    # Values at other places are another field.
    assert (model(values[:, order], where, ask) - made).abs().max() > 1e-4
    shift = torch.tensor([0.3, 0.7, 5.0], dtype=torch.float64)
    torch.testing.assert_close(model(values, where + shift, ask + shift), made, **CLOSE)
    turns = torch.tensor([1.0, -2.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(model(values, where, ask + turns), made, **CLOSE)
    later = ask + torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    assert (model(values, where, later) - made).abs().max() > 1e-5
    # Questions do not know of each other, nor do windows.
    torch.testing.assert_close(model(values, where, ask[:, 2:3]), made[:, 2:3], **CLOSE)
    torch.testing.assert_close(model(values[1:], where[1:], ask[1:]), made[1:], **CLOSE)


def test_any_number_of_observations_but_none() -> None:
    model, values, where, ask = model_and_set()
    for count in (1, 2, 11):
        made = model(values[:, :count], where[:, :count], ask)
        assert made.shape == (2, 7, 2) and made.isfinite().all()
    assert model(values, where, ask[:, :0]).shape == (2, 0, 2)
    twice = model(values.repeat(1, 2, 1), where.repeat(1, 2, 1), ask)
    assert twice.isfinite().all()
    with pytest.raises(ArgumentError, match="no observations"):
        model(values[:, :0], where[:, :0], ask)
    for wrong in (
        (values[..., :1], where, ask),
        (values, where[:, 1:], ask),
        (values, where, ask[0]),
    ):
        with pytest.raises(ArgumentError, match="values must be"):
            model(*wrong)
    values[0, 0, 0] = math.nan
    with pytest.raises(ArgumentError, match="finite"):
        model(values, where, ask)
    values[0, 0, 0] = 0.0
    whole, half = model(values, where, ask), model.bfloat16()(values.bfloat16(), where, ask)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.double(), whole, atol=0.05, rtol=0)


def test_what_is_asked() -> None:
    data = small()
    window = data.runs("test")[0, :3]
    one = data.questions_of("test")[0]
    shapes = {name: tuple(value.shape) for name, value in one.items()}
    assert shapes == {"values": (12, 2), "where": (12, 3), "ask": (5, 3), "target": (5, 2)}
    for values, where in (("values", "where"), ("target", "ask")):
        for value, (y, x, time) in zip(one[values], one[where]):
            expected = sample(window[int(time)], torch.stack([y, x])[None])[:, 0]
            torch.testing.assert_close(value, expected)
    # The same every time; other windows and other numbers are other draws.
    again = small().questions_of("test")[0]
    assert all(torch.equal(again[name], one[name]) for name in one)
    assert len(data.questions_of("test", 4)[0]["values"]) == 4
    drawn = [data.train_windows()[n] for n in range(12)]
    counts = {batch["values"].shape[1] for batch in drawn}
    assert len(counts) > 2 and min(counts) >= 2 and max(counts) <= 12
    assert drawn[0]["target"].shape == (2, 5, 2)
    row = small(flow="kuramoto_sivashinsky", size=16).questions_of("train")[0]
    assert row["values"].shape == (12, 1) and not row["where"][:, 0].any()


def question(where: torch.Tensor, ask: torch.Tensor, function) -> dict[str, torch.Tensor]:
    return {"values": function(where), "where": where, "ask": ask, "target": function(ask)}


def wave(at: torch.Tensor) -> torch.Tensor:
    """A wave that moves to the east by 0.03 a frame."""
    turn = 2 * math.pi * (at[:, 1] - 0.03 * at[:, 2])
    return (torch.sin(turn) * torch.cos(2 * math.pi * at[:, 0]))[:, None]


def test_inverse_distances() -> None:
    where = torch.tensor([[0.1, 0.95, 0.0], [0.5, 0.5, 4.0]])
    ask = torch.tensor([[0.1, 0.95, 0.0], [0.1, 0.05, 0.0], [0.3, 0.3, 2.0]])
    one = question(where, ask, lambda at: at[:, 2:] + 1)
    model = InverseDistance(8.0)
    model.power, model.stretch = 2.0, 1.0
    made = model(one)[:, 0]
    assert math.isclose(made[0], 1, abs_tol=1e-6)
    near, far = 1 / 0.1**2, 1 / (0.4**2 + 0.45**2 + 0.5**2)  # 0.1 round the domain
    assert math.isclose(made[1], (near + 5 * far) / (near + far), rel_tol=1e-6)
    torch.manual_seed(0)
    draws = [torch.rand(40, 3) * torch.tensor([1.0, 1.0, 8.0]) for _ in range(2)]
    valid = question(*draws, wave)
    assert InverseDistance(8.0).fit([valid]).stretch > 0
    with pytest.raises(ArgumentError, match="no observations"):
        model({**one, "values": one["values"][:0], "where": where[:0]})


def test_the_gaussian_process_finds_a_moving_wave() -> None:
    torch.manual_seed(1)
    size = torch.tensor([1.0, 1.0, 8.0])
    windows = [question(torch.rand(30, 3) * size, torch.rand(20, 3) * size, wave) for _ in range(4)]
    model = GaussianProcess(8.0, windows=2, evaluations=60).fit(windows[:2], windows[2:3])
    (_, setting) = model.chosen[0]
    assert 0.01 < setting[5] < 0.05  # the drift
    made = model(windows[3])
    plain = InverseDistance(8.0).fit(windows[:1])(windows[3])
    error, other = (
        np.sqrt(np.mean((one - windows[3]["target"].numpy()) ** 2)) for one in (made, plain)
    )
    assert error < 0.1 < other
    # Round the domain.
    moved = {**windows[3], "ask": windows[3]["ask"] + torch.tensor([1.0, -1.0, 0.0])}
    np.testing.assert_allclose(model(moved), made, atol=1e-4)


def test_training_learns_and_draws_a_field(tmp_path: Path) -> None:
    torch.manual_seed(0)
    data = small(most=8)
    task = FieldQuery(8, 1, 2, 2)
    fit(task, data, tmp_path, 2, limit_val_batches=1)
    one = data.questions_of("test")[0]
    task.eval()
    field = task.field(one["values"], one["where"], 1.5, (4, 6))
    assert field.shape == (2, 4, 6)
    ask = torch.tensor([[[0.25, 0.5, 1.5]]])
    answer = task(one["values"][None], one["where"][None], ask)[0, 0]
    torch.testing.assert_close(field[:, 1, 3], answer.detach(), atol=1e-6, rtol=0)


def test_a_short_run_of_the_command(tmp_path: Path, capsys) -> None:
    argv = ["weather", "query", "--observations", "3,9", "--span", "3", "--steps", "1", "--size"]
    argv += ["16", "--members", "1", "--frames", "12", "--every", "2", "--spin_up", "20"]
    argv += ["--flow", "kuramoto_sivashinsky"]
    assert main([*argv, "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "9 observations" in said and "attention" in said
    rows = list(csv.DictReader((tmp_path / "scores.csv").open()))
    names = ["mean", "inverse distance", "Gaussian process", "attention"]
    assert [row["model"] for row in rows] == 2 * names
    assert all(np.isfinite(float(row["rmse"])) for row in rows)
    assert (tmp_path / "field.png").stat().st_size > 5000


def test_fit_and_test_from_the_command_line(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    argv = ["weather", "fit", "--model", "FieldQuery", "--data", "QueryData", "--model.width", "8"]
    argv += ["--data.flow", "shallow_water", "--trainer.max_steps", "1"]
    argv += [f"--data.{name}={value}" for name, value in SMALL.items()]
    assert main(argv) == 0
    (checkpoint, *_) = tmp_path.rglob("last.ckpt")
    assert main(["weather", "test", "--ckpt_path", str(checkpoint)]) == 0


def test_what_does_not_fit_is_refused(tmp_path: Path, capsys) -> None:
    with pytest.raises(ConfigError, match="grid"):
        fit(FlowForecaster("fno", 4, 1, modes=2), small(), tmp_path, 1)
    with pytest.raises(ConfigError, match="QueryData"):
        grid = FlowData(8, 1, 12, 1, 1, leads=2, eval_members=1)
        fit(FieldQuery(8, 1, 2), grid, tmp_path, 1)
    with pytest.raises(ConfigError, match="1 channels"):
        fit(FieldQuery(8, 1, 2), small(flow="kuramoto_sivashinsky", size=16), tmp_path, 1)
    for wrong in ({"least": 13}, {"most": 0}, {"questions": 0}, {"span": 0}, {"span": 9}):
        with pytest.raises(ConfigError):
            small(**wrong)
    for wrong in ({"duration": 0.0}, {"heads": 5}, {"waves": 0}):
        with pytest.raises(ConfigError):
            QueryModel(**wrong)  # type: ignore[arg-type]
    assert main(["weather", "query", "--observations", "0"]) == 2
    assert "--observations" in capsys.readouterr().err
