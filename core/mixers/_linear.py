"""Linear maps whose bias is added by the operator behind them, in the pass that it makes anyway."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from longseq.core.ops.backends import cpu_reason
from longseq.core.ops.glu import biased_glu


def split_bias(linear: nn.Module, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """Returns ``x Wᵀ`` and the bias that is left to be added.

    Where that would not be the same (another kind of layer in its place, one with hooks, a lower precision,
    a GPU) it returns the whole map and None.

    Args:
        linear: the layer.
        x: its input.
    """
    if _plain(linear, x):
        assert isinstance(linear, nn.Linear)
        return nn.functional.linear(x, linear.weight), linear.bias
    return linear(x), None


def _plain(linear: nn.Module, x: Tensor) -> bool:
    """Returns whether a layer is a product and a sum in float32 or float64 on a CPU, and nothing else."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    plain = type(linear) is nn.Linear and not any(getattr(linear, name) for name in hooks)
    if not plain or cpu_reason(x) is not None or torch.is_autocast_enabled(x.device.type):
        return False
    assert isinstance(linear, nn.Linear)
    return x.dtype == linear.weight.dtype and x.dtype in (torch.float32, torch.float64)


class _GeluLinear(torch.autograd.Function):
    """``gelu(x) Wᵀ``, with gelu(x) computed again in the backward: it is as large as x and soon done."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor) -> Tensor:
        return nn.functional.linear(nn.functional.gelu(x), weight)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        (dy,) = grads
        dweight = dy.flatten(0, -2).T @ nn.functional.gelu(x).flatten(0, -2)
        return torch.ops.aten.gelu_backward(dy @ weight, x), dweight


def mix_gelu(mixing: nn.Module, dropout: nn.Dropout, x: Tensor) -> Tensor:
    """Returns ``mixing(dropout(gelu(x)))``; a ``LinearGLU`` keeps x alone for the backward, not gelu(x) too.

    Args:
        mixing: the map after the activation.
        dropout: between the two.
        x: (..., width).
    """
    if isinstance(mixing, LinearGLU) and not (dropout.training and dropout.p) and _plain(mixing[0], x):
        linear = mixing[0]
        assert isinstance(linear, nn.Linear)
        y: Tensor = biased_glu(_GeluLinear.apply(x, linear.weight), linear.bias)
        return y
    mixed: Tensor = mixing(dropout(nn.functional.gelu(x)))
    return mixed


class LinearGLU(nn.Sequential):
    """A linear map to twice the width, then a gated linear unit, which adds the map's bias.

    Args:
        width: of the input.
        d_model: of the output.
    """

    def __init__(self, width: int, d_model: int) -> None:
        super().__init__(nn.Linear(width, 2 * d_model), nn.GLU(-1))

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) to (..., d_model)."""
        return biased_glu(*split_bias(self[0], x))
