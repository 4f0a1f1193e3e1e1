"""Operators as one node of an exported program where its length is left open: their own forms loop
over chunks, whose number is not known then."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from longseq.core.kernels.custom_op import define


def is_open(size: int) -> bool:
    """Returns whether torch.export is leaving a size open."""
    return torch.compiler.is_exporting() and isinstance(size, torch.SymInt)


def exported(
    name: str,
    record: type[Any],
    fake: Callable[[Any], Sequence[Tensor]],
    run: Callable[[Any], Sequence[Tensor]],
) -> Callable[..., list[Tensor]]:
    """Registers an operator of torch that is a whole operator of ours, its choice of a backend
    included; its gradients are those of computing it again.

    Args:
        name: "namespace::operator".
        record: a NamedTuple of its arguments.
        fake: of the record, returning results of the right shape and dtype, empty.
        run: of the record, returning the results.

    Returns:
        A function of the record's fields.
    """

    def listed(call: Any) -> list[Tensor]:
        return list(run(call))

    return define(
        name, (record,), None, lambda call: list(fake(call)), everywhere=listed, composed=listed
    )
