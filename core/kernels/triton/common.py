"""What the Triton kernels share: configurations, launching, and sums of log-decays inside a
chunk."""

from __future__ import annotations

import contextlib
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor


class Tile(NamedTuple):
    """How a call is cut up.

    Attributes:
        chunk: positions per chunk.
        reduce: columns of a matrix product's inner dimension taken at a time.
        out: columns of the result that a program computes.
        warps: warps per program.
        stages: software-pipelining depth.
        dot: dtype of the operands of matrix products.
        precision: how float32 operands are multiplied.
    """

    chunk: int
    reduce: int
    out: int
    warps: int
    stages: int
    dot: Any
    precision: str

    def widths(self, reduce: int, out: int) -> tuple[int, int]:
        """Returns the block widths for dimensions of these sizes: powers of two, at least 16."""
        return min(self.reduce, padded(reduce)), min(self.out, padded(out))

    def launch(self) -> dict[str, Any]:
        """Returns what every kernel with matrix products takes by name."""
        return {
            "T": self.chunk,
            "DOT": self.dot,
            "PRECISION": self.precision,
            "num_warps": self.warps,
            "num_stages": self.stages,
        }


MAX_CHUNK = 64
# (reduce, out, warps, stages) for operands of 2 or 4 bytes, heads up to 64 or wider. Chosen to fit
# the shared memory of every GPU since Ampere; not measured on one.
_TILES = {
    (2, False): (64, 64, 4, 3),
    (2, True): (64, 128, 8, 2),
    (4, False): (32, 64, 4, 2),
    (4, True): (32, 64, 8, 2),
}


def padded(size: int) -> int:
    """Returns the block that holds a dimension: a power of two, at least the 16 that matrix
    products need."""
    return max(16, 1 << (size - 1).bit_length())


def choose_tile(length: int, chunk_size: int, key: int, value: int, *operands: Tensor) -> Tile:
    """Returns the configuration of a call.

    bfloat16 operands are multiplied as they are. float16 ones are multiplied as TF32, which holds
    their every bit and, unlike float16, the range of a state. With a float32 operand the products
    are float32 ("ieee"), or TF32 where the user allowed that for torch's own products
    (``torch.set_float32_matmul_precision("high")``): errors are then near 3e-4 instead of 1e-6.

    Args:
        length: positions.
        chunk_size: positions per chunk asked for; kept between 16 and 64.
        key: key width.
        value: value width.
        *operands: what is multiplied: queries, keys, values.
    """
    dtypes = {x.dtype for x in operands}
    dot, precision = tl.float32, "ieee"
    # The interpreter (triton 3.9) multiplies the bits of bfloat16 operands as integers.
    if dtypes == {torch.bfloat16} and not triton.knobs.runtime.interpret:
        dot = tl.bfloat16
    elif torch.float32 not in dtypes or torch.backends.cuda.matmul.fp32_precision == "tf32":
        precision = "tf32"
    chunk = min(MAX_CHUNK, padded(min(chunk_size, length)))
    sizes = _TILES[2 if dot == tl.bfloat16 else 4, max(key, value) > 64]
    return Tile(chunk, *sizes, dot, precision)


def launch(kernel: Any, programs: int, *args: Any, **meta: Any) -> None:
    """Runs a kernel over a one-dimensional grid, on the device of its first tensor.

    Args:
        kernel: what ``triton.jit`` returned.
        programs: grid size; nothing is run if 0.
        *args: the kernel's arguments.
        **meta: its compile-time arguments.
    """
    if programs == 0:
        return
    first = next(x for x in args if isinstance(x, Tensor))
    on = torch.cuda.device(first.device) if first.is_cuda else contextlib.nullcontext()
    with on:
        kernel[(programs,)](*args, **meta)


def rows(x: Tensor) -> Tensor:
    """Returns x (B, L, H, E) with its last dimension dense; the other strides are the kernels'
    business."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def plain(x: Tensor | None) -> Tensor | None:
    """Returns a gate or a state dense and float32, or None."""
    return None if x is None else x.float().contiguous()


def strides(x: Tensor) -> tuple[int, int, int]:
    """Returns the strides of batch, time and head of x (B, L, H, E)."""
    return x.stride(0), x.stride(1), x.stride(2)


@triton.jit
def locate(at, chunks, heads, length, T: tl.constexpr):
    """Returns where chunk number ``at`` of (B, H, C) lies: its number in the sequence, its head and
    batch, its first position, and the place of that in a dense array (B, L, H)."""
    chunk = at % chunks
    head = (at // chunks) % heads
    batch = at // chunks // heads
    start = chunk * T
    return chunk, head, batch, start, (batch * length + start) * heads + head


@triton.jit
def load_rows(x, stride, start, rows, length, columns, width):
    """Loads rows of x, which begins at position ``start``, zero behind ``length`` and ``width``."""
    return tl.load(
        x + rows[:, None] * stride + columns[None, :],
        mask=(start + rows < length)[:, None] & (columns < width)[None, :],
        other=0.0,
    )


@triton.jit
def store_rows(x, value, stride, start, rows, length, columns, width):
    """Stores what ``load_rows`` would load, in the dtype of x."""
    tl.store(
        x + rows[:, None] * stride + columns[None, :],
        value.to(x.dtype.element_ty),
        mask=(start + rows < length)[:, None] & (columns < width)[None, :],
    )


@triton.jit
def load_dense(x, rows, columns, width):
    """Loads rows of a dense array that has all of them, zero behind ``width``."""
    return tl.load(
        x + rows[:, None] * width + columns[None, :], mask=(columns < width)[None, :], other=0.0
    )


@triton.jit
def store_dense(x, value, rows, columns, width):
    """Stores what ``load_dense`` would load, in the dtype of x."""
    tl.store(
        x + rows[:, None] * width + columns[None, :],
        value.to(x.dtype.element_ty),
        mask=(columns < width)[None, :],
    )


@triton.jit
def sums_behind(log_decay, stride, start, rows, length, columns, width, COUNT: tl.constexpr):
    """Returns (COUNT, columns) sums of the log-decays behind each of COUNT rows, up to the last."""
    follows = (tl.arange(0, COUNT) + 1 < COUNT) & (start + rows + 1 < length)
    after = tl.load(
        log_decay + (rows + 1)[:, None] * stride + columns[None, :],
        mask=follows[:, None] & (columns < width)[None, :],
        other=0.0,
    )
    return tl.cumsum(after, 0, reverse=True)


@triton.jit
def decay_between(coarse, fine, seen, BACKWARD: tl.constexpr):
    """Returns exp(g_{j+1} + … + g_i) for rows i and columns j, or BACKWARD for rows j and columns
    i; 0 where not seen. The running sums come in two parts, see ``decay_sums``."""
    if BACKWARD:
        span = (coarse[None, :] - coarse[:, None]) + (fine[None, :] - fine[:, None])
    else:
        span = (coarse[:, None] - coarse[None, :]) + (fine[:, None] - fine[None, :])
    return tl.exp(tl.where(seen, span, float("-inf")))


@triton.jit
def decay_sums(log_decay, offset, stride, rows, valid, T: tl.constexpr):
    """Loads a chunk's log-decays; returns their running sums (T,), and the sums, each in two parts.

    The sum over positions j+1 … i is later taken as a difference of running sums. In float32 that
    would lose the digits of a short span behind a long strong decay, and -inf (a reset) would give
    NaN. So a log-decay is cut at -128, where the exponential is 0 in float32 anyway, and split: the
    coarse parts are multiples of 2^-10, whose sums over 128 positions are exact; the fine parts are
    below 2^-10, and so are their errors below 1e-8.
    """
    if log_decay is not None:
        g = tl.load(log_decay + offset + rows * stride, mask=valid, other=0.0)
        g = tl.maximum(g, -128.0, propagate_nan=tl.PropagateNan.ALL)
    else:
        g = tl.full((T,), 0.0, dtype=tl.float32)
    coarse = tl.floor(g * 1024.0) * 0.0009765625
    fine = g - coarse
    return tl.cumsum(coarse, 0), tl.cumsum(fine, 0), tl.sum(coarse, 0), tl.sum(fine, 0)
