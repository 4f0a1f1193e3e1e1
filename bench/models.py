"""``longseq bench models``: blocks and models against their peers, in one run."""

from __future__ import annotations

from collections.abc import Sequence

from longseq.bench import speed


def run(argv: Sequence[str]) -> int:
    """Runs the benchmark and returns the exit status.

    Args:
        argv: arguments after ``longseq bench models``.
    """
    return speed.run("models", "longseq.bench.block_cases", "blocks and models", argv)
