"""What a run learns of its data (scaler, classes, grid, calibration): one JSON-able record in the
checkpoint.

A data module says it in ``BaseData.facts``, the task takes it when ``fit`` begins and keeps it in
``BaseTask.facts``, and the checkpoint holds it under ``facts``, so that predictions need nothing
else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

KEY = "facts"
"""Where a checkpoint keeps the record."""
LEGACY = "_extra_state"
"""Where earlier versions kept it, among the weights."""


class Fact:
    """An attribute of a task that is kept in its ``facts`` under the same name.

    Args:
        default: makes the value where nothing is known yet.
        read: makes the attribute's value from the plain one.
        write: makes the plain value from the attribute's.
    """

    def __init__(
        self,
        default: Callable[[], Any],
        read: Callable[[Any], Any] = lambda value: value,
        write: Callable[[Any], Any] = lambda value: value,
    ) -> None:
        self._default, self._read, self._write = default, read, write
        self._name = ""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, task: Any, owner: type | None = None) -> Any:
        if task is None:
            return self
        return self._read(task.facts[self._name]) if self._name in task.facts else self._default()

    def __set__(self, task: Any, value: Any) -> None:
        task.facts[self._name] = self._write(value)


def take_legacy(content: dict[str, Any]) -> None:
    """Moves what an earlier version kept among the weights to where it is kept today.

    Args:
        content: of a checkpoint, changed in place.
    """
    found = content["state_dict"].pop(LEGACY, None)
    if KEY not in content:
        content[KEY] = dict(found or {})
