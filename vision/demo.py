"""The demo: a small VMamba learns clothes from 4,500 images, beside logistic regression on the pixels."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from longseq.core.checkpoints.safe import load_task
from longseq.vision.commands import DOMAIN
from longseq.vision.compare import baseline_scores, data_of, model_score, report
from longseq.vision.data.idx import find_idx
from longseq.vision.data.sources import sample_path
from longseq.vision.plots import plot_predictions
from longseq.vision.predict import classify, open_images, write_predictions
from longseq.vision.task import ImageClassifier

CONFIG = "fashion_mnist_sample"


def run(argv: Sequence[str]) -> int:
    """Runs ``longseq vision demo``."""
    parser = argparse.ArgumentParser(prog="longseq vision demo", description=__doc__)
    parser.add_argument("--out", default="outputs/vision", help="folder for the results (outputs/vision)")
    parser.add_argument("--max_steps", type=int, help="training steps, instead of the configuration's")
    args = parser.parse_args(argv)

    print(f"1. Training {CONFIG}.yaml on the packaged images")
    folder, seconds = _train(args.out, args.max_steps)
    checkpoint = folder / "checkpoints" / "best.ckpt"

    print("2. Fitting logistic regression on the pixels of the same images")
    data = data_of(checkpoint)
    scores = [*baseline_scores(data), model_score(checkpoint, data)]
    report(scores, len(data.parts["test"]), str(folder / "scores.csv"))
    print(f"Training: {seconds:.0f} s.\n")

    print("3. Predicting from the checkpoint alone")
    task = load_task(checkpoint, ImageClassifier)
    assert isinstance(task, ImageClassifier)
    source = find_idx(sample_path("fashion_mnist_sample"), "test", "images")
    assert source is not None
    images = open_images(source, task.in_chans)
    predictions = list(classify(task, images))
    table, image = folder / "predictions.csv", folder / "predictions.png"
    write_predictions(table, predictions, task.classes)
    plot_predictions(images, predictions, task.classes, data.parts["test"].labels.tolist(), image)
    print("\nResults:")
    for path in (checkpoint, folder / "loss_curve.png", folder / "scores.csv", table, image):
        print(f"  {path}")
    return 0


def _train(out: str, max_steps: int | None) -> tuple[Path, float]:
    """Runs the command ``longseq vision fit`` and returns its folder and duration in seconds."""
    from longseq.core.commands.lightning_cli import run as fit

    before = set(Path(out).glob("demo/version_*"))
    argv = ["--config", CONFIG, "--trainer.default_root_dir", out, "--name", "demo"]
    if max_steps is not None:
        interval = max(1, min(100, max_steps // 2))
        argv += ["--trainer.max_steps", str(max_steps), "--trainer.val_check_interval", str(interval)]
    start = time.perf_counter()
    fit(DOMAIN, "fit", argv)
    seconds = time.perf_counter() - start
    (made,) = set(Path(out).glob("demo/version_*")) - before
    return made, seconds
