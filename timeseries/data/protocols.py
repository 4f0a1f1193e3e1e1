"""Split protocols as data: a small YAML file says which rows are targets of which part."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from longseq.core.errors import ConfigError, DataError, did_you_mean
from longseq.core.yaml_files import read_yaml
from longseq.timeseries.data.panel import Panel

_FOLDER = Path(__file__).resolve().parent.parent / "protocols"
_KINDS = ("days", "ratio", "rolling")
_KEYS = ("name", "kind", "train", "valid", "test", "step", "quirks")


class Part(NamedTuple):
    """Rows whose values are targets: windows predict ``horizon`` rows inside [start, end).

    Attributes:
        start: first row.
        end: one past the last row.
        step: rows between two cutoffs.
    """

    start: int
    end: int
    step: int = 1

    def cutoffs(self, context: int, horizon: int) -> range:
        """Returns the first target row of every window; the rows before it are known, it and later
        ones not.

        Args:
            context: known rows that a window needs: L, or fewer where it may be padded.
            horizon: predicted rows h of a window.
        """
        return range(max(self.start, context), self.end - horizon + 1, self.step)


class Split(NamedTuple):
    """The three parts; scalers and models are fitted on ``train`` alone."""

    train: Part
    valid: Part
    test: Part


@dataclass(frozen=True)
class Protocol:
    """A split as its file describes it.

    Args:
        name: for tables.
        kind: "days" (days of each part from the file's start), "ratio" (shares of the rows) or
            "rolling" (numbers of cutoffs, counted from the file's end).
        train: days or share; unused for "rolling".
        valid: days, share or number of cutoffs.
        test: days, share or number of cutoffs.
        step: rows between cutoffs of "rolling"; None for the horizon.
        quirks: what a reader should know, in words.
    """

    name: str
    kind: str
    train: float = 0.0
    valid: float = 0.0
    test: float = 0.0
    step: int | None = None
    quirks: tuple[str, ...] = ()

    def split(self, panel: Panel, context: int, horizon: int) -> Split:
        """Returns the parts of a panel.

        Args:
            panel: the series.
            context: known rows that a window needs.
            horizon: predicted rows h.

        Raises:
            DataError: if the panel is too short for one window in every part.
        """
        rows = len(panel)
        if self.kind == "days":
            made = self._days(panel)
        elif self.kind == "ratio":
            train, test = int(rows * self.train), int(rows * self.test)
            made = Split(Part(0, train), Part(train, rows - test), Part(rows - test, rows))
        else:
            step = self.step or horizon
            first_test = rows - horizon - (int(self.test) - 1) * step
            # The last validation target ends where the first test target begins.
            first_valid = first_test - horizon - (int(self.valid) - 1) * step
            made = Split(
                Part(0, first_valid),
                Part(first_valid, first_test, step),
                Part(first_test, rows, step),
            )
        for name, part in zip(("training", "validation", "test"), made):
            if part.start < 0 or len(part.cutoffs(context, horizon)) == 0:
                text = (
                    f"{rows} rows leave no {name} window of context {context} and horizon "
                    f"{horizon} under protocol {self.name!r}"
                )
                length = part.end - part.start
                if part.start >= 0 and length < horizon:
                    text += f": {name} has {length} rows"
                    hint = "shorten the horizon, or choose another protocol"
                    if self.name != "rolling":
                        hint += ": rolling fits short files"
                else:
                    hint = (
                        "shorten them, choose another protocol, or allow padded contexts by "
                        "--min_context (--data.min_context in fit)"
                    )
                raise DataError(text, path=panel.source, hint=hint)
        return made

    def _days(self, panel: Panel) -> Split:
        if not panel.dated:
            raise DataError(
                f"has no dates, which protocol {self.name!r} needs",
                path=panel.source,
                hint="take protocol ratio",
            )
        per_day = pd.Timedelta(days=1) / pd.Timedelta(panel.ds[1] - panel.ds[0])
        if per_day != int(per_day) or per_day < 1:
            raise DataError(
                f"its step does not divide a day, which protocol {self.name!r} needs",
                path=panel.source,
                hint="take protocol ratio",
            )
        borders = [0]
        for days in (self.train, self.valid, self.test):
            borders.append(borders[-1] + int(days * per_day))
        if borders[-1] > len(panel):
            text = f"has {len(panel)} rows, protocol {self.name!r} needs {borders[-1]}"
            raise DataError(text, path=panel.source, hint="take protocol ratio")
        return Split(*(Part(a, b) for a, b in pairwise(borders)))


def list_protocols() -> list[str]:
    """Returns the names of the packaged protocols."""
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


def load_protocol(name: str) -> Protocol:
    """Reads a protocol.

    Args:
        name: of a packaged protocol, or the path of a YAML file like theirs.

    Raises:
        ConfigError: if there is none, or the file is wrong.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else _FOLDER / f"{name}.yaml"
    if not path.is_file():
        raise ConfigError(
            f"no protocol {name!r}; {did_you_mean(name, list_protocols())} (or a YAML file)"
        )
    content: Any = read_yaml(path)
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: a mapping with the keys {', '.join(_KEYS)} is needed")
    for key in content:
        if key not in _KEYS:
            raise ConfigError(f"{path}: no key {key!r}; {did_you_mean(str(key), _KEYS)}")
    made = Protocol(
        name=str(content.get("name", path.stem)),
        kind=str(content.get("kind")),
        train=content.get("train", 0.0),
        valid=content.get("valid", 0.0),
        test=content.get("test", 0.0),
        step=content.get("step"),
        quirks=tuple(content.get("quirks") or ()),
    )
    _check(made, path)
    return made


def _check(protocol: Protocol, path: Path) -> None:
    if protocol.kind not in _KINDS:
        raise ConfigError(f"{path}: kind {protocol.kind!r}; {did_you_mean(protocol.kind, _KINDS)}")
    names = ("valid", "test") if protocol.kind == "rolling" else ("train", "valid", "test")
    for name in names:
        value = getattr(protocol, name)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0:
            raise ConfigError(f"{path}: {name} must be a number above 0, got {value!r}")
        if protocol.kind == "rolling" and value != int(value):
            raise ConfigError(f"{path}: {name} must be a whole number of cutoffs, got {value!r}")
    if protocol.kind == "ratio" and abs(protocol.train + protocol.valid + protocol.test - 1) > 1e-9:
        raise ConfigError(f"{path}: train, valid and test must add up to 1")
    step = protocol.step
    if step is not None and (isinstance(step, bool) or not isinstance(step, int) or step < 1):
        raise ConfigError(f"{path}: step must be a whole number of rows, got {step!r}")
