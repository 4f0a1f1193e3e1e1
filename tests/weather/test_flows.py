"""Generated flows: invariants, exact waves, order in time, and one mechanism for all of them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from longseq.core.errors import ConfigError
from longseq.core.shell.cli import main
from longseq.weather.forecasting.flows import FLOWS, Flow, make_flow
from longseq.weather.forecasting.kuramoto_sivashinsky import KuramotoSivashinsky
from longseq.weather.forecasting.models import FlowModel
from longseq.weather.forecasting.shallow_water import ShallowWater
from longseq.weather.forecasting.task import FlowData, FlowForecaster

FREE = {"relaxation": 0.0, "viscosity": 0.0}


def disturbed(flow: ShallowWater, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    state = flow.start(2, seed)
    return state + 0.1 * torch.randn(state.shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("seed", [0, 1])
def test_shallow_water_conserves_mass_and_energy(seed: int) -> None:
    flow = ShallowWater(12, **FREE)
    state = disturbed(flow, seed).requires_grad_()
    found = flow.invariants(state)
    change = flow.free_tendency(state)
    for name in ("mass", "energy"):
        (gradient,) = torch.autograd.grad(found[name].sum(), state, retain_graph=True)
        terms = gradient * change
        assert terms.abs().mean() > 1e-5
        assert terms.sum((-1, -2, -3)).abs().max() < 1e-14
    # With the errors of the time steps only, which fall with their fourth power and more.
    drifts = []
    for step in (0.1, 0.05):
        flow = ShallowWater(12, step=step, **FREE)
        after = flow.advance(state.detach(), round(4 / step))
        drifts.append((flow.invariants(after)["energy"] - found["energy"]).abs().max().item())
        torch.testing.assert_close(
            flow.invariants(after)["mass"], found["mass"], atol=1e-13, rtol=0
        )
    assert drifts[0] < 1e-4 and math.log2(drifts[0] / drifts[1]) > 3.5


def test_shallow_water_wave_and_balance() -> None:
    # A small gravity wave: ω² = f² + k², with the finite differences' own f and k.
    flow = ShallowWater(16, jet=0.0, step=0.02, **FREE)
    k = 2 * math.pi / 10
    wide = 2 / flow.width * math.sin(k * flow.width / 2)
    mean = math.cos(k * flow.width / 2)  # the Coriolis term averages two faces
    omega = math.sqrt(mean**2 + wide**2)
    state = flow.target.clone()[None]
    x = flow.width * torch.arange(16, dtype=torch.float64)
    state[:, 0] += 1e-6 * torch.cos(k * x)
    moved = flow.advance(state, 100)[0, 0, 0] - 1
    # At rest at first: a still balanced part, and two waves that go apart.
    still = mean**2 / omega**2
    expected = 1e-6 * torch.cos(k * x) * (still + (1 - still) * math.cos(omega * 2))
    torch.testing.assert_close(moved, expected, atol=2e-11, rtol=0)
    # The jets nearly rest.
    jets = ShallowWater(64, **FREE)
    assert jets.free_tendency(jets.target).abs().max() < 0.01


def test_kuramoto_sivashinsky_mean_energy_and_growth() -> None:
    flow = KuramotoSivashinsky(64)
    u = flow.advance(flow.start(3, 0), 800)
    field, advected = (flow.fields(one)[:, 0, 0] for one in (u, flow.nonlinear(u)))
    assert field.std() > 0.5 and (field * advected).abs().mean() > 0.1
    assert (field * advected).mean(-1).abs().max() < 1e-13
    assert flow.invariants(u)["mean"].abs().max() < 1e-14
    # ∂/∂t ½⟨u²⟩ = ⟨u_x²⟩ - ⟨u_xx²⟩.
    slope, bend = (flow.fields((1j * flow.wave) ** n * u)[:, 0, 0] for n in (1, 2))
    change = (field * flow.fields(flow.tendency(u))[:, 0, 0]).mean(-1)
    torch.testing.assert_close(
        change, slope.square().mean(-1) - bend.square().mean(-1), atol=1e-12, rtol=0
    )
    # What is small grows by k² - k⁴, exactly.
    small = torch.zeros(1, 33, dtype=torch.complex128)
    small[0, 2] = 1e-9
    k = float(flow.wave[2])
    grown = flow.advance(small, 50)[0, 2].real.item() / 1e-9
    assert math.isclose(grown, math.exp(5 * (k**2 - k**4)), rel_tol=1e-10)


def test_kuramoto_sivashinsky_is_of_fourth_order_and_galilean() -> None:
    start = KuramotoSivashinsky(32).advance(KuramotoSivashinsky(32).start(1, 1), 800)
    truth = KuramotoSivashinsky(32, step=0.0025).advance(start, 800)
    errors = [
        float((KuramotoSivashinsky(32, step=h).advance(start, round(2 / h)) - truth).abs().max())
        for h in (0.025, 0.0125)
    ]
    assert 3.5 < math.log2(errors[0] / errors[1]) < 4.6
    # u + c moves with c.
    flow = KuramotoSivashinsky(32, step=0.01)
    faster = start.clone()
    faster[:, 0] += 0.3 * 32
    moved = flow.advance(faster, 100)
    shifted = flow.advance(start, 100) * torch.exp(-1j * flow.wave * 0.3)
    torch.testing.assert_close(moved[:, 1:10], shifted[:, 1:10], atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", FLOWS)
def test_every_flow_runs_and_trains(name: str) -> None:
    flow = make_flow(name, 12)
    made = flow.run(2, 3, 2, 20, seed=1)
    assert made.shape == (2, 3, flow.channels, *flow.shape) and made.dtype == torch.float32
    assert torch.equal(made, flow.run(2, 3, 2, 20, seed=1))
    assert not torch.equal(made, flow.run(2, 3, 2, 20, seed=2))
    data = FlowData(12, 2, 12, 2, 20, leads=4, flow=name, eval_members=1, batch_size=2)
    assert data.runs("train").square().mean((0, 1, 3, 4)).allclose(torch.ones(flow.channels))
    task = FlowForecaster("fno", 8, 1, modes=3, **data.model_arguments())
    batch = data.train_dataloader().dataset[0]
    assert batch["video"].shape == (2, 8, flow.channels, *flow.shape)
    task.compute(batch)["loss"].backward()
    made = task.eval()(batch["video"][:, :4], 2)
    assert made.shape == (2, 2, flow.channels, *flow.shape)


def test_a_long_run_stays_alive() -> None:
    """Jets that die out, or flows that blow up, would be poor tests of a forecast."""
    for name, size in (("shallow_water", 24), ("kuramoto_sivashinsky", 32)):
        made = make_flow(name, size).run(1, 2, 10, 600)
        assert (made.std((-1, -2)) > 0.03).all() and made.abs().max() < 10


@pytest.mark.parametrize("kind", ["fno", "conv_s5", "gated_conv_s5", "conv_lstm"])
def test_networks_on_one_row(kind: str) -> None:
    torch.manual_seed(0)
    model = FlowModel(1, kind, width=8, n_layers=1, d_state=4, modes=20).double()  # type: ignore[arg-type]
    frames = torch.randn(1, 3, 1, 1, 10, dtype=torch.float64)
    whole = model(frames)[0]
    torch.testing.assert_close(model(frames.roll(3, -1))[0], whole.roll(3, -1), atol=1e-6, rtol=0)


class Still(Flow):
    """One of one's own: nothing moves."""

    channels, every, spin_up = 1, 1, 1

    def __init__(self, size: int, value: float = 1.0) -> None:
        self.shape, self.value, self.step = (size, size), value, 1.0

    def start(self, members: int, seed: int) -> torch.Tensor:
        return torch.full((members, 1, *self.shape), self.value)

    def advance(self, state: torch.Tensor, steps: int) -> torch.Tensor:
        return state

    def fields(self, state: torch.Tensor) -> torch.Tensor:
        return state


def test_a_flow_of_ones_own_and_what_is_refused(monkeypatch, capsys) -> None:
    path = f"{__name__}.Still"
    with pytest.raises(ConfigError, match="--import"):
        make_flow(path, 4)
    monkeypatch.setenv("LONGSEQ_IMPORT", __name__)
    assert make_flow(path, 4, {"value": 2.0}).run(1, 2).eq(2).all()
    with pytest.raises(ConfigError, match="blown up"):
        make_flow(path, 4, {"value": math.inf}).run(1, 2)
    with pytest.raises(ConfigError, match="'valu'"):
        make_flow(path, 4, {"valu": 2.0})
    with pytest.raises(ConfigError, match="no subclass"):
        make_flow("longseq.weather.forecasting.task.FlowData", 4)
    with pytest.raises(ConfigError, match="no flow"):
        make_flow("longseq.weather.forecasting.nothing.Flow", 4)
    with pytest.raises(ConfigError, match="depth falls below zero"):
        ShallowWater(8, jet=3.0)
    for cls in (ShallowWater, KuramotoSivashinsky):
        for wrong in ({"size": 7}, {"step": 0.0}, {"length": -1.0}):
            with pytest.raises(ConfigError):
                cls(**wrong)
    assert main(["weather", "forecast", "--flow", "shallow_watr"]) == 2
    assert "shallow_water" in capsys.readouterr().err


def test_the_command_on_another_flow(tmp_path, capsys) -> None:
    argv = ["weather", "forecast", "--flow", "kuramoto_sivashinsky", "--steps", "1"]
    argv += ["--models", "fno,conv_s5", "--size", "16", "--members", "2", "--frames", "20"]
    argv += ["--leads", "3"]
    assert main([*argv, "--spin_up", "50", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "1 × 16 points" in said and "linear inverse" in said
    rows = np.genfromtxt(tmp_path / "scores.csv", delimiter=",", skip_header=1, usecols=(2, 3, 4))
    assert rows.shape == (18, 3) and np.isfinite(rows[:, 0]).all()


def test_fit_takes_the_channels_from_the_flow(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    argv = ["weather", "fit", "--model", "FlowForecaster", "--data", "FlowData", "--data.size", "8"]
    argv += ["--data.flow", "shallow_water", "--data.options", '{"jet": 0.5}', "--data.leads", "2"]
    argv += ["--data.frames", "8", "--data.horizon", "2", "--data.spin_up", "5"]
    argv += ["--model.width", "4", "--model.n_layers", "1", "--model.modes", "2"]
    argv += ["--data.members", "1", "--data.eval_members", "1", "--trainer.max_steps", "1"]
    assert main(argv) == 0
    (checkpoint, *_) = tmp_path.rglob("last.ckpt")
    assert main(["weather", "test", "--ckpt_path", str(checkpoint)]) == 0
    with pytest.raises(ConfigError, match="3 channels"):
        from longseq.core.training import fit

        data = FlowData(8, 1, 8, 1, 1, horizon=2, leads=2, flow="shallow_water", eval_members=1)
        fit(FlowForecaster("fno", 4, 1, modes=2), data, tmp_path, 1)
