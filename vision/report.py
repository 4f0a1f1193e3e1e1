"""What a classifier does on its test images: every class's scores, the confusions, the surest
errors, whether it is as sure as it is right, and what its answers rest on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from longseq.core.command_line import CommandParser
from longseq.core.errors import ConfigError, DataError, with_article
from longseq.core.figures import new_figure, save_png
from longseq.core.tables import write_rows
from longseq.core.training.loading import load_data, load_task
from longseq.vision.calibration import (
    calibration_error,
    draw_reliability,
    fit_temperature,
    tempered,
)
from longseq.vision.data.module import ImageData
from longseq.vision.data.parts import Part
from longseq.vision.occlusion import draw_occlusion, occlusion_map
from longseq.vision.plots import picture, plot_predictions
from longseq.vision.predict import Prediction
from longseq.vision.task import ImageClassifier, add_mirrored, take_mirrored

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


def report_calibration(
    task: ImageClassifier, data: ImageData, judged: Judged, part: str, path: Path
) -> str:
    """Draws the reliability, with the temperature that the validation images ask for beside it
    where there are some, and returns what is to be said of it.

    Args:
        task: in evaluation mode.
        data: its data.
        judged: its results on ``part``.
        part: that was judged; the temperature of validation images is not shown on themselves.
        path: PNG file.
    """
    shown = {"as it is": judged.probabilities}
    text = f"calibration error {calibration_error(judged.probabilities, judged.labels):.4f}"
    if part != "valid" and len(data.parts["valid"]):
        held = judge(task, data, "valid")
        temperature = fit_temperature(held.probabilities, held.labels)
        shown[f"temperature {temperature:.3g}"] = tempered(judged.probabilities, temperature)
        error = calibration_error(tempered(judged.probabilities, temperature), judged.labels)
        text += f", {error:.4f} with temperature {temperature:.4g} (of the validation images)"
    draw_reliability(shown, judged.labels, path)
    return text


def report_occlusion(
    task: ImageClassifier, data: ImageData, judged: Judged, part: str, count: int, path: Path
) -> None:
    """Draws what the predicted classes rest on: of the surest errors, then of the first images.

    Args:
        task: in evaluation mode.
        data: its data.
        judged: its results on ``part``.
        part: that was judged.
        count: at most so many images.
        path: PNG file.
    """
    guesses, sure = judged.probabilities.argmax(1), judged.probabilities.max(1)
    first = np.lexsort((np.where(guesses != judged.labels, -sure, 0), guesses == judged.labels))
    images, model = data.parts[part].images, task.best.eval()
    pictures, maps, titles = [], [], []
    for place in first[:count]:
        image = data.eval_transform(images.image(int(judged.indices[place])))
        guess, label = int(guesses[place]), int(judged.labels[place])
        maps.append(occlusion_map(model, data.normalise(image).to(task.device), guess))
        pictures.append(picture(image))
        true = "" if guess == label else f" (true: {task.classes[label]})"
        titles.append(f"{task.classes[guess]} {sure[place]:.2f}{true}")
    draw_occlusion(pictures, maps, titles, path)


def run(argv: Sequence[str]) -> int:
    """Runs ``longseq vision report``."""
    parser = CommandParser(
        prog="longseq vision report",
        description="A classifier on its test images: classes.csv (recall, precision, F1 of every "
        "class), confusion.png, errors.png (the surest errors), reliability.png (how often the "
        "sure are right) and occlusion.png (what the classes rest on).",
    )
    parser.add_argument("--ckpt_path", required=True, help="checkpoint of a classifier")
    parser.add_argument("--out", required=True, help="folder to write to")
    parser.add_argument(
        *("--data", "--source"), help="where the images are, if not where they were"
    )
    parser.add_argument("--part", default="test", choices=("train", "valid", "test"))
    text = "images of occlusion.png, the surest errors first (0: none)"
    parser.add_argument("--occlusion", type=int, default=0, help=text)
    add_mirrored(parser)
    args = parser.parse_args(argv)
    if args.occlusion < 0:
        raise ConfigError(f"--occlusion must be at least 0, got {args.occlusion}")
    task = load_task(args.ckpt_path, "vision")
    if not isinstance(task, ImageClassifier) or not task.one_class:
        kind = type(task).__name__
        raise ConfigError(f"{args.ckpt_path}: is {with_article(kind)}, no ImageClassifier")
    take_mirrored(task, args.mirrored, args.ckpt_path)
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
    said = report_calibration(task, data, judged, args.part, folder / "reliability.png")
    written = ["classes.csv", "confusion.png", "errors.png", "reliability.png"]
    if args.occlusion:
        written.append("occlusion.png")
        report_occlusion(task, data, judged, args.part, args.occlusion, folder / written[-1])
    matrix = judged.confusion
    there = matrix.sum(1) > 0
    recalls = matrix.diagonal()[there] / matrix.sum(1)[there]
    accuracy = matrix.trace() / matrix.sum()
    print(f"{matrix.sum():,} images: accuracy {accuracy:.4f}, balanced {recalls.mean():.4f}")
    print(f"  {said}")
    for row in sorted((row for row in rows if row[1]), key=lambda row: float(row[2] or 0))[:5]:
        also = f", most often taken for {row[5]}" if row[5] else ""
        print(f"  {row[0]}: recall {float(row[2] or 0):.3f} of {row[1]}{also}")
    print(f"{folder}: {', '.join(written)}")
    return 0
