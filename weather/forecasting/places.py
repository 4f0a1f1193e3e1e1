"""Irregular places on a periodic domain: fields there, differences, nearest neighbours."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from longseq.core.checks import check_positive
from longseq.core.errors import ArgumentError


def draw_places(count: int, shape: tuple[int, int], seed: int) -> Tensor:
    """Returns places drawn evenly, float32 (K, 2): rows and columns in sides of the domain, [0, 1).

    Args:
        count: K.
        shape: of the fields (H, W); along an axis of one point all places are at 0.
        seed: of the draw.
    """
    generator = torch.Generator().manual_seed(seed)
    made = torch.rand(check_positive("stations", count), 2, generator=generator)
    return made * torch.tensor([float(points > 1) for points in shape])


def _kernel(at: Tensor, points: int) -> Tensor:
    """Returns the weights (K, N) of the trigonometric polynomial through N even steps of [0, 1)."""
    gap = at.double()[:, None] - torch.arange(points, dtype=torch.float64) / points
    gap = gap - gap.round()
    half = math.pi * gap
    under = points * (torch.tan(half) if points % 2 == 0 else torch.sin(half))
    near = gap.abs() < 1e-12
    return torch.where(near, 1.0, torch.sin(points * half) / torch.where(near, 1.0, under))


def sample(fields: Tensor, places: Tensor) -> Tensor:
    """Returns the values of periodic fields at places, exact for what the grid resolves (all
    wavenumbers below half the number of points).

    Args:
        fields: (…, H, W); the point (i, j) is at (i / H, j / W).
        places: (K, 2).

    Returns:
        (…, K), in the dtype of the fields.
    """
    rows, columns = (
        _kernel(places[:, axis], fields.shape[axis - 2]).to(fields.dtype) for axis in (0, 1)
    )
    return torch.einsum("...hk,kh->...k", fields @ columns.T, rows)


def differences(of: Tensor, to: Tensor) -> Tensor:
    """Returns the shortest ways round the domain (B, N, M, 2) from places (B, N, 2) to (B, M, 2),
    in [-½, ½]."""
    gap = to[:, None] - of[:, :, None]
    return gap - gap.round()


def neighbours(places: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Returns the nearest other stations of each and the ways to them.

    Args:
        places: (B, K, 2).
        count: k of them; all others, if there are fewer.

    Returns:
        Indices (B, K, k), nearest first, and differences (B, K, k, 2).
    """
    if places.dim() != 3 or places.shape[-1] != 2 or not bool(places.isfinite().all()):
        raise ArgumentError(f"places must be finite numbers (B, K, 2), got {tuple(places.shape)}")
    way = differences(places, places)
    far = way.square().sum(-1)
    far.diagonal(dim1=1, dim2=2).fill_(math.inf)
    index = far.topk(min(count, places.shape[1] - 1), largest=False).indices
    return index, way.gather(2, index[..., None].expand(*index.shape, 2))
