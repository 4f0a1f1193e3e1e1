"""The demo: a Mamba language model learns a bacterial genome, beside Markov models, then scores all of it."""

from __future__ import annotations

import argparse
import csv
import math
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from longseq.core.checkpoints.safe import load_task
from longseq.core.results import Score, print_table, verdict
from longseq.genomics.baselines import evaluate
from longseq.genomics.commands import DOMAIN
from longseq.genomics.data.module import GenomeData
from longseq.genomics.data.samples import sample_path
from longseq.genomics.plots import plot_scores
from longseq.genomics.predict import stream_log_likelihood, with_progress, write_parquet
from longseq.genomics.task import CausalLanguageModel

CONFIG = "mamba_tiny"
SAMPLE = "chlamydia_trachomatis"


def run(argv: Sequence[str]) -> int:
    """Runs ``longseq demo`` (``longseq genomics demo``)."""
    parser = argparse.ArgumentParser(prog="longseq genomics demo", description=__doc__)
    parser.add_argument("--out", default="outputs/genomics", help="folder for the results (outputs/genomics)")
    parser.add_argument("--sample", default=SAMPLE, help=f"packaged sample to train on ({SAMPLE})")
    parser.add_argument("--max_steps", type=int, help="training steps, instead of the configuration's")
    args = parser.parse_args(argv)

    print(f"1. Training {CONFIG}.yaml on the packaged genome {args.sample!r}")
    folder, seconds = _train(args.out, args.sample, args.max_steps)
    checkpoint = folder / "checkpoints" / "best.ckpt"

    print("2. Fitting the baselines: Markov models of order 0 to 12 and their mixtures, on the same bases")
    data = GenomeData(args.sample)
    splits, genome = data.splits(), data.genome
    parts = [[genome.fetch(item.chrom, item.start, item.end) for item in part] for part in splits]
    rows = evaluate(*parts)

    print("3. Scoring the held-out tenth")
    task = load_task(checkpoint, "genomics")
    assert isinstance(task, CausalLanguageModel)
    model = task.model.eval()
    scored = [part.log_likelihood for part in stream_log_likelihood(model, genome, intervals=splits.test)]
    held_out = np.concatenate(scored).astype(np.float64)
    bits = -float(np.nanmean(held_out)) / math.log(2)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    scores = [
        Score(row["model"], row["bits_per_base"], notes={"perplexity": f"{row['perplexity']:.3f}",
              "parameters": f"{row['contexts'] * 3:,}"})
        for row in rows
    ]  # fmt: skip
    notes = {"perplexity": f"{2**bits:.3f}", "parameters": f"{parameters:,}"}
    scores.append(Score("mamba (this run)", bits, "model", notes))
    title = f"Held-out tenth, {int(np.isfinite(held_out).sum()):,} bases"
    print_table(scores, "bits per base", title)
    print(verdict(scores, "bits per base", tie=5e-4))
    print(f"Training: {seconds:.0f} s, {_tokens_per_second(folder):,.0f} tokens/s.\n")

    print("4. Streaming the whole genome through the model, in chunks, with a carried state")
    start = time.perf_counter()
    total = sum(genome.records.values())
    table, image = folder / "scores.parquet", folder / "scores.png"
    chunks = with_progress(stream_log_likelihood(model, genome), total, "scoring")
    bases = write_parquet(chunks, table, {"genome": args.sample, "checkpoint": checkpoint.name})
    print(f"{bases:,} bases in {time.perf_counter() - start:.0f} s")
    plot_scores(table, image, sample_path(args.sample), held_out=splits.test)
    print("\nResults:")
    for path in (checkpoint, folder / "loss_curve.png", table, image):
        print(f"  {path}")
    return 0


def _train(out: str, sample: str, max_steps: int | None) -> tuple[Path, float]:
    """Runs the command ``longseq genomics fit`` and returns its folder and duration in seconds."""
    from longseq.core.commands.lightning_cli import run as fit

    before = set(Path(out).glob("demo/version_*"))
    argv = ["--config", CONFIG, "--data.fasta", sample, "--trainer.default_root_dir", out]
    argv += ["--name", "demo"]
    if max_steps is not None:
        interval = max(1, min(100, max_steps // 2))
        argv += ["--trainer.max_steps", str(max_steps), "--trainer.val_check_interval", str(interval)]
    start = time.perf_counter()
    fit(DOMAIN, "fit", argv)
    seconds = time.perf_counter() - start
    (made,) = set(Path(out).glob("demo/version_*")) - before
    return made, seconds


def _tokens_per_second(folder: Path) -> float:
    """Returns the median of the logged training speed."""
    with (folder / "metrics.csv").open(newline="") as file:
        values = [
            float(row["train/tokens_per_s"]) for row in csv.DictReader(file) if row.get("train/tokens_per_s")
        ]
    return float(np.median(values)) if values else float("nan")
