"""Submodules whose weights an operator takes out: refused where that would pass by something that
was put in their place, such as an adapter or a quantised layer."""

from __future__ import annotations

from typing import TypeVar

from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from longseq.core.errors import ConfigError

M = TypeVar("M", bound=nn.Module)


def holding(module: nn.Module, kind: type[M], name: str) -> M:
    """Returns a module whose weights may be taken in its place: it is just of that kind.

    Parametrised weights may; those that a hook computes at each call may not.

    Args:
        module: a submodule of a mixer.
        kind: what it was made as.
        name: its name, for the message.

    Raises:
        ConfigError: if it is of another class, or its forward or weight is not its own.
    """
    if type(module) is kind and "forward" not in module.__dict__:
        if "weight" in module._parameters:
            return module
    elif isinstance(module, kind) and is_parametrized(module, "weight"):
        return module
    raise ConfigError(
        f"{name} is {type(module).__name__}, and its weights go into an operator, which would pass "
        f"by whatever it does beside {kind.__name__}: merge it into the weights, or leave it out"
    )


def conv_weights(module: nn.Module, name: str) -> tuple[Tensor, Tensor | None]:
    """Returns the taps (D, W) and the bias of a depthwise convolution; see ``holding``.

    Args:
        module: the convolution.
        name: its name, for the message.
    """
    conv = holding(module, nn.Conv1d, name)
    return conv.weight.squeeze(1), conv.bias
