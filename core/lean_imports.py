"""Spares every command an import that torchmetrics begins with and nothing here uses: scipy.signal,
60 MB and a second of processor time."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

_NAME = "scipy.signal"


class _Later(ModuleType):
    """Stands in for scipy.signal while torchmetrics is loaded, which looks for ``hamming`` there;
    whoever asks for more has the module itself."""

    hamming = None

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if sys.modules.get(_NAME) is self:
            del sys.modules[_NAME]
        return getattr(importlib.import_module(_NAME), name)


class _Finder(MetaPathFinder):
    """Finds torchmetrics as it is, and loads it beside the stand-in; and scipy.signal, which then
    gets what torchmetrics would have given it."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Returns the spec of the two modules; None for others."""
        if fullname not in ("torchmetrics", _NAME):
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        load = getattr(spec and spec.loader, "exec_module", None)
        if spec is None or load is None:
            return None

        def exec_module(module: ModuleType) -> None:
            if fullname == _NAME:
                load(module)
                _complete(module)
                return
            with _standing_in():
                load(module)

        # On the loader that was found, so that whoever asks it for source or data has them.
        setattr(spec.loader, "exec_module", exec_module)  # noqa: B010
        return spec


@contextmanager
def _standing_in() -> Iterator[None]:
    if _NAME in sys.modules or importlib.util.find_spec("scipy") is None:
        yield
        return
    stand_in = sys.modules[_NAME] = _Later(_NAME)
    try:
        yield
    finally:
        if sys.modules.get(_NAME) is stand_in:
            del sys.modules[_NAME]
        scipy = vars(sys.modules["scipy"]) if "scipy" in sys.modules else {}
        if scipy.get("signal") is stand_in:
            del scipy["signal"]


def _complete(module: ModuleType) -> None:
    # What torchmetrics does for SRMRpy, which knows the window by its old name.
    windows = getattr(module, "windows", None)
    if "torchmetrics" in sys.modules and not hasattr(module, "hamming") and windows is not None:
        setattr(module, "hamming", windows.hamming)  # noqa: B010


def install() -> None:
    """Installs the import hook, once; it does nothing where torchmetrics is loaded already."""
    if not any(isinstance(one, _Finder) for one in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
