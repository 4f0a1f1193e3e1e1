"""What a classifier does on its test images: every class's scores, the confusions, and the surest
errors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from longseq.core.command_line import CommandParser
from longseq.core.errors import ConfigError, DataError
from longseq.core.figures import new_figure, save_png
from longseq.core.tables import write_rows
from longseq.core.training.loading import load_data, load_task
from longseq.vision.data.module import ImageData
from longseq.vision.data.parts import Part
from longseq.vision.plots import plot_predictions
from longseq.vision.predict import Prediction
from longseq.vision.task import ImageClassifier

_NAMED = 40
"""Confusion matrices of more classes are drawn without names and numbers."""


@dataclass(frozen=True)
class Judged:
    """A classifier's results on labelled images.

    Args:
        labels: true classes (N,).
        probabilities: (N, K), float64.
        indices: numbers of the images in their set (N,).
    """

    labels: np.ndarray
    probabilities: np.ndarray
    indices: np.ndarray

    @property
    def confusion(self) -> np.ndarray:
        """Images by true class (rows) and predicted class (columns), int64 (K, K)."""
        count = self.probabilities.shape[1]
        pairs = self.labels * count + self.probabilities.argmax(1)
        return np.bincount(pairs, minlength=count * count).reshape(count, count)


def judge(task: ImageClassifier, data: ImageData, part: str = "test") -> Judged:
    """Classifies a part of a data set.

    Args:
        task: in evaluation mode.
        data: its data.
        part: "train", "valid" or "test".

    Raises:
        DataError: if there are no images.
    """
    model, labels, found, indices = task.best.eval().to(task.device), [], [], []
    with torch.inference_mode():
        for batch in data.evaluation(part):
            logits = model(batch["image"].to(task.device)).double().cpu()
            found.append(torch.softmax(logits, 1).numpy())
            labels.append(batch["target"].numpy())
            indices.append(batch["index"].numpy())
    if not found:
        raise DataError(f"has no {part} images", path=data.source)
    return Judged(*(np.concatenate(one) for one in (labels, found, indices)))


def class_rows(judged: Judged, classes: Sequence[str]) -> list[list[str | int | float | None]]:
    """Returns ``class, images, recall, precision, f1, confused with`` for every class; None where
    there is nothing to divide by.

    Args:
        judged: of ``judge``.
        classes: names.
    """
    matrix, rows = judged.confusion, []
    for i, name in enumerate(classes):
        hits, true, guessed = int(matrix[i, i]), int(matrix[i].sum()), int(matrix[:, i].sum())
        others = np.where(np.arange(len(classes)) == i, 0, matrix[i])
        rows.append(
            [
                name,
                true,
                hits / true if true else None,
                hits / guessed if guessed else None,
                2 * hits / (true + guessed) if true + guessed else None,
                classes[int(others.argmax())] if others.any() else None,
            ]
        )
    return rows


def draw_confusion(judged: Judged, classes: Sequence[str], path: str | Path) -> None:
    """Draws which share of every class was taken for which, as PNG.

    Args:
        judged: of ``judge``.
        classes: names.
        path: the file.
    """
    matrix = judged.confusion
    shares = matrix / matrix.sum(1, keepdims=True).clip(min=1)
    side = min(16.0, max(4.5, 2.5 + 0.5 * len(classes)))
    figure = new_figure(side + 1, side)
    axes = figure.subplots()
    shown = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="predicted", ylabel="true", title="Share of every true class")
    figure.colorbar(shown)
    if len(classes) <= _NAMED:
        places = range(len(classes))
        axes.set_xticks(places, classes, rotation=90)
        axes.set_yticks(places, classes)
        for i, j in zip(*np.nonzero(matrix)):
            colour = "white" if shares[i, j] > 0.5 else "black"
            axes.text(j, i, f"{matrix[i, j]}", ha="center", va="center", fontsize=7, color=colour)
    save_png(figure, path)


def run(argv: Sequence[str]) -> int:
    """Runs ``longseq vision report``."""
    parser = CommandParser(
        prog="longseq vision report",
        description="A classifier on its test images: classes.csv (recall, precision, F1 of every "
        "class), confusion.png and errors.png (the surest errors).",
    )
    parser.add_argument("--ckpt_path", required=True, help="checkpoint of a classifier")
    parser.add_argument("--out", required=True, help="folder to write to")
    parser.add_argument(
        *("--data", "--source"), help="where the images are, if not where they were"
    )
    parser.add_argument("--part", default="test", choices=("train", "valid", "test"))
    args = parser.parse_args(argv)
    task = load_task(args.ckpt_path, "vision")
    if not isinstance(task, ImageClassifier):
        raise ConfigError(f"{args.ckpt_path}: is a {type(task).__name__}, no ImageClassifier")
    changes = {"source": args.data} if args.data else {}
    data = load_data(args.ckpt_path, ImageData, **changes)
    data.take(task.preprocess)
    if data.classes != task.classes:
        raise DataError("has other classes than those of the checkpoint", path=data.source)
    judged, folder = judge(task, data, args.part), Path(args.out)
    rows = class_rows(judged, task.classes)
    columns = {"class": "", "images": "d", "recall": ".6f", "precision": ".6f", "f1": ".6f"}
    write_rows(folder / "classes.csv", {**columns, "confused_with": ""}, rows)
    draw_confusion(judged, task.classes, folder / "confusion.png")
    images = data.parts[args.part].images
    found = [
        Prediction(images.name(int(i)), p.tolist())
        for i, p in zip(judged.indices, judged.probabilities)
    ]
    plot_predictions(
        Part(images, judged.indices),
        found,
        task.classes,
        judged.labels.tolist(),
        folder / "errors.png",
    )
    matrix = judged.confusion
    there = matrix.sum(1) > 0
    recalls = matrix.diagonal()[there] / matrix.sum(1)[there]
    accuracy = matrix.trace() / matrix.sum()
    print(f"{matrix.sum():,} images: accuracy {accuracy:.4f}, balanced {recalls.mean():.4f}")
    for row in sorted((row for row in rows if row[1]), key=lambda row: float(row[2] or 0))[:5]:
        also = f", most often taken for {row[5]}" if row[5] else ""
        print(f"  {row[0]}: recall {float(row[2] or 0):.3f} of {row[1]}{also}")
    print(f"{folder}: classes.csv, confusion.png, errors.png")
    return 0
