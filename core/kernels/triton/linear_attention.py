"""Linear attention with no decay or one per head, by Triton: a differentiable operator, also SSD's
engine."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from longseq.core.kernels.custom_op import define
from longseq.core.kernels.triton._plan import Gates, Plan, apply, gradients, hand_on, local_states
from longseq.core.kernels.triton.common import choose_tile, plain, rows


def _plan(q: Tensor, k: Tensor, v: Tensor, chunk_size: int) -> Plan:
    batch, length, heads, value = v.shape
    tile = choose_tile(length, chunk_size, q.shape[3], value, q, k, v)
    return Plan(tile, batch, length, q.shape[2], heads, q.shape[3], value)


class _Inputs(NamedTuple):
    q: Tensor
    k: Tensor
    v: Tensor
    log_decay: Tensor | None
    weight: Tensor | None
    skip: Tensor | None
    initial_state: Tensor | None
    scale: float
    chunk_size: int


class _Incoming(NamedTuple):
    do: Tensor
    dlast: Tensor | None


class _Wanted(NamedTuple):
    of_gates: bool


def _forward(x: _Inputs) -> tuple[Tensor, Tensor]:
    q, k, v, log_decay, weight, skip, initial_state, scale, chunk_size = x
    q, k, v = rows(q), rows(k), rows(v)
    plan = _plan(q, k, v, chunk_size)
    gates = Gates(plain(log_decay), plain(weight))
    states, totals, _ = local_states(plan, gates, scale, k, v, False, False)
    last, _ = hand_on(plan, states, plain(initial_state), totals)
    out = v.new_empty(v.shape)
    apply(plan, gates, scale, (q, k, v), states, out, skip=plain(skip))
    return out, last


def _outputs(x: _Inputs) -> tuple[Tensor, Tensor]:
    batch, _, heads, value = x.v.shape
    last = x.v.new_empty((batch, heads, x.q.shape[3], value), dtype=torch.float32)
    return x.v.new_empty(x.v.shape), last


def _backward_kernels(into: _Incoming, x: _Inputs, wanted: _Wanted) -> list[Tensor]:
    (do, dlast), (of_gates,) = into, wanted
    q, k, v, log_decay, weight, skip, initial_state, scale, chunk_size = x
    do, q, k, v = rows(do), rows(q), rows(k), rows(v)
    gates = Gates(plain(log_decay), plain(weight))
    plan, first, last = (
        _plan(q, k, v, chunk_size),
        (plain(initial_state), None),
        (plain(dlast), None),
    )
    found = gradients(plan, gates, scale, q, k, v, do, first, last, plain(skip), of_gates)
    dskip = None if skip is None else (do.float() * v.float()).sum((0, 1)).to(skip.dtype)
    dinitial = None if initial_state is None else found.state.to(initial_state.dtype)
    return [
        v.new_empty((0,)) if t is None else t
        for t in (found.q, found.k, found.v, found.log_decay, found.weight, dskip, dinitial)
    ]


def _gradients(into: _Incoming, x: _Inputs, wanted: _Wanted) -> list[Tensor]:
    gates = x[3:5] if wanted.of_gates else (None, None)
    return [
        x.v.new_empty((0,)) if t is None else t.new_empty(t.shape)
        for t in (*x[:3], *gates, x.skip, x.initial_state)
    ]


def _setup(ctx: Any, output: tuple[Tensor, Tensor], x: _Inputs) -> None:
    *tensors, ctx.scale, ctx.chunk_size = x
    ctx.save_for_backward(*tensors)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, do: Tensor | None, dlast: Tensor | None) -> tuple[Any, ...]:
    saved = ctx.saved_tensors  # once: activation checkpointing recomputes at the first look
    of_gates = ctx.needs_input_grad[3] or ctx.needs_input_grad[4]
    grads = _attend_backward(
        torch.zeros_like(saved[2]) if do is None else do,
        dlast,
        *saved,
        ctx.scale,
        ctx.chunk_size,
        of_gates,
    )
    return (*(g if needed else None for g, needed in zip(grads, ctx.needs_input_grad)), None, None)


# The gradient of skip differs between vmapped samples, which therefore run one by one.
_attend_backward = define(
    "longseq::triton_linear_attention_backward",
    (_Incoming, _Inputs, _Wanted),
    None,
    _gradients,
    everywhere=_backward_kernels,
)
_attend = define(
    "longseq::triton_linear_attention",
    (_Inputs,),
    2,
    _outputs,
    everywhere=_forward,
    rows=("q", "k", "v", "log_decay", "weight", "initial_state"),
    setup=_setup,
    backward=_backward,
)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    scale: float,
    initial_state: Tensor | None,
    chunk_size: int,
    weight: Tensor | None = None,
    skip: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Runs S_t = exp(g_t) S_{t-1} + b_t k_t v_tᵀ, o_t = scale · S_tᵀ q_t + skip ∘ v_t.

    Args:
        q: queries (B, L, G, K); bfloat16, float16 or float32, as k and v.
        k: keys (B, L, G, K).
        v: values (B, L, H, V), H a multiple of G.
        log_decay: g (B, L, H), -inf at resets; None for no decay.
        scale: factor of the scores.
        initial_state: (B, H, K, V) or None.
        chunk_size: positions per chunk asked for; changes speed only.
        weight: b (B, L, H); None for ones.
        skip: (H, V) or None.

    Returns:
        The output (B, L, H, V) in v's dtype and the final state (B, H, K, V), float32.
    """
    decay = None if log_decay is None else log_decay.float()
    factor = None if weight is None else weight.float()
    state = None if initial_state is None else initial_state.float()
    return _attend(q, k, v, decay, factor, skip, state, float(scale), chunk_size)
