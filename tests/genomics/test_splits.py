"""Splits: disjoint, covering, by chromosome, by fraction and from BED."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longseq.core.errors import ConfigError, DataError
from longseq.genomics.data.bed import Region
from longseq.genomics.data.splits import (
    Interval,
    merge,
    split_by_chromosome,
    split_by_fraction,
    split_from_bed,
)

RECORDS = st.lists(st.integers(1, 50), min_size=1, max_size=6).map(
    lambda lengths: {f"chr{i}": n for i, n in enumerate(lengths)}
)


def bases(intervals):
    return [(item.chrom, p) for item in intervals for p in range(item.start, item.end)]


@given(RECORDS, st.floats(0, 0.6), st.floats(0, 0.6))
def test_fractions_are_disjoint_contiguous_and_cover(records, valid, test):
    try:
        splits = split_by_fraction(records, valid, test)
    except ConfigError:
        total = sum(records.values())
        assert (
            valid + test >= 1
            or total - max(1, round(valid * total)) - max(1, round(test * total)) <= 0
        )
        return
    # In order, each base once: disjoint, covering, contiguous, test last.
    assert bases(splits.train) + bases(splits.valid) + bases(splits.test) == bases(
        [Interval(name, 0, n) for name, n in records.items()]
    )
    total = sum(records.values())
    assert abs(len(bases(splits.test)) - test * total) <= 1
    assert abs(len(bases(splits.valid)) - valid * total) <= 1


@given(RECORDS, st.data())
def test_chromosomes_are_disjoint_and_cover(records, data):
    held = data.draw(
        st.lists(st.sampled_from(sorted(records)), unique=True, max_size=len(records) - 1)
    )
    cut = len(held) // 2
    splits = split_by_chromosome(records, held[:cut], held[cut:])
    together = bases(splits.train) + bases(splits.valid) + bases(splits.test)
    assert sorted(together) == sorted(bases([Interval(name, 0, n) for name, n in records.items()]))
    assert {item.chrom for item in splits.test} == set(held[cut:])


def test_genome_of_one_record():
    splits = split_by_fraction({"c": 1000})
    assert splits == (
        [Interval("c", 0, 850)],
        [Interval("c", 850, 900)],
        [Interval("c", 900, 1000)],
    )
    assert len(splits.test[0]) == 100


def test_wrong_requests():
    with pytest.raises(ConfigError, match="sum to at most 1"):
        split_by_fraction({"c": 10}, 0.5, 0.6)
    with pytest.raises(ConfigError, match="both in"):
        split_by_chromosome({"chr1": 5, "chr2": 5}, ["1"], ["chr1"])
    with pytest.raises(DataError, match="no record 'chrX'"):
        split_by_chromosome({"chr1": 5}, test=["chrX"])


def test_nothing_need_be_left_for_training():
    assert split_by_fraction({"c": 10}, 0.0, 1.0) == ([], [], [Interval("c", 0, 10)])
    assert split_by_fraction({"c": 2}, 0.1, 0.1) == (
        [],
        [Interval("c", 0, 1)],
        [Interval("c", 1, 2)],
    )
    assert split_by_chromosome({"chr1": 5}, test=["1"]).train == []


def test_bed():
    def region(start, end, split):
        return Region("c", start, end, split or "peak", split=split)

    splits = split_from_bed([region(5, 9, "train"), region(0, 5, "train"), region(10, 20, "test")])
    assert splits.train == [Interval("c", 0, 9)] and splits.test == [Interval("c", 10, 20)]
    with pytest.warns(UserWarning, match="3 bases lie in more than one split"):
        split_from_bed([region(0, 8, "train"), region(5, 9, "valid")])
    with pytest.raises(DataError, match=r"c:0-5: the fourth column is 'peak'"):
        split_from_bed([region(0, 5, None)])


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 30), st.integers(1, 9))))
def test_merge_is_the_union(items):
    intervals = [Interval(c, s, s + n) for c, s, n in items]
    merged = bases(merge(intervals))
    assert merged == sorted(set(bases(intervals)))
