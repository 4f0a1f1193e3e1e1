"""Curves of a comparison's trainings: a validation score over CPU time, as a picture and a
table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from longseq.core.errors import ConfigError, DataError
from longseq.core.figures import new_figure, save_png
from longseq.core.files import check_writable
from longseq.core.tables import read_rows, write_rows

POINTS = 12
"""Validations of a training whose curve is drawn."""


@dataclass(frozen=True)
class Curve:
    """What one training reached when.

    Attributes:
        model: its name, with what tells it from others.
        seed: of the training.
        points: optimiser steps, CPU seconds (None where the training had no budget of them), score.
    """

    model: str
    seed: int
    points: Sequence[tuple[int, float | None, float]]


def check_curves(path: str | Path) -> Path:
    """Returns where the table beside a picture lies, so that a wrong name fails before the work is
    done.

    Args:
        path: of the picture.

    Raises:
        ConfigError: unless it ends in ``.png`` and both files can be written.
    """
    picture = Path(path)
    if picture.suffix.lower() != ".png":
        raise ConfigError(f"--curves: {path}: a picture of curves must end in .png")
    table = picture.with_suffix(".csv")
    check_writable(picture)
    check_writable(table)
    return table


def read_curve(folder: Path, metric: str, model: str, seed: int) -> Curve:
    """Returns the curve of a run.

    Args:
        folder: of its logs.
        metric: validation score, "val/accuracy".
        model: name for the picture.
        seed: of the training.

    Raises:
        DataError: if the run logged no such score.
    """
    path = folder / "metrics.csv"
    rows = read_rows(path) if path.is_file() else []
    points = [
        (
            int(row["step"]) + 1,  # Lightning counts from 0
            float(row["val/cpu_seconds"]) if row.get("val/cpu_seconds") else None,
            float(row[metric]),
        )
        for row in rows
        if row.get(metric)
    ]
    if not points:
        raise DataError(
            f"holds no {metric}, so there is no curve",
            path=path,
            hint="the training needs a validation part and a CSV log",
        )
    return Curve(model, seed, points)


def save_curves(path: str | Path, curves: Sequence[Curve], metric: str) -> None:
    """Draws curves over CPU minutes, or over steps where a training had no budget of them, and
    writes their points to the table beside the picture.

    Args:
        path: of the picture, see ``check_curves``.
        curves: one for each training.
        metric: what they show.
    """
    by_time = all(seconds is not None for curve in curves for _, seconds, _ in curve.points)
    figure = new_figure(7, 4.5)
    axes = figure.add_subplot()
    many = len({curve.seed for curve in curves}) > 1
    lines = []
    for curve in curves:
        label = f"{curve.model}, seed {curve.seed}" if many else curve.model
        x = [(seconds or 0) / 60 if by_time else step for step, seconds, _ in curve.points]
        axes.plot(x, [value for _, _, value in curve.points], marker="o", markersize=3, label=label)
        lines += [[curve.model, curve.seed, *point] for point in curve.points]
    axes.set(xlabel="CPU minutes" if by_time else "optimiser step", ylabel=metric)
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    axes.legend()
    save_png(figure, path)
    columns = {"model": "", "seed": "d", "step": "d", "cpu_seconds": ".1f", metric: ".6f"}
    write_rows(check_curves(path), columns, lines)
