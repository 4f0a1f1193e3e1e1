"""Forecasts of a generated flow: the solver's invariants, linear inverse model, networks."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from longseq.core.errors import ConfigError
from longseq.core.shell.cli import main
from longseq.weather.forecasting.forecast import (
    SETTINGS,
    damping,
    lengthen,
    longer_windows,
    score,
)
from longseq.weather.forecasting.linear_inverse import BestLinearInverse, LinearInverse
from longseq.weather.forecasting.models import FlowModel
from longseq.weather.forecasting.quasigeostrophic import TwoLayerFlow
from longseq.weather.forecasting.task import FlowData, FlowForecaster

FREE = {"shear": 0.0, "drag": 0.0, "viscosity": 0.0}


@pytest.mark.parametrize("beta", [0.0, 0.7])
def test_a_free_flow_conserves_energy_and_enstrophy(beta: float) -> None:
    flow = TwoLayerFlow(16, beta=beta, **FREE)
    q = 3 * flow.start(2, seed=0)
    psi, change, field = (
        flow.to_grid(one) for one in (flow.streamfunction(q), flow.tendency(q), q)
    )
    assert change.abs().mean() > 0.1
    energy = (psi * change).mean((-1, -2)).sum(-1)
    enstrophy = (field * change).mean((-1, -2))
    assert energy.abs().max() < 1e-13
    assert (enstrophy.sum(-1) if beta else enstrophy).abs().max() < 1e-13


def test_time_steps_are_of_fourth_order() -> None:
    errors = []
    start = 2 * TwoLayerFlow(16).start(1, seed=1)
    truth = TwoLayerFlow(16, step=0.0025).advance(start, 160)
    for steps in (10, 20):
        made = TwoLayerFlow(16, step=0.4 / steps).advance(start, steps)
        errors.append(float((made - truth).abs().max()))
    assert 3.5 < math.log2(errors[0] / errors[1]) < 4.5


def test_inversion_and_a_rossby_wave() -> None:
    flow = TwoLayerFlow(16, beta=0.7, **FREE)
    q = flow.start(1, seed=2)
    torch.testing.assert_close(flow.vorticity(flow.streamfunction(q)), q, atol=1e-11, rtol=0)
    # A single barotropic wave exp(i k x) moves with c = -β / k².
    psi = torch.zeros(1, 2, 16, 9, dtype=torch.complex128)
    psi[..., 0, 2] = 1.0
    k = float(flow.kx[0, 2])
    made = flow.advance(flow.vorticity(psi), 50)
    turned = flow.vorticity(psi) * np.exp(1j * 0.7 / k * 50 * flow.step)
    torch.testing.assert_close(made, turned, atol=1e-7, rtol=0)


def test_the_linear_inverse_model_finds_a_linear_system() -> None:
    rng = np.random.default_rng(0)
    turn = np.linalg.qr(rng.standard_normal((6, 6)))[0]
    step = 0.9 * turn
    runs = np.zeros((20, 60, 6))
    for time in range(1, 60):
        runs[:, time] = runs[:, time - 1] @ step + 0.5 * rng.standard_normal((20, 6))
    model = LinearInverse(6).fit(runs)
    start = rng.standard_normal((4, 6))
    # The mean of the runs is not exactly zero; the forecast is of departures from it.
    expected = (start - model.mean) @ step @ step + model.mean
    np.testing.assert_allclose(model.forecast(start, 2)[:, 1], expected, atol=0.25)
    best = BestLinearInverse((2, 6, 40)).fit(runs[:16], runs[16:], 3)
    assert [model.patterns for model in best.models] == [2, 6] and best.best[0] == 1


@pytest.mark.parametrize("kind", ["conv_s5", "gated_conv_s5", "conv_lstm", "fno"])
def test_a_network_is_periodic_and_may_be_fed_in_pieces(kind: str) -> None:
    torch.manual_seed(0)
    model = FlowModel(2, kind, width=8, n_layers=2, d_state=4, modes=3).double()  # type: ignore[arg-type]
    frames = torch.randn(2, 5, 2, 12, 12, dtype=torch.float64)
    whole, _ = model(frames)
    first, states = model(frames[:, :2])
    rest, _ = model(frames[:, 2:], states)
    torch.testing.assert_close(torch.cat([first, rest], 1), whole, atol=1e-6, rtol=0)
    moved, _ = model(frames.roll((3, 5), (-2, -1)))
    torch.testing.assert_close(moved, whole.roll((3, 5), (-2, -1)), atol=1e-6, rtol=0)
    later = frames.clone()
    later[:, 3:] += 1
    torch.testing.assert_close(model(later)[0][:, :3], whole[:, :3], atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", ["fno", "conv_s5", "gated_conv_s5", "conv_lstm"])
@pytest.mark.parametrize("horizon", [1, 3])
def test_training_reads_the_context_once_and_loses_nothing(kind: str, horizon: int) -> None:
    torch.manual_seed(0)
    task = FlowForecaster(kind, 8, 1, 4, modes=2, context=2).double().train()  # type: ignore[arg-type]
    video = torch.randn(2, 2 + horizon, 2, 6, 8, dtype=torch.float64)
    parameters = [one for one in task.parameters() if one.requires_grad]
    found = task.compute({"video": video})["loss"]
    true, own = task.model(video[:, :-1])[0], task(video[:, :2], horizon)
    whole = ((true - video[:, 1:]).square().mean() + (own - video[:, 2:]).square().mean()) / 2
    assert abs(float(found.detach() - whole.detach())) < 1e-12
    pairs = zip(*(torch.autograd.grad(one, parameters) for one in (found, whole)))
    for parameter, (got, wanted) in zip(parameters, pairs):
        assert (got - wanted).abs().max() <= 1e-10 * (1 + wanted.abs().max()), parameter.shape


@pytest.mark.parametrize("kind", ["conv_lstm", "masked_transformer"])
def test_leads_count_by_their_own_roots(kind: str) -> None:
    torch.manual_seed(0)
    size = {"width": 8, "n_layers": 1, "d_state": 4, "context": 2}
    task = FlowForecaster(kind, **size, by_lead=True).double().train()  # type: ignore[arg-type]
    video = torch.randn(3, 5, 2, 8, 8, dtype=torch.float64)
    torch.manual_seed(1)
    found = task.compute({"video": video})["loss"]
    torch.manual_seed(1)
    own = task(video[:, :2], 3) - video[:, 2:]
    if kind == "conv_lstm":
        given = (task.model(video[:, :-1])[0] - video[:, 1:]).transpose(0, 1)
    else:
        given = torch.sub(*task.model.masked_pairs(video, task.hidden))  # type: ignore[operator]
    roots = [
        torch.stack([frame.square().mean().sqrt() for frame in frames]).mean()
        for frames in (own.transpose(0, 1), given)
    ]
    torch.testing.assert_close(found, sum(roots) / 2, rtol=1e-9, atol=0)
    # Frames that are right to the last digit have a gradient all the same.
    frames = torch.zeros(2, 3, 2, 4, 4, requires_grad=True)
    task._loss(frames, torch.zeros_like(frames)).backward()
    assert (frames.grad == 0).all()


def test_scores_by_lead() -> None:
    rng = np.random.default_rng(1)
    truth = rng.standard_normal((40, 3, 2, 8, 8))
    perfect = score(truth, truth, np.zeros((2, 8, 8)))
    assert perfect["rmse"].tolist() == [0, 0, 0] and np.allclose(perfect["acc"], 1)
    nothing = score(np.zeros_like(truth), truth, np.ones((2, 8, 8)))
    np.testing.assert_allclose(nothing["rmse"], 1, atol=0.05)
    np.testing.assert_allclose(nothing["crps"], math.sqrt(2 / math.pi), atol=0.05)


def test_damping_keeps_what_is_known() -> None:
    rng = np.random.default_rng(2)
    climate = rng.standard_normal((2, 8, 8))
    truth = climate + rng.standard_normal((60, 3, 2, 8, 8))
    # A perfect forecast, one of half known and half unknown variance, and one of another flow.
    made = truth.copy()
    own = rng.standard_normal((60, 2, 2, 8, 8))
    made[:, 1] = climate + (truth[:, 1] - climate + own[:, 0]) / math.sqrt(2)
    made[:, 2] = climate + own[:, 1]
    kept = damping(made, truth, climate)
    np.testing.assert_allclose(kept, [1, math.sqrt(0.5), 0], atol=0.03)
    less = climate + kept[:, None, None, None] * (made - climate)
    before, after = (score(one, truth, climate)["rmse"] for one in (made, less))
    np.testing.assert_allclose(after, [0, math.sqrt(0.5), 1], atol=0.03)
    assert after[2] < before[2] - 0.3
    assert damping(truth - 3 * (truth - climate), truth, climate).tolist() == [0, 0, 0]
    assert damping(np.broadcast_to(climate, truth.shape), truth, climate).tolist() == [0, 0, 0]


def test_a_short_run_of_the_command(tmp_path: Path, capsys) -> None:
    argv = ["weather", "forecast", "--steps", "1", "--size", "16", "--members", "2"]
    argv += ["--frames", "30", "--leads", "6", "--spin_up", "20", "--out", str(tmp_path)]
    argv += ["--eval_members", "1", "--damped", "--window", "3", "--longer", "1"]
    assert main(argv) == 0
    said = capsys.readouterr().out
    assert "lead 6" in said and "linear inverse" in said
    rows = list(csv.DictReader((tmp_path / "scores.csv").open()))
    names = ["persistence", "persistence, damped", "context mean", "climatology"]
    names.append("linear inverse")
    for name in SETTINGS:
        names += [name, f"{name}, damped"]
        if "conv" in name:
            names += [f"{name}, last 3", f"{name}, last 3, damped"]
    assert [row["model"] for row in rows[::6]] == names
    assert all(np.isfinite(float(row["rmse"])) for row in rows)
    assert (tmp_path / "skill.png").stat().st_size > 5000
    assert (tmp_path / "conv_lstm_seed0_longer").is_dir()


@pytest.mark.parametrize("kind", ["gated_conv_s5", "conv_lstm", "fno"])
def test_a_window_of_frames_begins_with_an_empty_state(kind: str) -> None:
    torch.manual_seed(0)
    model = FlowModel(2, kind, width=8, n_layers=1, d_state=4, modes=3)  # type: ignore[arg-type]
    context = torch.randn(2, 5, 2, 8, 8)
    with torch.no_grad():
        carried = torch.stack(list(model.rollout(context, 4)), 1)
        whole = torch.stack(list(model.rollout(context, 4, window=9)), 1)
        last = torch.stack(list(model.rollout(context, 4, window=2)), 1)
        first = model(context[:, -2:])[0][:, -1]
    torch.testing.assert_close(whole, carried, atol=1e-5, rtol=0)
    torch.testing.assert_close(last[:, 0], first, atol=1e-6, rtol=0)
    assert torch.allclose(last, carried, atol=1e-5) == (kind == "fno")  # which has no state


def test_further_steps_are_on_longer_windows_at_a_tenth_of_the_rates(tmp_path, monkeypatch) -> None:
    how = {"size": 16, "frames": 40, "members": 2, "eval_members": 1, "spin_up": 20}
    before = FlowForecaster("conv_lstm", **SETTINGS["conv_lstm"])
    kept = {name: one.clone() for name, one in before.state_dict().items()}
    seen = []
    compute = FlowForecaster.compute

    def watched(self, batch):
        rates = [group.get("muon_lr", group["lr"]) for group in self.optimizers().param_groups]
        seen.append((tuple(batch["video"].shape[:2]), max(rates)))
        return compute(self, batch)

    monkeypatch.setattr(FlowForecaster, "compute", watched)
    data = FlowData(**how, horizon=2, leads=3)
    longer = longer_windows(data)
    longer.share_runs(data)
    assert longer.runs("train") is data.runs("train")
    after = lengthen(before, longer, tmp_path, 25, "conv_lstm", "on")
    assert after.by_lead and not before.by_lead
    assert {shape for shape, _ in seen} == {(2, 4 + 10)} and len(seen) == 25
    assert max(rate for _, rate in seen) == pytest.approx(0.002)
    assert all(torch.equal(one, kept[name]) for name, one in before.state_dict().items())
    assert any(not torch.equal(one, kept[name]) for name, one in after.state_dict().items())


def test_what_does_not_fit_is_refused(capsys) -> None:
    assert main(["weather", "forecast", "--longer", "4", "--stations", "8"]) == 2
    assert "--longer must be" in capsys.readouterr().err
    assert main(["weather", "forecast", "--longer", "4", "--leads", "3", "--frames", "23"]) == 2
    said = capsys.readouterr()
    assert "--longer needs flows of 24 frames, --frames is 23" in said.err and not said.out
    assert main(["weather", "forecast", "--window", "4", "--stations", "8"]) == 2
    assert "--window must be" in capsys.readouterr().err
    for command in ("forecast", "query"):  # before any flow is generated
        assert main(["weather", command, "--steps", "0"]) == 2
        said = capsys.readouterr()
        assert "--steps must be an integer of at least 1, got 0" in said.err and not said.out
    assert main(["weather", "forecast", "--models", "fnoo"]) == 2
    assert "no model 'fnoo'" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=r"size must be an even integer of at least 2, got 15$"):
        FlowData(size=15)
    with pytest.raises(ConfigError, match="must hold the context and the leads"):
        FlowData(frames=10)
    with pytest.raises(ConfigError, match="unknown"):
        FlowForecaster("lstm")  # type: ignore[arg-type]


class _KnownFlows(FlowData):
    """Flows that a model must know something of."""

    def facts(self) -> dict[str, object]:
        return {"flow": "two layers"}


def test_facts_of_the_flows_are_recorded_and_data_are_checked() -> None:
    import lightning

    how = {"size": 16, "frames": 40, "members": 1, "eval_members": 1, "spin_up": 1, "every": 1}
    data = _KnownFlows(**how, context=2, horizon=2, leads=3, batch_size=1, steps_per_epoch=1)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = lightning.Trainer(
        max_steps=1, accelerator="cpu", enable_model_summary=False, limit_val_batches=0, **quiet
    )
    task = FlowForecaster(width=4, n_layers=1, modes=2, context=2)
    trainer.fit(task, datamodule=data)
    assert task.facts == {"flow": "two layers"}
    with pytest.raises(ConfigError, match=r"--model.context 3 and --data.context 2 must agree"):
        FlowForecaster(width=4, n_layers=1, modes=2, context=3).check_data(data)
    with pytest.raises(ConfigError, match=r"--model.channels is 1, but the flow has 2"):
        FlowForecaster(width=4, n_layers=1, modes=2, context=2, channels=1).check_data(data)
