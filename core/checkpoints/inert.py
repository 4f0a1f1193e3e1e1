"""Files of weights that also hold objects of their makers' classes: read, with those left inert.

Training scripts save their arguments (``argparse.Namespace``, ``yacs.CfgNode``) beside the weights.
Here a pickle may call the few functions that rebuild tensors, and nothing else: any other name in
it becomes a class without behaviour, so that what the file asks to run does not exist.
"""

from __future__ import annotations

import collections
import pickle
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import IO, Any, cast

import torch

_TORCH_FUNCTIONS = (
    "_rebuild_tensor",
    "_rebuild_tensor_v2",
    "_rebuild_tensor_v3",
    "_rebuild_parameter",
)


class Inert:
    """Stands in for an object of a class that is not read; it takes whatever it is given."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Inert:
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Ignores its arguments."""

    def __setstate__(self, state: Any) -> None:
        """Ignores a state."""

    def __setitem__(self, key: Any, value: Any) -> None:
        """Ignores an item, as of a dict's subclass."""

    def append(self, value: Any) -> None:
        """Ignores an item, as of a list's subclass."""

    def extend(self, values: Any) -> None:
        """Ignores items."""

    def add(self, value: Any) -> None:
        """Ignores an item, as of a set's subclass."""

    def __hash__(self) -> int:
        return id(self)


def _allowed() -> dict[tuple[str, str], Any]:
    """Returns what a pickle may name, and gets."""
    found: dict[tuple[str, str], Any] = {
        ("collections", "OrderedDict"): collections.OrderedDict,
        ("collections", "defaultdict"): Inert,
        ("builtins", "set"): set,
        ("__builtin__", "set"): set,
        ("torch", "Size"): torch.Size,
        ("torch", "device"): torch.device,
        ("torch.nn.parameter", "Parameter"): torch.nn.Parameter,
    }
    for name in _TORCH_FUNCTIONS:
        found["torch._utils", name] = getattr(torch._utils, name)
    for name, value in vars(torch).items():
        if isinstance(value, torch.dtype) or (isinstance(value, type) and name.endswith("Storage")):
            found["torch", name] = value
    return found


class _Unpickler(pickle.Unpickler):
    """Finds what is allowed, and a class without behaviour for everything else."""

    def find_class(self, module: str, name: str) -> Any:
        return _allowed().get((module, name), Inert)


def _load(stream: IO[bytes], **kwargs: Any) -> Any:
    return _Unpickler(stream, **kwargs).load()


def read_inert(path: str | Path) -> Any:
    """Returns what ``torch.save`` wrote, on the CPU, with unknown objects inert.

    Args:
        path: the file.

    Raises:
        Exception: whatever reading a damaged file raises.
    """
    # torch.load takes the two names from the module that it is told to unpickle with.
    reader = cast(ModuleType, SimpleNamespace(__name__="inert", Unpickler=_Unpickler, load=_load))
    return torch.load(path, map_location="cpu", pickle_module=reader, weights_only=False)
