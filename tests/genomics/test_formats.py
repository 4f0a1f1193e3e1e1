"""Files as they come: every format and every irregularity gives the same bases, or a true error."""

from __future__ import annotations

import gzip
import io
import warnings
from pathlib import Path

import numpy as np
import pytest

from longseq.core.errors import DataError
from longseq.genomics.data.fasta import Genome
from longseq.genomics.data.formats import format_of, is_irregular
from longseq.genomics.data.tokenizer import decode

SEQUENCE = "".join(np.random.default_rng(0).choice(list("ACGT"), 1000).tolist())


def wrap(text: str, width: int = 60, end: str = "\n") -> str:
    return end.join(text[low : low + width] for low in range(0, len(text), width)) + end


def embl(text: str) -> str:
    lines = []
    for low in range(0, len(text), 60):
        row = text[low : low + 60].lower()
        groups = " ".join(row[at : at + 10] for at in range(0, len(row), 10))
        lines.append(f"     {groups:<65} {low + len(row):>9}")
    head = f"ID   chr1; SV 1; linear; DNA; STD; PRO; {len(text)} BP.\n"
    return head + f"SQ   Sequence {len(text)} BP;\n" + "\n".join(lines) + "\n//\n"


FASTA = f">chr1 some words - and dashes * here\n{wrap(SEQUENCE)}"
UNEVEN = f">chr1\n{SEQUENCE[:70]}\n{SEQUENCE[70:100]}\n{wrap(SEQUENCE[100:])}"
FILES = {
    "plain.fa": FASTA,
    "crlf.fa": FASTA.replace("\n", "\r\n"),
    "oldmac.fa": FASTA.replace("\n", "\r"),
    "bom.fa": "\ufeff" + FASTA,
    "blank_inside.fa": f">chr1\n{wrap(SEQUENCE[:500])}\n{wrap(SEQUENCE[500:])}",
    "blank_first.fa": f"\n>chr1\n\n{wrap(SEQUENCE)}\n\n",
    "blank_crlf.fa": f">chr1\r\n{SEQUENCE[:480]}\r\n\r\n{SEQUENCE[480:]}\r\n",
    "uneven.fa": UNEVEN,
    "comment.fa": f";one\n;another\n{FASTA}",
    "blank_last_crlf.fa": f">chr1\r\n{wrap(SEQUENCE, end=chr(13) + chr(10))}\r\n",
    "longer_last.fa": f">chr1\n{SEQUENCE[:400]}\n{SEQUENCE[400:]}\n>chr2\nAC\nGTT\n",
    "mixed_ends.fa": f">chr1\r\n{SEQUENCE[:500]}\n{SEQUENCE[500:990]}\r\n{SEQUENCE[990:]}\n",
    "growing.fa": f">chr1\n{SEQUENCE[:9]}\n{SEQUENCE[9:10]}\n{SEQUENCE[10:30]}\n{SEQUENCE[30:]}\n",
    "spaces.fa": f">chr1\n{wrap(SEQUENCE).replace('A', 'A ')}",
    "trailing.fa": f">chr1\n{SEQUENCE}  \t\n",
    "star.fa": f">chr1\n{wrap(SEQUENCE)}*\n",
    "star_on_line.fa": f">chr1\n{SEQUENCE}*\n>chr2\nACGT*\n",
    "gaps.fa": f">chr1\n{wrap(SEQUENCE[:100] + '-----' + SEQUENCE[100:])}",
    "no_end.fa": FASTA.rstrip("\n"),
    "reads.fastq": f"@chr1 a read\n{SEQUENCE}\n+\n{'@' * len(SEQUENCE)}\n",
    "anything.gff3": f"##gff-version 3\nchr1\t.\tgene\t1\t9\t.\t+\t.\tID=g\n##FASTA\n{FASTA}",
    "x.embl": embl(SEQUENCE),
}


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("name", FILES)
def test_the_bases_are_the_same(name: str, zipped: bool, tmp_path: Path) -> None:
    path = tmp_path / (name + ".gz" * zipped)
    content = FILES[name].encode()
    path.write_bytes(gzip.compress(content) if zipped else content)
    for _ in range(2):  # the second time from the cache
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            genome = Genome(path)
        said = [str(one.message) for one in caught if "alignment dashes" in str(one.message)]
        assert len(said) == (name == "gaps.fa") and all("5 alignment" in text for text in said)
        genome.validate()
        (first, *_) = genome.records
        assert first in ("chr1", "chr1.1") and genome.records[first] == 1000
        assert decode(genome.fetch(first, 0, 1000)) == SEQUENCE
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (">p\nMKVLAAGIVG\n", "character 'L' at position 4"),
        (">a\nAC*GT\n", r"character '\*' at position 3"),
        ("##gff-version 3\nchr1\t.\tgene\t1\t9\t.\t+\t.\tID=g\n", "without a ##FASTA section"),
        ("@r\nACGT\n+\nII\n", "malformed FASTQ file"),
        ("@r\nACGT\n", "malformed FASTQ file"),
        ("ID   X; SV 1; linear; DNA; STD; PRO; 60 BP.\n//\n", "malformed EMBL file"),
        (">a\n-----\n", "a: the record is empty"),
        (">a\n*\n", "a: the record is empty"),
        (">a\rACGT\r>a\rAC\r", "a: two records have this name"),
    ],
)
def test_what_cannot_be_read_is_named(content: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.fa"
    path.write_text(content)
    with pytest.raises(DataError, match=says), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Genome(path).validate()


def test_formats_are_known_by_content(tmp_path: Path) -> None:
    path = tmp_path / "strain.gb.fa"
    path.write_text(FASTA)
    assert format_of(path) == "fasta"
    path.write_text("\ufeffLOCUS       X\n")
    assert format_of(path) == "genbank"


def test_irregularities_are_seen_across_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    for size in (5, 64, 10_000):
        monkeypatch.setattr("longseq.genomics.data.formats._CHUNK", size)
        for name, content in FILES.items():
            if name.endswith(".fa"):
                regular = name in ("plain.fa", "crlf.fa", "no_end.fa", "comment.fa")
                assert is_irregular(io.BytesIO(content.encode())) != regular, (name, size)
