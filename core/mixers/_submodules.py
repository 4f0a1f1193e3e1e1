"""Submodules whose weights an operator takes out: refused where that would pass by something that
was put in their place, such as an adapter or a quantised layer."""

from __future__ import annotations

from typing import TypeVar

from torch import Tensor, nn

from longseq.core.errors import ConfigError

M = TypeVar("M", bound=nn.Module)
_OF_HOOKS = {"weight_orig", "weight_g"}  # of which a hook makes the weight when a layer is called


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
    # By methods, not by the class alone: parametrised layers and traced ones have classes of their
    # own.
    methods = ("forward", "_conv_forward")
    own = [getattr(type(module), one, None) is getattr(kind, one, None) for one in methods]
    # Name by name: older compilers trace no operations on sets of keys.
    plain = all(own) and not any(one in module.__dict__ for one in methods)
    if (
        isinstance(module, kind)
        and plain
        and not any(one in module._parameters for one in _OF_HOOKS)
    ):
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
