"""The mLSTM's memory chunk by chunk in the caches, on the CPU, with a backward that recomputes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from longseq.core.ops import _native
from longseq.core.ops._chunk_walk import Chunks, Decays, row_blocks
from longseq.core.ops._chunking import (
    chunk_length,
    from_chunks,
    lower_triangular,
    pass_states,
    span_sums,
    to_chunks,
)

_MARK = 4  # chunks between the states that the backward starts from
# exp(-m) is a floor under the denominator; beyond this exponent the output is zero to any rounding, while
# float32 would overflow.
_MAX_FLOOR_EXPONENT = 60.0

Memory = tuple[Tensor, Tensor, Tensor]


def finite(m: Tensor) -> Tensor:
    """Returns m with -inf (nothing seen yet) made finite, so that exp(-inf - m) is 0 and not NaN."""
    return m.clamp_min(-1e30)


def floor_of(m: Tensor) -> Tensor:
    """Returns the floor under the denominator for the stabiliser m."""
    return torch.exp((-m).clamp_max(_MAX_FLOOR_EXPONENT))


def normalise(y: Tensor, m: Tensor, eps: float) -> Tensor:
    """Returns h (..., V) for y (..., V + 1), whose last column is nᵀq, and the stabiliser m (...)."""
    return y[..., :-1] / (torch.maximum(y[..., -1:].abs(), floor_of(m).unsqueeze(-1)) + eps)


class _Walk:
    """The states of some rows of a batch, handed from chunk to chunk.

    Args:
        q: (B, L, H, K).
        v: (B, L, H, V).
        i: (B, L, H).
        g: (B, L, H).
        chunk: T.
    """

    def __init__(self, q: Tensor, v: Tensor, i: Tensor, g: Tensor, chunk: int) -> None:
        self.shape = Chunks(q, v, chunk)
        self.decays = Decays(self.shape, g, i)
        heads, self.scale = self.decays.heads, self.shape.d_key**-0.5
        self.weighted = v.new_empty((heads, chunk, self.shape.d_value))
        self.scores = torch.empty_like(self.decays.matrix)

    def keys(self, k: Tensor, c: int) -> Tensor:
        """(B·H, T, K) of chunk c, scaled, dense."""
        return self.shape.heads_first(self.shape.at(k, c) * self.scale)

    def advance(self, memory: Memory, keys: Tensor, values: Tensor, out: Memory) -> None:
        """Writes the memory after the chunk of the last ``Decays.fill`` to ``out``."""
        behind, total = self.decays.behind.unsqueeze(-1), self.decays.total.unsqueeze(-1)
        across = keys.transpose(1, 2)
        torch.mul(memory[0], total.unsqueeze(-1), out=out[0])
        out[0].baddbmm_(across, torch.mul(values, behind, out=self.weighted))
        torch.mul(memory[1], total, out=out[1]).unsqueeze(1).baddbmm_(behind.transpose(1, 2), keys)
        out[2].copy_(self.decays.units[:, -1])


def _forward(
    q: Tensor, k: Tensor, v: Tensor, i: Tensor, g: Tensor, memory: Memory, marks: Sequence[Tensor],
    h: Tensor, seen: Tensor, chunk: int, eps: float,
) -> None:  # fmt: skip
    """Walks over all chunks; writes h (B, L, H, V), nᵀq (B, L, H), the marks, and the memory in place."""
    walk = _Walk(q, v, i, g, chunk)
    shape, decays = walk.shape, walk.decays
    y = torch.empty_like(walk.weighted)
    for c in range(shape.count):
        if marks and c % _MARK == 0:
            for mark, part in zip(marks, memory):
                mark[:, c // _MARK] = part.view_as(mark[:, c // _MARK])
        queries, keys = shape.heads_first(shape.at(q, c)), walk.keys(k, c)
        values = shape.heads_first(shape.at(v, c))
        torch.bmm(queries, keys.transpose(1, 2), out=walk.scores)
        weights = decays.fill(c, memory[2], walk.scores)
        entered = queries * decays.through.unsqueeze(-1)
        torch.bmm(weights, values, out=y).baddbmm_(entered, memory[0])
        total = torch.baddbmm(decays.sums.unsqueeze(-1), entered, memory[1].unsqueeze(-1))
        y.div_(torch.maximum(total.abs(), floor_of(decays.units).unsqueeze(-1)).add_(eps))
        shape.put(h, c, shape.heads_last(y))
        shape.put(seen, c, shape.heads_last(total).squeeze(-1))
        walk.advance(memory, keys, values, memory)


def _marks(v: Tensor, k: Tensor, chunk_size: int, marked: bool) -> list[Tensor]:
    """Returns room for C (B, marks, H, K, V), n (B, marks, H, K) and m (B, marks, H)."""
    batch, length, heads, d_value = v.shape
    count = -(-length // (_MARK * chunk_length(chunk_size, length))) if marked else 0
    sizes = ((k.shape[3], d_value), (k.shape[3],), ())
    return [v.new_empty((batch, count, heads, *size)) for size in sizes]


@torch.library.custom_op("longseq::mlstm", mutates_args=(), device_types="cpu")
def _mlstm(
    q: Tensor, k: Tensor, v: Tensor, i: Tensor, g: Tensor, c: Tensor, n: Tensor, m: Tensor,
    chunk_size: int, eps: float, marked: bool,
) -> list[Tensor]:  # fmt: skip
    h, *last, seen, mark_c, mark_n, mark_m = outputs = _mlstm_fake(
        q, k, v, i, g, c, n, m, chunk_size, eps, marked
    )
    _native.fresh(h)
    marks = (mark_c, mark_n, mark_m)
    chunk = chunk_length(chunk_size, v.shape[1])
    for rows in row_blocks(v.shape[0], c[0].numel()):
        c_rows, n_rows, m_rows = (x[rows].flatten(0, 1).clone() for x in (c, n, m))
        memory = (c_rows, n_rows, m_rows)
        _forward(
            q[rows], k[rows], v[rows], i[rows], g[rows], memory, [x[rows] for x in marks] if marked else [],
            h[rows], seen[rows], chunk, eps,
        )  # fmt: skip
        for x, part in zip(last, memory):
            x[rows] = part.view_as(x[rows])
    return outputs


@_mlstm.register_fake
def _mlstm_fake(
    q: Tensor, k: Tensor, v: Tensor, i: Tensor, g: Tensor, c: Tensor, n: Tensor, m: Tensor,
    chunk_size: int, eps: float, marked: bool,
) -> list[Tensor]:  # fmt: skip
    outputs = [x.new_empty(x.shape) for x in (v, c, n, m, i)]
    return [*outputs, *_marks(v, k, chunk_size, marked)]


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Returns the sum over the last dimension of a product that is not written out: (..., E) to (...)."""
    return torch.linalg.vecdot(a, b)


def _backward_walk(
    dh: Tensor, dlast: Sequence[Tensor], q: Tensor, k: Tensor, v: Tensor, i: Tensor, g: Tensor, h: Tensor,
    seen: Tensor, marks: Sequence[Tensor], outputs: Sequence[Tensor], chunk: int, eps: float,
) -> None:  # fmt: skip
    """Walks back over all chunks; writes the gradients of q, k, v, i, g, C, n and m.

    With y_t = Σ_s P[t, s] (q_t·k_s) v_s + through_t Cᵀ q_t and x_t = nᵀ q_t alike, the output is
    h_t = y_t / (max(|x_t|, exp(-m_t)) + eps). A larger m_t divides y_t, x_t and exp(-m_t) by the same, so
    that only eps (and the bound of the exponent) leaves it a gradient. That of the memory's unit is
    -⟨dC, C⟩ - ⟨dn, n⟩. Both go to the exponent that attains m.
    """
    walk = _Walk(q, v, i, g, chunk)
    shape, decays = walk.shape, walk.decays
    dq, dk, dv, di, dg, *dfirst = outputs
    dis, dgs = torch.empty_like(decays.g), torch.empty_like(decays.g)
    dc, dn, dm = (x.flatten(0, 1).clone() for x in dlast)
    slopes, dy, inside, entered = (
        torch.empty_like(x) for x in (decays.matrix, walk.weighted, walk.weighted, walk.weighted)
    )
    dqueries, dkeys = (dc.new_empty((decays.heads, chunk, shape.d_key)) for _ in range(2))
    memories = [
        (torch.empty_like(dc), torch.empty_like(dn), torch.empty_like(dm))
        for _ in range(min(_MARK, shape.count))
    ]
    for first in reversed(range(0, shape.count, _MARK)):
        for part, mark in zip(memories[0], marks):
            part.copy_(mark[:, first // _MARK].flatten(0, 1))
        behind = range(first + 1, min(first + _MARK, shape.count))
        for c, memory, after in zip(behind, memories, memories[1:]):
            decays.fill(c - 1, memory[2])
            walk.advance(memory, walk.keys(k, c - 1), shape.heads_first(shape.at(v, c - 1)), after)
        for c in reversed(range(first, behind.stop)):
            memory = memories[c - first]
            queries, keys = shape.heads_first(shape.at(q, c)), walk.keys(k, c)
            values, dout = (shape.heads_first(shape.at(x, c)) for x in (v, dh))
            decays.fill(c, memory[2])
            # Through the division.
            total = shape.heads_first(shape.at(seen, c, 1.0).unsqueeze(-1)).squeeze(-1)
            floor = floor_of(decays.units)
            divisor = torch.maximum(total.abs(), floor).add_(eps)
            per_part = _dot(dout, shape.heads_first(shape.at(h, c))).div_(divisor).neg_()
            above = total.abs() > floor
            dseen = torch.where(above, per_part * total.sign(), 0.0)
            bounded = ~above & (decays.units < -_MAX_FLOOR_EXPONENT)
            dunits = per_part.mul_(torch.where(bounded, divisor, eps))
            torch.div(dout, divisor.unsqueeze(-1), out=dy)
            # Across the chunk's borders.
            through, behind_ = decays.through.unsqueeze(-1), decays.behind.unsqueeze(-1)
            decayed, dseen_ = dy * through, (dseen * decays.through).unsqueeze(-1)
            torch.bmm(decayed, memory[0].transpose(1, 2), out=dqueries).addcmul_(
                dseen_, memory[1].unsqueeze(-2)
            )
            weighted = torch.mul(values, behind_, out=walk.weighted)
            torch.bmm(weighted, dc.transpose(1, 2), out=dkeys).addcmul_(behind_, dn.unsqueeze(-2))
            entering, leaving = _dot(dqueries, queries), _dot(dkeys, keys)
            total_ = decays.total
            whole = _dot(dc.flatten(1), memory[0].flatten(1)).add_(_dot(dn, memory[1])).mul_(total_)
            dunits[:, -1] += dm - leaving.sum(-1) - whole
            torch.bmm(keys, dc, out=entered)
            # Inside the chunk.
            torch.bmm(queries, keys.transpose(1, 2), out=walk.scores)
            torch.bmm(dy, values.transpose(1, 2), out=slopes)
            decays.slopes(c, walk.scores, slopes, entering, leaving, whole, dgs[c], dseen, dunits, dis[c], dm)
            torch.bmm(decays.matrix.transpose(1, 2), dy, out=inside).addcmul_(entered, behind_)
            dqueries.baddbmm_(slopes, keys)
            dkeys.baddbmm_(slopes.transpose(1, 2), queries).mul_(walk.scale)
            for to, part in zip((dq, dk, dv), (dqueries, dkeys, inside)):
                shape.put(to, c, shape.heads_last(part))
            # To the memory before the chunk.
            across = queries.transpose(1, 2)
            dc.mul_(total_.view(-1, 1, 1)).baddbmm_(across, decayed)
            dn.mul_(total_.unsqueeze(-1)).unsqueeze(1).baddbmm_(dseen_.transpose(1, 2), queries)
    di.copy_(decays.gradient(dis))
    dg.copy_(decays.gradient(dgs))
    for to, part in zip(dfirst, (dc, dn, dm)):
        to.copy_(part.view_as(to))


@torch.library.custom_op("longseq::mlstm_backward", mutates_args=(), device_types="cpu")
def _mlstm_backward(
    dh: Tensor, dc: Tensor, dn: Tensor, dm: Tensor, q: Tensor, k: Tensor, v: Tensor, i: Tensor, g: Tensor,
    h: Tensor, seen: Tensor, mark_c: Tensor, mark_n: Tensor, mark_m: Tensor, chunk_size: int, eps: float,
) -> list[Tensor]:  # fmt: skip
    outputs = [torch.empty(x.shape, dtype=x.dtype) for x in (q, k, v, i, g, dc, dn, dm)]
    _native.fresh(*outputs[:3])
    chunk = chunk_length(chunk_size, v.shape[1])
    for rows in row_blocks(v.shape[0], dc[0].numel()):
        _backward_walk(
            dh[rows], (dc[rows], dn[rows], dm[rows]), q[rows], k[rows], v[rows], i[rows], g[rows], h[rows],
            seen[rows], [x[rows] for x in (mark_c, mark_n, mark_m)], [x[rows] for x in outputs], chunk, eps,
        )  # fmt: skip
    return outputs


@_mlstm_backward.register_fake
def _mlstm_backward_fake(
    dh: Tensor, dc: Tensor, dn: Tensor, dm: Tensor, q: Tensor, k: Tensor, v: Tensor, i: Tensor, g: Tensor,
    h: Tensor, seen: Tensor, mark_c: Tensor, mark_n: Tensor, mark_m: Tensor, chunk_size: int, eps: float,
) -> list[Tensor]:  # fmt: skip
    return [x.new_empty(x.shape) for x in (q, k, v, i, g, dc, dn, dm)]


def composed(
    q: Tensor, k: Tensor, v: Tensor, i: Tensor, g: Tensor, c: Tensor, n: Tensor, m: Tensor,
    chunk_size: int, eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The same in operations that have derivatives of any order, all chunks at a time.

    Args:
        q: (B, L, H, K).
        k: (B, L, H, K), not yet scaled.
        v: (B, L, H, V).
        i: input gates before their exponential (B, L, H).
        g: logarithms of the forget gates (B, L, H), -inf at resets.
        c: C (B, H, K, V).
        n: (B, H, K).
        m: (B, H).
        chunk_size: positions a chunk.
        eps: added to the denominator.

    Returns:
        The output (B, L, H, V) and the final C, n and m.
    """
    chunk = chunk_length(chunk_size, v.shape[1])
    qc, kc, vc = (to_chunks(x, chunk) for x in (q, k * k.shape[3] ** -0.5, v))
    ic = to_chunks(i.unsqueeze(-1), chunk, -torch.inf)  # (B, H, C, T, 1)
    spans = span_sums(to_chunks(g.unsqueeze(-1), chunk))
    through, behind = (x.squeeze(-3) for x in spans[-1])  # (B, H, C, T, 1)

    # The exponents of the state's units at the borders of the chunks: never below any inside the chunk.
    exponent, total = behind + ic, through[..., -1, :]
    units = [m.unsqueeze(-1)]
    for chunk_m, chunk_total in zip(exponent.amax(-2).unbind(2), total.unbind(2)):
        units.append(torch.maximum(chunk_total + units[-1], chunk_m))
    borders = torch.stack(units, 2)  # (B, H, C + 1, 1)
    carried_m, last_m = borders[:, :, :-1], finite(borders[:, :, 1:])
    weighted = kc * torch.exp(exponent - last_m.unsqueeze(-2))
    # n is the memory of a value that is always 1: one more column of C.
    vc = torch.cat([vc, torch.ones_like(vc[..., :1])], -1)
    own = weighted.transpose(-1, -2) @ vc  # (B, H, C, K, V + 1)
    keep = torch.exp(total + carried_m - last_m).unsqueeze(-1)
    carried, state = pass_states(torch.cat([c, n.unsqueeze(-1)], -1), own, keep)

    blocks = (a[..., 1::2, :, :] + b[..., 0::2, :, :].transpose(-1, -2) for a, b in spans[:-1])
    zeros = torch.zeros_like(spans[0][0])
    log_weights = lower_triangular(zeros, blocks, -torch.inf) + ic.transpose(-1, -2)
    from_state = through + carried_m.unsqueeze(-2)  # (B, H, C, T, 1)
    row_m = torch.maximum(from_state, log_weights.amax(-1, keepdim=True))
    unit = finite(row_m)
    scores = (qc @ kc.transpose(-1, -2)) * torch.exp(log_weights - unit)
    queries = (qc * torch.exp(from_state - unit)).flatten(0, 2)
    y = torch.baddbmm((scores @ vc).flatten(0, 2), queries, carried.flatten(0, 2))
    h = normalise(y.view(*row_m.shape[:4], -1), row_m.squeeze(-1), eps)
    return from_chunks(h, v.shape[1]), state[..., :-1], state[..., -1], units[-1].squeeze(-1)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs[:8], output[0], *output[4:])
    ctx.chunk_size, ctx.eps = inputs[8:10]


def _backward(ctx: Any, grads: Any, *more: Any) -> tuple[Any, ...]:
    grads = grads if isinstance(grads, (list, tuple)) else (grads, *more)
    q, k, v, i, g, *memory, h, seen, mark_c, mark_n, mark_m = ctx.saved_tensors
    dh, *dlast = [torch.zeros_like(x) if d is None else d for d, x in zip(grads, (v, *memory))]
    if torch.is_grad_enabled():

        def again(*values: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
            q, k, v, i, g, c, n, m = values
            return composed(q, k, v, i, g, c, n, m, ctx.chunk_size, ctx.eps)

        _, pull, *_ = torch.func.vjp(again, q, k, v, i, g, *memory)
        found = pull((dh, *dlast))
    else:
        found = _call_backward(
            dh, *dlast, q, k, v, i, g, h, seen, mark_c, mark_n, mark_m, ctx.chunk_size, ctx.eps
        )
    return (*found, None, None, None)


_mlstm.register_autograd(_backward, setup_context=_setup)


def _mlstm_vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> Any:
    return _native.vmap_fold(_call, range(8), info, in_dims, args), (0,) * 8


def _mlstm_backward_vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> Any:
    return _native.vmap_fold(_call_backward, range(14), info, in_dims, args), (0,) * 8


_call_backward = _native.transformable(_mlstm_backward, _mlstm_backward_vmap)
_call = _native.transformable(_mlstm, _mlstm_vmap, _setup, _backward)


def walk(
    q: Tensor, k: Tensor, v: Tensor, i: Tensor, g: Tensor, c: Tensor, n: Tensor, m: Tensor,
    chunk_size: int, eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """``composed`` where no intermediate is larger than a chunk's, for CPU tensors; same arguments."""
    h, last_c, last_n, last_m, *_ = _call(q, k, v, i, g, c, n, m, chunk_size, eps, torch.is_grad_enabled())
    return h, last_c, last_n, last_m
