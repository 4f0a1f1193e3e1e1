"""Triton kernels over the chunks of linear attention with one decay per head: outputs, gradients.

The recurrence is S_t = exp(g_t) S_{t-1} + b_t k_t v_tᵀ, o_t = r_t · scale · S_tᵀ q_t, with a
log-decay g, an input factor b and an output factor r per head and position. A column of ones beside
v, whose memory is the vector n, is the mLSTM's normaliser. Per-position arrays are dense (B, L, H),
states (B, H, C, K, V), both float32.
"""

from __future__ import annotations

import triton
import triton.language as tl

from longseq.core.kernels.triton.common import (
    decay_between,
    decay_sums,
    load_rows,
    locate,
    store_rows,
)


@triton.jit
def chunk_apply(
    a,
    b,
    c,
    states,
    log_decay,
    weight,
    row,
    stabiliser,
    column,
    column_states,
    skip,
    scores,
    out,
    out_column,
    out_row,
    scale,
    eps,
    length,
    chunks,
    heads,
    M,
    N,
    sa_b,
    sa_t,
    sa_h,
    sb_b,
    sb_t,
    sb_h,
    sc_b,
    sc_t,
    sc_h,
    ss_m,
    ss_n,
    LOOP: tl.constexpr,
    SHARE: tl.constexpr,
    BACKWARD: tl.constexpr,
    MODE: tl.constexpr,
    NORM: tl.constexpr,
    T: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The state before the chunk applied to its rows, plus masked, decayed scores applied to c.

    One body serves the outputs and three gradients, as a, b, states, c are
    q, k, S, v → o;  k, q, dS, do → dv (BACKWARD);  do, v, Sᵀ, k → dq;  v, do, dSᵀ, q → dk
    (BACKWARD). For the last two, a program adds up the LOOP heads that share a key: no atomics, one
    order of summation.

    Forwards, row i takes scale r_i exp(g_1+…+g_i) of the state, and column j ≤ i the score
    scale r_i b_j exp(g_{j+1}+…+g_i) a_i·b_j; BACKWARD, row j takes b_j exp(g_{j+1}+…+g_T) of the
    state's gradient, and columns i ≥ j the same scores.

    MODE: 0 scores as said; 1 ``scores`` given, (B, groups, C, T, T); 2 stored there, not applied; 3
    none. NORM: 1 also computes nᵀq and divides the output by max(|nᵀq|, exp(-m)) + eps; 2 the
    reduced dimension has one more column: ones beside v, and ``column`` beside do.
    """
    tiles = (N + BN - 1) // BN
    pid = tl.program_id(0)
    tile = pid % tiles
    at = (pid // tiles).to(tl.int64)
    chunk, head, batch, start, own = locate(at, chunks, heads, length, T)
    offs_t = tl.arange(0, T)
    valid = start + offs_t < length
    offs_n = tile * BN + tl.arange(0, BN)
    mask_n = offs_n < N
    if BACKWARD:
        seen = offs_t[:, None] <= offs_t[None, :]
    else:
        seen = offs_t[:, None] >= offs_t[None, :]

    acc = tl.full((T, BN), 0.0, dtype=tl.float32)
    matrix = tl.full((T, T), 0.0, dtype=tl.float32)
    normaliser = tl.full((T,), 0.0, dtype=tl.float32)
    for r in range(LOOP):
        h = head * LOOP + r
        gates = (batch * length + start) * (heads * LOOP) + h
        coarse, fine, all_coarse, all_fine = decay_sums(
            log_decay, gates, heads * LOOP, offs_t, valid, T
        )
        b_factor = tl.full((T,), 1.0, dtype=tl.float32)
        if weight is not None:
            b_factor = tl.load(weight + gates + offs_t * (heads * LOOP), mask=valid, other=0.0)
        r_factor = tl.full((T,), scale, dtype=tl.float32)
        if row is not None:
            r_factor = r_factor * tl.load(
                row + gates + offs_t * (heads * LOOP), mask=valid, other=0.0
            )
        if BACKWARD:
            w = tl.exp((all_coarse - coarse) + (all_fine - fine)) * b_factor
        else:
            w = tl.exp(coarse + fine) * r_factor

        state_at = (batch * heads * LOOP + h) * chunks + chunk
        a_at = a + batch * sa_b + start * sa_t + (h // SHARE) * sa_h
        b_at = batch * sb_b + start * sb_t + (h // SHARE) * sb_h
        from_state = tl.full((T, BN), 0.0, dtype=tl.float32)
        products = tl.full((T, T), 0.0, dtype=tl.float32)
        from_column = tl.full((T,), 0.0, dtype=tl.float32)
        for m in range(0, M, BM):
            offs_m = m + tl.arange(0, BM)
            mask_m = offs_m < M
            a_tile = load_rows(a_at, sa_t, start, offs_t, length, offs_m, M).to(DOT)
            if MODE == 0 or MODE == 2:
                b_tile = tl.load(
                    b + b_at + offs_t[None, :] * sb_t + offs_m[:, None],
                    mask=valid[None, :] & mask_m[:, None],
                    other=0.0,
                ).to(DOT)
                products = tl.dot(a_tile, b_tile, acc=products, input_precision=PRECISION)
            state = tl.load(
                states + state_at * M * N + offs_m[:, None] * ss_m + offs_n[None, :] * ss_n,
                mask=mask_m[:, None] & mask_n[None, :],
                other=0.0,
            ).to(DOT)
            from_state = tl.dot(a_tile, state, acc=from_state, input_precision=PRECISION)
            if NORM == 1:
                n = tl.load(column_states + state_at * M + offs_m, mask=mask_m, other=0.0)
                from_column += tl.sum(a_tile.to(tl.float32) * n[None, :], 1)
        if NORM == 1:
            normaliser += from_column * w
        if NORM == 2:
            n = tl.load(column_states + state_at * N + offs_n, mask=mask_n, other=0.0)
            beside = tl.load(column + gates + offs_t * (heads * LOOP), mask=valid, other=0.0)
            if BACKWARD:
                products += beside[None, :]
                from_state += n[None, :]
            else:
                products += beside[:, None]
                from_state += beside[:, None] * n[None, :]
        acc += from_state * w[:, None]
        if MODE == 0 or MODE == 2:
            if BACKWARD:
                factors = b_factor[:, None] * r_factor[None, :]
            else:
                factors = r_factor[:, None] * b_factor[None, :]
            matrix += products * factors * decay_between(coarse, fine, seen, BACKWARD)

    inside = offs_t[:, None] * T + offs_t[None, :]
    if MODE == 1:
        if BACKWARD:
            inside = offs_t[None, :] * T + offs_t[:, None]
        group = (batch * (heads // SHARE) + head // SHARE) * chunks + chunk
        matrix = tl.load(scores + group * T * T + inside)
    if MODE == 2:
        tl.store(scores + at * T * T + inside, matrix, mask=inside < tl.where(tile == 0, T * T, 0))
    if MODE == 0 or MODE == 1:
        c_at = c + batch * sc_b + start * sc_t + head * sc_h
        c_tile = load_rows(c_at, sc_t, start, offs_t, length, offs_n, N)
        acc = tl.dot(matrix.to(DOT), c_tile.to(DOT), acc=acc, input_precision=PRECISION)
        if skip is not None:
            acc += (
                c_tile.to(tl.float32)
                * tl.load(skip + head * N + offs_n, mask=mask_n, other=0.0)[None, :]
            )
    if NORM == 1:
        gates = own + offs_t * heads
        normaliser += tl.sum(matrix, 1)
        m_t = tl.load(stabiliser + gates, mask=valid, other=0.0)
        # Beyond exp(60) the output is zero to any rounding, while float32 would overflow.
        divisor = tl.maximum(tl.abs(normaliser), tl.exp(tl.minimum(-m_t, 60.0))) + eps
        acc = acc / divisor[:, None]
        once = start + offs_t < tl.where(tile == 0, length, 0)
        tl.store(out_column + gates, normaliser, mask=once)
        tl.store(out_row + gates, 1.0 / divisor, mask=once)
    store_rows(out + own * N, acc, heads * N, start, offs_t, length, offs_n, N)


@triton.jit
def gate_gradients(
    q,
    k,
    v,
    do,
    states,
    dstates,
    log_decay,
    weight,
    row,
    column,
    column_states,
    column_dstates,
    carried,
    dlog_decay,
    dweight,
    scale,
    length,
    chunks,
    heads,
    K,
    V,
    sq_b,
    sq_t,
    sq_h,
    sk_b,
    sk_t,
    sk_h,
    sv_b,
    sv_t,
    sv_h,
    sd_b,
    sd_t,
    sd_h,
    SHARE: tl.constexpr,
    NORM: tl.constexpr,
    T: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Gradients of log-decays and input factors.

    A log-decay g_s takes from every pair that spans it, i ≥ s > j. The sum over those pairs is
    formed by adding (rows from the end of the chunk, then columns), not as the usual difference of
    two sums over all pairs, so that strong decays leave no rounding of the large terms behind.
    """
    at = tl.program_id(0).to(tl.int64)
    _, h, b, start, gates = locate(at, chunks, heads, length, T)
    offs_t = tl.arange(0, T)
    valid = start + offs_t < length
    coarse, fine, all_coarse, all_fine = decay_sums(log_decay, gates, heads, offs_t, valid, T)
    b_factor = tl.full((T,), 1.0, dtype=tl.float32)
    if weight is not None:
        b_factor = tl.load(weight + gates + offs_t * heads, mask=valid, other=0.0)
    r_factor = tl.full((T,), scale, dtype=tl.float32)
    if row is not None:
        r_factor = r_factor * tl.load(row + gates + offs_t * heads, mask=valid, other=0.0)
    q_at = q + b * sq_b + start * sq_t + (h // SHARE) * sq_h
    k_at = k + b * sk_b + start * sk_t + (h // SHARE) * sk_h
    v_at = v + b * sv_b + start * sv_t + h * sv_h
    do_at = do + b * sd_b + start * sd_t + h * sd_h

    products = tl.full((T, T), 0.0, dtype=tl.float32)
    for first in range(0, K, BK):
        offs_k = first + tl.arange(0, BK)
        mask_k = offs_k < K
        q_tile = load_rows(q_at, sq_t, start, offs_t, length, offs_k, K)
        k_tile = tl.load(
            k_at + offs_t[None, :] * sk_t + offs_k[:, None],
            mask=valid[None, :] & mask_k[:, None],
            other=0.0,
        )
        products = tl.dot(q_tile.to(DOT), k_tile.to(DOT), acc=products, input_precision=PRECISION)

    dproducts = tl.full((T, T), 0.0, dtype=tl.float32)
    from_state = tl.full((T,), 0.0, dtype=tl.float32)
    to_state = tl.full((T,), 0.0, dtype=tl.float32)
    for second in range(0, V, BV):
        offs_v = second + tl.arange(0, BV)
        v_tile = load_rows(v_at, sv_t, start, offs_t, length, offs_v, V)
        do_tile = load_rows(do_at, sd_t, start, offs_t, length, offs_v, V)
        dproducts = tl.dot(
            do_tile.to(DOT), tl.trans(v_tile.to(DOT)), acc=dproducts, input_precision=PRECISION
        )
        read = tl.full((T, BV), 0.0, dtype=tl.float32)
        written = tl.full((T, BV), 0.0, dtype=tl.float32)
        for first in range(0, K, BK):
            offs_k = first + tl.arange(0, BK)
            q_tile = load_rows(q_at, sq_t, start, offs_t, length, offs_k, K)
            k_tile = load_rows(k_at, sk_t, start, offs_t, length, offs_k, K)
            state = load_rows(states + at * K * V, V, 0, offs_k, K, offs_v, V)
            dstate = load_rows(dstates + at * K * V, V, 0, offs_k, K, offs_v, V)
            read = tl.dot(q_tile.to(DOT), state.to(DOT), acc=read, input_precision=PRECISION)
            written = tl.dot(k_tile.to(DOT), dstate.to(DOT), acc=written, input_precision=PRECISION)
        from_state += tl.sum(read * do_tile.to(tl.float32), 1)
        to_state += tl.sum(written * v_tile.to(tl.float32), 1)
    if NORM:
        beside = tl.load(column + gates + offs_t * heads, mask=valid, other=0.0)
        dproducts += beside[:, None]
        for first in range(0, K, BK):
            offs_k = first + tl.arange(0, BK)
            mask_k = offs_k < K
            q_tile = load_rows(q_at, sq_t, start, offs_t, length, offs_k, K)
            k_tile = load_rows(k_at, sk_t, start, offs_t, length, offs_k, K)
            n = tl.load(column_states + at * K + offs_k, mask=mask_k, other=0.0)
            dn = tl.load(column_dstates + at * K + offs_k, mask=mask_k, other=0.0)
            from_state += beside * tl.sum(q_tile.to(tl.float32) * n[None, :], 1)
            to_state += tl.sum(k_tile.to(tl.float32) * dn[None, :], 1)

    seen = offs_t[:, None] >= offs_t[None, :]
    pairs = products * dproducts * r_factor[:, None] * decay_between(coarse, fine, seen, False)
    to_state = to_state * tl.exp((all_coarse - coarse) + (all_fine - fine))
    if dweight is not None:
        tl.store(dweight + gates + offs_t * heads, tl.sum(pairs, 0) + to_state, mask=valid)
    if dlog_decay is not None:
        pairs = tl.where(offs_t[:, None] > offs_t[None, :], pairs * b_factor[None, :], 0.0)
        ends = tl.cumsum(pairs, 0, reverse=True) + (to_state * b_factor)[None, :]
        spanning = tl.sum(tl.where(offs_t[:, None] > offs_t[None, :], ends, 0.0), 1)
        from_state = from_state * tl.exp(coarse + fine) * r_factor
        spanning += tl.cumsum(from_state, 0, reverse=True) + tl.load(carried + at)
        tl.store(dlog_decay + gates + offs_t * heads, spanning, mask=valid)
