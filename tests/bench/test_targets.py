"""The targets of ``longseq bench`` and the cases that they name."""

from __future__ import annotations

from longseq.bench.block_cases import CASES as BLOCKS
from longseq.bench.kernel_cases import CASES as OPERATORS
from longseq.bench.targets import TARGETS, targets_of


def test_every_target_names_sides_that_exist() -> None:
    sides = {c.name: {s.name for s in c.sides} for c in [*OPERATORS, *BLOCKS]}
    for target in TARGETS:
        assert set(target.sides) <= sides[target.case], target.text
    assert len(targets_of("kernels")) + len(targets_of("models")) == len(TARGETS)
