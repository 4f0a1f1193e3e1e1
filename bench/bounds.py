"""What this machine can do at most: multiply-adds, exponentials and bytes per second, measured here
and now."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from longseq.bench.measure import Work


@dataclass(frozen=True)
class Bounds:
    """Rates with the threads of the run, the highest that was seen.

    The compiled extension has no probe of its own for them; each is the fastest well-known code at
    hand.

    Attributes:
        fma: float32 multiply-adds per second, of the matrix product of square matrices (MKL or
            OpenBLAS).
        fma_bfloat16: the same in bfloat16; below ``fma`` where the processor has no such
            instructions.
        exp: float32 exponentials per second in the second-level cache, of torch.exp or numpy.exp.
        bandwidth: bytes per second, read and written, of a copy far larger than the caches.
        exp_by: which of the two was faster.
    """

    fma: float
    fma_bfloat16: float
    exp: float
    bandwidth: float
    exp_by: str

    def seconds(self, work: Work, dtype: str) -> dict[str, float]:
        """Returns the least seconds that each resource needs for some work.

        Args:
            work: of a cell.
            dtype: "float32" or "bfloat16": a bfloat16 product may use bfloat16 instructions.
        """
        rate = max(self.fma, self.fma_bfloat16) if dtype == "bfloat16" else self.fma
        return {
            "FMA": work.fma / rate,
            "exp": work.exp / self.exp,
            "memory": work.bytes / self.bandwidth,
        }

    def best(self, other: Bounds) -> Bounds:
        """Returns the higher of each rate: what slowed one of two readings is no limit."""
        faster = self if self.exp >= other.exp else other
        return Bounds(
            max(self.fma, other.fma),
            max(self.fma_bfloat16, other.fma_bfloat16),
            faster.exp,
            max(self.bandwidth, other.bandwidth),
            faster.exp_by,
        )


def _shortest(run: Callable[[], object], seconds: float) -> float:
    """Returns the least seconds of a run, of as many as fit into a time."""
    run()
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
    return best


def _fma(dtype: torch.dtype, sizes: Sequence[int], seconds: float) -> float:
    """Returns multiply-adds per second, the best of some sizes."""
    rates = []
    for n in sizes:
        a, b = (torch.rand(n, n).to(dtype) for _ in range(2))
        out = torch.empty(n, n, dtype=dtype)

        def product(a: torch.Tensor = a, b: torch.Tensor = b, out: torch.Tensor = out) -> object:
            return torch.mm(a, b, out=out)

        rates.append(n**3 / _shortest(product, seconds / len(sizes)))
    return max(rates)


def _exp(threads: int, seconds: float) -> tuple[float, str]:
    """Returns exponentials per second and whose they are: torch's, or numpy's in one thread for
    each."""
    count = (
        1 << 16
    ) * threads  # 2 × 256 kB per thread: in the second-level cache; torch splits it evenly
    x, out = -torch.rand(count), torch.empty(count)
    by_torch = count / _shortest(lambda: torch.exp(x, out=out), seconds / 2)
    parts = [
        (x[i::threads].numpy().copy(), np.empty(count // threads, np.float32))
        for i in range(threads)
    ]
    repeats = 64  # handing work to a thread costs more than one part

    def several(part: tuple[np.ndarray, np.ndarray]) -> None:
        for _ in range(repeats):
            np.exp(part[0], out=part[1])

    with ThreadPoolExecutor(threads) as pool:
        by_numpy = count * repeats / _shortest(lambda: list(pool.map(several, parts)), seconds / 2)
    return (by_torch, "torch.exp") if by_torch >= by_numpy else (by_numpy, "numpy.exp")


def _bandwidth(size: int, seconds: float) -> float:
    """Returns bytes per second of a copy, read and written."""
    source, target = torch.ones(size // 4), torch.empty(size // 4)
    return 2 * size / _shortest(lambda: target.copy_(source), seconds)


def measure_bounds(
    threads: int,
    seconds: float = 2.0,
    copy_bytes: int = 1 << 28,
    sizes: Sequence[int] = (512, 1024, 2048),
) -> Bounds:
    """Measures the bounds; takes ``seconds`` or a little more.

    Args:
        threads: that torch uses.
        seconds: altogether.
        copy_bytes: size of the copied array.
        sizes: of the multiplied matrices; in bfloat16, which can be very slow, all but the last.
    """
    share = seconds / 4
    exp, exp_by = _exp(threads, share)
    return Bounds(
        _fma(torch.float32, sizes, share),
        _fma(torch.bfloat16, sizes[:-1], share),
        exp,
        _bandwidth(copy_bytes, share),
        exp_by,
    )
