"""Checks of operators' tensors: kinds, shapes, resets and devices, refused by name."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real

import torch
from torch import Tensor

from longseq.core.errors import ArgumentError
from longseq.core.kernels.custom_op import in_forward_mode, in_transform, seen_by

_REAL = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_COMPLEX = (torch.complex64, torch.complex128)


_PLAIN = (Tensor, torch.nn.Parameter)


def readable(*tensors: Tensor) -> bool:
    """Returns whether Python may look at values: not under a compiler or a transform, nor in
    tensors without memory."""
    if torch.compiler.is_compiling() or in_transform():
        return False
    return all(type(t) in _PLAIN and t.device.type != "meta" for t in tensors)


def seen_by_nobody(*tensors: Tensor | None) -> bool:
    """Returns whether a call is on plain CPU tensors alone, parameters included, and no autograd,
    autocast, compiler, tracer, transform or mode has to see it."""
    return seen_by(tensors) is None


def differentiated(transforms: bool) -> bool:
    """Returns whether forward-mode derivatives are being taken or, where ``transforms`` is true,
    the call is inside an eager transform, which hides what it differentiates by."""
    return in_forward_mode() or (transforms and in_transform())


def present(**named: Tensor | None) -> dict[str, Tensor]:
    """Returns the optional arguments that are there."""
    return {name: tensor for name, tensor in named.items() if tensor is not None}


def check_kind(operator: str, real: bool, **named: Tensor) -> None:
    """Checks that arguments are tensors of a dtype that the operators take.

    Args:
        operator: name for the message.
        real: whether complex dtypes are refused.
        **named: the arguments.

    Raises:
        ArgumentError: naming the argument, what was expected and what came.
    """
    for name, tensor in named.items():
        if not isinstance(tensor, Tensor):
            raise ArgumentError(f"{operator}: {name} must be a tensor, got {type(tensor).__name__}")
        if tensor.dtype in _REAL:
            continue
        if tensor.dtype not in _COMPLEX:
            raise ArgumentError(
                f"{operator}: {name} must be floating-point (float32, float64, bfloat16, float16"
                f"{'' if real else ', complex64, complex128'}), got {tensor.dtype}"
            )
        if real and tensor.is_complex():
            raise ArgumentError(f"{operator}: {name} must be real, got {tensor.dtype}")


def check_shape(
    operator: str, name: str, tensor: Tensor, shape: Sequence[int], meaning: str
) -> None:
    """Checks an argument's shape and that it is a floating-point or complex tensor.

    Raises:
        ArgumentError: naming the argument, what was expected and what came.
    """
    check_kind(operator, False, **{name: tensor})
    if tuple(tensor.shape) != tuple(shape):
        raise ArgumentError(
            f"{operator}: {name} must have shape {tuple(shape)} = {meaning}, got "
            f"{tuple(tensor.shape)}"
        )


def check_heads(operator: str, **named: Tensor) -> None:
    """Checks that arguments have positions, heads and numbers: (batch, length, heads, width).

    Raises:
        ArgumentError: naming the argument that does not.
    """
    for name, tensor in named.items():
        if tensor.ndim != 4 or min(tensor.shape[1:]) < 1:
            raise ArgumentError(
                f"{operator}: {name} must be (batch, length ≥ 1, heads ≥ 1, width ≥ 1), got "
                f"{tuple(tensor.shape)}"
            )


def check_options(operator: str, chunk_size: object, scale: object = None) -> None:
    """Checks the options of operators that go chunk by chunk.

    Raises:
        ArgumentError: if ``chunk_size`` is no integer of at least 1, or ``scale`` no number: a
            tensor would get no gradient.
    """
    check_count(operator, "chunk_size", chunk_size)
    if scale is not None:
        check_real(operator, "scale", scale, ": multiply q by what has a gradient")


def check_count(operator: str, name: str, value: object) -> None:
    """Checks that an option is an integer of at least 1.

    Raises:
        ArgumentError: otherwise.
    """
    if isinstance(value, bool) or not isinstance(value, int | torch.SymInt):
        raise ArgumentError(f"{operator}: {name} must be an integer, got {value!r}")
    if value < 1:
        raise ArgumentError(f"{operator}: {name} must be at least 1, got {value}")


def check_real(operator: str, name: str, value: object, instead: str = "") -> None:
    """Checks that an option is a number, not a tensor, which would get no gradient.

    Args:
        operator: name for the message.
        name: of the option.
        value: what came.
        instead: behind the message.

    Raises:
        ArgumentError: otherwise.
    """
    if isinstance(value, bool) or not isinstance(value, Real | torch.SymFloat):
        got = type(value).__name__
        raise ArgumentError(f"{operator}: {name} must be a number, got {got}{instead}")


def check_resets(operator: str, resets: Tensor | None, batch: int, length: int) -> Tensor | None:
    """Returns the resets as bool, after checking that they are a bool or integer tensor (batch,
    length).

    Any integer but 0 is a reset. Every operator takes its resets through here.

    Raises:
        ArgumentError: if they are not.
    """
    if resets is None:
        return None
    if not isinstance(resets, Tensor):
        raise ArgumentError(
            f"{operator}: resets must be a bool tensor, got {type(resets).__name__}"
        )
    if resets.is_floating_point() or resets.is_complex():
        raise ArgumentError(f"{operator}: resets must be bool or integer, got {resets.dtype}")
    if tuple(resets.shape) != (batch, length):
        raise ArgumentError(
            f"{operator}: resets must have shape {(batch, length)} = (batch, length), "
            f"got {tuple(resets.shape)}"
        )
    return resets.bool()


def check_device(operator: str, first: Tensor, named: dict[str, Tensor | None]) -> None:
    """Checks that all arguments are where the first one is.

    Raises:
        ArgumentError: naming the argument that is elsewhere.
    """
    for name, tensor in named.items():
        if tensor is not None and tensor.device != first.device:
            raise ArgumentError(
                f"{operator}: {name} must be on {first.device} like the input, got {tensor.device}"
            )
