"""The linear scan on CUDA: grids and the kernels' arguments."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from longseq.core.kernels import nvrtc
from longseq.core.kernels.cuda_sources import parameters
from longseq.core.ops import cuda_calls as _cuda
from longseq.core.ops.linear_scan.arguments import Arguments

_SOURCE = "linear_scan.cu"


def reason(call: Arguments) -> str | None:
    """Returns why the kernels cannot take a call, or None if they can."""
    return _cuda.cuda_reason(*call)


def _linear(a: Tensor, b: Tensor, out: Tensor, reverse: bool, **values: int) -> None:
    """Runs the scan over b (B, L, D) with decays a, into out and what else ``values`` points at."""
    batch, length, channels = b.shape
    a, b = _cuda.dense(a), _cuda.dense(b)
    tiles = math.ceil(channels / 32)
    chunk, chunks = _cuda.split(length, batch * tiles, 64, b.device)
    defines: dict[str, str | int] = {
        "LONGSEQ_COMPLEX": int(b.is_complex()),
        "LONGSEQ_REVERSE": int(reverse),
        "LONGSEQ_A": _cuda.type_of(a),
        "LONGSEQ_B": _cuda.type_of(b),
        "LONGSEQ_OUT": _cuda.type_of(out),
    }
    values |= {
        "batch": batch,
        "length": length,
        "channels": channels,
        "tiles": tiles,
        "chunk": chunk,
        "chunks": chunks,
        **_cuda.rows(a=a, b=b),
        **_cuda.addresses(out=out),
    }
    alive: list[Tensor] = []

    def launch(kernel: str, grid: tuple[int, ...], threads: int) -> None:
        arguments = parameters(_SOURCE, "LinearParams", values)
        nvrtc.launch(_SOURCE, kernel, defines, grid, threads, arguments, b.device)

    if chunks > 1:
        dtype = torch.complex64 if b.is_complex() else torch.float32
        alive = [
            torch.empty(batch, chunks, channels, dtype=dtype, device=b.device) for _ in range(3)
        ]
        values |= _cuda.addresses(local=alive[0], product=alive[1])
        launch("linear_summary", (batch * tiles, chunks), 256)
        values |= _cuda.addresses(starts=alive[2])
        launch("linear_join", (math.ceil(batch * channels / 128),), 128)
    launch("linear_forward", (batch * tiles, chunks), 256)
    del alive


def forward(h: Tensor, a: Tensor, b: Tensor, initial: Tensor | None) -> None:
    """Fills h (B, L, D), dense, float32 or complex64. Other arguments as in ``linear_scan``,
    flattened."""
    initial = _cuda.parameter(initial)
    _linear(a, b, h, False, **_cuda.addresses(initial=initial))


def backward(
    da: Tensor,
    db: Tensor,
    dinitial: Tensor,
    dh: Tensor,
    a: Tensor,
    initial: Tensor | None,
    h: Tensor,
) -> None:
    """Fills da, db (dense, in the dtypes of a and b) and dinitial (as h): the scan from right to
    left."""
    initial = _cuda.parameter(initial)
    _linear(a, dh, db, True, **_cuda.addresses(initial=initial, h=h, da=da, dinitial=dinitial))
