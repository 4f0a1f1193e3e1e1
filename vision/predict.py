"""Classes and probabilities of the images in a folder or zip, to CSV or Parquet."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from longseq.core.checks import check_positive
from longseq.core.command_line import CommandParser, add_device
from longseq.core.errors import ConfigError, DataError, with_article
from longseq.core.tables import check_table, write_rows
from longseq.vision.calibration import tempered
from longseq.vision.data.images import ArrayImages, FileImages, ImageSet, is_image, list_images
from longseq.vision.data.pixels import NOT_A_NUMBER, Reading
from longseq.vision.data.transforms import Normalise, resize
from longseq.vision.restoration import Restoration
from longseq.vision.restore import run_restoration
from longseq.vision.segment import run_segmentation
from longseq.vision.segmentation import Segmentation
from longseq.vision.task import ImageClassifier, add_mirrored, load_classifier, take_mirrored

_ELSEWHERE = dict.fromkeys(
    ("VideoClassifier", "PointClassifier"), "longseq vision score tests it, predict is for images"
)


@dataclass(frozen=True)
class Prediction:
    """The classes of one image, or why there are none.

    Args:
        file: its path inside the folder or zip.
        probabilities: of every class; empty if the image could not be read.
        error: why it could not be read; empty if it could.
    """

    file: str
    probabilities: list[float]
    error: str = ""


def open_images(path: str | Path, reading: Reading) -> ImageSet:
    """Opens the images to be classified.

    Args:
        path: a folder or a zip, searched to any depth; one image; or an IDX file of images.
        reading: how files become channels, ``Reading.of(task.preprocess)``.

    Raises:
        DataError: if there are none.
    """
    root = Path(path)
    if not root.exists():
        raise DataError("no such file or folder", path=root)
    if root.is_file() and "idx3-ubyte" in root.name:
        from longseq.vision.data.idx import read_idx

        array = read_idx(root)
        return ArrayImages(array, np.zeros(len(array), np.int64), [], reading)
    if root.is_file() and is_image(root.name):
        root, names = root.parent, [root.name]
    elif root.is_file() and root.suffix.lower() != ".zip":
        raise DataError("is neither a folder, a zip nor an image", path=root)
    else:
        names = list_images(root)
    if not names:
        raise DataError("holds no images", path=root)
    return FileImages(root, names, [0] * len(names), [], reading)


def classify(
    task: ImageClassifier,
    images: ImageSet,
    batch_size: int = 64,
    device: str = "cpu",
    temperature: float = 1.0,
) -> Iterator[Prediction]:
    """Yields the prediction for every image, in order; one that cannot be read says why.

    Args:
        task: in evaluation mode; ``task.mirrored`` says whether mirror images count too.
        images: what to classify.
        batch_size: images at once; the result does not depend on it.
        device: cpu or cuda.
        temperature: that logits are divided by, see ``calibration``.
    """
    check_positive("batch_size", batch_size)
    how = dict(task.preprocess)
    square = resize(how["img_size"], how["crop_ratio"], how.get("interpolation", "bilinear"))
    normalise = Normalise(how["mean"], how["std"])
    model = task.best.eval().to(device)
    for start in range(0, len(images), batch_size):
        indices = range(start, min(start + batch_size, len(images)))
        tensors: list[Tensor] = []
        errors: dict[int, str] = {}
        for index in indices:
            try:
                tensors.append(normalise(square(images.image(index))))
            except DataError as error:
                errors[index] = str(error)
        if tensors:
            batch = torch.stack(tensors).to(device)
            with torch.inference_mode():
                found = task.probabilities(model(batch)).cpu().numpy()
            rows = iter((tempered(found, temperature) if task.one_class else found).tolist())
        for index in indices:
            why = errors.get(index, "")
            row = [] if why else next(rows)
            if not np.isfinite(row).all():
                row, why = [], str(images.where(index).error(*NOT_A_NUMBER))
            yield Prediction(images.name(index), row, why)


def write_predictions(
    path: str | Path, predictions: Sequence[Prediction], classes: Sequence[str]
) -> None:
    """Writes predictions, whole or not at all.

    Columns: ``file``, ``label``, ``probability`` (of that label), ``p_<class>`` for every class,
    ``error``.

    Args:
        path: .csv, .tsv or .parquet.
        predictions: rows.
        classes: names of the classes.

    Raises:
        ConfigError: for another ending.
    """
    probabilities = dict.fromkeys(("probability", *(f"p_{name}" for name in classes)), ".6g")
    rows: list[list[str | float | None]] = []
    for item in predictions:
        if item.error:
            rows.append([item.file, None, None, *[None] * len(classes), item.error])
            continue
        best = max(range(len(classes)), key=lambda i: item.probabilities[i])
        rows.append([item.file, classes[best], item.probabilities[best], *item.probabilities, None])
    write_rows(path, {"file": "", "label": "", **probabilities, "error": ""}, rows)


def write_labels(
    path: str | Path, predictions: Sequence[Prediction], classes: Sequence[str]
) -> None:
    """Writes predictions of any number of labels: ``file``, ``labels`` of at least one half with ;
    between them, ``p_<label>`` for every label, ``error``.

    Args:
        path: .csv, .tsv or .parquet.
        predictions: rows.
        classes: names of the labels.
    """
    columns = {"file": "", "labels": "", **dict.fromkeys((f"p_{name}" for name in classes), ".6g")}
    rows: list[list[str | float | None]] = []
    for item in predictions:
        if item.error:
            rows.append([item.file, None, *[None] * len(classes), item.error])
        else:
            rows.append([item.file, ";".join(labels_of(item, classes)), *item.probabilities, None])
    write_rows(path, {**columns, "error": ""}, rows)


def labels_of(item: Prediction, classes: Sequence[str]) -> list[str]:
    """Returns the labels whose probability is at least one half.

    Args:
        item: of one image.
        classes: names of the labels.
    """
    return [name for name, chance in zip(classes, item.probabilities) if chance >= 0.5]


def say_errors(errors: Sequence[str], source: str | Path) -> None:
    """Says on stderr which images could not be read.

    Args:
        errors: one per image, empty where it could be.
        source: where the images are.

    Raises:
        DataError: if none of them could be.
    """
    bad = [error for error in errors if error]
    for error in bad[:10]:
        print(f"note: {error}", file=sys.stderr)
    if len(bad) > 10:
        print(f"note: and {len(bad) - 10} more", file=sys.stderr)
    if len(bad) == len(errors):
        raise DataError(f"none of its {len(errors)} images can be read", path=source)


def run(argv: Sequence[str]) -> int:
    """Runs ``longseq vision predict``."""
    parser = CommandParser(
        prog="longseq vision predict",
        description="Of a classifier: class and probabilities of every image (file, label, "
        "probability, p_<class>, error). Of a segmentation: masks/, overlays/ and areas.csv. Of a "
        "restoration: the restored images.",
    )
    parser.add_argument(
        "images", help="folder or zip (searched to any depth), one image, or an IDX file"
    )
    parser.add_argument(
        "--ckpt_path", required=True, help="of a classifier, a segmentation or a restoration"
    )
    parser.add_argument(
        "--out",
        required=True,
        help="table to write (.csv, .tsv, .parquet); for masks and images a folder",
    )
    parser.add_argument("--model", help="of published weights: one of longseq vision models")
    parser.add_argument("--batch_size", type=int, default=64, help="images at once (64)")
    add_device(parser)
    add_mirrored(parser, "--flip")
    text = "classes: divides the logits (1; `longseq vision report` finds it)"
    parser.add_argument("--temperature", type=float, help=text)
    text = "of stacks and animations: its number from 0 (as in training)"
    parser.add_argument("--page", type=int, help=text)
    parser.add_argument("--tile", type=int, help="masks, images: side of a tile")
    parser.add_argument("--overlap", type=int, help="of neighbouring tiles (tile / 4)")
    parser.add_argument("--no_overlays", action="store_true", help="masks: write no overlays")
    args = parser.parse_args(argv)
    if args.tile is not None:
        check_positive("--tile", args.tile)
    task = load_classifier(args.ckpt_path, args.model)
    if args.page is not None and isinstance(task, (ImageClassifier, Segmentation, Restoration)):
        if args.page < 0:
            raise ConfigError(f"--page must be at least 0, got {args.page}")
        how = dict(task.preprocess)
        reading = replace(Reading.of(how), page=args.page)
        task.preprocess = {**how, "reading": reading.facts()}
    if isinstance(task, (Segmentation, Restoration)):
        gives = "masks" if isinstance(task, Segmentation) else "images"
        take_mirrored(task, args.mirrored, args.ckpt_path)
        if args.temperature is not None:
            raise ConfigError(f"--temperature: is for classes, and {args.ckpt_path} gives {gives}")
        task.to(args.device)
        if isinstance(task, Restoration):
            return run_restoration(task, args.images, args.out, args.tile, args.overlap)
        return run_segmentation(
            task, args.images, args.out, args.tile, args.overlap, not args.no_overlays
        )
    if not isinstance(task, ImageClassifier):
        kind = type(task).__name__
        clip = f"longseq vision matte CLIP --ckpt_path {args.ckpt_path} --out FOLDER"
        hint = _ELSEWHERE.get(kind, clip if kind == "VideoMatting" else "")
        raise ConfigError(
            f"{args.ckpt_path}: is {with_article(kind)}, an ImageClassifier, a Segmentation or a "
            f"Restoration is needed{f': {hint}' if hint else ''}"
        )
    take_mirrored(task, args.mirrored, args.ckpt_path)
    check_table(args.out)
    if not task.one_class and args.temperature is not None:
        raise ConfigError("--temperature: is for one class per image")
    images = open_images(args.images, Reading.of(task.preprocess))
    heat = 1.0 if args.temperature is None else args.temperature
    found = list(classify(task, images, args.batch_size, args.device, heat))
    say_errors([item.error for item in found], args.images)
    bad = [item for item in found if item.error]
    write = write_predictions if task.one_class else write_labels
    write(args.out, found, task.classes)
    labels = Counter(
        name
        for item in found
        if not item.error
        for name in (
            [task.classes[max(range(len(task.classes)), key=lambda i: item.probabilities[i])]]
            if task.one_class
            else labels_of(item, task.classes)
        )
    )
    print(f"{args.out}: {len(found):,} images, {len(bad)} could not be read")
    print("  " + ", ".join(f"{name} {count:,}" for name, count in labels.most_common(10)))
    return 0
