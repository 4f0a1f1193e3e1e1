"""Checks of every operator at lengths from 1 to a million, against float64 by the CPU's own
kernels."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch

from longseq.bench.gpu.agreement import TOLERANCE, Case, Tensors
from longseq.bench.gpu.chunked import LOW, attention_inputs, memory, mlstm_inputs, ssd_inputs
from longseq.bench.gpu.walks import scan_inputs
from longseq.core.ops import backends, causal_conv1d, linear_scan, selective_scan
from longseq.core.ops.linear_attention import linear_attention
from longseq.core.ops.mlstm import mlstm
from longseq.core.ops.ssd import ssd

LENGTHS = (1, 2, 63, 129, 4097, 65537, 1 << 20)
F32 = torch.float32


def both(
    function: Callable[..., Any], backend: str, **options: Any
) -> tuple[Callable[..., Any], ...]:
    """Returns an operator on the device, and in float64 on the CPU, by the backends of their
    names."""

    def fast(**t: Any) -> Any:
        return function(**t, backend=backend, **options)

    def exact(**t: Any) -> Any:
        return function(**t, backend="auto", **options)

    return fast, exact


def scans(length: int) -> Iterator[Case]:
    """Yields the selective scan, the linear scan and the convolution, which run by the CUDA
    kernels."""
    width = 4 if length > 10000 else 40
    for complex_ in (False, True):
        shape = (1, length, width, 4 if complex_ else 16, 1, F32, complex_, True)
        name = f"selective_scan L {length}{' complex' if complex_ else ''}"
        fast, exact = both(selective_scan.selective_scan, "cuda", delta_softplus=True)
        yield Case(name, fast, exact, functools.partial(scan_inputs, shape), 1e-5)
    for kind in (F32, torch.complex64):

        def gates(kind: torch.dtype = kind) -> Tensors:
            size = torch.rand(1, length, width) ** 0.1
            a = size if kind == F32 else torch.polar(size, torch.randn(1, length, width))
            return {"a": a, "b": torch.randn(1, length, width, dtype=kind)}

        fast, exact = both(linear_scan.linear_scan, "cuda")
        yield Case(f"linear_scan L {length} {str(kind)[6:]}", fast, exact, gates, 1e-5)

    def rows() -> Tensors:
        weight, bias = torch.randn(width, 4), torch.randn(width)
        return {"x": torch.randn(1, length, width), "weight": weight, "bias": bias}

    fast, exact = both(causal_conv1d.causal_conv1d, "cuda", activation="silu")
    yield Case(f"causal_conv1d L {length}", fast, exact, rows, 1e-5)


def chunks(length: int, dtype: torch.dtype) -> Iterator[Case]:
    """Yields SSD, linear attention and the mLSTM, which run by the Triton kernels."""
    width = 16 if length > 10000 else 64
    # Errors are relative to a tensor's largest value: of a few numbers that may all be small
    # differences.
    batch = 8 if length < 100 else 1
    options: dict[str, Any] = {"low": LOW, "dtype": dtype, "tolerance": TOLERANCE[dtype]}
    sizes = f"L {length} {str(dtype)[6:]}"
    for decay in ("none", "head", "channel"):
        fast, exact = both(linear_attention, "triton")
        inputs = lambda decay=decay: attention_inputs(batch, length, 2, width, width, decay)  # noqa: E731
        yield Case(f"linear_attention, decay: {decay}, {sizes}", fast, exact, inputs, **options)
    fast, exact = both(ssd, "triton", dt_softplus=True)
    yield Case(
        f"ssd {sizes}", fast, exact, lambda: ssd_inputs(batch, length, 2, width, width), **options
    )
    fast, exact = memory(mlstm, backend="triton"), memory(mlstm)
    yield Case(
        f"mlstm {sizes}",
        fast,
        exact,
        lambda: mlstm_inputs(batch, length, 2, width, width),
        **options,
    )


def cases(lengths: tuple[int, ...] = LENGTHS) -> Iterator[Case]:
    """Yields every check, longest first; none where the CPU's kernels are not there to check
    against.

    Args:
        lengths: L.
    """
    reason = backends.cpu_reason()
    if reason is not None:
        print(
            f"  not run: lengths from 1 to a million, which are checked against the CPU kernels: "
            f"{reason}"
        )
        return
    for length in sorted(lengths, reverse=True):
        yield from scans(length)
        yield from chunks(length, F32)
        if length < 100000:
            yield from chunks(length, torch.bfloat16)
