"""Linear attention with a decay per key channel (GLA), by Triton: a differentiable operator."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from longseq.core.kernels.custom_op import define
from longseq.core.kernels.triton import gla_chunks as kernels
from longseq.core.kernels.triton._plan import Gates, Plan, apply, hand_on, local_states
from longseq.core.kernels.triton.common import choose_tile, launch, padded, plain, rows, strides

_SUB_BLOCK = (
    16  # positions on the diagonal that are taken one by one; the least a matrix product takes
)


def _plan(q: Tensor, k: Tensor, v: Tensor, chunk_size: int) -> Plan:
    batch, length, heads, value = v.shape
    tile = choose_tile(length, chunk_size, q.shape[3], value, q, k, v)
    return Plan(tile, batch, length, q.shape[2], heads, q.shape[3], value)


def _decayed(plan: Plan, q: Tensor, k: Tensor, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns queries decayed from the chunk's start, keys decayed to its end, and its total (B, G,
    C, K)."""
    block = min(64, padded(plan.key))
    far_q, far_k = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k))
    totals = g.new_empty((plan.batch, plan.groups, plan.chunks, plan.key))
    launch(
        kernels.decay_rows,
        plan.batch * plan.groups * plan.chunks * -(-plan.key // block),
        q,
        k,
        g,
        far_q,
        far_k,
        totals,
        plan.length,
        plan.chunks,
        plan.groups,
        plan.key,
        *strides(q),
        *strides(k),
        T=plan.tile.chunk,
        BK=block,
        num_warps=4,
        num_stages=1,
    )
    return far_q, far_k, totals


def _scores(plan: Plan, q: Tensor, k: Tensor, g: Tensor, scale: float) -> Tensor:
    """Returns the scores inside the chunks (B, G, C, T, T), zero above the diagonal."""
    chunk = plan.tile.chunk
    scores = g.new_zeros((plan.batch, plan.groups, plan.chunks, chunk, chunk))
    launch(
        kernels.channel_scores,
        plan.batch * plan.groups * plan.chunks * (chunk // _SUB_BLOCK),
        q,
        k,
        g,
        scores,
        scale,
        plan.length,
        plan.chunks,
        plan.groups,
        plan.key,
        *strides(q),
        *strides(k),
        BC=_SUB_BLOCK,
        BK=padded(plan.key),
        **plan.tile.launch(),
    )
    return scores


class _Inputs(NamedTuple):
    q: Tensor
    k: Tensor
    v: Tensor
    log_decay: Tensor
    initial_state: Tensor | None
    scale: float
    chunk_size: int


class _Incoming(NamedTuple):
    do: Tensor
    dlast: Tensor | None


def _forward(x: _Inputs) -> tuple[Tensor, Tensor]:
    q, k, v, log_decay, initial_state, scale, chunk_size = x
    q, k, v, g = rows(q), rows(k), rows(v), log_decay.contiguous()
    plan = _plan(q, k, v, chunk_size)
    far_q, far_k, totals = _decayed(plan, q, k, g)
    states, _, _ = local_states(plan, Gates(), scale, far_k, v, False, False)
    last, _ = hand_on(plan, states, plain(initial_state), totals, per_key=True)
    out = v.new_empty(v.shape)
    scores = _scores(plan, q, k, g, scale)
    apply(plan, Gates(), scale, (far_q, None, v), states, out, mode=1, scores=scores)
    return out, last


def _outputs(x: _Inputs) -> tuple[Tensor, Tensor]:
    batch, _, heads, value = x.v.shape
    last = x.v.new_empty((batch, heads, x.q.shape[3], value), dtype=torch.float32)
    return x.v.new_empty(x.v.shape), last


def _backward_kernels(into: _Incoming, x: _Inputs) -> list[Tensor]:
    do, dlast = into
    q, k, v, log_decay, initial_state, scale, chunk_size = x
    do, q, k, v, g = rows(do), rows(q), rows(k), rows(v), log_decay.contiguous()
    plan = _plan(q, k, v, chunk_size)
    chunk = plan.tile.chunk
    none = Gates()
    far_q, far_k, totals = _decayed(plan, q, k, g)
    states, _, _ = local_states(plan, none, scale, far_k, v, False, False)
    hand_on(plan, states, plain(initial_state), totals, per_key=True)
    dstates, _, _ = local_states(plan, none, scale, far_q, do, True, False)
    dinitial, carried = hand_on(plan, dstates, plain(dlast), totals, True, states, per_key=True)
    assert carried is not None
    # Heads that share a key share its decays: (B, H, C, K) → (B, G, C, K).
    carried = carried.unflatten(1, (plan.groups, plan.shared)).sum(2)

    scores = _scores(plan, q, k, g, scale)
    dv = torch.empty_like(v, memory_format=torch.contiguous_format)
    apply(plan, none, scale, (far_k, None, do), dstates, dv, backward=True, mode=1, scores=scores)
    dscores = scores  # the same shape, and no longer needed
    dq_far, dk_far, dq_near, dk_near, difference, dg = (torch.empty_like(g) for _ in range(6))
    apply(
        plan, none, scale, (do, v, None), states, dq_far, over_values=True, mode=2, scores=dscores
    )
    apply(
        plan, none, scale, (v, None, None), dstates, dk_far, over_values=True, backward=True, mode=3
    )
    programs = plan.batch * plan.groups * plan.chunks
    launch(
        kernels.channel_scores_backward,
        programs * (chunk // _SUB_BLOCK),
        q,
        k,
        g,
        dscores,
        dq_near,
        dk_near,
        difference,
        plan.length,
        plan.chunks,
        plan.groups,
        plan.key,
        *strides(q),
        *strides(k),
        BC=_SUB_BLOCK,
        BK=padded(plan.key),
        **plan.tile.launch(),
    )
    dq, dk = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k))
    block = min(64, padded(plan.key))
    launch(
        kernels.finish_gradients,
        programs * -(-plan.key // block),
        q,
        k,
        g,
        dq_far,
        dk_far,
        dq_near,
        dk_near,
        difference,
        carried,
        dq,
        dk,
        dg,
        plan.length,
        plan.chunks,
        plan.groups,
        plan.key,
        *strides(q),
        *strides(k),
        T=chunk,
        BK=block,
        num_warps=4,
        num_stages=1,
    )
    return [
        dq,
        dk,
        dv,
        dg,
        v.new_empty((0,)) if initial_state is None else dinitial.to(initial_state.dtype),
    ]


def _gradients(into: _Incoming, x: _Inputs) -> list[Tensor]:
    return [x.v.new_empty((0,)) if t is None else t.new_empty(t.shape) for t in x[:5]]


def _setup(ctx: Any, output: tuple[Tensor, Tensor], x: _Inputs) -> None:
    *tensors, ctx.scale, ctx.chunk_size = x
    ctx.save_for_backward(*tensors)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, do: Tensor | None, dlast: Tensor | None) -> tuple[Any, ...]:
    saved = ctx.saved_tensors  # once: activation checkpointing recomputes at the first look
    do = torch.zeros_like(saved[2]) if do is None else do
    grads = _attend_backward(do, dlast, *saved, ctx.scale, ctx.chunk_size)
    return (*(g if needed else None for g, needed in zip(grads, ctx.needs_input_grad)), None, None)


_attend_backward = define(
    "longseq::triton_gla_backward",
    (_Incoming, _Inputs),
    None,
    _gradients,
    everywhere=_backward_kernels,
    rows=(*_Incoming._fields, *_Inputs._fields[:5]),
)
_attend = define(
    "longseq::triton_gla",
    (_Inputs,),
    2,
    _outputs,
    everywhere=_forward,
    rows=_Inputs._fields[:5],
    setup=_setup,
    backward=_backward,
)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    scale: float,
    initial_state: Tensor | None,
    chunk_size: int,
) -> tuple[Tensor, Tensor]:
    """Runs S_t = diag(exp g_t) S_{t-1} + k_t v_tᵀ, o_t = scale · S_tᵀ q_t.

    Args:
        q: queries (B, L, G, K); bfloat16, float16 or float32, as k and v.
        k: keys (B, L, G, K).
        v: values (B, L, H, V), H a multiple of G.
        log_decay: g (B, L, G, K), -inf at resets.
        scale: factor of the scores.
        initial_state: (B, H, K, V) or None.
        chunk_size: positions per chunk asked for; changes speed only.

    Returns:
        The output (B, L, H, V) in v's dtype and the final state (B, H, K, V), float32.
    """
    state = None if initial_state is None else initial_state.float()
    return _attend(q, k, v, log_decay.float(), state, float(scale), chunk_size)
