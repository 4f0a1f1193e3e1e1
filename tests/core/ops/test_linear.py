"""linear against torch's own map: values, gradients, memory, and what it leaves to torch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from longseq.core.mlp import MLP
from longseq.core.ops.linear import cpu, linear
from longseq.core.ops.linear.arguments import Arguments
from longseq.core.ops.linear_maps import mapped

REASON = cpu.library_reason()
BY_ONEDNN = pytest.mark.skipif(REASON is not None, reason=f"oneDNN's product is not used: {REASON}")


def make(*shape: int, ins: int = 192, outs: int = 160) -> list[Tensor]:
    g = torch.Generator().manual_seed(sum(shape))
    sizes = ((*shape, ins), (outs, ins), (outs,))
    return [torch.randn(*size, generator=g).requires_grad_() for size in sizes]


def compare(found: Tensor, given: list[Tensor], wide: list[Tensor]) -> None:
    """Values and gradients against float64, by the roundings of sums of as many products."""
    wanted = F.linear(*wide)
    weights = torch.linspace(0, 9, found.numel()).sin().view_as(found)
    grads = torch.autograd.grad((found * weights).sum(), given)
    exact = torch.autograd.grad((wanted * weights.double()).sum(), wide)
    for which, (a, e) in enumerate(zip((found, *grads), (wanted, *exact))):
        # 2⁻²⁴ a rounding; at most 1,024 products are summed, to 32 at most, but for the weight's
        # gradient, whose sums over all positions go further.
        most = max(32.0, e.detach().abs().max().item()) if which == 2 else 32.0
        torch.testing.assert_close(a.double(), e, rtol=0, atol=1024**0.5 * most * 2.0**-24)


@pytest.mark.parametrize("shape", [(512,), (4, 128), (2, 3, 171), (1, 1)])
@pytest.mark.parametrize("bias", [True, False])
def test_equals_torch(shape: tuple[int, ...], bias: bool) -> None:
    given = make(*shape)[: 3 if bias else 2]
    compare(linear(*given), given, [t.detach().double().requires_grad_() for t in given])


@BY_ONEDNN
def test_memory_of_any_layout() -> None:
    x, weight, bias = make(4, 128)
    turned = weight.detach().T.contiguous().T.requires_grad_()
    wide = [t.detach().double().requires_grad_() for t in (x, weight, bias)]
    assert cpu.reason(Arguments(x, turned, bias)) is None
    compare(linear(x, turned, bias), [x, turned, bias], wide)
    across = x.detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
    assert not across.is_contiguous()
    compare(linear(across, weight, bias), [across, weight, bias], wide)
    rows = torch.randn(512, 400)[:, :192]
    torch.testing.assert_close(linear(rows, weight), F.linear(rows, weight), rtol=1e-5, atol=1e-4)
    apart = torch.randn(160, 400)[:, :192]
    assert "densely" in str(cpu.reason(Arguments(x, apart, bias)))


@BY_ONEDNN
def test_a_gradient_that_is_one_number_everywhere() -> None:
    given = make(512)
    found = torch.autograd.grad(linear(*given).sum(), given)
    wanted = torch.autograd.grad(F.linear(*given).sum(), given)
    for a, e in zip(found, wanted):
        torch.testing.assert_close(a, e, rtol=1e-5, atol=1e-3)


@BY_ONEDNN
@pytest.mark.parametrize("of", [0, 1, 2])
def test_second_derivatives(of: int) -> None:
    given = make(512)
    found, wanted = (
        torch.autograd.grad(
            torch.autograd.grad(f(*given).square().sum(), given[of], create_graph=True)[0]
            .square()
            .sum(),
            given,
        )
        for f in (linear, F.linear)
    )
    for a, e in zip(found, wanted):
        torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-4 * e.abs().max().item())


@BY_ONEDNN
def test_several_gradients_at_once() -> None:
    given = make(512)
    many = torch.randn(2, *linear(*given).shape)
    found, wanted = (
        torch.autograd.grad(f(*given), given, many, is_grads_batched=True)
        for f in (linear, F.linear)
    )
    for a, e in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-4 * e.abs().max().item())


@BY_ONEDNN
def test_what_is_left_to_torch() -> None:
    x, weight, bias = make(512)
    assert cpu.reason(Arguments(x, weight, bias)) is None
    small = make(2)
    assert "too small" in str(cpu.reason(Arguments(small[0], small[1], None)))
    assert "float32" in str(cpu.reason(Arguments(x.double(), weight.double(), None)))
    with torch.autocast("cpu", torch.bfloat16):
        assert "autocast" in str(cpu.reason(Arguments(x, weight, bias)))
        assert linear(x, weight, bias).dtype == torch.bfloat16
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        assert "precision" in str(cpu.reason(Arguments(x, weight, bias)))
    finally:
        torch.set_float32_matmul_precision(before)
    with torch.backends.mkldnn.flags(enabled=False):
        assert "another library" in str(cpu.reason(Arguments(x, weight, bias)))
    assert torch.func.vmap(lambda one: linear(one, weight, bias))(x.view(2, 256, 192)).shape == (
        2,
        256,
        160,
    )


def test_wrong_shapes_get_torchs_error() -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        linear(torch.randn(3, 4), torch.randn(5, 6))
    assert linear(torch.randn(0, 4), torch.randn(5, 4)).shape == (0, 5)


class Doubled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def test_a_layer_that_is_more_than_a_map_is_called() -> None:
    x, plain, doubled = torch.randn(512, 192), nn.Linear(192, 160), Doubled(192, 160)
    torch.testing.assert_close(mapped(plain, x), plain(x), rtol=1e-5, atol=1e-5)
    assert torch.equal(mapped(doubled, x), doubled(x))
    seen = []
    plain.register_forward_hook(lambda *found: seen.append(found))
    mapped(plain, x)
    assert len(seen) == 1


def test_tracing_by_torch_fx() -> None:
    mlp, x = MLP(192, 384), torch.randn(512, 192)
    torch.testing.assert_close(torch.fx.symbolic_trace(mlp)(x), mlp(x), rtol=1e-5, atol=1e-5)


def test_what_has_no_strides_is_torchs() -> None:
    x, weight, _ = (t.detach() for t in make(512))
    for a, b in ((x, weight.to_sparse_csr()), (x.to_sparse(), weight)):
        assert torch.equal(linear(a, b), F.linear(a, b))
    nested = torch.nested.nested_tensor([x[:300], x[300:]])
    for found, wanted in zip(linear(nested, weight).unbind(), F.linear(nested, weight).unbind()):
        assert torch.equal(found, wanted)


@BY_ONEDNN
def test_only_what_a_gradient_needs_is_kept() -> None:
    x, weight, bias = make(512)
    for i, kept in ((0, [weight]), (1, [x]), (2, [])):
        given = [t.detach().requires_grad_(i == j) for j, t in enumerate((x, weight, bias))]
        y = linear(*given)
        seen = [one for one in y.grad_fn.saved_tensors if one is not None]  # type: ignore[union-attr]
        assert len(seen) == len(kept) and all(torch.equal(a, e) for a, e in zip(seen, kept))
        for j, one in enumerate(given):  # torch, too, lets what is not kept be changed
            if j != i and not any(one is t for t in seen):
                one.mul_(2)
        (found,) = torch.autograd.grad(y.sum(), given[i])
        (wanted,) = torch.autograd.grad(F.linear(x, weight, bias).sum(), (x, weight, bias)[i])
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-3)


@BY_ONEDNN
def test_a_mode_around_the_backward_alone_sees_the_products() -> None:
    counts = []
    for function in (linear, F.linear):
        y = function(*make(512)).square().sum()
        with FlopCounterMode(display=False) as counted:
            y.backward()
        counts.append(counted.get_total_flops())
    assert counts[0] == counts[1] > 0


@BY_ONEDNN
def test_the_library_is_tried_whatever_the_defaults() -> None:
    cpu.library_reason.cache_clear()
    torch.set_default_dtype(torch.float64)
    try:
        assert cpu.library_reason() is None
    finally:
        torch.set_default_dtype(torch.float32)
        cpu.library_reason.cache_clear()
    x, weight, bias = make(512)
    with torch.device("meta"):
        assert linear(x, weight, bias).device.type == "cpu"
    cpu.library_reason.cache_clear()


def test_a_forward_put_into_torchs_class_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = nn.Linear(192, 160), torch.randn(512, 192)
    monkeypatch.setattr(nn.Linear, "forward", lambda self, x: x.sum() + self.bias)
    assert torch.equal(mapped(layer, x), x.sum() + layer.bias)
