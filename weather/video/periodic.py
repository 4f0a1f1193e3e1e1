"""Fields on a doubly periodic plane: their other side's points around them, channels last kept."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from longseq.core.errors import ArgumentError

Edges = Literal["zeros", "circular"]


def wrap(x: Tensor, reach: int) -> Tensor:
    """Returns fields with their other side's points around them.

    As ``F.pad`` with "circular", but channels last stay so and the gradient is one pass instead of
    a copy per slice, which cost a third of a convolutional layer's training step.

    Args:
        x: (N, C, H, W).
        reach: points on every side, at most H and W.

    Returns:
        (N, C, H + 2 reach, W + 2 reach).

    Raises:
        ArgumentError: if the reach is larger than the plane.
    """
    if not 0 <= reach <= min(x.shape[-2:]):
        raise ArgumentError(f"wrap: {reach} points around {x.shape[-2]} × {x.shape[-1]} points")
    return _Wrap.apply(x, reach) if reach else x  # type: ignore[no-any-return]


class PeriodicConv2d(nn.Conv2d):
    """``nn.Conv2d`` with "circular" edges, by ``wrap``."""

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, C, H, W)."""
        return F.conv2d(wrap(x, self.kernel_size[0] // 2), self.weight, self.bias)


def conv2d(inputs: int, outputs: int, kernel: int, edges: Edges, bias: bool = True) -> nn.Conv2d:
    """Returns a convolution that keeps a field's size.

    Args:
        inputs: channels.
        outputs: channels.
        kernel: side, odd.
        edges: what lies beyond a field: "zeros", or its other side on a "circular" plane.
        bias: whether it has one.
    """
    if edges == "circular":
        return PeriodicConv2d(inputs, outputs, kernel, bias=bias)
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=bias)


def _around(x: Tensor, reach: int) -> Tensor:
    x = torch.cat([x[..., -reach:, :], x, x[..., :reach, :]], -2)
    return torch.cat([x[..., -reach:], x, x[..., :reach]], -1)


def _folded(y: Tensor, reach: int) -> Tensor:
    rows = y[..., reach:-reach, :].clone()
    rows[..., -reach:, :] += y[..., :reach, :]
    rows[..., :reach, :] += y[..., -reach:, :]
    x = rows[..., reach:-reach].clone()
    x[..., -reach:] += rows[..., :reach]
    x[..., :reach] += rows[..., -reach:]
    return x


class _Wrap(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, reach: int) -> Tensor:
        return _around(x, reach)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int], output: Tensor) -> None:
        ctx.reach = inputs[1]

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        return _Fold.apply(dy, ctx.reach), None

    @staticmethod
    def jvp(ctx: Any, dx: Tensor, _: None) -> Tensor:
        return _around(dx, ctx.reach)


class _Fold(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(y: Tensor, reach: int) -> Tensor:
        return _folded(y, reach)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int], output: Tensor) -> None:
        ctx.reach = inputs[1]

    @staticmethod
    def backward(ctx: Any, dx: Tensor) -> tuple[Tensor, None]:
        return _Wrap.apply(dx, ctx.reach), None

    @staticmethod
    def jvp(ctx: Any, dy: Tensor, _: None) -> Tensor:
        return _folded(dy, ctx.reach)
