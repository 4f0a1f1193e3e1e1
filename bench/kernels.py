"""``longseq bench kernels``: the operators against their peers, in one run."""

from __future__ import annotations

from collections.abc import Sequence

from longseq.bench import speed


def run(argv: Sequence[str]) -> int:
    """Runs the benchmark and returns the exit status.

    Args:
        argv: arguments after ``longseq bench kernels``.
    """
    return speed.run("kernels", "longseq.bench.kernel_cases", "operators", argv)
