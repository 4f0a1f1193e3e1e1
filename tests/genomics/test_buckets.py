"""Training in length buckets: every neighbouring pair of bases once, nothing across a border, the
same for ranks and for a resumed run."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch

from longseq.core.errors import ConfigError, DataError
from longseq.core.training import fit
from longseq.genomics.data.buckets import BucketDataset, known_parts
from longseq.genomics.data.fasta import Genome
from longseq.genomics.data.module import GenomeData
from longseq.genomics.data.splits import Interval
from longseq.genomics.data.tokenizer import PAD, is_base
from longseq.genomics.masked_task import MaskedLanguageModel
from longseq.genomics.task import CausalLanguageModel


def write(path, records):
    path.write_text("".join(f">{name}\n{sequence}\n" for name, sequence in records.items()))
    return str(path)


def letters(n, seed=0):
    return "".join(np.random.default_rng(seed).choice(list("ACGT"), n).tolist())


@pytest.fixture
def contigs(tmp_path):
    sizes = [1, 2, 9, 40, 70, 150, 700, 33, 65, 5, 6, 7]
    records = {f"c{n}": letters(size, n) for n, size in enumerate(sizes)}
    return Genome(write(tmp_path / "contigs.fa", records))


def whole(genome):
    return [Interval(name, 0, size) for name, size in genome.records.items()]


def pairs(batch):
    """Counts (base, next base) over a batch's known targets."""
    known = batch["targets"] != -100
    return Counter(
        zip(batch["input_ids"][known].tolist(), batch["targets"][known].tolist(), strict=True)
    )


@pytest.mark.parametrize("shortest", [16, 64])
def test_every_pair_of_neighbours_once(contigs, shortest):
    data = BucketDataset(contigs, whole(contigs), 64, shortest, 2, rc_augment=False)
    expected, found = Counter(), Counter()
    for name, size in contigs.records.items():
        bases = contigs.fetch(name, 0, size).tolist()
        expected.update(pairwise(bases))
    for step in range(len(data)):
        batch = data[step]
        assert batch["input_ids"].numel() == 128  # one cost
        found += pairs(batch)
        padding = batch["input_ids"] == PAD
        assert bool((batch["targets"][padding] == -100).all())
    assert found == expected


def test_parts_of_a_row_do_not_see_each_other(contigs):
    torch.manual_seed(0)
    task = CausalLanguageModel(d_model=8, n_layers=2, mixer="mamba", kmer=3)
    data = BucketDataset(contigs, whole(contigs), 64, 64, 4, rc_augment=False)
    batch = next(b for b in map(data.__getitem__, range(len(data))) if "segment_ids" in b)
    ids, segments = batch["input_ids"], batch["segment_ids"]
    row = int((segments.max(1).values > 1).nonzero()[0])
    found = task(ids[row : row + 1], segment_ids=segments[row : row + 1])[0][0]
    for number in segments[row].unique().tolist():
        mine = segments[row] == number
        alone = task(ids[row, mine][None])[0][0]
        torch.testing.assert_close(found[mine], alone, atol=1e-6, rtol=1e-5)
    loss = task.compute(batch)["loss"]
    crossed = task.compute({name: batch[name] for name in ("input_ids", "targets")})["loss"]
    assert abs((loss - crossed).item()) > 1e-5


@pytest.mark.parametrize("rc_augment", [False, True])
def test_ranks_share_the_steps_of_one(contigs, rc_augment):
    def make(rank, world, batch):
        return BucketDataset(
            contigs, whole(contigs), 64, 16, batch, None, 2, 3, rc_augment, rank=rank, world=world
        )

    one, two = make(0, 1, 4), [make(rank, 2, 2) for rank in range(2)]
    assert len(one) == len(two[0])
    for step in (0, len(one) - 1, len(one) + 1):
        parts = [data[step] for data in two]
        for name in ("input_ids", "targets"):
            assert torch.equal(torch.cat([part[name] for part in parts]), one[step][name])


def test_reverse_complements_keep_the_pairs(contigs):
    data = [
        BucketDataset(contigs, whole(contigs), 64, 16, 2, rc_augment=rc) for rc in (False, True)
    ]
    flipped = 0
    for step in range(len(data[0])):
        plain, mixed = (one[step] for one in data)
        assert torch.equal(plain["targets"] == -100, mixed["targets"] == -100)
        flipped += int((plain["input_ids"] != mixed["input_ids"]).any(1).sum())
    assert flipped > 5


def test_runs_of_n_are_left_out_and_short_ones_kept(tmp_path):
    sequence = "N" * 40 + letters(50) + "NNN" + letters(30, 1) + "N" * 32 + letters(20, 2)
    genome = Genome(write(tmp_path / "n.fa", {"a": sequence}))
    found = known_parts(genome, Interval("a", 0, len(sequence)), 32)
    assert [(one.start, one.end) for one in found] == [(40, 123), (155, 175)]
    assert known_parts(genome, Interval("a", 0, 40), 32) == []
    assert known_parts(genome, Interval("a", 50, 50), 32) == []
    data = BucketDataset(genome, [Interval("a", 0, len(sequence))], 16, 8, 2, rc_augment=False)
    count = sum(int((data[step]["targets"] != -100).sum()) for step in range(len(data)))
    bases = genome.fetch("a", 0, len(sequence))
    # What follows an N of a short run is predicted; what follows a long run begins a part.
    assert count == int(is_base(bases).sum()) - 2
    with pytest.raises(DataError, match="nothing to predict"):
        BucketDataset(genome, [Interval("a", 0, 40)], 16, 8, 2)


def test_repeats_may_count_less(tmp_path):
    genome = Genome(write(tmp_path / "r.fa", {"a": letters(200) + letters(200, 1).lower()}))
    data = BucketDataset(genome, whole(genome), 64, 32, 2, rc_augment=False, repeat_weight=0.25)
    batches = [data[step] for step in range(len(data))]
    known = [batch["targets"] != -100 for batch in batches]
    weights = torch.cat([batch["weights"][k] for batch, k in zip(batches, known)])
    assert weights.tolist().count(0.25) == 200 and weights.tolist().count(1.0) == 199


def test_a_resumed_run_goes_on_with_the_steps_it_would_have_had(tmp_path):
    def run(steps, **more):
        torch.manual_seed(0)
        task = CausalLanguageModel(d_model=8, n_layers=1, dropout=0.1, total_steps=8)
        data = GenomeData("tiny", length=64, batch_size=2, shortest_length=16, length_cycles=2)
        settings = {"max_steps": steps, "limit_val_batches": 0, "logger": False}
        fit(task, data, default_root_dir=tmp_path, name="r", **settings, **more)
        return task

    whole_run = run(8)
    run(3)
    again = run(8, ckpt_path=str(sorted(tmp_path.rglob("last.ckpt"))[-1]))
    for one, other in zip(whole_run.parameters(), again.parameters()):
        assert torch.equal(one, other)


def test_options_that_exclude_each_other_are_refused():
    with pytest.raises(ConfigError, match=r"need data\.shortest_length"):
        GenomeData("tiny", length_cycles=2)
    with pytest.raises(ConfigError, match="neither start_length nor weights"):
        GenomeData("tiny", shortest_length=64, start_length=64, length_warmup_steps=5)
    data = GenomeData("tiny", length=100, shortest_length=64)
    with pytest.raises(ConfigError, match="longest length 100 must be a power of two"):
        data.train_dataloader()
    with pytest.raises(ConfigError, match="masked models do not tell them apart"):
        MaskedLanguageModel(d_model=8, n_layers=1).check_data(data)
