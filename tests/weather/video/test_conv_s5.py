"""ConvS5: parallel = sequential = chunked, an independent float64 NumPy oracle, layout, and
gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from longseq.core.errors import ArgumentError, ConfigError
from longseq.core.training.optim import parameter_groups
from longseq.weather.video.conv_s5 import ConvS5, ConvS5Block, held_systems


def make(channels=3, d_state=8, kernel=3, dtype=torch.float32, **kwargs) -> ConvS5:
    torch.manual_seed(0)
    return ConvS5(channels, d_state, kernel, dt_min=0.05, dt_max=1.0, **kwargs).to(dtype)


def convolve(frame: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Returns the cross-correlation of (I, H, W) with (O, I, k, k), padded with zeros, by loops."""
    out, _, side, _ = weight.shape
    _, height, width = frame.shape
    half = side // 2
    result = np.zeros((out, height, width), dtype=np.result_type(frame, weight))
    for y in range(height):
        for x in range(width):
            for dy in range(side):
                for dx in range(side):
                    i, j = y + dy - half, x + dx - half
                    if 0 <= i < height and 0 <= j < width:
                        result[:, y, x] += weight[:, :, dy, dx] @ frame[:, i, j]
    return result


def oracle(layer: ConvS5, u: np.ndarray, state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The recurrence of the paper in complex128, frame by frame; u (L, U, H, W), state (P, H,
    W)."""
    get = {name: value.detach().double().numpy() for name, value in layer.named_parameters()}
    lam = np.minimum(get["Lambda_re"], -1e-4) + 1j * get["Lambda_im"]
    step = np.exp(get["log_step"][:, 0])
    a = np.exp(lam * step)
    half, side = len(lam), layer.kernel
    b = (get["B"][..., 0] + 1j * get["B"][..., 1]).reshape(half, u.shape[1], side, side)
    c = np.transpose(get["C"][..., 0] + 1j * get["C"][..., 1], (3, 2, 0, 1))
    outputs = []
    for frame in u:
        entered = convolve(frame.astype(complex), b) * ((a - 1) / lam)[:, None, None]
        state = a[:, None, None] * state + entered
        outputs.append(2 * convolve(state, c).real + convolve(frame, get["D.weight"]))
    return np.stack(outputs), state


@pytest.mark.parametrize(
    ("kernel", "size", "init"), [(3, (4, 5), "legs"), (1, (1, 1), "ptd"), (3, (2, 1), "legs")]
)
def test_it_is_the_papers_recurrence(kernel, size, init) -> None:
    layer = make(kernel=kernel, dtype=torch.float64, init=init)
    rng = np.random.default_rng(1)
    u = rng.standard_normal((6, 3, *size))
    start = rng.standard_normal((4, *size)) + 1j * rng.standard_normal((4, *size))
    expected, last = oracle(layer, u, start)
    with torch.no_grad():
        y, state = layer(torch.from_numpy(u)[None], {"ssm": torch.from_numpy(start)[None]})
    assert np.abs(y[0].numpy() - expected).max() < 1e-12
    assert np.abs(state["ssm"][0].numpy() - last).max() < 1e-12


@given(st.integers(1, 20), st.integers(1, 3), st.data())
@settings(max_examples=25, deadline=None)
def test_parallel_is_sequential_is_chunked(length: int, batch: int, data) -> None:
    layer = make()
    cut = data.draw(st.integers(0, length))
    u = torch.randn(batch, length, 3, 4, 3, generator=torch.Generator().manual_seed(length))
    with torch.no_grad():
        whole, last = layer(u)
        state, frames = layer.init_state(batch, 4, 3), []
        for t in range(length):
            y, state = layer.step(u[:, t], state)
            frames.append(y)
        parts, carried = [], None
        for part in (u[:, :cut], u[:, cut:]):
            if part.shape[1]:
                y, carried = layer(part, carried)
                parts.append(y)
    for other in (torch.stack(frames, 1), torch.cat(parts, 1)):
        assert (other - whole).abs().max() <= 1e-5
    for other in (state, carried):
        assert (other["ssm"] - last["ssm"]).abs().max() <= 1e-5


@pytest.mark.parametrize("kind", ["block", "layer"])
def test_gradients_agree_and_pass_through_the_state(kind) -> None:
    torch.manual_seed(0)
    layer = (
        make(4, dtype=torch.float64) if kind == "layer" else ConvS5Block(4, 8, groups=2).double()
    )
    ssm = layer if kind == "layer" else layer.ssm
    u = torch.randn(2, 5, 4, 3, 3, dtype=torch.float64)

    def gradients(parts: list[torch.Tensor]) -> list[torch.Tensor]:
        start = {
            "ssm": torch.full((2, 4, 3, 3), 0.1 + 0.2j, dtype=torch.complex128, requires_grad=True)
        }
        outputs, state = [], start
        for part in parts:
            y, state = layer(part, state)
            outputs.append(y)
        loss = torch.cat(outputs, 1).square().sum() + state["ssm"].abs().square().sum()
        return list(torch.autograd.grad(loss, [*layer.parameters(), start["ssm"]]))

    for one, other in zip(gradients([u]), gradients([u[:, :2], u[:, 2:]])):
        assert torch.allclose(one, other, rtol=1e-8, atol=1e-10)
    assert gradients([u])[-1].abs().max() > 0 and ssm.B.grad is None


def test_causality_and_rows_of_the_batch() -> None:
    layer = make()
    u = torch.randn(2, 9, 3, 4, 4)
    other = u.clone()
    other[:, 5:] += 1
    other[1, :5] += 1
    with torch.no_grad():
        assert torch.equal(layer(u)[0][0, :5], layer(other)[0][0, :5])
        assert torch.equal(layer(u[:1])[0], layer(u)[0][:1])


def test_layout_and_parameter_groups() -> None:
    layer = make(5, 12)
    shapes = {name: tuple(value.shape) for name, value in layer.state_dict().items()}
    assert shapes == {
        "Lambda_re": (6,),
        "Lambda_im": (6,),
        "B": (6, 45, 2),
        "C": (3, 3, 6, 5, 2),
        "log_step": (6, 1),
        "D.weight": (5, 5, 3, 3),
    }
    groups = {group["name"]: group["params"] for group in parameter_groups(layer, 1e-3, 0.1)}
    assert {id(p) for p in groups["ssm"]} == {
        id(getattr(layer, name)) for name in ConvS5.ssm_parameters
    }
    # What Muon turns into matrices are the real convolutions' (outputs, inputs · taps).
    for (name, (rows, columns)), size in zip(layer.filter_axes.items(), ((12, 45), (5, 108))):
        turned = layer.get_parameter(name).permute(*rows, *columns)
        assert turned.numel() == size[0] * size[1]
        assert turned.flatten(len(rows)).flatten(0, len(rows) - 1).shape == size
    assert (layer.Lambda_re < 0).all() and layer.system()[0].abs().max() < 1


def test_the_eigenvalues_are_held_left_of_the_axis() -> None:
    layer = make()
    with torch.no_grad():
        layer.Lambda_re.fill_(3.0)
        u = torch.ones(1, 300, 3, 2, 2)
        assert layer(u)[0].isfinite().all() and layer.system()[0].abs().max() < 1


def test_wrong_arguments() -> None:
    for kwargs in ({"d_state": 7}, {"kernel": 2}, {"init": "leg"}, {"blocks": 3}):
        with pytest.raises(ConfigError):
            make(**kwargs)
    with pytest.raises(ConfigError, match="groups"):
        ConvS5Block(6, groups=4)
    for shape in ((2, 3, 4, 4), (2, 0, 3, 4, 4), (2, 3, 2, 4, 4)):
        with pytest.raises(ArgumentError, match="frames must be"):
            make()(torch.zeros(shape))


def test_kernels_that_are_held_give_the_same_and_are_let_go() -> None:
    torch.manual_seed(0)
    layer = ConvS5(4, d_state=6).double()
    u = torch.randn(2, 5, 4, 6, 6, dtype=torch.float64)

    def run() -> tuple[Tensor, ...]:
        first, state = layer(u[:, :3])
        second, state = layer(u[:, 3:4], state)
        third, _ = layer(u[:, 4:], state)
        made = torch.cat([first, second, third], 1)
        return made, *torch.autograd.grad(made.square().sum(), list(layer.parameters()))

    alone = run()
    with held_systems(layer):
        held = run()
        layer.log_step.data += 1  # what is held is not made again
        assert torch.equal(layer(u[:, :3])[0], held[0][:, :3])
    torch.testing.assert_close(held, alone, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(run()[0], alone[0])
