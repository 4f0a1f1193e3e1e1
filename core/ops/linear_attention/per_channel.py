"""Linear attention with a decay per key channel by the CPU kernel of the delta rule."""

from __future__ import annotations

from torch import Tensor

from longseq.core.ops.delta_walk import Inputs, define_walk
from longseq.core.ops.linear_attention import chunked
from longseq.core.ops.linear_attention.arguments import Arguments


def _composed(x: Inputs) -> tuple[Tensor, Tensor]:
    return chunked.run(Arguments(x.q, x.k, x.v, x.g, x.scale, x.state, x.resets, x.chunk_size))


_WALK = define_walk("longseq::channel_attention", _composed)


def run(call: Arguments) -> tuple[Tensor, Tensor]:
    """Runs a checked call of more than one position, with a decay of any kind."""
    q, k, v, g, scale, state, resets, chunk_size = call
    scale = q.shape[3] ** -0.5 if scale is None else scale
    return _WALK(Inputs(q, k, v, None, g, resets, state, scale, chunk_size))
