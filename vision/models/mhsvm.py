r"""MHS-VM (Ji 2024, arXiv 2406.05992): heads that scan along routes of their own.

Block:  x ← x + norm(W concat_h(fuse(scans_h(u_h)))) ⊙ silu(z),   u = silu(conv(W_x norm(x)))

Head h scans its share of the channels along two routes and back: rows and columns in snakes,
diagonals, spirals, or rows and columns plainly. The four results y_k of a position are fused by
how much they disagree, which mutes what every route finds alike:

fuse(y) = (Σ_k y_k) · relu(std(y) / (mean(y - min y) + 10⁻⁵) - t)
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longseq.core.checks import check_positive
from longseq.core.errors import ConfigError
from longseq.core.registry import Preset
from longseq.vision.models.layers import DropPath, depthwise, head, path_rates, with_branch
from longseq.vision.models.pyramid import PatchMerging, Pyramid, check_stages, initialise
from longseq.vision.models.scan2d import scan2d
from longseq.vision.models.vmamba import LaneScan, scan_side_by_side

ROUTES = {
    "C": ("snake", "column_snake"),
    "X": ("zigzag", "zigzag_right"),
    "S": ("spiral", "spiral_below"),
    "Z": ("raster", "column"),
}
"""The routes of a head by its published letter; each is scanned both ways."""


def fuse_routes(y: Tensor, threshold: float) -> Tensor:
    """Returns the routes' sum, weighed by the relative deviation between them (section 3.3).

    Args:
        y: (B, L, K, D), K at least 2.
        threshold: deviation below which nothing passes.

    Returns:
        (B, L, D).
    """
    # The root's gradient at 0 is infinite: routes that agree to the last digit get none.
    deviation = y.var(2).clamp(min=1e-24).sqrt()
    spread = (y - y.amin(2, keepdim=True)).mean(2)
    return y.sum(2) * torch.relu(deviation / (spread + 1e-5) - threshold)


class Routes(LaneScan):
    """The scans of one head, one after another along its routes, (B, L, D) to (B, L, 4, D).

    Args:
        width: D.
        d_state: states per channel.
        routes: names of the two routes.
    """

    def __init__(self, width: int, d_state: int, routes: tuple[str, str]) -> None:
        super().__init__()
        self.orders = tuple(order for name in routes for order in (name, f"{name}_reversed"))
        self.make_lanes(width, len(self.orders), d_state, math.ceil(width / 16))

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        """x: (B, H·W, D) in raster order; returns every position's results at its place."""
        scan = scan2d(self.orders, height, width)
        return scan.restore(self.scan_lanes(*self.sequences(x, height, width)))

    def sequences(self, x: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Returns what ``scan_lanes`` takes of (B, H·W, D): every lane's positions, and their
        steps, B and C."""
        scan = scan2d(self.orders, height, width)
        small = F.linear(x, self.x_proj_weight.flatten(0, 1)).unflatten(2, (self.lanes, -1))
        return scan.expand(x), scan.reorder(small)


class ScanHead(nn.Module):
    """One head: scans along its routes, fused; (B, L, D) to the same shape.

    Args:
        width: D.
        d_state: states per channel.
        threshold: see ``fuse_routes``.
        routes: names of the two routes.
    """

    def __init__(self, width: int, d_state: int, threshold: float, routes: tuple[str, str]) -> None:
        super().__init__()
        self.threshold, self.mambaeng = threshold, Routes(width, d_state, routes)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        """x: (B, H·W, D) in raster order."""
        return fuse_routes(self.mambaeng(x, height, width), self.threshold)


def _as_one(
    heads: Sequence[ScanHead], parts: Sequence[Tensor], height: int, width: int
) -> list[Tensor]:
    """Returns the heads' results from a single scan of all their lanes: a program of a quarter of
    the length, of which exporters take tens of milliseconds per operation."""
    lanes = [head.mambaeng for head in heads]
    given = [lane.sequences(part, height, width) for lane, part in zip(lanes, parts)]
    x, small = (torch.cat(tensors, 2) for tensors in zip(*given))
    names = ("dt_projs_weight", "dt_projs_bias", "A_logs", "Ds")
    weights = [torch.cat([getattr(lane, name) for lane in lanes]) for name in names]
    found = scan_side_by_side(x, small, *weights).split([lane.lanes for lane in lanes], 2)
    return [
        fuse_routes(scan2d(head.mambaeng.orders, height, width).restore(y), head.threshold)
        for head, y in zip(heads, found)
    ]


class MultiHeadScan(nn.Module):
    """Heads in subspaces of the channels, joined by a projection; (B, H, W, D).

    Args:
        d_model: width D.
        d_state: states per channel.
        n_heads: 1 to 4, in the order of ``ROUTES``; 3 or 4 for published weights.
        threshold: see ``fuse_routes``.
    """

    def __init__(
        self, d_model: int, d_state: int = 16, n_heads: int = 4, threshold: float = 0.5
    ) -> None:
        super().__init__()
        if not 1 <= n_heads <= len(ROUTES):
            raise ConfigError(f"n_heads must lie between 1 and {len(ROUTES)}, got {n_heads}")
        self.width = check_positive("d_model // n_heads", d_model // n_heads)
        self.letters = tuple(ROUTES)[:n_heads]
        inner = self.width * n_heads
        self.x_ssproj = nn.Linear(d_model, inner, bias=False)
        for letter in self.letters:
            part = ScanHead(self.width, d_state, threshold, ROUTES[letter])
            self.add_module(f"scanhead_{letter}", part)
        self.cat_norm = nn.LayerNorm(inner)
        self.y_proj = nn.Linear(inner, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, H, W, D)."""
        height, width = x.shape[1:3]
        parts = self.x_ssproj(x.flatten(1, 2)).split(self.width, dim=-1)
        heads = [getattr(self, f"scanhead_{letter}") for letter in self.letters]
        if torch.compiler.is_compiling():
            found = _as_one(heads, parts, height, width)
        else:
            found = [one(part, height, width) for one, part in zip(heads, parts)]
        y = self.y_proj(self.cat_norm(torch.cat(found, -1)))
        return y.unflatten(1, (height, width))


class GatedScan(nn.Module):
    """Convolution, heads and norm, gated by a second half of the projection; (B, H, W, D).

    Args:
        d_model: width D.
        d_state: states per channel.
        n_heads: see ``MultiHeadScan``.
        threshold: see ``fuse_routes``.
    """

    def __init__(self, d_model: int, d_state: int, n_heads: int, threshold: float) -> None:
        super().__init__()
        self.in_proj = nn.Linear(d_model, 2 * d_model, bias=False)
        self.conv2d = nn.Conv2d(d_model, d_model, 3, padding=1, groups=d_model)
        self.mhs = MultiHeadScan(d_model, d_state, n_heads, threshold)
        self.out_norm = nn.LayerNorm(d_model)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, H, W, D)."""
        x, z = self.in_proj(x).chunk(2, dim=-1)
        x = depthwise(self.conv2d, x, silu=True)
        return self.out_norm(self.mhs(x)) * F.silu(z)


class RouteBlock(nn.Module):
    """x + scan(norm(x)); (B, H, W, D).

    Args:
        d_model: width D.
        d_state: states per channel.
        n_heads: see ``MultiHeadScan``.
        threshold: see ``fuse_routes``.
        drop_path: rate of stochastic depth.
    """

    def __init__(
        self, d_model: int, d_state: int, n_heads: int, threshold: float, drop_path: float
    ) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(d_model)
        self.self_attention = GatedScan(d_model, d_state, n_heads, threshold)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, H, W, D)."""
        return with_branch(x, (self.ln_1, self.self_attention), self.drop_path)


class Patches(nn.Module):
    """A convolution of whole patches and a norm: (B, C, H, W) to (B, H/4, W/4, D).

    Args:
        in_chans: channels C.
        channels: D.
    """

    def __init__(self, in_chans: int, channels: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_chans, channels, 4, stride=4)
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W)."""
        return self.norm(self.proj(x).permute(0, 2, 3, 1))


class RouteStage(nn.Module):
    """The blocks of a resolution, and the step to the next; (B, H, W, C).

    Args:
        blocks: of this stage.
        downsample: to the next one's map; None after the last.
    """

    def __init__(self, blocks: Sequence[nn.Module], downsample: nn.Module | None) -> None:
        super().__init__()
        self.blocks, self.downsample = nn.Sequential(*blocks), downsample

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the stage's map and the next stage's input."""
        x = self.blocks(x)
        return x, x if self.downsample is None else self.downsample(x)


class MHSVM(Pyramid):
    """The encoder of MHS-VM at any resolution, with a head of its own.

    The published network is a U-shaped segmenter without a classifier; its encoder loads by name
    (``features_only``, or ``create_segmenter``), its decoder is left out. A map of odd sides loses
    its last row or column between stages, as there.

    Args:
        num_classes: classes of the head; 0 for none.
        in_chans: channels of the images.
        dims: width of every stage.
        depths: blocks of every stage.
        d_state: states per channel of the scans.
        n_heads: see ``MultiHeadScan``.
        threshold: see ``fuse_routes``; 0.5 for the published weights of ISIC 2018, 0 of 2017.
        drop_path: highest rate of stochastic depth.
    """

    head_norms = ("norm",)
    not_read = (
        ".scanning.seq2seq_engine.",
        ".x_ssproj_W",
        "layers_up.",
        "final_up.",
        "final_conv.",
    )

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        dims: Sequence[int] = (96, 192, 384, 768),
        depths: Sequence[int] = (2, 2, 2, 2),
        d_state: int = 16,
        n_heads: int = 4,
        threshold: float = 0.5,
        drop_path: float = 0.2,
    ) -> None:
        super().__init__()
        check_stages(dims, depths)
        self.in_chans = check_positive("in_chans", in_chans)
        self.num_features, self.channels = dims[-1], list(dims)
        self.reductions = [4 * 2**i for i in range(len(dims))]
        self.min_size = self.reductions[-1]
        self.patch_embed = Patches(in_chans, dims[0])
        rates = iter(path_rates(drop_path, sum(depths)))
        self.layers = nn.ModuleList()
        for i, (width, depth) in enumerate(zip(dims, depths)):
            blocks = [
                RouteBlock(width, d_state, n_heads, threshold, next(rates)) for _ in range(depth)
            ]
            last = i + 1 == len(dims)
            self.layers.append(
                RouteStage(blocks, None if last else PatchMerging(width, dims[i + 1], pad=False))
            )
        self.norm = nn.LayerNorm(dims[-1])
        self.head = head(dims[-1], num_classes)
        self.apply(initialise)

    def stage_maps(self, x: Tensor) -> list[Tensor]:
        """Returns the map of every stage before its downsampling, (B, C_i, H_i, W_i)."""
        self.check_images(x)
        x, maps = self.patch_embed(x), []
        for layer in self.layers:
            here, x = layer(x)
            maps.append(here.permute(0, 3, 1, 2))
        return maps

    def normalise(self, x: Tensor) -> Tensor:
        """Returns the map (B, C, H, W) after the norm over its channels."""
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


PRESETS = {
    "mhsvm_3h": Preset(MHSVM, {"n_heads": 3}, "MHS-VM's encoder, three heads, published layout"),
    "mhsvm_4h": Preset(MHSVM, {}, "MHS-VM's encoder, four heads, published layout"),
    "mhsvm_nano": Preset(
        MHSVM,
        {"num_classes": 10, "dims": (48, 96, 192), "d_state": 4, "depths": (1, 1, 2)},
        "MHS-VM's encoder for 28 to 64 px",
    ),
}
