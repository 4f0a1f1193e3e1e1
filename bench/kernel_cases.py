"""The operators that ``longseq bench kernels`` measures.

Every case's inputs are drawn from a fixed seed. A side gets them in the memory layout that suits it
best, prepared before the clock starts; what it returns is viewed as (batch, length, …), which costs
nothing.
"""

from __future__ import annotations

from longseq.bench.chunked_cases import CHUNKED
from longseq.bench.conv_cases import CONVOLUTIONS
from longseq.bench.delta_cases import DELTA
from longseq.bench.measure import Case
from longseq.bench.scan_cases import SCANS

CASES: tuple[Case, ...] = SCANS + CHUNKED + DELTA + CONVOLUTIONS
"""All operators."""
