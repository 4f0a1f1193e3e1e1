"""Triton kernels for the delta rule's gradients inside the chunks, once those of U and the states
are there.

Z = Mᵀ dU is the gradient of diag(β) (V - F S_0 - A U) for given U. So dV = diag(β) Z, dA = -diag(β)
Z Uᵀ below the diagonal, and dβ_t = Z_t · (v_t - (F S_0)_t - (A U)_t): nothing is divided by β, and
no matrix is inverted again. Names and layouts as in delta_chunks.py.
"""

from __future__ import annotations

import triton
import triton.language as tl

from longseq.core.kernels.triton.common import (
    decay_between,
    decay_sums,
    load_dense,
    load_rows,
    locate,
    store_dense,
    store_rows,
)


@triton.jit
def _products(
    a,
    b,
    stride_a,
    stride_b,
    start,
    rows,
    length,
    K: tl.constexpr,
    T: tl.constexpr,
    BK: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Returns a_i · b_j over a chunk's rows, (T, T)."""
    total = tl.full((T, T), 0.0, dtype=tl.float32)
    for first in range(0, K, BK):
        offs_k = first + tl.arange(0, BK)
        a_tile = load_rows(a, stride_a, start, rows, length, offs_k, K).to(DOT)
        b_tile = load_rows(b, stride_b, start, rows, length, offs_k, K).to(DOT)
        total = tl.dot(a_tile, tl.trans(b_tile), acc=total, input_precision=PRECISION)
    return total


@triton.jit
def read_gradients(
    q,
    k,
    do,
    log_decay,
    scores,
    out,
    scale,
    length,
    chunks,
    heads,
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
    K: tl.constexpr,
    V: tl.constexpr,
    T: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Writes the part of U's gradient that comes from the chunk's own outputs (B, H, C, T, V).

    The scores are computed, or given (B, G, C, T, T).
    """
    at = tl.program_id(0).to(tl.int64)
    chunk, h, b, start, gates = locate(at, chunks, heads, length, T)
    offs_t = tl.arange(0, T)
    if scores is not None:
        group = (b * (heads // SHARE) + h // SHARE) * chunks + chunk
        matrix = tl.load(scores + group * T * T + offs_t[None, :] * T + offs_t[:, None]).to(
            tl.float32
        )
    else:
        q += b * sq_b + start * sq_t + (h // SHARE) * sq_h
        k += b * sk_b + start * sk_t + (h // SHARE) * sk_h
        matrix = _products(k, q, sk_t, sq_t, start, offs_t, length, K, T, BK, DOT, PRECISION)
        seen = offs_t[:, None] <= offs_t[None, :]
        matrix = tl.where(seen, matrix * scale, 0.0)
        if log_decay is not None:
            valid = start + offs_t < length
            coarse, fine, _, _ = decay_sums(log_decay, gates, heads, offs_t, valid, T)
            matrix = matrix * decay_between(coarse, fine, seen, True)
    low = matrix.to(DOT)
    do += b * sd_b + start * sd_t + h * sd_h
    for first in range(0, V, BV):
        offs_v = first + tl.arange(0, BV)
        tile = load_rows(do, sd_t, start, offs_t, length, offs_v, V)
        own = tl.dot(low, tile.to(DOT), input_precision=PRECISION)
        store_dense(out + at * T * V, own, offs_t, offs_v, V)


@triton.jit
def chunk_gradients(
    q,
    k,
    v,
    do,
    beta,
    coarse,
    fine,
    through,
    behind,
    totals,
    inverse,
    written,
    dwritten,
    states,
    dstates,
    dq,
    dk,
    dv,
    dbeta,
    dlog_decay,
    scale,
    length,
    chunks,
    heads,
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
    K: tl.constexpr,
    V: tl.constexpr,
    T: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Writes dV, dβ, dq and dk (B, L, H, K) and the log-decays' gradient, with no decay or one per
    head."""
    at = tl.program_id(0).to(tl.int64)
    _, h, b, start, gates = locate(at, chunks, heads, length, T)
    offs_t = tl.arange(0, T)
    valid = start + offs_t < length
    seen = offs_t[:, None] >= offs_t[None, :]
    before = offs_t[:, None] > offs_t[None, :]
    factor = tl.load(beta + gates + offs_t * heads, mask=valid, other=0.0)
    back = tl.trans(tl.load(inverse + at * T * T + offs_t[:, None] * T + offs_t[None, :])).to(DOT)
    q += b * sq_b + start * sq_t + (h // SHARE) * sq_h
    k += b * sk_b + start * sk_t + (h // SHARE) * sk_h
    v += b * sv_b + start * sv_t + h * sv_h
    do += b * sd_b + start * sd_t + h * sd_h
    dv += gates * V
    dq += gates * K
    dk += gates * K
    written += at * T * V
    dwritten += at * T * V
    states += at * K * V
    dstates += at * K * V
    met = tl.full((T, T), 0.0, dtype=tl.float32)
    pairs = tl.full((T, T), 0.0, dtype=tl.float32)
    own = tl.full((T,), 0.0, dtype=tl.float32)
    for second in range(0, V, BV):
        offs_v = second + tl.arange(0, BV)
        du = load_dense(dwritten, offs_t, offs_v, V).to(DOT)
        z = tl.dot(back, du, input_precision=PRECISION)
        store_rows(dv, z * factor[:, None], heads * V, start, offs_t, length, offs_v, V)
        own += tl.sum(z * load_rows(v, sv_t, start, offs_t, length, offs_v, V).to(tl.float32), 1)
        u_tile = load_dense(written, offs_t, offs_v, V).to(DOT)
        do_tile = load_rows(do, sd_t, start, offs_t, length, offs_v, V).to(DOT)
        met = tl.dot((-z).to(DOT), tl.trans(u_tile), acc=met, input_precision=PRECISION)
        pairs = tl.dot(do_tile, tl.trans(u_tile), acc=pairs, input_precision=PRECISION)
    met = tl.where(before, met, 0.0)
    pairs = tl.where(seen, pairs * scale, 0.0)
    spanning = tl.full((T,), 0.0, dtype=tl.float32)
    if totals is not None:
        c = tl.load(coarse + at * T + offs_t)
        f = tl.load(fine + at * T + offs_t)
        decay = decay_between(c, f, seen, False)
        met = met * decay
        pairs = pairs * decay
        # As in chunks.gate_gradients: the sum over the pairs that span a position is formed by
        # adding.
        products = _products(q, k, sq_t, sk_t, start, offs_t, length, K, T, BK, DOT, PRECISION)
        spans = tl.where(before, pairs * products, 0.0)
        products = _products(k, k, sk_t, sk_t, start, offs_t, length, K, T, BK, DOT, PRECISION)
        spans += met * factor[:, None] * products
        ends = tl.cumsum(spans, 0, reverse=True)
        spanning = tl.sum(tl.where(before, ends, 0.0), 1)
    low_pairs = pairs.to(DOT)
    low_met = met.to(DOT)
    low_back = tl.trans((met * factor[:, None]).to(DOT))

    entered = tl.full((T,), 0.0, dtype=tl.float32)
    left = tl.full((T,), 0.0, dtype=tl.float32)
    whole = tl.full((), 0.0, dtype=tl.float32)
    for first in range(0, K, BK):
        offs_k = first + tl.arange(0, BK)
        read = tl.full((T, BK), 0.0, dtype=tl.float32)
        found = tl.full((T, BK), 0.0, dtype=tl.float32)
        wrote = tl.full((T, BK), 0.0, dtype=tl.float32)
        for second in range(0, V, BV):
            offs_v = second + tl.arange(0, BV)
            state = load_rows(states, V, 0, offs_k, K, offs_v, V)
            dstate = load_rows(dstates, V, 0, offs_k, K, offs_v, V)
            if totals is not None:
                whole += tl.sum(tl.sum(state.to(tl.float32) * dstate.to(tl.float32), 1), 0)
            state = tl.trans(state.to(DOT))
            do_tile = load_rows(do, sd_t, start, offs_t, length, offs_v, V).to(DOT)
            du = load_dense(dwritten, offs_t, offs_v, V).to(DOT)
            u_tile = load_dense(written, offs_t, offs_v, V).to(DOT)
            z = tl.dot(back, du, input_precision=PRECISION)
            read = tl.dot(do_tile, state, acc=read, input_precision=PRECISION)
            found = tl.dot((-z).to(DOT), state, acc=found, input_precision=PRECISION)
            wrote = tl.dot(u_tile, tl.trans(dstate.to(DOT)), acc=wrote, input_precision=PRECISION)
        q_tile = load_rows(q, sq_t, start, offs_t, length, offs_k, K)
        k_tile = load_rows(k, sk_t, start, offs_t, length, offs_k, K)
        k_wide = k_tile.to(tl.float32)
        low = k_tile.to(DOT)
        read = read * scale
        if totals is not None:
            entering = tl.load(through + at * T + offs_t)[:, None]
            read = read * entering
            found = found * entering
            wrote = wrote * tl.load(behind + at * T + offs_t)[:, None]
            entered += tl.sum(q_tile.to(tl.float32) * read + k_wide * found * factor[:, None], 1)
            left += tl.sum(k_wide * wrote, 1)
        found = tl.dot(low_met, low, acc=found, input_precision=PRECISION)
        own += tl.sum(found * k_wide, 1)
        wrote += found * factor[:, None]
        wrote = tl.dot(tl.trans(low_pairs), q_tile.to(DOT), acc=wrote, input_precision=PRECISION)
        wrote = tl.dot(low_back, low, acc=wrote, input_precision=PRECISION)
        read = tl.dot(low_pairs, low, acc=read, input_precision=PRECISION)
        store_rows(dq, read, heads * K, start, offs_t, length, offs_k, K)
        store_rows(dk, wrote, heads * K, start, offs_t, length, offs_k, K)
    tl.store(dbeta + gates + offs_t * heads, own, mask=valid)
    if totals is not None:
        spanning += tl.sum(tl.where(before, left[None, :], 0.0), 1)
        spanning += tl.cumsum(entered, 0, reverse=True) + whole * tl.load(totals + at)
        tl.store(dlog_decay + gates + offs_t * heads, spanning, mask=valid)
