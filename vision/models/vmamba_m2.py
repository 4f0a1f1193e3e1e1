r"""VMamba with Mamba-2's scan ("m2" in the published code): heads of channels share a decay, with
many states.

SS2D:   x = gelu(conv(W_in x));  y = merge_k ssd_k(expand_k(x));  out = W_out norm(y)

where ssd_k is Mamba-2's recurrence (Dao and Gu 2024, arXiv 2405.21060), in direction k with R
heads, R being what the rank of the step sizes is in VMamba.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longseq.core.checks import check_positive
from longseq.core.errors import ConfigError
from longseq.core.ops.linear import linear
from longseq.core.ops.linear_maps import mapped
from longseq.core.ops.ssd import ssd
from longseq.vision.models.layers import before_scan
from longseq.vision.models.scan2d import CROSS_SCAN, scan2d
from longseq.vision.models.vmamba import VMamba


class HeadScan2D(nn.Module):
    """The 2-D scan by heads: (B, H, W, D) to the same shape, every position seeing the whole map.

    Parameters have the published names and shapes, K directions first: ``x_proj_weight`` (K, R+2N,
    D'), ``A_logs`` and ``dt_projs_bias`` (K, R), ``Ds`` (K, R, D'/R).

    Args:
        d_model: width D; R is a sixteenth of it, rounded up.
        d_state: states per channel N.
        ratio: inner width D' as a multiple of D.
        conv_size: side of the depthwise convolution.
        conv_bias: whether it has a bias.
        orders: the K scan orders.
    """

    ssm_parameters: ClassVar[tuple[str, ...]] = ("A_logs", "Ds", "dt_projs_bias")

    def __init__(
        self,
        d_model: int,
        d_state: int = 64,
        ratio: float = 1.0,
        conv_size: int = 3,
        conv_bias: bool = False,
        orders: Sequence[str] = CROSS_SCAN,
    ) -> None:
        super().__init__()
        inner, self.in_proj, conv = before_scan(d_model, ratio, conv_size, conv_bias)
        heads, lanes = math.ceil(d_model / 16), len(orders)
        if inner % heads:
            raise ConfigError(f"{heads} heads do not divide an inner width of {inner}")
        self.d_state, self.heads = check_positive("d_state", d_state), heads
        self.orders, self.lanes = tuple(orders), lanes
        # The published names count what turns channels to the front and back.
        self.conv2d = nn.Sequential(nn.Identity(), conv, nn.Identity())
        self.x_proj_weight = nn.Parameter(torch.empty(lanes, heads + 2 * d_state, inner))
        nn.init.uniform_(self.x_proj_weight, -(inner**-0.5), inner**-0.5)
        self.Ds = nn.Parameter(torch.ones(lanes, heads, inner // heads))
        self.A_logs = nn.Parameter(torch.zeros(lanes, heads))
        self.dt_projs_bias = nn.Parameter(0.1 * torch.rand(lanes, heads))
        self.out_norm = nn.LayerNorm(inner)
        self.out_proj = nn.Linear(inner, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, H, W, D)."""
        x = self.conv2d(self.in_proj(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return mapped(self.out_proj, self.out_norm(self.scan(F.gelu(x))))

    def scan(self, x: Tensor) -> Tensor:
        """Returns the sum of the scans over a map, (B, H, W, D') to the same shape."""
        batch, height, width, inner = x.shape
        rows, lanes = x.reshape(batch, height * width, inner), self.lanes
        path = scan2d(self.orders, height, width)
        # A projection of each position commutes with their order: project once for all lanes, then
        # reorder.
        small = linear(rows, self.x_proj_weight.flatten(0, 1)).unflatten(2, (lanes, -1))
        steps, B, C = path.reorder(small).split([self.heads, self.d_state, self.d_state], dim=-1)
        logs = self.A_logs if self.A_logs.dtype == torch.float64 else self.A_logs.float()
        y, _ = ssd(
            path.expand(rows).unflatten(3, (self.heads, -1)).flatten(2, 3),
            steps.flatten(2),
            -torch.exp(logs).flatten(),
            B,
            C,
            D=self.Ds.flatten(0, 1),
            dt_bias=self.dt_projs_bias.flatten(),
            dt_softplus=True,
        )
        return path.merge(y.flatten(2).unflatten(2, (lanes, -1))).view(x.shape)


class VMambaM2(VMamba):
    """VMamba whose scans are Mamba-2's; arguments as ``VMamba``, with 64 states per channel.

    Args:
        num_classes: classes of the head; 0 for none.
        in_chans: channels of the images.
        dims: width of every stage.
        depths: blocks of every stage.
        d_state: states per channel.
        **kwargs: further arguments of ``VMamba``.
    """

    scan_type = HeadScan2D

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        dims: Sequence[int] = (96, 192, 384, 768),
        depths: Sequence[int] = (2, 2, 4, 2),
        d_state: int = 64,
        **kwargs: object,
    ) -> None:
        super().__init__(num_classes, in_chans, dims, depths, d_state, **kwargs)  # type: ignore[arg-type]
