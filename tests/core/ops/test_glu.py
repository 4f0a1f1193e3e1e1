"""biased_glu against torch's: values, gradients, sizes, transforms; and the maps that leave it
their bias."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from longseq.core.errors import ArgumentError
from longseq.core.mixers._linear import LinearGLU, mix_gelu
from longseq.core.ops.glu import biased_glu, biased_glu_reference
from longseq.core.ops.linear_maps import split_bias


def make(*shape: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    g = torch.Generator().manual_seed(sum(shape))
    draws = (torch.randn(*s, generator=g, dtype=torch.float64) for s in (shape, shape[-1:]))
    return [t.to(dtype).requires_grad_() for t in draws]


def compare(values: list[Tensor], bound: float) -> None:
    found, wanted = biased_glu(*values), biased_glu_reference(*values)
    assert found.dtype == wanted.dtype
    torch.testing.assert_close(found, wanted, rtol=bound, atol=bound)
    weights = torch.linspace(0, 9, found.numel(), dtype=found.dtype).sin().view_as(found)
    for a, e in zip(*(torch.autograd.grad((y * weights).sum(), values) for y in (found, wanted))):
        torch.testing.assert_close(a, e, rtol=bound, atol=bound * max(1.0, e.abs().max().item()))


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-6), (torch.float64, 1e-13)])
@pytest.mark.parametrize("shape", [(2,), (1, 2), (3, 7, 6), (129, 34), (2, 300, 70)])
def test_equals_torch(shape: tuple[int, ...], dtype: torch.dtype, bound: float) -> None:
    compare(make(*shape, dtype=dtype), bound)
    x, _ = make(*shape, dtype=dtype)
    compare([x], bound)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 300), st.integers(1, 40))
def test_any_sizes(rows: int, width: int) -> None:
    compare(make(rows, 2 * width), 1e-13)


def test_no_rows_half_precision_and_other_strides() -> None:
    assert biased_glu(torch.zeros(0, 6), torch.zeros(6)).shape == (0, 3)
    compare(make(5, 6, dtype=torch.bfloat16), 1e-6)  # torch's own
    x, _ = make(6, 5)
    compare(
        [x.detach().T.requires_grad_(), torch.zeros(6, dtype=torch.float64, requires_grad=True)],
        1e-13,
    )


def test_large_values_stay_finite() -> None:
    x = torch.tensor([[3.0, -2.0, 1e4, -1e4]], requires_grad=True)
    y = biased_glu(x)
    assert torch.equal(y, torch.tensor([[3.0, 0.0]]))
    assert torch.autograd.grad(y.sum(), x)[0].isfinite().all()


def test_gradients_of_the_gradients_transforms_and_compilation() -> None:
    x, bias = make(4, 6)
    assert torch.autograd.gradcheck(biased_glu, (x, bias))
    assert torch.autograd.gradgradcheck(biased_glu, (x, bias))
    rows = torch.stack([x, -x])
    wanted = torch.stack([biased_glu(row, bias) for row in rows])
    torch.testing.assert_close(torch.func.vmap(biased_glu, (0, None))(rows, bias), wanted)
    found = torch.func.vmap(
        torch.func.grad(lambda r, b: biased_glu(r, b).square().sum(), 1), (0, None)
    )
    each = [torch.autograd.grad(biased_glu(row, bias).square().sum(), bias)[0] for row in rows]
    torch.testing.assert_close(found(rows, bias), torch.stack(each))
    y = torch.compile(biased_glu, fullgraph=True, backend="aot_eager")(x, bias)
    torch.testing.assert_close(y, biased_glu(x, bias))


def test_names_the_argument_that_does_not_fit() -> None:
    with pytest.raises(ArgumentError, match=r"x must be \(\.\.\., 2W\)"):
        biased_glu(torch.zeros(2, 3))
    with pytest.raises(ArgumentError, match=r"bias must be \(4,\)"):
        biased_glu(torch.zeros(2, 4), torch.zeros(2))


def test_a_map_leaves_its_bias_only_where_that_is_the_same() -> None:
    x = torch.randn(3, 5)
    linear = nn.Linear(5, 8)
    projected, bias = split_bias(linear, x)
    assert bias is linear.bias
    torch.testing.assert_close(projected + bias, linear(x))
    hooked = copy.deepcopy(linear)
    seen: list[Tensor] = []
    hooked.register_forward_hook(lambda module, args, y: seen.append(y))
    assert split_bias(hooked, x)[1] is None
    assert len(seen) == 1
    assert split_bias(nn.Sequential(linear), x)[1] is None
    assert split_bias(linear.bfloat16(), x.bfloat16())[1] is None
    with torch.autocast("cpu"):
        assert split_bias(nn.Linear(5, 8), x)[1] is None


def test_the_layer_is_a_sequence_of_the_two() -> None:
    layer, x = LinearGLU(5, 4), torch.randn(2, 3, 5)
    assert list(layer.state_dict()) == ["0.weight", "0.bias"]
    torch.testing.assert_close(layer(x), nn.functional.glu(layer[0](x)))


@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_the_activation_before_the_layer(rate: float) -> None:
    layer, dropout = LinearGLU(5, 4).double(), nn.Dropout(rate)
    x = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    leaves = [x, *layer.parameters()]

    def plain(x: Tensor) -> Tensor:
        return nn.functional.glu(layer[0](dropout(nn.functional.gelu(x))))

    runs = []
    for call in (lambda x: mix_gelu(layer, dropout, x), plain):
        torch.manual_seed(0)
        y = call(x)
        runs.append((y, *torch.autograd.grad(y.sin().sum(), leaves)))
    torch.testing.assert_close(runs[0], runs[1])
    dropout.eval()
    assert torch.autograd.gradcheck(lambda x: mix_gelu(layer, dropout, x), x)
    assert torch.autograd.gradgradcheck(lambda x: mix_gelu(layer, dropout, x), x)
    rows = torch.stack([x, -x]).detach()
    torch.testing.assert_close(
        torch.func.vmap(lambda r: mix_gelu(layer, dropout, r))(rows), plain(rows)
    )


def test_the_activation_is_not_kept() -> None:
    layer, x = LinearGLU(5, 4), torch.randn(7, 5, requires_grad=True)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        mix_gelu(layer, nn.Dropout(0.0), x)
    assert [t.data_ptr() for t in kept if t.shape == x.shape] == [x.data_ptr()]
