"""Features of GFF3, GTF, GenBank and BED files, and the faults of their lines."""

import gzip

import pytest

from longseq.core.errors import DataError
from longseq.genomics.data.annotation import own_features, read_features
from longseq.genomics.data.fasta import Genome
from longseq.genomics.data.samples import SAMPLES

GFF3 = """##gff-version 3
chr1\t.\tregion\t1\t100\t.\t+\t.\tID=chr1;Is_circular=true
1\t.\tgene\t11\t40\t.\t+\t.\tID=g1;Name=dna%3BA
1\t.\tCDS\t11\t20\t.\t+\t0\tID=c1;Parent=g1
1\t.\tCDS\t31\t40\t.\t+\t1\tID=c1;Parent=g1
1\t.\tCDS\t61\t72\t.\t-\t2\tID=c2;Name=x
1\t.\tgene\t91\t110\t.\t-\t.\tID=g3
###
##FASTA
>chr1
ACGT
"""


@pytest.fixture
def genome(write_fasta):
    return Genome(write_fasta({"chr1": "ACGTA" * 20}))


def test_gff3_joins_parts_and_cuts_at_the_origin(genome, tmp_path) -> None:
    path = tmp_path / "a.gff3.gz"
    path.write_bytes(gzip.compress(GFF3.encode()))
    found = read_features(path, genome)
    assert {one.chrom for one in found} == {"chr1"}
    genes = [one for one in found if one.kind == "gene"]
    places = [(one.start, one.end, one.strand) for one in genes]
    assert places == [(0, 10, "-"), (10, 40, "+"), (90, 100, "-")]
    joined = next(one for one in found if one.kind == "CDS" and one.strand == "+")
    assert joined.spans() == ((10, 20), (30, 40)) and len(joined) == 20 and joined.phase == 0
    assert next(one for one in genes if one.start == 10).name == "dna;A"
    assert [one.kind for one in read_features(path, genome, ["CDS"])] == ["CDS", "CDS"]


def test_gtf_is_grouped_by_transcript_and_gene(genome, tmp_path) -> None:
    path = tmp_path / "a.gtf"
    line = 'chr1\tx\t{}\t{}\t{}\t.\t+\t.\tgene_id "g"; transcript_id "{}"; gene_name "abc";\n'
    path.write_text(
        line.format("gene", 1, 60, "")
        + line.format("exon", 1, 10, "t1")
        + line.format("exon", 21, 30, "t1")
        + line.format("exon", 1, 12, "t2")
    )
    found = read_features(path, genome)
    assert [(one.kind, one.spans()) for one in found] == [
        ("exon", ((0, 12),)),
        ("exon", ((0, 10), (20, 30))),
        ("gene", ((0, 60),)),
    ]
    assert {one.name for one in found} == {"abc"}


def test_bed_and_genbank_are_read_too(genome, tmp_path) -> None:
    (tmp_path / "a.bed").write_text("1\t5\t9\tpeak\t0\t-\n")
    one = read_features(tmp_path / "a.bed", genome)[0]
    assert (one.chrom, one.start, one.end, one.strand, one.name) == ("chr1", 5, 9, "-", "peak")
    path = SAMPLES.path("chlamydia_trachomatis")
    genes = own_features(path, Genome(path))
    assert len(genes) > 800 and {one.kind for one in genes} >= {"CDS", "tRNA"}
    assert own_features(genome.path, genome) == []


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("chr1\t.\tgene\t1\t200\t.\t+\t.\tID=a", "line 1: end 200 is beyond chr1"),
        ("chr1\t.\tgene\t9\t3\t.\t+\t.\tID=a", "9-3 is no range"),
        ("chr1\t.\tgene\t0\t3\t.\t+\t.\tID=a", "0-3 is no range"),
        ("chr1\t.\tgene\tx\t3\t.\t+\t.\tID=a", "must be whole numbers"),
        ("chr1\t.\tgene\t1\t3\t.\t*\t.\tID=a", "strand '*'"),
        ("chr1\t.\tgene\t1\t3\t.\t+\t5\tID=a", "phase '5'"),
        ("chr1 . gene 1 3 . + . ID=a", "1 columns between tabs"),
        ("chr7\t.\tgene\t1\t3\t.\t+\t.\tID=a", "no record 'chr7'"),
    ],
)
def test_a_wrong_line_is_named(genome, tmp_path, line, message) -> None:
    (tmp_path / "a.gff").write_text(line + "\n")
    with pytest.raises(DataError, match="line 1") as error:
        read_features(tmp_path / "a.gff", genome)
    assert message in str(error.value)


def test_a_kind_that_is_not_there_is_named(genome, tmp_path) -> None:
    (tmp_path / "a.gff").write_text("chr1\t.\tgene\t1\t3\t.\t+\t.\tID=a\n")
    with pytest.raises(DataError, match="gene"):
        read_features(tmp_path / "a.gff", genome, ["gen"])


def test_genbank_keeps_parts_phase_and_pseudogenes(tmp_path) -> None:
    header = "LOCUS       c                 120 bp    DNA     circular BCT 01-JAN-2000\n"
    lines = [header, "VERSION     c.1\n", "FEATURES             Location/Qualifiers\n"]
    for place, notes in (
        ("join(10..20,20..30)", ["codon_start=2"]),
        ("complement(join(101..120,1..10))", []),
        ("40..60", ["pseudo"]),
    ):
        lines.append(f"     CDS             {place}\n")
        lines += [f"                     /{note}\n" for note in [*notes, 'locus_tag="x"']]
    lines += ["ORIGIN\n", *(f"{i:9d} {'acgtacgtac ' * 6}\n" for i in (1, 61)), "//\n"]
    path = tmp_path / "a.gbk"
    path.write_text("".join(lines))
    found = [one for one in read_features(path) if one.kind == "CDS"]
    rows = [(one.start, one.end, one.strand, one.spans(), one.phase, one.pseudo) for one in found]
    assert rows == [
        (0, 10, "-", ((0, 10),), 0, False),
        (9, 30, "+", ((9, 20), (19, 30)), 1, False),
        (39, 60, "+", ((39, 60),), 0, True),
        (100, 120, "-", ((100, 120),), 2, False),
    ]
