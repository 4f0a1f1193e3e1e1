"""Fixtures of the operators' tests: the instruction sets of this machine, one after the other."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from longseq.core.ops.backends import native


@pytest.fixture(params=native().available_isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Name of the instruction set that the CPU kernels use in this test."""
    before = native().isa()
    native().select_isa(request.param)
    yield request.param
    native().select_isa(before)
