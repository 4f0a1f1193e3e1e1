"""``longseq genomics annotate``: GFF3 that other readers understand, and its comparison."""

import numpy as np
import pytest

from longseq.core.errors import ConfigError, DataError
from longseq.genomics.annotate import compare, find_prodigal, run, to_features, write_gff3
from longseq.genomics.data.annotation import read_features
from longseq.genomics.data.fasta import Genome
from longseq.genomics.data.samples import SAMPLES
from longseq.genomics.data.tokenizer import decode
from longseq.genomics.gene_finder import GeneFinder
from longseq.genomics.gene_model import Genes


@pytest.fixture(scope="module")
def text(make_genes):
    return make_genes()[0]


def test_annotate_writes_genes_that_are_read_back(write_fasta, tmp_path, text, capsys) -> None:
    path = write_fasta({"plasmid 1|x": text})
    out, proteins = tmp_path / "a.gff3", tmp_path / "a.faa"
    assert run([str(path), "--out", str(out), "--proteins", str(proteins)]) == 0
    genome = Genome(path)
    lines = out.read_text().splitlines()
    assert lines[0] == "##gff-version 3"
    rows = [line.split("\t") for line in lines if not line.startswith("#")]
    assert all(len(row) == 9 for row in rows) and {row[2] for row in rows} == {
        "region",
        "gene",
        "CDS",
    }
    found = read_features(out, genome, ["CDS"])
    assert len(found) == sum(row[2] == "CDS" for row in rows) >= 115
    assert all(one.phase == 0 and len(one) % 3 == 0 for one in found)
    parents = {row[8].split("ID=")[1].split(";")[0] for row in rows if row[2] == "gene"}
    assert all(
        row[8].split("Parent=")[1].split(";")[0] in parents for row in rows if row[2] == "CDS"
    )
    sequences = proteins.read_text().split(">")[1:]
    assert len(sequences) == len(found)
    whole = ["".join(one.splitlines()[1:]) for one in sequences]
    assert all(one.startswith("M") and "*" not in one for one in whole[2:-2])
    # Its own annotation is what it found.
    again = [str(path), "--out", str(tmp_path / "b.gff3"), "--truth", str(out)]
    assert run([*again, "--learn", str(path), "--learn_genes", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "annotated genes" in printed and "agreement with the annotation" in printed


def test_what_goes_beyond_an_end_is_partial_and_a_circle_goes_on(write_fasta, tmp_path) -> None:
    genome = Genome(write_fasta({"c": "ACGTA" * 60}))
    genes = Genes(
        np.array([0, 100, 250]),
        np.array([50, 160, 310]),
        np.array([1, -1, -1]),
        np.array([5.0, 6.0, 7.0]),
        np.array([True, False, False]),
        np.array([False, True, False]),
        np.array([2, 0, 0]),
    )
    out = tmp_path / "a.gff3"
    assert write_gff3(out, genome, {"c": genes}, ["c"]) == 3
    rows = [line.split("\t") for line in out.read_text().splitlines() if "\tCDS\t" in line]
    assert [row[3:8] for row in rows] == [
        ["1", "50", "5.0", "+", "2"],
        ["101", "160", "6.0", "-", "0"],
        ["251", "310", "7.0", "-", "0"],
    ]
    assert rows[0][8].endswith("partial=true;start_range=.,1")
    assert rows[1][8].endswith("partial=true;start_range=.,101")
    assert "partial" not in rows[2][8] and "Is_circular=true" in out.read_text()
    found = read_features(out, genome, ["CDS"])
    across = [(one.start, one.end, one.phase, one.spans()) for one in found if one.size]
    assert across == [(250, 310, 0, ((0, 10), (250, 300)))]
    # counted once, and as what was found
    total = compare(genome, {"found": to_features(genes, "c")}, read_features(out, genome))["found"]
    assert (total.annotated, total.found, total.ends, total.exact) == (3, 3, 3, 3)
    assert total.shared_bases == total.found_bases == total.annotated_bases == 170
    assert to_features(genes, "c")[0].phase == 2


def test_wrong_calls_are_refused(write_fasta, tmp_path, text) -> None:
    path = str(write_fasta({"c": text}))
    with pytest.raises(ConfigError, match="must end in"):
        run([path, "--out", str(tmp_path / "a.txt")])
    with pytest.raises(ConfigError, match="2 of --learn_genes for 1"):
        run([path, "--out", str(tmp_path / "a.gff3"), "--learn", path, "--learn_genes", "a,b"])
    with pytest.raises(DataError, match="no record"):
        run([path, "--out", str(tmp_path / "a.gff3"), "--circular", "nowhere"])
    short = str(write_fasta({"c": "ACGT" * 20}, "s.fa"))
    with pytest.raises(DataError, match="no open reading frame"):
        run([short, "--out", str(tmp_path / "a.gff3")])
    assert not list(tmp_path.glob("*.gff3"))


def test_prodigal_finds_much_the_same(write_fasta) -> None:
    pytest.importorskip("pyrodigal", reason="the peer is not installed")
    whole = Genome(SAMPLES.path("chlamydia_trachomatis"))
    text = decode(whole.fetch(next(iter(whole.records)), 0, 120_000))
    genome = Genome(write_fasta({"c": text}))
    peer = find_prodigal(genome, 11)
    assert peer is not None
    finder = GeneFinder()
    ids = genome.fetch("c", 0, 120_000)
    finder.learn([ids])
    own = to_features(finder.find(ids), "c")
    assert compare(genome, {"own": own}, peer)["own"].numbers()["base_f1"] > 0.95
