"""Derivatives of second order and of forward mode, and gradients of an empty batch, for every
operator with a kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor
from torch.autograd import gradgradcheck

from longseq.core.ops.block_linear import block_linear
from longseq.core.ops.causal_conv1d import causal_conv1d, causal_conv1d_step
from longseq.core.ops.delta_rule import delta_rule
from longseq.core.ops.depthwise_conv2d import depthwise_conv2d
from longseq.core.ops.dplr import dplr
from longseq.core.ops.fft_conv import fft_conv
from longseq.core.ops.gated_conv import gated_conv
from longseq.core.ops.gated_norm import gated_layer_norm, gated_rms_norm
from longseq.core.ops.gelu import biased_gelu
from longseq.core.ops.gelu_mlp import gelu_mlp
from longseq.core.ops.glu import biased_glu
from longseq.core.ops.linear_attention import linear_attention
from longseq.core.ops.linear_scan import linear_scan
from longseq.core.ops.lti import lti_scan
from longseq.core.ops.mlstm import mlstm
from longseq.core.ops.rms_norm import add_rms_norm, rms_norm
from longseq.core.ops.selective_scan import selective_scan
from longseq.core.ops.slstm import SLSTMState, slstm
from longseq.core.ops.ssd import ssd
from longseq.core.ops.two_way_recurrence import two_way_recurrence

L = 5
RESETS = torch.tensor([[False, False, True, False, False]])
Case = Callable[..., Any]


class Operator(NamedTuple):
    """A call as a function of tensors, and their shapes; the batch is called B."""

    call: Case
    shapes: list[tuple[Any, ...]]


def scan(u, delta, A, B, C, D, z, bias, first) -> Any:
    resets = RESETS.expand(len(u), -1)
    options: dict[str, Any] = {"delta_softplus": True, "initial_state": first, "resets": resets}
    return selective_scan(u, delta, -A.exp(), B, C, D, z, bias, **options)


def complex_scan(u, delta, A, B, C) -> Any:
    A, B, C = (torch.complex(*t.unbind(-1)) for t in (A, B, C))
    return selective_scan(u, delta, A - 1.0, B, C, delta_softplus=True)


def recurrent(gates, weights, h, c, n) -> Any:
    state = SLSTMState(h, c, n.exp(), torch.zeros_like(h))
    return slstm(gates, weights, state, RESETS.expand(len(gates), -1))


def memory(q, k, v, i, f, c, n) -> Any:
    first = (c, n, torch.zeros_like(n[..., 0]))
    return mlstm(q, k, v, i, f, first, RESETS.expand(len(q), -1), chunk_size=4)


def duality(x, dt, A, B, C, D, bias, first) -> Any:
    more: dict[str, Any] = {"D": D, "dt_bias": bias, "initial_states": first, "dt_softplus": True}
    return ssd(x, dt, -A.exp(), B, C, 4, resets=RESETS.expand(len(x), -1), **more)


ROWS, HEADS, GATES = ("B", L, 3), ("B", L, 1, 2), ("B", L, 1)
OPERATORS = {
    "selective_scan": Operator(
        scan,
        [ROWS, ROWS, (3, 2), ("B", L, 2), ("B", L, 2), (3,), ROWS, (3,), ("B", 3, 2)],
    ),
    "complex selective_scan": Operator(
        complex_scan, [ROWS, ROWS, (3, 2, 2), ("B", L, 2, 2), ("B", L, 2, 2)]
    ),
    "causal_conv1d": Operator(
        lambda x, w, b, first: causal_conv1d(
            x, w, b, first, RESETS.expand(len(x), -1), activation="silu"
        ),
        [ROWS, (3, 4), (3,), ("B", 3, 3)],
    ),
    "linear_scan": Operator(
        lambda a, b, first: linear_scan(a.sigmoid(), b, first), [ROWS, ROWS, ("B", 3)]
    ),
    "linear_attention": Operator(
        lambda q, k, v, g, first: linear_attention(
            q, k, v, -g.exp(), None, first, RESETS.expand(len(q), -1), 4
        ),
        [HEADS, HEADS, ("B", L, 2, 3), ("B", L, 2), ("B", 2, 2, 3)],
    ),
    "ssd": Operator(
        duality, [("B", L, 2, 2), ("B", L, 2), (2,), HEADS, HEADS, (2,), (2,), ("B", 2, 2, 2)]
    ),
    "mlstm": Operator(memory, [HEADS, HEADS, HEADS, GATES, GATES, ("B", 1, 2, 2), ("B", 1, 2)]),
    "slstm": Operator(recurrent, [("B", L, 4, 1, 2), (1, 8, 2), *[("B", 1, 2)] * 3]),
    "fft_conv": Operator(fft_conv, [ROWS, (3, 4), (3,)]),
    "gated_conv": Operator(gated_conv, [("B", L, 6), (6, 3), (6,), (2, 5), (2,), (6,)]),
    "delta_rule": Operator(
        lambda q, k, v, b: delta_rule(q, k, v, b.sigmoid()), [HEADS, HEADS, HEADS, GATES]
    ),
    "gated delta_rule": Operator(
        lambda q, k, v, b, g, first: delta_rule(
            q, k, v, b.sigmoid(), -g.exp(), None, first, RESETS.expand(len(q), -1), 4
        ),
        [HEADS, HEADS, HEADS, GATES, GATES, ("B", 1, 2, 2)],
    ),
    "delta_rule, a decay per channel": Operator(
        lambda q, k, v, b, g, first: delta_rule(
            q, k, v, b.sigmoid(), -g.exp(), None, first, RESETS.expand(len(q), -1), 4
        ),
        [HEADS, HEADS, HEADS, GATES, HEADS, ("B", 1, 2, 2)],
    ),
    "linear_attention, a decay per channel": Operator(
        lambda q, k, v, g, first: linear_attention(
            q, k, v, -g.exp(), None, first, RESETS.expand(len(q), -1), 4
        ),
        [HEADS, HEADS, ("B", L, 2, 3), HEADS, ("B", 2, 2, 3)],
    ),
    "dplr": Operator(lambda q, k, v, a, b, g: dplr(q, k, v, a, b, -g.exp()), [HEADS] * 6),
    "lti_scan": Operator(
        lambda u, a, b, c: lti_scan(u, a.tanh(), b, c), [("B", L, 2), (2, 3), (2, 3), (2, 3)]
    ),
    "biased_glu": Operator(biased_glu, [("B", L, 6), (6,)]),
    "biased_gelu": Operator(biased_gelu, [("B", L, 6), (6,)]),
    "gelu_mlp": Operator(gelu_mlp, [("B", L, 4), (6, 4), (6,), (3, 6), (3,)]),
    "depthwise_conv2d": Operator(
        lambda x, w, b: depthwise_conv2d(x, w, b, silu=True), [("B", 3, 4, 3), (3, 1, 3, 3), (3,)]
    ),
    "two_way_recurrence": Operator(two_way_recurrence, [("B", L, 6)]),
    "block_linear": Operator(block_linear, [("B", L, 4), (2, 2, 2), (2, 2, 2)]),
    "rms_norm": Operator(rms_norm, [("B", L, 4), (4,)]),
    "add_rms_norm": Operator(add_rms_norm, [("B", L, 4), ("B", L, 4), (4,)]),
    "gated_rms_norm": Operator(gated_rms_norm, [("B", L, 4), ("B", L, 4), (4,)]),
    "gated_layer_norm": Operator(gated_layer_norm, [("B", L, 4)] * 2 + [(4,), ("B", L, 4), (4,)]),
}


def given(operator: Operator, batch: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [[batch if size == "B" else size for size in shape] for shape in operator.shapes]
    return [torch.randn(*s, dtype=torch.float64, generator=generator) for s in shapes]


def results(operator: Operator, arguments: Any) -> tuple[Tensor, ...]:
    """All results in a row."""

    def flat(value: Any) -> list[Tensor]:
        if isinstance(value, Tensor):
            return [torch.stack([value.real, value.imag], -1) if value.is_complex() else value]
        return [one for part in value for one in flat(part)]

    return tuple(flat(operator.call(*arguments)))


@pytest.mark.parametrize("name", [name for name in OPERATORS if name != "slstm"])
def test_second_derivatives(name: str) -> None:
    operator = OPERATORS[name]
    arguments = [t.requires_grad_() for t in given(operator, 1)]
    assert gradgradcheck(lambda *values: results(operator, values), arguments, fast_mode=True)


@pytest.mark.parametrize("name", [name for name in OPERATORS if name != "slstm"])
def test_second_derivatives_of_the_float32_kernels(name: str) -> None:
    """Hessian-vector products, whose first factor is what the float32 kernels compute."""
    operator, found = OPERATORS[name], []
    for dtype in (torch.float32, torch.float64):
        arguments = [t.to(dtype).requires_grad_() for t in given(operator, 2)]
        total = torch.stack([y.sin().sum() for y in results(operator, arguments)]).sum()
        gradients = torch.autograd.grad(total, arguments, create_graph=True)
        along = [t.to(dtype) for t in given(operator, 2, seed=1)]
        slope = torch.stack([(g * v).sum() for g, v in zip(gradients, along)]).sum()
        found.append(torch.autograd.grad(slope, arguments, allow_unused=True))
    for narrow, wide in zip(*found):
        assert (narrow is None) == (wide is None)
        if wide is not None:
            # Some hundred roundings, of terms as large as the largest.
            assert (narrow - wide).abs().max() <= 1e-4 * max(1.0, wide.abs().max().item())


def test_a_second_derivative_that_there_is_not_is_refused_by_name() -> None:
    operator = OPERATORS["slstm"]
    arguments = [t.requires_grad_() for t in given(operator, 1)]
    total = torch.stack([y.sum() for y in results(operator, arguments)]).sum()
    (gradient, *_) = torch.autograd.grad(total, arguments, create_graph=True)
    with pytest.raises(RuntimeError, match="longseq::slstm_backward has no derivative") as caught:
        gradient.sum().backward()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", OPERATORS)
def test_forward_mode(name: str) -> None:
    operator = OPERATORS[name]
    arguments, directions = given(operator, 2), given(operator, 2, seed=1)
    step = 1e-5
    with torch.no_grad():
        up, down = (
            results(operator, [a + sign * step * d for a, d in zip(arguments, directions)])
            for sign in (1, -1)
        )
    numeric = [(one - other) / (2 * step) for one, other in zip(up, down)]
    _, tangents = torch.func.jvp(
        lambda *values: results(operator, values), tuple(arguments), tuple(directions)
    )
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(a, d) for a, d in zip(arguments, directions)]
        of_duals = [forward_ad.unpack_dual(y).tangent for y in results(operator, duals)]
    for tangent, other, expected in zip(tangents, of_duals, numeric):
        # The third derivative times step², and rounding over step.
        torch.testing.assert_close(tangent, expected, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(other, tangent, rtol=1e-12, atol=1e-12)


def test_a_step_past_the_dispatcher_keeps_tangents() -> None:
    x, taps, state = torch.randn(2, 3), torch.randn(3, 4), torch.randn(2, 3, 3)
    with torch.no_grad(), forward_ad.dual_level():
        dual = forward_ad.make_dual(x, torch.ones_like(x))
        y, _ = causal_conv1d_step(dual, taps, None, state)
        tangent = forward_ad.unpack_dual(y).tangent
    torch.testing.assert_close(tangent, taps[:, -1].expand(2, 3))


@pytest.mark.parametrize("name", OPERATORS)
def test_an_empty_batch_has_zero_gradients(name: str) -> None:
    operator = OPERATORS[name]
    arguments = [t.requires_grad_() for t in given(operator, 0)]
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)  # fills memory that nobody wrote to with NaN
    try:
        found = results(operator, arguments)
        gradients = torch.autograd.grad(
            torch.stack([y.sum() for y in found]).sum(), arguments, allow_unused=True
        )
    finally:
        torch.use_deterministic_algorithms(before)
    for argument, gradient in zip(arguments, gradients):
        assert gradient is None or torch.equal(gradient, torch.zeros_like(argument))
