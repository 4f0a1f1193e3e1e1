"""Triton kernels that hand the delta rule's state on from chunk to chunk, and its gradient back.

Names and layouts as in delta_chunks.py.
"""

from __future__ import annotations

import triton
import triton.language as tl

from longseq.core.kernels.triton.common import decay_sums
from longseq.core.kernels.triton.delta_chunks import load_rows


@triton.jit
def walk(
    k, w, u, first, behind, totals, states, written, last, length, chunks, heads, sk_b, sk_t, sk_h,
    SHARE: tl.constexpr, CHANNEL: tl.constexpr, K: tl.constexpr, V: tl.constexpr,
    T: tl.constexpr, BT: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Hands the state on, a block of its columns a program: writes it before each chunk, U, and the last.

    Rows of a chunk are taken BT at a time. ``behind`` (B, H, C, T) and ``totals`` (B, H, C) are factors;
    CHANNEL: k is decayed to the chunk's end and ``totals`` are log-decays (B, G, C, K).
    """
    tiles: tl.constexpr = (V + BV - 1) // BV
    pid = tl.program_id(0)
    bh = (pid // tiles).to(tl.int64)
    h = bh % heads
    b = bh // heads
    offs_k = tl.arange(0, BK)
    offs_v = (pid % tiles) * BV + tl.arange(0, BV)
    mask_k = offs_k < K
    mask_v = offs_v < V
    inside = offs_k[:, None] * V + offs_v[None, :]
    mask = mask_k[:, None] & mask_v[None, :]
    k += b * sk_b + (h // SHARE) * sk_h
    state = tl.full((BK, BV), 0.0, dtype=tl.float32)
    if first is not None:
        state = tl.load(first + bh * K * V + inside, mask=mask, other=0.0)
    for chunk in range(chunks):
        at = bh * chunks + chunk
        low = state.to(DOT)
        tl.store(states + at * K * V + inside, low.to(states.dtype.element_ty), mask=mask)
        if totals is not None:
            if CHANNEL:
                group = (b * (heads // SHARE) + h // SHARE) * chunks + chunk
                total = tl.load(totals + group * K + offs_k, mask=mask_k, other=0.0)
                state = state * tl.exp(total)[:, None]
            else:
                state = state * tl.load(totals + at)
        for block in tl.static_range(T // BT):
            offs_t = block * BT + tl.arange(0, BT)
            w_tile = tl.load(
                w + at * T * K + offs_t[:, None] * K + offs_k[None, :], mask=mask_k[None, :], other=0.0
            )
            values = at * T * V + offs_t[:, None] * V + offs_v[None, :]
            u_tile = tl.load(u + values, mask=mask_v[None, :], other=0.0)
            start = chunk * T
            k_tile = load_rows(k + start * sk_t, sk_t, start, offs_t, length, offs_k, K)
            new = u_tile.to(tl.float32) - tl.dot(w_tile.to(DOT), low, input_precision=PRECISION)
            tl.store(written + values, new.to(written.dtype.element_ty), mask=mask_v[None, :])
            if totals is not None and not CHANNEL:
                new = new * tl.load(behind + at * T + offs_t)[:, None]
            state = tl.dot(tl.trans(k_tile.to(DOT)), new.to(DOT), acc=state, input_precision=PRECISION)
    tl.store(last + bh * K * V + inside, state, mask=mask)


@triton.jit
def read_gradients(
    q, k, do, log_decay, scores, out, scale, length, chunks, heads,
    sq_b, sq_t, sq_h, sk_b, sk_t, sk_h, sd_b, sd_t, sd_h,
    SHARE: tl.constexpr, K: tl.constexpr, V: tl.constexpr,
    T: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Writes the part of U's gradient that comes from the chunk's own outputs (B, H, C, T, V).

    The scores are computed, or given (B, G, C, T, T).
    """
    at = tl.program_id(0).to(tl.int64)
    chunk = at % chunks
    h = (at // chunks) % heads
    b = at // chunks // heads
    offs_t = tl.arange(0, T)
    start = chunk * T
    valid = start + offs_t < length
    if scores is not None:
        group = (b * (heads // SHARE) + h // SHARE) * chunks + chunk
        matrix = tl.load(scores + group * T * T + offs_t[None, :] * T + offs_t[:, None]).to(tl.float32)
    else:
        q += b * sq_b + start * sq_t + (h // SHARE) * sq_h
        k += b * sk_b + start * sk_t + (h // SHARE) * sk_h
        matrix = tl.full((T, T), 0.0, dtype=tl.float32)
        for first in range(0, K, BK):
            offs_k = first + tl.arange(0, BK)
            k_tile = load_rows(k, sk_t, start, offs_t, length, offs_k, K).to(DOT)
            q_tile = load_rows(q, sq_t, start, offs_t, length, offs_k, K).to(DOT)
            matrix = tl.dot(k_tile, tl.trans(q_tile), acc=matrix, input_precision=PRECISION)
        seen = offs_t[:, None] <= offs_t[None, :]
        matrix = tl.where(seen, matrix * scale, 0.0)
        if log_decay is not None:
            gates = (b * length + start) * heads + h
            coarse, fine, _, _ = decay_sums(log_decay, gates, heads, offs_t, valid, T)
            span = (coarse[None, :] - coarse[:, None]) + (fine[None, :] - fine[:, None])
            matrix = matrix * tl.exp(tl.where(seen, span, float("-inf")))
    low = matrix.to(DOT)
    do += b * sd_b + start * sd_t + h * sd_h
    for first in range(0, V, BV):
        offs_v = first + tl.arange(0, BV)
        mask = valid[:, None] & (offs_v < V)[None, :]
        tile = tl.load(do + offs_t[:, None] * sd_t + offs_v[None, :], mask=mask, other=0.0)
        own = tl.dot(low, tile.to(DOT), input_precision=PRECISION)
        to = out + at * T * V + offs_t[:, None] * V + offs_v[None, :]
        tl.store(to, own.to(out.dtype.element_ty), mask=(offs_v < V)[None, :])


@triton.jit
def walk_back(
    q, k, w, do, du, dlast, through, behind, totals, dstates, dwritten, dfirst, scale, length, chunks, heads,
    sq_b, sq_t, sq_h, sk_b, sk_t, sk_h, sd_b, sd_t, sd_h,
    SHARE: tl.constexpr, CHANNEL: tl.constexpr, K: tl.constexpr, V: tl.constexpr,
    T: tl.constexpr, BT: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Hands the state's gradient on, from the last chunk to the first: writes it behind each, and U's.

    ``du`` is what ``read_gradients`` wrote; the rest is as in ``walk``. CHANNEL: q is decayed from the
    chunk's start.
    """
    tiles: tl.constexpr = (V + BV - 1) // BV
    pid = tl.program_id(0)
    bh = (pid // tiles).to(tl.int64)
    h = bh % heads
    b = bh // heads
    offs_k = tl.arange(0, BK)
    offs_v = (pid % tiles) * BV + tl.arange(0, BV)
    mask_k = offs_k < K
    mask_v = offs_v < V
    inside = offs_k[:, None] * V + offs_v[None, :]
    mask = mask_k[:, None] & mask_v[None, :]
    q += b * sq_b + (h // SHARE) * sq_h
    k += b * sk_b + (h // SHARE) * sk_h
    do += b * sd_b + h * sd_h
    state = tl.full((BK, BV), 0.0, dtype=tl.float32)
    if dlast is not None:
        state = tl.load(dlast + bh * K * V + inside, mask=mask, other=0.0)
    for step in range(chunks):
        chunk = chunks - 1 - step
        at = bh * chunks + chunk
        low = state.to(DOT)
        tl.store(dstates + at * K * V + inside, low.to(dstates.dtype.element_ty), mask=mask)
        if totals is not None:
            if CHANNEL:
                group = (b * (heads // SHARE) + h // SHARE) * chunks + chunk
                total = tl.load(totals + group * K + offs_k, mask=mask_k, other=0.0)
                state = state * tl.exp(total)[:, None]
            else:
                state = state * tl.load(totals + at)
        for block in tl.static_range(T // BT):
            offs_t = block * BT + tl.arange(0, BT)
            start = chunk * T
            k_tile = load_rows(k + start * sk_t, sk_t, start, offs_t, length, offs_k, K)
            q_tile = load_rows(q + start * sq_t, sq_t, start, offs_t, length, offs_k, K)
            w_tile = tl.load(
                w + at * T * K + offs_t[:, None] * K + offs_k[None, :], mask=mask_k[None, :], other=0.0
            )
            do_tile = load_rows(do + start * sd_t, sd_t, start, offs_t, length, offs_v, V)
            values = at * T * V + offs_t[:, None] * V + offs_v[None, :]
            own = tl.load(du + values, mask=mask_v[None, :], other=0.0).to(tl.float32)
            new = tl.dot(k_tile.to(DOT), low, input_precision=PRECISION)
            read = do_tile.to(tl.float32) * scale
            if totals is not None and not CHANNEL:
                new = new * tl.load(behind + at * T + offs_t)[:, None]
                read = read * tl.load(through + at * T + offs_t)[:, None]
            new += own
            tl.store(dwritten + values, new.to(dwritten.dtype.element_ty), mask=mask_v[None, :])
            state = tl.dot(tl.trans(q_tile.to(DOT)), read.to(DOT), acc=state, input_precision=PRECISION)
            state = tl.dot(tl.trans(w_tile.to(DOT)), (-new).to(DOT), acc=state, input_precision=PRECISION)
    tl.store(dfirst + bh * K * V + inside, state, mask=mask)
