"""Triton kernels for a decay per key channel (GLA): decayed queries and keys, scores, and their
gradients.

With one decay per channel a chunk's scores are no product of a matrix with a mask. Blocks of BC
positions are products of queries decayed from their block's start and keys decayed to it; on the
diagonal every key is taken alone. All exponents are sums of log-decays over a real span, formed by
adding: nothing is divided by a cumulative decay, and -inf needs no care.
"""

from __future__ import annotations

import triton
import triton.language as tl

from longseq.core.kernels.triton.common import load_rows, locate, sums_behind


@triton.jit
def decay_rows(
    q,
    k,
    log_decay,
    q_out,
    k_out,
    totals,
    length,
    chunks,
    groups,
    K,
    sq_b,
    sq_t,
    sq_h,
    sk_b,
    sk_t,
    sk_h,
    T: tl.constexpr,
    BK: tl.constexpr,
):
    """Writes q exp(g_1 + … + g_t), k exp(g_{t+1} + … + g_T) (dense, B, L, G, K) and the chunk's
    total."""
    tiles = (K + BK - 1) // BK
    pid = tl.program_id(0)
    offs_k = (pid % tiles) * BK + tl.arange(0, BK)
    at = (pid // tiles).to(tl.int64)
    _, group, b, start, first = locate(at, chunks, groups, length, T)
    offs_t = tl.arange(0, T)
    mask = (start + offs_t < length)[:, None] & (offs_k < K)[None, :]
    dense = first * K + offs_t[:, None] * (groups * K) + offs_k[None, :]
    g = tl.load(log_decay + dense, mask=mask, other=0.0)
    behind = sums_behind(log_decay + first * K, groups * K, start, offs_t, length, offs_k, K, T)
    q_at = q + b * sq_b + start * sq_t + group * sq_h
    q_tile = load_rows(q_at, sq_t, start, offs_t, length, offs_k, K).to(tl.float32)
    k_at = k + b * sk_b + start * sk_t + group * sk_h
    k_tile = load_rows(k_at, sk_t, start, offs_t, length, offs_k, K).to(tl.float32)
    q_tile = q_tile * tl.exp(tl.cumsum(g, 0))
    k_tile = k_tile * tl.exp(behind)
    tl.store(q_out + dense, q_tile.to(q_out.dtype.element_ty), mask=mask)
    tl.store(k_out + dense, k_tile.to(k_out.dtype.element_ty), mask=mask)
    tl.store(totals + at * K + offs_k, tl.sum(g, 0), mask=offs_k < K)


@triton.jit
def _block(x, at, stride, first, length, offs_k, K, BC: tl.constexpr):
    """Loads BC rows of x from position ``first``, zero behind ``length``."""
    rows = first + tl.arange(0, BC)
    return load_rows(x + at, stride, 0, rows, length, offs_k, K).to(tl.float32)


@triton.jit
def _decays_behind(log_decay, at, stride, first, length, offs_k, K, BC: tl.constexpr):
    """Returns (BC, K) sums of the log-decays behind each row up to the block's end."""
    rows = first + tl.arange(0, BC)
    return sums_behind(log_decay + at, stride, 0, rows, length, offs_k, K, BC)


@triton.jit
def channel_scores(
    q,
    k,
    log_decay,
    scores,
    scale,
    length,
    chunks,
    groups,
    K,
    sq_b,
    sq_t,
    sq_h,
    sk_b,
    sk_t,
    sk_h,
    T: tl.constexpr,
    BC: tl.constexpr,
    BK: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Writes the lower triangle of scale Σ_c q_ic k_jc exp(g_{j+1,c} + … + g_ic), (B, G, C, T,
    T)."""
    pid = tl.program_id(0)
    blocks = T // BC
    row_block = pid % blocks
    at = (pid // blocks).to(tl.int64)
    _, group, b, start, _ = locate(at, chunks, groups, length, T)
    q_at = b * sq_b + group * sq_h
    k_at = b * sk_b + group * sk_h
    g_at = (b * length * groups + group) * K
    sg_t = groups * K
    offs_k = tl.arange(0, BK)
    offs = tl.arange(0, BC)
    out_at = scores + at * T * T + (row_block * BC + offs)[:, None] * T
    first = start + row_block * BC
    q_tile = _block(q, q_at, sq_t, first, length, offs_k, K, BC)
    g_tile = _block(log_decay, g_at, sg_t, first, length, offs_k, K, BC)
    q_far = (q_tile * tl.exp(tl.cumsum(g_tile, 0))).to(DOT)
    between = tl.full((BK,), 0.0, dtype=tl.float32)
    for step in range(row_block):
        column_block = row_block - 1 - step
        here = start + column_block * BC
        k_tile = _block(k, k_at, sk_t, here, length, offs_k, K, BC)
        behind = (
            _decays_behind(log_decay, g_at, sg_t, here, length, offs_k, K, BC) + between[None, :]
        )
        k_far = (k_tile * tl.exp(behind)).to(DOT)
        product = tl.dot(q_far, tl.trans(k_far), input_precision=PRECISION) * scale
        tl.store(out_at + (column_block * BC + offs)[None, :], product)
        between += tl.sum(_block(log_decay, g_at, sg_t, here, length, offs_k, K, BC), 0)

    span = tl.full((BC, BK), 0.0, dtype=tl.float32)
    diagonal = tl.full((BC, BC), 0.0, dtype=tl.float32)
    for step in range(BC):
        j = BC - 1 - step
        mask = offs_k < tl.where(first + j < length, K, 0)
        k_row = tl.load(k + k_at + (first + j) * sk_t + offs_k, mask=mask, other=0.0).to(tl.float32)
        product = tl.sum(q_tile * k_row[None, :] * tl.exp(span), 1) * scale
        diagonal = tl.where((offs[None, :] == j) & (offs[:, None] >= j), product[:, None], diagonal)
        g_row = tl.load(log_decay + g_at + (first + j) * sg_t + offs_k, mask=mask, other=0.0)
        span = tl.where((offs >= j)[:, None], span + g_row[None, :], span)
    tl.store(out_at + (row_block * BC + offs)[None, :], diagonal)


@triton.jit
def channel_scores_backward(
    q,
    k,
    log_decay,
    dscores,
    dq,
    dk,
    difference,
    length,
    chunks,
    groups,
    K,
    sq_b,
    sq_t,
    sq_h,
    sk_b,
    sk_t,
    sk_h,
    T: tl.constexpr,
    BC: tl.constexpr,
    BK: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """From the gradient of the scores (scale included) those of q and k through them (B, L, G, K),
    float32.

    ``difference`` is q ∘ dq - k ∘ dk without the diagonal, which no decay touches; its sum from a
    position to the chunk's end is that position's gradient of the log-decay.
    """
    pid = tl.program_id(0)
    blocks = T // BC
    block = pid % blocks
    at = (pid // blocks).to(tl.int64)
    _, group, b, start, _ = locate(at, chunks, groups, length, T)
    q_at = b * sq_b + group * sq_h
    k_at = b * sk_b + group * sk_h
    g_at = (b * length * groups + group) * K
    sg_t = groups * K
    offs_k = tl.arange(0, BK)
    offs = tl.arange(0, BC)
    ds_at = dscores + at * T * T
    own = block * BC
    first = start + own
    q_tile = _block(q, q_at, sq_t, first, length, offs_k, K, BC)
    k_tile = _block(k, k_at, sk_t, first, length, offs_k, K, BC)
    through = tl.cumsum(_block(log_decay, g_at, sg_t, first, length, offs_k, K, BC), 0)
    behind = _decays_behind(log_decay, g_at, sg_t, first, length, offs_k, K, BC)

    dq_tile = tl.full((BC, BK), 0.0, dtype=tl.float32)
    between = tl.full((BK,), 0.0, dtype=tl.float32)
    for step in range(block):
        other = (block - 1 - step) * BC
        far = (
            _decays_behind(log_decay, g_at, sg_t, start + other, length, offs_k, K, BC)
            + between[None, :]
        )
        k_far = (_block(k, k_at, sk_t, start + other, length, offs_k, K, BC) * tl.exp(far)).to(DOT)
        ds = tl.load(ds_at + (own + offs)[:, None] * T + (other + offs)[None, :]).to(DOT)
        dq_tile = tl.dot(ds, k_far, acc=dq_tile, input_precision=PRECISION)
        between += tl.sum(_block(log_decay, g_at, sg_t, start + other, length, offs_k, K, BC), 0)
    dq_tile = dq_tile * tl.exp(through)

    dk_tile = tl.full((BC, BK), 0.0, dtype=tl.float32)
    between = tl.full((BK,), 0.0, dtype=tl.float32)
    for step in range(block + 1, blocks):
        other = step * BC
        g_tile = _block(log_decay, g_at, sg_t, start + other, length, offs_k, K, BC)
        far = tl.cumsum(g_tile, 0) + between[None, :]
        q_far = (_block(q, q_at, sq_t, start + other, length, offs_k, K, BC) * tl.exp(far)).to(DOT)
        ds = tl.load(ds_at + (other + offs)[None, :] * T + (own + offs)[:, None]).to(DOT)
        dk_tile = tl.dot(ds, q_far, acc=dk_tile, input_precision=PRECISION)
        between += tl.sum(g_tile, 0)
    dk_tile = dk_tile * tl.exp(behind)

    span = tl.full((BC, BK), 0.0, dtype=tl.float32)
    for step in range(BC):
        j = BC - 1 - step
        mask = offs_k < tl.where(first + j < length, K, 0)
        k_row = tl.load(k + k_at + (first + j) * sk_t + offs_k, mask=mask, other=0.0).to(tl.float32)
        ds = tl.load(ds_at + (own + offs) * T + own + j)
        dq_tile += tl.where((offs > j)[:, None], ds[:, None] * k_row[None, :] * tl.exp(span), 0.0)
        g_row = tl.load(log_decay + g_at + (first + j) * sg_t + offs_k, mask=mask, other=0.0)
        span = tl.where((offs >= j)[:, None], span + g_row[None, :], span)
    span = tl.full((BC, BK), 0.0, dtype=tl.float32)
    for i in range(BC):
        mask = offs_k < tl.where(first + i < length, K, 0)
        g_row = tl.load(log_decay + g_at + (first + i) * sg_t + offs_k, mask=mask, other=0.0)
        span = tl.where((offs < i)[:, None], span + g_row[None, :], span)
        q_row = tl.load(q + q_at + (first + i) * sq_t + offs_k, mask=mask, other=0.0).to(tl.float32)
        ds = tl.load(ds_at + (own + i) * T + own + offs)
        dk_tile += tl.where((offs < i)[:, None], ds[:, None] * q_row[None, :] * tl.exp(span), 0.0)

    mask = (first + offs < length)[:, None] & (offs_k < K)[None, :]
    dense = g_at + (first + offs)[:, None] * sg_t + offs_k[None, :]
    tl.store(difference + dense, q_tile * dq_tile - k_tile * dk_tile, mask=mask)
    ds = tl.load(ds_at + (own + offs) * T + own + offs)
    tl.store(dq + dense, dq_tile + ds[:, None] * k_tile, mask=mask)
    tl.store(dk + dense, dk_tile + ds[:, None] * q_tile, mask=mask)


@triton.jit
def finish_gradients(
    q,
    k,
    log_decay,
    dq_far,
    dk_far,
    dq_near,
    dk_near,
    difference,
    carried,
    dq,
    dk,
    dlog_decay,
    length,
    chunks,
    groups,
    K,
    sq_b,
    sq_t,
    sq_h,
    sk_b,
    sk_t,
    sk_h,
    T: tl.constexpr,
    BK: tl.constexpr,
):
    """Joins the gradients through the states (of the decayed q and k) and through the scores;
    dlog_decay."""
    tiles = (K + BK - 1) // BK
    pid = tl.program_id(0)
    offs_k = (pid % tiles) * BK + tl.arange(0, BK)
    at = (pid // tiles).to(tl.int64)
    _, group, b, start, first = locate(at, chunks, groups, length, T)
    offs_t = tl.arange(0, T)
    mask = (start + offs_t < length)[:, None] & (offs_k < K)[None, :]
    dense = first * K + offs_t[:, None] * (groups * K) + offs_k[None, :]
    g = tl.load(log_decay + dense, mask=mask, other=0.0)
    behind = sums_behind(log_decay + first * K, groups * K, start, offs_t, length, offs_k, K, T)
    through = tl.exp(tl.cumsum(g, 0))
    behind = tl.exp(behind)
    near = tl.load(difference + dense, mask=mask, other=0.0)
    q_at = q + b * sq_b + start * sq_t + group * sq_h
    q_tile = load_rows(q_at, sq_t, start, offs_t, length, offs_k, K).to(tl.float32)
    far = tl.load(dq_far + dense, mask=mask, other=0.0) * through
    near += far * q_tile
    far += tl.load(dq_near + dense, mask=mask, other=0.0)
    tl.store(dq + dense, far.to(dq.dtype.element_ty), mask=mask)
    far = tl.load(dk_far + dense, mask=mask, other=0.0) * behind
    far += tl.load(dk_near + dense, mask=mask, other=0.0)
    tl.store(dk + dense, far.to(dk.dtype.element_ty), mask=mask)
    # What positions before s add to the state passes s: the rows one earlier, so that s itself is
    # left out.
    earlier = mask & (offs_t > 0)[:, None]
    k_before = tl.load(
        k + b * sk_b + start * sk_t + group * sk_h + (offs_t[:, None] - 1) * sk_t + offs_k[None, :],
        mask=earlier,
        other=0.0,
    ).to(tl.float32)
    written = tl.load(dk_far + dense - groups * K, mask=earlier, other=0.0) * k_before
    total = tl.cumsum(near, 0, reverse=True) + tl.cumsum(written * behind * tl.exp(g), 0)
    total += tl.load(carried + at * K + offs_k, mask=offs_k < K, other=0.0)[None, :]
    tl.store(dlog_decay + dense, total, mask=mask)
