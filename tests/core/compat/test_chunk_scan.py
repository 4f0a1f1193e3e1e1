"""``mamba_chunk_scan_combined`` against the recurrence written out."""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor
from torch.nn.functional import silu, softplus

from longseq.core.compat import mamba_ssm as compat
from longseq.core.errors import ArgumentError

MAMBA = os.environ.get("LONGSEQ_UPSTREAM_MAMBA")
F64 = torch.float64
LENGTH, WIDTH, STATES, BATCH = 19, 6, 4, 2
LAYOUTS = ["constant", "shared", "grouped"]


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = F64) -> Tensor:
    return torch.randn(
        *shape, generator=torch.Generator().manual_seed(seed + sum(shape)), dtype=dtype
    )


def close(
    actual: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-12
) -> float:
    """Returns the largest difference, relative to each tensor's largest value."""
    assert actual.keys() == expected.keys()
    largest = 0.0
    for key, value in expected.items():
        error = ((actual[key] - value).abs().max() / value.abs().max().clamp(min=1e-30)).item()
        assert error <= tolerance, f"{key}: {error:.2e}"
        largest = max(largest, error)
    return largest


def ssd_oracle(i: dict[str, Tensor], resets: Tensor, low: float) -> tuple[Tensor, list[Tensor]]:
    dt = softplus(i["dt"] + i["dt_bias"]).clamp(min=low)
    h, outputs, states = i["initial_states"], [], []
    shared = i["x"].shape[2] // i["B"].shape[2]
    B, C = (i[k].repeat_interleave(shared, 2) for k in ("B", "C"))
    for t in range(i["x"].shape[1]):
        h = torch.where(resets[:, t, None, None, None], torch.zeros_like(h), h)
        h = torch.exp(dt[:, t] * i["A"])[..., None, None] * h
        h = h + (dt[:, t, :, None] * i["x"][:, t]).unsqueeze(-1) * B[:, t].unsqueeze(2)
        outputs.append((h * C[:, t].unsqueeze(2)).sum(-1) + i["D"][:, None] * i["x"][:, t])
        states.append(h)
    return torch.stack(outputs, 1) * silu(i["z"]), states


@pytest.mark.parametrize("first", [0, 3])
def test_mamba_chunk_scan_combined(first: int) -> None:
    length, heads, width = 21, 4, 3
    i = {
        "x": normal(1, length, heads, width),
        "dt": normal(1, length, heads),
        "A": -normal(heads).exp(),
        "B": normal(1, length, 2, STATES),
        "C": normal(1, length, 2, STATES, seed=1),
        "D": normal(heads),
        "z": normal(1, length, heads, width, seed=2),
        "dt_bias": normal(heads, seed=1),
        "initial_states": normal(1, heads, width, STATES),
    }
    bounds = [0, 9, 10, 21]
    seq_idx = torch.tensor([[first] * 9 + [5] + [6] * 11], dtype=torch.int32)
    resets = torch.zeros(1, length, dtype=torch.bool)
    resets[:, [9, 10] if first == 0 else [0, 9, 10]] = True  # the initial state is sequence 0's
    y, states = ssd_oracle(i, resets, 0.1)
    options = {
        "chunk_size": 8,
        "seq_idx": seq_idx,
        "dt_softplus": True,
        "dt_limit": (0.1, float("inf")),
    }
    out = compat.mamba_chunk_scan_combined(**i, **options)
    close({"y": out}, {"y": y})
    out, final = compat.mamba_chunk_scan_combined(**i, **options, return_final_states=True)
    close({"y": out, "final": final}, {"y": y, "final": states[-1]})
    more = {
        "cu_seqlens": torch.tensor(bounds),
        "return_varlen_states": True,
        "state_dtype": torch.float32,
    }
    out, final, varlen = compat.mamba_chunk_scan_combined(
        **i, **options, **more, return_final_states=True
    )
    if first == 0:
        close({"varlen": varlen}, {"varlen": torch.cat([states[t - 1] for t in bounds[1:]])})
    assert len(compat.mamba_chunk_scan_combined(**i, **options, **more)) == 2
    with pytest.raises(ArgumentError, match="needs cu_seqlens"):
        compat.mamba_chunk_scan_combined(**i, **options, return_varlen_states=True)
