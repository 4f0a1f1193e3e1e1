"""What a file of weights says of itself, checked once, before anything relies on it."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from longseq.core.errors import DataError
from longseq.core.files import ZIP_ERRORS

_SECTIONS = ("hyper_parameters", "datamodule_hyper_parameters", "facts", "loops", "callbacks")
COUNT = re.compile(r"(^|_)(layers?|depths?|blocks?|experts|heads|stages)$")


def check_records(file: Path) -> None:
    """Checks that the records of what ``torch.save`` wrote are whole: each as long as it lies in
    the file (none is packed, and a packed one may fill the memory), and of the sum that was written
    with it, which torch does not look at. A file that is no archive has no sums and passes.

    Args:
        file: to be read by torch.

    Raises:
        DataError: naming the record.
    """
    state = file.stat()
    _check_records(file, state.st_size, (state.st_mtime_ns, state.st_ctime_ns, state.st_ino))


@lru_cache(maxsize=8)  # a run reads one file several times
def _check_records(file: Path, size: int, version: tuple[int, ...]) -> None:
    with file.open("rb") as stream:
        if stream.read(2) != b"PK":
            return
    hint, name = "use an earlier checkpoint or copy the file again", ""
    try:
        with zipfile.ZipFile(file) as archive:
            records = archive.infolist()
            for one in records:
                if one.compress_type != zipfile.ZIP_STORED or one.file_size != one.compress_size:
                    message = f"its record {one.filename!r} is packed, which no checkpoint's is"
                    raise DataError(message, path=file, hint="re-save it with torch.save")
            if sum(one.file_size for one in records) > size:
                raise DataError("its records are longer than the file", path=file, hint=hint)
            for one in records:
                name = one.filename
                with archive.open(one) as record:
                    while record.read(1 << 20):
                        pass
    except DataError:
        raise
    except ZIP_ERRORS as error:
        if not name:
            message = "the checkpoint is truncated or damaged"
        else:
            message = f"its record {name!r} is damaged: not the bytes that were written"
        raise DataError(message, path=file, hint=hint) from error


def check_content(content: Mapping[str, Any], file: Path) -> None:
    """Checks the kinds of a checkpoint's parts.

    Args:
        content: with ``state_dict``.
        file: for messages.

    Raises:
        DataError: naming the first part that is of another kind.
    """
    for name in _SECTIONS:
        value = content.get(name)
        if value is None:
            continue
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            what = type(value).__name__
            raise DataError(f"its {name} are no names with values, but {what}", path=file)
    check_state(content["state_dict"], file)


def check_state(state: Mapping[Any, Any], file: Path) -> None:
    """Checks that weights are plain tensors by name.

    Args:
        state: name → tensor, or a module's extra state (plain values).
        file: for messages.

    Raises:
        DataError: naming the first that is none.
    """
    for name, value in state.items():
        if not isinstance(name, str):
            raise DataError(f"names a weight {name!r}, which is no text", path=file)
        if isinstance(value, Tensor):
            if value.layout is not torch.strided or value.is_meta or value.is_quantized:
                raise DataError(f"its weight {name} is no plain tensor", path=file)
        elif not name.endswith("_extra_state"):
            raise DataError(f"its weight {name} is no tensor, but {value!r:.40}", path=file)


def is_size(name: str) -> bool:
    """Returns whether an argument of this name is a number of layers, or a width."""
    return bool(COUNT.search(name)) or name.startswith(("d_", "n_")) or name.endswith("_dim")


def check_sizes(hyper: Mapping[str, Any], state: Mapping[str, Any], file: str | Path) -> None:
    """Checks that no size among a checkpoint's hyper-parameters is larger than its weights can be:
    a model of them would fill the memory, or never be done.

    Args:
        hyper: the hyper-parameters.
        state: the weights.
        file: for messages.

    Raises:
        DataError: naming the first.
    """
    tensors = [value for value in state.values() if isinstance(value, Tensor)]
    most, layers = sum(one.numel() for one in tensors), len(tensors)
    for name, value in hyper.items():
        for one in value if isinstance(value, (list, tuple)) else [value]:
            if not isinstance(one, int) or isinstance(one, bool):
                continue
            limit = layers if name in ("n_layers", "depth") else most
            if is_size(name) and one > max(limit, 1024 if limit is most else 16):
                message = f"its {name} is {one:,}, but it holds only {layers} tensors of {most:,}"
                raise DataError(f"{message} numbers in all", path=file)


def check_resumable(content: Mapping[str, Any], optimizers: int) -> None:
    """Checks that a training can go on exactly: with its optimisers, schedules and place.

    Args:
        content: of the checkpoint.
        optimizers: that the training has.

    Raises:
        DataError: naming what is missing.
    """
    wanted = {"optimizer_states": list, "lr_schedulers": list, "loops": Mapping}
    for name, kind in wanted.items():
        value = content.get(name)
        whole = isinstance(value, kind) and (kind is Mapping or len(value) == optimizers)
        if kind is Mapping:
            whole = whole and "fit_loop" in (value or {})
        elif whole:
            whole = all(isinstance(one, Mapping) for one in value or ())
        if name == "optimizer_states" and whole:
            whole = all({"state", "param_groups"} <= one.keys() for one in value or ())
        if not whole:
            hint = "--init_from starts a new training from its weights"
            raise DataError(f"the checkpoint's {name} are missing or damaged", hint=hint)
