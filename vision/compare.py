"""``longseq vision compare``: checkpoints and baselines on the same test images, with a verdict."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from longseq.core.errors import DataError
from longseq.core.results import Score, print_table, verdict
from longseq.core.tables import check_table, write_rows
from longseq.core.training.loading import load_data, load_task
from longseq.vision.baselines import PixelRegression, pixels
from longseq.vision.data.module import ImageData
from longseq.vision.task import ImageClassifier

# What decides which images are the test's: it must agree between checkpoints that are compared.
_SPLIT = ("source", "valid_fraction", "test_fraction", "seed", "root")


def baseline_scores(data: ImageData, limit: int | None = None) -> list[Score]:
    """Fits the baselines on the training images and scores them on the test images.

    Args:
        data: the images.
        limit: at most so many training images for the regression; None for all.
    """
    size, parts = data.preprocess["img_size"], data.parts
    x, y = pixels(parts["train"], size, limit)
    x_test, y_test = pixels(parts["test"], size)
    start = time.perf_counter()
    valid = pixels(parts["valid"], size) if len(parts["valid"]) else (x[:0], y[:0])
    regression = PixelRegression().fit(x, y, *valid)
    seconds = time.perf_counter() - start
    commonest = np.bincount(y).argmax()
    weights = (x.shape[1] + 1) * len(data.classes)
    notes = {"parameters": f"{weights:,}", "fit": f"{seconds:.0f} s, C {regression.strength:g}"}
    return [
        Score("most frequent class", float((y_test == commonest).mean())),
        Score("logistic regression", float((regression.predict(x_test) == y_test).mean()), notes=notes),
    ]


def model_score(path: str | Path, data: ImageData, device: str = "cpu") -> Score:
    """Returns a checkpoint's accuracy on the test images.

    Args:
        path: the checkpoint.
        data: the images, as it was trained with.
        device: cpu or cuda.

    Raises:
        DataError: if it was trained on other classes.
    """
    task = load_task(path, ImageClassifier)
    assert isinstance(task, ImageClassifier)
    if task.classes != data.classes:
        raise DataError(f"was trained on other classes than those of {data.source}", path=path)
    model, hits, images = task.best.eval().to(device), 0, 0
    start = time.perf_counter()
    with torch.inference_mode():
        for batch in data.evaluation("test"):
            guess = model(batch["image"].to(device)).argmax(1).cpu()
            hits, images = hits + int((guess == batch["target"]).sum()), images + len(guess)
    rate = images / (time.perf_counter() - start)
    parameters = sum(parameter.numel() for parameter in task.model.parameters())
    name = str(task.hparams["model"])
    return Score(
        name, hits / images, "model", {"parameters": f"{parameters:,}", "test": f"{rate:,.0f} images/s"}
    )


def tie_width(accuracy: float, images: int) -> float:
    """Returns the difference of two accuracies that chance explains in 19 of 20 test sets.

    Args:
        accuracy: about which.
        images: in the test set.
    """
    return 1.96 * math.sqrt(2 * accuracy * (1 - accuracy) / images)


def report(scores: Sequence[Score], images: int, out: str | None = None) -> None:
    """Prints the table and the verdict, and writes the table where asked.

    Args:
        scores: of models and baselines.
        images: in the test set.
        out: .csv, .tsv or .parquet file to write.
    """
    print_table(scores, "accuracy", f"Test set, {images:,} images", lower_is_better=False)
    best = max(score.value for score in scores)
    tie = tie_width(best, images)
    print(verdict(scores, "accuracy", lower_is_better=False, tie=tie))
    print(f"Differences below {tie:.4f} may be chance: 95% interval of two accuracies on {images:,} images.")
    if out is not None:
        write_scores(scores, images, out)
        print(out)


def write_scores(scores: Sequence[Score], images: int, out: str | Path) -> None:
    """Writes scores, whole or not at all.

    Args:
        scores: of models and baselines.
        images: in the test set.
        out: file to write.
    """
    columns = {"model": "", "kind": "", "accuracy": ".6f", "test_images": "d", "parameters": "d"}
    rows = []
    for score in scores:
        count = score.notes.get("parameters", "").replace(",", "")
        rows.append([score.model, score.kind, score.value, images, int(count) if count else None])
    write_rows(out, columns, rows)


def run(argv: Sequence[str]) -> int:
    """Runs ``longseq vision compare``."""
    parser = argparse.ArgumentParser(prog="longseq vision compare", description=__doc__)
    parser.add_argument(
        "--ckpt_path", required=True, nargs="+", help="checkpoints, trained on the same images"
    )
    parser.add_argument("--source", help="where the images are now, if not where the checkpoint says")
    parser.add_argument("--max_rows", type=int, help="training images for the regression (all)")
    parser.add_argument("--out", help=".csv, .tsv or .parquet file to write")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    args = parser.parse_args(argv)
    if args.out is not None:
        check_table(args.out)
    changes = {"source": args.source} if args.source else {}
    modules = [load_data(path, ImageData, **changes) for path in args.ckpt_path]
    first = modules[0]
    for path, other in zip(args.ckpt_path[1:], modules[1:]):
        for key in _SPLIT:
            if other.hparams[key] != first.hparams[key]:
                raise DataError(
                    f"was trained with data.{key} {other.hparams[key]!r}, {args.ckpt_path[0]} with "
                    f"{first.hparams[key]!r}: their test images differ",
                    path=path,
                )
    images = len(first.parts["test"])
    if not images:
        raise DataError("has no test images", path=first.source, hint="set data.test_fraction")
    scores = [model_score(path, data, args.device) for path, data in zip(args.ckpt_path, modules)]
    print("Fitting logistic regression on the pixels of the same training images.")
    report([*baseline_scores(first, args.max_rows), *scores], images, args.out)
    return 0
