"""State-space duality: chunked against sequential with every option of the published signature."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import softplus

from longseq.core.errors import ArgumentError
from longseq.core.ops.ssd import ssd, ssd_reference

# Relative to the largest value: about a hundred roundings.
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}
BATCH, GROUPS, HEADS, WIDTH, STATES = 2, 2, 6, 4, 5


def inputs(length: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(length)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    return {
        "x": normal(BATCH, length, HEADS, WIDTH),
        "dt": normal(BATCH, length, HEADS),
        "A": -normal(HEADS).exp(),
        "B": normal(BATCH, length, GROUPS, STATES),
        "C": normal(BATCH, length, GROUPS, STATES),
        "D": normal(HEADS),
        "z": normal(BATCH, length, HEADS, WIDTH),
        "dt_bias": normal(HEADS),
        "initial_states": normal(BATCH, HEADS, WIDTH, STATES),
    }


def run(
    function: Callable[..., tuple[Tensor, Tensor]],
    tensors: dict[str, Tensor],
    dtype: torch.dtype,
    **options: object,
) -> dict[str, Tensor]:
    leaves = {key: value.to(dtype).requires_grad_() for key, value in tensors.items()}
    y, state = function(**leaves, **options)
    weights = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).view_as(y).cos().to(dtype)
    gradients = torch.autograd.grad((y * weights).sum() + state.sin().sum(), list(leaves.values()))
    return {"y": y.detach(), "state": state.detach(), **dict(zip(leaves, gradients))}


def assert_close(actual: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    for key, value in expected.items():
        error = (actual[key].double() - value.double()).abs().max().item()
        assert error <= tolerance * value.abs().max().item(), f"{key}: {error:.2e}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("length", [1, 2, 7, 64, 65, 150])
def test_chunked_equals_sequential(length: int, dtype: torch.dtype) -> None:
    resets = torch.rand(BATCH, length, generator=torch.Generator().manual_seed(3)) < 0.1
    options = {"resets": resets, "dt_softplus": True}
    expected = run(ssd_reference, inputs(length), torch.float64, **options)
    assert_close(run(ssd, inputs(length), dtype, **options), expected, TOLERANCE[dtype])


@pytest.mark.parametrize(
    "missing", [(), ("D",), ("z",), ("dt_bias",), ("initial_states",), ("D", "z", "dt_bias")]
)
def test_options_may_be_absent(missing: tuple[str, ...]) -> None:
    tensors = {key: value for key, value in inputs(21).items() if key not in missing}
    options = {"dt_softplus": True, "dt_limit": (0.1, 2.0)}
    expected = run(ssd_reference, tensors, torch.float64, **options)
    assert_close(run(ssd, tensors, torch.float64, **options), expected, 1e-12)


def test_skip_per_channel_and_limits() -> None:
    tensors = inputs(9) | {"D": torch.randn(HEADS, WIDTH).double()}
    y, _ = ssd(**tensors, dt_softplus=True, dt_limit=(0.1, 2.0))
    dt = softplus(tensors.pop("dt") + tensors.pop("dt_bias")).clamp(0.1, 2.0)
    skip, z = tensors.pop("D"), tensors.pop("z")
    plain, _ = ssd_reference(dt=dt, **tensors)
    expected = (plain + skip * tensors["x"]) * z * torch.sigmoid(z)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", ["reference", "cpu", "auto"])
def test_steps_below_the_limits_count_as_the_limit(backend: Any) -> None:
    """Without softplus too: the published kernel never takes a step below the lower limit, 0."""
    tensors = inputs(21)
    signed = (tensors["dt"] + tensors.pop("dt_bias")).requires_grad_()
    y, state = ssd(**tensors | {"dt": signed}, backend=backend)
    (gradient,) = torch.autograd.grad(y.sum(), signed)
    expected = ssd_reference(**tensors | {"dt": signed.detach().clamp_min(0.0)})
    assert (signed < 0).any()
    torch.testing.assert_close((y, state), expected, rtol=1e-12, atol=1e-12)
    assert not gradient[signed < 0].any()


def test_large_steps_stay_finite_and_precise() -> None:
    """dt·A of thousands: the state is forgotten at once, and nothing overflows or loses digits."""
    tensors = {key: value for key, value in inputs(96).items() if key != "dt_bias"}
    tensors["A"] = tensors["A"] - 500
    tensors["dt"] = tensors["dt"].abs()
    tensors["dt"][:, ::3] = 1e-4
    expected = run(ssd_reference, tensors, torch.float64)
    actual = run(ssd, tensors, torch.float32)
    assert all(value.isfinite().all() for value in actual.values())
    assert_close(actual, expected, 1e-5)


def test_low_precision_inputs_keep_a_float32_state() -> None:
    tensors = {key: value.bfloat16() for key, value in inputs(33).items()}
    with torch.autocast("cpu", torch.bfloat16):
        y, state = ssd(**tensors, dt_softplus=True)
    assert (y.dtype, state.dtype) == (torch.bfloat16, torch.float32)
    expected, _ = ssd_reference(**{k: v.double() for k, v in tensors.items()}, dt_softplus=True)
    assert (
        y - expected
    ).abs().max() <= 2**-8 * expected.abs().max()  # the rounding of the output alone


def test_gradcheck() -> None:
    tensors = {k: v[:1] if v.ndim > 2 else v for k, v in inputs(5).items()}
    names = list(tensors)
    assert torch.autograd.gradcheck(
        lambda *values: ssd(**dict(zip(names, values)), chunk_size=4, dt_softplus=True),
        [value.requires_grad_() for value in tensors.values()],
    )


@pytest.mark.parametrize("name", ["dt", "A", "B", "C", "D", "z", "dt_bias", "initial_states"])
def test_wrong_shapes_are_named(name: str) -> None:
    tensors = inputs(4)
    with pytest.raises(
        ArgumentError, match=f"^ssd: {name if name != 'B' else 'C'} must have shape"
    ):
        ssd(**tensors | {name: tensors[name][..., :-1]})


def test_wrong_groups_and_resets_are_named() -> None:
    tensors = inputs(4)
    with pytest.raises(
        ArgumentError, match="B must have groups that divide the 6 heads of x, got 4"
    ):
        ssd(**tensors | {key: torch.ones(BATCH, 4, 4, STATES) for key in ("B", "C")})
    with pytest.raises(ArgumentError, match=r"resets must have shape \(2, 4\)"):
        ssd(**tensors, resets=torch.zeros(BATCH, 3, dtype=torch.bool))
