"""What a task command's arguments and configurations say, read without the parser: it needs
Lightning."""

from __future__ import annotations

import importlib
import inspect
import os
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from longseq.core.domain import Domain
from longseq.core.errors import ConfigError
from longseq.core.plugins import OPTION, is_allowed, package_of
from longseq.core.yaml_files import read_yaml

_SIDES = ("model", "data")


def flag_values(argv: Sequence[str], *flags: str) -> list[tuple[int, str, str]]:
    """Returns (index, flag, value) of every ``--flag value`` and ``--flag=value``."""
    found = []
    for index, text in enumerate(argv):
        flag, equals, value = text.partition("=")
        if flag in flags and equals:
            found.append((index, flag, value))
        elif text in flags and index + 1 < len(argv):
            found.append((index, text, argv[index + 1]))
    return found


def resolve_configs(domain: Domain, argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Replaces names of packaged configurations by their files.

    Args:
        domain: whose configurations.
        argv: arguments.

    Returns:
        The arguments, configurations first, so that a flag wins wherever it stands, then the
        classes of model and data, whose arguments the parser would else take for another's; and
        the files in order.
    """
    given = flag_values(argv, "--config", "-c")
    files = [domain.resolve_config(value) for _, _, value in given]
    named = flag_values(argv, *(f"--{side}{end}" for side in _SIDES for end in ("", ".class_path")))
    named = [one for one in named if not one[2].startswith("-")]  # no class, but the next option
    skip = {
        at
        for index, _, _ in given + named
        for at in range(index, index + 1 + ("=" not in argv[index]))
    }
    rest = [text for index, text in enumerate(argv) if index not in skip]
    classes = [f"{flag}={value}" for _, flag, value in named]
    return [*(f"--config={file}" for file in files), *classes, *rest], files


@lru_cache(maxsize=32)
def _read(file: str, state: tuple[int, int] | None) -> Any:
    """Returns what a file holds; state: time of its last change and size, so that it is read once
    and a changed one again."""
    return read_yaml(file)


def contents(configs: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yields what the configurations hold, to be looked at only; one that is no mapping holds
    nothing.

    Args:
        configs: files.

    Raises:
        ConfigError: if one is not there or not YAML.
    """
    for file in configs:
        try:
            status = os.stat(file)
            state = (status.st_mtime_ns, status.st_size)
        except OSError:
            state = None  # which the reader reports
        content = _read(file, state)
        yield content if isinstance(content, dict) else {}


def find_checkpoint(argv: Sequence[str], configs: Sequence[str]) -> str | None:
    """Returns the checkpoint that the arguments or configurations name, if any; the arguments win.

    Raises:
        ConfigError: if a configuration is not YAML.
    """
    path: str | None = None
    for content in contents(configs):
        if isinstance(content.get("ckpt_path"), str):
            path = content["ckpt_path"]
    for _, _, value in flag_values(argv, "--ckpt_path"):
        path = value
    return None if path == "null" else path


_HOW_LONG = ("max_steps", "max_epochs", "min_steps", "min_epochs", "max_time")
_OF_THE_RUN = (
    *_HOW_LONG,
    "val_check_interval",
    "check_val_every_n_epoch",
    "limit_train_batches",
    "limit_val_batches",
    "num_sanity_val_steps",
    "accumulate_grad_batches",
    "gradient_clip_val",
    "gradient_clip_algorithm",
    "precision",
    "log_every_n_steps",
    "deterministic",
)
"""What a run's trainer was told of the training itself; devices and folders are of the machine."""
_BESIDE = ("seed_everything", "checkpoint_every")
_CALLBACKS = "trainer.callbacks"


def resumed_settings(
    checkpoint: str, argv: Sequence[str], configs: Sequence[str]
) -> dict[str, Any]:
    """Returns the settings of the run that a checkpoint is of, as its ``config.yaml`` has them, by
    option ("trainer.max_steps"), but for those that the arguments or configurations give.

    Args:
        checkpoint: in the folder ``checkpoints`` of the run.
        argv: the user's arguments.
        configs: configuration files.

    Raises:
        ConfigError: for a callback that must be named again, see ``_callback``.
    """
    file = Path(checkpoint).resolve().parent.parent / "config.yaml"
    if not file.is_file():
        return {}
    given = {text.partition("=")[0].removeprefix("--") for text in argv}
    if any(name.startswith(_CALLBACKS) for name in given):  # also added to, or changed in part
        given.add(_CALLBACKS)
    for content in contents(configs):
        own = content.get("trainer")
        given |= {*content, *(f"trainer.{name}" for name in (own if isinstance(own, dict) else ()))}
    if given & {f"trainer.{name}" for name in _HOW_LONG}:  # one of them says it anew
        given |= {f"trainer.{name}" for name in _HOW_LONG}
    content = next(contents([str(file)]))
    trainer = content.get("trainer")
    trainer = trainer if isinstance(trainer, dict) else {}
    found = {f"trainer.{key}": one for key, one in trainer.items()}
    found |= {name: content.get(name) for name in _BESIDE}
    settings = {
        name: found[name]
        for name in (*_BESIDE, *(f"trainer.{name}" for name in _OF_THE_RUN))
        if name not in given and isinstance(found.get(name), (bool, int, float, str))
    }
    callbacks = found.get(_CALLBACKS)
    if callbacks and _CALLBACKS not in given:
        callbacks = callbacks if isinstance(callbacks, list) else [callbacks]
        settings[_CALLBACKS] = [_callback(one, file) for one in callbacks]
    return settings


def _callback(entry: Any, file: Path) -> dict[str, Any]:
    """Returns a callback of a run's ``config.yaml``, as the run that goes on has it again. A file
    never decides which code runs: a class of Lightning's, longseq's or a package that the user has
    named, and no argument that may stand for a function.

    Args:
        entry: ``class_path`` and ``init_args``.
        file: that has it.

    Raises:
        ConfigError: if it is something else, with what to type.
    """
    way_out = f"give --{_CALLBACKS} again, or null to go on without"
    entry = {"class_path": entry} if isinstance(entry, str) else entry
    path = entry.get("class_path") if isinstance(entry, dict) else None
    if not isinstance(path, str):
        raise ConfigError(f"{file}: {_CALLBACKS} names no class: {way_out}")
    path = path if "." in path else f"lightning.pytorch.callbacks.{path}"  # as Lightning takes it
    module, _, name = path.rpartition(".")
    if package_of(module) != "lightning" and not is_allowed(module):
        raise ConfigError(
            f"{file}: the run had the callback {path}, and code from outside longseq is imported "
            f"only where it is named: {OPTION} {module}, or {way_out}"
        )
    try:
        cls = getattr(importlib.import_module(module), name)
        parameters = inspect.signature(cls).parameters
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ConfigError(f"{file}: the callback {path} is not there: {error}: {way_out}") from None
    arguments = dict(entry.get("init_args") or {})
    arguments = {key: value for key, value in arguments.items() if value is not None}
    for key, value in arguments.items():
        if isinstance(value, str) and (Path(value).is_absolute() or ".." in Path(value).parts):
            raise ConfigError(
                f"{file}: the callback {path} had {key} {value!r}, a place outside the run's "
                f"folder: {way_out}"
            )
        kind = str(parameters[key].annotation) if key in parameters else "Callable"
        if not _is_plain(value, kind):
            raise ConfigError(
                f"{file}: the callback {path} had {key} {value!r}, which may stand for code: "
                f"{way_out}"
            )
    return {"class_path": path, "init_args": arguments}


def _is_plain(value: Any, kind: str) -> bool:
    """Returns whether a value cannot name code that the parser would import: a text is one where a
    text is wanted and no function is, or where it has no dot.

    Args:
        value: of an argument.
        kind: the argument's annotation.
    """
    if isinstance(value, str):
        return "Callable" not in kind and (bool(re.search(r"\bstr\b", kind)) or "." not in value)
    inside = kind if "Callable" in kind else ""
    if isinstance(value, dict):
        keys = all(isinstance(one, (str, int)) and one != "class_path" for one in value)
        return keys and all(_is_plain(one, inside) for one in value.values())
    if isinstance(value, list):
        return all(_is_plain(one, inside) for one in value)
    return value is None or isinstance(value, (bool, int, float))


def output_folder(argv: Sequence[str], configs: Sequence[str]) -> str | None:
    """Returns ``trainer.default_root_dir`` as the arguments, or else the last configuration, have
    it."""
    found = None
    for content in contents(configs):
        trainer = content.get("trainer")
        if isinstance(trainer, dict) and isinstance(trainer.get("default_root_dir"), str):
            found = trainer["default_root_dir"]
    for _, _, value in flag_values(argv, "--trainer.default_root_dir"):
        found = value
    return found


def named_sections(argv: Sequence[str], configs: Sequence[str]) -> set[str]:
    """Returns those of "model" and "data" whose class the arguments or configurations name.

    Args:
        argv: arguments.
        configs: configuration files.
    """
    found = {flag.removeprefix("--") for _, flag, _ in flag_values(argv, "--model", "--data")}
    for content in contents(configs):
        for key in ("model", "data"):
            section = content.get(key)
            if isinstance(section, str) or (isinstance(section, dict) and "class_path" in section):
                found.add(key)
    return found


def configured(configs: Sequence[str], section: str) -> dict[str, Any]:
    """Returns the ``class_path`` and ``init_args`` of the model or the data; later configurations
    win.

    Args:
        configs: files.
        section: "model" or "data".
    """
    found: dict[str, Any] = {"class_path": None, "init_args": {}}
    for content in contents(configs):
        part = content.get(section)
        if isinstance(part, str):
            found["class_path"] = part
        elif isinstance(part, dict):
            found["class_path"] = part.get("class_path") or found["class_path"]
            init = part.get("init_args")
            found["init_args"] |= init if isinstance(init, dict) else {}
    return found
