"""Triton kernels that make the states of linear attention with one decay per head, chunk by chunk.

The recurrence is that of chunks.py.
"""

from __future__ import annotations

import triton
import triton.language as tl

from longseq.core.kernels.triton.common import decay_sums, load_rows, locate, store_rows


@triton.jit
def chunk_states(
    k,
    v,
    log_decay,
    weight,
    row,
    column,
    states,
    column_states,
    totals,
    scale,
    length,
    chunks,
    heads,
    K,
    V,
    sk_b,
    sk_t,
    sk_h,
    sv_b,
    sv_t,
    sv_h,
    SHARE: tl.constexpr,
    BACKWARD: tl.constexpr,
    NORM: tl.constexpr,
    T: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """What a chunk adds to the state: Σ_j b_j exp(g_{j+1} + … + g_T) k_j v_jᵀ.

    BACKWARD: what it adds to the state's gradient, Σ_i scale r_i exp(g_1 + … + g_i) q_i do_iᵀ, with
    k = q and v = do. The normaliser's part has ``column`` (ones if None) in place of v.
    """
    tiles_v = (V + BV - 1) // BV
    tiles = (K + BK - 1) // BK * tiles_v
    pid = tl.program_id(0)
    tile = pid % tiles
    at = (pid // tiles).to(tl.int64)
    _, h, b, start, gates = locate(at, chunks, heads, length, T)
    offs_t = tl.arange(0, T)
    valid = start + offs_t < length
    coarse, fine, all_coarse, all_fine = decay_sums(log_decay, gates, heads, offs_t, valid, T)
    if BACKWARD:
        w = tl.exp(coarse + fine) * scale
        if row is not None:
            w = w * tl.load(row + gates + offs_t * heads, mask=valid, other=0.0)
    else:
        w = tl.exp((all_coarse - coarse) + (all_fine - fine))
        if weight is not None:
            w = w * tl.load(weight + gates + offs_t * heads, mask=valid, other=0.0)
        tl.store(totals + at, all_coarse + all_fine, mask=tile == 0)

    offs_k = (tile // tiles_v) * BK + tl.arange(0, BK)
    offs_v = (tile % tiles_v) * BV + tl.arange(0, BV)
    k_at = k + b * sk_b + start * sk_t + (h // SHARE) * sk_h
    v_at = v + b * sv_b + start * sv_t + h * sv_h
    k_tile = load_rows(k_at, sk_t, start, offs_t, length, offs_k, K)
    v_tile = load_rows(v_at, sv_t, start, offs_t, length, offs_v, V)
    weighted = k_tile.to(tl.float32) * w[:, None]
    own = tl.dot(tl.trans(weighted.to(DOT)), v_tile.to(DOT), input_precision=PRECISION)
    store_rows(states + at * K * V, own, V, 0, offs_k, K, offs_v, V)
    if NORM:
        if column is not None:
            weighted = (
                weighted * tl.load(column + gates + offs_t * heads, mask=valid, other=0.0)[:, None]
            )
        tl.store(
            column_states + at * K + offs_k,
            tl.sum(weighted, 0),
            mask=offs_k < tl.where(tile % tiles_v == 0, K, 0),
        )


@triton.jit
def pass_states(
    states,
    first,
    last,
    totals,
    before,
    partial,
    chunks,
    heads,
    K,
    V,
    SHARE: tl.constexpr,
    PER_KEY: tl.constexpr,
    BACKWARD: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
):
    """Hands the state on from chunk to chunk; in place of what a chunk adds it leaves the state
    before it.

    BACKWARD: from the last chunk to the first, leaving the gradient of the state behind each chunk;
    with ``before`` (the states before the chunks) also the part of each chunk's total log-decay's
    gradient that comes from the state carried through, summed over the tile (PER_KEY: over the
    tile's value columns).
    """
    tiles_v = (V + BV - 1) // BV
    tiles = (K + BK - 1) // BK * tiles_v
    pid = tl.program_id(0)
    tile = pid % tiles
    bh = (pid // tiles).to(tl.int64)
    h = bh % heads
    b = bh // heads
    offs_k = (tile // tiles_v) * BK + tl.arange(0, BK)
    offs_v = (tile % tiles_v) * BV + tl.arange(0, BV)
    state = tl.full((BK, BV), 0.0, dtype=tl.float32)
    if first is not None:
        state = load_rows(first + bh * K * V, V, 0, offs_k, K, offs_v, V)
    for step in range(chunks):
        chunk = step
        if BACKWARD:
            chunk = chunks - 1 - step
        at = bh * chunks + chunk
        own = load_rows(states + at * K * V, V, 0, offs_k, K, offs_v, V)
        store_rows(states + at * K * V, state, V, 0, offs_k, K, offs_v, V)
        if totals is not None:
            if PER_KEY:
                group = (b * (heads // SHARE) + h // SHARE) * chunks + chunk
                decay = tl.exp(tl.load(totals + group * K + offs_k, mask=offs_k < K, other=0.0))[
                    :, None
                ]
            else:
                decay = tl.exp(tl.load(totals + at))
            carried = state * decay
        else:
            carried = state
        if before is not None:
            product = carried * load_rows(before + at * K * V, V, 0, offs_k, K, offs_v, V)
            if PER_KEY:
                tl.store(
                    partial + (at * tiles_v + tile % tiles_v) * K + offs_k,
                    tl.sum(product, 1),
                    mask=offs_k < K,
                )
            else:
                tl.store(partial + at * tiles + tile, tl.sum(tl.sum(product, 1), 0))
        state = carried + own
    store_rows(last + bh * K * V, state, V, 0, offs_k, K, offs_v, V)
