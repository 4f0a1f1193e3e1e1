"""Triton kernels over the chunks of the delta rule: the inverse of its triangle, and what is solved
with it.

S_t = D_t S_{t-1} + k_t u_tᵀ with u_t = β_t (v_t - (D_t S_{t-1})ᵀ k_t), o_t = scale · S_tᵀ q_t.
Chunks have T = 64 positions. With A the strictly lower triangle of decayed key products, M = (I +
diag(β) A)⁻¹ and F the keys decayed from the chunk's start, U = M diag(β) V - M diag(β) F S_0. What
is per chunk is dense: (B, H, C, T, …).
"""

from __future__ import annotations

import triton
import triton.language as tl

from longseq.core.kernels.triton.common import (
    decay_between,
    decay_sums,
    load_rows,
    locate,
    store_dense,
)


@triton.jit
def _spans(log_decay, gates, heads, start, rows, length):
    """Returns sums of 16 log-decays: through each row, behind each row, all; and running, in two
    parts."""
    offs = tl.arange(0, 16)
    g = tl.load(log_decay + gates + rows * heads, mask=start + rows < length, other=0.0)
    follows = (offs < 15) & (start + rows + 1 < length)
    after = tl.load(log_decay + gates + (rows + 1) * heads, mask=follows, other=0.0)
    coarse, fine, _, _ = decay_sums(log_decay, gates, heads, rows, start + rows < length, 16)
    return tl.cumsum(g, 0), tl.cumsum(after, 0, reverse=True), tl.sum(g, 0), coarse, fine


@triton.jit
def _own(product, coarse, fine, beta, DECAY: tl.constexpr):
    """Returns a block on the diagonal of diag(β) A."""
    offs = tl.arange(0, 16)
    lower = offs[:, None] > offs[None, :]
    if DECAY:
        product = product * decay_between(coarse, fine, lower, False)
    return tl.where(lower, product * beta[:, None], 0.0)


@triton.jit
def _below(product, through, behind, beta, DECAY: tl.constexpr):
    """Returns a block below the diagonal of diag(β) A."""
    if DECAY:
        product = product * (tl.exp(through)[:, None] * tl.exp(behind)[None, :])
    return product * beta[:, None]


@triton.jit
def _inverse(n, EXACT: tl.constexpr):
    """Returns (I + n)⁻¹ for n strictly lower triangular, 16 × 16, by doubling what is inverted."""
    offs = tl.arange(0, 16)
    i = offs[:, None]
    j = offs[None, :]
    d = tl.where(i == j, 1.0, 0.0) - tl.where(i // 2 == j // 2, n, 0.0)
    for level in tl.static_range(1, 4):
        h = 2**level
        block = tl.where((i // (2 * h) == j // (2 * h)) & (i // h > j // h), n, 0.0)
        d = d - tl.dot(d, tl.dot(block, d, input_precision=EXACT), input_precision=EXACT)
    return d


@triton.jit
def _put(inverse, x, row, column):
    """Stores a 16 × 16 block."""
    offs = tl.arange(0, 16)
    at = (row * 16 + offs)[:, None] * 64 + (column * 16 + offs)[None, :]
    tl.store(inverse + at, x.to(inverse.dtype.element_ty))


@triton.jit
def _given(met, row, column):
    """Loads a 16 × 16 block."""
    offs = tl.arange(0, 16)
    return tl.load(met + (row * 16 + offs)[:, None] * 64 + (column * 16 + offs)[None, :])


@triton.jit
def invert_chunks(
    k,
    beta,
    log_decay,
    met,
    inverse,
    length,
    chunks,
    heads,
    sk_b,
    sk_t,
    sk_h,
    SHARE: tl.constexpr,
    K: tl.constexpr,
    BK: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
    EXACT: tl.constexpr,
):
    """Writes M = (I + diag(β) A)⁻¹ (B, H, C, T, T), by blocks of 16; ``met`` is A (B, G, C, T, T)
    or None."""
    at = tl.program_id(0).to(tl.int64)
    chunk, h, b, start, gates = locate(at, chunks, heads, length, 64)
    offs = tl.arange(0, 16)
    b0 = tl.load(beta + gates + offs * heads, mask=start + offs < length, other=0.0)
    b1 = tl.load(beta + gates + (offs + 16) * heads, mask=start + offs + 16 < length, other=0.0)
    b2 = tl.load(beta + gates + (offs + 32) * heads, mask=start + offs + 32 < length, other=0.0)
    b3 = tl.load(beta + gates + (offs + 48) * heads, mask=start + offs + 48 < length, other=0.0)
    if met is not None:
        met += ((b * (heads // SHARE) + h // SHARE) * chunks + chunk) * 4096
        n00 = _own(_given(met, 0, 0), b0, b0, b0, False)
        n11 = _own(_given(met, 1, 1), b1, b1, b1, False)
        n22 = _own(_given(met, 2, 2), b2, b2, b2, False)
        n33 = _own(_given(met, 3, 3), b3, b3, b3, False)
        n10 = _given(met, 1, 0) * b1[:, None]
        n20 = _given(met, 2, 0) * b2[:, None]
        n21 = _given(met, 2, 1) * b2[:, None]
        n30 = _given(met, 3, 0) * b3[:, None]
        n31 = _given(met, 3, 1) * b3[:, None]
        n32 = _given(met, 3, 2) * b3[:, None]
    else:
        k += b * sk_b + start * sk_t + (h // SHARE) * sk_h
        n00 = tl.full((16, 16), 0.0, dtype=tl.float32)
        n11 = tl.full((16, 16), 0.0, dtype=tl.float32)
        n22 = tl.full((16, 16), 0.0, dtype=tl.float32)
        n33 = tl.full((16, 16), 0.0, dtype=tl.float32)
        n10 = tl.full((16, 16), 0.0, dtype=tl.float32)
        n20 = tl.full((16, 16), 0.0, dtype=tl.float32)
        n21 = tl.full((16, 16), 0.0, dtype=tl.float32)
        n30 = tl.full((16, 16), 0.0, dtype=tl.float32)
        n31 = tl.full((16, 16), 0.0, dtype=tl.float32)
        n32 = tl.full((16, 16), 0.0, dtype=tl.float32)
        for first in range(0, K, BK):
            offs_k = first + tl.arange(0, BK)
            k0 = load_rows(k, sk_t, start, offs, length, offs_k, K).to(DOT)
            k1 = load_rows(k, sk_t, start, offs + 16, length, offs_k, K).to(DOT)
            k2 = load_rows(k, sk_t, start, offs + 32, length, offs_k, K).to(DOT)
            k3 = load_rows(k, sk_t, start, offs + 48, length, offs_k, K).to(DOT)
            n00 = tl.dot(k0, tl.trans(k0), acc=n00, input_precision=PRECISION)
            n11 = tl.dot(k1, tl.trans(k1), acc=n11, input_precision=PRECISION)
            n22 = tl.dot(k2, tl.trans(k2), acc=n22, input_precision=PRECISION)
            n33 = tl.dot(k3, tl.trans(k3), acc=n33, input_precision=PRECISION)
            n10 = tl.dot(k1, tl.trans(k0), acc=n10, input_precision=PRECISION)
            n20 = tl.dot(k2, tl.trans(k0), acc=n20, input_precision=PRECISION)
            n21 = tl.dot(k2, tl.trans(k1), acc=n21, input_precision=PRECISION)
            n30 = tl.dot(k3, tl.trans(k0), acc=n30, input_precision=PRECISION)
            n31 = tl.dot(k3, tl.trans(k1), acc=n31, input_precision=PRECISION)
            n32 = tl.dot(k3, tl.trans(k2), acc=n32, input_precision=PRECISION)
        if log_decay is not None:
            _, e0, _, c0, f0 = _spans(log_decay, gates, heads, start, offs, length)
            t1, e1, s1, c1, f1 = _spans(log_decay, gates, heads, start, offs + 16, length)
            t2, e2, s2, c2, f2 = _spans(log_decay, gates, heads, start, offs + 32, length)
            t3, _, _, c3, f3 = _spans(log_decay, gates, heads, start, offs + 48, length)
            n00 = _own(n00, c0, f0, b0, True)
            n11 = _own(n11, c1, f1, b1, True)
            n22 = _own(n22, c2, f2, b2, True)
            n33 = _own(n33, c3, f3, b3, True)
            n10 = _below(n10, t1, e0, b1, True)
            n20 = _below(n20, t2, e0 + s1, b2, True)
            n21 = _below(n21, t2, e1, b2, True)
            n30 = _below(n30, t3, e0 + (s1 + s2), b3, True)
            n31 = _below(n31, t3, e1 + s2, b3, True)
            n32 = _below(n32, t3, e2, b3, True)
        else:
            n00 = _own(n00, b0, b0, b0, False)
            n11 = _own(n11, b1, b1, b1, False)
            n22 = _own(n22, b2, b2, b2, False)
            n33 = _own(n33, b3, b3, b3, False)
            n10 = _below(n10, b0, b0, b1, False)
            n20 = _below(n20, b0, b0, b2, False)
            n21 = _below(n21, b0, b0, b2, False)
            n30 = _below(n30, b0, b0, b3, False)
            n31 = _below(n31, b0, b0, b3, False)
            n32 = _below(n32, b0, b0, b3, False)
    d0 = _inverse(n00, EXACT)
    d1 = _inverse(n11, EXACT)
    d2 = _inverse(n22, EXACT)
    d3 = _inverse(n33, EXACT)
    x10 = -tl.dot(d1, tl.dot(n10, d0, input_precision=EXACT), input_precision=EXACT)
    x21 = -tl.dot(d2, tl.dot(n21, d1, input_precision=EXACT), input_precision=EXACT)
    x32 = -tl.dot(d3, tl.dot(n32, d2, input_precision=EXACT), input_precision=EXACT)
    y20 = tl.dot(n21, x10, acc=tl.dot(n20, d0, input_precision=EXACT), input_precision=EXACT)
    x20 = -tl.dot(d2, y20, input_precision=EXACT)
    y31 = tl.dot(n32, x21, acc=tl.dot(n31, d1, input_precision=EXACT), input_precision=EXACT)
    x31 = -tl.dot(d3, y31, input_precision=EXACT)
    y30 = tl.dot(n31, x10, acc=tl.dot(n30, d0, input_precision=EXACT), input_precision=EXACT)
    y30 = tl.dot(n32, x20, acc=y30, input_precision=EXACT)
    x30 = -tl.dot(d3, y30, input_precision=EXACT)
    inverse += at * 4096
    none = tl.full((16, 16), 0.0, dtype=tl.float32)
    _put(inverse, d0, 0, 0)
    _put(inverse, none, 0, 1)
    _put(inverse, none, 0, 2)
    _put(inverse, none, 0, 3)
    _put(inverse, x10, 1, 0)
    _put(inverse, d1, 1, 1)
    _put(inverse, none, 1, 2)
    _put(inverse, none, 1, 3)
    _put(inverse, x20, 2, 0)
    _put(inverse, x21, 2, 1)
    _put(inverse, d2, 2, 2)
    _put(inverse, none, 2, 3)
    _put(inverse, x30, 3, 0)
    _put(inverse, x31, 3, 1)
    _put(inverse, x32, 3, 2)
    _put(inverse, d3, 3, 3)


@triton.jit
def write_forms(
    k,
    v,
    beta,
    log_decay,
    inverse,
    w,
    u,
    running,
    minor,
    through,
    behind,
    totals,
    length,
    chunks,
    heads,
    sk_b,
    sk_t,
    sk_h,
    sv_b,
    sv_t,
    sv_h,
    SHARE: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    T: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Writes W = M diag(β) F (B, H, C, T, K) and M diag(β) V (B, H, C, T, V): U is the latter - W
    S_0.

    With a decay per head also its running sums in two parts, and the factors from the chunk's
    start, to its end, and over it. With one per channel, k is decayed from the chunk's start, and
    the rest is None.
    """
    at = tl.program_id(0).to(tl.int64)
    _, h, b, start, gates = locate(at, chunks, heads, length, T)
    offs_t = tl.arange(0, T)
    valid = start + offs_t < length
    m = tl.load(inverse + at * T * T + offs_t[:, None] * T + offs_t[None, :]).to(DOT)
    factor = tl.load(beta + gates + offs_t * heads, mask=valid, other=0.0)
    v += b * sv_b + start * sv_t + h * sv_h
    for first in range(0, V, BV):
        offs_v = first + tl.arange(0, BV)
        tile = load_rows(v, sv_t, start, offs_t, length, offs_v, V).to(tl.float32) * factor[:, None]
        own = tl.dot(m, tile.to(DOT), input_precision=PRECISION)
        store_dense(u + at * T * V, own, offs_t, offs_v, V)
    if log_decay is not None:
        coarse, fine, all_coarse, all_fine = decay_sums(log_decay, gates, heads, offs_t, valid, T)
        entering = tl.exp(coarse + fine)
        tl.store(running + at * T + offs_t, coarse)
        tl.store(minor + at * T + offs_t, fine)
        tl.store(through + at * T + offs_t, entering)
        tl.store(behind + at * T + offs_t, tl.exp((all_coarse - coarse) + (all_fine - fine)))
        tl.store(totals + at, tl.exp(all_coarse + all_fine))
        factor = factor * entering
    k += b * sk_b + start * sk_t + (h // SHARE) * sk_h
    for first in range(0, K, BK):
        offs_k = first + tl.arange(0, BK)
        tile = load_rows(k, sk_t, start, offs_t, length, offs_k, K).to(tl.float32) * factor[:, None]
        own = tl.dot(m, tile.to(DOT), input_precision=PRECISION)
        store_dense(w + at * T * K, own, offs_t, offs_k, K)
