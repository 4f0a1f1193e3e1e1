"""SSD over chunks in torch's own operations: a linear attention of queries C, keys B and values
x·dt."""

from __future__ import annotations

from torch import Tensor

from longseq.core.ops.linear_attention import chunked
from longseq.core.ops.linear_attention.arguments import Arguments as Attention
from longseq.core.ops.precision import autocast_off
from longseq.core.ops.ssd.arguments import Arguments, skip_and_gate


def run(call: Arguments) -> tuple[Tensor, Tensor]:
    """Runs a checked call."""
    dtype, first = call.dtype(), call.initial_states
    with autocast_off(call.x):
        step = call.step_size()
        attention = Attention(
            call.C.to(dtype),
            call.B.to(dtype),
            call.x.to(dtype) * step.unsqueeze(-1),
            step * call.A.to(dtype),
            scale=1.0,
            initial_state=None if first is None else first.transpose(-1, -2),
            resets=call.resets,
            chunk_size=call.chunk_size,
        )
        y, last = chunked.run(attention)
        return skip_and_gate(y, call.x, call.D, call.z), last.transpose(-1, -2)
