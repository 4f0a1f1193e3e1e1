"""Genome: plain, gzip, bgzip and GenBank input, regions, workers, and one-line errors."""

import gzip
import os
import pickle

import numpy as np
import pytest
import torch
from Bio import bgzf
from torch.utils.data import DataLoader

from longseq.core.errors import DataError
from longseq.genomics.data import fasta
from longseq.genomics.data.collection import Collection
from longseq.genomics.data.fasta import Genome
from longseq.genomics.data.samples import SAMPLES
from longseq.genomics.data.splits import Interval
from longseq.genomics.data.tokenizer import decode
from longseq.genomics.data.windows import StepDataset


def _gzip(path, name="g.fa.gz"):
    out = path.with_name(name)
    out.write_bytes(gzip.compress(path.read_bytes()))
    return out


def _bgzip(path, name="b.fa.gz"):
    out = path.with_name(name)
    with bgzf.BgzfWriter(str(out)) as file:
        file.write(path.read_bytes())
    return out


@pytest.mark.parametrize(
    "kind", ["plain", "crlf", "gzip", "bgzip", "bgzip named .fasta", "one line"]
)
def test_every_container_gives_the_same_bases(kind, write_fasta, random_bases, cache):
    records = {
        "chr1": random_bases(150_000),
        "chr2": random_bases(61, 1),
        "chr3": random_bases(60, 2, "acgtN"),
    }
    path = write_fasta(
        records,
        newline="\r\n" if kind == "crlf" else "\n",
        width=10**6 if kind == "one line" else 60,
    )
    if "zip" in kind:
        path = (
            _gzip(path)
            if kind == "gzip"
            else _bgzip(path, "b.fasta" if "named" in kind else "b.fa.gz")
        )
    before = set(os.listdir(path.parent))
    genome = Genome(path)
    genome.validate()
    assert genome.records == {name: len(text) for name, text in records.items()}
    rng = np.random.default_rng(0)
    # 65,280 and 65,536 bytes are the usual sizes of a bgzip block: its bounds must not matter.
    spans = [(0, 150_000), (59, 61), (60, 120), (64_430, 64_460), (0, 1), (149_999, 150_000)]
    spans += [tuple(sorted(rng.integers(0, 150_000, 2))) for _ in range(20)]
    spans += [(s, s + 1) for s in range(64_400, 64_520)]
    for start, end in spans:
        assert decode(genome.fetch("chr1", start, end)) == records["chr1"][start:end]
    assert decode(genome.fetch("chr3", 0, 60)) == records["chr3"].upper()
    assert set(os.listdir(path.parent)) == before  # no index beside the file
    # A second Genome finds the index.
    assert Genome(path)._index == genome._index


def test_padding_strand_and_mask(tiny):
    assert tiny.records == {"tiny1": 3000, "tiny2": 2000}
    inside = decode(tiny.fetch("tiny1", 0, 5))
    assert decode(tiny.fetch("tiny1", -3, 5)) == "NNN" + inside
    assert decode(tiny.fetch("tiny1", 2998, 3002))[2:] == "NN"
    assert decode(tiny.fetch("tiny1", 5000, 5003)) == "NNN" == decode(tiny.fetch("tiny1", -9, -6))
    assert tiny.fetch("tiny1", 7, 7).shape == (0,)
    forward = decode(tiny.fetch("tiny1", 10, 20))
    assert decode(tiny.fetch("tiny1", 10, 20, "-")) == forward[::-1].translate(
        str.maketrans("ACGT", "TGCA")
    )
    ids, mask = tiny.fetch_with_mask("tiny1", 790, 1110)
    assert (
        mask.sum() == 300
        and mask[10:310].all()
        and decode(ids) == decode(tiny.fetch("tiny1", 790, 1110))
    )
    assert np.array_equal(
        tiny.fetch_with_mask("tiny1", 790, 900, "-")[1],
        tiny.fetch_with_mask("tiny1", 790, 900)[1][::-1],
    )
    assert tiny.fetch_with_mask("tiny1", -5, 5)[1].shape == (10,)
    assert set(decode(tiny.fetch("tiny2", 1000, 1050))) == {"N"}
    with pytest.raises(DataError, match="tiny1: region 5-3"):
        tiny.fetch("tiny1", 5, 3)


def test_names(write_fasta):
    genome = Genome(write_fasta({"1": "ACGT", "chr2": "ACGT", "MT": "AC"}))
    assert [genome.resolve(n) for n in ("chr1", "1", "2", "chr2", "chrM", "M")] == [
        "1",
        "1",
        "chr2",
        "chr2",
        "MT",
        "MT",
    ]
    with pytest.raises(DataError, match=r"g\.fa: no record 'chr22' \(did you mean 'chr2'\?\)"):
        genome.fetch("chr22", 0, 1)


def test_checksum_and_samples():
    line = f"SHA-256: `{Genome(SAMPLES.path('tiny')).checksum()}`"
    assert line in SAMPLES.path("tiny").with_name("SOURCE.md").read_text()
    with pytest.raises(
        ValueError, match=r"no packaged genomics sample 'human'.*chlamydia_trachomatis"
    ):
        SAMPLES.path("human")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the genome file is empty"),
        (b"\n\n", "no FASTA records"),
        (b"hello\nworld\n", "no FASTA records"),
        (b">\nACGT\n", "a record without a name"),
        (b">a\nACGT\n>b\nACGT\n>a\nGG\n", "a: two records have this name"),
        (b">a\nACGT\n>b\n>c\nACGT\n", "b: the record is empty"),
        (b">a\nACGT\n>b\n", "b: the record is empty"),
        (b">a\n\xff\xfe\xfd\n", "not a text file"),
        (b"LOCUS       broken\nORIGIN\n", "GenBank"),
    ],
)
def test_unusable_files(content, message, tmp_path):
    path = tmp_path / "bad.fa"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        Genome(path)
    assert "bad.fa" in str(error.value) and "\n" not in str(error.value)
    path.with_name("bad.fa.gz").write_bytes(gzip.compress(content) if content else b"")
    with pytest.raises(DataError, match=message):
        Genome(path.with_name("bad.fa.gz"))


def test_missing_and_misnamed(tmp_path, write_fasta):
    with pytest.raises(DataError, match="no such genome file"):
        Genome(tmp_path / "none.fa")
    with pytest.raises(DataError, match="named as a gzip file"):
        Genome(write_fasta({"a": "ACGT"}, name="plain.fa.gz"))


def test_truncated_compression(write_fasta, random_bases, cache):
    path = write_fasta({"a": random_bases(300_000)})
    for whole in (_gzip(path), _bgzip(path)):
        cut = whole.with_name(f"cut-{whole.name}")
        cut.write_bytes(whole.read_bytes()[:-5000])
        with pytest.raises(DataError, match=r"cut-.*truncated"):
            Genome(cut)
        assert not list(cache.rglob("cut-*"))  # nothing half-made is left
    broken = bytearray(_bgzip(path).read_bytes())
    broken[60_000:60_050] = bytes(50)
    target = path.with_name("broken.fa.gz")
    target.write_bytes(broken)
    with pytest.raises(DataError, match=r"broken\.fa\.gz"):
        Genome(target).validate()


def test_validate_names_the_character(write_fasta, random_bases):
    text = random_bases(10_000)
    genome = Genome(write_fasta({"a": "ACGT" * 100, "b": text[:5000] + "*" + text[5001:]}))
    with pytest.raises(DataError, match=r"g\.fa: b: character '\*' at position 5,001 "):
        genome.validate()
    with pytest.raises(DataError, match="position 5,001 "):
        genome.fetch("b", 4900, 5100)


def test_index_follows_the_file(write_fasta):
    path = write_fasta({"a": "ACGT"})
    assert Genome(path).records == {"a": 4}
    written = path.stat().st_mtime_ns
    write_fasta({"b": "ACGTACGT"})
    # File systems tell times of their own fineness.
    os.utime(path, ns=(written + 10**9, written + 10**9))
    assert Genome(path).records == {"b": 8}


def test_file_that_shrinks_while_open(write_fasta):
    path = write_fasta({"a": "ACGT" * 5000})
    genome = Genome(path)
    path.write_text(">a\nAC\n")
    with pytest.raises(DataError, match="changed after it was opened"):
        genome.fetch("a", 100, 200)


def test_unwritable_cache(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("LONGSEQ_CACHE_DIR", str(tmp_path / "file"))
    with pytest.raises(DataError, match="set LONGSEQ_CACHE_DIR"):
        fasta.cache_dir("genomics")


def test_pickle_drops_the_handle(tiny):
    tiny.fetch("tiny1", 0, 10)
    copy = pickle.loads(pickle.dumps(tiny))
    assert copy._handle is None and tiny._handle is not None
    assert np.array_equal(copy.fetch("tiny1", 0, 10), tiny.fetch("tiny1", 0, 10))


@pytest.mark.parametrize("zipped", [False, True])
def test_workers_read_what_one_process_reads(zipped, tiny):
    genome = tiny
    if zipped:
        import shutil

        plain = fasta.cache_dir("genomics") / "tiny.fa"
        shutil.copy(SAMPLES.path("tiny"), plain)
        genome = Genome(_bgzip(plain))
    genome.fetch("tiny1", 0, 10)  # an open handle is inherited by the forked workers
    intervals = [Interval(name, 0, length) for name, length in genome.records.items()]
    data = StepDataset(genome, intervals, lambda step: (4, 100), seed=1, steps=24)
    alone = list(DataLoader(data, batch_size=None))
    shared = list(DataLoader(data, batch_size=None, num_workers=2))
    assert len(alone) == len(shared) == 24
    for one, two in zip(alone, shared):
        assert torch.equal(one["input_ids"], two["input_ids"]) and torch.equal(
            one["targets"], two["targets"]
        )


def test_the_records_are_listed_once(tiny):
    # A list made at every request takes time with the square of the number of records.
    both = Collection({"a": tiny, "b": tiny})
    for genome in (tiny, both):
        assert genome.records is genome.records
    assert both.records == {
        f"{tag}:{name}": size for tag in "ab" for name, size in tiny.records.items()
    }
