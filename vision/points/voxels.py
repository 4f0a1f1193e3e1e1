"""Voxels of point clouds: where points lie, in which order, beside which others."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from longseq.core.checks import check_positive
from longseq.core.errors import ConfigError

_SPAN = 1 << 15
"""Voxels along an axis that can be told apart, the origin in the middle."""


@dataclass(frozen=True)
class Voxels:
    """The occupied voxels of a batch of clouds, in ascending order of cloud, z, y and x.

    Args:
        cells: whole coordinates (x, y, z) of every voxel, int64 (V, 3), each at least 0.
        cloud: number of the cloud that it belongs to, (V,).
        clouds: number of clouds.
        of: the voxel of every point, or of every voxel of the finer grid, (M,).
    """

    cells: Tensor
    cloud: Tensor
    clouds: int
    of: Tensor

    @property
    def keys(self) -> Tensor:
        """One number per voxel, ascending."""
        return _keys(self.cells, self.cloud)


def _keys(cells: Tensor, cloud: Tensor) -> Tensor:
    key = cloud
    for axis in (2, 1, 0):
        key = key * _SPAN + cells[:, axis]
    return key


def _unique(cells: Tensor, cloud: Tensor, clouds: int) -> Voxels:
    keys, of = torch.unique(_keys(cells, cloud), return_inverse=True)
    found = []
    for _ in range(3):
        found.append(keys % _SPAN)
        keys = keys // _SPAN
    return Voxels(torch.stack(found, 1), keys, clouds, of)


def voxelise(points: Tensor, cloud: Tensor, clouds: int, size: float) -> Voxels:
    """Returns the voxels that hold points; the grid has a corner at the origin.

    Args:
        points: coordinates (M, 3) of all clouds.
        cloud: number of every point's cloud, (M,).
        clouds: their number; below 2¹⁸.
        size: side of a voxel, in the points' unit.

    Raises:
        ConfigError: for a size that is not positive, or points too far away for it.
    """
    if not size > 0:
        raise ConfigError(f"the side of a voxel must be positive, got {size}")
    cells = torch.floor(points.double() / size)
    if len(cells) and not bool((cells.abs() < _SPAN // 2 - 2).all()):
        raise ConfigError(
            f"points lie more than {_SPAN // 2 - 2:,} voxels of side {size} from the origin, or "
            "are no numbers"
        )
    return _unique(cells.long() + _SPAN // 2, cloud, clouds)


def merge(voxels: Voxels, factor: int = 2) -> Voxels:
    """Returns the voxels of a grid that is coarser by a factor.

    Args:
        voxels: of the finer grid.
        factor: along every axis.
    """
    return _unique(voxels.cells // check_positive("factor", factor), voxels.cloud, voxels.clouds)


def window_order(voxels: Voxels, axis: int, window: int) -> Tensor:
    """Returns the order of the voxels by cloud, then window, then place inside the window, (V,).

    Windows and places inside them run fastest along one axis: layers that alternate it let
    different neighbours meet in a group (LION, Liu et al. 2024, arXiv 2407.18232, section 3).

    Args:
        voxels: of a batch.
        axis: 0, 1 or 2.
        window: side of a window in voxels.
    """
    turned = [(axis + shift) % 3 for shift in (2, 1, 0)]  # slowest first
    side = min(check_positive("window", window), _SPAN)
    whole, inside = voxels.cells // side, voxels.cells % side
    key = voxels.cloud
    for part, span in ((whole, _SPAN // side + 1), (inside, side)):
        for one in turned:
            key = key * span + part[:, one]
    return torch.argsort(key)


def group_ids(cloud: Tensor, clouds: int, size: int) -> Tensor:
    """Returns the number of every position's group: runs of at most ``size`` of the same cloud.

    Args:
        cloud: of every position, ascending, (V,).
        clouds: their number.
        size: positions of a group.
    """
    counts = torch.bincount(cloud, minlength=clouds)
    start = counts.cumsum(0) - counts
    groups = -(-counts // check_positive("size", size))
    rank = torch.arange(len(cloud), device=cloud.device) - start[cloud]
    return (groups.cumsum(0) - groups)[cloud] + rank // size


def neighbours(voxels: Voxels) -> Tensor:
    """Returns the rows of the 27 voxels around each, (V, 27), itself in the middle; V where there
    is none.

    Args:
        voxels: of a batch.
    """
    near = torch.arange(-1, 2, device=voxels.cells.device)
    shifts = torch.cartesian_prod(near, near, near)
    keys = voxels.keys
    rows = []
    for shift in shifts:
        wanted = _keys(voxels.cells + shift, voxels.cloud)
        at = torch.searchsorted(keys, wanted).clamp(max=max(len(keys) - 1, 0))
        rows.append(torch.where(keys[at] == wanted, at, len(keys)) if len(keys) else at)
    return torch.stack(rows, 1)
