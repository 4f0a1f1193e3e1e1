"""The mLSTM by Triton: linear attention in units of exp(m), m the running maximum of the
exponents."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from longseq.core.kernels.custom_op import define
from longseq.core.kernels.triton._plan import (
    Gates,
    Normaliser,
    Plan,
    apply,
    gradients,
    hand_on,
    local_states,
)
from longseq.core.kernels.triton.common import choose_tile, launch, padded, plain, rows

_BLOCK = 1024  # positions that a program of the two scans takes at a time; not measured
_MAX_FLOOR_EXPONENT = 60.0


@triton.jit
def _later(decay, most, next_decay, next_most):
    """Joins two spans of m_t = max(F_t + m_{t-1}, i_t)."""
    return decay + next_decay, tl.maximum(most + next_decay, next_most)


@triton.jit
def running_maximum(log_f, gate, first, out, length, heads, BLOCK: tl.constexpr):
    """Computes m_t = max(F_t + m_{t-1}, i_t) for a head, (B, L, H)."""
    pid = tl.program_id(0)
    at = (pid // heads).to(tl.int64) * length * heads + pid % heads
    m = tl.full((), float("-inf"), dtype=tl.float32)
    if first is not None:
        m = tl.load(first + pid)
    offsets = tl.arange(0, BLOCK)
    for start in range(0, length, BLOCK):
        place = at + (start + offsets).to(tl.int64) * heads
        valid = start + offsets < length
        f = tl.load(log_f + place, mask=valid, other=0.0)
        i = tl.load(gate + place, mask=valid, other=float("-inf"))
        through, most = tl.associative_scan((f, i), 0, _later)
        block = tl.maximum(through + m, most)
        tl.store(out + place, block, mask=valid)
        m = tl.max(tl.where(offsets == BLOCK - 1, block, float("-inf")), 0)


@triton.jit
def _earlier(keep, total, next_keep, next_total):
    """Joins two spans of e_t = d_t + keep_t e_{t+1}, the first being the later in time."""
    return keep * next_keep, next_keep * total + next_total


@triton.jit
def collect_backwards(d, stay, out, length, heads, BLOCK: tl.constexpr):
    """Computes e_t = d_t + stay_{t+1} e_{t+1} for a head, (B, L, H), from the end."""
    pid = tl.program_id(0)
    at = (pid // heads).to(tl.int64) * length * heads + pid % heads
    e = tl.full((), 0.0, dtype=tl.float32)
    offsets = tl.arange(0, BLOCK)
    for start in range(0, length, BLOCK):
        t = length - 1 - start - offsets
        place = at + t.to(tl.int64) * heads
        value = tl.load(d + place, mask=t >= 0, other=0.0)
        keep = tl.load(stay + place + heads, mask=(t >= 0) & (t + 1 < length), other=0.0)
        kept, total = tl.associative_scan((keep, value), 0, _earlier)
        block = total + kept * e
        tl.store(out + place, block, mask=t >= 0)
        e = tl.sum(tl.where(offsets == BLOCK - 1, block, 0.0), 0)


def _scan_block(length: int) -> int:
    return min(_BLOCK, padded(length))


def _gates(
    key: int, i: Tensor, log_f: Tensor, m: Tensor, first: Tensor | None
) -> tuple[Gates, Tensor]:
    """Returns the recurrence in units of exp(m), and where m_t comes from m_{t-1} (1.0) or from i_t
    (0.0).

    C_t = exp(F_t + m_{t-1} - m_t) C_{t-1} + exp(i_t - m_t) k_t v_tᵀ; both exponents are ≤ 0.
    """
    start = torch.full_like(m[:, :1], -torch.inf) if first is None else first.unsqueeze(1)
    before = torch.cat([start, m[:, :-1]], 1)
    unit = m.clamp_min(-1e30)
    # The difference of two neighbouring m first: it is nearly exact, so that no error of m piles
    # up.
    log_decay = log_f + (before.clamp_min(-1e30) - unit)
    log_decay = log_decay.masked_fill(before == -torch.inf, -torch.inf)
    weight = torch.exp(i - unit) * key**-0.5
    return Gates(log_decay.contiguous(), weight.contiguous()), (log_f + before >= i).float()


def _plan(q: Tensor, k: Tensor, v: Tensor, chunk_size: int) -> Plan:
    batch, length, heads, value = v.shape
    tile = choose_tile(length, chunk_size, q.shape[3], value, q, k, v)
    return Plan(tile, batch, length, heads, heads, q.shape[3], value)


class _Inputs(NamedTuple):
    q: Tensor
    k: Tensor
    v: Tensor
    i: Tensor
    log_f: Tensor
    c: Tensor | None
    n: Tensor | None
    m: Tensor | None


class _Options(NamedTuple):
    chunk_size: int
    eps: float


class _Incoming(NamedTuple):
    dh: Tensor
    dc: Tensor | None
    dn: Tensor | None
    dm: Tensor | None


class _Kept(NamedTuple):
    h: Tensor
    last_c: Tensor
    last_n: Tensor
    stabiliser: Tensor
    product: Tensor
    row: Tensor


def _forward_kernels(x: _Inputs, options: _Options) -> tuple[Tensor, ...]:
    (q, k, v, i, log_f, c, n, m), (chunk_size, eps) = x, options
    q, k, v = rows(q), rows(k), rows(v)
    i, log_f, first = i.contiguous(), log_f.contiguous(), plain(m)
    plan = _plan(q, k, v, chunk_size)
    stabiliser = torch.empty_like(i)
    launch(
        running_maximum,
        plan.batch * plan.heads,
        log_f,
        i,
        first,
        stabiliser,
        plan.length,
        plan.heads,
        BLOCK=_scan_block(plan.length),
    )
    gates, _ = _gates(plan.key, i, log_f, stabiliser, first)
    states, totals, columns = local_states(plan, gates, 1.0, k, v, False, True)
    assert columns is not None
    last_c, _ = hand_on(plan, states, plain(c), totals)
    last_n, _ = hand_on(plan, columns, plain(n), totals)
    out = v.new_empty(v.shape)
    divisor = Normaliser(stabiliser, columns, eps)
    product, row = apply(plan, gates, 1.0, (q, k, v), states, out, normaliser=divisor)
    assert product is not None and row is not None
    return out, last_c, last_n, stabiliser[:, -1].clone(), stabiliser, product, row


def _outputs(x: _Inputs, options: _Options) -> tuple[Tensor, ...]:
    q, _, v, *_ = x
    batch, length, heads, value = v.shape
    key = q.shape[3]
    shapes = (
        (batch, heads, key, value),
        (batch, heads, key),
        (batch, heads),
        *[(batch, length, heads)] * 3,
    )
    last_c, last_n, last_m, stabiliser, product, row = (
        v.new_empty(s, dtype=torch.float32) for s in shapes
    )
    return v.new_empty(v.shape), last_c, last_n, last_m, stabiliser, product, row


def _backward_kernels(into: _Incoming, x: _Inputs, kept: _Kept, options: _Options) -> list[Tensor]:
    (dh, dc, dn, dm), (q, k, v, i, log_f, c, n, m), (chunk_size, eps) = into, x, options
    h, last_c, last_n, stabiliser, product, row = kept
    dh, q, k, v = rows(dh), rows(q), rows(k), rows(v)
    first = plain(m)
    plan = _plan(q, k, v, chunk_size)
    gates, stay = _gates(plan.key, i, log_f, stabiliser, first)
    # h = y / (max(|p|, exp(-m)) + eps), p = nᵀq: the gradient of p, and that of m with y and p held
    # in units of exp(m), where all of it but eps (and the cut of the exponent) cancels.
    projection = (dh.float() * h.float()).sum(-1)
    floor = torch.exp((-stabiliser).clamp_max(_MAX_FLOOR_EXPONENT))
    active = product.abs() > floor
    column = torch.where(active, -projection * product.sign(), 0.0)
    moving = active | (-stabiliser < _MAX_FLOOR_EXPONENT)
    dstabiliser = -projection * torch.where(moving, eps * row, 1.0)
    for state, gradient in ((last_c, dc), (last_n, dn)):
        if gradient is not None:
            dstabiliser[:, -1] -= (state * gradient).flatten(2).sum(-1)
    if dm is not None:
        dstabiliser[:, -1] += dm
    collected = torch.empty_like(dstabiliser)
    launch(
        collect_backwards,
        plan.batch * plan.heads,
        dstabiliser,
        stay,
        collected,
        plan.length,
        plan.heads,
        BLOCK=_scan_block(plan.length),
    )

    found = gradients(
        plan,
        Gates(gates.log_decay, gates.weight, row, column.contiguous()),
        1.0,
        q,
        k,
        v,
        dh,
        (plain(c), plain(n)),
        (plain(dc), plain(dn)),
        None,
        True,
    )
    assert found.log_decay is not None and found.weight is not None and found.column is not None
    assert gates.weight is not None
    from_earlier = stay * collected
    di = found.weight * gates.weight + (collected - from_earlier)
    dlog_f = found.log_decay + from_earlier
    # m before position 0 stands in the first exponent only.
    dfirst = dlog_f[:, 0].clone()
    absent = v.new_empty((0,))
    initial = [
        absent.clone() if given is None else gradient.to(given.dtype)
        for given, gradient in ((c, found.state), (n, found.column), (m, dfirst))
    ]
    return [found.q, found.k, found.v, di, dlog_f, *initial]


def _gradients(into: _Incoming, x: _Inputs, kept: _Kept, options: _Options) -> list[Tensor]:
    return [x.v.new_empty((0,)) if t is None else t.new_empty(t.shape) for t in x]


def _setup(ctx: Any, output: tuple[Tensor, ...], x: _Inputs, options: _Options) -> None:
    ctx.options = options
    h, last_c, last_n, _, stabiliser, product, row = output
    ctx.save_for_backward(*x, h, last_c, last_n, stabiliser, product, row)
    ctx.mark_non_differentiable(stabiliser, product, row)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, dh: Tensor | None, *grads: Tensor | None) -> tuple[Any, ...]:
    saved = ctx.saved_tensors  # once: activation checkpointing recomputes at the first look
    dh = torch.zeros_like(saved[2]) if dh is None else dh
    found = _run_backward(dh, *grads[:3], *saved, *ctx.options)
    return (*(g if needed else None for g, needed in zip(found, ctx.needs_input_grad)), None, None)


_run_backward = define(
    "longseq::triton_mlstm_backward",
    (_Incoming, _Inputs, _Kept, _Options),
    None,
    _gradients,
    everywhere=_backward_kernels,
    rows=(*_Incoming._fields, *_Inputs._fields, *_Kept._fields),
)
_run = define(
    "longseq::triton_mlstm",
    (_Inputs, _Options),
    7,
    _outputs,
    everywhere=_forward_kernels,
    rows=_Inputs._fields,
    setup=_setup,
    backward=_backward,
)


def mlstm(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    log_f: Tensor,
    initial_state: tuple[Tensor, Tensor, Tensor] | None,
    chunk_size: int,
    eps: float,
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """Runs the stabilised mLSTM recurrence of ``longseq.core.ops.mlstm``.

    Args:
        q: (B, L, H, K); bfloat16, float16 or float32, as k and v.
        k: (B, L, H, K), not yet scaled.
        v: (B, L, H, V).
        i: input gates before their exponential (B, L, H).
        log_f: log of the forget gates (B, L, H), -inf at resets.
        initial_state: C (B, H, K, V), n (B, H, K), m (B, H); None for the start.
        chunk_size: positions per chunk asked for; changes speed only.
        eps: added to the denominator.

    Returns:
        The output (B, L, H, V) in v's dtype and the final (C, n, m), float32.
    """
    c, n, m = (None, None, None) if initial_state is None else (x.float() for x in initial_state)
    out = _run(q, k, v, i.float(), log_f.float(), c, n, m, chunk_size, float(eps))
    return out[0], (out[1], out[2], out[3])
