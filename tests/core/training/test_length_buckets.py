"""Length buckets: every position once, steps of one cost, no crossing, shares, cycles, and the same
for every way to read them."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from longseq.core.errors import ConfigError
from longseq.core.training.length_buckets import LengthBuckets, pack

SIZES = [1, 3, 16, 17, 31, 100, 640, 1000, 5, 5, 2, 129]


def read(buckets: LengthBuckets, epoch: int = 0) -> list[tuple[int, list[list[Any]]]]:
    return [buckets.step(epoch * buckets.steps + n) for n in range(buckets.steps)]


@pytest.mark.parametrize("shares", [None, [0, 0, 0, 1], [1, 0, 0, 0], [5, 0, 1, 2]])
@pytest.mark.parametrize("epoch", [0, 3])
def test_every_position_once_in_steps_of_one_cost(shares: Any, epoch: int) -> None:
    buckets = LengthBuckets(SIZES, 128, 16, 256, shares)
    seen = [np.zeros(size, int) for size in SIZES]
    padding = Counter[int]()
    for length, rows in read(buckets, epoch):
        assert length * len(rows) == 256
        for row in rows:
            used = sum(size for _, _, size in row)
            assert all(size > 0 for _, _, size in row)
            assert used <= length
            padding[length] += length - used
            if length > 16:
                assert [size for _, _, size in row] == [length]
            for sequence, begin, size in row:
                assert begin + size <= SIZES[sequence]
                seen[sequence][begin : begin + size] += 1
    assert all((one == 1).all() for one in seen)
    assert set(padding) - {16} <= {length for length in padding if padding[length] == 0}
    assert buckets.steps == sum(buckets.counts.values())


def test_shares_are_met_where_sequences_are_long_enough() -> None:
    buckets = LengthBuckets([100_000, 90_000], 1024, 64, 1024, [1, 1, 2, 0, 4])
    wanted = np.array([1, 1, 2, 0, 4]) / 8
    found = np.array([buckets.counts[length] for length in buckets.lengths])
    assert np.abs(found / found.sum() - wanted).max() < 0.02
    # Too short for the longest: the lengths below keep their shares of one another.
    short = LengthBuckets([200] * 900, 1024, 64, 1024, [1, 1, 2, 2, 4])
    assert short.counts[1024] == short.counts[512] == short.counts[256] == 0
    assert short.counts[128] == pytest.approx(short.counts[64], rel=0.7)


def test_a_step_is_a_function_of_its_number() -> None:
    one, other = (LengthBuckets(SIZES, 64, 8, 128, seed=5) for _ in range(2))
    every = [one.step(n) for n in range(2 * one.steps + 3)]
    for n in reversed(range(len(every))):
        assert other.step(n) == every[n]
    assert LengthBuckets(SIZES, 64, 8, 128, seed=6).step(0) != every[0]
    assert every[: one.steps] != every[one.steps : 2 * one.steps]  # another pass, another order


def test_more_positions_per_step_are_the_same_parts() -> None:
    # So ranks that share a step see what one process with a larger batch would.
    big = LengthBuckets(SIZES, 64, 8, 256)
    for number in range(big.steps):
        length, rows = big.step(number)
        assert len(rows) == 256 // length


def test_cycles_go_from_short_to_long() -> None:
    lengths = [length for length, _ in read(LengthBuckets([10_000] * 3, 256, 32, 256, cycles=3))]
    falls = sum(a > b for a, b in pairwise(lengths))
    assert falls == 2 and lengths[0] == 32 and lengths[-1] == 256
    mixed = [length for length, _ in read(LengthBuckets([10_000] * 3, 256, 32, 256))]
    assert sorted(mixed) == sorted(lengths) and sum(a > b for a, b in pairwise(mixed)) > 10


def test_packing_never_overfills_and_wastes_little() -> None:
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 64, 500).tolist()
    rows = pack(sizes, 64, 10)
    assert sorted(one for row in rows for one in row) == list(range(10, 510))
    assert all(sum(sizes[one - 10] for one in row) <= 64 for row in rows)
    assert len(rows) <= 1.1 * sum(sizes) / 64 + 1
    assert pack([], 8) == []


def test_one_short_sequence() -> None:
    buckets = LengthBuckets([3], 8, 8, 16)
    assert buckets.steps == 1 and buckets.step(0) == (8, [[(0, 0, 3)], []])
    assert buckets.step(7) == buckets.step(0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"longest": 96}, "power of two"),
        ({"shortest": 256}, "above the longest"),
        ({"tokens": 100}, "no multiple"),
        ({"tokens": 0}, "no multiple"),
        ({"shares": [1, 1]}, "3 shares"),
        ({"shares": [0, 0, 0]}, "not all 0"),
        ({"shares": [1, 1, -1]}, "at least 0"),
        ({"shares": [1, 1, float("nan")]}, "3 shares"),
        ({"cycles": -1}, "cycles"),
        ({"seed": -1}, "seed"),
        ({"sizes": []}, "at least one position"),
        ({"sizes": [3, 0]}, "at least one position"),
    ],
)
def test_impossible_values_are_refused(arguments: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {"sizes": [500], "longest": 128, "shortest": 32, "tokens": 256}
    with pytest.raises(ConfigError, match=message):
        LengthBuckets(**(good | arguments))
