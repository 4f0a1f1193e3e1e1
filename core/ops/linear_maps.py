"""Linear layers that are products and sums and nothing else, so that an operator may take their
weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from longseq.core.kernels.custom_op import in_forward_mode
from longseq.core.ops.backends import Backend, Dispatch, cpu_reason
from longseq.core.ops.linear import linear
from longseq.core.ops.precision import autocast_dtype

ANY_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
"""Names of the hooks that count where gradients are asked for."""

_FORWARD = nn.Linear.forward
_EVERYWHERE = {name: getattr(nn.modules.module, f"_global{name}") for name in ANY_HOOKS}
"""The hooks of all modules, by the name of a module's own."""


def plain_map(
    layer: nn.Module,
    hooks: tuple[str, ...] = ("_forward_hooks", "_forward_pre_hooks"),
    kind: type[nn.Module] = nn.Linear,
) -> bool:
    """Returns whether a layer is a linear map and no more: no hooks, those of all modules included,
    and no forward of its own.

    Args:
        layer: any.
        hooks: names of the hooks that count.
        kind: the class that it must have.
    """
    own = layer.__dict__  # a module's own way to find its hooks takes longer
    if type(layer) is not kind or "forward" in own:
        return False
    return not any(own[name] or _EVERYWHERE[name] for name in hooks)


def _own_call(x: Tensor) -> bool:
    """Returns whether a linear layer has to be called itself: by what traces or compiles it, or
    because a tool has put a forward of its own into the class."""
    # torch.fx traces with what is no tensor.
    foreign = not isinstance(x, Tensor) or torch.compiler.is_compiling()
    return foreign or nn.Linear.forward is not _FORWARD


def plain_weights(x: Tensor, *layers: nn.Module) -> list[Tensor] | None:
    """Returns every layer's weight and bias for an operator that takes several maps at once, or
    None where a layer is more than a linear map with a bias.

    Args:
        x: the first one's input.
        *layers: the linear layers, or what was put in their places.
    """
    if _own_call(x) or not all(plain_map(layer, ANY_HOOKS) for layer in layers):
        return None
    found: list[Tensor] = []
    for layer in layers:
        assert isinstance(layer, nn.Linear)
        if layer.bias is None:
            return None
        found += [layer.weight, layer.bias]
    return found


def mapped(layer: nn.Module, x: Tensor) -> Tensor:
    """Returns ``layer(x)``, the product being that of ``longseq.core.ops.linear`` where the layer
    is a linear map and no more.

    Args:
        layer: the linear layer, or what was put in its place.
        x: its input.
    """
    if _own_call(x) or not plain_map(layer, ANY_HOOKS):
        y: Tensor = layer(x)
        return y
    assert isinstance(layer, nn.Linear)
    return linear(x, layer.weight, layer.bias)


class _Call(NamedTuple):
    layer: nn.Module
    x: Tensor


def _reason(call: _Call) -> str | None:
    """Returns why a layer's bias cannot be left to the operator behind it, or None if it can."""
    layer, x = call
    if not plain_map(layer, ANY_HOOKS):
        return "the layer is more than a product and a sum"
    if in_forward_mode():
        return "forward-mode differentiation has to see the call"
    if x.dtype != layer.weight.dtype or x.dtype not in (torch.float32, torch.float64):
        return "it takes float32 or float64, and weights of the same"
    why = cpu_reason(x)
    return "autocast is on" if why is None and autocast_dtype(x) is not None else why


def _example(new: Callable[..., Tensor]) -> _Call:
    x = new(1, 64, 32)
    return _Call(nn.Linear(32, 64, device=x.device, dtype=x.dtype), x)


# Elsewhere the whole map is torch's own, and as quick.
_DISPATCH = Dispatch("split_bias", {"cpu": _reason}, _example, "composed", announced=False)


def split_bias(
    layer: nn.Module, x: Tensor, *, backend: Backend = "auto"
) -> tuple[Tensor, Tensor | None]:
    """Returns ``x Wᵀ`` and the bias that is left to be added by the operator behind, in its own
    pass.

    Where that would not be the same (another kind of layer in its place, one with hooks, a lower
    precision, a GPU) it returns the whole map and None.

    Args:
        layer: the linear layer.
        x: its input.
        backend: see ``longseq.core.ops.backends``; the bias is left only to one of the CPU kernels.
    """
    if _DISPATCH.choose(backend, _Call(layer, x)) != "cpu":
        return layer(x), None
    assert isinstance(layer, nn.Linear)
    return linear(x, layer.weight), layer.bias


def product_and_bias(layer: nn.Module, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """Returns a map's product and its bias apart, for an operator that adds the bias in full
    precision; of a layer that is more than a linear map, what it returns, and None.

    Args:
        layer: the linear layer, or what was put in its place.
        x: its input.
    """
    if not plain_map(layer, ANY_HOOKS):
        return layer(x), None
    assert isinstance(layer, nn.Linear)
    return linear(x, layer.weight), layer.bias


class _GeluLinear(torch.autograd.Function):
    """``gelu(x) Wᵀ``, with gelu(x) computed again in the backward: it is as large as x and soon
    done."""

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


def split_bias_of_gelu(
    layer: nn.Module, x: Tensor, *, backend: Backend = "auto"
) -> tuple[Tensor, Tensor | None]:
    """``split_bias`` of gelu(x), which keeps x alone for the backward; same arguments and
    results."""
    if _DISPATCH.choose(backend, _Call(layer, x)) != "cpu":
        return layer(nn.functional.gelu(x)), None
    assert isinstance(layer, nn.Linear)
    return _GeluLinear.apply(x, layer.weight), layer.bias
