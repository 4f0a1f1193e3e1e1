"""SSD by its Triton kernels."""

from __future__ import annotations

from torch import Tensor

from longseq.core.ops.chunking import chunk_length
from longseq.core.ops.precision import autocast_off, lowered
from longseq.core.ops.ssd.arguments import Arguments, skip_and_gate
from longseq.core.ops.triton_calls import triton_reason


def reason(call: Arguments) -> str | None:
    """Returns why the kernels cannot take a call, or None if they can."""
    return triton_reason(*call.tensors())


def run(call: Arguments) -> tuple[Tensor, Tensor]:
    """Runs a checked call."""
    from longseq.core.kernels.triton.ssd import scan

    x, B, C = lowered(call.x, call.B, call.C)
    with autocast_off(x):
        step = call.step_size()
        chunk_length(call.chunk_size, x.shape[1])
        y, last = scan(
            x, step, call.A, B, C, call.D, call.initial_states, call.resets, call.chunk_size
        )
        return skip_and_gate(y, x, None, call.z), last
