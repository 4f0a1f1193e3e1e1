"""Arguments as (B, D, L) memory: read as they lie, equal bit for bit to the core's own layout."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from longseq.core.compat.mamba_ssm import selective_scan_fn
from longseq.core.ops import cpu_calls
from longseq.core.ops.selective_scan import selective_scan

# batch, channels, length, states, groups, dtype: full vectors and rests of channels and of
# positions.
SHAPES = [
    (2, 37, 77, 16, 1, torch.float32),
    (1, 64, 2100, 4, 2, torch.float32),
    (1, 50, 200, 5, 1, torch.float64),
    (2, 64, 333, 16, 1, torch.bfloat16),
    (2, 16, 65, 16, 1, torch.float16),
    (1, 3, 1, 2, 1, torch.float32),
    (1, 1, 9, 2, 1, torch.float32),
]


def arguments(shape: tuple[int, int, int, int, int, torch.dtype]) -> dict[str, Tensor]:
    """Arguments of the published function, time dense."""
    batch, width, length, states, groups, dtype = shape
    rows = {name: torch.randn(batch, width, length, dtype=dtype) for name in ("u", "delta", "z")}
    maps = {name: torch.randn(batch, groups, states, length, dtype=dtype) for name in ("B", "C")}
    vectors = {name: torch.randn(width) for name in ("D", "delta_bias")}
    return {**rows, **maps, **vectors, "A": -torch.rand(width, states)}


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{s[:5]} {str(s[5])[6:]}")
def test_time_dense_is_what_channels_dense_gives(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    theirs = {name: t.requires_grad_() for name, t in arguments(shape).items()}  # type: ignore[arg-type]

    def turned(t: Tensor) -> Tensor:
        order = {3: (0, 2, 1), 4: (0, 3, 1, 2)}.get(t.dim())
        return t if order is None else t.permute(order).contiguous()

    ours = {name: turned(t.detach()).requires_grad_() for name, t in theirs.items()}
    y, last = selective_scan_fn(**theirs, delta_softplus=True, return_last_state=True)
    expected, final = selective_scan(**ours, delta_softplus=True)
    assert (
        torch.equal(y, expected.transpose(1, 2)) and torch.equal(last, final) and y.is_contiguous()
    )
    dy = torch.randn_like(y)
    actual = torch.autograd.grad(y, list(theirs.values()), dy)
    wanted = torch.autograd.grad(expected, list(ours.values()), dy.transpose(1, 2).contiguous())
    for name, a, w in zip(theirs, actual, wanted):
        assert torch.equal(turned(a), w), name
        if name in ("u", "delta", "z"):
            # A leaf's gradient in the leaf's layout: nothing is copied.
            assert a.is_contiguous(), name


def test_no_copy_is_made_of_what_can_be_read() -> None:
    x = torch.randn(2, 6, 10)
    assert cpu_calls.strided(x.transpose(1, 2)).data_ptr() == x.data_ptr()
    assert cpu_calls.across(x.transpose(1, 2))[1:] == (0, 60, 1, 10)
    assert cpu_calls.across(x)[1:] == (0, 60, 10, 1)
    maps = torch.randn(2, 3, 4, 10).permute(0, 3, 1, 2)
    assert cpu_calls.strided(maps).data_ptr() == maps.data_ptr() and cpu_calls.across(maps)[4] == 10
    expanded = torch.randn(2, 1, 4, 10).permute(0, 3, 1, 2).expand(-1, -1, 3, -1)
    assert cpu_calls.strided(
        expanded
    ).is_contiguous()  # one map for all groups has no stride that fits
    # The stride of a dimension of size 1 says nothing: two groups of one state, as a transposed map
    # has them.
    single = torch.randn(2, 10, 1, 3).transpose(2, 3)
    assert single.stride(-1) == 3 and cpu_calls.across(single)[4] == 1
    odd = torch.randn(2, 6, 20)[..., ::2].transpose(1, 2)
    assert cpu_calls.strided(odd).is_contiguous()
