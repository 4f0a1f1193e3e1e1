"""Triton kernels that hand the delta rule's state on from chunk to chunk, and its gradient back.

Names and layouts as in delta_chunks.py. A walk takes one chunk after the other; where there are few
heads, the sequence is cut into segments, whose transitions and own states are walked side by side
and then joined.
"""

from __future__ import annotations

import triton
import triton.language as tl

from longseq.core.kernels.triton.common import (
    decay_between,
    load_dense,
    load_rows,
    store_dense,
    store_rows,
)


@triton.jit
def _program(segments, heads, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr):
    """Returns which segment of all a program walks over, its number in the sequence, the sequence,
    its head and batch, and the state's rows and columns that it holds."""
    tiles: tl.constexpr = (V + BV - 1) // BV
    pid = tl.program_id(0)
    at = (pid // tiles).to(tl.int64)
    bh = at // segments
    columns = (pid % tiles) * BV + tl.arange(0, BV)
    return at, at % segments, bh, bh % heads, bh // heads, tl.arange(0, BK), columns


@triton.jit
def _decayed(state, totals, at, group, offs_k, K: tl.constexpr, CHANNEL: tl.constexpr):
    """Returns a state after a chunk's decay, a factor per head or CHANNEL log-decays."""
    if totals is not None:
        if CHANNEL:
            total = tl.load(totals + group * K + offs_k, mask=offs_k < K, other=0.0)
            state = state * tl.exp(total)[:, None]
        else:
            state = state * tl.load(totals + at)
    return state


@triton.jit
def _scores(
    rows,
    columns,
    totals,
    coarse,
    fine,
    first,
    offs_t,
    scale,
    BACKWARD: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Returns the chunk's decayed products of queries and earlier keys; BACKWARD, transposed."""
    matrix = tl.dot(rows, tl.trans(columns), input_precision=PRECISION) * scale
    if BACKWARD:
        seen = offs_t[:, None] <= offs_t[None, :]
    else:
        seen = offs_t[:, None] >= offs_t[None, :]
    if totals is not None:
        c = tl.load(coarse + first + offs_t)
        f = tl.load(fine + first + offs_t)
        matrix = matrix * decay_between(c, f, seen, BACKWARD)
    else:
        matrix = tl.where(seen, matrix, 0.0)
    return matrix


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
    at_segment, segment, bh, h, b, offs_k, offs_v = _program(segments, heads, V, BK, BV)
    k += b * sk_b + (h // SHARE) * sk_h
    state = tl.full((BK, BV), 0.0, dtype=tl.float32)
    if UNIT:
        state = tl.where(offs_k[:, None] == offs_v[None, :], 1.0, state)
    if first is not None:
        state = load_rows(first + at_segment * K * V, V, 0, offs_k, K, offs_v, V)
    begin = segment * per
    for chunk in range(begin, tl.minimum(begin + per, chunks)):
        at = bh * chunks + chunk
        group = (b * (heads // SHARE) + h // SHARE) * chunks + chunk
        start = chunk * T
        low = state.to(DOT)
        if states is not None:
            store_rows(states + at * K * V, low, V, 0, offs_k, K, offs_v, V)
        state = _decayed(state, totals, at, group, offs_k, K, CHANNEL)
        for block in tl.static_range(T // BT):
            offs_t = block * BT + tl.arange(0, BT)
            w_tile = load_dense(w + at * T * K, offs_t, offs_k, K)
            k_tile = load_rows(k + start * sk_t, sk_t, start, offs_t, length, offs_k, K).to(DOT)
            new = -tl.dot(w_tile.to(DOT), low, input_precision=PRECISION)
            if u is not None:
                new += load_dense(u + at * T * V, offs_t, offs_v, V).to(tl.float32)
            if written is not None:
                store_dense(written + at * T * V, new, offs_t, offs_v, V)
            if out is not None:
                tl.static_assert(BT == T, "a chunk's outputs need all of its rows")
                q_at = q + b * sq_b + (h // SHARE) * sq_h + start * sq_t
                q_tile = load_rows(q_at, sq_t, start, offs_t, length, offs_k, K).to(DOT)
                result = tl.dot(q_tile, low, input_precision=PRECISION) * scale
                if totals is not None and not CHANNEL:
                    result = result * tl.load(through + at * T + offs_t)[:, None]
                if CHANNEL:
                    square = offs_t[:, None] * T + offs_t[None, :]
                    matrix = tl.load(read + group * T * T + square).to(tl.float32)
                else:
                    matrix = _scores(
                        q_tile,
                        k_tile,
                        totals,
                        coarse,
                        fine,
                        at * T,
                        offs_t,
                        scale,
                        False,
                        PRECISION,
                    )
                result = tl.dot(matrix.to(DOT), new.to(DOT), acc=result, input_precision=PRECISION)
                to = out + ((b * length + start) * heads + h) * V
                store_rows(to, result, heads * V, start, offs_t, length, offs_v, V)
            if totals is not None and not CHANNEL:
                new = new * tl.load(behind + at * T + offs_t)[:, None]
            state = tl.dot(tl.trans(k_tile), new.to(DOT), acc=state, input_precision=PRECISION)
    store_rows(last + at_segment * K * V, state, V, 0, offs_k, K, offs_v, V)


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
    at_segment, segment, bh, h, b, offs_k, offs_v = _program(segments, heads, V, BK, BV)
    q += b * sq_b + (h // SHARE) * sq_h
    k += b * sk_b + (h // SHARE) * sk_h
    do += b * sd_b + h * sd_h
    state = tl.full((BK, BV), 0.0, dtype=tl.float32)
    if dlast is not None:
        state = load_rows(dlast + at_segment * K * V, V, 0, offs_k, K, offs_v, V)
    begin = segment * per
    end = tl.minimum(begin + per, chunks)
    for step in range(end - begin):
        chunk = end - 1 - step
        at = bh * chunks + chunk
        group = (b * (heads // SHARE) + h // SHARE) * chunks + chunk
        start = chunk * T
        low = state.to(DOT)
        if dstates is not None:
            store_rows(dstates + at * K * V, low, V, 0, offs_k, K, offs_v, V)
        state = _decayed(state, totals, at, group, offs_k, K, CHANNEL)
        for block in tl.static_range(T // BT):
            offs_t = block * BT + tl.arange(0, BT)
            k_tile = load_rows(k + start * sk_t, sk_t, start, offs_t, length, offs_k, K).to(DOT)
            q_tile = load_rows(q + start * sq_t, sq_t, start, offs_t, length, offs_k, K).to(DOT)
            w_tile = load_dense(w + at * T * K, offs_t, offs_k, K)
            do_tile = load_rows(do + start * sd_t, sd_t, start, offs_t, length, offs_v, V)
            new = tl.dot(k_tile, low, input_precision=PRECISION)
            reads = do_tile.to(tl.float32) * scale
            if totals is not None and not CHANNEL:
                new = new * tl.load(behind + at * T + offs_t)[:, None]
                reads = reads * tl.load(through + at * T + offs_t)[:, None]
            if du is not None:
                new += load_dense(du + at * T * V, offs_t, offs_v, V).to(tl.float32)
            else:
                tl.static_assert(BT == T, "a chunk's own outputs need all of its rows")
                if CHANNEL:
                    square = offs_t[:, None] * T + offs_t[None, :]
                    matrix = tl.trans(tl.load(read + group * T * T + square).to(DOT))
                else:
                    matrix = _scores(
                        k_tile,
                        q_tile,
                        totals,
                        coarse,
                        fine,
                        at * T,
                        offs_t,
                        scale,
                        True,
                        PRECISION,
                    ).to(DOT)
                new = tl.dot(matrix, do_tile.to(DOT), acc=new, input_precision=PRECISION)
            if dwritten is not None:
                store_dense(dwritten + at * T * V, new, offs_t, offs_v, V)
            state = tl.dot(tl.trans(q_tile), reads.to(DOT), acc=state, input_precision=PRECISION)
            state = tl.dot(
                tl.trans(w_tile.to(DOT)), (-new).to(DOT), acc=state, input_precision=PRECISION
            )
    store_rows(dfirst + at_segment * K * V, state, V, 0, offs_k, K, offs_v, V)


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
    state = tl.full((BK, BV), 0.0, dtype=tl.float32)
    if first is not None:
        state = load_rows(first + bh * K * V, V, 0, offs_k, K, offs_v, V)
    for step in range(segments):
        at = bh * segments + step
        if BACKWARD:
            at = bh * segments + segments - 1 - step
        store_rows(states + at * K * V, state, V, 0, offs_k, K, offs_v, V)
        matrix = load_rows(transitions + at * K * K, K, 0, offs_k, K, offs_k, K)
        if BACKWARD:
            matrix = tl.trans(matrix)
        added = load_rows(own + at * K * V, V, 0, offs_k, K, offs_v, V)
        state = tl.dot(matrix, state, acc=added, input_precision=EXACT)
