"""The mLSTM by its Triton kernels."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from longseq.core.ops.chunking import chunk_length
from longseq.core.ops.mlstm.arguments import Arguments, MLSTMState
from longseq.core.ops.precision import autocast_off, lowered
from longseq.core.ops.triton_calls import triton_reason


def reason(call: Arguments) -> str | None:
    """Returns why the kernels cannot take a call, or None if they can."""
    return triton_reason(*call.tensors())


def run(call: Arguments) -> tuple[Tensor, MLSTMState]:
    """Runs a checked call."""
    from longseq.core.kernels.triton import mlstm as kernels

    chunk_length(call.chunk_size, call.v.shape[1])
    q, k, v = lowered(call.q, call.k, call.v)
    with autocast_off(v):
        log_f = logsigmoid(call.f.float())
        if call.resets is not None:
            log_f = log_f.masked_fill(call.resets.unsqueeze(-1), -torch.inf)
        return kernels.mlstm(q, k, v, call.i, log_f, call.initial_state, call.chunk_size, call.eps)
