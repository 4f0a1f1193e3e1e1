"""The delta rule with no decay, one per head or one per key channel, by Triton: a differentiable
operator."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from longseq.core.kernels.custom_op import define
from longseq.core.kernels.triton._delta_backward import gradients
from longseq.core.kernels.triton._delta_plan import CHUNK, call_of, forms_of
from longseq.core.kernels.triton._delta_steps import outputs
from longseq.core.kernels.triton.common import plain, rows


class _Inputs(NamedTuple):
    q: Tensor
    k: Tensor
    v: Tensor
    beta: Tensor
    log_decay: Tensor | None
    initial_state: Tensor | None
    scale: float


class _Incoming(NamedTuple):
    do: Tensor
    dlast: Tensor | None


class _Kept(NamedTuple):
    inverse: Tensor


def _forward(x: _Inputs) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v, beta, log_decay, initial_state, scale = x
    call = call_of(rows(q), rows(k), rows(v), beta.contiguous(), plain(log_decay), scale)
    forms = forms_of(call)
    return *outputs(call, forms, plain(initial_state)), forms.inverse


def _outputs(x: _Inputs) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v, *_ = x
    batch, length, heads, value = v.shape
    last = v.new_empty((batch, heads, q.shape[3], value), dtype=torch.float32)
    low = all(x.dtype == torch.bfloat16 for x in (q, k, v)) and not triton.knobs.runtime.interpret
    inverse = v.new_empty(
        (batch, heads, -(-length // CHUNK), CHUNK, CHUNK),
        dtype=torch.bfloat16 if low else torch.float32,
    )
    return v.new_empty(v.shape), last, inverse


def _backward_kernels(into: _Incoming, x: _Inputs, kept: _Kept) -> list[Tensor]:
    (do, dlast), (inverse,) = into, kept
    q, k, v, beta, log_decay, initial_state, scale = x
    call = call_of(rows(q), rows(k), rows(v), beta.contiguous(), plain(log_decay), scale)
    forms = forms_of(call, inverse.contiguous())
    found = gradients(call, forms, rows(do), plain(initial_state), plain(dlast))
    dfirst = None if initial_state is None else found.state.contiguous()
    return [
        v.new_empty((0,)) if t is None else t
        for t in (found.q, found.k, found.v, found.beta, found.log_decay, dfirst)
    ]


def _gradients(into: _Incoming, x: _Inputs, kept: _Kept) -> list[Tensor]:
    return [x.v.new_empty((0,)) if t is None else t.new_empty(t.shape) for t in x[:6]]


def _setup(ctx: Any, output: tuple[Tensor, Tensor, Tensor], x: _Inputs) -> None:
    *tensors, ctx.scale = x
    ctx.save_for_backward(*tensors, output[2])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, do: Tensor | None, dlast: Tensor | None, _: None) -> tuple[Any, ...]:
    # Once: activation checkpointing recomputes at the first look.
    *tensors, inverse = ctx.saved_tensors
    do = torch.zeros_like(tensors[2]) if do is None else do
    grads = _attend_backward(do, dlast, *tensors, ctx.scale, inverse)
    return (*(g if needed else None for g, needed in zip(grads, ctx.needs_input_grad)), None)


_attend_backward = define(
    "longseq::triton_delta_rule_backward",
    (_Incoming, _Inputs, _Kept),
    None,
    _gradients,
    everywhere=_backward_kernels,
    rows=(*_Incoming._fields, *_Inputs._fields[:6], "inverse"),
)
_attend = define(
    "longseq::triton_delta_rule",
    (_Inputs,),
    3,
    _outputs,
    everywhere=_forward,
    rows=_Inputs._fields[:6],
    setup=_setup,
    backward=_backward,
)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor | None,
    scale: float,
    initial_state: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Runs S_t = D_t S_{t-1} + β_t k_t (v_t - (D_t S_{t-1})ᵀ k_t)ᵀ, o_t = scale · S_tᵀ q_t.

    Args:
        q: queries (B, L, G, K); bfloat16, float16 or float32, as k and v.
        k: keys (B, L, G, K).
        v: values (B, L, H, V), H a multiple of G.
        beta: (B, L, H).
        log_decay: (B, L, H) or (B, L, G, K), -inf at resets; None for no decay.
        scale: factor of the output.
        initial_state: (B, H, K, V) or None.

    Returns:
        The output (B, L, H, V) in v's dtype and the final state (B, H, K, V), float32.
    """
    decay = None if log_decay is None else log_decay.float()
    state = None if initial_state is None else initial_state.float()
    out, last, _ = _attend(q, k, v, beta.float(), decay, state, float(scale))
    return out, last
