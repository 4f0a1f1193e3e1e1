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
from torch import Tensor, nn

from longseq.core.checks import check_positive
from longseq.core.ops.linear_scan import linear_scan
from longseq.vision.models.scan2d import along, back, scan_order


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
        width, height, breadth = x.shape[1:]
        parts = self.proj(x).permute(0, 2, 3, 1).split(width, dim=3)
        wide = torch.promote_types(parts[0].dtype, torch.float32)
        value, total = parts[0].to(wide), torch.zeros((), dtype=wide, device=x.device)
        for gates, order in zip(parts[1:], self.orders):
            keep = torch.sigmoid(gates.to(wide))
            inputs = value * (1 - keep)
            states, _ = linear_scan(along(keep, order), along(inputs, order))
            total = total + back(states, order, height, breadth)
        return total.to(parts[0].dtype).permute(0, 3, 1, 2)
