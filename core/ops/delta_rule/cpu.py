"""The delta rule by the CPU kernel."""

from __future__ import annotations

from torch import Tensor

from longseq.core.ops.backends import cpu_reason
from longseq.core.ops.delta_rule import chunked, reference
from longseq.core.ops.delta_rule.arguments import Arguments
from longseq.core.ops.delta_walk import Inputs, define_walk
from longseq.core.ops.precision import autocast_off


def reason(call: Arguments) -> str | None:
    """Returns why the CPU kernels cannot serve a call, or None if they can."""
    return cpu_reason(*call.tensors())


def _composed(x: Inputs) -> tuple[Tensor, Tensor]:
    assert x.beta is not None
    call = Arguments(x.q, x.k, x.v, x.beta, x.g, x.scale, x.state, x.resets, x.chunk_size)
    return chunked.run(call)


_WALK = define_walk("longseq::delta_walk", _composed)


def run(call: Arguments) -> tuple[Tensor, Tensor]:
    """Runs a checked call; a single position is a step."""
    if call.v.shape[1] == 1:
        return reference.run(call)
    q, k, v, beta, g, scale, state, resets, chunk_size = call
    scale = q.shape[3] ** -0.5 if scale is None else scale
    with autocast_off(v):
        return _WALK(Inputs(q, k, v, beta, g, resets, state, scale, chunk_size))
