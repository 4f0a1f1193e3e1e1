"""The chunked scan of time-invariant systems against the plain recurrence."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from longseq.core.ops.lti import lti_scan, lti_scan_reference, powers

KINDS = ["complex", "real", "full"]
# A few hundred roundings in float64; in float32 the tables are float64 and the sums are short.
BOUND = {torch.float64: 1e-12, torch.float32: 1e-5}


def system(kind: str, groups: int = 2, width: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    """A stable system in float64: spectral radius below 1."""
    g = torch.Generator().manual_seed(3)

    def draw(*shape: int) -> Tensor:
        if kind == "complex":
            return torch.randn(*shape, dtype=torch.complex128, generator=g)
        return torch.randn(*shape, dtype=torch.float64, generator=g)

    if kind == "full":
        a = draw(groups, width, width)
        a = 0.97 * a / torch.linalg.matrix_norm(a, 2)[:, None, None]
    else:
        a = draw(groups, width)
        a = a / a.abs() * (0.7 + 0.29 * torch.rand(groups, width, dtype=torch.float64, generator=g))
    return a, draw(groups, width), draw(groups, width)


def inputs(
    kind: str, length: int, dtype: torch.dtype, batch: int = 3, channels: int = 4
) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(length)
    u = torch.randn(batch, length, channels, dtype=torch.float64, generator=g).to(dtype)
    x0 = torch.randn(
        batch,
        channels,
        5,
        dtype=torch.complex128 if kind == "complex" else torch.float64,
        generator=g,
    )
    return u, x0.to(dtype.to_complex() if kind == "complex" else dtype)


def close(actual: Tensor, expected: Tensor, dtype: torch.dtype, what: str) -> None:
    error = (actual - expected).abs().max().item()
    assert error <= BOUND[dtype] * max(1.0, expected.abs().max().item()), f"{what}: {error:.2e}"


def random_resets(length: int, batch: int = 3) -> Tensor:
    resets = torch.rand(batch, length, generator=torch.Generator().manual_seed(length)) < 0.15
    resets[0] = False  # one row is a single segment
    resets[1:, 0] = torch.arange(batch - 1) == 0  # and one begins with a reset
    return resets


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("length", [1, 2, 7, 8, 31, 100])
@pytest.mark.parametrize("packed", [False, True], ids=["whole", "packed"])
@pytest.mark.parametrize("carried", [False, True], ids=["from zero", "from a state"])
def test_chunked_is_the_recurrence(
    kind: str, dtype: torch.dtype, length: int, packed: bool, carried: bool
) -> None:
    weights = [w.requires_grad_() for w in system(kind)]
    u, x0 = inputs(kind, length, dtype)
    leaves = [u.requires_grad_(), x0.requires_grad_(), *weights]
    state = x0 if carried else None
    resets = random_resets(length) if packed else None
    y, last = lti_scan(u, *weights, state, resets, chunk_size=8)
    wide = [u.double(), *weights]
    y_ref, last_ref = lti_scan_reference(
        *wide, None if state is None else state.to(weights[0].dtype), resets
    )
    assert y.dtype == dtype and last.dtype == x0.dtype
    close(y, y_ref, dtype, "output")
    close(last, last_ref, dtype, "state")

    def grads(y: Tensor, last: Tensor) -> tuple[Tensor | None, ...]:
        w = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).reshape(y.shape)
        loss = (y.double() * w).sum() + last.abs().double().square().sum()
        return torch.autograd.grad(loss, leaves, allow_unused=True)

    for name, actual, expected in zip(
        ["u", "x0", "a", "b", "c"], grads(y, last), grads(y_ref, last_ref)
    ):
        assert (actual is None) == (expected is None), name
        if actual is not None and expected is not None:
            close(actual, expected, dtype, f"gradient of {name}")


@pytest.mark.parametrize("kind", KINDS)
def test_a_long_sequence_in_float32_keeps_its_precision(kind: str) -> None:
    u, x0 = inputs(kind, 3000, torch.float32, batch=1)
    a, b, c = system(kind)
    if kind != "full":
        a = a / a.abs() * 0.9999  # remembers the whole sequence
    y, last = lti_scan(u, a, b, c, x0)
    y_ref, last_ref = lti_scan_reference(u.double(), a, b, c, x0.to(a.dtype))
    close(y, y_ref, torch.float32, "output")
    close(last, last_ref, torch.float32, "state")


def test_many_short_segments_and_few_long_ones() -> None:
    a, b, c = system("complex")
    u, x0 = inputs("complex", 400, torch.float64, batch=2)
    resets = torch.zeros(2, 400, dtype=torch.bool)
    resets[0, 1:390] = True
    resets[1, 200] = True
    y, last = lti_scan(u, a, b, c, x0, resets)
    y_ref, last_ref = lti_scan_reference(u, a, b, c, x0, resets)
    close(y, y_ref, torch.float64, "output")
    close(last, last_ref, torch.float64, "state")


@pytest.mark.parametrize("chunk_size", [1, 3, 8, 64, 1000])
def test_the_chunk_length_is_only_a_matter_of_speed(chunk_size: int) -> None:
    a, b, c = system("full")
    u, x0 = inputs("full", 77, torch.float64)
    expected = lti_scan_reference(u, a, b, c, x0)
    for actual, wanted in zip(lti_scan(u, a, b, c, x0, chunk_size=chunk_size), expected):
        close(actual, wanted, torch.float64, f"chunks of {chunk_size}")


def test_the_sequence_is_not_seen_backwards_across_chunks() -> None:
    a, b, c = system("complex")
    u, _ = inputs("complex", 32, torch.float32)
    changed = u.clone()
    changed[:, 16:] += 1
    before, after = (
        lti_scan(u, a, b, c, chunk_size=8)[0],
        lti_scan(changed, a, b, c, chunk_size=8)[0],
    )
    assert torch.equal(before[:, :16], after[:, :16])


def test_powers() -> None:
    a = torch.tensor([0.5, 0.0, -1.0], dtype=torch.float64, requires_grad=True)
    table = powers(a, 7)
    expected = torch.stack([a**k for k in range(7)])
    assert torch.allclose(table, expected, rtol=1e-15, atol=0)
    (gradient,) = torch.autograd.grad(table.sum(), a)
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("packed", [False, True], ids=["whole", "packed"])
def test_complex_inputs_give_complex_outputs(packed: bool) -> None:
    a, b, c = (w.requires_grad_() for w in system("complex", groups=4))
    re, x0 = inputs("complex", 45, torch.float64)
    u = torch.complex(re, re.flip(1)).requires_grad_()
    resets = random_resets(45) if packed else None
    actual = lti_scan(u, a, b, c, x0, resets, chunk_size=8)
    expected = lti_scan_reference(u, a, b, c, x0, resets)
    leaves = [u, a, b, c]
    up = [torch.ones_like(t) * (1 - 2j) for t in actual]
    for x, y in zip(actual, expected):
        close(x, y, torch.float64, "values")
    for x, y in zip(
        torch.autograd.grad(actual, leaves, up), torch.autograd.grad(expected, leaves, up)
    ):
        close(x, y, torch.float64, "gradient")
