"""Windows: training batches as a function of the step, evaluation windows that cover every base
once."""

from collections import Counter

import numpy as np
import pytest
import torch

from longseq.core.errors import ConfigError, DataError
from longseq.genomics.data.fasta import Genome
from longseq.genomics.data.splits import Interval
from longseq.genomics.data.tokenizer import PAD, encode, reverse_complement
from longseq.genomics.data.windows import EvaluationDataset, StepDataset, next_token_targets


def whole(genome):
    return [Interval(name, 0, length) for name, length in genome.records.items()]


def test_a_batch_depends_on_seed_step_and_rank_only(tiny):
    def make(**kwargs):
        return StepDataset(
            tiny, whole(tiny), lambda step: (3, 16 + 16 * (step // 4)), steps=8, **kwargs
        )

    data = make(seed=1)
    forward = [data[i] for i in range(8)]
    fresh = make(seed=1)
    for i in reversed(range(8)):
        assert torch.equal(fresh[i]["input_ids"], forward[i]["input_ids"])
    assert forward[3]["input_ids"].shape == (3, 16) and forward[4]["targets"].shape == (3, 32)
    assert forward[0]["input_ids"].dtype == forward[0]["targets"].dtype == torch.int64
    for other in (make(seed=2), make(seed=1, rank=1, world=2)):
        assert not torch.equal(other[0]["input_ids"], forward[0]["input_ids"])
    assert len({tuple(batch["input_ids"][0][:16].tolist()) for batch in forward}) == 8
    with pytest.raises(IndexError):
        data[8]


@pytest.mark.parametrize("weights", [None, True])
def test_the_order_of_windows_is_one_for_any_number_of_ranks(tiny, weights):
    def make(world, rank):
        given = [1.0] * len(whole(tiny)) if weights else None
        sizes = 8 // world
        return StepDataset(
            tiny, whole(tiny), lambda step: (sizes, 200), rank=rank, world=world, weights=given
        )

    for step in range(6):  # tiny2 has a run of N: some windows are drawn again
        one = make(1, 0)[step]["input_ids"]
        for world in (2, 4):
            shares = [make(world, rank)[step]["input_ids"] for rank in range(world)]
            assert torch.equal(torch.cat(shares), one)


@pytest.mark.parametrize(("rank", "world"), [(-1, 1), (1, 1), (0, 0)])
def test_a_rank_is_one_of_the_world(tiny, rank, world):
    with pytest.raises(ConfigError, match="must be at least 0"):
        StepDataset(tiny, whole(tiny), lambda step: (1, 8), rank=rank, world=world)


def test_targets_are_the_next_bases(tiny):
    data = StepDataset(tiny, whole(tiny), lambda step: (64, 50))
    batch = data[0]
    ids, targets = batch["input_ids"], batch["targets"]
    bases = (ids[:, 1:] >= 7) & (ids[:, 1:] <= 10)
    assert torch.equal(targets[:, :-1][bases], ids[:, 1:][bases])
    assert (targets[:, :-1][~bases] == -100).all() and (~bases).any()  # tiny2 has a run of N


def test_n_is_out_of_the_loss():
    assert next_token_targets(encode("ACNGR")).tolist() == [8, -100, 9, -100]
    assert next_token_targets(np.array([7, PAD, 8], np.uint8)).tolist() == [-100, 8]


def test_reverse_complement_augmentation(tiny):
    # The same windows with and without: each row is the window or its reverse complement, about
    # half each.
    def rows(rc):
        data = StepDataset(
            tiny, [Interval("tiny1", 0, 3000)], lambda step: (200, 40), seed=5, rc_augment=rc
        )
        batch = data[0]
        return torch.cat([batch["input_ids"], batch["targets"][:, -1:]], 1).numpy()

    plain, augmented = rows(False), rows(True)
    same = (plain == augmented).all(1)
    turned = (reverse_complement(plain) == augmented).all(1)
    assert (same | turned).all() and not (same & turned).any()
    assert 70 < turned.sum() < 130


def test_starts_are_uniform_over_all_positions(write_fasta, random_bases):
    genome = Genome(
        write_fasta({"a": random_bases(30), "b": random_bases(14, 1), "c": random_bases(5, 2)})
    )
    intervals = [Interval("a", 0, 30), Interval("b", 2, 14), Interval("c", 0, 5)]
    data = StepDataset(genome, intervals, lambda step: (6000, 8), rc_augment=False)
    counts = Counter(map(tuple, data[0]["input_ids"].tolist()))
    # 30 - 8, 12 - 8 and (too short: padded) 1 positions.
    assert len(counts) == 22 + 4 + 1
    expected = 6000 / 27
    assert all(abs(n - expected) < 5 * expected**0.5 for n in counts.values())
    padded = [ids for ids in counts if ids[-1] == 11]
    assert [list(ids) for ids in padded] == [[*genome.fetch("c", 0, 5), 11, 11, 11]]


def test_short_intervals_are_counted(tiny):
    intervals = [Interval("tiny1", 0, 1), Interval("tiny1", 5, 9)]
    data = StepDataset(tiny, intervals, lambda step: (2, 8))
    assert data.skipped == 1
    batch = data[0]
    assert ((batch["targets"] != -100).sum(1) == 3).all()
    assert EvaluationDataset(tiny, intervals, 8).skipped == 1
    with pytest.raises(DataError, match="none of 1 intervals"):
        StepDataset(tiny, intervals[:1], lambda step: (2, 8))


def test_wrong_arguments(tiny):
    with pytest.raises(ConfigError, match="batch size 0"):
        StepDataset(tiny, whole(tiny), lambda step: (0, 8))[0]
    with pytest.raises(ConfigError, match="seed=-1"):
        StepDataset(tiny, whole(tiny), lambda step: (1, 8), seed=-1)
    with pytest.raises(TypeError, match="has no length"):
        len(StepDataset(tiny, whole(tiny), lambda step: (1, 8)))
    with pytest.raises(ConfigError, match="length=0"):
        EvaluationDataset(tiny, whole(tiny), 0)


@pytest.mark.parametrize(("length", "batch"), [(7, 1), (7, 4), (64, 3), (1, 50), (5000, 2)])
def test_evaluation_covers_every_base_once(length, batch, tiny):
    intervals = [Interval("tiny1", 10, 310), Interval("tiny2", 950, 1100), Interval("tiny2", 0, 2)]
    data = EvaluationDataset(tiny, intervals, length, batch)
    seen, firsts, windows = Counter(), 0, 0
    previous_end = None
    for item in (data[i] for i in range(len(data))):
        assert item["input_ids"].shape == item["targets"].shape == (len(item["first"]), length)
        for row in range(len(item["first"])):
            interval = intervals[item["interval"][row]]
            start, windows = int(item["start"][row]), windows + 1
            firsts += bool(item["first"][row])
            assert bool(item["first"][row]) == (start == interval.start)
            # A carried state continues where it stopped.
            assert item["first"][row] or start == previous_end
            ids = item["input_ids"][row].numpy()
            size = int((ids != PAD).sum())
            assert (ids[:size] == tiny.fetch(interval.chrom, start, start + size)).all()
            previous_end = start + size
            for i in np.flatnonzero(item["targets"][row] != -100):
                position = start + int(i) + 1
                assert (
                    item["targets"][row, i] == tiny.fetch(interval.chrom, position, position + 1)[0]
                )
                seen[interval.chrom, position] += 1
    expected = {
        (i.chrom, p)
        for i in intervals
        for p in range(i.start + 1, i.end)
        if tiny.fetch(i.chrom, p, p + 1)[0] < 11
    }
    assert set(seen) == expected and set(seen.values()) == {1}
    assert firsts == len(intervals) and windows == data.n_windows
    with pytest.raises(IndexError):
        data[len(data)]
