"""Score rows: a model beside its baselines, as a table on the terminal, and a verdict in plain
words."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from longseq.core.errors import plain


@dataclass(frozen=True)
class Score:
    """One model's score on one data set.

    Args:
        model: its name.
        value: the score.
        kind: "model" for what was trained here, "baseline" for what it must beat.
        notes: further columns of the table, name to text.
    """

    model: str
    value: float
    kind: Literal["model", "baseline"] = "baseline"
    notes: dict[str, str] = field(default_factory=dict)


def digits(value: float) -> str:
    """Returns a number with four decimals, or four significant digits below 0.01.

    Args:
        value: of any size and unit: precipitation in kg m-2 s-1 is some 1e-5.
    """
    size = abs(value)
    if not size or not math.isfinite(size) or size >= 0.01:
        return f"{value:.4f}"
    if size < 1e-4:
        return f"{value:.3e}"
    return f"{value:.{3 - math.floor(math.log10(size))}f}"


def best(scores: Sequence[Score], kind: str, lower_is_better: bool = True) -> Score:
    """Returns the best score of a kind.

    Args:
        scores: at least one of that kind.
        kind: "model" or "baseline".
        lower_is_better: the metric's direction.
    """
    chosen = [score for score in scores if score.kind == kind]
    return min(chosen, key=lambda score: score.value if lower_is_better else -score.value)


def verdict(
    scores: Sequence[Score], metric: str, lower_is_better: bool = True, tie: float = 0.0
) -> str:
    """Says in words how the best model compares with the best baseline, whichever way it falls.

    Args:
        scores: of models and baselines.
        metric: its name with its unit, for the sentence.
        lower_is_better: the metric's direction.
        tie: a smaller difference is no difference.
    """
    model, baseline = (
        best(scores, "model", lower_is_better),
        best(scores, "baseline", lower_is_better),
    )
    gain = (baseline.value - model.value) * (1 if lower_is_better else -1)
    relation = "beats" if gain > tie else "does not beat" if gain < -tie else "is level with"
    return (
        f"{model.model} {relation} the best baseline, {baseline.model}: "
        f"{digits(model.value)} against {digits(baseline.value)} {metric}, a difference of "
        f"{digits(abs(gain))}."
    )


def print_table(
    scores: Sequence[Score],
    metric: str,
    title: str,
    lower_is_better: bool = True,
    file: object = None,
) -> None:
    """Prints the scores, best last, models marked.

    Args:
        scores: rows; their notes become columns.
        metric: heading of the score's column.
        title: of the table.
        lower_is_better: the metric's direction.
        file: stdout if None.
    """
    from rich.console import Console
    from rich.table import Table

    columns = list(dict.fromkeys(name for score in scores for name in score.notes))
    table = Table(title=plain(title), title_justify="left")
    for heading in ("model", metric, *columns):
        table.add_column(heading, justify="left" if heading == "model" else "right")
    for score in sorted(scores, key=lambda score: score.value, reverse=lower_is_better):
        style = "bold green" if score.kind == "model" else None
        table.add_row(
            plain(score.model),
            digits(score.value),
            *(plain(score.notes.get(name, "")) for name in columns),
            style=style,
        )
    # What files are called is shown as it is: no markup.
    Console(file=file or sys.stdout, markup=False).print(table)  # type: ignore[arg-type]
