"""Short records side by side: what each says alone, in its place, whatever stands beside it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from longseq.genomics import streaming
from longseq.genomics.data.fasta import Genome
from longseq.genomics.data.splits import Interval
from longseq.genomics.models.language_model import DNALanguageModel
from longseq.genomics.predict import score_strands
from longseq.genomics.streaming import alike, bunches, stream_log_probs

MODELS: dict[str, dict[str, object]] = {
    "mamba": {"mixer": "mamba", "mixer_kwargs": {"d_state": 4}, "kmer": 3},
    "strided": {"mixer": [["strided", {"mixer": "mamba"}], "mlstm"]},
    "hyena": {"mixer": "hyena", "mixer_kwargs": {"l_max": 64, "filter_order": 8}},
    "attention": {"mixer": "attention", "mixer_kwargs": {"n_heads": 2}},
}


def made(kind: str) -> DNALanguageModel:
    torch.manual_seed(0)
    return DNALanguageModel(16, 2, **MODELS[kind]).eval()  # type: ignore[arg-type]


@pytest.fixture
def genome(write_fasta, random_bases) -> Genome:
    sizes = [150, 1, 149, 2, 9000, 151, 150, 700, 3, 300]
    records = {f"r{i}": random_bases(n, i) for i, n in enumerate(sizes)}
    records["r6"] = "NN" + records["r6"][2:70] + "N" * 20 + records["r6"][90:149] + "N"
    records["r8"] = "NNN"
    return Genome(write_fasta(records))


def intervals(genome: Genome) -> list[Interval]:
    whole = [Interval(name, 0, size) for name, size in genome.records.items()]
    # An empty one, and parts of one record that overlap, as of a BED file.
    return [*whole, Interval("r0", 5, 5), Interval("r4", 100, 400), Interval("r4", 90, 400)]


def scores(model, genome, wanted, strand: str, chunk: int = 65536) -> list[tuple]:
    parts = score_strands(model, genome, wanted, strand, chunk)
    return [(one.chrom, one.start, one.ids, one.log_likelihood) for one in parts]


@pytest.mark.parametrize("strand", ["+", "-", "both"])
@pytest.mark.parametrize("kind", list(MODELS))
def test_each_is_scored_as_if_it_were_alone(genome, kind: str, strand: str) -> None:
    model, wanted = made(kind), intervals(genome)
    found = scores(model, genome, wanted, strand)
    alone = [part for one in wanted for part in scores(model, genome, [one], strand)]
    assert [part[:2] for part in found] == [(one.chrom, one.start) for one in wanted if len(one)]
    for part, other in zip(found, alone, strict=True):
        assert part[:2] == other[:2] and np.array_equal(part[2], other[2])
        np.testing.assert_allclose(part[3], other[3], rtol=0, atol=1e-5)  # NaN where it was
    assert np.isnan(found[8][3]).all() and np.isfinite(found[9][3]).sum() >= 299


@pytest.mark.parametrize("strand", ["+", "-", "both"])
def test_the_batch_leaves_no_trace(genome, strand: str, monkeypatch) -> None:
    model, wanted = made("mamba"), intervals(genome)
    whole = scores(model, genome, wanted, strand)
    for positions, waiting in ((400, 65536), (8192, 310), (151, 1000)):
        monkeypatch.setattr(streaming, "_POSITIONS", positions)
        monkeypatch.setattr(streaming, "_WAITING", waiting)
        for part, other in zip(scores(model, genome, wanted, strand), whole, strict=True):
            assert part[:2] == other[:2] and np.array_equal(part[2], other[2])
            np.testing.assert_allclose(part[3], other[3], rtol=0, atol=1e-5)


def test_reads_share_calls_and_their_memory_is_bounded(
    tmp_path: Path, write_fasta: Callable, random_bases: Callable, monkeypatch
) -> None:
    genome = Genome(write_fasta({f"r{i}": random_bases(100 + i % 51, i) for i in range(700)}))
    model, shapes = made("mamba"), []
    whole = DNALanguageModel.forward

    def counted(self, input_ids, *args, **kwargs):
        shapes.append(tuple(input_ids.shape))
        return whole(self, input_ids, *args, **kwargs)

    monkeypatch.setattr(DNALanguageModel, "forward", counted)
    sizes = [len(part.ids) for part in stream_log_probs(model, genome)]
    assert sizes == list(genome.records.values())
    assert len(shapes) < 20 and max(rows * width for rows, width in shapes) <= 8192
    shapes.clear()
    assert sum(len(part.ids) for part in stream_log_probs(model, genome, chunk=300)) == sum(sizes)
    assert max(rows * width for rows, width in shapes) <= 300 and len(shapes) < 600


def test_bunches_keep_the_order_and_batches_are_of_like_length() -> None:
    sizes = [10, 9000, 0, 8192, 1, 60000, 5, 8000, 8000]
    wanted = [Interval("c", 0, size) for size in sizes]
    found = [[len(one) for one in bunch] for bunch in bunches(wanted, 65536)]
    assert found == [[10], [9000], [8192, 1], [60000], [5, 8000, 8000]]
    assert [len(b) for b in bunches([Interval("c", 0, 8192)] * 9, 65536)] == [8, 1]
    assert [len(b) for b in bunches([Interval("c", 0, 9)] * 3, 8)] == [1, 1, 1]
    batches = list(alike([3, 400, 5, 150, 4000, 410], 8192))
    assert batches == [[4], [5, 1], [3, 2, 0]]
    assert list(alike([4, 4, 4], 8)) == [[0, 1], [2]] and list(alike([9, 9], 8)) == [[0], [1]]
