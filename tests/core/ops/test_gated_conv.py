"""gated_conv against its four operators as direct sums: values, gradients, sizes, transforms,
memory."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from longseq.core.errors import ArgumentError
from longseq.core.ops.gated_conv import cpu, gated_conv, gated_conv_reference

# Relative to the largest value: FFT roundings grow with log n only.
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}
# (batch, length, width, short taps, long taps): one position, odd lengths, fewer positions than
# short taps
SHAPES = [
    (2, 1, 3, 3, 1),
    (2, 2, 3, 3, 2),
    (1, 5, 3, 9, 5),
    (1, 7, 16, 3, 7),
    (2, 33, 21, 4, 12),
    (3, 65, 5, 1, 65),
    (2, 40, 40, 32, 40),
    (1, 300, 20, 3, 500),
]
NAMES = ("x", "weight", "bias", "kernel", "skip", "shift")


def make(
    batch: int, length: int, width: int, short: int, taps: int, dtype: torch.dtype = torch.float64
) -> list[Tensor]:
    g = torch.Generator().manual_seed(length + 7 * taps + width)
    inner = 3 * width
    shapes = ((batch, length, inner), (inner, short), (inner,), (width, taps), (width,), (inner,))
    return [
        torch.randn(*s, generator=g, dtype=torch.float64).to(dtype).requires_grad_() for s in shapes
    ]


def close(actual: Tensor | None, expected: Tensor | None, what: str, bound: float) -> None:
    if expected is None:
        assert actual is None or not actual.any(), what
        return
    assert actual is not None
    assert actual.shape == expected.shape, what
    assert actual.dtype == expected.dtype, what
    error = (actual - expected).abs().max().item() / max(expected.abs().max().item(), 1.0)
    assert error <= bound, f"{what}: {error:.1e} > {bound:.1e}"


def compare(values: list[Tensor], bound: float) -> None:
    """Both outputs, and the gradients of each and of both."""
    actual, expected = gated_conv(*values), gated_conv_reference(*values)
    for name, a, e in zip("yu", actual, expected):
        close(a, e, name, bound)
    weights = (
        torch.linspace(0, 9, actual[0].numel(), dtype=actual[0].dtype).sin().view_as(actual[0])
    )
    for use in ((1.0, 0.0), (0.0, 1.0), (1.0, 1.0)):
        found, wanted = (
            torch.autograd.grad(
                sum((w * y * weights).sum() for w, y in zip(use, run) if w),
                values,
                retain_graph=True,
                allow_unused=True,
            )
            for run in (actual, expected)
        )
        for name, a, e in zip(NAMES, found, wanted):
            close(a, e, f"gradient of {name} {use}", bound)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_its_operators_as_direct_sums(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    compare(make(*shape, dtype=dtype), TOLERANCE[dtype])


def test_without_compiled_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "cpu_reason", lambda *_: "absent")
    compare(make(2, 33, 5, 4, 12), 1e-12)


def test_without_bias_skip_and_shift_and_with_taps_laid_out_by_tap() -> None:
    x, weight, _, kernel, *_ = make(2, 50, 19, 3, 50)
    by_tap = kernel.detach().T.contiguous().T.requires_grad_()
    found = gated_conv(x, weight, None, by_tap)[0]
    wanted = gated_conv_reference(x, weight, None, kernel)[0]
    close(found, wanted, "y", 1e-12)
    for a, e in zip(
        torch.autograd.grad(found.sin().sum(), (x, weight, by_tap)),
        torch.autograd.grad(wanted.sin().sum(), (x, weight, kernel)),
    ):
        close(a, e, "gradient", 1e-12)


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 3), st.integers(1, 70), st.integers(1, 35), st.integers(1, 6), st.integers(1, 90)
)
def test_any_sizes(batch: int, length: int, width: int, short: int, taps: int) -> None:
    compare(make(batch, length, width, short, taps), 1e-12)


@given(st.integers(1, 39))
@settings(max_examples=15, deadline=None)
def test_sees_only_the_past(cut: int) -> None:
    x, *rest = make(2, 40, 3, 3, 40)
    changed = torch.cat([x[:, :cut], -x[:, cut:]], 1)
    torch.testing.assert_close(
        gated_conv(changed, *rest)[0][:, :cut], gated_conv(x, *rest)[0][:, :cut]
    )


def test_rows_do_not_depend_on_their_neighbours() -> None:
    x, *rest = make(3, 40, 17, 3, 40, torch.float32)
    whole = gated_conv(x, *rest)
    for row in range(3):
        for all_rows, alone in zip(whole, gated_conv(x[row : row + 1], *rest)):
            assert torch.equal(all_rows[row], alone[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_its_products_in_float32(dtype: torch.dtype) -> None:
    values = [v.detach() for v in make(2, 70, 18, 3, 70, torch.float32)]
    half = [v.to(dtype).requires_grad_() for v in values[:3]]
    rest = [(v / 8).requires_grad_() for v in values[3:]]
    y, u = gated_conv(*half, *rest)
    assert y.dtype == u.dtype == dtype
    inputs = [*half, *rest]
    wide = [v.detach().double().requires_grad_() for v in inputs]
    expected, past = gated_conv_reference(*wide)
    rounding = torch.finfo(dtype).eps
    close(y.double(), expected, "y", rounding)
    close(u.double(), past, "u", rounding)
    found = torch.autograd.grad(y.float().sum(), inputs)
    for name, a, e, t in zip(NAMES, found, torch.autograd.grad(expected.sum(), wide), inputs):
        assert a.dtype == t.dtype
        close(a.double(), e, name, 2 * rounding)


def test_gradients_of_the_gradients() -> None:
    values = make(2, 6, 2, 3, 6)
    assert torch.autograd.gradcheck(gated_conv, values)
    assert torch.autograd.gradgradcheck(gated_conv, values)


def test_under_transforms_and_compilation() -> None:
    x, *rest = make(2, 20, 3, 3, 20)
    rows = torch.stack([x, 2 * x, x.flip(1)])
    wanted = torch.stack([gated_conv(row, *rest)[0] for row in rows])
    torch.testing.assert_close(torch.func.vmap(lambda r: gated_conv(r, *rest)[0])(rows), wanted)
    kernels = torch.stack([rest[2], -rest[2]])

    def loss(x: Tensor, kernel: Tensor) -> Tensor:
        return gated_conv(x, *rest[:2], kernel, *rest[3:])[0].square().sum()

    found = torch.func.vmap(torch.func.grad(loss, 1), (None, 0))(x, kernels)
    each = torch.stack([torch.autograd.grad(loss(x, k), k)[0] for k in kernels])
    torch.testing.assert_close(found, each)
    compiled = torch.compile(gated_conv, fullgraph=True, backend="aot_eager")
    y, u = compiled(x, *rest)
    torch.testing.assert_close((y, u), gated_conv(x, *rest))
    torch.testing.assert_close(
        torch.autograd.grad(y.sin().sum(), [x, *rest]),
        torch.autograd.grad(gated_conv(x, *rest)[0].sin().sum(), [x, *rest]),
    )


def test_keeps_its_arguments_only() -> None:
    """Nothing but x and the weights waits for the backward."""
    values = make(1, 64, 32, 3, 64, torch.float32)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        gated_conv(*values)
    assert {t.data_ptr() for t in kept} == {t.data_ptr() for t in values}


@pytest.mark.parametrize(
    ("place", "shape", "words"),
    [
        (0, (2, 4, 8), r"x must be \(B, L, 3D\)"),
        (1, (9, 40), "W from 1 to 32"),
        (2, (3,), r"bias must be \(9,\)"),
        (3, (9, 4), r"kernel must be \(3, taps\)"),
        (4, (9,), r"skip must be \(3,\)"),
        (5, (3,), r"shift must be \(9,\)"),
    ],
)
def test_names_the_argument_that_does_not_fit(
    place: int, shape: tuple[int, ...], words: str
) -> None:
    values = make(2, 4, 3, 3, 4)
    values[place] = torch.zeros(shape)
    with pytest.raises(ArgumentError, match=words):
        gated_conv(*values)
