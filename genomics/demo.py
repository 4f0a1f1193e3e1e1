"""The demo: a Mamba language model learns a bacterial genome, beside Markov models, then scores all
of it."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from longseq.core.report.section import Picture, Section
from longseq.core.tables import read_rows
from longseq.core.training.by_config import Train, few_steps
from longseq.core.training.loading import load_task
from longseq.genomics.compare import GenomeComparison
from longseq.genomics.data.annotation import own_features
from longseq.genomics.data.module import GenomeData
from longseq.genomics.data.samples import SAMPLES
from longseq.genomics.plots import plot_scores
from longseq.genomics.predict import stream_log_likelihood, with_progress, write_scores
from longseq.genomics.task import CausalLanguageModel

CONFIG = "mamba_tiny"
SAMPLE = "chlamydia_trachomatis"


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
    caption = "Bits per base along the genome, with its genes: lower is more predictable."
    return Section(
        domain="genomics",
        question="How well can the next base of a genome be told from all bases before it?",
        data=f"{sample}, {total:,} bases, tested on {tested:,} that no model saw; source and "
        "licence in genomics/samples/SOURCE.md. The compressor GeCo3 costs 1.9352 bits per base "
        "on the test bases of chlamydia_trachomatis (-l 16). Experts learn from the genome up to "
        "each base, the test's own past included, as a compressor does.",
        scores=scores,
        metric="bits per base",
        tie=5e-4,
        speed=f"Training took {run.seconds:.0f} s at {_bases_per_second(folder):,.0f} bases/s; "
        f"streaming "
        f"{bases:,} bases took {streamed:.0f} s.",
        seconds=time.perf_counter() - start,
        pictures=[Picture(image, caption)],
        files=[checkpoint, folder / "loss_curve.png", table, image],
    )


def _bases_per_second(folder: Path) -> float:
    """Returns the median of the logged training speed."""
    rows = read_rows(folder / "metrics.csv")
    values = [float(row["train/bases_per_s"]) for row in rows if row.get("train/bases_per_s")]
    return float(np.median(values)) if values else float("nan")
