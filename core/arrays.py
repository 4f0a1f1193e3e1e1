"""Weights in safetensors as NumPy arrays: for what has to start quickly and stay small, without
torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from longseq.core.errors import ConfigError, DataError
from longseq.core.files import atomic_path, require_file

_PARTS = ("hyper_parameters", "extra_state", "aliases")
_KNOWN = ("F64", "F32", "F16")


def read_parameters(path: str | Path) -> dict[str, Any]:
    """Returns the hyper-parameters of a safetensors file alone, empty if it has none.

    Args:
        path: file written by ``write_arrays`` or ``core.checkpoints.save_weights``.

    Raises:
        DataError: if the file is missing, empty, truncated or not safetensors.
    """
    return _read(path, False)[1]


def read_arrays(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Reads a safetensors file.

    Args:
        path: file written by ``write_arrays`` or ``core.checkpoints.save_weights``.

    Returns:
        Name → array, of 16 to 64 bits, and the hyper-parameters (empty if the file has none).

    Raises:
        DataError: if the file is missing, empty, truncated, not safetensors, or holds anything but
            floating-point numbers of those widths.
    """
    return _read(path, True)


def _read(path: str | Path, whole: bool) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    from safetensors import SafetensorError, safe_open

    file = require_file(path, "safetensors file")
    arrays: dict[str, np.ndarray] = {}
    try:
        with safe_open(file, framework="np") as stream:
            metadata = stream.metadata() or {}
            for name in stream.keys() if whole else ():
                kind = stream.get_slice(name).get_dtype()
                if kind not in _KNOWN:
                    hint = "convert it to float32"
                    raise DataError(f"{name} is of {kind} numbers", path=file, hint=hint)
                arrays[name] = stream.get_tensor(name)
        parts = parts_of(metadata, file)
    except DataError:
        raise
    except (SafetensorError, ValueError, KeyError, OSError, RecursionError) as error:
        raise DataError(
            "is not a safetensors file, or is truncated or damaged", path=file
        ) from error
    if whole:
        give_aliases(arrays, parts["aliases"], file)
    return arrays, parts["hyper_parameters"]


def parts_of(metadata: Mapping[str, str], file: Path) -> dict[str, dict[str, Any]]:
    """Returns what the metadata of a safetensors file hold beside its tensors: hyper-parameters,
    extra state and aliases.

    Args:
        metadata: of the file.
        file: its path, for the message.

    Raises:
        DataError: if one is no mapping.
        ValueError: if one is no JSON.
    """
    parts = {key: json.loads(metadata.get(key, "{}")) for key in _PARTS}
    for key, value in parts.items():
        if not isinstance(value, dict):
            message = f"its {key} are no names with values, but {type(value).__name__}"
            raise DataError(message, path=file)
    return parts


def give_aliases(values: dict[str, Any], aliases: Mapping[str, Any], file: Path) -> None:
    """Adds the second names of values that are stored once.

    Args:
        values: by name; aliases are added.
        aliases: second name → first name.
        file: that they came from, for the message.

    Raises:
        DataError: naming an alias of nothing.
    """
    for name, source in aliases.items():
        if not isinstance(source, str) or source not in values:
            raise DataError(f"its alias {name} is of no tensor: {source!r:.40}", path=file)
        values[name] = values[source]


def write_arrays(
    path: str | Path, arrays: Mapping[str, np.ndarray], hyper_parameters: Mapping[str, Any]
) -> None:
    """Writes arrays as safetensors, whole or not at all, as ``core.checkpoints.save_weights`` does.

    Args:
        path: file to write.
        arrays: by name.
        hyper_parameters: JSON-able; stored in the file's metadata.

    Raises:
        ConfigError: if the hyper-parameters are not JSON-able.
    """
    from safetensors.numpy import save_file

    try:
        known = json.dumps(dict(hyper_parameters))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"hyper-parameters must be JSON-able: {error}") from error
    metadata = {"format": "pt", "hyper_parameters": known, "aliases": "{}", "extra_state": "{}"}
    with atomic_path(path) as temporary:
        save_file({k: np.ascontiguousarray(v) for k, v in arrays.items()}, temporary, metadata)


def check_arrays(
    shapes: Mapping[str, tuple[int, ...]],
    arrays: Mapping[str, np.ndarray],
    kind: str,
    path: str | Path | None = None,
) -> None:
    """Checks that arrays are a model's: exactly its names and shapes, and numbers.

    Args:
        shapes: of the model, by name.
        arrays: by name.
        kind: of the model, in words.
        path: file that they came from, for the message.

    Raises:
        DataError: naming the first few that are missing, unexpected, of another shape or not
            numbers.
    """
    missing = [name for name in shapes if name not in arrays]
    extra = [name for name in arrays if name not in shapes]
    other = [
        f"{name} {arrays[name].shape} instead of {shape}"
        for name, shape in shapes.items()
        if name in arrays and arrays[name].shape != tuple(shape)
    ]
    kinds = (("missing", missing), ("unexpected", extra), ("of another shape", other))
    problems = [f"{what}: {first_few(names)}" for what, names in kinds if names]
    if problems:
        message = f"is a checkpoint of another model than {kind}; {'; '.join(problems)}"
        raise DataError(message, path=path)
    broken = [name for name, value in arrays.items() if np.isnan(value).any()]
    if broken:
        hint = "the training diverged: take an earlier checkpoint"
        raise DataError(
            f"holds weights that are not numbers: {first_few(broken)}", path=path, hint=hint
        )


def first_few(names: list[str], limit: int = 3) -> str:
    """Returns the first few names and how many more there are.

    Args:
        names: to show.
        limit: how many of them.
    """
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
