"""The arguments of the selective scan as a record, and what they must be."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from longseq.core.errors import ArgumentError
from longseq.core.ops.arguments import check_device, check_kind, check_resets, check_shape, present
from longseq.core.ops.precision import compute_dtype

NAME = "selective_scan"


class Arguments(NamedTuple):
    """A call of ``longseq.core.ops.selective_scan``, which says what the arguments are."""

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None = None
    z: Tensor | None = None
    delta_bias: Tensor | None = None
    initial_state: Tensor | None = None
    resets: Tensor | None = None
    delta_softplus: bool = False


class Path(NamedTuple):
    """Which way a call goes through its positions, and what joins its output before the gate; see
    ``longseq.core.ops.selective_scan``."""

    reverse: bool = False
    height: int = 0
    add: Tensor | None = None


def checked_path(x: Arguments, path: Path) -> Path:
    """Checks a path against its checked call.

    Raises:
        ArgumentError: naming the argument that does not fit.
    """
    if path.add is not None:
        check_kind(NAME, True, add=path.add)
        check_shape(NAME, "add", path.add, x.u.shape, "(batch, length, channels)")
        check_device(NAME, x.u, {"add": path.add})
    length = x.u.shape[1]
    if path.height < 0 or (path.height and length % path.height):
        raise ArgumentError(
            f"{NAME}: height must divide the {length} positions, or be 0, got {path.height}"
        )
    return path


def check_low_rank(u: Tensor, delta: Tensor, weight: Tensor) -> None:
    """Checks step sizes (B, L, R) and the weight (D, R) that widens them.

    Raises:
        ArgumentError: naming the argument that does not fit.
    """
    check_kind(NAME, True, u=u, delta=delta, delta_weight=weight)
    if u.dim() != 3 or weight.dim() != 2 or weight.shape[1] == 0:
        raise ArgumentError(
            f"{NAME}: u must be (batch, length, channels) and delta_weight (channels, rank ≥ 1), "
            f"got {tuple(u.shape)} and {tuple(weight.shape)}"
        )
    rank = weight.shape[1]
    check_shape(NAME, "delta_weight", weight, (u.shape[2], rank), "(channels, rank)")
    check_shape(NAME, "delta", delta, (*u.shape[:2], rank), "(batch, length, rank)")
    check_device(NAME, u, {"delta": delta, "delta_weight": weight})


def checked(x: Arguments) -> Arguments:
    """Checks all arguments; returns them with B and C as (B, L, G, N) of A's kind, and resets as
    bool.

    Raises:
        ArgumentError: naming the argument that does not fit.
    """
    u, delta, A, B, C, D, z, delta_bias, initial_state, resets, _ = x
    check_kind(NAME, True, u=u, delta=delta, **present(D=D, z=z, delta_bias=delta_bias))
    check_kind(NAME, False, A=A, B=B, C=C, **present(initial_state=initial_state))
    if u.dim() != 3 or u.shape[1] == 0:
        raise ArgumentError(
            f"{NAME}: u must be (batch, length ≥ 1, channels), got {tuple(u.shape)}"
        )
    batch, length, width = u.shape
    check_shape(NAME, "delta", delta, u.shape, "(batch, length, channels)")
    if A.dim() != 2:
        raise ArgumentError(f"{NAME}: A must be (channels, states), got {tuple(A.shape)}")
    states = A.shape[1]
    check_shape(NAME, "A", A, (width, states), "(channels, states)")
    maps = []
    for name, m in (("B", B), ("C", C)):
        m = m.unsqueeze(2) if m.dim() == 3 else m
        groups = m.shape[2] if m.dim() == 4 else 1
        check_shape(
            NAME, name, m, (batch, length, groups, states), "(batch, length, groups, states)"
        )
        if groups == 0 or width % groups:
            raise ArgumentError(
                f"{NAME}: {name} has {groups} groups, which must divide the {width} channels"
            )
        if m.is_complex() and not A.is_complex():
            raise ArgumentError(f"{NAME}: {name} is complex, so A must be, got {A.dtype}")
        if A.is_complex() and not m.is_complex():
            m = m.to(torch.complex128 if compute_dtype(u, A) == torch.float64 else torch.complex64)
        maps.append(m)
    if maps[0].shape[2] != maps[1].shape[2]:
        raise ArgumentError(
            f"{NAME}: C must have B's {maps[0].shape[2]} groups, got {maps[1].shape[2]}"
        )
    for name, vector in (("D", D), ("delta_bias", delta_bias)):
        if vector is not None:
            check_shape(NAME, name, vector, (width,), "(channels,)")
    if z is not None:
        check_shape(NAME, "z", z, u.shape, "(batch, length, channels)")
    if initial_state is not None:
        check_shape(
            NAME,
            "initial_state",
            initial_state,
            (batch, width, states),
            "(batch, channels, states)",
        )
        if initial_state.is_complex() != A.is_complex():
            raise ArgumentError(
                f"{NAME}: initial_state is {initial_state.dtype} but A is {A.dtype}"
            )
    resets = check_resets(NAME, resets, batch, length)
    named = {"delta": delta, "A": A, "B": B, "C": C, "D": D, "z": z, "delta_bias": delta_bias}
    check_device(NAME, u, {**named, "initial_state": initial_state, "resets": resets})
    same = maps[0] is B and maps[1] is C and resets is None
    return x if same else x._replace(B=maps[0], C=maps[1], resets=resets)
