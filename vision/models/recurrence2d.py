r"""A gated linear recurrence along several orders of a map: a convolution whose window is the map.

    v, f_1 … f_K = split(W x + b);   h_k[t] = σ(f_k[t]) h_k[t-1] + (1 - σ(f_k[t])) v[t]

along order k, and y = Σ_k h_k. The gates are those of minGRU (Feng et al. 2024, arXiv 2410.01201)
and HGRN (Qin et al. 2023, arXiv 2311.04823): they depend on the input alone, so that the recurrence
is a linear scan.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longseq.core.checks import check_positive
from longseq.core.ops.linear_scan import linear_scan
from longseq.core.ops.two_way_recurrence import two_way_recurrence
from longseq.vision.models.scan2d import along, back, scan_order

BOTH = ("raster", "raster_reversed")
"""The orders that one operator takes: the sequence is the map as it lies."""


def _scans(mixed: Tensor, orders: Sequence[str]) -> Tensor:
    """Returns the recurrences along orders of a map, (B, H, W, (1 + K) C) to (B, H, W, C)."""
    height, breadth, parts = mixed.shape[1], mixed.shape[2], 1 + len(orders)
    wide = mixed.to(torch.promote_types(mixed.dtype, torch.float32))
    wide = wide.unflatten(3, (parts, mixed.shape[3] // parts))
    value, keep = wide[:, :, :, :1], torch.sigmoid(wide[:, :, :, 1:])
    inputs = torch.addcmul(value, keep, value, value=-1)
    total: Tensor | None = None
    for decays, arrives, order in zip(keep.unbind(3), inputs.unbind(3), orders):
        states, _ = linear_scan(along(decays, order), along(arrives, order))
        one = back(states, order, height, breadth)
        total = one if total is None else total + one
    assert total is not None
    return total.to(mixed.dtype)


class GatedRecurrence2d(nn.Module):
    """The recurrence over a map: (B, C, H, W) to the same shape, every position seeing all others.

    Args:
        channels: C.
        orders: scan orders, see ``scan2d.list_orders``.
    """

    no_decay_parameters: ClassVar[tuple[str, ...]] = ("proj.bias",)

    def __init__(
        self, channels: int, orders: Sequence[str] = ("raster", "raster_reversed")
    ) -> None:
        super().__init__()
        self.channels, self.orders = check_positive("channels", channels), tuple(orders)
        for name in self.orders:
            scan_order(name, 1, 1)  # an unknown name fails here, not at the first batch
        self.proj = nn.Conv2d(channels, channels * (1 + len(self.orders)), 1)
        with torch.no_grad():
            # Channels begin with memories of 1.1 to 20 positions.
            gates = self.proj.bias.view(-1, channels)
            gates[0], gates[1:] = 0.0, torch.linspace(-2, 3, channels)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W)."""
        # As a linear map: a convolution of one pixel takes several times as long to train on a CPU.
        mixed = F.linear(x.permute(0, 2, 3, 1), self.proj.weight.flatten(1), self.proj.bias)
        if self.orders == BOTH:
            y = two_way_recurrence(mixed.flatten(1, 2)).unflatten(1, mixed.shape[1:3])
        else:
            y = _scans(mixed, self.orders)
        return y.permute(0, 3, 1, 2)
