"""Code from outside in checkpoints: which modules one needs, and whether they may be imported."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from longseq.core import __version__, plugins
from longseq.core.errors import ConfigError, DataError
from longseq.core.mixers.base import is_registered

KEY = "longseq"
"""Where a checkpoint keeps longseq's version and the modules from outside that it needs."""
NAMING = ("optimizer", "schedule", "loss", "metrics")
"""Hyper-parameters whose values may be class paths."""


def classes_of(task: nn.Module, data: object = None) -> list[type]:
    """Returns the classes that must be found again to load a checkpoint: of task, data and
    registered mixers.

    Args:
        task: in training.
        data: its data module, if any.
    """
    found: list[type] = [type(task)] if data is None else [type(task), type(data)]
    found += [type(module) for module in task.modules() if is_registered(type(module))]
    return list(dict.fromkeys(found))


def _paths(hyper: Mapping[str, Any]) -> list[str]:
    """Returns the class paths that hyper-parameters hold."""
    values: list[Any] = [hyper.get("_class_path")]
    for name in NAMING:
        value = hyper.get(name)
        values += value if isinstance(value, (list, tuple)) else [value]
    values = [value.get("class_path") if isinstance(value, dict) else value for value in values]
    return [value for value in values if isinstance(value, str) and "." in value]


def record(task: nn.Module, hyper: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what a checkpoint keeps under ``longseq``: the version, and modules from outside.

    Args:
        task: that is saved.
        hyper: its hyper-parameters.
    """
    modules = [cls.__module__ for cls in classes_of(task)]
    modules += [path.rpartition(".")[0] for path in _paths(hyper)]
    foreign = [
        one for one in dict.fromkeys(modules) if plugins.package_of(one) not in plugins.TRUSTED
    ]
    return {"version": __version__, "modules": foreign}


def modules_of(content: Mapping[str, Any], sections: Iterable[str]) -> list[str]:
    """Returns the modules that a checkpoint needs beyond longseq and its dependencies.

    Args:
        content: of the checkpoint.
        sections: of hyper-parameters whose class paths count: "hyper_parameters", …
    """
    about = content.get(KEY)
    modules = about.get("modules") if isinstance(about, dict) else None
    found = [one for one in modules or [] if isinstance(one, str)]
    for section in sections:
        found += [path.rpartition(".")[0] for path in _paths(content.get(section) or {})]
    return [one for one in dict.fromkeys(found) if plugins.package_of(one) not in plugins.TRUSTED]


def import_modules(
    content: Mapping[str, Any],
    path: str | Path,
    allow: Iterable[str] = (),
    sections: Iterable[str] = ("hyper_parameters",),
) -> None:
    """Imports the modules from outside that a checkpoint needs, if the user has named their
    packages.

    Args:
        content: of the checkpoint.
        path: its file, for the message.
        allow: modules that are allowed in addition.
        sections: of hyper-parameters whose class paths count.

    Raises:
        DataError: naming the first one that was not named, with both ways to do so; or that does
            not load.
    """
    allow = list(allow)
    for module in modules_of(content, sections):
        package = plugins.package_of(module)
        if not plugins.is_allowed(module, allow):
            dotted = str((content.get("hyper_parameters") or {}).get("_class_path"))
            needs = (
                f"is of {dotted}"
                if dotted.startswith(f"{package}.")
                else f"needs the module {module}"
            )
            raise DataError(
                f"{needs}, and code from outside longseq is imported only where it is named",
                path=path,
                hint=f'--import {module} on the command line, load_task(…, allow=["{module}"]) in '
                f"Python",
            )
        try:
            importlib.import_module(module)
        except Exception as error:  # the user's code may raise anything
            reason = " ".join(str(error).split())
            raise DataError(
                f"needs {module}, which cannot be imported: {reason}", path=path
            ) from error


def check_reloadable(task: nn.Module, data: object = None) -> None:
    """Checks before training that what it writes can be loaded again.

    Args:
        task: to be trained.
        data: its data module, if any.

    Raises:
        ConfigError: naming the first class that could not be found again, and what to do.
    """
    for cls in classes_of(task, data):
        name = f"{cls.__module__}.{cls.__qualname__}"
        move = "put it into a module of its own, for example my_module.py, and import that"
        if cls.__module__ == "__main__":
            where = "in the running script or notebook"
        elif "." in cls.__qualname__:
            where = "inside a function or another class"
        else:
            try:
                found = getattr(importlib.import_module(cls.__module__), cls.__qualname__, None)
            except Exception as error:  # the user's code may raise anything
                raise ConfigError(
                    f"checkpoints of {name} could not be loaded again: importing {cls.__module__} "
                    f"fails: {' '.join(str(error).split())}"
                ) from error
            if inspect.isclass(found) and found.__qualname__ == cls.__qualname__:
                continue
            where = f"under another name than {cls.__qualname__} in {cls.__module__}"
        raise ConfigError(
            f"checkpoints of {cls.__qualname__} could not be loaded again: it is defined {where}; "
            f"{move}"
        )
