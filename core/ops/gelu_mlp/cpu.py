"""The position-wise network with its gradients on the CPU: products by ``linear``, the GELU by the
compiled kernels, and no more kept or written than they need."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from longseq.core.kernels.custom_op import gradients_of, learnt
from longseq.core.ops import cpu_calls
from longseq.core.ops.gelu import cpu as gelu
from longseq.core.ops.gelu.arguments import Arguments as GeluArguments
from longseq.core.ops.gelu_mlp.arguments import Arguments
from longseq.core.ops.gelu_mlp.composed import gelu_mlp_reference
from longseq.core.ops.linear import linear, weight_gradient


def reason(call: Arguments) -> str | None:
    """Returns why it is left to one operator after another, or None if it is not."""
    if torch.compiler.is_compiling():
        return "a compiler joins torch's own operations with what is around them"
    dtype = call.x.dtype
    if dtype not in (torch.float32, torch.float64) or any(one.dtype != dtype for one in call):
        return "it takes float32 or float64, and weights of the same"
    why = cpu_calls.direct_reason(*call, but_autograd=True)
    if why is not None:
        return why
    return None if call.x.numel() and call.bias1.numel() else "there is nothing to compute"


def run(call: Arguments) -> Tensor:
    """Returns the network's values (..., N)."""
    if learnt(call):
        y: Tensor = _Learnt.apply(*call)
        return y
    hidden = linear(call.x, call.weight1)
    return linear(_activated(hidden, call.bias1, hidden), call.weight2, call.bias2)


def _activated(hidden: Tensor, bias: Tensor, into: Tensor) -> Tensor:
    """Returns the GELU of hidden values and bias, which fills ``into``, dense as they are."""
    gelu.forward(into, GeluArguments(hidden.view(-1, hidden.shape[-1]), bias))
    return into


class _Learnt(torch.autograd.Function):
    """The network with its gradients; second derivatives are those of torch's operations."""

    @staticmethod
    def forward(ctx: Any, *given: Tensor) -> Tensor:
        x, weight1, bias1, weight2, bias2 = given
        hidden = linear(x, weight1)
        ctx.save_for_backward(*given[:4], hidden)  # no gradient depends on the last bias
        activated = torch.empty_like(hidden)
        cpu_calls.fresh(activated)
        y = linear(_activated(hidden, bias1, activated), weight2, bias2)
        # Of a function that returns a view, autograd lets nobody change the values in place.
        return y.detach() if y._is_view() else y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (dy,) = grads
        *given, hidden = ctx.saved_tensors
        # A transform or mode may be around the backward alone.
        if torch.is_grad_enabled() or cpu_calls.direct_reason(dy, *given) is not None:
            given.append(given[3].new_zeros(dy.shape[-1]))
            found = gradients_of(gelu_mlp_reference, given, [dy])
            return tuple(one if wants else None for one, wants in zip(found, ctx.needs_input_grad))
        x, weight1, bias1, weight2 = given
        wants_x, wants_1, wants_bias1, wants_2, wants_bias2 = ctx.needs_input_grad
        rows = dy.reshape(-1, dy.shape[-1])
        flat = GeluArguments(hidden.view(-1, hidden.shape[-1]), bias1)
        dx = dweight1 = dbias1 = dweight2 = activated = None
        if wants_2:
            activated = torch.empty_like(flat.x)
            cpu_calls.fresh(activated)
        if wants_x or wants_1 or wants_bias1:
            inner = linear(rows, weight2.T)  # nobody else's: its place is free for what follows
            dbias1 = torch.empty_like(bias1)
            gelu.backward(inner, dbias1, inner, flat, activated)
            dx = linear(inner, weight1.T).view(x.shape) if wants_x else None
            dweight1 = weight_gradient(inner, x) if wants_1 else None
        elif activated is not None:
            _activated(flat.x, bias1, activated)
        if activated is not None:
            dweight2 = weight_gradient(rows, activated)
        dbias2 = rows.sum(0) if wants_bias2 else None
        return dx, dweight1, dbias1 if wants_bias1 else None, dweight2, dbias2
