"""Time-invariant linear systems with one input and one output: chunked scan, carried state,
resets."""

from __future__ import annotations

from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor

from longseq.core.ops.arguments import check_resets
from longseq.core.ops.backends import Backend, Dispatch
from longseq.core.ops.precision import autocast_off

CHUNK = 64
# Matrix products over chunks are its proper form on every device.
_DISPATCH = Dispatch("lti_scan", {}, lambda new: None, "chunked", announced=False)


def lti_scan(
    u: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    state: Tensor | None = None,
    resets: Tensor | None = None,
    chunk_size: int = CHUNK,
    *,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:
    """Runs x_t = A x_{t-1} + b u_t, y_t = Re(c · x_t) over a sequence, for many channels at once.

    If u is complex, so is y_t = c · x_t; with N = 1 and b = c = 1 these are the states themselves.

    The sequence is cut into chunks of T positions. Inside a chunk the output is a product with the
    T × T Toeplitz matrix of the kernel c·Aˡb; between chunks only the states pass. Everything is a
    batched matrix product of cost O(L · (T + N)) per channel, and no tensor larger than (B, H, N,
    L/T) is made. Powers of A are products, never quotients, in the dtype of ``a``: give it in
    float64 to keep long products exact, whatever ``u`` is.

    Args:
        u: input (B, L, H), real; or complex, then so are ``a``, ``b`` and ``c``.
        a: one transition for each of G groups of H/G neighbouring channels: diagonal (G, N), real
            or complex; or a full matrix (G, N, N), real.
        b: input weights (G, N).
        c: output weights (G, N).
        state: x before position 0, (B, H, N); zero if None.
        resets: bool or integer (B, L), true where the state is dropped before the input is taken
            in.
        chunk_size: longest T.
        backend: "auto" or "reference"; see ``longseq.core.ops.backends``.

    Returns:
        The output (B, L, H) in the dtype of ``u`` (at least float32), and the last state (B, H, N).

    Raises:
        ArgumentError: for resets that do not fit.
        BackendError: for another backend.
    """
    resets = check_resets("lti_scan", resets, u.shape[0], u.shape[1])
    if _DISPATCH.choose(backend, None) == "reference":
        return lti_scan_reference(u, a, b, c, state, resets)
    batch, length, channels = u.shape
    u = u.to(torch.promote_types(u.dtype, torch.float32))
    dtype = u.dtype
    # Products then take complex states as two real halves.
    paired = a.is_complex() and not u.is_complex()
    per_group = (batch, channels // a.shape[0])
    if resets is None:
        chunk = min(chunk_size, length)
        count = -(-length // chunk)
        tail: int | Tensor = length - (count - 1) * chunk
        first, rows = None, u
        if count * chunk != length:
            rows = torch.nn.functional.pad(u, (0, 0, 0, count * chunk - length))
    else:
        chunk = _packed_chunk(resets, min(chunk_size, length))
        source, target, first, tail, last = _align(resets, chunk)
        count = first.shape[1]
        zero_behind = torch.nn.functional.pad(u, (0, 0, 0, 1))
        rows = zero_behind.gather(1, source.unsqueeze(-1).expand(-1, -1, channels))
    with autocast_off(u):
        tables = (
            _dense_tables(a, b, c, chunk)
            if a.ndim == 3
            else _diagonal_tables(a, b, c, chunk, paired)
        )
        toeplitz, read, write = (
            t.to(dtype) for t in (_toeplitz(tables.kernel), tables.read, tables.write)
        )
        grouped = _group(rows, a.shape[0], chunk)
        x0 = _state_in(state, u, a)
        local = _unsplit(torch.bmm(grouped, write).unflatten(1, (*per_group, count)), paired)
        starts = _starts(local, tables.whole, first, x0)
        began = _split(starts, paired).flatten(1, 3)
        y = torch.baddbmm(torch.bmm(grouped, toeplitz), began, read)  # (G, B·H/G·Q, T)
        y = (
            y.unflatten(1, (*per_group, count))
            .permute(1, 3, 4, 0, 2)
            .reshape(batch, count * chunk, channels)
        )
        y = (
            y[:, :length]
            if resets is None
            else y.gather(1, target.unsqueeze(-1).expand(-1, -1, channels))
        )
        # The last chunk may be short: advance its start by its own number of positions, and add its
        # inputs.
        ending = u[:, length - chunk :]
        if isinstance(tail, int):
            begin = starts[:, :, :, -1]
            ending = torch.nn.functional.pad(ending[:, chunk - tail :], (0, 0, chunk - tail, 0))
        else:
            outside = torch.arange(chunk, device=u.device) < chunk - tail.unsqueeze(-1)
            ending = ending.masked_fill(outside.unsqueeze(-1), 0)
            where = last.view(1, -1, 1, 1, 1).expand(*starts.shape[:3], 1, starts.shape[-1])
            begin = starts.gather(3, where).squeeze(3)
        added = torch.bmm(_group(ending, a.shape[0], chunk), write).unflatten(1, per_group)
        end = _advance(tables, tail, begin) + _unsplit(added, paired)
    return y, end.transpose(0, 1).flatten(1, 2)


def lti_scan_reference(
    u: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    state: Tensor | None = None,
    resets: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The recurrence of ``lti_scan``, position by position.

    Args:
        u: input (B, L, H).
        a: (G, N) or (G, N, N).
        b: (G, N).
        c: (G, N).
        state: (B, H, N) or None.
        resets: bool or integer (B, L) or None.

    Returns:
        The output (B, L, H) and the last state (B, H, N).
    """
    resets = check_resets("lti_scan", resets, u.shape[0], u.shape[1])
    repeats = u.shape[2] // a.shape[0]
    a, b, c = (t.repeat_interleave(repeats, 0) for t in (a, b, c))
    x = torch.zeros_like(b).expand(u.shape[0], -1, -1) if state is None else state
    outputs = []
    for t in range(u.shape[1]):
        if resets is not None:
            x = torch.where(resets[:, t, None, None], torch.zeros_like(x), x)
        moved = torch.einsum("hmn,bhn->bhm", a, x) if a.ndim == 3 else a * x
        x = moved + b * u[:, t, :, None]
        y = (c * x).sum(-1)
        outputs.append(y.real if y.is_complex() and not u.is_complex() else y)
    return torch.stack(outputs, 1), x


def powers(a: Tensor, count: int) -> Tensor:
    """Returns a⁰, a¹, … a^(count-1) by doubling, each a product of at most log₂(count) factors.

    Args:
        a: (..., N).
        count: how many, at least 1.

    Returns:
        (..., count, N).
    """
    table, square = torch.ones_like(a).unsqueeze(-2), a.unsqueeze(-2)
    while table.shape[-2] < count:
        table = torch.cat([table, table[..., : count - table.shape[-2], :] * square], dim=-2)
        square = square * square
    return table


class _Tables(NamedTuple):
    kernel: Tensor  # (G, T): c·Aʳb
    read: Tensor  # (G, M, T): c·Aʳ⁺¹, from a chunk's start state to its outputs
    write: Tensor  # (G, T, M): A^(T-1-r)b, from a chunk's inputs to its end state
    powers: Tensor | list[Tensor]  # diagonal: a⁰ … a^T, (G, T+1, N); full: A, A², A⁴, … (G, N, N)
    whole: Tensor  # A^T


def _diagonal_tables(a: Tensor, b: Tensor, c: Tensor, chunk: int, paired: bool) -> _Tables:
    table = powers(a, chunk + 1)
    kernel = (table[:, :chunk] @ (b * c).unsqueeze(-1)).squeeze(-1)
    read = table[:, 1:] * c.unsqueeze(1)
    write = table[:, :chunk].flip(1) * b.unsqueeze(1)
    # Re(c x) = Re c · Re x - Im c · Im x
    return _Tables(
        kernel.real if paired else kernel,
        _split(read.conj() if paired else read, paired).transpose(1, 2),
        _split(write, paired),
        table,
        table[:, chunk],
    )


def _dense_tables(a: Tensor, b: Tensor, c: Tensor, chunk: int) -> _Tables:
    squares = [a]
    columns, rows = b.unsqueeze(-1), (c.unsqueeze(1) @ a)
    while columns.shape[-1] < chunk:
        more = chunk - columns.shape[-1]
        columns = torch.cat([columns, squares[-1] @ columns[..., :more]], dim=-1)
        rows = torch.cat([rows, rows[:, :more] @ squares[-1]], dim=1)
        squares.append(squares[-1] @ squares[-1])
    kernel = (c.unsqueeze(1) @ columns).squeeze(1)
    needed = [square for i, square in enumerate(squares) if (chunk >> i) & 1]
    whole = reduce(torch.matmul, needed)
    write = columns.transpose(1, 2).flip(1)
    return _Tables(kernel, rows.transpose(1, 2), write, squares, whole)


def _toeplitz(kernel: Tensor) -> Tensor:
    """Returns (G, T, T) with entry [s, r] = kernel[r - s] for r ≥ s, else 0."""
    padded = torch.nn.functional.pad(kernel, (kernel.shape[-1] - 1, 0))
    return padded.unfold(-1, kernel.shape[-1], 1).flip(-2)


def _advance(tables: _Tables, exponent: int | Tensor, x: Tensor) -> Tensor:
    """Returns A^m x for states x (G, B, R, N) and m from 1 to T: one for all rows, or one for each
    (B)."""
    if isinstance(tables.powers, Tensor):
        factor = tables.powers[:, exponent].to(x.dtype)
        return (factor.unsqueeze(2) if factor.ndim == 3 else factor[:, None, None]) * x
    for i, square in enumerate(tables.powers):
        if isinstance(exponent, int) and not (exponent >> i) & 1:
            continue
        moved = _apply(square.to(x.dtype), x)
        x = moved if isinstance(exponent, int) else torch.where(_bit(exponent, i), moved, x)
    return x


def _apply(matrix: Tensor, x: Tensor) -> Tensor:
    """Returns matrices (G, N, N) times states (G, B, R, N), the states as rows: no matrix is
    copied."""
    return torch.bmm(x.flatten(1, 2), matrix.mT).unflatten(1, x.shape[1:3])


def _bit(number: Tensor, i: int) -> Tensor:
    """Returns bit i of numbers (B), bool (B, 1, 1)."""
    return ((number >> i) & 1).bool().view(-1, 1, 1)


def _starts(local: Tensor, whole: Tensor, first: Tensor | None, x: Tensor) -> Tensor:
    """Returns the state at the start of each chunk, (G, B, R, Q, N).

    Args:
        local: what each chunk adds to the state, (G, B, R, Q, N).
        whole: A^T, diagonal (G, N) or full (G, N, N).
        first: bool (B, Q), true where a chunk begins a segment.
        x: the state before the first chunk (G, B, R, N).
    """
    starts, full = [], whole.ndim == 3
    factor = whole.to(x.dtype) if full else whole[:, None, None].to(x.dtype)
    for q, added in enumerate(local.unbind(3)):
        if first is not None:
            x = torch.where(first[:, q, None, None], torch.zeros_like(x), x)
        starts.append(x)
        if q + 1 < local.shape[3]:
            x = (_apply(factor, x) if full else factor * x) + added
    return torch.stack(starts, 3)


def _packed_chunk(resets: Tensor, longest: int) -> int:
    """Returns a chunk length near the mean segment length, so that filling segments up wastes
    little."""
    segments = resets.shape[0] + int(resets[:, 1:].sum())
    return min(longest, 1 << (resets.numel() // segments).bit_length())


def _align(resets: Tensor, chunk: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Lays segments out so that each begins at the start of a chunk.

    Args:
        resets: bool (B, L).
        chunk: T.

    Returns:
        Source of each position of the new layout (B, Q·T), L where it is filling; target of each
        old position (B, L); whether a chunk begins with a reset (B, Q); the number of positions in
        the last chunk in use (B); and that chunk's index (B).
    """
    batch, length = resets.shape
    index = torch.arange(length, device=resets.device).expand(batch, -1)
    begins = resets.clone()
    begins[:, 0] = True
    start = torch.where(begins, index, 0).cummax(1).values
    inside = index - start
    # A chunk opens wherever the position inside the segment is a multiple of T.
    opens = inside % chunk == 0
    number = opens.cumsum(1) - 1
    target = number * chunk + inside % chunk
    count = int(number[:, -1].max()) + 1
    source = torch.full((batch, count * chunk), length, device=resets.device)
    source.scatter_(1, target, index)
    at_start = source[:, ::chunk]
    first = resets.gather(1, at_start.clamp(max=length - 1)) & (at_start < length)
    return source, target, first, inside[:, -1] % chunk + 1, number[:, -1]


def _group(x: Tensor, groups: int, chunk: int) -> Tensor:
    """Returns (G, B·R·Q, T) for x (B, Q·T, G·R)."""
    return (
        x.unflatten(1, (-1, chunk)).unflatten(3, (groups, -1)).permute(3, 0, 4, 1, 2).flatten(1, 3)
    )


def _state_in(state: Tensor | None, u: Tensor, a: Tensor) -> Tensor:
    """Returns the initial state as (G, B, R, N) in the dtype of ``u``, complex where ``a`` is."""
    groups, width = a.shape[0], a.shape[-1]
    dtype = torch.promote_types(u.dtype, torch.complex64) if a.is_complex() else u.dtype
    if state is None:
        return torch.zeros(
            groups, u.shape[0], u.shape[2] // groups, width, dtype=dtype, device=u.device
        )
    return state.to(dtype).unflatten(1, (groups, -1)).transpose(0, 1)


def _split(x: Tensor, paired: bool) -> Tensor:
    """Returns real and imaginary parts side by side (..., 2N); x as it is unless ``paired``."""
    return torch.cat([x.real, x.imag], dim=-1) if paired else x


def _unsplit(x: Tensor, paired: bool) -> Tensor:
    """Undoes ``_split``."""
    if not paired:
        return x
    real, imag = x.chunk(2, dim=-1)
    return torch.complex(real.contiguous(), imag.contiguous())
