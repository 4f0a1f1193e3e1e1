"""What a command that was stopped has written: fingerprints, optimiser steps, files."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any


def fingerprint(path: Path, weights: bool) -> str:
    """Returns a fingerprint of a file; empty if it is not there."""
    if not path.exists():
        return ""
    if not weights:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    import torch

    from longseq.core.checkpoints.safe import load_checkpoint

    content, digest = load_checkpoint(path), hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            digest.update(
                value.contiguous().view(torch.uint8).numpy().tobytes()
                if value.dim()
                else repr(value.item()).encode()
            )
        elif isinstance(value, dict):
            for key in sorted(value, key=str):
                digest.update(str(key).encode())
                add(value[key])
        elif isinstance(value, list | tuple):
            for one in value:
                add(one)
        else:
            digest.update(repr(value).encode())

    add([content["state_dict"], content["optimizer_states"], content["lr_schedulers"]])
    return digest.hexdigest()


def step_of(path: Path) -> int:
    """Returns the optimiser steps of a checkpoint; 0 without one."""
    from longseq.core.checkpoints.safe import load_checkpoint

    return int(load_checkpoint(path)["global_step"]) if path.exists() else 0


def files(folder: Path) -> set[str]:
    """Returns all files below a folder, but for TensorBoard's, whose names hold a time, and without
    the numbers of versions: what began a run again has made another one."""
    every = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return {re.sub(r"version_\d+", "version_*", name) for name in every if "events.out" not in name}


def newest(folder: Path, name: str) -> Path:
    """Returns a result below a folder.

    Args:
        folder: that the command worked in.
        name: of the file, with ``version_*`` for the newest version.
    """
    top, _, rest = name.partition("version_*/")
    if not rest:
        return folder / name
    versions = [*(folder / top).glob("version_*"), folder / top / "version_0"]
    return max(versions, key=lambda one: int(one.name.split("_")[1])) / rest
