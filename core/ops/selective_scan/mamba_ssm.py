"""The selective scan by the mamba-ssm package, where that is asked for by name."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from longseq.core.errors import BackendError
from longseq.core.ops.mamba_ssm_calls import SCAN, load, missing, unfit
from longseq.core.ops.precision import autocast_off, lowered
from longseq.core.ops.selective_scan.arguments import Arguments

_MAX_STATES = 256


class _NoGradient(torch.autograd.Function):
    """The identity of a tensor that must not be differentiated, because that would be silently
    wrong."""

    @staticmethod
    def forward(ctx: Any, state: Tensor) -> Tensor:
        return state.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        raise BackendError(
            "selective_scan: mamba-ssm has no gradient of the final state; leave the state out of "
            "the loss, or take another backend"
        )


def _lowered(x: Arguments) -> Arguments:
    """Returns a call as autocast has it: u, delta, B, C and z in its dtype."""
    u, delta, B, C = lowered(x.u, x.delta, x.B, x.C)
    return x._replace(u=u, delta=delta, B=B, C=C, z=None if x.z is None else lowered(x.z)[0])


def reason(x: Arguments) -> str | None:
    """Returns why the package cannot serve a call, or None if it can."""
    if (absent := missing(SCAN)) is not None:
        return absent
    x = _lowered(x)
    rows = (x.u, x.delta, x.B, x.C, x.z)
    if x.initial_state is not None:
        return "its scan starts from zero and takes no initial state"
    if x.resets is not None:
        return "its scan has no resets inside a sequence"
    if x.A.shape[1] > _MAX_STATES:
        return f"its scan takes up to {_MAX_STATES} states, this call has {x.A.shape[1]}"
    why = unfit(rows, (x.A, x.D, x.delta_bias))
    if why is None and len({t.dtype for t in rows if t is not None}) > 1:
        why = "its scan needs u, delta, B, C and z in one dtype"
    return why


def run(x: Arguments) -> tuple[Tensor, Tensor]:
    """Runs a checked call by ``selective_scan_fn``, channels first.

    Returns:
        The output (B, L, D), and the final state (B, D, N) float32, which raises where it is
        differentiated.
    """
    x = _lowered(x)
    with autocast_off(x.u):
        y, last = load(SCAN)(
            x.u.transpose(1, 2).contiguous(),
            x.delta.transpose(1, 2).contiguous(),
            x.A.float().contiguous(),
            x.B.permute(0, 2, 3, 1).contiguous(),
            x.C.permute(0, 2, 3, 1).contiguous(),
            None if x.D is None else x.D.float().contiguous(),
            None if x.z is None else x.z.transpose(1, 2).contiguous(),
            None if x.delta_bias is None else x.delta_bias.float().contiguous(),
            x.delta_softplus,
            return_last_state=True,
        )
    return y.transpose(1, 2), _NoGradient.apply(last)
