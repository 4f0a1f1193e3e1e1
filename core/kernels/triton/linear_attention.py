"""Linear attention with no decay or one a head, by Triton: a differentiable operator, also SSD's engine."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from longseq.core.kernels.triton._plan import Gates, Plan, apply, gradients, hand_on, local_states
from longseq.core.kernels.triton.common import choose_tile, plain, rows
from longseq.core.ops import _native


def _plan(q: Tensor, k: Tensor, v: Tensor, chunk_size: int) -> Plan:
    batch, length, heads, value = v.shape
    tile = choose_tile(length, chunk_size, q.shape[3], value, q, k, v)
    return Plan(tile, batch, length, q.shape[2], heads, q.shape[3], value)


@torch.library.custom_op("longseq::triton_linear_attention", mutates_args=())
def _attend(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, weight: Tensor | None, skip: Tensor | None,
    initial_state: Tensor | None, scale: float, chunk_size: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    q, k, v = rows(q), rows(k), rows(v)
    plan = _plan(q, k, v, chunk_size)
    gates = Gates(plain(log_decay), plain(weight))
    states, totals, _ = local_states(plan, gates, scale, k, v, False, False)
    last, _ = hand_on(plan, states, plain(initial_state), totals)
    out = v.new_empty(v.shape)
    apply(plan, gates, scale, (q, k, v), states, out, skip=plain(skip))
    return out, last


@_attend.register_fake
def _attend_fake(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, weight: Tensor | None, skip: Tensor | None,
    initial_state: Tensor | None, scale: float, chunk_size: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    batch, _, heads, value = v.shape
    return v.new_empty(v.shape), v.new_empty((batch, heads, q.shape[3], value), dtype=torch.float32)


@torch.library.custom_op("longseq::triton_linear_attention_backward", mutates_args=())
def _attend_backward(
    do: Tensor, dlast: Tensor | None, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None,
    weight: Tensor | None, skip: Tensor | None, initial_state: Tensor | None, scale: float, chunk_size: int,
    of_gates: bool,
) -> list[Tensor]:  # fmt: skip
    do, q, k, v = rows(do), rows(q), rows(k), rows(v)
    gates = Gates(plain(log_decay), plain(weight))
    found = gradients(
        _plan(q, k, v, chunk_size), gates, scale, q, k, v, do, (plain(initial_state), None),
        (plain(dlast), None), plain(skip), of_gates,
    )  # fmt: skip
    dskip = None if skip is None else (do.float() * v.float()).sum((0, 1)).to(skip.dtype)
    dinitial = None if initial_state is None else found.state.to(initial_state.dtype)
    return [
        v.new_empty((0,)) if t is None else t
        for t in (found.q, found.k, found.v, found.log_decay, found.weight, dskip, dinitial)
    ]


@_attend_backward.register_fake
def _attend_backward_fake(
    do: Tensor, dlast: Tensor | None, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None,
    weight: Tensor | None, skip: Tensor | None, initial_state: Tensor | None, scale: float, chunk_size: int,
    of_gates: bool,
) -> list[Tensor]:  # fmt: skip
    gates = (log_decay, weight) if of_gates else (None, None)
    return [
        v.new_empty((0,)) if t is None else t.new_empty(t.shape)
        for t in (q, k, v, *gates, skip, initial_state)
    ]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.scale, ctx.chunk_size = inputs
    ctx.save_for_backward(*tensors)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, do: Tensor | None, dlast: Tensor | None) -> tuple[Any, ...]:
    v = ctx.saved_tensors[2]
    of_gates = ctx.needs_input_grad[3] or ctx.needs_input_grad[4]
    grads = _call_backward(
        torch.zeros_like(v) if do is None else do,
        dlast,
        *ctx.saved_tensors,
        ctx.scale,
        ctx.chunk_size,
        of_gates,
    )
    return (*(g if needed else None for g, needed in zip(grads, ctx.needs_input_grad)), None, None)


_attend.register_autograd(_backward, setup_context=_setup)


def _vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> Any:
    return _native.vmap_fold(_call, (0, 1, 2, 3, 4, 6), info, in_dims, args), (0, 0)


def _backward_vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> Any:
    # The gradient of skip differs between vmapped samples, which therefore run one by one.
    return _native.vmap_loop(_call_backward, info, in_dims, args), (0,) * 7


_call_backward = _native.transformable(_attend_backward, _backward_vmap)
_call = _native.transformable(_attend, _vmap, _setup, _backward)


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
        chunk_size: positions a chunk asked for; changes speed only.
        weight: b (B, L, H); None for ones.
        skip: (H, V) or None.

    Returns:
        The output (B, L, H, V) in v's dtype and the final state (B, H, K, V), float32.
    """
    decay = None if log_decay is None else log_decay.float()
    factor = None if weight is None else weight.float()
    state = None if initial_state is None else initial_state.float()
    return _call(q, k, v, decay, factor, skip, state, float(scale), chunk_size)
