r"""VMamba (Liu et al. 2024, arXiv 2401.10166): a four-stage pyramid of 2-D selective scans.

Block:  x ← x + SS2D(norm(x));  x ← x + MLP(norm(x))
SS2D:   x = silu(conv(W_in x));  y = merge_k selective_scan_k(expand_k(x));  out = W_out norm(y)

over the four directions of the cross-scan. Inside, everything is channels-last, (B, H, W, C), as in
the scan.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longseq.core.checks import check_positive
from longseq.core.errors import ConfigError
from longseq.core.ops.cross_scan import cross_scan
from longseq.core.ops.linear import linear
from longseq.core.ops.linear_maps import ANY_HOOKS, mapped, plain_map
from longseq.core.ops.selective_scan import selective_scan
from longseq.vision.models.layers import (
    DropPath,
    before_scan,
    depthwise,
    head,
    path_rates,
    step_size_bias,
    with_branch,
)
from longseq.vision.models.pyramid import ExactMLP, LayerNorm2d, Pyramid, check_stages
from longseq.vision.models.scan2d import CROSS_SCAN, along, back, scan2d, straight_ways
from longseq.vision.models.unfold import unfoldable, unfolded

BY_LANE = 1 << 19
"""Numbers in all directions' sequences of an image from which they are scanned one at a time."""


class LaneScan(nn.Module):
    """K selective scans side by side, every one with parameters of its own.

    Parameters have the published names and shapes, K directions first: ``x_proj_weight`` (K, R+2N,
    D'), ``dt_projs_weight`` (K, D', R), ``A_logs`` (K·D', N), ``Ds`` (K·D').
    """

    ssm_parameters: ClassVar[tuple[str, ...]] = ("A_logs", "Ds", "dt_projs_bias")

    def make_lanes(self, inner: int, lanes: int, d_state: int, dt_rank: int) -> None:
        """Makes the parameters.

        Args:
            inner: width D'.
            lanes: K.
            d_state: states per channel N.
            dt_rank: rank R of the step sizes' projection.
        """
        self.d_inner, self.lanes = inner, lanes
        self.d_state, self.dt_rank = check_positive("d_state", d_state), dt_rank
        self.x_proj_weight = nn.Parameter(torch.empty(lanes, dt_rank + 2 * d_state, inner))
        self.dt_projs_weight = nn.Parameter(torch.empty(lanes, inner, dt_rank))
        self.dt_projs_bias = nn.Parameter(step_size_bias((lanes, inner)))
        self.A_logs = nn.Parameter(
            torch.arange(1, d_state + 1).float().log().repeat(lanes * inner, 1)
        )
        self.Ds = nn.Parameter(torch.ones(lanes * inner))
        nn.init.uniform_(self.x_proj_weight, -(inner**-0.5), inner**-0.5)
        nn.init.uniform_(self.dt_projs_weight, -(dt_rank**-0.5), dt_rank**-0.5)

    def project(self, x: Tensor) -> Tensor:
        """Returns every lane's steps (before their second projection), B and C.

        Args:
            x: sequences (B, L, K, D').

        Returns:
            (B, L, K, R+2N).
        """
        return torch.einsum("blkd,ked->blke", x, self.x_proj_weight)

    def scan_lanes(self, x: Tensor, small: Tensor) -> Tensor:
        """Returns the K scans, (B, L, K, D').

        Args:
            x: sequences (B, L, K, D').
            small: steps, B and C of every position, (B, L, K, R+2N).
        """
        given = (self.dt_projs_weight, self.dt_projs_bias, self.A_logs, self.Ds)
        return scan_side_by_side(x, small, *given)


def scan_side_by_side(
    x: Tensor, small: Tensor, dt_weight: Tensor, dt_bias: Tensor, logs: Tensor, skips: Tensor
) -> Tensor:
    """Returns K selective scans at once, (B, L, K, D').

    Args:
        x: sequences (B, L, K, D').
        small: steps, B and C of every position, (B, L, K, R+2N).
        dt_weight: second projection of the steps (K, D', R).
        dt_bias: its bias (K, D').
        logs: of the decays (K·D', N).
        skips: (K·D').
    """
    batch, length, lanes, _ = x.shape
    rank, states = dt_weight.shape[2], logs.shape[1]
    dt, B, C = small.split([rank, states, states], dim=-1)
    # (K, B·L, D')
    delta = torch.matmul(dt.permute(2, 0, 1, 3).reshape(lanes, -1, rank), dt_weight.transpose(1, 2))
    delta = delta.view(lanes, batch, length, x.shape[3]).permute(1, 2, 0, 3).flatten(2)
    decay = -torch.exp(logs if logs.dtype == torch.float64 else logs.float())
    bias = dt_bias.flatten()
    y, _ = selective_scan(x.flatten(2), delta, decay, B, C, skips, None, bias, delta_softplus=True)
    return y.unflatten(2, (lanes, -1))


class SS2D(LaneScan):
    """The 2-D selective scan: (B, H, W, D) to the same shape, every position seeing the whole map.

    Args:
        d_model: width D.
        d_state: states per channel N.
        ratio: inner width D' as a multiple of D.
        conv_size: side of the depthwise convolution.
        conv_bias: whether it has a bias.
        orders: the K scan orders.
        gate: whether a second half of ``in_proj`` gates the scans' sum, y ⊙ silu(z).
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 1,
        ratio: float = 1.0,
        conv_size: int = 3,
        conv_bias: bool = False,
        orders: Sequence[str] = CROSS_SCAN,
        gate: bool = False,
    ) -> None:
        super().__init__()
        self.in_proj: nn.Module
        inner, self.in_proj, self.conv2d = before_scan(d_model, ratio, conv_size, conv_bias, gate)
        self.orders, self.gate = tuple(orders), gate
        self._straight = all(order in CROSS_SCAN for order in self.orders)
        self.make_lanes(inner, len(self.orders), d_state, math.ceil(d_model / 16))
        self.out_norm = nn.LayerNorm(inner)
        self.out_proj: nn.Module = nn.Linear(inner, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, H, W, D)."""
        x, z = mapped(self.in_proj, x), None
        if self.gate:
            x, z = x.split(self.d_inner, dim=-1)
        y = self.scan(depthwise(self.conv2d, x, silu=True))
        return mapped(self.out_proj, y if z is None else y * F.silu(z))

    def scan(self, x: Tensor) -> Tensor:
        """Returns the normalised sum of the scans over a map, (B, H, W, D') to the same shape."""
        batch, height, width, _ = x.shape
        lanes, length = self.lanes, height * width
        if x.device.type == "cpu" and self._straight and not torch.compiler.is_compiling():
            return self.out_norm(self._in_place(x))
        if length * lanes * self.d_inner >= BY_LANE:
            return self.out_norm(self._by_lane(x))
        x = x.reshape(batch, length, self.d_inner)
        scan = scan2d(self.orders, height, width)
        # A projection of each position commutes with their order: project once for all lanes, then
        # reorder.
        small = linear(x, self.x_proj_weight.flatten(0, 1)).unflatten(2, (lanes, -1))
        y = scan.merge(self.scan_lanes(scan.expand(x), scan.reorder(small)))
        return self.out_norm(y).view(batch, height, width, -1)

    def _in_place(self, x: Tensor) -> Tensor:
        """Returns the sum of the scans over a map (B, H, W, D') along rows and columns.

        Every direction reads the one map as it lies, and adds to the sum of those before it.
        """
        lanes = len(self.orders)
        rows = x.flatten(1, 2)
        small = linear(rows, self.x_proj_weight.flatten(0, 1)).unflatten(2, (lanes, -1))
        logs = self.A_logs if self.A_logs.dtype == torch.float64 else self.A_logs.float()
        total = cross_scan(
            rows,
            small,
            self.dt_projs_weight,
            self.dt_projs_bias,
            -torch.exp(logs).unflatten(0, (lanes, -1)),
            self.Ds.view(lanes, -1),
            straight_ways(self.orders, x.shape[1]),
        )
        return total.view(x.shape)

    def _by_lane(self, x: Tensor) -> Tensor:
        """Returns the sum of the scans over a map (B, H, W, D'), made one direction at a time.

        Rows and columns, forwards and backwards, are views or one copy, where all directions at
        once are gathers into memory of K times the map, new at every call.
        """
        _, height, width, inner = x.shape
        lanes, states = len(self.orders), self.d_state
        small = linear(x, self.x_proj_weight.flatten(0, 1)).unflatten(3, (lanes, -1))
        logs = self.A_logs if self.A_logs.dtype == torch.float64 else self.A_logs.float()
        decays, skips = -torch.exp(logs).unflatten(0, (lanes, inner)), self.Ds.view(lanes, inner)
        total: Tensor | None = None
        for k, order in enumerate(self.orders):
            sizes = [self.dt_rank, states, states]
            dt, B, C = along(small[:, :, :, k], order).split(sizes, dim=-1)
            y, _ = selective_scan(
                along(x, order),
                F.linear(dt, self.dt_projs_weight[k]),
                decays[k],
                B,
                C,
                skips[k],
                None,
                self.dt_projs_bias[k],
                delta_softplus=True,
            )
            y = back(y, order, height, width)
            total = y if total is None else total + y
        assert total is not None
        return total


class VSSBlock(nn.Module):
    """x + SS2D(norm(x)), then x + MLP(norm(x)); (B, H, W, D).

    Args:
        d_model: width D.
        drop_path: rate of stochastic depth.
        mlp_ratio: hidden width of the MLP as a multiple of D.
        op: the 2-D scan.
    """

    def __init__(self, d_model: int, drop_path: float, mlp_ratio: float, op: nn.Module) -> None:
        super().__init__()
        self.norm, self.norm2 = nn.LayerNorm(d_model), nn.LayerNorm(d_model)
        self.op = op
        self.mlp = ExactMLP(d_model, int(mlp_ratio * d_model))
        self.drop_path = DropPath(drop_path)
        for layer in (self.mlp.fc1, self.mlp.fc2):
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, H, W, D)."""
        x = with_branch(x, (self.norm, self.op), self.drop_path)
        return with_branch(x, (self.norm2, self.mlp), self.drop_path)


class Stage(nn.Module):
    """The blocks of one resolution, and the strided convolution to the next.

    Args:
        blocks: of this stage.
        width: channels.
        out_width: channels of the next stage; None after the last.
    """

    def __init__(self, blocks: Sequence[VSSBlock], width: int, out_width: int | None) -> None:
        super().__init__()
        self.blocks, self.out_width = nn.Sequential(*blocks), out_width or 0
        # The identity in front is there for the published names: convolution 1, its norm 3.
        self.downsample = (
            nn.Identity()
            if out_width is None
            else nn.Sequential(
                nn.Identity(),
                nn.Conv2d(width, out_width, 3, stride=2, padding=1),
                nn.Identity(),
                LayerNorm2d(out_width),
            )
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the stage's map and the next stage's input; (B, H, W, C)."""
        x = self.blocks(x)
        return x, x if plain_map(self.downsample, ANY_HOOKS, nn.Identity) else self._below(x)

    def _below(self, x: Tensor) -> Tensor:
        """Returns the next stage's input."""
        below, layers = x.permute(0, 3, 1, 2), self.downsample
        if torch.compiler.is_compiling() or not plain_map(layers, ANY_HOOKS, nn.Sequential):
            return layers(below).permute(0, 2, 3, 1)
        assert isinstance(layers, nn.Sequential)
        # Of few positions, gradients by a convolution take up to three times those of a product.
        most = self.out_width // (1 if torch.is_grad_enabled() else 4)
        few = x.shape[0] * (x.shape[1] // 2) * (x.shape[2] // 2) <= most
        own = len(layers) > 1 and plain_map(layers[0], ANY_HOOKS, nn.Identity)
        if few and own and unfoldable(layers[1]):
            below = unfolded(layers[1], x).permute(0, 3, 1, 2)
            return layers[2:](below).permute(0, 2, 3, 1)
        return layers(below).permute(0, 2, 3, 1)


class Classifier(nn.Module):
    """Norm, mean over the map, linear head.

    Args:
        width: channels.
        num_classes: 0 for no head.
    """

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.head = head(width, num_classes)


class VMamba(Pyramid):
    """VMamba with convolutional stem, at any resolution; published checkpoints ("s1l8") load by
    name.

    Args:
        num_classes: classes of the head; 0 for none.
        in_chans: channels of the images.
        dims: width of every stage.
        depths: blocks of every stage.
        d_state: states per channel.
        ratio: inner width of the scan as a multiple of the stage's.
        mlp_ratio: hidden width of the MLPs, likewise.
        conv_bias: whether the depthwise convolutions have biases.
        stem_stride: pixels that a position of the first stage spans: 4, or 2 for small images.
        drop_path: highest rate of stochastic depth.
        orders: scan orders; four for the published weights.
    """

    stem_key = "patch_embed.0.weight"
    head_key = "classifier.head"
    head_norms = ("classifier.norm",)
    scan_type: ClassVar[Callable[..., nn.Module]] = SS2D

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        dims: Sequence[int] = (96, 192, 384, 768),
        depths: Sequence[int] = (2, 2, 8, 2),
        d_state: int = 1,
        ratio: float = 1.0,
        mlp_ratio: float = 4.0,
        conv_bias: bool = False,
        stem_stride: int = 4,
        drop_path: float = 0.2,
        orders: Sequence[str] = CROSS_SCAN,
    ) -> None:
        super().__init__()
        if stem_stride not in (2, 4):
            raise ConfigError(f"stem_stride must be 2 or 4, got {stem_stride}")
        check_stages(dims, depths)
        self.in_chans, self.min_size = check_positive("in_chans", in_chans), 1
        self.num_features, self.channels = dims[-1], list(dims)
        self.reductions = [stem_stride * 2**i for i in range(len(dims))]
        self.patch_embed = (
            nn.Sequential(  # the numbers in the published names count identities and the GELU
                nn.Conv2d(in_chans, dims[0] // 2, 3, stride=2, padding=1),
                nn.Identity(),
                LayerNorm2d(dims[0] // 2),
                nn.Identity(),
                nn.GELU(),
                nn.Conv2d(dims[0] // 2, dims[0], 3, stride=stem_stride // 2, padding=1),
                nn.Identity(),
                LayerNorm2d(dims[0]),
            )
        )
        rates = iter(path_rates(drop_path, sum(depths)))
        stages = []
        for width, after, depth in zip(dims, [*dims[1:], None], depths):
            blocks = [
                VSSBlock(
                    width,
                    next(rates),
                    mlp_ratio,
                    self.scan_type(width, d_state, ratio, 3, conv_bias, orders),
                )
                for _ in range(depth)
            ]
            stages.append(Stage(blocks, width, after))
        self.layers = nn.ModuleList(stages)
        self.classifier = Classifier(dims[-1], num_classes)

    def stage_maps(self, x: Tensor) -> list[Tensor]:
        """Returns the map of every stage before its downsampling, (B, C_i, H_i, W_i)."""
        self.check_images(x)
        x, maps = self.patch_embed(x).permute(0, 2, 3, 1), []
        for stage in self.layers:
            here, x = stage(x)
            maps.append(here.permute(0, 3, 1, 2))
        return maps

    def normalise(self, x: Tensor) -> Tensor:
        """Returns the map (B, C, H, W) after the norm over its channels."""
        return self.classifier.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    def classify(self, pooled: Tensor) -> Tensor:
        """Maps pooled features to logits (B, classes)."""
        return self.classifier.head(pooled)
