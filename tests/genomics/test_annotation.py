"""Features of GFF3, GTF, GenBank and BED files, and the faults of their lines."""

import gzip
import warnings
from dataclasses import replace

import pytest

from longseq.core.errors import DataError
from longseq.genomics.data.annotation import own_features, read_features
from longseq.genomics.data.fasta import Genome
from longseq.genomics.data.gene_labels import gene_states
from longseq.genomics.data.samples import SAMPLES
from longseq.genomics.gene_scores import agreement, codon_places

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


def test_gff3_joins_parts_also_across_the_origin(genome, tmp_path) -> None:
    path = tmp_path / "a.gff3.gz"
    path.write_bytes(gzip.compress(GFF3.encode()))
    found = read_features(path, genome)
    assert {one.chrom for one in found} == {"chr1"}
    genes = [one for one in found if one.kind == "gene"]
    places = [(one.start, one.end, one.strand) for one in genes]
    assert places == [(10, 40, "+"), (90, 110, "-")]
    assert genes[1].spans() == ((0, 10), (90, 100)) and len(genes[1]) == 20
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


def test_a_cds_of_gtf_has_its_stop_codon(genome, tmp_path) -> None:
    path = tmp_path / "a.gtf"
    rows = [
        ("CDS", 1, 27, "+", "a"),
        ("stop_codon", 28, 30, "+", "a"),
        ("stop_codon", 31, 33, "-", "b"),
        ("CDS", 34, 60, "-", "b"),
        ("CDS", 61, 88, "+", "c"),  # its stop codon lies in two exons
        ("stop_codon", 89, 90, "+", "c"),
        ("stop_codon", 95, 95, "+", "c"),
        ("CDS", 96, 100, "+", "d"),  # as of programs that count it in
        ("stop_codon", 98, 100, "+", "d"),
    ]
    line = 'chr1\tx\t{}\t{}\t{}\t.\t{}\t0\tgene_id "{}"; transcript_id "t";\n'
    path.write_text("".join(line.format(*row) for row in rows).replace('"t"', '""'))
    found = read_features(path, genome, ["CDS"])
    spans = [((0, 30),), ((30, 60),), ((60, 90), (94, 95)), ((95, 100),)]
    assert [one.spans() for one in found] == spans
    assert [one.phase for one in found] == [0] * 4


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


CIRCLE = "chr1\t.\tregion\t1\t100\t.\t+\t.\tID=chr1;Is_circular=true\n"


@pytest.mark.parametrize(
    ("lines", "parts", "spans", "phase"),
    [
        # one line beyond the end, or one on either side of the origin, in any order
        ([(91, 115, 0)], (), ((0, 15), (90, 100)), 0),
        ([(91, 100, 0), (1, 15, 2)], (), ((0, 15), (90, 100)), 0),
        ([(1, 15, 2), (91, 100, 0)], (), ((0, 15), (90, 100)), 0),
        # with an intron, counted on or not
        (
            [(81, 85, 1), (91, 100, 2), (1, 15, 2)],
            ((80, 85), (90, 115)),
            ((0, 15), (80, 85), (90, 100)),
            1,
        ),
        (
            [(91, 105, 0), (8, 20, 0)],
            ((90, 105), (107, 120)),
            ((0, 5), (7, 20), (90, 100)),
            0,
        ),
        (
            [(91, 95, 0), (103, 110, 1)],
            ((90, 95), (102, 110)),
            ((2, 10), (90, 95)),
            0,
        ),
        # its exons lie in the order of the record; the last one goes over the origin
        (
            [(51, 60, 0), (91, 105, 2)],
            ((50, 60), (90, 105)),
            ((0, 5), (50, 60), (90, 100)),
            0,
        ),
    ],
)
def test_a_feature_across_the_origin_is_one(genome, tmp_path, lines, parts, spans, phase) -> None:
    path = tmp_path / "a.gff3"
    text = "".join(f"chr1\t.\tCDS\t{a}\t{b}\t.\t+\t{p}\tID=c\n" for a, b, p in lines)
    path.write_text(text + CIRCLE)  # which may come last
    (one,) = read_features(path, genome, ["CDS"])
    assert (one.parts, one.spans(), one.phase, one.size) == (parts, spans, phase, 100)
    assert one.start == (parts or ((90, 0),))[0][0] and one.end > 100
    places, _ = codon_places(one, 100)
    assert sorted(places.tolist()) == [i for low, high in spans for i in range(low, high)]
    # as the user says, where the file does not
    path.write_text(text)
    assert read_features(path, genome, circular=["chr1"]) == [one]


def test_an_end_beyond_a_line_is_refused(genome, tmp_path) -> None:
    path = tmp_path / "a.gff3"
    path.write_text("chr1\t.\tCDS\t91\t115\t.\t+\t0\tID=c\n")
    with pytest.raises(DataError, match="end 115 is beyond chr1"):
        read_features(path, genome)
    path.write_text(CIRCLE + "chr1\t.\tCDS\t91\t191\t.\t+\t0\tID=c\n")
    with pytest.raises(DataError, match="line 2: end 191 is beyond chr1"):
        read_features(path, genome)


def test_a_gene_on_both_strands_is_named_and_counts_for_none(genome, tmp_path) -> None:
    path = tmp_path / "a.gff3"
    line = "chr1\t.\tCDS\t{}\t{}\t.\t{}\t0\tID={}\n"
    rows = [(1, 9, "+", "rps12"), (31, 39, "-", "rps12"), (61, 69, "-", "b")]
    path.write_text("".join(line.format(*row) for row in rows))
    with pytest.warns(UserWarning, match=r"chr1: CDS rps12 \(its parts lie on both strands\)"):
        found = read_features(path, genome)
    assert [(one.start, one.counts) for one in found] == [(0, False), (30, False), (60, True)]
    states = gene_states(found, 100)
    assert (states[:9] == -1).all() and (states[30:39] == -1).all() and (states[60:69] > 0).all()


def test_an_annotation_of_another_sequence_is_refused(genome, tmp_path) -> None:
    path = tmp_path / "a.gff3"
    line = "chr1\t.\tgene\t1\t9\t.\t+\t.\tID=a\n"
    path.write_text(f"##sequence-region 1 1 100\n##sequence-region chr9 1 7\n{line}")
    assert len(read_features(path, genome)) == 1
    path.write_text(f"##gff-version 3\n##sequence-region chr1 1 120\n{line}")
    with pytest.raises(DataError, match=r"chr1: describes 120 bases.*has 100.*of this genome"):
        read_features(path, genome)
    gbk = tmp_path / "a.gbk"
    gbk.write_text(genbank([("40..60", [])]).replace("c.1", "chr1"))
    with pytest.raises(DataError, match="chr1: describes 120 bases"):
        read_features(gbk, genome)


def test_a_kind_that_is_not_there_is_named(genome, tmp_path) -> None:
    (tmp_path / "a.gff").write_text("chr1\t.\tgene\t1\t3\t.\t+\t.\tID=a\n")
    with pytest.raises(DataError, match="gene"):
        read_features(tmp_path / "a.gff", genome, ["gen"])


def genbank(genes, topology="circular") -> str:
    """Text of a GenBank record of 120 bases with coding sequences: place and notes of each."""
    lines = [f"LOCUS       c                        120 bp    DNA     {topology:8} BCT 01-JAN-2000"]
    lines += ["VERSION     c.1", "FEATURES             Location/Qualifiers"]
    for i, (place, notes) in enumerate(genes):
        lines.append(f"     CDS             {place}")
        lines += [f"                     /{note}" for note in [*notes, f'locus_tag="x{i}"']]
    lines += ["ORIGIN", *(f"{i:9d} {'acgtacgtac ' * 6}" for i in (1, 61)), "//", ""]
    return "\n".join(lines)


@pytest.mark.parametrize("topology", ["circular", "linear"])
def test_genbank_keeps_parts_phase_and_pseudogenes(tmp_path, topology) -> None:
    genes = [
        ("join(10..20,20..30)", ["codon_start=2"]),
        ("complement(join(101..120,1..10))", []),
        ("join(complement(1..10),complement(101..120))", ["codon_start=3"]),
        ("join(81..90,111..120,1..5,8..9)", []),
        ("40..60", ["pseudo"]),
        ("complement(join(1..10,101..120))", []),
    ]
    path = tmp_path / "a.gbk"
    path.write_text(genbank(genes, topology))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = {one.name: one for one in read_features(path) if one.kind == "CDS"}
    rows = [
        (one.start, one.end, one.strand, one.parts, one.phase, one.pseudo, one.size)
        for one in (found[f"x{i}"] for i in range(len(genes)))
    ]
    assert rows == [
        (9, 30, "+", ((9, 20), (19, 30)), 1, False, 0),
        (100, 130, "-", (), 0, False, 120),
        (100, 130, "-", (), 2, False, 120),
        (80, 129, "+", ((80, 90), (110, 125), (127, 129)), 0, False, 120),
        (39, 60, "+", (), 0, True, 0),
        (0, 120, "-", ((0, 10), (100, 120)), 0, False, 0),  # an intron between them
    ]
    assert found["x3"].spans() == ((0, 5), (7, 9), (80, 90), (110, 120))


@pytest.mark.parametrize(
    ("place", "says", "kept"),
    [
        ("join(J00194.1:100..202,1..45)", "CDS x0 (parts of it lie on J00194.1)", True),
        ("join(1..10,J1.1:5..9,J2:3..4,20..30)", "(parts of it lie on J1.1, J2)", True),
        ("J00194.1:100..202", "CDS x0 (it lies on J00194.1), left out", False),
        ("?..20", "CDS x0 (its place cannot be read), left out", False),
        ("join(complement(1..10),20..30)", "(its parts lie on both strands)", True),
        ("join(50..60,20..30)", "(its parts are not in the order of the record)", True),
    ],
)
def test_genes_that_are_not_whole_are_named_and_count_for_none(tmp_path, place, says, kept) -> None:
    path = tmp_path / "a.gbk"
    path.write_text(genbank([(place, []), ("61..90", [])]))
    with pytest.warns(UserWarning, match="not whole on their record") as caught:
        found = read_features(path)
    (text,) = [str(one.message) for one in caught]
    assert f"{path}: " in text and "c.1: CDS x0 " in text and says in text
    assert [one.pseudo for one in found if one.name == "x0"] == [True] * kept
    assert [one.pseudo for one in found if one.name == "x1"] == [False]
    # so that no label is learnt from its bases, and none of them speaks against a gene found there
    states = gene_states(found, 120)
    inside = [i for one in found if one.name == "x0" for a, b in one.spans() for i in range(a, b)]
    assert (states[inside] == -1).all() and (states[60:90] > 0).all()
    torn = [one for one in found if one.name == "x0"]
    assert agreement([replace(one, strand="+") for one in torn], found, 120).found == 0


def test_a_stop_codon_in_an_exon_of_its_own_leaves_a_cds_of_either_strand(tmp_path) -> None:
    path = tmp_path / "a.gtf"
    for strand, stop in (("+", (500, 502)), ("-", (21, 23))):
        lines = [("CDS", 101, 150), ("CDS", 301, 350), ("stop_codon", *stop)]
        about = 'gene_id "g"; transcript_id "t";'
        text = [f"c\tx\t{kind}\t{a}\t{b}\t.\t{strand}\t0\t{about}" for kind, a, b in lines]
        path.write_text("\n".join(text) + "\n")
        (found,) = read_features(path, None, ["CDS"])
        parts = sorted([(100, 150), (300, 350), (stop[0] - 1, stop[1])])
        assert (found.kind, list(found.parts)) == ("CDS", parts)
