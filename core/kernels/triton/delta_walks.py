"""Triton kernels that hand the delta rule's state on from chunk to chunk, and its gradient back.

Names and layouts as in delta_chunks.py. A walk takes one chunk after the other; where there are few
heads, the sequence is cut into segments, whose transitions and own states are walked side by side
and then joined.
"""

from __future__ import annotations

import triton
import triton.language as tl

from longseq.core.kernels.triton.delta_chunks import load_rows


@triton.jit
def walk(
    q,
    k,
    w,
    u,
    first,
    coarse,
    fine,
    through,
    behind,
    totals,
    read,
    states,
    written,
    out,
    last,
    scale,
    length,
    chunks,
    heads,
    segments,
    per,
    sq_b,
    sq_t,
    sq_h,
    sk_b,
    sk_t,
    sk_h,
    SHARE: tl.constexpr,
    CHANNEL: tl.constexpr,
    UNIT: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    T: tl.constexpr,
    BT: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Hands the state on over the chunks of a segment, a block of its columns per program; writes
    the last one.

    Also, where memory is given: the state before each chunk, U, and the output, for which BT must
    be T. Rows of a chunk are taken BT at a time. ``coarse`` and ``fine`` are running sums of
    log-decays (B, H, C, T), ``through``, ``behind`` and ``totals`` factors. CHANNEL: q is decayed
    from the chunk's start and k to its end, ``totals`` are log-decays (B, G, C, K) and ``read`` are
    the scores (B, G, C, T, T).

    UNIT: the walk starts from the identity, and u is None: the last state is the segment's
    transition.
    """
    tiles: tl.constexpr = (V + BV - 1) // BV
    pid = tl.program_id(0)
    at_segment = (pid // tiles).to(tl.int64)
    segment = at_segment % segments
    bh = at_segment // segments
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
    if UNIT:
        state = tl.where(offs_k[:, None] == offs_v[None, :], 1.0, state)
    if first is not None:
        state = tl.load(first + at_segment * K * V + inside, mask=mask, other=0.0)
    begin = segment * per
    for chunk in range(begin, tl.minimum(begin + per, chunks)):
        at = bh * chunks + chunk
        group = (b * (heads // SHARE) + h // SHARE) * chunks + chunk
        start = chunk * T
        low = state.to(DOT)
        if states is not None:
            tl.store(states + at * K * V + inside, low.to(states.dtype.element_ty), mask=mask)
        if totals is not None:
            if CHANNEL:
                total = tl.load(totals + group * K + offs_k, mask=mask_k, other=0.0)
                state = state * tl.exp(total)[:, None]
            else:
                state = state * tl.load(totals + at)
        for block in tl.static_range(T // BT):
            offs_t = block * BT + tl.arange(0, BT)
            w_tile = tl.load(
                w + at * T * K + offs_t[:, None] * K + offs_k[None, :],
                mask=mask_k[None, :],
                other=0.0,
            )
            k_tile = load_rows(k + start * sk_t, sk_t, start, offs_t, length, offs_k, K).to(DOT)
            new = -tl.dot(w_tile.to(DOT), low, input_precision=PRECISION)
            values = at * T * V + offs_t[:, None] * V + offs_v[None, :]
            if u is not None:
                new += tl.load(u + values, mask=mask_v[None, :], other=0.0).to(tl.float32)
            if written is not None:
                tl.store(written + values, new.to(written.dtype.element_ty), mask=mask_v[None, :])
            if out is not None:
                tl.static_assert(BT == T, "a chunk's outputs need all of its rows")
                q_at = q + b * sq_b + (h // SHARE) * sq_h + start * sq_t
                q_tile = load_rows(q_at, sq_t, start, offs_t, length, offs_k, K).to(DOT)
                result = tl.dot(q_tile, low, input_precision=PRECISION) * scale
                if CHANNEL:
                    square = offs_t[:, None] * T + offs_t[None, :]
                    matrix = tl.load(read + group * T * T + square).to(tl.float32)
                else:
                    matrix = tl.dot(q_tile, tl.trans(k_tile), input_precision=PRECISION) * scale
                    seen = offs_t[:, None] >= offs_t[None, :]
                    if totals is not None:
                        result = result * tl.load(through + at * T + offs_t)[:, None]
                        c = tl.load(coarse + at * T + offs_t)
                        f = tl.load(fine + at * T + offs_t)
                        span = (c[:, None] - c[None, :]) + (f[:, None] - f[None, :])
                        matrix = matrix * tl.exp(tl.where(seen, span, float("-inf")))
                    else:
                        matrix = tl.where(seen, matrix, 0.0)
                result = tl.dot(matrix.to(DOT), new.to(DOT), acc=result, input_precision=PRECISION)
                to = ((b * length + start + offs_t[:, None]) * heads + h) * V + offs_v[None, :]
                valid = (start + offs_t < length)[:, None] & mask_v[None, :]
                tl.store(out + to, result.to(out.dtype.element_ty), mask=valid)
            if totals is not None and not CHANNEL:
                new = new * tl.load(behind + at * T + offs_t)[:, None]
            state = tl.dot(tl.trans(k_tile), new.to(DOT), acc=state, input_precision=PRECISION)
    tl.store(last + at_segment * K * V + inside, state, mask=mask)


@triton.jit
def walk_back(
    q,
    k,
    w,
    do,
    dlast,
    du,
    coarse,
    fine,
    through,
    behind,
    totals,
    read,
    dstates,
    dwritten,
    dfirst,
    scale,
    length,
    chunks,
    heads,
    segments,
    per,
    sq_b,
    sq_t,
    sq_h,
    sk_b,
    sk_t,
    sk_h,
    sd_b,
    sd_t,
    sd_h,
    SHARE: tl.constexpr,
    CHANNEL: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    T: tl.constexpr,
    BT: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Hands the state's gradient on, from a segment's last chunk to its first, whose gradient it
    writes.

    Also, where memory is given: that behind each chunk, and U's. The part of the latter that comes
    from the chunk's own outputs is computed, for which BT must be T, or given as ``du``. The rest
    is as in ``walk``.
    """
    tiles: tl.constexpr = (V + BV - 1) // BV
    pid = tl.program_id(0)
    at_segment = (pid // tiles).to(tl.int64)
    segment = at_segment % segments
    bh = at_segment // segments
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
        state = tl.load(dlast + at_segment * K * V + inside, mask=mask, other=0.0)
    begin = segment * per
    end = tl.minimum(begin + per, chunks)
    for step in range(end - begin):
        chunk = end - 1 - step
        at = bh * chunks + chunk
        group = (b * (heads // SHARE) + h // SHARE) * chunks + chunk
        start = chunk * T
        low = state.to(DOT)
        if dstates is not None:
            tl.store(dstates + at * K * V + inside, low.to(dstates.dtype.element_ty), mask=mask)
        if totals is not None:
            if CHANNEL:
                total = tl.load(totals + group * K + offs_k, mask=mask_k, other=0.0)
                state = state * tl.exp(total)[:, None]
            else:
                state = state * tl.load(totals + at)
        for block in tl.static_range(T // BT):
            offs_t = block * BT + tl.arange(0, BT)
            k_tile = load_rows(k + start * sk_t, sk_t, start, offs_t, length, offs_k, K).to(DOT)
            q_tile = load_rows(q + start * sq_t, sq_t, start, offs_t, length, offs_k, K).to(DOT)
            w_tile = tl.load(
                w + at * T * K + offs_t[:, None] * K + offs_k[None, :],
                mask=mask_k[None, :],
                other=0.0,
            )
            do_tile = load_rows(do + start * sd_t, sd_t, start, offs_t, length, offs_v, V)
            values = at * T * V + offs_t[:, None] * V + offs_v[None, :]
            new = tl.dot(k_tile, low, input_precision=PRECISION)
            reads = do_tile.to(tl.float32) * scale
            if totals is not None and not CHANNEL:
                new = new * tl.load(behind + at * T + offs_t)[:, None]
                reads = reads * tl.load(through + at * T + offs_t)[:, None]
            if du is not None:
                new += tl.load(du + values, mask=mask_v[None, :], other=0.0).to(tl.float32)
            else:
                tl.static_assert(BT == T, "a chunk's own outputs need all of its rows")
                if CHANNEL:
                    square = offs_t[:, None] * T + offs_t[None, :]
                    matrix = tl.trans(tl.load(read + group * T * T + square).to(DOT))
                else:
                    matrix = tl.dot(k_tile, tl.trans(q_tile), input_precision=PRECISION) * scale
                    seen = offs_t[:, None] <= offs_t[None, :]
                    if totals is not None:
                        c = tl.load(coarse + at * T + offs_t)
                        f = tl.load(fine + at * T + offs_t)
                        span = (c[None, :] - c[:, None]) + (f[None, :] - f[:, None])
                        matrix = matrix * tl.exp(tl.where(seen, span, float("-inf")))
                    else:
                        matrix = tl.where(seen, matrix, 0.0)
                    matrix = matrix.to(DOT)
                new = tl.dot(matrix, do_tile.to(DOT), acc=new, input_precision=PRECISION)
            if dwritten is not None:
                tl.store(dwritten + values, new.to(dwritten.dtype.element_ty), mask=mask_v[None, :])
            state = tl.dot(tl.trans(q_tile), reads.to(DOT), acc=state, input_precision=PRECISION)
            state = tl.dot(
                tl.trans(w_tile.to(DOT)), (-new).to(DOT), acc=state, input_precision=PRECISION
            )
    tl.store(dfirst + at_segment * K * V + inside, state, mask=mask)


@triton.jit
def join_segments(
    transitions,
    own,
    first,
    states,
    segments,
    BACKWARD: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
    EXACT: tl.constexpr,
):
    """Writes the state before each segment (B, H, S, K, V), of transitions (B, H, S, K, K) and own
    states.

    BACKWARD: the gradient of the state behind each segment, from the last to the first.
    """
    tiles: tl.constexpr = (V + BV - 1) // BV
    pid = tl.program_id(0)
    bh = (pid // tiles).to(tl.int64)
    offs_k = tl.arange(0, BK)
    offs_v = (pid % tiles) * BV + tl.arange(0, BV)
    inside = offs_k[:, None] * V + offs_v[None, :]
    mask = (offs_k < K)[:, None] & (offs_v < V)[None, :]
    square = offs_k[:, None] * K + offs_k[None, :]
    mask_square = (offs_k < K)[:, None] & (offs_k < K)[None, :]
    state = tl.full((BK, BV), 0.0, dtype=tl.float32)
    if first is not None:
        state = tl.load(first + bh * K * V + inside, mask=mask, other=0.0)
    for step in range(segments):
        at = bh * segments + step
        if BACKWARD:
            at = bh * segments + segments - 1 - step
        tl.store(states + at * K * V + inside, state, mask=mask)
        matrix = tl.load(transitions + at * K * K + square, mask=mask_square, other=0.0)
        if BACKWARD:
            matrix = tl.trans(matrix)
        added = tl.load(own + at * K * V + inside, mask=mask, other=0.0)
        state = tl.dot(matrix, state, acc=added, input_precision=EXACT)
