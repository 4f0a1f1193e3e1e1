"""Streaming a genome: equal to one pass whatever the chunks, written whole or not at all."""

import math
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch

from longseq.core.shell.cli import main
from longseq.genomics.data.fasta import Genome
from longseq.genomics.data.samples import SAMPLES
from longseq.genomics.data.splits import Interval
from longseq.genomics.demo import demo
from longseq.genomics.models.language_model import DNALanguageModel
from longseq.genomics.plots import plot_scores
from longseq.genomics.predict import (
    ScoredChunk,
    score_strands,
    stream_log_likelihood,
    write_scores,
)


@pytest.fixture(scope="module")
def model() -> DNALanguageModel:
    torch.manual_seed(0)
    return DNALanguageModel(16, 2, mixer_kwargs={"d_state": 4}).double().eval()


@pytest.fixture(scope="module")
def genome() -> Genome:
    return Genome(SAMPLES.path("tiny"))


def collect(model, genome, **kwargs) -> np.ndarray:
    return np.concatenate(
        [part.log_likelihood for part in stream_log_likelihood(model, genome, **kwargs)]
    )


def test_chunks_leave_no_trace(model, genome) -> None:
    whole = collect(model, genome, chunk=10**6)
    assert len(whole) == sum(genome.records.values())
    for chunk in (1000, 777):
        np.testing.assert_allclose(collect(model, genome, chunk=chunk), whole, rtol=1e-6)
    region = [Interval(next(iter(genome.records)), 100, 140)]
    np.testing.assert_allclose(
        collect(model, genome, chunk=1, intervals=region),
        collect(model, genome, intervals=region),
        rtol=1e-6,
    )


def test_scores_are_those_of_a_plain_forward(model, genome) -> None:
    name, size = next(iter(genome.records.items()))
    ids = torch.from_numpy(genome.fetch(name, 0, size).astype(np.int64))
    with torch.no_grad():
        logp = model(ids[None])[0][0].log_softmax(-1)
    expected = logp[:-1].gather(1, ids[1:, None]).squeeze(1).numpy()
    actual = collect(model, genome)[1:size]
    bases = np.isin(ids[1:].numpy(), [7, 8, 9, 10])
    np.testing.assert_allclose(actual[bases], expected[bases], rtol=1e-6)
    assert np.isnan(actual[~bases]).all() and np.isnan(collect(model, genome)[0])


def test_parquet_holds_every_base_with_nulls_where_there_is_no_score(
    model, genome, tmp_path
) -> None:
    out = tmp_path / "scores.parquet"
    n = write_scores(stream_log_likelihood(model, genome, 700), out, {"checkpoint": "x"})
    table = pq.read_table(out)
    assert table.num_rows == n == sum(genome.records.values())
    assert table.column_names == ["chrom", "position", "base", "log_likelihood"]
    assert table["chrom"].unique().to_pylist() == list(genome.records)
    assert table["log_likelihood"].null_count >= len(genome.records)
    assert table.schema.metadata[b"checkpoint"] == b"x"
    assert set(table["base"].unique().to_pylist()) <= {"A", "C", "G", "T", "N"}


def test_the_suffix_says_the_kind(model, genome, tmp_path) -> None:
    """Equal rows as text; the picture is drawn from either; another suffix is refused before any
    work."""
    for name in ("s.parquet", "s.csv", "s.tsv"):
        write_scores(stream_log_likelihood(model, genome, 700), tmp_path / name, {})
        plot_scores(tmp_path / name, tmp_path / f"{name}.png")
    frames = [pq.read_table(tmp_path / "s.parquet").to_pandas()]
    frames += [
        pd.read_csv(tmp_path / f"s.{kind}", sep=sep) for kind, sep in (("csv", ","), ("tsv", "\t"))
    ]
    for frame in frames[1:]:
        assert list(frame["base"]) == list(frames[0]["base"])
        np.testing.assert_array_equal(
            frame["log_likelihood"].astype("float32"), frames[0]["log_likelihood"]
        )
    pictures = {(tmp_path / f"s.{kind}.png").read_bytes() for kind in ("parquet", "csv", "tsv")}
    assert len(pictures) == 1
    assert main(["genomics", "predict", "nowhere.fa", "--ckpt_path", "none", "--out", "s.txt"]) == 2


def test_a_failure_leaves_earlier_output_as_it_was(model, genome, tmp_path) -> None:
    out = tmp_path / "scores.parquet"
    out.write_bytes(b"earlier")

    def broken():
        yield from list(stream_log_likelihood(model, genome, 700))[:1]
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_scores(broken(), out, {})
    assert out.read_bytes() == b"earlier" and list(tmp_path.iterdir()) == [out]


def test_the_demo_from_end_to_end(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("LONGSEQ_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr("longseq.genomics.demo.demo", partial(demo, sample="tiny"))
    assert main(["demo", "genomics", "--out", str(tmp_path / "out"), "--max_steps", "2"]) == 0
    text = capsys.readouterr().out
    assert (
        "uniform" in text
        and "order-12" in text
        and "mixture" in text
        and "mamba (this run)" in text
    )
    assert "the best baseline" in text and "bases/s" in text
    folder = tmp_path / "out/genomics/fit/version_0"
    for name in (
        "checkpoints/best.ckpt",
        "loss_curve.png",
        "scores.parquet",
        "scores.png",
        "metrics.csv",
    ):
        assert (folder / name).stat().st_size > 0, name
    scores = tmp_path / "again.parquet"
    checkpoint = str(folder / "checkpoints/best.ckpt")
    predict = [
        "genomics",
        "predict",
        str(SAMPLES.path("tiny")),
        "--ckpt_path",
        checkpoint,
        "--out",
        str(scores),
    ]
    assert main([*predict, "--chunk", "999", "--plot", str(tmp_path / "p.png")]) == 0
    first, again = (
        pq.read_table(path)["log_likelihood"].to_numpy()
        for path in (folder / "scores.parquet", scores)
    )
    np.testing.assert_allclose(again, first, rtol=2e-5)
    # `test` needs no configuration, and agrees with the streamed scores of the same region.
    root = f"--trainer.default_root_dir={tmp_path / 'out'}"
    assert main(["genomics", "test", "--ckpt_path", checkpoint, root]) == 0
    metrics = (tmp_path / "out").rglob("metrics.csv")
    tested = [path for path in metrics if "test/bits_per_base" in path.read_text()]
    assert len(tested) == 1
    header, row = tested[0].read_text().splitlines()[:2]
    value = float(dict(zip(header.split(","), row.split(",")))["test/bits_per_base"])
    assert str(round(value, 3)) in text or math.isclose(value, _shown(text), abs_tol=2e-4), (
        value,
        text,
    )


def _shown(text: str) -> float:
    """The model's figure in the demo's table."""
    row = next(line for line in text.splitlines() if "│ mamba (this run)" in line)
    return float(row.split("│")[2])


def test_strands_are_read_from_their_own_ends(model, genome) -> None:
    region = [Interval("tiny2", 900, 1100)]  # with 50 N in the middle

    def scores(strand: str, chunk: int = 64) -> np.ndarray:
        parts = list(score_strands(model, genome, region, strand, chunk))
        assert [part.start for part in parts] == list(range(900, 1100, chunk))
        return np.concatenate([part.log_likelihood for part in parts])

    forward, back = scores("+"), scores("-")
    ids = torch.from_numpy(genome.fetch("tiny2", 900, 1100, "-").astype(np.int64))
    with torch.no_grad():
        logp = model(ids[None])[0][0].float().log_softmax(-1)
    expected = logp[:-1].gather(1, ids[1:, None])[:, 0].numpy()[::-1]
    known = np.isfinite(back[:-1])
    np.testing.assert_allclose(back[:-1][known], expected[known], rtol=1e-5)
    assert np.isnan(back[-1]) and np.isnan(forward[0]) and np.isnan(back[100:150]).all()
    both = scores("both", 200)
    np.testing.assert_allclose(both[1:100], (forward[1:100] + back[1:100]) / 2, rtol=1e-6)
    assert both[0] == back[0] and both[-1] == forward[-1]


def test_a_base_takes_less_than_four_bytes_of_parquet(tmp_path) -> None:
    rng = np.random.default_rng(0)
    n = 200_000
    values = -rng.exponential(1.3, n).astype(np.float32)
    ids = rng.integers(7, 11, n).astype(np.uint8)
    path = tmp_path / "s.parquet"
    write_scores(iter([ScoredChunk("c", 10**6, ids, values)]), path, {})
    assert path.stat().st_size < 4 * n
    back = pq.read_table(path)
    assert np.array_equal(back["log_likelihood"].to_numpy(), values)
    assert back["position"].to_pylist()[-1] == 10**6 + n - 1
