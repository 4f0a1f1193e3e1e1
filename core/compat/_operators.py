"""The operators under the published functions, which take sequences without a position too: the
published signatures meet them where packed rows or a prompt are empty."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from longseq.core.ops import causal_conv1d as _conv
from longseq.core.ops import selective_scan as _scan
from longseq.core.ops import ssd as _ssd
from longseq.core.ops.ssd.arguments import Arguments

__all__ = ["causal_conv1d", "selective_scan", "ssd"]


def _one_position(t: Tensor | None) -> Tensor | None:
    """Returns (B, L, …) with a position of zeros after the last."""
    return t if t is None or t.dim() < 2 else pad(t, (0, 0) * (t.dim() - 2) + (0, 1))


def _untouched(
    run: Callable[..., tuple[Tensor, Tensor]], initial: Tensor | None, *arguments: Any, **named: Any
) -> tuple[Tensor, Tensor]:
    """Returns no position of an output, and the state as it was.

    The operator runs over one position of zeros, which checks the arguments; their gradients are
    zero whatever they hold, and not absent.
    """
    with torch.no_grad():
        y, state = run(*arguments, **named)
    nothing = y.new_zeros(())
    for t in (*arguments, *named.values()):
        if isinstance(t, Tensor) and t.requires_grad:
            none = t.reshape(-1)[:0].sum()
            nothing = nothing + (none.real if t.is_complex() else none).to(nothing.dtype)
    before = torch.zeros_like(state) if initial is None else initial.to(state.dtype)
    return y[:, :0] + nothing, before + nothing.to(state.dtype)


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    initial_state: Tensor | None = None,
    resets: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """``longseq.core.ops.causal_conv1d`` for any length of x."""
    if not isinstance(x, Tensor) or x.dim() != 3 or x.shape[1]:
        return _conv.causal_conv1d(x, weight, bias, initial_state, resets, **options)
    row, start = _one_position(x), _one_position(resets)
    assert row is not None
    arguments = row, weight, bias, initial_state, start
    return _untouched(_conv.causal_conv1d, initial_state, *arguments, **options)


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *channels: Tensor | None,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """``longseq.core.ops.selective_scan`` for any length of u, from a state of zeros.

    Args:
        u: as the next four, see there.
        delta: step sizes.
        A: decays.
        B: input map.
        C: output map.
        *channels: D, z and delta_bias.
        **options: delta_softplus and backend.
    """
    if u.dim() != 3 or u.shape[1]:
        return _scan.selective_scan(u, delta, A, B, C, *channels, **options)
    D, z, bias = (*channels, None, None, None)[:3]
    u, delta, B, C, z = (_one_position(t) for t in (u, delta, B, C, z))  # type: ignore[assignment]
    return _untouched(_scan.selective_scan, None, u, delta, A, B, C, D, z, bias)


def ssd(*arguments: Any) -> tuple[Tensor, Tensor]:
    """``longseq.core.ops.ssd`` for any length of x; arguments in its order."""
    call = Arguments(*arguments)
    if not isinstance(call.x, Tensor) or call.x.dim() != 4 or call.x.shape[1]:
        return _ssd.ssd(*call)
    named: dict[str, Any] = call._asdict()
    for key in ("x", "dt", "B", "C", "z", "resets"):
        named[key] = _one_position(named[key])
    longer = Arguments(**named)
    return _untouched(_ssd.ssd, call.initial_states, *longer)
