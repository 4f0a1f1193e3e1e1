"""GenBank files: sequence, genes, conversion for Genome, and malformed input."""

import gzip

import pytest

from longseq.core.errors import DataError
from longseq.genomics.data.fasta import Genome
from longseq.genomics.data.genbank import read_genbank
from longseq.genomics.data.samples import SAMPLES
from longseq.genomics.data.tokenizer import decode

SMALL = """LOCUS       SMALL                     40 bp    DNA     circular BCT 01-JAN-2000
DEFINITION  A made-up record.
ACCESSION   SMALL
VERSION     SMALL.1
FEATURES             Location/Qualifiers
     source          1..40
     gene            3..8
                     /gene="abc"
     CDS             3..8
                     /gene="abc"
                     /product="protein abc"
     gene            complement(10..20)
                     /locus_tag="X_1"
     tRNA            join(35..40,1..2)
                     /gene="trnA"
                     /product="tRNA-Ala"
ORIGIN
        1 acgtacgtac gtacgtacgt acgtacgtac gtacgtacgt
//
"""


@pytest.fixture
def small(tmp_path):
    path = tmp_path / "small.gb"
    path.write_text(SMALL)
    return path


def test_genes(small):
    (record,) = read_genbank(small)
    assert record.name == "SMALL.1" and record.circular and record.sequence == "ACGT" * 10
    found = [(g.name, g.product, g.start, g.end, g.strand, g.kind) for g in record.genes]
    assert found == [
        ("abc", "protein abc", 2, 8, "+", "CDS"),
        ("X_1", "", 9, 20, "-", "gene"),
        ("trnA", "tRNA-Ala", 34, 42, "+", "tRNA"),
    ]


def test_genome_reads_genbank(small):
    genome = Genome(small)
    assert genome.records == {"SMALL.1": 40} and decode(genome.fetch("SMALL.1", 1, 5)) == "CGTA"
    genome.validate()


def test_packaged_genome():
    (record,) = read_genbank(SAMPLES.path("chlamydia_trachomatis"))
    genome = Genome(SAMPLES.path("chlamydia_trachomatis.gbk.gz"))
    assert genome.records == {"CG0037": 1_042_519} and len(record.sequence) == 1_042_519
    gene = next(g for g in record.genes if g.name == "gatC")
    assert decode(genome.fetch("CG0037", gene.start, gene.end)).startswith("ATG")
    assert sum(g.kind == "CDS" for g in record.genes) == 895
    line = f"SHA-256: `{genome.checksum()}`"
    assert line in SAMPLES.path("tiny").with_name("SOURCE.md").read_text()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (SMALL.replace("ORIGIN", "ORIGIX"), "GenBank|no sequence"),
        (SMALL[: SMALL.index("        1 acgt")] + "//\n", "SMALL.1: the record has no sequence"),
        (SMALL[: SMALL.index(" gtacgtacgt acgtac")], "truncated GenBank"),
        ("not GenBank\n", "no GenBank records"),
        ("LOCUS\n", "GenBank"),
        ("", "is empty"),
    ],
)
def test_malformed(content, message, tmp_path):
    path = tmp_path / "bad.gb"
    path.write_text(content)
    with pytest.raises(DataError, match=message) as error:
        read_genbank(path)
    assert "bad.gb" in str(error.value) and "\n" not in str(error.value)


def test_truncated_gzip(tmp_path):
    path = tmp_path / "cut.gbk.gz"
    path.write_bytes(gzip.compress(SMALL.encode())[:-20])
    with pytest.raises(DataError, match="truncated or damaged gzip"):
        read_genbank(path)
