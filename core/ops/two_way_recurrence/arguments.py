"""The arguments of the two-way recurrence as a record."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

NAME = "two_way_recurrence"


class Arguments(NamedTuple):
    """A call of ``longseq.core.ops.two_way_recurrence``, which says what the argument is."""

    mixed: Tensor
