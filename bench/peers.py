"""Other implementations of the same operators and blocks: which are installed, and how they are
loaded."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import importlib.util
import io
import logging
import os
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

REQUIREMENTS = "bench/requirements.txt"
SOURCE = "LONGSEQ_MAMBA_SSM_SOURCE"


@dataclass(frozen=True)
class Peer:
    """One other implementation.

    Attributes:
        name: in tables.
        distribution: on the package index; of what a checkout needs, if it is one.
        modules: that must be importable.
        source: whether it comes from the checkout that ``LONGSEQ_MAMBA_SSM_SOURCE`` names.
    """

    name: str
    distribution: str
    modules: tuple[str, ...]
    source: bool = False


@dataclass(frozen=True)
class Status:
    """Whether a peer is there.

    Attributes:
        available: or not.
        version: of the package, or the checkout's path.
        reason: why not, with what to do.
    """

    available: bool
    version: str = ""
    reason: str = ""


PEERS: dict[str, Peer] = {
    peer.name: peer
    for peer in (
        Peer("mambapy", "mambapy", ("mambapy.mamba", "mambapy.pscan")),
        Peer(
            "transformers",
            "transformers",
            (
                "transformers.models.mamba.modeling_mamba",
                "transformers.models.mamba2.modeling_mamba2",
            ),
        ),
        Peer("xlstm", "xlstm", ("xlstm.blocks.mlstm.layer", "xlstm.blocks.slstm.layer")),
        Peer("mlstm-kernels", "mlstm_kernels", ("mlstm_kernels.torch",)),
        Peer("fla", "flash-linear-attention", ("fla", "einops")),
        Peer("s5-pytorch", "s5-pytorch", ("s5", "s5.jax_compat")),
        Peer("mamba-ssm", "einops", ("einops",), source=True),
    )
}


def status(name: str) -> Status:
    """Returns whether a peer is there, without importing it.

    Args:
        name: a key of ``PEERS``.
    """
    peer = PEERS[name]
    missing = [module for module in peer.modules if _package(module.split(".")[0]) is None]
    hint = f"not installed: pip install -r {REQUIREMENTS}"
    if peer.source:
        folder = os.environ.get(SOURCE)
        if not folder:
            return Status(
                False, reason=f"its package needs CUDA to install: set {SOURCE} to a checkout of it"
            )
        for file in _FILES.values():
            if not (Path(folder) / file).is_file():
                return Status(False, reason=f"{SOURCE}={folder} has no {file}")
        if missing:
            return Status(False, reason=f"its reference code needs einops, {hint}")
        return Status(True, version=f"checkout {folder}")
    if missing:
        return Status(False, reason=hint)
    try:
        return Status(True, version=importlib.metadata.version(peer.distribution))
    except importlib.metadata.PackageNotFoundError:
        return Status(True, version="unknown")


@cache
def load(name: str) -> types.ModuleType:
    """Imports a peer's module, quietly.

    Args:
        name: dotted, or "mamba-ssm:selective_scan" or "mamba-ssm:ssd_minimal" for the checkout's
            files, or "fla:" and the name of an operator, for the file of its forms in torch.
    """
    # What they say at import (no CUDA, deprecations of torch.jit) is no news on a CPU.
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        warnings.simplefilter("ignore")
        before = logging.root.manager.disable
        logging.disable(logging.WARNING)
        stack.callback(logging.disable, before)
        if name.startswith("transformers"):
            os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        if name.startswith("mamba-ssm:"):
            return _from_checkout(name.partition(":")[2])
        if name.startswith("fla:"):
            return _from_fla(name.partition(":")[2])
        return importlib.import_module(name)


def load_all(peer: str) -> None:
    """Imports everything of a peer.

    Args:
        peer: a key of ``PEERS``.
    """
    if peer == "fla":  # the package itself wants a GPU; its forms in torch do not
        load("fla:gated_delta_rule")
        return
    for module in PEERS[peer].modules:
        load(module)


# Peers of the GPU's kernels: module → package on the index.
GPU_PACKAGES = {
    "mamba_ssm": "mamba-ssm",
    "fla": "flash-linear-attention",
    "mlstm_kernels": "mlstm-kernels",
}


def in_short(error: Exception) -> str:
    """Returns an error's first line, cut to fit a table."""
    lines = str(error).strip().splitlines()
    return lines[0][:90] if lines else type(error).__name__


def load_function(module: str, name: str) -> Callable[..., Any] | str:
    """Returns a function of a peer on the GPU, or why it is not there.

    Args:
        module: dotted.
        name: in the module.
    """
    package = module.split(".")[0]
    try:
        function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] == package:
            return f"not installed (pip install {GPU_PACKAGES[package]})"
        return f"does not load: it needs {error.name}"
    except Exception as error:  # noqa: BLE001 - whatever a peer does at import is a reason to go without it
        return f"does not load: {in_short(error)}"
    return function


_FILES = {
    "selective_scan": "mamba_ssm/ops/selective_scan_interface.py",
    "ssd_minimal": "mamba_ssm/modules/ssd_minimal.py",
}
# What the two files import from beside them and a CPU cannot have; the reference functions use none
# of it.
_STAND_INS: dict[str, tuple[str, ...]] = {
    "mamba_ssm": (),
    "mamba_ssm.utils": (),
    "mamba_ssm.utils.torch": ("custom_bwd", "custom_fwd"),
    "mamba_ssm.ops": (),
    "mamba_ssm.ops.triton": (),
    "mamba_ssm.ops.triton.layer_norm": ("_layer_norm_fwd",),
    "mamba_ssm.ops.triton.ssd_combined": ("mamba_chunk_scan_combined",),
    "causal_conv1d": ("causal_conv1d_fn",),
    "causal_conv1d.cpp_functions": (
        "causal_conv1d_fwd_function",
        "causal_conv1d_bwd_function",
        "causal_conv1d_update_function",
    ),
    "selective_scan_cuda": (),
}


@contextlib.contextmanager
def _stand_ins() -> Iterator[None]:
    """Puts empty modules in place for an import and takes them away again."""
    kept = {name: sys.modules.get(name) for name in _STAND_INS}
    for name, members in _STAND_INS.items():
        module = types.ModuleType(name)
        module.__path__ = []  # a package, so that its children can be imported
        for member in members:
            setattr(module, member, lambda function=None, **kwargs: function)
        sys.modules[name] = module
    try:
        yield
    finally:
        for name, before in kept.items():
            if before is None:
                sys.modules.pop(name, None)
            else:
                sys.modules[name] = before


def _from_checkout(part: str) -> types.ModuleType:
    """Loads one reference file of the checkout by itself."""
    with _stand_ins():
        return _from_file(part, Path(os.environ[SOURCE]) / _FILES[part])


def _package(name: str) -> ModuleSpec | None:
    """Returns where a package is, or None: a bare folder of its name on the path is none."""
    spec = importlib.util.find_spec(name)
    if spec is not None and spec.origin is None:
        known = importlib.metadata.packages_distributions()
        return spec if name in known else None
    return spec


def _from_fla(operator: str) -> types.ModuleType:
    """Loads an operator's forms in torch without the package around them."""
    package = _package("fla")
    if package is None or not package.submodule_search_locations:
        raise ModuleNotFoundError("fla is not installed", name="fla")
    folder = Path(next(iter(package.submodule_search_locations)))
    return _from_file(operator, folder / "ops" / operator / "naive.py")


def _from_file(name: str, path: Path) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(f"longseq_peer_{name}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
