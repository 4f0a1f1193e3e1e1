"""Linear group recurrences on voxels, after LION (Liu et al. 2024, arXiv 2407.18232).

Points go through an MLP and become voxels; in every layer

    x = x + W (Σ_k w_k ⊙ x[neighbour k]),   x[order] = x[order] + mixer(x[order]) per group,

the 3-D spatial descriptor over the 27 neighbours, which the order in a sequence would lose, and a
mixer of the core in both directions over groups of K voxels in window order; the axis along which
the order runs alternates. Then voxels of 2 × 2 × 2 are merged, and the next level begins.

LION detects objects in outdoor scans; this is its layer inside PointNet, with a head that
classifies a cloud. Voxels are merged along all axes, and none are generated where none were.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from longseq.core.backbone import Backbone
from longseq.core.checks import check_positive
from longseq.core.errors import ArgumentError, ConfigError
from longseq.vision.points.voxels import (
    Voxels,
    group_ids,
    merge,
    neighbours,
    voxelise,
    window_order,
)


def pool(values: Tensor, rows: Tensor, count: int, how: str) -> Tensor:
    """Returns the mean ("mean") or the greatest ("amax") of the values of every row, (count, D); 0
    for rows without any.

    Args:
        values: (M, D).
        rows: the row of each, (M,).
        count: number of rows.
        how: "mean" or "amax".
    """
    start = values.new_zeros(count, values.shape[1])
    if how == "mean":
        total = start.index_add(0, rows, values)
        return total / torch.bincount(rows, minlength=count).clamp(min=1)[:, None]
    return start.scatter_reduce(0, rows[:, None].expand_as(values), values, how, include_self=False)


def check_points(points: Tensor, cloud: Tensor, clouds: int) -> None:
    """Checks a batch of clouds.

    Raises:
        ArgumentError: for another shape, or a cloud without points.
    """
    if points.dim() != 2 or points.shape[1] != 3 or cloud.shape != points.shape[:1]:
        raise ArgumentError(
            f"points must be (points, 3) and cloud (points,), got {tuple(points.shape)} and "
            f"{tuple(cloud.shape)}"
        )
    counts = torch.bincount(cloud, minlength=clouds)
    if len(counts) != clouds or not bool((counts > 0).all()):
        empty = torch.nonzero(counts[:clouds] == 0).flatten().tolist()
        raise ArgumentError(f"clouds without points: {empty[:5]}, or numbers beyond {clouds - 1}")


class GroupLayer(nn.Module):
    """One layer: the spatial descriptor, then the groups along each of some axes.

    Args:
        width: D.
        axes: one pass of a mixer for each.
        window: side of a window in voxels.
        group: voxels of a group, K.
        mixer: a causal mixer of the core.
        mixer_kwargs: its hyper-parameters.
    """

    def __init__(
        self,
        width: int,
        axes: Sequence[int],
        window: int,
        group: int,
        mixer: str,
        mixer_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.axes, self.window, self.group = list(axes), window, group
        self.around = nn.Parameter(torch.randn(27, width) / 27**0.5)
        self.norm, self.point = nn.LayerNorm(width), nn.Linear(width, width)
        both = {"mixer": mixer, "mixer_kwargs": dict(mixer_kwargs or {})}
        self.mixers = nn.ModuleList(Backbone(width, 1, "bidirectional", both) for _ in axes)

    def forward(self, x: Tensor, voxels: Voxels, near: Tensor) -> Tensor:
        """x: (V, D); near: of ``neighbours``."""
        padded = torch.cat([self.norm(x), x.new_zeros(1, x.shape[1])])
        gathered = (padded[near] * self.around).sum(1)
        x = x + self.point(nn.functional.gelu(gathered))
        for axis, mixer in zip(self.axes, self.mixers):
            order = window_order(voxels, axis, self.window)
            ids = group_ids(voxels.cloud[order], voxels.clouds, self.group)
            y, _ = mixer(x[order][None], None, ids[None], keep_states=False)
            x = x.index_add(0, order, y[0].to(x.dtype))
        return x


def _point_mlp(dims: Sequence[int]) -> nn.Sequential:
    """Returns linear maps with batch norm, every point alone."""
    layers: list[nn.Module] = []
    for a, b in pairwise(dims):
        layers += [nn.Linear(a, b, bias=False), nn.BatchNorm1d(b), nn.ReLU()]
    return nn.Sequential(*layers)


def _cloud_mlp(width: int, hidden: int, num_classes: int, dropout: float = 0.0) -> nn.Sequential:
    """Returns the MLP from what was pooled over a cloud to logits."""
    return nn.Sequential(
        nn.Linear(width, hidden),
        nn.LayerNorm(hidden),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(hidden, check_positive("num_classes", num_classes)),
    )


class GroupPoints(nn.Module):
    """Clouds to logits: PointNet whose points know their surroundings by recurrences over groups of
    voxels.

    Every point goes through an MLP; the greatest values in every voxel go through the layers; a
    second MLP takes every point's first features beside what the layers found at its voxels; then
    the greatest value of every channel over the cloud, and an MLP. Without the layers' part it is
    ``PointNet``.

    Args:
        num_classes: K.
        voxel: side of the finest voxels, in the points' unit (a cloud has a radius of 1).
        points: widths of the first MLP of points.
        dims: width of every level of voxels; each has twice the side of the one before.
        passes: passes of a mixer per level, along the axes x, y, z in turn.
        window: side of a window in voxels.
        group: voxels of a group.
        mixer: a causal mixer of the core, run from both ends.
        mixer_kwargs: its hyper-parameters.
        late: widths of the second MLP of points.
        hidden: width of the MLP of the cloud.
        dropout: before the logits.
    """

    def __init__(
        self,
        num_classes: int,
        voxel: float = 0.35,
        points: Sequence[int] = (64, 64),
        dims: Sequence[int] = (64,),
        passes: int = 1,
        window: int = 4,
        group: int = 64,
        mixer: str = "mamba",
        mixer_kwargs: Mapping[str, Any] | None = None,
        late: Sequence[int] = (128, 256),
        hidden: int = 256,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if not voxel > 0:
            raise ConfigError(f"voxel must be positive, got {voxel}")
        for name, widths in (("points", points), ("dims", dims), ("late", late)):
            if not widths:
                raise ConfigError(f"{name} must name a width at least")
        for name, value in (("window", window), ("group", group), ("passes", passes)):
            check_positive(name, value)
        self.voxel = voxel
        self.points = _point_mlp((3, *points))
        self.enter = nn.Linear(points[-1], dims[0])
        self.layers = nn.ModuleList(
            GroupLayer(
                width,
                [(level * passes + i) % 3 for i in range(passes)],
                window,
                group,
                mixer,
                mixer_kwargs,
            )
            for level, width in enumerate(dims)
        )
        self.merges = nn.ModuleList(nn.Linear(2 * a, b) for a, b in pairwise(dims))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in dims)
        self.late = _point_mlp((points[-1] + sum(dims), *late))
        self.head = _cloud_mlp(late[-1], hidden, num_classes, dropout)

    def forward(self, points: Tensor, cloud: Tensor, clouds: int) -> Tensor:
        """Returns logits (clouds, K); the order of the points changes nothing.

        Args:
            points: (M, 3) of all clouds, each round the origin with a radius of 1.
            cloud: the cloud of every point, (M,).
            clouds: their number.

        Raises:
            ArgumentError: for a cloud without points, or another shape.
        """
        check_points(points, cloud, clouds)
        voxels = voxelise(points, cloud, clouds, self.voxel)
        alone = self.points(points)
        known, place = [alone], voxels.of  # the voxel of every point at this level
        x = self.enter(pool(alone, voxels.of, len(voxels.cloud), "amax"))
        for level, (layer, norm) in enumerate(zip(self.layers, self.norms)):
            x = layer(x, voxels, neighbours(voxels))
            known.append(norm(x)[place])
            if level < len(self.merges):
                voxels = merge(voxels)
                both = [pool(x, voxels.of, len(voxels.cloud), how) for how in ("mean", "amax")]
                x, place = self.merges[level](torch.cat(both, 1)), voxels.of[place]
        return self.head(pool(self.late(torch.cat(known, 1)), cloud, clouds, "amax"))


class PointNet(nn.Module):
    """PointNet without its alignment networks (Qi et al. 2017, arXiv 1612.00593): every point alone
    through an MLP, the greatest value of every channel over the cloud, an MLP.

    Args:
        num_classes: K.
        dims: widths of the MLP of points.
        hidden: width of the MLP of the cloud.
        dropout: before the logits.
    """

    def __init__(
        self,
        num_classes: int,
        dims: Sequence[int] = (64, 64, 128, 256),
        hidden: int = 256,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.points = _point_mlp((3, *dims))
        self.head = _cloud_mlp(dims[-1], hidden, num_classes, dropout)

    def forward(self, points: Tensor, cloud: Tensor, clouds: int) -> Tensor:
        """See ``GroupPoints``."""
        check_points(points, cloud, clouds)
        return self.head(pool(self.points(points), cloud, clouds, "amax"))
