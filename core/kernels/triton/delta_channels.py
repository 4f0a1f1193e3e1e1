"""Triton kernels for a decay per key channel: the decayed products inside the delta rule's chunks.

With one decay per channel they are no matrix product times a mask. A block of 16 positions meets an
earlier one as rows decayed from its own start and columns decayed to it; inside it, halves,
quarters, … meet likewise. All exponents are sums of log-decays over a real span, formed by adding,
and every product is one of matrices.
"""

from __future__ import annotations

import triton
import triton.language as tl

from longseq.core.kernels.triton.common import load_rows, locate, store_rows, sums_behind


@triton.jit
def _double(
    through,
    behind,
    log_decay,
    stride,
    start,
    base,
    length,
    offs_k,
    K: tl.constexpr,
    h: tl.constexpr,
):
    """Returns the sums through and behind each row of blocks of 2h rows, from those of blocks of
    h."""
    offs = tl.arange(0, 16)
    sibling = tl.full((16, through.shape[1]), 0.0, dtype=tl.float32)
    for r in tl.static_range(h):
        rows = base + ((offs // h) ^ 1) * h + r
        sibling += load_rows(log_decay, stride, start, rows, length, offs_k, K)
    late = ((offs // h) % 2 == 1)[:, None]
    return through + tl.where(late, sibling, 0.0), behind + tl.where(late, 0.0, sibling)


@triton.jit
def channel_products(
    q,
    k,
    log_decay,
    read,
    met,
    far_q,
    near_k,
    far_k,
    totals,
    scale,
    length,
    chunks,
    groups,
    sq_b,
    sq_t,
    sq_h,
    sk_b,
    sk_t,
    sk_h,
    K: tl.constexpr,
    T: tl.constexpr,
    BK: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Writes decayed products of queries, scaled, and of keys with earlier keys, (B, G, C, T, T).

    Also queries and keys decayed from the chunk's start, keys decayed to its end (B, L, G, K), and
    the chunk's total log-decay (B, G, C, K).
    """
    blocks: tl.constexpr = T // 16
    pid = tl.program_id(0)
    block = pid % blocks
    at = (pid // blocks).to(tl.int64)
    _, group, b, start, first = locate(at, chunks, groups, length, T)
    q += b * sq_b + start * sq_t + group * sq_h
    k += b * sk_b + start * sk_t + group * sk_h
    dense = first * K
    log_decay += dense
    stride = groups * K
    offs = tl.arange(0, 16)
    offs_k = tl.arange(0, BK)
    i = offs[:, None]
    j = offs[None, :]
    base = block * 16
    own = base + offs
    q_tile = load_rows(q, sq_t, start, own, length, offs_k, K).to(tl.float32)
    k_tile = load_rows(k, sk_t, start, own, length, offs_k, K).to(tl.float32)
    through = load_rows(log_decay, stride, start, own, length, offs_k, K)
    behind = tl.full((16, BK), 0.0, dtype=tl.float32)
    reads = tl.where(i == j, tl.sum(q_tile * k_tile, 1)[:, None], 0.0)
    meets = tl.full((16, 16), 0.0, dtype=tl.float32)
    for level in tl.static_range(4):
        h = 2**level
        late = ((offs // h) % 2 == 1)[:, None]
        decay = tl.exp(tl.where(late, through, behind))
        decayed = k_tile * decay
        early = tl.trans(tl.where(late, 0.0, decayed).to(DOT))
        pair = (i // (2 * h) == j // (2 * h)) & (i // h > j // h)
        product = tl.dot((q_tile * decay).to(DOT), early, input_precision=PRECISION)
        reads = tl.where(pair, product, reads)
        product = tl.dot(decayed.to(DOT), early, input_precision=PRECISION)
        meets = tl.where(pair, product, meets)
        through, behind = _double(
            through, behind, log_decay, stride, start, base, length, offs_k, K, 2**level
        )
    read += at * T * T + own[:, None] * T + offs[None, :]
    met += at * T * T + own[:, None] * T + offs[None, :]
    tl.store(read + base, (reads * scale).to(read.dtype.element_ty))
    tl.store(met + base, meets)

    decay = tl.exp(through)
    q_far = (q_tile * decay).to(DOT)
    k_far = (k_tile * decay).to(DOT)
    between = tl.full((BK,), 0.0, dtype=tl.float32)
    for step in range(block):
        other = base - 16 - step * 16
        rows = other + offs
        far = sums_behind(log_decay, stride, start, rows, length, offs_k, K, 16)
        far += between[None, :]
        early = load_rows(k, sk_t, start, rows, length, offs_k, K).to(tl.float32) * tl.exp(far)
        early = tl.trans(early.to(DOT))
        product = tl.dot(q_far, early, input_precision=PRECISION) * scale
        tl.store(read + other, product.to(read.dtype.element_ty))
        tl.store(met + other, tl.dot(k_far, early, input_precision=PRECISION))
        between += tl.sum(load_rows(log_decay, stride, start, rows, length, offs_k, K), 0)
    decay = tl.exp(through + between[None, :])
    store_rows(far_q + dense, q_tile * decay, stride, start, own, length, offs_k, K)
    store_rows(near_k + dense, k_tile * decay, stride, start, own, length, offs_k, K)
    none = tl.full((16, 16), 0.0, dtype=tl.float32)
    later = tl.full((BK,), 0.0, dtype=tl.float32)
    for step in range(block + 1, blocks):
        tl.store(read + step * 16, none.to(read.dtype.element_ty))
        tl.store(met + step * 16, none)
        later += tl.sum(load_rows(log_decay, stride, start, step * 16 + offs, length, offs_k, K), 0)
    decay = tl.exp(behind + later[None, :])
    store_rows(far_k + dense, k_tile * decay, stride, start, own, length, offs_k, K)
    total = tl.sum(load_rows(log_decay, stride, start, own, length, offs_k, K), 0) + later
    tl.store(totals + at * K + offs_k, total, mask=offs_k < tl.where(block == 0, K, 0))


@triton.jit
def channel_products_backward(
    q,
    k,
    log_decay,
    dread,
    dmet,
    dq,
    dk,
    difference,
    length,
    chunks,
    groups,
    sq_b,
    sq_t,
    sq_h,
    sk_b,
    sk_t,
    sk_h,
    K: tl.constexpr,
    T: tl.constexpr,
    BK: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """From the gradients of the products (scale included) those of q and k by them (B, L, G, K),
    float32.

    ``difference`` is q ∘ dq + k ∘ dk of later positions - k ∘ dk of earlier ones, without the
    diagonal, which no decay touches.
    """
    blocks: tl.constexpr = T // 16
    pid = tl.program_id(0)
    block = pid % blocks
    at = (pid // blocks).to(tl.int64)
    _, group, b, start, first = locate(at, chunks, groups, length, T)
    q += b * sq_b + start * sq_t + group * sq_h
    k += b * sk_b + start * sk_t + group * sk_h
    dense = first * K
    log_decay += dense
    stride = groups * K
    offs = tl.arange(0, 16)
    offs_k = tl.arange(0, BK)
    i = offs[:, None]
    j = offs[None, :]
    base = block * 16
    own = base + offs
    dread += at * T * T
    dmet += at * T * T
    q_tile = load_rows(q, sq_t, start, own, length, offs_k, K).to(tl.float32)
    k_tile = load_rows(k, sk_t, start, own, length, offs_k, K).to(tl.float32)
    through = load_rows(log_decay, stride, start, own, length, offs_k, K)
    behind = tl.full((16, BK), 0.0, dtype=tl.float32)
    dreads = tl.load(dread + own[:, None] * T + base + j).to(tl.float32)
    dmeets = tl.load(dmet + own[:, None] * T + base + j).to(tl.float32)
    dq_tile = tl.full((16, BK), 0.0, dtype=tl.float32)
    late_dk = tl.full((16, BK), 0.0, dtype=tl.float32)
    early_dk = tl.full((16, BK), 0.0, dtype=tl.float32)
    for level in tl.static_range(4):
        h = 2**level
        late = ((offs // h) % 2 == 1)[:, None]
        decay = tl.exp(tl.where(late, through, behind))
        pair = (i // (2 * h) == j // (2 * h)) & (i // h > j // h)
        ds = tl.where(pair, dreads, 0.0).to(DOT)
        dm = tl.where(pair, dmeets, 0.0).to(DOT)
        decayed = (k_tile * decay).to(DOT)
        # Only pairs of a late row and an early column are left in ds and dm.
        dq_tile += tl.dot(ds, decayed, input_precision=PRECISION) * decay
        late_dk += tl.dot(dm, decayed, input_precision=PRECISION) * decay
        both = tl.dot(tl.trans(ds), (q_tile * decay).to(DOT), input_precision=PRECISION)
        both = tl.dot(tl.trans(dm), decayed, acc=both, input_precision=PRECISION)
        early_dk += both * decay
        through, behind = _double(
            through, behind, log_decay, stride, start, base, length, offs_k, K, 2**level
        )

    far_q = tl.full((16, BK), 0.0, dtype=tl.float32)
    far_k = tl.full((16, BK), 0.0, dtype=tl.float32)
    between = tl.full((BK,), 0.0, dtype=tl.float32)
    for step in range(block):
        other = base - 16 - step * 16
        rows = other + offs
        far = sums_behind(log_decay, stride, start, rows, length, offs_k, K, 16)
        far += between[None, :]
        early = load_rows(k, sk_t, start, rows, length, offs_k, K).to(tl.float32) * tl.exp(far)
        ds = tl.load(dread + own[:, None] * T + other + j).to(DOT)
        dm = tl.load(dmet + own[:, None] * T + other + j).to(DOT)
        far_q = tl.dot(ds, early.to(DOT), acc=far_q, input_precision=PRECISION)
        far_k = tl.dot(dm, early.to(DOT), acc=far_k, input_precision=PRECISION)
        between += tl.sum(load_rows(log_decay, stride, start, rows, length, offs_k, K), 0)
    decay = tl.exp(through)
    dq_tile += far_q * decay
    late_dk += far_k * decay

    far_k = tl.full((16, BK), 0.0, dtype=tl.float32)
    between = tl.full((BK,), 0.0, dtype=tl.float32)
    for step in range(block + 1, blocks):
        rows = step * 16 + offs
        g = load_rows(log_decay, stride, start, rows, length, offs_k, K)
        decay = tl.exp(tl.cumsum(g, 0) + between[None, :])
        late_q = load_rows(q, sq_t, start, rows, length, offs_k, K).to(tl.float32) * decay
        late_k = load_rows(k, sk_t, start, rows, length, offs_k, K).to(tl.float32) * decay
        ds = tl.load(dread + rows[:, None] * T + base + j).to(DOT)
        dm = tl.load(dmet + rows[:, None] * T + base + j).to(DOT)
        far_k = tl.dot(tl.trans(ds), late_q.to(DOT), acc=far_k, input_precision=PRECISION)
        far_k = tl.dot(tl.trans(dm), late_k.to(DOT), acc=far_k, input_precision=PRECISION)
        between += tl.sum(g, 0)
    early_dk += far_k * tl.exp(behind)

    change = q_tile * dq_tile + k_tile * (late_dk - early_dk)
    store_rows(difference + dense, change, stride, start, own, length, offs_k, K)
    diagonal = tl.sum(tl.where(i == j, dreads, 0.0), 1)[:, None]
    dq_tile += diagonal * k_tile
    store_rows(dq + dense, dq_tile, stride, start, own, length, offs_k, K)
    dk_tile = late_dk + early_dk + diagonal * q_tile
    store_rows(dk + dense, dk_tile, stride, start, own, length, offs_k, K)
