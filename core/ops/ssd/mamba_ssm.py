"""SSD by the mamba-ssm package, where that is asked for by name."""

from __future__ import annotations

import torch
from torch import Tensor

from longseq.core.ops.mamba_ssm_calls import SSD, load, missing, unfit
from longseq.core.ops.precision import autocast_off, lowered
from longseq.core.ops.ssd.arguments import Arguments


def _lowered(call: Arguments) -> Arguments:
    """Returns a call as autocast has it: x, B, C and z in its dtype."""
    x, B, C = lowered(call.x, call.B, call.C)
    return call._replace(x=x, B=B, C=C, z=None if call.z is None else lowered(call.z)[0])


def reason(call: Arguments) -> str | None:
    """Returns why the package cannot serve a call, or None if it can."""
    if (absent := missing(SSD)) is not None:
        return absent
    call = _lowered(call)
    rows = (call.x, call.B, call.C, call.z)
    why = unfit(rows, (call.dt, call.A, call.D, call.dt_bias, call.initial_states))
    if why is None and len({t.dtype for t in rows if t is not None}) > 1:
        why = "it needs x, B, C and z in one dtype"
    return why


def run(call: Arguments) -> tuple[Tensor, Tensor]:
    """Runs a checked call by ``mamba_chunk_scan_combined``.

    Resets become ``seq_idx``, the number of resets up to a position. An initial state belongs to
    index 0: a reset at position 0 clears it.
    """
    call = _lowered(call)
    index = None
    if call.resets is not None:
        index = call.resets.to(torch.int32).cumsum(1, dtype=torch.int32)
    first = call.initial_states
    with autocast_off(call.x):
        y, last = load(SSD)(
            call.x,
            call.dt,
            call.A.float(),
            call.B,
            call.C,
            max(16, 1 << (call.chunk_size - 1).bit_length()),
            D=None if call.D is None else call.D.float(),
            z=call.z,
            dt_bias=None if call.dt_bias is None else call.dt_bias.float(),
            initial_states=None if first is None else first.float().contiguous(),
            seq_idx=index,
            dt_softplus=call.dt_softplus,
            dt_limit=tuple(call.dt_limit),
            return_final_states=True,
        )
    return y, last.float()
