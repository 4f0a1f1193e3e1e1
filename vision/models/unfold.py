"""Dense convolutions of maps channels last as one product with what each position sees."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longseq.core.ops.linear import linear
from longseq.core.ops.linear_maps import ANY_HOOKS, plain_map

Pair = tuple[int, int]


def unfoldable(conv: nn.Module) -> bool:
    """Returns whether ``unfolded`` computes what a layer does."""
    # A traced graph could not be saved with a function of Python in it.
    if torch._C._is_tracing() or not plain_map(conv, ANY_HOOKS, nn.Conv2d):
        return False
    assert isinstance(conv, nn.Conv2d)
    zeros = conv.padding_mode == "zeros" and not isinstance(conv.padding, str)
    return zeros and conv.groups == 1 and conv.dilation == (1, 1)


def unfolded(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """Returns a convolution of maps channels last as one product with what each position sees.

    Where a map has few positions and many channels, the weights are most of what has to be read;
    the product takes them as they lie.

    Args:
        conv: one that ``unfoldable`` takes.
        x: (B, H, W, C).

    Returns:
        (B, H', W', C').
    """
    down, left = conv.padding
    last = conv.weight.is_contiguous(memory_format=torch.channels_last)
    seen = _Seen.apply(x, conv.kernel_size, conv.stride, (int(down), int(left)), last)
    weight = conv.weight.permute(0, 2, 3, 1) if last else conv.weight
    return linear(seen, weight.flatten(1), conv.bias)


class _Seen(torch.autograd.Function):
    """What each position of the result sees, (B, H, W, C) to (B, H', W', kernel · C), with the
    channels or the kernel last; the gradient is a sum over the kernel, not over all windows."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, kernel: Pair, stride: Pair, padding: Pair, last: bool) -> Tensor:
        (high, wide), (down, right), (top, left) = kernel, stride, padding
        x = F.pad(x, (0, 0, left, left, top, top))
        windows = x.unfold(1, high, down).unfold(2, wide, right)  # (B, H', W', C, kernel)
        return (windows.permute(0, 1, 2, 4, 5, 3) if last else windows).flatten(3)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, *ctx.form = inputs
        ctx.shape = x.shape

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (given,), ((high, wide), (down, right), (top, left), last) = grads, ctx.form
        batch, height, width, channels = ctx.shape
        rows, columns = (size - 1 for size in given.shape[1:3])
        dx = given.new_zeros((batch, height + 2 * top, width + 2 * left, channels))
        if last:
            given = given.reshape(*given.shape[:3], high, wide, channels)
        else:
            given = given.reshape(*given.shape[:3], channels, high, wide).permute(0, 1, 2, 4, 5, 3)
        for i in range(high):
            for j in range(wide):
                area = dx[:, i : i + down * rows + 1 : down, j : j + right * columns + 1 : right]
                area += given[:, :, :, i, j]
        return dx[:, top : top + height, left : left + width], None, None, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        return _Seen.forward(tangents[0], *ctx.form)
