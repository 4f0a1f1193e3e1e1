"""The arguments of the gated norms as a record."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from longseq.core.errors import ArgumentError
from longseq.core.ops.arguments import (
    check_count,
    check_device,
    check_kind,
    check_real,
    check_shape,
    present,
)


class Arguments(NamedTuple):
    """A call of either norm.

    Attributes:
        y: values (..., width).
        z: gate (..., width).
        weight: (width,).
        u: what passes by the norm (..., width), or None.
        skip: its weight (width,), or None.
        groups: of channels.
        centred: whether the mean is taken off.
        norm_first: whether the gate multiplies the normalised value or what is normalised.
        eps: added to the mean square.
    """

    y: Tensor
    z: Tensor
    weight: Tensor
    u: Tensor | None
    skip: Tensor | None
    groups: int
    centred: bool
    norm_first: bool
    eps: float


def check(call: Arguments) -> None:
    """Checks kinds, shapes, devices and options: the kernels read as many rows of each as of y.

    Raises:
        ArgumentError: naming the argument that does not fit.
    """
    y, z, weight, u, skip, groups, centred, _, eps = call
    name = "gated_layer_norm" if centred else "gated_rms_norm"
    optional = present(u=u, skip=skip)
    check_kind(name, True, y=y, z=z, weight=weight, **optional)
    check_count(name, "groups", groups)
    check_real(name, "eps", eps)
    if y.ndim < 1 or y.shape[-1] < 1 or y.shape[-1] % groups:
        raise ArgumentError(
            f"{name}: y must be (..., width) with a width that {groups} groups divide, got "
            f"{tuple(y.shape)}"
        )
    for one, rows in present(z=z, u=u).items():
        check_shape(name, one, rows, y.shape, "(..., width) like y")
    for one, vector in present(weight=weight, skip=skip).items():
        check_shape(name, one, vector, y.shape[-1:], "(width,)")
    check_device(name, y, {"z": z, "weight": weight, "u": u, "skip": skip})
