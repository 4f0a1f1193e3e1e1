"""Embeddings: those of one plain pass, whatever the chunks, windows, strands and files."""

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch

from longseq.core.errors import ConfigError
from longseq.core.shell.cli import main
from longseq.genomics.data.annotation import Feature
from longseq.genomics.data.fasta import Genome
from longseq.genomics.data.samples import SAMPLES
from longseq.genomics.data.splits import Interval
from longseq.genomics.embed import write_bases
from longseq.genomics.embeddings import embed_features, ordered_vectors, windows
from longseq.genomics.masked_task import MaskedLanguageModel
from longseq.genomics.models.language_model import DNALanguageModel
from longseq.genomics.scorers import export

REGION = Interval("tiny2", 900, 1100)  # with 50 N in the middle


@pytest.fixture(scope="module", params=["mamba", "attention"])
def model(request) -> DNALanguageModel:
    torch.manual_seed(0)
    kwargs = {"d_state": 4} if request.param == "mamba" else {"n_heads": 2}
    return DNALanguageModel(16, 2, request.param, kwargs, kmer=2).double().eval()


@pytest.fixture(scope="module")
def genome() -> Genome:
    return Genome(SAMPLES.path("tiny"))


def plain(model, genome, strand) -> np.ndarray:
    ids = genome.fetch(REGION.chrom, REGION.start, REGION.end, strand).astype(np.int64)
    with torch.no_grad():
        x = model.hidden(torch.from_numpy(ids)[None])[0][0].float().numpy()
    return x if strand == "+" else x[::-1]


@pytest.mark.parametrize("chunk", [1, 37, 1000])
def test_every_base_has_the_vector_of_a_plain_pass(model, genome, chunk) -> None:
    for strand in ("+", "-", "both"):
        parts = list(ordered_vectors(model, genome, [REGION], strand, chunk, window=400))
        found = np.concatenate([part.values for part in parts])
        sides = [plain(model, genome, which) for which in ("+-" if strand == "both" else strand)]
        np.testing.assert_allclose(found, np.concatenate(sides, 1), rtol=1e-5, atol=1e-6)
        assert [part.start for part in parts] == list(range(900, 1100, chunk))


def test_features_are_means_or_last_vectors(model, genome) -> None:
    places = [
        Feature("tiny2", 905, 950, "+"),
        Feature("tiny2", 910, 1090, "-", parts=((910, 930), (1060, 1090))),
        Feature("tiny2", 1000, 1050, "."),  # N alone
        Feature("tiny2", 1099, 1100, "-"),
        Feature("tiny2", 1090, 1100 + 905, "+", size=1100),  # across an origin
    ]
    ahead, back = (plain(model, genome, which) for which in "+-")
    kwargs = {"intervals": [REGION], "chunk": 64, "window": 400}
    mean = embed_features(model, genome, places, "mean", "both", **kwargs)
    rows = np.r_[10:30, 160:190]
    np.testing.assert_allclose(mean[0], np.r_[ahead[5:50].mean(0), back[5:50].mean(0)], 1e-4, 1e-6)
    np.testing.assert_allclose(mean[1], np.r_[ahead[rows].mean(0), back[rows].mean(0)], 1e-4, 1e-6)
    assert np.isnan(mean[2]).all()
    rows = np.r_[0:5, 190:200]
    np.testing.assert_allclose(mean[4], np.r_[ahead[rows].mean(0), back[rows].mean(0)], 1e-4, 1e-6)
    last = embed_features(model, genome, places, "last", "own", **kwargs)
    for row, expected in zip(last, [ahead[49], back[10], ahead[149], back[199], ahead[199]]):
        np.testing.assert_allclose(row, expected, 1e-5, 1e-6)
    with pytest.raises(ConfigError, match="pool"):
        embed_features(model, genome, places, "max")


def test_windows_cover_intervals() -> None:
    found = windows([Interval("a", 5, 12), Interval("b", 0, 3)], 3)
    places = [(one.chrom, one.start, one.end) for one in found]
    assert places == [("a", 5, 8), ("a", 8, 11), ("a", 11, 12), ("b", 0, 3)]


def test_npy_and_parquet_hold_the_same(model, genome, tmp_path) -> None:
    parts = [Interval("tiny1", 0, 100), REGION]
    for name in ("x.npy", "x.parquet"):
        count = write_bases(tmp_path / name, model, genome, parts, "both", 64, 400)
        assert count == 300
    array = np.load(tmp_path / "x.npy")
    table = pq.read_table(tmp_path / "x.parquet")
    np.testing.assert_array_equal(np.stack(table["embedding"].to_numpy()), array)
    assert table["position"].to_pylist()[99:101] == [99, 900]
    rows = pd.read_csv(tmp_path / "x.rows.tsv", sep="\t")
    assert list(rows["end"] - rows["start"]) == [100, 200]
    assert {path.name for path in tmp_path.iterdir()} == {"x.npy", "x.parquet", "x.rows.tsv"}


def test_the_command(workdir, capsys) -> None:
    (workdir / "g.gff3").write_text(
        "tiny1\t.\tgene\t101\t400\t.\t-\t.\tID=g1\ntiny2\t.\tgene\t1\t60\t.\t+\t.\tID=g2\n"
    )
    (workdir / "o.bed").write_text("tiny1\t80\t99\ntiny1\t0\t90\n")
    start = ["genomics", "embed", "tiny", "--region", "tiny1:51-650"]
    assert main([*start, "--window", "100", "--out", "w.npy"]) == 0
    assert np.load("w.npy").shape[0] == 6
    assert main([*start, "--features", "g.gff3", "--strand", "own", "--out", "g.parquet"]) == 0
    assert "1 features outside" in capsys.readouterr().out
    table = pq.read_table("g.parquet").to_pandas()
    assert list(table["name"]) == ["g1"] and len(table["embedding"][0]) == np.load("w.npy").shape[1]
    for wrong, message in (
        (["--out", "x.csv"], ".parquet or .npy"),
        (["--out", "x.npy", "--strand", "own"], "needs --features"),
        (["--out", "x.npy", "--window", "3", "--features", "g.gff3"], "not both"),
        (["--out", "x.npy", "--window", "3", "--bed", "o.bed"], "regions 1-90 and 81-99 overlap"),
        (["--out", "x.npy", "--features", "g.gff3", "--bed", "o.bed"], "1-90 and 81-99 overlap"),
    ):
        assert main([*(start[:3] if "--bed" in wrong else start), *wrong]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("symmetry", ["none", "ph", "ps", "ps_swapped"])
def test_masked_models_read_windows_of_which_the_middle_counts(genome, tmp_path, symmetry) -> None:
    torch.manual_seed(0)
    kwargs = {"mixer": "mamba", "mixer_kwargs": {"d_state": 4}}
    task = MaskedLanguageModel(16, 2, mixer_kwargs=kwargs, symmetry=symmetry).eval()
    region = [Interval("tiny2", 900, 1101)]
    ids = genome.fetch("tiny2", 900, 1101).astype(np.int64)
    found = {}
    for strand in "+-":
        parts = list(ordered_vectors(task.model, genome, region, strand, 50, window=64))
        found[strand] = np.concatenate([part.values for part in parts])
        assert found[strand].shape == (201, 16)
        assert np.concatenate([part.ids for part in parts]).tolist() == ids.tolist()
    with torch.no_grad():
        middle = task.model.hidden(torch.from_numpy(ids[None, 80:144]))[0, 16:48].numpy()
        whole = task.model.hidden(torch.from_numpy(ids[None]))[0].numpy()
    np.testing.assert_allclose(found["+"][96:128], middle, rtol=1e-5, atol=1e-6)
    wide = list(ordered_vectors(task.model, genome, region, "+", window=402))
    np.testing.assert_allclose(wide[0].values, whole, rtol=1e-5, atol=1e-6)
    back = next(iter(ordered_vectors(task.model, genome, region, "-", 402, window=402))).values
    assert np.allclose(back, whole, rtol=1e-4, atol=1e-5) == (symmetry != "none")
    export(task, tmp_path / "m.safetensors")
    argv = ["genomics", "embed", str(SAMPLES.path("tiny")), "--window", "500"]
    argv += ["--ckpt_path", str(tmp_path / "m.safetensors"), "--out", str(tmp_path / "x.npy")]
    assert main(argv) == 0
    assert np.load(tmp_path / "x.npy").shape == (10, 16)
