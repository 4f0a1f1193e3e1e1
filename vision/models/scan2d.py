"""Scan orders over a 2-D grid: how an (H, W) map becomes sequences, and how sequences become a map
again.

An order is a permutation of the H·W positions in raster order. A scan takes K orders at once:

    expand:   x (B, L, D)    → y (B, L, K, D),  y[b, l, k] = x[b, order_k(l)]
    reorder:  x (B, L, K, D) → y (B, L, K, D),  y[b, l, k] = x[b, order_k(l), k]
    merge:    y (B, L, K, D) → x (B, L, D),     x[b, p] = Σ_k y[b, order_k⁻¹(p), k]

``merge`` is the adjoint of ``expand``, and of a permutation the adjoint is the inverse: every
gradient is again a gather of whole rows, where autograd's own would be a slow accumulating scatter.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from longseq.core.checks import check_positive
from longseq.core.errors import ConfigError, did_you_mean
from longseq.core.ops.cross_scan import Way

# torch.compile traces the orders, so only what it knows of numpy is used: no lexsort, no rot90.


def _raster(h: int, w: int) -> np.ndarray:
    return np.arange(h * w)


def _column(h: int, w: int) -> np.ndarray:
    return np.arange(h * w).reshape(h, w).T.ravel()


def _snake(h: int, w: int) -> np.ndarray:
    """Row by row, every second row backwards: neighbours in the sequence are neighbours on the
    grid."""
    grid = np.arange(h * w).reshape(h, w).copy()
    grid[1::2] = grid[1::2, ::-1]
    return grid.ravel()


def _zigzag(h: int, w: int) -> np.ndarray:
    """Anti-diagonal by anti-diagonal, every second one backwards (the order of JPEG's
    coefficients)."""
    rows, columns = np.divmod(np.arange(h * w), w)
    diagonal = rows + columns
    return np.argsort(diagonal * (h + w) + np.where(diagonal % 2 == 0, columns, rows))


def _diagonal(h: int, w: int) -> np.ndarray:
    """Anti-diagonal by anti-diagonal, each from top right to bottom left."""
    rows, columns = np.divmod(np.arange(h * w), w)
    return np.argsort((rows + columns) * (h + w) + rows)


def _spiral(h: int, w: int) -> np.ndarray:
    """Round the border clockwise from the top left corner, then inwards."""
    grid, parts = np.arange(h * w).reshape(h, w), []
    while grid.size:
        parts.append(grid[0])
        grid = grid[1:].T[::-1]  # turned by 90°
    return np.concatenate(parts)


def _column_snake(h: int, w: int) -> np.ndarray:
    """Column by column, every second column upwards."""
    rows, columns = np.divmod(_snake(w, h), h)
    return columns * w + rows


def _zigzag_right(h: int, w: int) -> np.ndarray:
    """``zigzag`` mirrored: from the top right corner."""
    rows, columns = np.divmod(_zigzag(h, w), w)
    return rows * w + w - 1 - columns


def _spiral_below(h: int, w: int) -> np.ndarray:
    """``spiral`` mirrored: from the bottom left corner, anti-clockwise."""
    rows, columns = np.divmod(_spiral(h, w), w)
    return (h - 1 - rows) * w + columns


_ORDERS = {
    "raster": _raster,
    "column": _column,
    "snake": _snake,
    "column_snake": _column_snake,
    "zigzag": _zigzag,
    "zigzag_right": _zigzag_right,
    "diagonal": _diagonal,
    "spiral": _spiral,
    "spiral_below": _spiral_below,
}
CROSS_SCAN = ("raster", "column", "raster_reversed", "column_reversed")
"""The four directions of VMamba (arXiv 2401.10166, section 4.2)."""


def list_orders() -> list[str]:
    """Returns the names of all scan orders; every one also runs backwards, as
    ``<name>_reversed``."""
    return sorted([*_ORDERS, *(f"{name}_reversed" for name in _ORDERS)])


def scan_order(name: str, height: int, width: int) -> np.ndarray:
    """Returns the raster index of every position of a scan, int64 (H·W,).

    Args:
        name: one of ``list_orders()``.
        height: rows H of the grid.
        width: columns W.

    Raises:
        ConfigError: for an unknown name, or an empty grid.
    """
    check_positive("height", height)
    check_positive("width", width)
    base = name.removesuffix("_reversed")
    if base not in _ORDERS:
        raise ConfigError(f"no scan order named {name!r}; {did_you_mean(name, list_orders())}")
    order = np.ascontiguousarray(_ORDERS[base](height, width))
    return order if base == name else np.ascontiguousarray(order[::-1])


class Scan2d:
    """K scan orders of one grid, with the row indices that their gathers need.

    Args:
        orders: names of the K orders.
        height: rows H of the grid.
        width: columns W.
    """

    def __init__(self, orders: Sequence[str], height: int, width: int) -> None:
        if not orders:
            raise ConfigError("a scan needs at least one order")
        table = np.stack([scan_order(name, height, width) for name in orders])  # (K, L)
        inverse = np.argsort(table, axis=1)
        self.n_orders, self.length = table.shape
        lane = np.arange(self.n_orders)[:, None]

        def rows(index: np.ndarray) -> np.ndarray:  # (K, L) to (L·K,)
            return np.ascontiguousarray(index.T).ravel()

        self._expand = rows(table)
        self._reorder = rows(table * self.n_orders + lane)
        self._merge = rows(inverse * self.n_orders + lane)

    def expand(self, x: Tensor) -> Tensor:
        """Returns x along every order: (B, L, D) to (B, L, K, D)."""
        where = _rows(x, self._expand, self._merge)
        return _Expand.apply(x, *where)

    def reorder(self, x: Tensor) -> Tensor:
        """Returns lane k of x along order k: (B, L, K, D) to the same shape."""
        where = _rows(x, self._reorder, self._merge)
        return _Reorder.apply(x, *where)

    def restore(self, x: Tensor) -> Tensor:
        """Undoes ``reorder``: (B, L, K, D) to the same shape."""
        where = _rows(x, self._merge, self._reorder)
        return _Reorder.apply(x, *where)

    def merge(self, y: Tensor) -> Tensor:
        """Puts every position back and sums over the orders: (B, L, K, D) to (B, L, D)."""
        where = _rows(y, self._expand, self._merge)
        return _Merge.apply(y, *where)


def _rows(x: Tensor, *indices: np.ndarray) -> list[Tensor]:
    """Returns indices as tensors beside x.

    They are kept as arrays: a tensor would carry the mode of the call that made it (inference,
    tracing) into later ones.
    """
    return [torch.from_numpy(index).to(x.device) for index in indices]


@lru_cache(maxsize=256)
def scan2d(orders: tuple[str, ...], height: int, width: int) -> Scan2d:
    """Returns a ``Scan2d``, made once for each grid.

    Args:
        orders: names of the orders.
        height: rows of the grid.
        width: columns.
    """
    return Scan2d(orders, height, width)


def _take(x: Tensor, index: Tensor) -> Tensor:
    """Returns rows of x (B, R, D) by their index (R',), as (B, R', D)."""
    return x.index_select(1, index)


class _Expand(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, expand: Tensor, merge: Tensor) -> Tensor:
        ctx.save_for_backward(expand, merge)
        batch, length, width = x.shape
        return _take(x, expand).view(batch, length, len(expand) // length, width)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:
        return _Merge.apply(dy, *ctx.saved_tensors), None, None


class _Merge(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, expand: Tensor, merge: Tensor) -> Tensor:
        ctx.save_for_backward(expand, merge)
        return _take(y.flatten(1, 2), merge).view(y.shape).sum(2)

    @staticmethod
    def backward(ctx: Any, dx: Tensor) -> tuple[Tensor, None, None]:
        return _Expand.apply(dx, *ctx.saved_tensors), None, None


class _Reorder(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(index, inverse)
        return _take(x.flatten(1, 2), index).view(x.shape)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:
        index, inverse = ctx.saved_tensors
        return _Reorder.apply(dy, inverse, index), None, None


def along(x: Tensor, order: str) -> Tensor:
    """Returns a map (B, H, W, C) as a sequence (B, L, C) in a scan order.

    Rows and columns are views or one copy, where a general order is a gather.
    """
    base = order.removesuffix("_reversed")
    if base in ("raster", "column"):
        sequence = (x if base == "raster" else x.transpose(1, 2)).flatten(1, 2)
        return sequence.flip(1) if order != base else sequence
    index = torch.from_numpy(scan_order(order, x.shape[1], x.shape[2])).to(x.device)
    return x.flatten(1, 2)[:, index]


def straight_ways(orders: Sequence[str], height: int) -> list[Way]:
    """Returns orders along rows and columns as the ways of ``cross_scan``.

    Args:
        orders: of ``CROSS_SCAN``.
        height: rows of the grid.
    """
    return [
        Way(order.endswith("_reversed"), height if order.startswith("column") else 0)
        for order in orders
    ]


def back(y: Tensor, order: str, height: int, width: int) -> Tensor:
    """Undoes ``along``: (B, L, C) to (B, H, W, C)."""
    base = order.removesuffix("_reversed")
    if base in ("raster", "column"):
        y = y.flip(1) if order != base else y
        if base == "raster":
            return y.unflatten(1, (height, width))
        return y.unflatten(1, (width, height)).transpose(1, 2)
    index = torch.from_numpy(scan_order(order, height, width)).argsort().to(y.device)
    return y[:, index].unflatten(1, (height, width))
