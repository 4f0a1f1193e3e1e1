"""Models that say the same on both strands are run once for both; those that do not, twice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from longseq.genomics.data.annotation import Feature
from longseq.genomics.data.fasta import Genome
from longseq.genomics.data.splits import Interval
from longseq.genomics.data.vcf import Variant
from longseq.genomics.embeddings import embed_features, ordered_vectors, stream_vectors
from longseq.genomics.masked_scores import MaskedScorer, masked_scores
from longseq.genomics.models.masked_model import MaskedDNAModel
from longseq.genomics.variant_sites import Options, score_variants

SYMMETRIES = [("ps", 1), ("ps_swapped", 1), ("ph", 1), ("none", 2), ("ps_heads", 2)]


def make(symmetry: str, calls: list[int]) -> MaskedDNAModel:
    kwargs = {"n_heads": 2} if symmetry == "ps_heads" else {"mixer": "s4d"}
    mixer = "slstm" if symmetry == "ps_heads" else "bidirectional"
    how = "blocks" if symmetry == "ps_heads" else "mixer"
    model = MaskedDNAModel(8, 2, mixer, kwargs, symmetry=symmetry, directions=how).double().eval()
    model.backbone.norm_f.register_forward_hook(lambda *_: calls.append(1))
    return model


@pytest.fixture
def genome(tmp_path: Path) -> Genome:
    path = tmp_path / "g.fa"
    path.write_text(">r\nACGTTGCATGCAAGCTTAGC\n")
    return Genome(path)


@pytest.mark.parametrize(("symmetry", "runs"), SYMMETRIES)
def test_variants_and_bases(symmetry: str, runs: int, genome: Genome) -> None:
    calls: list[int] = []
    model = make(symmetry, calls)
    given = [Variant("r", 7, ".", "A", ("C", "G"))]
    found = score_variants(given, MaskedScorer(model, genome, 9), Options(strand="both"))[0]
    assert len(calls) == runs
    behind = score_variants(given, MaskedScorer(model, genome, 9), Options(strand="-"))[0]
    np.testing.assert_allclose(found.reverse, behind.reverse, atol=1e-6)
    assert np.isfinite(found.forward).all() and np.isnan(behind.forward).all()
    calls.clear()
    whole = [Interval("r", 0, 20)]
    both = [part[2] for part in masked_scores(model, genome, whole, 0, 64, "both")]
    assert len(calls) == runs
    sides = [
        np.concatenate([part[2] for part in masked_scores(model, genome, whole, 0, 64, strand)])
        for strand in "+-"
    ]
    np.testing.assert_allclose(np.concatenate(both), np.mean(sides, 0), atol=1e-6)


@pytest.mark.parametrize("pool", ["mean", "last"])
@pytest.mark.parametrize(("symmetry", "runs"), SYMMETRIES)
def test_vectors(symmetry: str, runs: int, pool, genome: Genome) -> None:
    calls: list[int] = []
    model = make(symmetry, calls)
    whole = [Interval("r", 0, 20)]
    sides = [
        next(stream_vectors(model, genome, whole, strand, window=64)).values for strand in "+-"
    ]
    calls.clear()
    parts = list(ordered_vectors(model, genome, whole, "both", window=64))
    assert len(calls) == runs
    both = np.concatenate([part.values for part in parts])
    np.testing.assert_allclose(both, np.concatenate(sides, 1), atol=1e-5)
    calls.clear()
    places = [Feature("r", 2, 9, ".", "x")]
    found = embed_features(model, genome, places, pool, "both", window=64)
    assert len(calls) == (runs if pool == "mean" else 2)
    chosen = [side[2:9].mean(0) for side in sides]
    if pool == "last":
        chosen = [sides[0][8], sides[1][2]]
    np.testing.assert_allclose(found[0], np.concatenate(chosen), atol=1e-5)
