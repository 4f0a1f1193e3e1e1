"""The diagonal-plus-rank-one recurrence by the CPU kernel that keeps a chunk in the caches."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from longseq.core.ops.backends import cpu_reason
from longseq.core.ops.chunking import chunk_length
from longseq.core.ops.delta_walk import Kernels, define_walk
from longseq.core.ops.dplr import chunked, reference
from longseq.core.ops.dplr.arguments import Arguments
from longseq.core.ops.precision import autocast_off


class _Inputs(NamedTuple):
    """The arguments of ``longseq.core.ops.dplr``, with its scale given."""

    q: Tensor
    k: Tensor
    v: Tensor
    a: Tensor
    b: Tensor
    log_decay: Tensor
    resets: Tensor | None
    state: Tensor | None
    scale: float
    chunk_size: int

    @property
    def chunk(self) -> int:
        """Positions in a chunk of the kernel, whatever is asked for."""
        return 16

    @property
    def sizes(self) -> tuple[int, ...]:
        """What the kernel is told of the shapes."""
        return (*self.v.shape[:3], self.q.shape[3], self.v.shape[3])


def reason(call: Arguments) -> str | None:
    """Returns why the CPU kernels cannot serve a call, or None if they can."""
    return cpu_reason(*call[:6], call.initial_state, call.resets)


def _composed(x: _Inputs) -> tuple[Tensor, Tensor]:
    return chunked.run(Arguments(*x[:6], x.scale, x.state, x.resets, x.chunk_size))


_WALK = define_walk("longseq::dplr_walk", _composed, Kernels(_Inputs, "dplr", "DPLR_MARK"))


def run(call: Arguments) -> tuple[Tensor, Tensor]:
    """Runs a checked call; a single position is a step."""
    if call.v.shape[1] == 1:
        return reference.run(call)
    chunk_length(call.chunk_size, call.v.shape[1])  # refuses what the other forms refuse
    scale = call.q.shape[3] ** -0.5 if call.scale is None else call.scale
    state, resets = call.initial_state, call.resets
    with autocast_off(call.v):
        return _WALK(_Inputs(*call[:6], resets, state, scale, call.chunk_size))
