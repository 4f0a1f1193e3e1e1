"""depthwise_conv2d against its definition and torch's convolution: values, gradients, sizes,
dtypes, strides, transforms, instruction sets."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from longseq.core.errors import ArgumentError, BackendError
from longseq.core.ops.backends import native
from longseq.core.ops.depthwise_conv2d import cpu, depthwise_conv2d
from longseq.core.ops.depthwise_conv2d.arguments import Arguments


def make(
    shape: tuple[int, ...], sides: tuple[int, int] = (3, 3), dtype: torch.dtype = torch.float64
) -> list[Tensor]:
    g = torch.Generator().manual_seed(sum(shape))
    shapes = (shape, (shape[3], 1, *sides), shape[3:])
    draws = (torch.randn(*s, generator=g, dtype=torch.float64) for s in shapes)
    return [t.to(dtype).requires_grad_() for t in draws]


def gradients(y: Tensor, values: list[Tensor]) -> tuple[Tensor, ...]:
    weights = torch.linspace(0, 9, y.numel(), dtype=y.dtype).sin().view(y.shape)
    return torch.autograd.grad((y * weights).sum(), values)


def compare(values: list[Tensor], bound: float, silu: bool = True) -> None:
    wide = [t.detach().double().requires_grad_() for t in values]
    found = depthwise_conv2d(*values, silu=silu, backend="cpu")
    wanted = depthwise_conv2d(*wide, silu=silu, backend="reference")
    assert found.dtype == values[0].dtype
    torch.testing.assert_close(found.double(), wanted, rtol=bound, atol=bound)
    for a, e in zip(gradients(found, values), gradients(wanted, wide)):
        scale = max(1.0, e.abs().max().item())
        torch.testing.assert_close(a.double(), e, rtol=bound, atol=bound * scale)


SHAPES = [(1, 1, 1, 1), (2, 5, 7, 3), (1, 1, 9, 17), (2, 9, 1, 16), (3, 2, 2, 33), (1, 35, 6, 48)]


@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_the_definition(shape: tuple[int, ...], silu: bool) -> None:
    compare(make(shape), 1e-12, silu)
    compare(make(shape, dtype=torch.float32), 1e-5, silu)
    x, weight, _ = make(shape)
    compare([x, weight], 1e-12, silu)


@pytest.mark.parametrize("sides", [(1, 1), (5, 5), (7, 7), (1, 11), (11, 1), (9, 3)])
def test_other_sides(sides: tuple[int, int]) -> None:
    for shape in ((2, 6, 8, 20), (1, 20, 3, 16)):
        compare(make(shape, sides), 1e-12)
        compare(make(shape, sides, torch.float32), 2e-5)


@pytest.mark.parametrize("silu", [False, True])
def test_the_definition_is_torchs_convolution(silu: bool) -> None:
    x, weight, bias = make((2, 5, 6, 7), (5, 3))
    wanted = F.conv2d(x.permute(0, 3, 1, 2), weight, bias, padding=(2, 1), groups=7)
    wanted = (F.silu(wanted) if silu else wanted).permute(0, 2, 3, 1)
    for backend in ("reference", "cpu"):
        found = depthwise_conv2d(x, weight, bias, silu=silu, backend=backend)  # type: ignore[arg-type]
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 3), st.integers(1, 40), st.integers(1, 12), st.integers(1, 40))
def test_any_sizes(batch: int, height: int, width: int, channels: int) -> None:
    compare(make((batch, height, width, channels)), 1e-12)


def test_units_of_rows_are_as_many_as_the_kernels_make() -> None:
    rows = native().MAP_ROWS
    for height in (1, rows - 1, rows, rows + 1, 3 * rows - 1, 5 * rows + 3):
        compare(make((1, height, 2, 4)), 1e-12)
        assert cpu.strips(height) >= height / rows


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_the_float32_result_rounded_once(dtype: torch.dtype) -> None:
    x, weight, bias = make((2, 19, 5, 33), dtype=torch.float32)
    narrow = x.detach().to(dtype).requires_grad_()
    values, wide = [narrow, weight, bias], [narrow.detach().float().requires_grad_(), weight, bias]
    found = depthwise_conv2d(*values, silu=True, backend="cpu")
    wanted = depthwise_conv2d(*wide, silu=True, backend="cpu")
    assert torch.equal(found, wanted.to(dtype))
    dy = torch.linspace(-1, 1, found.numel()).view(found.shape).to(dtype)
    grads = torch.autograd.grad(found, values, dy), torch.autograd.grad(wanted, wide, dy.float())
    for a, e in zip(*grads):
        assert torch.equal(a, e.to(a.dtype))


def test_strides_and_slices() -> None:
    x, weight, bias = make((2, 6, 7, 24))
    first = x.detach()[..., 4:20]
    turned = x.detach().permute(0, 2, 1, 3)[..., :16]
    apart = x.detach().permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)[..., :16]
    for view in (first, turned, apart, first[:, ::2, ::3], first[:1].expand(3, -1, -1, -1)):
        values = [view.requires_grad_(), weight[:16].detach().requires_grad_(), bias[:16].detach()]
        values[2].requires_grad_()
        compare(values, 1e-12)
    y = depthwise_conv2d(x, weight, bias, backend="cpu")
    wide = torch.ones(2, 7, 6, 48, dtype=torch.float64)
    for dy in (wide[..., ::2].transpose(1, 2), torch.ones(1, dtype=torch.float64).expand(y.shape)):
        found = torch.autograd.grad(y, x, dy, retain_graph=True)[0]
        wanted = torch.autograd.grad(y, x, dy.contiguous(), retain_graph=True)[0]
        assert torch.equal(found, wanted)


def test_no_images() -> None:
    x, weight, bias = make((1, 3, 4, 5))
    none = x.detach()[:0].requires_grad_()
    y = depthwise_conv2d(none, weight, bias, silu=True)
    assert y.shape == (0, 3, 4, 5)
    assert all(not g.any() for g in torch.autograd.grad(y.sum(), [none, weight, bias]))


def test_results_depend_on_neither_threads_nor_the_batch() -> None:
    values, threads = make((3, 50, 30, 24), dtype=torch.float32), torch.get_num_threads()
    found = []
    try:
        for n in (1, 3):
            torch.set_num_threads(n)
            y = depthwise_conv2d(*values, silu=True, backend="cpu")
            found.append((y, *gradients(y, values)))
    finally:
        torch.set_num_threads(threads)
    for one, several in zip(*found):
        assert torch.equal(one, several)
    alone = depthwise_conv2d(values[0][1:2], *values[1:], silu=True, backend="cpu")
    assert torch.equal(alone, found[0][0][1:2])


def test_what_is_not_finite_stays_where_it_is_seen() -> None:
    x, weight, bias = (t.detach() for t in make((1, 6, 6, 20)))
    x[0, 2, 2, 3] = float("nan")
    y = depthwise_conv2d(x, weight, bias, silu=True, backend="cpu")
    assert y[0, 1:4, 1:4, 3].isnan().all()
    assert y.isnan().sum() == 9
    weight[5] = float("inf")
    y = depthwise_conv2d(torch.ones_like(x), weight, bias, backend="cpu")
    assert torch.equal(y[..., 5], torch.full((1, 6, 6), float("inf"), dtype=y.dtype))


def test_derivatives_transforms_and_compilation() -> None:
    values = make((2, 3, 4, 3))

    def call(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return depthwise_conv2d(x, weight, bias, silu=True)

    assert torch.autograd.gradcheck(call, values, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(call, values, fast_mode=True)
    x, weight, bias = (t.detach() for t in values)
    rows = torch.stack([x, -x])
    found = torch.func.vmap(call, (0, None, None))(rows, weight, bias)
    torch.testing.assert_close(found, torch.stack([call(row, weight, bias) for row in rows]))
    slope = torch.func.grad(lambda w, r: call(r, w, bias).square().sum())
    each = torch.stack([slope(weight, row) for row in rows])
    torch.testing.assert_close(torch.func.vmap(slope, (None, 0))(weight, rows), each)
    y = torch.compile(call, fullgraph=True, backend="aot_eager")(*values)
    torch.testing.assert_close(y, call(*values))


def test_autocast_lowers_the_maps_alone() -> None:
    x, weight, bias = make((2, 5, 6, 8), dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y = depthwise_conv2d(x, weight, bias, silu=True)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, depthwise_conv2d(x.bfloat16(), weight, bias, silu=True))
    assert all(g.dtype == torch.float32 for g in torch.autograd.grad(y.sum(), [x, weight, bias]))


def test_names_the_argument_that_does_not_fit() -> None:
    x, weight, bias = (t.detach() for t in make((1, 3, 4, 5)))
    for wrong, what in (
        ((x[0], weight, bias), "x must be"),
        ((x[:, :0], weight, bias), "x must be"),
        ((x, weight[:4], bias), r"weight must be \(5, 1, height, width\) with odd sides"),
        ((x, weight[..., :2], bias), "with odd sides"),
        ((x, weight, bias[:4]), "bias must have shape"),
        ((x.to(torch.complex64), weight, bias), "x must be real"),
    ):
        with pytest.raises(ArgumentError, match=what):
            depthwise_conv2d(*wrong)
    with pytest.raises(BackendError, match="no such backend"):
        depthwise_conv2d(x, weight, bias, backend="triton")
    assert cpu.reason(Arguments(x[:0], weight, bias, False)) == "there is nothing to compute"


def test_every_instruction_set() -> None:
    before = native().isa()
    try:
        for isa in native().available_isas():
            native().select_isa(isa)
            for shape in SHAPES:
                compare(make(shape, dtype=torch.float32), 1e-5)
            compare(make((1, 9, 12, 37), (7, 7)), 1e-12)
    finally:
        native().select_isa(before)
