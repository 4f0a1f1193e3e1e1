"""One comparison for every domain: models beside plain baselines on the same test data, with a
verdict."""

from __future__ import annotations

import argparse
import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from longseq.core.compare_entries import split_entry
from longseq.core.errors import ConfigError, DataError
from longseq.core.results import Score, best, digits, print_table, verdict
from longseq.core.tables import write_rows
from longseq.core.training.by_config import Train, Values

if TYPE_CHECKING:
    from longseq.core.training.run import Run

CHECKPOINTS = (".ckpt", ".safetensors")


@dataclass(frozen=True)
class Row:
    """One score of a model or baseline.

    Attributes:
        model: its name.
        kind: "model" or "baseline".
        value: the score that decides.
        seed: of training; None for baselines and given checkpoints.
        group: what was scored, where one comparison scores several: a method, a data set.
        numbers: further columns of the written table by name.
        state: what the domain needs again for the verdict.
    """

    model: str
    kind: Literal["model", "baseline"]
    value: float
    seed: int | None = None
    group: str = ""
    numbers: Mapping[str, Any] = field(default_factory=dict)
    state: Any = None


class Comparison(ABC):
    """What a domain gives to ``compare``: its test data, its baselines, and how one thing is
    scored.

    Attributes:
        baselines: by name.
        usual: those of them that are taken where no ``--models`` are given; all if empty.
        score: column of the value in the written table.
        columns: of the written table, name → format (see ``write_rows``); "model", "kind", "seed",
            "verdict" and ``score`` come from the row, all others from its ``numbers``.
        lower_is_better: the score's direction.
        models_first: whether the data is known only from the models.
        trained: configurations that are trained where no ``--models`` are given.
        at_test: baselines quick enough to stand beside every ``test``.
        configs: packaged configurations that it can train and score; empty for all.
        curve: validation score that ``--curves`` draws.
    """

    baselines: ClassVar[Mapping[str, Any]]
    usual: ClassVar[Sequence[str]] = ()
    score: ClassVar[str]
    columns: ClassVar[Mapping[str, str]]
    lower_is_better: ClassVar[bool] = True
    models_first: ClassVar[bool] = False
    trained: ClassVar[Sequence[str]] = ()
    at_test: ClassVar[Sequence[str]] = ()
    configs: ClassVar[Sequence[str]] = ()
    curve: ClassVar[str] = "val/loss"

    @classmethod
    @abstractmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """Adds the options that say what is compared on."""

    @classmethod
    @abstractmethod
    def of(cls, args: argparse.Namespace) -> Iterator[Comparison]:
        """Yields the comparisons that the options ask for, each with a table of its own."""

    @classmethod
    def of_test(cls, task: Any, data: Any) -> Comparison | None:
        """Returns the comparison on what ``test`` has just tested on; None if there is none.

        Args:
            task: that was tested.
            data: its data module.
        """
        _ = task, data
        return None

    def predict_next(self) -> list[str] | None:
        """Returns what ``predict`` needs beside the checkpoint to forecast from what was tested on;
        None where that is for the user to say."""
        return None

    def tested(self, task: Any, metrics: Mapping[str, float]) -> Row:
        """Returns the row of what ``test`` has just tested.

        Args:
            task: that was tested.
            metrics: that ``test`` has measured, without "test/".
        """
        raise NotImplementedError(type(self).__name__)

    @abstractmethod
    def baseline(self, name: str) -> list[Row]:
        """Fits and scores a baseline."""

    @abstractmethod
    def checkpoint(self, path: Path, name: str, seed: int | None) -> list[Row]:
        """Scores a checkpoint.

        Args:
            path: its file.
            name: for the table.
            seed: of its training, for the table.
        """

    @abstractmethod
    def values(self, config: Path, seed: int) -> Values:
        """Returns the arguments of ``fit`` that follow from the data.

        Args:
            config: the configuration's file.
            seed: of the training.
        """

    def note_run(self, run: Run) -> None:
        """Takes what a training has cost; its checkpoint is scored next.

        Args:
            run: of one seed.
        """
        _ = run

    @property
    def metric(self) -> str:
        """The score's name with its unit, for the verdict."""
        return self.score

    @property
    def heading(self) -> str:
        """The score's name as the heading of a column."""
        return self.metric

    @property
    def title(self) -> str:
        """Of the table."""
        return ""

    @property
    def label(self) -> str:
        """Tells this comparison from the others of a command, in the names of runs."""
        return ""

    @property
    def prefix(self) -> str:
        """Likewise, before every verdict."""
        return ""

    def tie(self, row: Row, rival: Row) -> float:
        """Returns the difference of two rows that is no difference."""
        _ = row, rival
        return 0.0

    def explain(self, row: Row, rival: Row) -> str:
        """Returns what is to be said of a difference after the verdict."""
        _ = row, rival
        return ""

    def notes(self, rows: Sequence[Row]) -> dict[str, str]:
        """Returns further columns of the printed table, name → text.

        Args:
            rows: of one model.
        """
        _ = rows
        return {}

    def said(self, row: Row, rows: Sequence[Row]) -> str:
        """Returns a model's verdict beside the best baseline; empty where there is none.

        Args:
            row: a model's or baseline's.
            rows: all.
        """
        rivals = [one for one in rows if one.kind == "baseline" and one.group == row.group]
        if row.kind != "model" or not rivals:
            return ""
        rival = (min if self.lower_is_better else max)(rivals, key=lambda one: one.value)
        scores = [
            Score(row.model, row.value, "model"),
            *(Score(one.model, one.value) for one in rivals),
        ]
        text = verdict(scores, self.metric, self.lower_is_better, self.tie(row, rival))
        return f"{text} {self.explain(row, rival)}".strip()

    def scores(self, rows: Sequence[Row]) -> list[Score]:
        """Returns one score per model: the mean over its seeds."""
        found = []
        for name in dict.fromkeys(row.model for row in rows):
            mine = [row for row in rows if row.model == name]
            values = [row.value for row in mine]
            notes = self.notes(mine)
            if len(values) > 1:
                spread = digits(float(np.std(values, ddof=1)))
                notes = {"± (seeds)": f"{spread} ({len(values)})", **notes}
            found.append(Score(name, float(np.mean(values)), mine[0].kind, notes))
        return found

    def verdicts(self, rows: Sequence[Row]) -> list[str]:
        """Returns the verdict on every model, by the median of its seeds."""
        found = []
        for name in dict.fromkeys(row.model for row in rows if row.kind == "model"):
            mine = sorted((row for row in rows if row.model == name), key=lambda row: row.value)
            said = self.said(mine[(len(mine) - 1) // 2], rows)
            found.append(
                f"{said} (median of {len(mine)} seeds)" if said and len(mine) > 1 else said
            )
        if not any(found):
            first = best(self.scores(rows), rows[0].kind, self.lower_is_better)
            nothing = "nothing to compare it with."
            score = f"{digits(first.value)} {self.metric}"
            found = [f"the best is {first.model} with {score}; {nothing}"]
        return [f"{self.prefix}{text}" for text in found if text]

    def report(self, rows: Sequence[Row]) -> None:
        """Prints the table and the verdicts."""
        print_table(self.scores(rows), self.heading, self.title, self.lower_is_better)
        for line in self.verdicts(rows):
            print(line, flush=True)

    def lines(self, rows: Sequence[Row]) -> list[list[Any]]:
        """Returns the rows of the written table, those of one group together."""
        groups = list(dict.fromkeys(row.group for row in rows))
        found = []
        for row in sorted(rows, key=lambda row: groups.index(row.group)):
            known = {"model": row.model, "kind": row.kind, "seed": row.seed, self.score: row.value}
            known["verdict"] = self.said(row, rows)
            found.append(
                [known[name] if name in known else row.numbers.get(name) for name in self.columns]
            )
        return found


def report_test(comparison: Comparison, task: Any, metrics: Mapping[str, float]) -> None:
    """Prints what was tested beside the baselines that are quick, and the verdict.

    Args:
        comparison: of ``of_test``.
        task: that was tested.
        metrics: as for ``tested``.
    """
    rows = [comparison.tested(task, metrics)]
    for name in comparison.at_test:
        try:
            rows += comparison.baseline(name)
        except (ConfigError, DataError) as error:
            # What was tested stands; a baseline may need more rows than a model does.
            print(f"note: {name} is left out: {error}", file=sys.stderr)
    comparison.report(rows)


def whole_numbers(name: str, text: str) -> list[int]:
    """Returns distinct numbers of at least 0 that are given by commas.

    Args:
        name: of the option, for the message.
        text: its value.

    Raises:
        ConfigError: otherwise.
    """
    try:
        values = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"{name}: whole numbers by commas are needed, got {text!r}") from error
    if len(set(values)) < len(values) or any(value < 0 for value in values):
        raise ConfigError(f"{name}: distinct numbers of at least 0 are needed, got {text!r}")
    return values


def compare(
    comparison: Comparison,
    models: Sequence[str],
    seeds: Sequence[int],
    folder: str | Path,
    train: Train,
    configs: Mapping[str, Path],
    options: Sequence[str] = (),
    save: Callable[[Sequence[Row]], None] = lambda rows: None,
    note: Callable[[str, int, Run], None] = lambda name, seed, run: None,
) -> list[Row]:
    """Scores models and baselines, training what has to be trained.

    Args:
        comparison: of a domain.
        models: baselines, configurations, YAML files and checkpoints; of a configuration also
            variants, see ``split_entry``.
        seeds: of every training.
        folder: for checkpoints and logs.
        train: runs a training.
        configs: packaged configurations, name → file.
        options: further options of the trainings.
        save: called with the rows after every training, so that a long run that is stopped leaves
            them.
        note: called with the name, the seed and the run of every training.

    Returns:
        Rows in the order of ``models``.
    """
    as_they_are = [
        name in comparison.baselines or Path(name).suffix in CHECKPOINTS for name in models
    ]
    if options and all(as_they_are):
        raise ConfigError(
            f"{options[0].partition('=')[0]}: nothing is trained: --models names no configuration"
        )
    found: dict[str, list[Row]] = {name: [] for name in models}
    for name in sorted(
        models, key=lambda one: (one in comparison.baselines) == comparison.models_first
    ):
        if name in comparison.baselines:
            found[name] = comparison.baseline(name)
        elif Path(name).suffix in CHECKPOINTS:
            found[name] = comparison.checkpoint(Path(name), Path(name).stem, None)
        else:
            config, changes = split_entry(name)
            file = configs.get(config, Path(config))
            # Of a variant, the row and the folder say what is changed.
            stem = " ".join([file.stem, *(f"{key}={value}" for key, value in changes.items())])
            for seed in seeds:
                run_name = "_".join(
                    part for part in (_as_name(stem), comparison.label, f"seed{seed}") if part
                )
                values = dict(comparison.values(file, seed))
                if changes:
                    values["model"] = {**values.get("model", {}), **changes}
                _check_options(options, values)
                run = train(config, folder, run_name, values, seed, options)
                comparison.note_run(run)
                found[name] += comparison.checkpoint(run.checkpoint, stem, seed)
                save(_in_order(found))
                note(stem, seed, run)  # last: what it cannot do leaves the scores
    return _in_order(found)


def _in_order(found: Mapping[str, Sequence[Row]]) -> list[Row]:
    """Returns all rows; where two entries have one name, the later ones carry their own."""
    rows: list[Row] = []
    for entry, mine in found.items():
        taken = {row.model for row in rows}
        rows += [
            replace(row, model=f"{row.model} ({entry})") if row.model in taken else row
            for row in mine
        ]
    return rows


def _as_name(text: str) -> str:
    """Returns a text as the name of a folder."""
    return re.sub(r"[^\w.-]+", "_", text)


def _check_options(options: Sequence[str], values: Values) -> None:
    """Refuses options that would train on other data than is tested on."""
    fixed = {
        f"--{part}.{name}" for part, own in values.items() for name in own if part != "trainer"
    }
    for text in options:
        if text.partition("=")[0] in fixed:
            raise ConfigError(
                f"{text.partition('=')[0]}: follows from the data that is compared on"
            )


def write_table(path: str | Path, done: Sequence[tuple[Comparison, Sequence[Row]]]) -> int:
    """Writes the rows of comparisons of one kind, whole or not at all.

    Args:
        path: .csv, .tsv or .parquet.
        done: comparisons with their rows.

    Returns:
        The number of rows.
    """
    lines = [line for comparison, rows in done for line in comparison.lines(rows)]
    write_rows(path, done[0][0].columns, lines)
    return len(lines)
