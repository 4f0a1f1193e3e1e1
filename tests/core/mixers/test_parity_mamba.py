"""Mamba against state-spaces/mamba's own layer on a CPU, live and frozen.

The live test runs where LONGSEQ_UPSTREAM_MAMBA names a checkout of state-spaces/mamba and einops is
there; run as a program there, this file writes the frozen numbers.
"""

from __future__ import annotations

import importlib
import os
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from longseq.core.mixers import create_mixer
from parity import fill

FIXTURE = Path(__file__).parent / "fixtures" / "mamba.npz"
CHECKOUT = os.environ.get("LONGSEQ_UPSTREAM_MAMBA")
# Sums of some hundred float32 terms in another order.
TOLERANCE = 1e-5
SIZES = {"d_model": 12, "d_state": 5, "d_conv": 4, "expand": 2}


def upstream_layer() -> nn.Module:
    """The published module on its slow path, with the published reference in place of the CUDA
    scan."""
    assert CHECKOUT is not None
    # Their __init__ files import CUDA extensions.
    for name in ("", ".modules", ".ops", ".ops.triton"):
        package = types.ModuleType(f"mamba_ssm{name}")
        package.__path__ = [str(Path(CHECKOUT, "mamba_ssm", *name.split(".")[1:]))]
        sys.modules.setdefault(f"mamba_ssm{name}", package)
    scan: Any = importlib.import_module("mamba_ssm.ops.selective_scan_interface")
    module: Any = importlib.import_module("mamba_ssm.modules.mamba_simple")
    module.selective_scan_fn = scan.selective_scan_ref
    module.causal_conv1d_fn = None
    return module.Mamba(**SIZES, use_fast_path=False)


def evaluate(module: nn.Module, length: int) -> dict[str, Tensor]:
    """The output and all gradients of a weighted sum of it."""
    n = 2 * length * SIZES["d_model"]
    x = (
        torch.sin(0.9 * torch.arange(n, dtype=torch.float64) ** 1.1)
        .view(2, length, -1)
        .float()
        .requires_grad_()
    )
    y = module(x)
    y = y[0] if isinstance(y, tuple) else y
    weights = torch.linspace(-1, 1, y.numel()).view_as(y).cos()
    leaves = {"x": x, **dict(module.named_parameters())}
    grads = torch.autograd.grad((y * weights).sum(), [*leaves.values()])
    return {"y": y.detach(), **dict(zip(leaves, grads))}


def largest_difference(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    assert ours.keys() == theirs.keys()
    return max(
        ((ours[key] - value).abs().max() / value.abs().max()).item()
        for key, value in theirs.items()
    )


@pytest.mark.skipif(
    CHECKOUT is None, reason="LONGSEQ_UPSTREAM_MAMBA names no checkout of state-spaces/mamba"
)
@pytest.mark.parametrize("length", [1, 2, 33, 130])
def test_live(length: int) -> None:
    theirs, ours = upstream_layer(), create_mixer("mamba", **SIZES)
    fill(theirs)
    ours.load_state_dict(theirs.state_dict())  # strict: the layout is the published one
    difference = largest_difference(evaluate(ours, length), evaluate(theirs, length))
    print(f"mamba, L {length}: {difference:.1e}")
    assert difference <= TOLERANCE


def test_frozen() -> None:
    ours = create_mixer("mamba", **SIZES)
    fill(ours)
    with np.load(FIXTURE, allow_pickle=False) as file:
        theirs = {key: torch.from_numpy(file[key]) for key in file.files}
    assert largest_difference(evaluate(ours, 9), theirs) <= TOLERANCE


if __name__ == "__main__":
    layer = upstream_layer()
    fill(layer)
    np.savez_compressed(
        FIXTURE, **{key: value.numpy() for key, value in evaluate(layer, 9).items()}
    )
