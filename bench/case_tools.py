"""What the cases of the speed benchmarks share: drawing inputs, laying them out, making
programs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from longseq.bench.measure import OURS, Mode, Program, Shape, Side

Tensors = dict[str, Tensor]


def make_program(
    call: Callable[..., Tensor],
    tensors: Tensors,
    transposed: bool = False,
    constants: tuple[str, ...] = (),
) -> Program:
    """Returns a program that calls a function with tensors, all but ``constants`` taking gradients.

    Args:
        call: with the tensors as keywords.
        tensors: the input first.
        transposed: whether the gradient of the input has dimensions 1 and 2 exchanged.
        constants: names.
    """
    made = {k: v.detach().clone().requires_grad_(k not in constants) for k, v in tensors.items()}

    def turn(gradient: Tensor) -> Tensor:
        return gradient.transpose(1, 2)

    run = lambda: call(**made)  # noqa: E731 - a name would say no more
    leaves = [tensor for tensor in made.values() if tensor.requires_grad]
    return Program(run, leaves, turn) if transposed else Program(run, leaves)


def turned(tensors: Tensors, *names: str) -> Tensors:
    """Returns the tensors with dimensions 1 and 2 of the named ones exchanged in memory."""
    return {k: v.transpose(1, 2).contiguous() if k in names else v for k, v in tensors.items()}


def draws(seed: int = 0) -> Callable[..., Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return lambda *size: torch.randn(*size, generator=generator)


def moved_bytes(shape: Shape, mode: Mode, inputs: float, outputs: float) -> float:
    """Returns bytes moved: inputs and outputs once; a backward reads and writes them and their
    gradients."""
    once = inputs + outputs
    return shape.item * (once if mode != "training" else 2 * once + inputs)


def ours(make: Callable[[Any, Shape, Mode], Program]) -> Side:
    """Returns our side of a case."""
    return Side(OURS, make)
