"""What the published layers refuse by name: sizes of theirs, and inputs that do not fit."""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from longseq.core.errors import ArgumentError, ConfigError
from longseq.core.ops.precision import autocast_dtype

F = TypeVar("F", bound=Callable[..., Any])


def check_sizes(layer: str, **sizes: Any) -> None:
    """Checks that sizes are integers of at least 1.

    Args:
        layer: name for the message.
        **sizes: by the names of the arguments.

    Raises:
        ConfigError: naming the argument that is not.
    """
    for name, value in sizes.items():
        try:
            fits = operator.index(value) > 0
        except TypeError:
            fits = False
        if not fits:
            raise ConfigError(f"{layer}: {name} must be an integer of at least 1, got {value!r}")


def check_input(layer: str, x: object, width: int, dims: int | None = 3) -> None:
    """Checks an input's kind and shape.

    Args:
        layer: name for the message.
        x: the input (..., width).
        width: of its last dimension.
        dims: how many dimensions it has; any number if None.

    Raises:
        ArgumentError: if it is another thing.
    """
    if not isinstance(x, Tensor):
        raise ArgumentError(f"{layer}: the input must be a tensor, got {type(x).__name__}")
    fits = x.dim() == dims if dims is not None else x.dim() > 0
    if not fits or x.shape[-1] != width:
        said = {3: "(batch, length, width)", 2: "(positions, width)", None: "(…, width)"}[dims]
        raise ArgumentError(
            f"{layer}: the input must be {said} with width {width}, got {tuple(x.shape)}"
        )
    if not x.is_floating_point():
        raise ArgumentError(f"{layer}: the input must be floating-point, got {x.dtype}")


def explained(projection: str) -> Callable[[F], F]:
    """Decorator of a method of a layer: an error of torch's about the input's dtype or device
    becomes one of ours.

    Args:
        projection: the layer's attribute that reads the input first.
    """

    def decorate(method: F) -> F:
        @wraps(method)
        def run(self: nn.Module, x: Tensor, *args: Any, **named: Any) -> Any:
            try:
                return method(self, x, *args, **named)
            except (RuntimeError, NotImplementedError) as error:
                _explain(type(self).__name__, getattr(self, projection), x, error)
                raise

        return run  # type: ignore[return-value]

    return decorate


def _explain(layer: str, projection: nn.Module, x: object, error: Exception) -> None:
    weight = next((p for p in projection.parameters() if p.is_floating_point()), None)
    if weight is None or not isinstance(x, Tensor):
        return
    if weight.device != x.device:
        raise ArgumentError(
            f"{layer}: the input is on {x.device} and the weights are on {weight.device}"
        ) from error
    if weight.dtype != x.dtype and autocast_dtype(x) is None:
        raise ArgumentError(
            f"{layer}: the input is {x.dtype} and the weights are {weight.dtype}: convert one of "
            "them, or use torch.autocast"
        ) from error


def check_tokens(layer: str, tokens: object) -> None:
    """Checks that tokens are integers (B, L).

    Raises:
        ArgumentError: if they are not.
    """
    if not isinstance(tokens, Tensor):
        raise ArgumentError(f"{layer}: tokens must be a tensor, got {type(tokens).__name__}")
    if tokens.dim() != 2 or tokens.dtype not in (torch.int64, torch.int32):
        raise ArgumentError(
            f"{layer}: tokens must be int64 or int32 (batch, length), got {tokens.dtype} "
            f"{tuple(tokens.shape)}"
        )


def embedded(layer: str, embedding: nn.Module, tokens: Tensor) -> Tensor:
    """Returns the tokens' vectors (B, L, D).

    Raises:
        ArgumentError: for a token outside the vocabulary.
    """
    try:
        found: Tensor = embedding(tokens)
    except IndexError as error:
        raise ArgumentError(
            f"{layer}: tokens lie from {int(tokens.min())} to {int(tokens.max())}, and the "
            f"vocabulary has {getattr(embedding, 'num_embeddings', 'other')} entries from 0 on"
        ) from error
    return found
