"""Checks of the CUDA C++ kernels: selective scan, causal convolution, linear scan, sLSTM."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from longseq.bench.gpu.agreement import TOLERANCE, Case, Tensors
from longseq.core.ops import causal_conv1d, linear_scan, selective_scan, slstm, ssd
from longseq.core.ops import mamba_ssm_calls as mamba_ssm

# Batch, length, width, states, groups, dtype, whether complex, whether with resets.
Shape = tuple[int, int, int, int, int, torch.dtype, bool, bool]
F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
SHAPES: list[Shape] = [
    (2, 1000, 70, 16, 1, F32, False, True),
    (1, 6000, 6, 16, 1, F32, False, False),
    (1, 6000, 6, 16, 1, F32, False, True),
    (16, 257, 1024, 16, 2, F32, False, True),
    (2, 333, 40, 64, 1, F32, False, False),
    (2, 500, 33, 8, 1, F32, True, True),
    (1, 5000, 4, 4, 1, F32, True, False),
    (2, 100, 20, 3, 1, F32, False, False),
    (2, 1, 64, 16, 1, F32, False, False),
    (2, 700, 96, 16, 1, BF16, False, True),
    (2, 300, 64, 16, 1, F16, False, False),
]


def scan_inputs(shape: Shape) -> Tensors:
    """Returns fresh arguments of ``selective_scan``, on the CPU."""
    batch, length, width, states, groups, dtype, complex_, resets = shape
    kind = torch.complex64 if complex_ else torch.float32
    A = -torch.rand(width, states) * 2
    maps = [torch.randn(batch, length, groups, states, dtype=kind) for _ in range(2)]
    return {
        "u": torch.randn(batch, length, width).to(dtype),
        "delta": (torch.randn(batch, length, width) - 3).to(dtype),
        "A": torch.complex(A, 3 * torch.randn(width, states)) if complex_ else A,
        "B": maps[0] if complex_ else maps[0].to(dtype),
        "C": maps[1] if complex_ else maps[1].to(dtype),
        "D": torch.randn(width),
        "z": torch.randn(batch, length, width).to(dtype),
        "delta_bias": torch.randn(width) * 0.1,
        "initial_state": torch.randn(batch, width, states, dtype=kind),
        "resets": torch.rand(batch, length) < 0.01 if resets else None,
    }


def scan_cases(shapes: list[Shape], backend: str = "cuda") -> Iterator[Case]:
    """Yields checks of the selective scan.

    Args:
        shapes: of the calls.
        backend: to be checked.
    """

    def fast(**t: Any) -> Any:
        return selective_scan.selective_scan(**t, delta_softplus=True, backend=backend)  # type: ignore[arg-type]

    def exact(**t: Any) -> Any:
        return selective_scan.selective_scan_reference(**t, delta_softplus=True)

    for shape in shapes:
        name = "selective_scan " + " ".join(str(x).replace("torch.", "") for x in shape)
        yield Case(name, fast, exact, scan_inputs(shape), TOLERANCE[shape[5]])


def backward_in_pieces(shape: Shape, backend: str = "cuda") -> Case:
    """Returns a check of the scan's backward pass in as many launches as it can be made to take."""
    from longseq.core.ops.selective_scan import cuda as cuda_scan

    (case,) = scan_cases([shape], backend)

    def fast(**t: Any) -> Any:
        before, cuda_scan.PARTIAL_BYTES = cuda_scan.PARTIAL_BYTES, 0
        y, last = case.fast(**t)

        def restore(gradient: Tensor) -> Tensor:
            cuda_scan.PARTIAL_BYTES = before
            return gradient

        t["u"].register_hook(restore)  # when the backward pass is over
        return y, last

    return Case(f"{case.name}, in pieces", fast, case.exact, case.tensors, case.tolerance)


def conv_cases(backend: Any = "cuda") -> Iterator[Case]:
    """Yields checks of the causal convolution."""
    for taps, dtype, past in ((4, F32, True), (1, F32, False), (32, F32, True), (4, BF16, True)):
        tensors: Tensors = {
            "x": torch.randn(2, 777, 200).to(dtype),
            "weight": torch.randn(200, taps),
            "bias": torch.randn(200),
            "initial_state": torch.randn(2, taps - 1, 200).to(dtype) if past else None,
            "resets": torch.rand(2, 777) < 0.02 if past else None,
        }
        yield Case(
            f"causal_conv1d {taps} {str(dtype)[6:]}",
            lambda **t: causal_conv1d.causal_conv1d(**t, activation="silu", backend=backend)[:1],
            lambda **t: (causal_conv1d.causal_conv1d_reference(**t, activation="silu"),),
            tensors,
            TOLERANCE[dtype],
        )


def linear_cases(backend: Any = "cuda") -> Iterator[Case]:
    """Yields checks of the linear scan."""
    for shape, dtype in (
        ((2, 1000, 70), F32),
        ((1, 6000, 5), F32),
        ((1, 6000, 5), torch.complex64),
    ):
        size = torch.rand(shape)
        tensors: Tensors = {
            "a": size if dtype == F32 else torch.polar(size, torch.randn(shape)),
            "b": torch.randn(shape, dtype=dtype),
            "initial_state": torch.randn(shape[0], shape[2], dtype=dtype),
        }
        yield Case(
            f"linear_scan {shape} {str(dtype)[6:]}",
            lambda **t: linear_scan.linear_scan(**t, backend=backend)[:1],
            lambda **t: (linear_scan.linear_scan_reference(**t),),
            tensors,
            1e-5,
        )


def slstm_cases() -> Iterator[Case]:
    """Yields checks of the sLSTM recurrence, which runs by the device's own kernel."""
    for batch, length, heads, width in ((3, 200, 4, 64), (1, 50, 2, 192), (40, 30, 4, 24)):
        tensors: Tensors = {
            "gates": torch.randn(batch, length, 4, heads, width),
            "recurrent": torch.randn(heads, 4 * width, width) / width**0.5,
            "resets": torch.rand(batch, length) < 0.02,
        }
        yield Case(
            f"slstm {batch} {length} {heads} {width}",
            lambda **t: slstm.slstm(**t)[:1],
            lambda **t: slstm.slstm_reference(**t)[:1],
            tensors,
            1e-5,
        )


def peer_cases() -> Iterator[Case]:
    """Yields checks of the backend "mamba_ssm" where the package is there: our arguments reach it
    as meant.

    Its gradients are summed by atomics, so repeated runs may differ; its tolerances are its own
    tests'.
    """
    tensors = scan_inputs((2, 500, 64, 16, 2, F32, False, False)) | {"initial_state": None}
    if mamba_ssm.missing(mamba_ssm.SCAN) is None:
        yield Case(
            "selective_scan by mamba-ssm",
            lambda **t: selective_scan.selective_scan(
                **t, delta_softplus=True, backend="mamba_ssm"
            )[:1],
            lambda **t: selective_scan.selective_scan_reference(**t, delta_softplus=True)[:1],
            tensors,
            1e-3,
            repeatable=False,
        )
    if mamba_ssm.missing(mamba_ssm.SSD) is None:
        yield Case(
            "ssd by mamba-ssm",
            lambda **t: ssd.ssd(**t, dt_softplus=True, backend="mamba_ssm"),
            lambda **t: ssd.ssd_reference(**t, dt_softplus=True),
            {
                "x": torch.randn(2, 300, 4, 64),
                "dt": torch.randn(2, 300, 4) - 3,
                "A": -torch.rand(4) - 0.5,
                "B": torch.randn(2, 300, 1, 64),
                "C": torch.randn(2, 300, 1, 64),
                "D": torch.randn(4),
                "initial_states": torch.randn(2, 4, 64, 64),
                "resets": torch.rand(2, 300) < 0.01,
            },
            1e-2,
            repeatable=False,
        )


def cases() -> Iterator[Case]:
    """Yields every check, made when it is asked for."""
    yield from scan_cases(SHAPES)
    yield backward_in_pieces((2, 1000, 70, 16, 1, F32, False, True))
    yield from conv_cases()
    yield from linear_cases()
    yield from slstm_cases()
    yield from peer_cases()
