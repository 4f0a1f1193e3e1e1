"""``longseq vision compare``: classifiers and baselines on the same test images, with a verdict."""

from __future__ import annotations

import argparse
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from longseq.core.command_line import add_device
from longseq.core.compare import Comparison, Row
from longseq.core.curves import POINTS
from longseq.core.errors import ConfigError, DataError
from longseq.core.registry import Registry
from longseq.core.results import Score
from longseq.core.training.by_config import Values
from longseq.core.training.cpu_budget import budget_values
from longseq.core.training.loading import load_data, load_task
from longseq.core.training.run import Run
from longseq.vision.baselines import PixelRegression, pixels
from longseq.vision.data.module import ImageData
from longseq.vision.denoisers import RestorationComparison
from longseq.vision.models.registry import PLAIN
from longseq.vision.multi_label_compare import MultiLabelComparison
from longseq.vision.restoration import Restoration
from longseq.vision.task import ImageClassifier, add_mirrored, take_mirrored

# What decides which images are the test's: it must agree between models that are compared.
_SPLIT = ("source", "valid_fraction", "test_fraction", "seed", "root")
# `test` fits the regression too where that takes seconds: on so many images, of so many pixels.
_AT_TEST, _AT_TEST_SIZE = 10_000, 32
BASELINES: Registry[Callable[[ImageData, int | None], Score]] = Registry("baseline")


@BASELINES.register("most_frequent_class")
def _most_frequent(data: ImageData, limit: int | None) -> Score:
    labels, tested = data.parts["train"].labels, data.parts["test"].labels
    return Score("most frequent class", float((tested == np.bincount(labels).argmax()).mean()))


@BASELINES.register("logistic_regression")
def _regression(data: ImageData, limit: int | None) -> Score:
    size, parts = data.preprocess["img_size"], data.parts
    x, y = pixels(parts["train"], size, limit)
    x_test, y_test = pixels(parts["test"], size)
    start = time.perf_counter()
    valid = pixels(parts["valid"], size) if len(parts["valid"]) else (x[:0], y[:0])
    regression = PixelRegression().fit(x, y, *valid)
    seconds = time.perf_counter() - start
    weights = (x.shape[1] + 1) * len(data.classes)
    notes = {"parameters": f"{weights:,}", "fit": f"{seconds:.0f} s, C {regression.strength:g}"}
    return Score(
        "logistic regression", float((regression.predict(x_test) == y_test).mean()), notes=notes
    )


def baseline_scores(data: ImageData, limit: int | None = None) -> list[Score]:
    """Fits the baselines on the training images and scores them on the test images.

    Args:
        data: the images.
        limit: at most so many training images for the regression; None for all.
    """
    return [BASELINES[name](data, limit) for name in BASELINES]


def tie_width(accuracy: float, images: int) -> float:
    """Returns the difference of two accuracies that chance explains in 19 of 20 test sets.

    One right and one wrong answer are added (Agresti and Caffo 2000): no error among few images
    does not mean that there is none to come.

    Args:
        accuracy: about which.
        images: in the test set.
    """
    rate = (accuracy * images + 1) / (images + 2)
    return 1.96 * math.sqrt(2 * rate * (1 - rate) / (images + 2))


def _minutes(text: str) -> list[float]:
    """Returns the budgets in ``--cpu_minutes``."""
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or any(not 0 < one < float("inf") for one in found):
        raise ConfigError(f"--cpu_minutes: positive numbers by commas are needed, got {text!r}")
    return list(dict.fromkeys(found))


def _variant(name: str) -> str:
    """Returns what tells a variant of a configuration from others with its model: "cifar
    model=resnet8 lr=1" gives " lr=1"."""
    changes = name[name.find(" ") :] if " " in name and "=" in name else ""
    return re.sub(r" model=\S+", "", changes)


class ImageComparison(Comparison):
    """Accuracy on the test images of the models' own data, which must be the same for all.

    Args:
        changes: arguments of the data modules in place of the checkpoints'.
        limit: training images for the regression; None for all.
        device: cpu or cuda.
        cpu_minutes: that every training has; None for the steps of its configuration.
        validations: during them; None for none.
        mirrored: "true" or "false", of all models; None for what checkpoints and configurations
            say.
    """

    baselines = BASELINES
    score = "accuracy"
    columns = {
        "model": "",
        "kind": "",
        "accuracy": ".6f",
        "test_images": "d",
        "parameters": "d",
        "cpu_seconds": ".1f",
        "steps": ".0f",
        "seed": "d",
        "verdict": "",
    }
    lower_is_better = False
    models_first = True
    curve = "val/accuracy"

    def __init__(
        self,
        changes: Mapping[str, Any] | None = None,
        limit: int | None = None,
        device: str = "cpu",
        cpu_minutes: float | None = None,
        validations: int | None = None,
        mirrored: str | None = None,
    ) -> None:
        self.changes, self.limit, self.device = dict(changes or {}), limit, device
        self.cpu_minutes, self.validations = cpu_minutes, validations
        self.mirrored = mirrored
        self._cost: dict[str, float] = {}
        self.data: ImageData | None = None
        self._first = Path()

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            *("--data", "--source"),
            help="where the images are, if not where models and configurations say",
        )
        parser.add_argument("--max_rows", type=int, help="training images for the regression (all)")
        add_device(parser)
        add_mirrored(parser)
        text = "train each for so many CPU minutes, a table each (1,5), not by steps"
        parser.add_argument("--cpu_minutes", help=text)

    @classmethod
    def of(cls, args: argparse.Namespace) -> Iterator[ImageComparison]:
        changes = {"source": args.data} if args.data else {}
        for minutes in [None] if args.cpu_minutes is None else _minutes(args.cpu_minutes):
            validations = None if args.curves is None else POINTS
            yield cls(changes, args.max_rows, args.device, minutes, validations, args.mirrored)

    at_test = ("most_frequent_class",)

    @classmethod
    def of_test(cls, task: Any, data: Any) -> Comparison | None:
        if isinstance(task, Restoration):
            return RestorationComparison.of_test(task, data)
        if not (isinstance(task, ImageClassifier) and isinstance(data, ImageData)):
            return None
        if not task.one_class:
            return MultiLabelComparison.of_test(task, data)
        made = cls(limit=_AT_TEST)
        made.data = data
        values = len(data.parts["test"]) * data.preprocess["img_size"] ** 2
        if values <= _AT_TEST * _AT_TEST_SIZE**2:
            made.at_test = tuple(BASELINES)  # type: ignore[misc]
        return made

    def tested(self, task: Any, metrics: Mapping[str, float]) -> Row:
        parameters = sum(parameter.numel() for parameter in task.model.parameters())
        notes = {"parameters": f"{parameters:,}"}
        name = str(task.hparams["model"])
        return self._row(Score(name, metrics["accuracy"], "model", notes))

    @property
    def images(self) -> int:
        """Number of test images."""
        return len(self.known.parts["test"])

    @property
    def title(self) -> str:
        each = "" if self.cpu_minutes is None else f", {self.cpu_minutes:g} CPU min for each model"
        return f"Test set, {self.images:,} images{each}"

    @property
    def label(self) -> str:
        return "" if self.cpu_minutes is None else f"{self.cpu_minutes:g}min"

    def note_run(self, run: Run) -> None:
        names = {"cpu_seconds": "train/cpu_seconds", "steps": "train/steps"}
        self._cost = {name: run.metrics[key] for name, key in names.items() if key in run.metrics}

    @property
    def known(self) -> ImageData:
        """The data of the models; an error as long as there is no model."""
        if self.data is None:
            raise DataError(
                "name a checkpoint or configuration too: it says which images", path="--models"
            )
        return self.data

    def _add(self, path: Path) -> ImageData:
        """Reads a checkpoint's data module, and checks that its test images are the others'."""
        data = load_data(path, ImageData, **self.changes)
        if self.data is None:
            self.data, self._first = data, path
        for key in _SPLIT:
            if data.hparams[key] != self.data.hparams[key]:
                raise DataError(
                    f"was trained with data.{key} {data.hparams[key]!r}, {self._first} with "
                    f"{self.data.hparams[key]!r}: their test images differ",
                    path=path,
                )
        if not len(data.parts["test"]):
            raise DataError("has no test images", path=data.source, hint="set data.test_fraction")
        return data

    def baseline(self, name: str) -> list[Row]:
        found = BASELINES[name](self.known, self.limit)
        return [self._row(found)]

    def _row(self, found: Score, seed: int | None = None) -> Row:
        count = found.notes.get("parameters", "").replace(",", "")
        numbers = {"test_images": self.images, "parameters": int(count) if count else None}
        return Row(found.model, found.kind, found.value, seed, numbers=numbers, state=found.notes)

    def checkpoint(self, path: Path, name: str, seed: int | None) -> list[Row]:
        data = self._add(path)
        task = load_task(path, ImageClassifier)
        assert isinstance(task, ImageClassifier)
        if not task.one_class:
            raise ConfigError(f"{path}: gives any number of labels; vision test compares it")
        take_mirrored(task, self.mirrored, path)
        data.take(task.preprocess)
        if task.classes != data.classes:
            raise DataError(f"was trained on other classes than those of {data.source}", path=path)
        model, hits, images = task.best.eval().to(self.device), 0, 0
        start = time.perf_counter()
        with torch.inference_mode():
            for batch in data.evaluation("test"):
                guess = model(batch["image"].to(self.device)).argmax(1).cpu()
                hits, images = hits + int((guess == batch["target"]).sum()), images + len(guess)
        rate = images / (time.perf_counter() - start)
        parameters = sum(parameter.numel() for parameter in task.model.parameters())
        notes = {"parameters": f"{parameters:,}", "test": f"{rate:,.0f} images/s"}
        cost, self._cost = self._cost, {}
        if cost:
            notes["CPU s"], notes["steps"] = (
                f"{cost['cpu_seconds']:.0f}",
                f"{cost['steps']:,.0f}",
            )
        model = str(task.hparams["model"])
        kind = "baseline" if model in PLAIN else "model"
        row = self._row(Score(f"{model}{_variant(name)}", hits / images, kind, notes), seed)
        return [replace(row, numbers={**row.numbers, **cost})]

    def values(self, config: Path, seed: int) -> Values:
        """Of the data only the source: its seed decides which images are the test's."""
        model = {} if self.mirrored is None else {"model": {"mirrored": self.mirrored == "true"}}
        if self.cpu_minutes is None:
            return {"data": self.changes, **model}
        alone = {**self.changes, "num_workers": 0}  # what workers do is no part of the budget
        trainer = budget_values(self.cpu_minutes, self.validations)
        return {"data": alone, "trainer": trainer, **model}

    def tie(self, row: Row, rival: Row) -> float:
        return tie_width(max(row.value, rival.value), self.images)

    def notes(self, rows: Sequence[Row]) -> dict[str, str]:
        return dict(rows[0].state)

    def verdicts(self, rows: Sequence[Row]) -> list[str]:
        tie = tie_width(max(row.value for row in rows), self.images)
        chance = f"95% interval of two accuracies on {self.images:,} images."
        return [*super().verdicts(rows), f"Differences below {tie:.4f} may be chance: {chance}"]
