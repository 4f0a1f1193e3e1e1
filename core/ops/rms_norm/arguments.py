"""The arguments of the root mean square norm as a record."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from longseq.core.errors import ArgumentError
from longseq.core.ops.arguments import check_device, check_kind, check_real, check_shape, present


class Arguments(NamedTuple):
    """A call of the norm.

    Attributes:
        x: values (..., width).
        residual: added to them (..., width), or None.
        weight: (width,).
        eps: added to the mean square.
    """

    x: Tensor
    residual: Tensor | None
    weight: Tensor
    eps: float


def check(name: str, call: Arguments) -> None:
    """Checks kinds, shapes and devices: the kernels read as many rows of each as of x.

    Args:
        name: the operator's.
        call: its arguments.

    Raises:
        ArgumentError: naming the argument that does not fit.
    """
    x, residual, weight, eps = call
    check_kind(name, True, x=x, weight=weight, **present(residual=residual))
    check_real(name, "eps", eps)
    if x.ndim < 1 or x.shape[-1] < 1:
        raise ArgumentError(f"{name}: x must be (..., width), got {tuple(x.shape)}")
    if residual is not None:
        check_shape(name, "residual", residual, x.shape, "(..., width) like x")
    check_shape(name, "weight", weight, x.shape[-1:], "(width,)")
    check_device(name, x, {"residual": residual, "weight": weight})
