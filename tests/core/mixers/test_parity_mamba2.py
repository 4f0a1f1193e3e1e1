"""Mamba-2 against published code on a CPU: state-spaces/mamba's references and transformers, live
and frozen.

The live tests run where LONGSEQ_UPSTREAM_MAMBA names a checkout of state-spaces/mamba, with einops
and triton importable, and where transformers is installed; run as a program there, this file writes
the frozen numbers.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from longseq.core.mixers import create_mixer
from longseq.core.ops.ssd import ssd
from parity import differences, fill, gradients, waves

FIXTURE = Path(__file__).parent / "fixtures" / "mamba2.npz"
CHECKOUT = os.environ.get("LONGSEQ_UPSTREAM_MAMBA")
needs_checkout = pytest.mark.skipif(
    CHECKOUT is None, reason="LONGSEQ_UPSTREAM_MAMBA names no checkout of state-spaces/mamba"
)
needs_transformers = pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None,
    reason="transformers is not installed (pip install transformers)",
)
# Sums of some hundred terms in another order; upstream's layers compute in float32 whatever they
# are given.
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


def upstream(module: str) -> Any:
    assert CHECKOUT is not None
    if CHECKOUT not in sys.path:
        sys.path.insert(0, CHECKOUT)
    return importlib.import_module(module)


@needs_checkout
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_operator_equals_ssd_minimal(dtype: torch.dtype) -> None:
    minimal = upstream("mamba_ssm.modules.ssd_minimal").ssd_minimal_discrete
    torch.manual_seed(0)
    x, B, C = (torch.randn(2, 64, 4, n, dtype=dtype).requires_grad_() for n in (6, 5, 5))
    dt = (torch.randn(2, 64, 4, dtype=dtype) - 2).exp().requires_grad_()
    A = (-torch.rand(4, dtype=dtype) - 0.2).requires_grad_()
    start = torch.randn(2, 4, 6, 5, dtype=dtype).requires_grad_()
    leaves = {"x": x, "dt": dt, "A": A, "B": B, "C": C, "start": start}

    y, state = ssd(x, dt, A, B, C, initial_states=start)
    their_y, their_state = minimal(
        x * dt[..., None], A * dt, B, C, 16, initial_states=start[:, None]
    )
    found = differences(
        {"state": state, **gradients(y, leaves)},
        {"state": their_state, **gradients(their_y, leaves)},
    )
    print({key: f"{value:.1e}" for key, value in found.items()})
    assert max(found.values()) <= TOLERANCE[dtype], found


def their_layer(weights: dict[str, Tensor], x: Tensor, **options: Any) -> Tensor:
    """The published reference of the fused layer; its CUDA parts give way to its own torch
    references."""
    combined = upstream("mamba_ssm.ops.triton.ssd_combined")
    scan = upstream("mamba_ssm.ops.selective_scan_interface")
    norm = upstream("mamba_ssm.ops.triton.layernorm_gated")
    n_groups, width = options["ngroups"], weights["norm.weight"].shape[0]

    def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> Tensor:
        padded = nn.functional.pad(x, (weight.shape[1] - 1, 0))
        return nn.functional.silu(
            nn.functional.conv1d(padded, weight[:, None], bias, groups=x.shape[1])
        )

    def normalise(
        y: Tensor, weight: Tensor, bias: None, z: Tensor, eps: float, norm_before_gate: bool
    ) -> Tensor:
        return norm.rms_norm_ref(y, weight, bias, z, eps, width // n_groups, norm_before_gate)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(combined, "causal_conv1d_fn", convolve)
        patch.setattr(combined, "rmsnorm_fn", normalise)
        patch.setattr(scan, "selective_scan_fn", scan.selective_scan_ref)
        return combined.mamba_split_conv1d_scan_ref(
            nn.functional.linear(x, weights["in_proj.weight"]),
            weights["conv1d.weight"][:, 0],
            weights["conv1d.bias"],
            weights["dt_bias"],
            -weights["A_log"].exp(),
            weights["D"],
            chunk_size=16,
            rmsnorm_weight=weights["norm.weight"],
            rmsnorm_eps=1e-5,
            outproj_weight=weights["out_proj.weight"],
            **options,
        )


@needs_checkout
@pytest.mark.parametrize(
    "options",
    [
        {"ngroups": 1, "norm_before_gate": False},
        {"ngroups": 2, "norm_before_gate": True, "dt_limit": (0.3, 0.8)},
    ],
)
def test_layer_equals_the_published_reference(options: dict[str, Any]) -> None:
    ours = create_mixer("mamba2", 12, d_state=5, headdim=6, **options)
    fill(ours)
    x = waves(2, 37, 12).float().requires_grad_()
    leaves = {"x": x, **dict(ours.named_parameters())}
    theirs = their_layer(dict(ours.named_parameters()), x, headdim=6, **options)
    found = differences(gradients(ours(x)[0], leaves), gradients(theirs, leaves))
    print({key: f"{value:.1e}" for key, value in found.items()})
    assert max(found.values()) <= TOLERANCE[torch.float32], found


def transformers_layer(d_model: int, n_groups: int) -> nn.Module:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "mamba_ssm", None)  # its kernels would be taken, GPU or not
        module: Any = importlib.import_module("transformers.models.mamba2.modeling_mamba2")
    config = importlib.import_module("transformers").Mamba2Config(
        hidden_size=d_model,
        num_heads=4,
        head_dim=d_model // 2,
        state_size=5,
        n_groups=n_groups,
        chunk_size=16,
    )
    layer = module.Mamba2Mixer(config, 0)
    fill(layer)
    return layer


@needs_transformers
@pytest.mark.parametrize("n_groups", [1, 2])
def test_layer_equals_transformers(n_groups: int) -> None:
    theirs = transformers_layer(12, n_groups)
    ours = create_mixer("mamba2", 12, d_state=5, headdim=6, ngroups=n_groups)
    ours.load_state_dict(theirs.state_dict())
    x = waves(2, 37, 12).float().requires_grad_()
    found = differences(
        gradients(ours(x)[0], {"x": x, **dict(ours.named_parameters())}),
        gradients(theirs(x), {"x": x, **dict(theirs.named_parameters())}),
    )
    print({key: f"{value:.1e}" for key, value in found.items()})
    assert max(found.values()) <= TOLERANCE[torch.float32], found


def frozen_case() -> tuple[nn.Module, Tensor]:
    """The layer and the input of the frozen numbers, float32."""
    ours = create_mixer("mamba2", 8, d_state=5, headdim=4)
    fill(ours)
    return ours, waves(2, 19, 8).float()


def test_equals_frozen_upstream() -> None:
    frozen = {key: torch.from_numpy(value) for key, value in np.load(FIXTURE).items()}
    ours, x = frozen_case()
    x.requires_grad_()
    found = differences(gradients(ours(x)[0], {"x": x, **dict(ours.named_parameters())}), frozen)
    assert max(found.values()) <= TOLERANCE[torch.float32], found


def write_fixture() -> None:
    """Writes output and gradients of the transformers layer for the frozen weights and input."""
    theirs = transformers_layer(8, 1)
    ours, x = frozen_case()
    theirs.load_state_dict(ours.state_dict())
    x.requires_grad_()
    values = gradients(theirs(x), {"x": x, **dict(theirs.named_parameters())})
    np.savez_compressed(FIXTURE, **{key: value.numpy() for key, value in values.items()})


if __name__ == "__main__":
    write_fixture()
