"""The demo: a Mamba language model learns a bacterial genome, beside Markov models and experts, and
scores all of it; variants are ranked by what has learnt reading frames."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from longseq.core.errors import DataError
from longseq.core.report.section import Picture, Section
from longseq.core.results import Score
from longseq.core.tables import read_rows
from longseq.core.training.by_config import Train, few_steps
from longseq.core.training.loading import load_task
from longseq.genomics.compare import GenomeComparison
from longseq.genomics.data.annotation import Feature, own_features
from longseq.genomics.data.collection import Collection
from longseq.genomics.data.fasta import Genome
from longseq.genomics.data.module import GenomeData
from longseq.genomics.data.samples import SAMPLES
from longseq.genomics.data.splits import Splits
from longseq.genomics.gene_hmm import GeneHMM, with_genes
from longseq.genomics.plots import plot_scores
from longseq.genomics.predict import stream_log_likelihood, with_progress, write_scores
from longseq.genomics.scorers import load_scorer
from longseq.genomics.stop_gained import draw_changes, separation
from longseq.genomics.task import CausalLanguageModel
from longseq.genomics.variant_sites import Options, score_variants

CONFIG = "mamba_tiny"
SAMPLE = "chlamydia_trachomatis"
GECO3 = 1.9352  # bits per base of the sample's last tenth (Silva et al. 2020, -l 16)
_CHANGES = 125  # of each kind
_CONTEXT = 1024
_SITE_WEIGHT = 0.25  # of the changed site's own part, chosen on the validation region


def demo(out: Path, train: Train, max_steps: int | None = None, sample: str = SAMPLE) -> Section:
    """Trains on a packaged genome, scores the held-out tenth beside baselines, streams the
    whole genome.

    Args:
        out: folder for what is written.
        train: trains a configuration.
        max_steps: training steps, in place of the configuration's.
        sample: packaged sample to train on.
    """
    start = time.perf_counter()
    print(f"1. Training {CONFIG}.yaml on the packaged genome {sample!r}")
    run = train(CONFIG, out, values={"data": {"fasta": sample}, **few_steps(max_steps)})
    folder, checkpoint = run.folder, run.checkpoint

    print("2. The baselines on the same bases: Markov models, and experts that learn as they read")
    comparison = GenomeComparison(GenomeData(sample))
    splits, genome = comparison.splits, comparison.data.genome
    rows = [*comparison.baseline("markov"), *comparison.baseline("experts")]

    print("3. Scoring the held-out tenth")
    scored = comparison.checkpoint(checkpoint, "mamba (this run)", None)
    scores = comparison.scores([*rows, *scored])
    task = load_task(checkpoint, CausalLanguageModel)
    assert isinstance(task, CausalLanguageModel)
    model = task.model.eval()

    print("4. Streaming the whole genome through the model, in chunks, with a carried state")
    begin = time.perf_counter()
    total = sum(genome.records.values())
    table, image = folder / "scores.parquet", folder / "scores.png"
    chunks = with_progress(stream_log_likelihood(model, genome), total, "scoring")
    bases = write_scores(chunks, table, {"genome": sample, "checkpoint": checkpoint.name})
    streamed = time.perf_counter() - begin
    genes = own_features(SAMPLES.path(sample), genome)
    plot_scores(table, image, genes, held_out=splits.test)
    tested = scored[0].numbers["bases"]
    print("5. Ranking variants by the packaged network and by a model of genes")
    findings = [*_beside_geco3(scores, sample), _variants(sample, genome, genes, splits)]
    caption = "Bits per base along the genome, with its genes: lower is more predictable."
    return Section(
        domain="genomics",
        question="How well can the next base of a genome be told from all bases before it?",
        data=f"{sample}, {total:,} bases, tested on {tested:,} that no model saw; source and "
        "licence in genomics/samples/SOURCE.md. Experts learn from the genome up to "
        "each base, the test's own past included, as a compressor does.",
        scores=scores,
        metric="bits per base",
        tie=5e-4,
        speed=f"Training took {run.seconds:.0f} s at {_bases_per_second(folder):,.0f} bases/s; "
        f"streaming "
        f"{bases:,} bases took {streamed:.0f} s.",
        seconds=time.perf_counter() - start,
        pictures=[Picture(image, caption)],
        findings=findings,
        files=[checkpoint, folder / "loss_curve.png", table, image],
    )


def _beside_geco3(scores: Sequence[Score], sample: str) -> list[str]:
    """Returns what reading frames and the mixture are worth beside a published compressor."""
    bits = {one.model: one.value for one in scores}
    if sample != SAMPLE or "gene HMM" not in bits:
        return []
    best = min(scores, key=lambda one: one.value)
    return [
        f"On the same bases the compressor GeCo3 costs {GECO3} bits per base (-l 16). What reading "
        f"frames alone tell, learnt without annotation, costs {bits['gene HMM']:.4f} (gene HMM), "
        f"the best mixture {best.value:.4f} ({best.model})."
    ]


def _variants(
    sample: str, genome: Genome | Collection, genes: Sequence[Feature], splits: Splits
) -> str:
    """Returns how well changes that make a stop codon are told from synonymous ones."""
    try:
        variants, stops = draw_changes(genome, genes, splits.test, _CHANGES)
    except DataError as error:
        return f"No variants were ranked: {error}"
    scorer = load_scorer(SAMPLES.path(sample), None, None)
    found = score_variants(variants, scorer, Options(_CONTEXT))
    before = [genome.fetch(one.chrom, one.start, one.end) for one in (*splits.train, *splits.valid)]
    found = with_genes(GeneHMM.learn(before), variants, found, genome)
    said = {
        "packaged network, trained on other species": [
            one.weighed("low", _SITE_WEIGHT)[0] for one in found
        ],
        "gene HMM, learnt from the other nine tenths": [(one.genes or [0.0])[0] for one in found],
        "both": [one.mixture("low", _SITE_WEIGHT)[0] for one in found],
    }
    areas = ", ".join(f"{separation(stops, values):.3f} ({name})" for name, values in said.items())
    return (
        f"Variants in the genes of the test bases: {_CHANGES} that make a stop codon, {_CHANGES} "
        f"synonymous, drawn with seed 0. Area under the ROC curve, 0.5 by chance: {areas}. Of the "
        f"network, what follows the change counts whole and the changed base {_SITE_WEIGHT:g}."
    )


def _bases_per_second(folder: Path) -> float:
    """Returns the median of the logged training speed."""
    rows = read_rows(folder / "metrics.csv")
    values = [float(row["train/bases_per_s"]) for row in rows if row.get("train/bases_per_s")]
    return float(np.median(values)) if values else float("nan")
