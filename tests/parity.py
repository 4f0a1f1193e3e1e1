"""What parity tests share: values that any machine computes alike, gradients, and how far numbers
differ.

The scripts at the end of parity tests, which write their frozen numbers, need this folder on
PYTHONPATH.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


def waves(*shape: int) -> Tensor:
    """Returns an input by formula, float64."""
    return torch.sin(0.9 * torch.arange(int(np.prod(shape)), dtype=torch.float64) ** 1.1).view(
        shape
    )


def fill(module: nn.Module, size: float = 0.5) -> None:
    """Gives every parameter values by formula.

    Args:
        module: whose parameters.
        size: of the largest value.
    """
    with torch.no_grad():
        for index, (_, parameter) in enumerate(sorted(module.named_parameters())):
            steps = torch.arange(parameter.numel(), dtype=torch.float64)
            parameter.copy_(size * torch.sin(1.3 * steps + 0.7 * index).view_as(parameter))


def differences(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    """Relative to the largest value of each tensor, or to 1e-3 of the largest of all where that is
    more."""
    assert actual.keys() == expected.keys()
    floor = 1e-3 * max(value.abs().max().item() for value in expected.values())
    return {
        key: (actual[key] - value).abs().max().item() / max(value.abs().max().item(), floor)
        for key, value in expected.items()
    }


def close(actual: Tensor, expected: Tensor, what: str, bound: float) -> None:
    """Checks that the largest difference, relative to the largest value or to 1, is within the
    bound."""
    assert actual.shape == expected.shape, what
    error = (actual - expected).abs().max().item() / max(1.0, expected.abs().max().item())
    print(f"{what}: {error:.1e}")
    assert error <= bound, f"{what}: {error:.2e}"


def gradients(y: Tensor, leaves: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns an output and the gradients of a weighted sum of it, by the leaves' names."""
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y).cos()
    found = torch.autograd.grad((y * weights).sum(), [*leaves.values()])
    return {"y": y.detach(), **dict(zip(leaves, found))}


def with_gradients(
    layer: Callable[[Tensor], Any], parameters: dict[str, Tensor], x: Tensor
) -> dict[str, Tensor]:
    """Returns a layer's output for x, and the gradients of x and the parameters."""
    x = x.clone().requires_grad_()
    result = layer(x)
    return gradients(result[0] if isinstance(result, tuple) else result, {"x": x, **parameters})


def disturb(layer: nn.Module, size: float = 0.1) -> None:
    """Moves every parameter away from zero and one, so that no term is absent by its
    initialisation."""
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(size * torch.randn_like(parameter))


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Returns normal numbers, float64."""
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
