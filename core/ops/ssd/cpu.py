"""SSD by the CPU kernels that walk over chunks, with no tensor for x·dt or D·x."""

from __future__ import annotations

import torch
from torch import Tensor

from longseq.core.ops.backends import cpu_reason
from longseq.core.ops.linear_attention.torch_op import decay_attention
from longseq.core.ops.precision import autocast_off
from longseq.core.ops.ssd import chunked
from longseq.core.ops.ssd.arguments import Arguments, skip_and_gate


def reason(call: Arguments) -> str | None:
    """Returns why the kernels cannot take a call, or None if they can."""
    return cpu_reason(*call.tensors())


def run(call: Arguments) -> tuple[Tensor, Tensor]:
    """Runs a checked call; a single position is a step."""
    if call.x.shape[1] == 1:
        return chunked.run(call)
    x, _, A, B, C, chunk_size, D, z, _, initial_states, resets, *_ = call
    with autocast_off(x):
        step = call.step_size()
        dtype = step.dtype
        g = step * A.to(dtype)
        if resets is not None:
            g = g.masked_fill(resets.unsqueeze(-1), -torch.inf)
        if initial_states is None:
            state = torch.zeros(x.shape[0], x.shape[2], B.shape[3], x.shape[3], dtype=dtype)
        else:
            state = initial_states.to(dtype).transpose(-1, -2)
        skip = D if D is None or D.ndim == 2 else D.unsqueeze(-1).expand(x.shape[2:])
        y, last = decay_attention(
            C.to(dtype),
            B.to(dtype),
            x.to(dtype),
            g,
            state,
            chunk_size,
            step,
            None if skip is None else skip.to(dtype),
        )
        return skip_and_gate(y, x, None, z), last.transpose(-1, -2)
