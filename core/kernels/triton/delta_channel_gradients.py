"""Triton kernels for the gradients inside the delta rule's chunks, with a decay per key channel.

As delta_gradients.py, in three steps: up to the gradients of the decayed products, from those to
queries, keys and log-decays (delta_channels.py), and all that goes through the states.
"""

from __future__ import annotations

import triton
import triton.language as tl

from longseq.core.kernels.triton.common import (
    load_dense,
    load_rows,
    locate,
    store_dense,
    store_rows,
    sums_behind,
)


@triton.jit
def pair_gradients(
    v,
    do,
    beta,
    met,
    inverse,
    written,
    dwritten,
    dv,
    dread,
    dmet,
    dbeta,
    scale,
    length,
    chunks,
    heads,
    sv_b,
    sv_t,
    sv_h,
    sd_b,
    sd_t,
    sd_h,
    SHARE: tl.constexpr,
    V: tl.constexpr,
    T: tl.constexpr,
    BV: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Writes dV, the gradients of the decayed products (B, H, C, T, T), and Z over ``dwritten``.

    Also the part of dβ that comes from inside the chunk (B, H, C, T). ``met`` is A (B, G, C, T, T).
    """
    at = tl.program_id(0).to(tl.int64)
    chunk, h, b, start, gates = locate(at, chunks, heads, length, T)
    offs_t = tl.arange(0, T)
    valid = start + offs_t < length
    square = offs_t[:, None] * T + offs_t[None, :]
    factor = tl.load(beta + gates + offs_t * heads, mask=valid, other=0.0)
    back = tl.trans(tl.load(inverse + at * T * T + square)).to(DOT)
    v += b * sv_b + start * sv_t + h * sv_h
    do += b * sd_b + start * sd_t + h * sd_h
    dv += gates * V
    written += at * T * V
    dwritten += at * T * V
    z_u = tl.full((T, T), 0.0, dtype=tl.float32)
    do_u = tl.full((T, T), 0.0, dtype=tl.float32)
    own = tl.full((T,), 0.0, dtype=tl.float32)
    for first in range(0, V, BV):
        offs_v = first + tl.arange(0, BV)
        du = load_dense(dwritten, offs_t, offs_v, V).to(DOT)
        z = tl.dot(back, du, input_precision=PRECISION)
        low = z.to(DOT)
        store_dense(dwritten, low, offs_t, offs_v, V)
        store_rows(dv, z * factor[:, None], heads * V, start, offs_t, length, offs_v, V)
        v_tile = load_rows(v, sv_t, start, offs_t, length, offs_v, V)
        own += tl.sum(z * v_tile.to(tl.float32), 1)
        u_tile = load_dense(written, offs_t, offs_v, V).to(DOT)
        do_tile = load_rows(do, sd_t, start, offs_t, length, offs_v, V).to(DOT)
        z_u = tl.dot(low, tl.trans(u_tile), acc=z_u, input_precision=PRECISION)
        do_u = tl.dot(do_tile, tl.trans(u_tile), acc=do_u, input_precision=PRECISION)

    seen = offs_t[:, None] >= offs_t[None, :]
    before = offs_t[:, None] > offs_t[None, :]
    z_u = tl.where(before, -z_u, 0.0)
    do_u = tl.where(seen, do_u * scale, 0.0)
    group = (b * (heads // SHARE) + h // SHARE) * chunks + chunk
    own += tl.sum(z_u * tl.load(met + group * T * T + square), 1)
    z_u = z_u * factor[:, None]
    tl.store(dbeta + at * T + offs_t, own)
    tl.store(dread + at * T * T + square, do_u.to(dread.dtype.element_ty))
    tl.store(dmet + at * T * T + square, z_u.to(dmet.dtype.element_ty))


@triton.jit
def join_gradients(
    q,
    k,
    do,
    beta,
    log_decay,
    written,
    z,
    states,
    dstates,
    dbeta_near,
    dq_near,
    dk_near,
    difference,
    dq,
    dk,
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
    """Joins the gradients through the states and those through the products: dq, dk, dg (B, L, H,
    K) and dβ.

    Those through the products are there, (B, L, G, K), and go to the first head of a group; so is q
    ∘ dq - k ∘ dk of those, whose sum from a position to the chunk's end is its log-decay's
    gradient.
    """
    at = tl.program_id(0).to(tl.int64)
    _, h, b, start, gates = locate(at, chunks, heads, length, T)
    offs_t = tl.arange(0, T)
    valid = start + offs_t < length
    factor = tl.load(beta + gates + offs_t * heads, mask=valid, other=0.0)
    q += b * sq_b + start * sq_t + (h // SHARE) * sq_h
    k += b * sk_b + start * sk_t + (h // SHARE) * sk_h
    do += b * sd_b + start * sd_t + h * sd_h
    groups = heads // SHARE
    shared = ((b * length + start) * groups + h // SHARE) * K
    dq += gates * K
    dk += gates * K
    dlog_decay += gates * K
    z += at * T * V
    written += at * T * V
    states += at * K * V
    dstates += at * K * V
    own = tl.load(dbeta_near + at * T + offs_t)
    for first in range(0, K, BK):
        offs_k = first + tl.arange(0, BK)
        read = tl.full((T, BK), 0.0, dtype=tl.float32)
        found = tl.full((T, BK), 0.0, dtype=tl.float32)
        wrote = tl.full((T, BK), 0.0, dtype=tl.float32)
        carried = tl.full((BK,), 0.0, dtype=tl.float32)
        for second in range(0, V, BV):
            offs_v = second + tl.arange(0, BV)
            do_tile = load_rows(do, sd_t, start, offs_t, length, offs_v, V).to(DOT)
            z_tile = load_dense(z, offs_t, offs_v, V).to(DOT)
            u_tile = load_dense(written, offs_t, offs_v, V).to(DOT)
            state = load_rows(states, V, 0, offs_k, K, offs_v, V)
            dstate = load_rows(dstates, V, 0, offs_k, K, offs_v, V)
            carried += tl.sum(state.to(tl.float32) * dstate.to(tl.float32), 1)
            state = tl.trans(state.to(DOT))
            read = tl.dot(do_tile, state, acc=read, input_precision=PRECISION)
            found = tl.dot(z_tile, state, acc=found, input_precision=PRECISION)
            wrote = tl.dot(u_tile, tl.trans(dstate.to(DOT)), acc=wrote, input_precision=PRECISION)
        q_tile = load_rows(q, sq_t, start, offs_t, length, offs_k, K)
        k_tile = load_rows(k, sk_t, start, offs_t, length, offs_k, K)
        q_wide = q_tile.to(tl.float32)
        k_wide = k_tile.to(tl.float32)
        read = read * scale
        g = load_rows(log_decay + shared, groups * K, start, offs_t, length, offs_k, K)
        behind = sums_behind(log_decay + shared, groups * K, start, offs_t, length, offs_k, K, T)
        entering_k = tl.exp(tl.cumsum(g, 0))
        read = read * entering_k
        found = found * entering_k
        wrote = wrote * tl.exp(behind)
        own -= tl.sum(found * k_wide, 1)
        found = found * (-factor)[:, None]
        entered_k = q_wide * read + k_wide * found
        left_k = k_wide * wrote
        last = tl.exp(tl.sum(g, 0)) * carried
        near = shared + offs_t[:, None] * (groups * K) + offs_k[None, :]
        once = valid[:, None] & (offs_k < tl.where(h % SHARE == 0, K, 0))[None, :]
        entered_k += tl.load(difference + near, mask=once, other=0.0)
        dg = tl.cumsum(entered_k, 0, reverse=True) + (tl.cumsum(left_k, 0) - left_k) + last[None, :]
        store_rows(dlog_decay, dg, heads * K, start, offs_t, length, offs_k, K)
        dq_tile = read + tl.load(dq_near + near, mask=once, other=0.0)
        dk_tile = found + wrote + tl.load(dk_near + near, mask=once, other=0.0)
        store_rows(dq, dq_tile, heads * K, start, offs_t, length, offs_k, K)
        store_rows(dk, dk_tile, heads * K, start, offs_t, length, offs_k, K)
    tl.store(dbeta + gates + offs_t * heads, own, mask=valid)
