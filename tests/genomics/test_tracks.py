"""Tracks: bigWig and bedGraph read back as the table; sums by feature as the bases' own."""

import math

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from longseq.core.errors import ConfigError, DataError
from longseq.core.shell.cli import main
from longseq.genomics.data.annotation import Feature
from longseq.genomics.data.splits import Interval
from longseq.genomics.tracks import (
    FeatureSums,
    ScoredChunk,
    check_track,
    track_order,
    write_scores,
)

SIZES = {"b": 50, "a": 30}


def chunks():
    rng = np.random.default_rng(0)
    for name, start, n in (("b", 0, 20), ("b", 20, 30), ("a", 5, 21)):
        values = -rng.exponential(1.0, n).astype(np.float32)
        values[[0, 3, 4]] = np.nan
        yield ScoredChunk(name, start, rng.integers(7, 11, n).astype(np.uint8), values)


@pytest.fixture
def table(tmp_path):
    assert write_scores(chunks(), tmp_path / "s.parquet", {}) == 71
    return pq.read_table(tmp_path / "s.parquet").to_pandas()


def test_bigwig_reads_back_as_the_table(table, tmp_path) -> None:
    pyBigWig = pytest.importorskip("pyBigWig")
    path = tmp_path / "s.bw"
    write_scores(chunks(), path, {}, SIZES)
    file = pyBigWig.open(str(path))
    assert file.chroms() == SIZES
    for name, size in SIZES.items():
        expected = np.full(size, np.nan, np.float32)
        rows = table[table["chrom"] == name]
        expected[rows["position"]] = rows["log_likelihood"].astype("float32")
        np.testing.assert_array_equal(file.values(name, 0, size, numpy=True), expected)
    file.close()
    with pytest.raises(ConfigError, match="lengths"):
        write_scores(chunks(), path, {})


def test_bedgraph_reads_back_as_the_table(table, tmp_path) -> None:
    path = tmp_path / "s.bedgraph"
    write_scores(chunks(), path, {})
    back = pd.read_csv(path, sep="\t", names=["chrom", "start", "end", "value"])
    rows = table.dropna()
    assert (back["end"] - back["start"] == 1).all()
    assert list(back["chrom"]) == list(rows["chrom"].astype(str))
    assert list(back["start"]) == list(rows["position"])
    values = back["value"].astype("float32").to_numpy()
    np.testing.assert_array_equal(values, rows["log_likelihood"].to_numpy())


def test_short_records_share_a_row_group(tmp_path) -> None:
    sizes = [1, 3, 1, 40_000, 30_000, 5]
    parts = [
        ScoredChunk(
            f"r{i // 2}", 7 * i, np.full(n, 7 + i % 4, np.uint8), np.full(n, -i, np.float32)
        )
        for i, n in enumerate(sizes)
    ]
    path = tmp_path / "s.parquet"
    assert write_scores(iter(parts), path, {}) == sum(sizes)
    groups = pq.ParquetFile(path).metadata
    assert [groups.row_group(i).num_rows for i in range(groups.num_row_groups)] == [70_005, 5]
    found = pd.read_parquet(path)
    assert found["chrom"].tolist() == [p.chrom for p, n in zip(parts, sizes) for _ in range(n)]
    places = np.concatenate([np.arange(p.start, p.start + n) for p, n in zip(parts, sizes)])
    np.testing.assert_array_equal(found["position"], places)
    assert "".join(found["base"][:5]) == "ACCCG"
    np.testing.assert_array_equal(
        found["log_likelihood"], np.concatenate([p.log_likelihood for p in parts])
    )


def test_tracks_are_sorted_and_refuse_overlaps() -> None:
    parts = [Interval("a", 9, 12), Interval("b", 7, 9), Interval("b", 0, 7)]
    assert track_order(parts, SIZES, "x.tsv") == parts
    assert track_order(parts, SIZES, "x.bw") == [parts[2], parts[1], parts[0]]
    assert track_order(parts, SIZES, "x.tsv", "sums.tsv") == parts
    twice = [*parts, Interval("a", 11, 12)]
    assert track_order(twice, SIZES, "x.tsv") == twice
    with pytest.raises(DataError, match=r"sums\.tsv: a: regions 10-12 and 12-12 overlap: a f"):
        track_order(twice, SIZES, "x.tsv", "sums.tsv")
    with pytest.raises(DataError, match="overlap"):
        track_order([*parts, Interval("b", 8, 10)], SIZES, "x.bedgraph")
    with pytest.raises(ConfigError, match=r"\.bedgraph or \.bw"):
        check_track("x.wig")


def test_sums_of_features_are_those_of_their_bases(table, tmp_path) -> None:
    features = [
        Feature("b", 10, 30, "+", "gene", "x"),
        Feature("b", 2, 45, "-", "CDS", "y", ((2, 5), (18, 22), (40, 45))),
        Feature("b", 3, 5, "-", "CDS", "none scored"),
        Feature("a", 0, 30, ".", "gene", "z"),
        Feature("c", 0, 30, ".", "gene", "elsewhere"),
        Feature("b", 40, 45 + 10, "+", "gene", "across", size=45),
    ]
    sums = FeatureSums(features)
    assert len(list(sums.collected(chunks()))) == 3
    sums.write(tmp_path / "f.tsv")
    back = pd.read_csv(tmp_path / "f.tsv", sep="\t")
    for feature, row in zip(features, back.itertuples()):
        inside = np.zeros(60, bool)
        for start, end in feature.spans():
            inside[start:end] = True
        rows = table[(table["chrom"] == feature.chrom) & inside[table["position"]]]
        rows = rows.dropna()
        assert row.bases == len(rows)
        if len(rows):
            total = rows["log_likelihood"].astype("float64").sum()
            assert row.log_likelihood == pytest.approx(total, rel=1e-12)
            bits = -total / len(rows) / math.log(2)
            assert row.bits_per_base == pytest.approx(bits, abs=1e-5)
        else:
            assert math.isnan(row.log_likelihood) and math.isnan(row.bits_per_base)


def test_predict_writes_tracks_tables_of_genes_and_a_browser(workdir, capsys) -> None:
    genes = workdir / "g.gff3"
    genes.write_text(
        "tiny1\t.\tgene\t101\t400\t.\t+\t.\tID=g1;Name=$dnaA_1$\n"
        "tiny1\t.\tgene\t351\t600\t.\t-\t.\tID=g2\n"
        "tiny1\t.\tgene\t2951\t3100\t.\t-\t.\tID=across;Is_circular=true\n"
    )
    start = ["genomics", "predict", "tiny", "--region", "tiny1:51-650", "--genes", str(genes)]
    more = ["--gene_table", "g.tsv", "--plot", "p.png", "--out", "s.parquet"]
    assert main([*start, *more]) == 0
    scores = pq.read_table("s.parquet").to_pandas()
    table = pd.read_csv("g.tsv", sep="\t")
    inside = scores[(scores["position"] >= 100) & (scores["position"] < 400)]
    total = inside["log_likelihood"].dropna().astype("float64").sum()
    assert table["log_likelihood"][0] == pytest.approx(total, rel=1e-9)
    assert list(table["end"]) == [400, 600, 3100] and table["bases"][2] == 49  # 52 … 100
    assert (workdir / "p.png").stat().st_size > 10_000
    assert main([*start, "--plot", "p.png", "--out", "s.bedgraph"]) == 2
    assert "is drawn from a table" in capsys.readouterr().err
    assert main(["genomics", "predict", "tiny", "--gene_table", "g.tsv", "--out", "s.tsv"]) == 2
    assert "--gene_table needs --genes" in capsys.readouterr().err
