"""One step of a diagonal state-space layer by ``selective_scan`` or ``ssd`` at L = 1."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import softplus

from longseq.core.ops.backends import Backend
from longseq.core.ops.selective_scan import selective_scan
from longseq.core.ops.ssd import ssd
from longseq.core.ops.state_update.arguments import Arguments


def _rates(call: Arguments) -> Tensor:
    """Returns the negative decay rates; one near 0 needs more digits than half precision has."""
    if not call.log_decay:
        return call.A
    return -torch.exp(call.A if call.A.dtype == torch.float64 else call.A.float())


def run(call: Arguments, backend: Backend) -> tuple[Tensor, Tensor]:
    """Takes one step by the operators, which any autograd, compiler, transform or autocast sees."""
    B, C = (m.unsqueeze(1) if m.dim() == 3 else m[:, None, None] for m in (call.B, call.C))
    return (_by_heads if call.A.dim() == 1 else _by_channels)(call, B, C, backend)


def _by_heads(call: Arguments, B: Tensor, C: Tensor, backend: Backend) -> tuple[Tensor, Tensor]:
    """A decay per head: A (H,), and the state (B, H, P, N) or (B, D, N)."""
    heads, D = call.A.shape[0], call.D
    rows = (heads, call.x.shape[1] // heads)
    state = call.state if call.state.dim() == 4 else call.state.unflatten(1, rows)
    y, last = ssd(
        call.x.unflatten(-1, rows).unsqueeze(1),
        call.dt.unsqueeze(1),
        _rates(call),
        B,
        C,
        D=D if D is None or D.shape[0] == heads else D.view(rows),
        z=None if call.z is None else call.z.unflatten(-1, rows).unsqueeze(1),
        dt_bias=call.dt_bias,
        initial_states=state,
        dt_softplus=call.dt_softplus,
        dt_limit=call.dt_limit,
        backend=backend,
    )
    return y.squeeze(1).flatten(1), last.view(call.state.shape)


def _by_channels(call: Arguments, B: Tensor, C: Tensor, backend: Backend) -> tuple[Tensor, Tensor]:
    """A decay per channel and state: A (D, N)."""
    width, dt, bias, with_softplus = call.x.shape[1], call.dt, call.dt_bias, call.dt_softplus

    def per_channel(x: Tensor | None) -> Tensor | None:
        return x if x is None else x.repeat_interleave(width // x.shape[-1], -1)

    if call.limited():
        dt = dt if bias is None else dt + bias
        dt, bias, with_softplus = (
            (softplus(dt) if with_softplus else dt).clamp(*call.dt_limit),
            None,
            False,
        )
    step = per_channel(dt)
    assert step is not None
    y, last = selective_scan(
        call.x.unsqueeze(1),
        step.unsqueeze(1),
        _rates(call),
        B,
        C,
        per_channel(call.D),
        None if call.z is None else call.z.unsqueeze(1),
        per_channel(bias),
        delta_softplus=with_softplus,
        initial_state=call.state if call.state.dim() == 3 else call.state.flatten(1, 2),
        backend=backend,
    )
    return y.squeeze(1), last.view(call.state.shape)
