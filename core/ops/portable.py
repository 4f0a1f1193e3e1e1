r"""Our operators in torch's own operations, for exported programs that run where longseq is not.

A recurrence h_t = a_t h_{t-1} + b_t becomes log2(L) steps over the whole sequence (Hillis and
Steele 1986): after step k, position t holds the composition of the 2^k maps that end with its own.
Decays of at most 1 only become smaller on the way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from longseq.core.errors import ConfigError
from longseq.core.ops.linear_attention import chunked
from longseq.core.ops.linear_attention.arguments import Arguments


def doubling_scan(a: Tensor, b: Tensor, initial_state: Tensor | None = None) -> Tensor:
    """Returns the states of h_t = a_t h_{t-1} + b_t along dimension 1.

    Args:
        a: factors (B, L, …).
        b: inputs of the same shape.
        initial_state: (B, …); zero if None.
    """
    if initial_state is not None:
        b = torch.cat([b[:, :1] + a[:, :1] * initial_state.unsqueeze(1), b[:, 1:]], 1)
    step = 1
    while step < b.shape[1]:
        # Few operations: exporters take tens of milliseconds over each.
        b = b + a * _later(b, step, 0.0)
        if 2 * step < b.shape[1]:
            a = a * _later(a, step, 1.0)
        step *= 2
    return b


def _later(x: Tensor, steps: int, first: float) -> Tensor:
    """Returns x (B, L, …) that many positions later, after as many of one value."""
    return F.pad(x[:, :-steps], (0, 0) * (x.dim() - 2) + (steps, 0), value=first)


def _linear_scan(a: Tensor, b: Tensor, initial_state: Tensor | None) -> Tensor:
    return doubling_scan(a.expand_as(b), b, initial_state)


def _causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    resets: Tensor | None,
    silu: bool,
) -> Tensor:
    if resets is not None:
        raise ConfigError("an exported program knows no packed sequences (resets)")
    taps = weight.shape[1]
    if initial_state is None:
        padded = F.pad(x, (0, 0, taps - 1, 0))
    else:
        padded = torch.cat([initial_state.to(x.dtype), x], 1)
    y = F.conv1d(padded.transpose(1, 2), weight.unsqueeze(1), bias, groups=len(weight))
    return (F.silu(y) if silu else y).transpose(1, 2)


def _selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    initial_state: Tensor | None,
    resets: Tensor | None,
    delta_softplus: bool,
    save_states: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    if A.is_complex():
        raise ConfigError("an exported program knows no complex states")
    dt = delta if delta_bias is None else delta + delta_bias
    dt = F.softplus(dt) if delta_softplus else dt
    width, states = A.shape
    B, C = (m if m.dim() == 4 else m.unsqueeze(2) for m in (B, C))
    groups = B.shape[2]

    def per_channel(m: Tensor) -> Tensor:  # (B, L, G, N) to (B, L, D, N)
        if groups == 1:
            return m
        return m.unsqueeze(3).expand(-1, -1, -1, width // groups, -1).flatten(2, 3)

    keep = torch.exp(dt.unsqueeze(3) * A)
    if resets is not None:
        keep = torch.where(resets[:, :, None, None], torch.zeros_like(keep), keep)
    h = doubling_scan(keep, (dt * u).unsqueeze(3) * per_channel(B), initial_state)
    y = h[..., 0] * per_channel(C)[..., 0] if states == 1 else (h * per_channel(C)).sum(3)
    y = y if D is None else y + D * u
    y = y if z is None else y * F.silu(z)
    return y.to(u.dtype), h[:, -1], u.new_zeros((0,))


def _decay_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    step: Tensor | None,
    skip: Tensor | None,
    chunk_size: int,
    state: Tensor,
    marked: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    y, last = chunked.per_head(q, k, v, g, state, chunk_size, step, skip)
    return y, last, v.new_zeros((0,))


def _channel_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor | None,
    g: Tensor | None,
    resets: Tensor | None,
    state: Tensor | None,
    scale: float,
    chunk_size: int,
    marked: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    y, last = chunked.run(Arguments(q, k, v, g, scale, state, resets, chunk_size))
    return y, last, v.new_zeros((0,))


_FORMS: dict[str, Callable[..., Any]] = {
    "linear_scan": _linear_scan,
    "causal_conv1d": _causal_conv1d,
    "channel_attention": _channel_attention,
    "decay_attention": _decay_attention,
    "selective_scan": _selective_scan,
}


def portable(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """Returns an exported program in torch's own operations only.

    Args:
        program: from ``torch.export.export``, its sequences of a fixed length.

    Raises:
        ConfigError: naming an operator that has no such form.
    """
    own = {
        str(node.target).split(".")[1]
        for module in program.graph_module.modules()  # regions of other autocast are nested
        if hasattr(module, "graph")
        for node in module.graph.nodes
        if str(node.target).startswith("longseq.")
    }
    if missing := sorted(own - set(_FORMS)):
        raise ConfigError(
            f"{', '.join(missing)} cannot be exported without longseq; those that can: "
            f"{', '.join(sorted(_FORMS))}"
        )
    table: dict[Any, Callable[..., Any]] = dict(torch.export.default_decompositions())
    table |= {getattr(torch.ops.longseq, name).default: _FORMS[name] for name in own}
    return program.run_decompositions(table)
