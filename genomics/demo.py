"""The demo: a Mamba language model learns a bacterial genome, beside Markov models, then scores all of it."""

from __future__ import annotations

import csv
import math
import time
from pathlib import Path

import numpy as np

from longseq.core.report.section import Picture, Section
from longseq.core.results import Score
from longseq.core.shell.demo import train
from longseq.core.training.loading import load_task
from longseq.genomics.baselines import evaluate
from longseq.genomics.commands import DOMAIN
from longseq.genomics.data.module import GenomeData
from longseq.genomics.data.samples import SAMPLES
from longseq.genomics.plots import plot_scores
from longseq.genomics.predict import stream_log_likelihood, with_progress, write_scores
from longseq.genomics.task import CausalLanguageModel

CONFIG = "mamba_tiny"
SAMPLE = "chlamydia_trachomatis"


def demo(out: Path, max_steps: int | None = None, sample: str = SAMPLE) -> Section:
    """Trains on a packaged genome, scores the held-out tenth beside Markov models, streams the whole genome.

    Args:
        out: folder for what is written.
        max_steps: training steps, in place of the configuration's.
        sample: packaged sample to train on.
    """
    start = time.perf_counter()
    print(f"1. Training {CONFIG}.yaml on the packaged genome {sample!r}")
    folder, seconds = train(DOMAIN, CONFIG, out, max_steps, ["--data.fasta", sample])
    checkpoint = folder / "checkpoints" / "best.ckpt"

    print("2. Fitting the baselines: Markov models of order 0 to 12 and their mixtures, on the same bases")
    data = GenomeData(sample)
    splits, genome = data.splits(), data.genome
    parts = [[genome.fetch(item.chrom, item.start, item.end) for item in part] for part in splits]
    rows = evaluate(*parts)
    scores = [
        Score(row["model"], row["bits_per_base"], notes={"perplexity": f"{row['perplexity']:.3f}",
              "parameters": f"{row['contexts'] * 3:,}"})
        for row in rows
    ]  # fmt: skip

    print("3. Scoring the held-out tenth")
    task = load_task(checkpoint, "genomics")
    assert isinstance(task, CausalLanguageModel)
    model = task.model.eval()
    scored = [part.log_likelihood for part in stream_log_likelihood(model, genome, intervals=splits.test)]
    held_out = np.concatenate(scored).astype(np.float64)
    bits = -float(np.nanmean(held_out)) / math.log(2)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    notes = {"perplexity": f"{2**bits:.3f}", "parameters": f"{parameters:,}"}
    scores.append(Score("mamba (this run)", bits, "model", notes))

    print("4. Streaming the whole genome through the model, in chunks, with a carried state")
    begin = time.perf_counter()
    total = sum(genome.records.values())
    table, image = folder / "scores.parquet", folder / "scores.png"
    chunks = with_progress(stream_log_likelihood(model, genome), total, "scoring")
    bases = write_scores(chunks, table, {"genome": sample, "checkpoint": checkpoint.name})
    streamed = time.perf_counter() - begin
    plot_scores(table, image, SAMPLES.path(sample), held_out=splits.test)
    tested = int(np.isfinite(held_out).sum())
    caption = "Bits per base along the genome, with its genes: lower is more predictable."
    return Section(
        domain=DOMAIN.name,
        question="How well can the next base of a genome be told from all bases before it?",
        data=f"{sample}, {total:,} bases, tested on {tested:,} that no model saw; source and licence in "
        "genomics/samples/SOURCE.md.",
        scores=scores,
        metric="bits per base",
        tie=5e-4,
        speed=f"Training took {seconds:.0f} s at {_bases_per_second(folder):,.0f} bases/s; streaming "
        f"{bases:,} bases took {streamed:.0f} s.",
        seconds=time.perf_counter() - start,
        pictures=[Picture(image, caption)],
        files=[checkpoint, folder / "loss_curve.png", table, image],
    )


def _bases_per_second(folder: Path) -> float:
    """Returns the median of the logged training speed."""
    with (folder / "metrics.csv").open(newline="") as file:
        values = [
            float(row["train/bases_per_s"]) for row in csv.DictReader(file) if row.get("train/bases_per_s")
        ]
    return float(np.median(values)) if values else float("nan")
