"""Scans that read a map as it lies against those that lay their sequences out first."""

from __future__ import annotations

import pytest
import torch

from longseq.vision.models.scan2d import CROSS_SCAN
from longseq.vision.models.vim import BidirectionalMamba
from longseq.vision.models.vmamba import SS2D


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (7, 2), (8, 8)])
@pytest.mark.parametrize("orders", [CROSS_SCAN, ("column_reversed",), ("raster", "column")])
def test_the_four_directions_of_a_map(size: tuple[int, int], orders: tuple[str, ...]) -> None:
    torch.manual_seed(0)
    op = SS2D(24, d_state=2, orders=orders).double()
    x = torch.randn(2, *size, 24, dtype=torch.float64, requires_grad=True)
    there, moved = op._in_place(x), op._by_lane(x)
    torch.testing.assert_close(there, moved, rtol=1e-11, atol=1e-12)
    weights = torch.randn_like(there)
    parameters = [x, op.x_proj_weight, op.dt_projs_weight, op.dt_projs_bias, op.A_logs, op.Ds]
    found = torch.autograd.grad(there, parameters, weights)
    expected = torch.autograd.grad(moved, parameters, weights)
    for one, other in zip(found, expected):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-11)


def test_other_orders_are_laid_out() -> None:
    op = SS2D(16, orders=("raster", "snake"))
    op.requires_grad_(False)
    x = torch.randn(1, 4, 6, 16)
    torch.testing.assert_close(op.scan(x), op.out_norm(op._by_lane(x)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("length", [1, 2, 37])
def test_both_ends_of_a_sequence(length: int) -> None:
    torch.manual_seed(0)
    mixer = BidirectionalMamba(12, d_state=3).double()
    x = torch.randn(2, length, 12, dtype=torch.float64)
    swapped = BidirectionalMamba(12, d_state=3).double()
    swapped.load_state_dict(mixer.state_dict())
    for name in ("conv1d", "x_proj", "dt_proj"):
        there, back = getattr(mixer, name), getattr(mixer, f"{name}_b")
        getattr(swapped, name).load_state_dict(back.state_dict())
        getattr(swapped, f"{name}_b").load_state_dict(there.state_dict())
    with torch.no_grad():
        swapped.A_log.copy_(mixer.A_b_log), swapped.A_b_log.copy_(mixer.A_log)
        swapped.D.copy_(mixer.D_b), swapped.D_b.copy_(mixer.D)
        # The mirrored sequence through the mixer with its directions exchanged.
        expected = swapped(x.flip(1)).flip(1)
        torch.testing.assert_close(mixer(x), expected, rtol=1e-11, atol=1e-13)
