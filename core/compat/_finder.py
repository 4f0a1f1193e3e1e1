"""How the published packages' names find the stand-ins: an import hook; imports no torch."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Iterable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.metadata import Distribution, DistributionFinder
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from longseq.core.errors import ConfigError

PREFIX: Final = "longseq.core.compat."
VARIABLE: Final = "LONGSEQ_COMPAT"
STAND_INS: Final = {
    "mamba_ssm": ("mamba-ssm", "2.3.2+longseq"),
    "causal_conv1d": ("causal-conv1d", "1.7.0+longseq"),
    "accelerated_scan": ("accelerated-scan", "0.3.1+longseq"),
    "selective_scan_cuda": None,
    "selective_scan_cuda_core": None,
    "selective_scan_cuda_oflex": None,
    "causal_conv1d_cuda": None,
}
"""Names that can be served: the distribution and version that a package says it is; None for the
compiled extensions, which have none of their own. The version's digits are those of the release
whose signatures are offered, so that comparisons with it come out right."""

_LACKING: Final = {
    "modules.mamba3": ": mamba-ssm's Mamba-3 is not offered; longseq's own is the mixer 'mamba3'",
    "triton.mamba3": ": mamba-ssm's Mamba-3 is not offered; longseq's own is the mixer 'mamba3'",
    "tilelang": ": TileLang kernels are not offered",
    "cute": ": CuTe kernels are not offered",
}
"""Parts of module names, and why there are no such modules."""


class _Alias(Loader):
    """Loads a stand-in under the published name: both names are one module."""

    def __init__(self, target: str) -> None:
        self.target = target

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        # The import system takes what lies here afterwards for the module.
        sys.modules[module.__name__] = importlib.import_module(self.target)


class _Metadata(Distribution):
    """What ``importlib.metadata`` says of a stand-in."""

    def __init__(self, package: str, name: str, version: str) -> None:
        self._files = {
            "METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
            "top_level.txt": package,
        }

    def read_text(self, filename: str) -> str | None:
        return self._files.get(filename)

    def locate_file(self, path: str | os.PathLike[str]) -> Any:
        return Path(__file__).parent / path


class StandIns(MetaPathFinder):
    """The import hook.

    Args:
        force: whether installed originals are shadowed.
    """

    def __init__(self, force: bool) -> None:
        self.force = force

    def serves(self, package: str) -> bool:
        """Returns whether a published top-level name is ours."""
        return package in STAND_INS and (self.force or original(package) is None)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Returns the spec of a stand-in; None for what is not ours.

        Raises:
            ModuleNotFoundError: for a module inside a stand-in that there is not.
        """
        package, *inner = fullname.split(".")
        if package not in STAND_INS:
            return None
        if inner:  # a module belongs to whichever package was loaded
            top = sys.modules.get(package)
            if top is None or not top.__name__.startswith(PREFIX):
                return None
        elif not self.serves(package):
            return None
        found = importlib.util.find_spec(PREFIX + fullname)
        if found is None:
            why = next((why for end, why in _LACKING.items() if f".{end}" in fullname), "")
            raise ModuleNotFoundError(
                f"longseq's stand-in for {package} has no module {fullname}{why}", name=fullname
            )
        packaged = found.submodule_search_locations is not None
        spec = ModuleSpec(fullname, _Alias(PREFIX + fullname), is_package=packaged)
        spec.origin = found.origin
        return spec

    def find_distributions(
        self, context: DistributionFinder.Context | None = None
    ) -> Iterable[Distribution]:
        """Yields the metadata of stand-ins, which libraries ask for their version."""
        name = None if context is None else context.name
        wanted = None if name is None else name.lower().replace("_", "-")
        for package, said in STAND_INS.items():
            if said is not None and wanted in (None, said[0]) and self.serves(package):
                yield _Metadata(package, *said)


def original(package: str) -> ModuleSpec | None:
    """Returns the spec of an installed original; a folder without code is none."""
    loaded = sys.modules.get(package)
    if loaded is not None and not loaded.__name__.startswith(PREFIX):
        return loaded.__spec__ or ModuleSpec(package, None)
    for finder in sys.meta_path:
        if isinstance(finder, StandIns) or not hasattr(finder, "find_spec"):
            continue
        spec = finder.find_spec(package, None, None)
        if spec is not None and spec.origin is not None:
            return spec
    return None


def install(force: bool = False) -> tuple[str, ...]:
    """Makes ``import mamba_ssm``, ``causal_conv1d``, ``selective_scan_cuda`` and the like find the
    stand-ins.

    Call it before importing what looks for them: libraries such as transformers remember at their
    own import what there was. Calling it again changes ``force`` only.

    Args:
        force: whether originals that are installed are shadowed too; those that were imported
            already are forgotten, but who holds their functions keeps them.

    Returns:
        The names that are now ours; an installed original's is missing unless forced.
    """
    uninstall()
    hook = StandIns(force)
    if force:
        _forget(lambda module: not module.__name__.startswith(PREFIX))
    sys.meta_path.insert(0, hook)
    importlib.invalidate_caches()
    return tuple(name for name in STAND_INS if hook.serves(name))


def uninstall() -> None:
    """Takes the stand-ins back: their names are as if ``install`` had not been called."""
    sys.meta_path[:] = [one for one in sys.meta_path if not isinstance(one, StandIns)]
    _forget(lambda module: module.__name__.startswith(PREFIX))


def _forget(which: Any) -> None:
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] in STAND_INS and module is not None and which(module):
            del sys.modules[name]


def install_by_environment() -> None:
    """Installs the stand-ins if ``LONGSEQ_COMPAT`` says so: 1, or force; nothing or 0 does nothing.

    Raises:
        ConfigError: for any other value.
    """
    value = os.environ.get(VARIABLE, "")
    if value not in ("", "0", "1", "force"):
        raise ConfigError(f"{VARIABLE} must be 0, 1 or force, got {value!r}")
    if value in ("1", "force"):
        install(force=value == "force")


def environment(force: bool = False) -> dict[str, str]:
    """Returns the variables by which processes that are started install the stand-ins themselves:
    ``LONGSEQ_COMPAT``, and a folder in front of ``PYTHONPATH`` whose ``sitecustomize`` reads it."""
    folder = str(Path(__file__).parent / "site")
    before = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p and p != folder]
    return {
        VARIABLE: "force" if force else "1",
        "PYTHONPATH": os.pathsep.join([folder, *before]),
    }
