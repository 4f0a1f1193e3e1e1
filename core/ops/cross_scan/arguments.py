"""The arguments of the cross-scan as a record, and what they must be."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from longseq.core.errors import ArgumentError
from longseq.core.ops.arguments import check_device, check_kind

NAME = "cross_scan"


class Way(NamedTuple):
    """A path through the positions: backwards or not, and down the columns of a grid of so many
    rows, or 0."""

    reverse: bool
    height: int


class Arguments(NamedTuple):
    """A call of ``longseq.core.ops.cross_scan.cross_scan``, which says what the arguments are."""

    u: Tensor
    low: Tensor
    weight: Tensor
    bias: Tensor
    A: Tensor
    D: Tensor
    ways: tuple[Way, ...]

    @property
    def sizes(self) -> tuple[int, int, int, int, int]:
        """B, L, D, N and rank."""
        batch, length, width = self.u.shape
        return batch, length, width, self.A.shape[2], self.weight.shape[2]


def checked(call: Arguments) -> Arguments:
    """Returns the call.

    Raises:
        ArgumentError: naming the argument that does not fit.
    """
    u, low, weight, bias, A, D, ways = call
    check_kind(NAME, True, u=u, low=low, weight=weight, bias=bias, A=A, D=D)
    check_device(NAME, u, {"low": low, "weight": weight, "bias": bias, "A": A, "D": D})
    if u.dim() != 3:
        raise ArgumentError(f"{NAME}: u must be (B, L, D), got {tuple(u.shape)}")
    if not ways:
        raise ArgumentError(f"{NAME}: there must be at least one way")
    batch, length, width = u.shape
    count = len(ways)
    if weight.dim() != 3 or weight.shape[:2] != (count, width):
        raise ArgumentError(
            f"{NAME}: weight must be (ways, D, R), {(count, width, 'R')}, got {tuple(weight.shape)}"
        )
    if A.dim() != 3 or A.shape[:2] != (count, width):
        raise ArgumentError(
            f"{NAME}: A must be (ways, D, N), {(count, width, 'N')}, got {tuple(A.shape)}"
        )
    for name, one in (("bias", bias), ("D", D)):
        if one.shape != (count, width):
            raise ArgumentError(
                f"{NAME}: {name} must be (ways, D), {(count, width)}, got {tuple(one.shape)}"
            )
    values = weight.shape[2] + 2 * A.shape[2]
    if low.shape != (batch, length, count, values):
        raise ArgumentError(
            f"{NAME}: low must be (B, L, ways, R + 2N), {(batch, length, count, values)}, got "
            f"{tuple(low.shape)}"
        )
    for way in ways:
        if way.height < 0 or (way.height and length % way.height):
            raise ArgumentError(
                f"{NAME}: a height must divide the {length} positions, got {way.height}"
            )
    return call
