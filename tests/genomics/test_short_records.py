"""Short records side by side: what each says alone, in its place, whatever stands beside it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from longseq.genomics import embeddings, masked_scores, streaming
from longseq.genomics.data.fasta import Genome
from longseq.genomics.data.splits import Interval
from longseq.genomics.embeddings import Vectors, ordered_vectors
from longseq.genomics.models.language_model import DNALanguageModel
from longseq.genomics.models.masked_model import MaskedDNAModel
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


def masked(symmetry: str) -> MaskedDNAModel:
    torch.manual_seed(0)
    kwargs = {"mixer": "mamba"}
    return MaskedDNAModel(8, 2, mixer_kwargs=kwargs, symmetry=symmetry).eval()  # type: ignore[arg-type]


def counted_tokens(monkeypatch, kind: type, method: str) -> list[int]:
    """Returns the positions of every call of a model's method from now on."""
    calls: list[int] = []
    whole = getattr(kind, method)

    def counted(self, input_ids, *args, **kwargs):
        calls.append(input_ids.numel())
        return whole(self, input_ids, *args, **kwargs)

    monkeypatch.setattr(kind, method, counted)
    return calls


@pytest.mark.parametrize("strand", ["+", "both"])
@pytest.mark.parametrize("every", [0, 7])
def test_windows_of_a_masked_model_leave_no_trace_in_each_other(
    genome, strand: str, every: int, monkeypatch
) -> None:
    model = masked("none")
    wanted = [one for one in intervals(genome) if len(one) < 1000]  # without the longest record
    calls = counted_tokens(monkeypatch, MaskedDNAModel, "forward")

    def read(some: list[Interval]) -> list:
        return list(score_strands(model, genome, some, strand, 500, 256, every))

    found, together = read(wanted), len(calls)
    alone = [part for one in wanted for part in read([one])]
    assert together < len(calls) - together and max(calls) <= 1 << 15
    monkeypatch.setattr(masked_scores, "_WAITING", 300)
    for other in (alone, read(wanted)):
        for part, same in zip(found, other, strict=True):
            assert (part.chrom, part.start) == (same.chrom, same.start)
            assert np.array_equal(part.ids, same.ids)
            np.testing.assert_allclose(part.log_likelihood, same.log_likelihood, rtol=0, atol=1e-5)


def joined(parts: list[Vectors], wanted: list[Interval]) -> list[np.ndarray]:
    """Returns the vectors of every interval that is not empty, whatever its chunks."""
    found, waiting = [], iter(parts)
    for one in wanted:
        values: list[np.ndarray] = []
        while sum(map(len, values)) < len(one):
            part = next(waiting)
            assert part.chrom == one.chrom and part.start == one.start + sum(map(len, values))
            values.append(part.values)
        found.append(np.concatenate(values) if values else np.zeros((0, 0), np.float32))
    assert next(waiting, None) is None
    return found


@pytest.mark.parametrize("strand", ["+", "-", "both"])
@pytest.mark.parametrize("kind", [*MODELS, "masked", "masked ps"])
def test_each_is_embedded_as_if_it_were_alone(genome, kind: str, strand: str, monkeypatch) -> None:
    if kind.startswith("masked"):
        model = masked("ps" if kind.endswith("ps") else "none")
    else:
        model = made(kind)
    wanted = intervals(genome)

    def read(some: list[Interval], chunk: int) -> list[np.ndarray]:
        return joined(list(ordered_vectors(model, genome, some, strand, chunk, 64)), some)

    alone = [read([one], 4096)[0] for one in wanted]
    found = [read(wanted, chunk) for chunk in (4096, 500, 100)]
    monkeypatch.setattr(embeddings, "_TOGETHER", 130)
    for several in [*found, read(wanted, 4096)]:
        for values, other in zip(several, alone, strict=True):
            np.testing.assert_allclose(values, other, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", [DNALanguageModel, MaskedDNAModel])
def test_embedded_reads_share_calls(
    kind: type, write_fasta: Callable, random_bases: Callable, monkeypatch
) -> None:
    genome = Genome(write_fasta({f"r{i}": random_bases(100 + i % 3, i) for i in range(300)}))
    model = made("mamba") if kind is DNALanguageModel else masked("none")
    calls = counted_tokens(monkeypatch, kind, "hidden")
    reads = [Interval(name, 0, size) for name, size in genome.records.items()]
    assert sum(len(part.ids) for part in ordered_vectors(model, genome, reads)) == 30_300
    assert len(calls) < 20 and max(calls) <= 8192


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
