"""The functions below causal-conv1d's interface: forward, backward and update without autograd."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from longseq.core.compat._names import module_getattr
from longseq.core.compat._tensors import pullback
from longseq.core.compat.causal_conv1d.causal_conv1d_interface import (
    causal_conv1d_fn,
    causal_conv1d_update,
)

__all__ = [
    "causal_conv1d_bwd_function",
    "causal_conv1d_fwd_function",
    "causal_conv1d_update_function",
]
__getattr__ = module_getattr(__name__)


def causal_conv1d_fwd_function(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    seq_idx: Tensor | None,
    initial_states: Tensor | None,
    final_states_out: Tensor | None,
    silu_activation: bool,
) -> Tensor:
    """Returns the output (B, D, L); fills ``final_states_out``. See ``causal_conv1d_fn``."""
    wanted = final_states_out is not None
    activation = "silu" if silu_activation else None
    with torch.no_grad():
        out = causal_conv1d_fn(
            x, weight, bias, seq_idx, initial_states, wanted, final_states_out, activation
        )
    return out if isinstance(out, Tensor) else out[0]


def causal_conv1d_bwd_function(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    dout: Tensor,
    seq_idx: Tensor | None,
    initial_states: Tensor | None,
    dfinal_states: Tensor | None,
    dx: Tensor | None,
    return_dinitial_states: bool,
    silu_activation: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Returns the gradients of x, weight, bias and the initial states.

    Args:
        x: see ``causal_conv1d_fn`` for this and what is not named here.
        weight: kernels (D, W).
        bias: (D,).
        dout: gradient of the output (B, D, L).
        seq_idx: (B, L).
        initial_states: (B, D, W-1).
        dfinal_states: gradient of the final states (B, D, W-1).
        dx: where the gradient of x is written, if given.
        return_dinitial_states: whether the last gradient is wanted; it is None otherwise.
        silu_activation: whether the output was passed through it.
    """
    activation = "silu" if silu_activation else None

    def run(leaves: Sequence[Tensor | None]) -> Tensor | tuple[Tensor, ...]:
        x, weight, bias, initial = leaves
        assert x is not None and weight is not None
        more = dfinal_states is not None
        return causal_conv1d_fn(x, weight, bias, seq_idx, initial, more, None, activation)

    past = initial_states
    grads = [dout] if dfinal_states is None else [dout, dfinal_states]
    found = pullback(run, [x, weight, bias, past], grads)
    if dx is not None and found[0] is not None:
        found[0] = dx.copy_(found[0])
    return found[0], found[1], found[2], found[3] if return_dinitial_states else None


def causal_conv1d_update_function(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    silu_activation: bool,
    cache_seqlens: Tensor | None = None,
    conv_state_indices: Tensor | None = None,
) -> Tensor:
    """Returns the output, as x; moves ``conv_state`` on. See ``causal_conv1d_update``."""
    activation = "silu" if silu_activation else None
    with torch.no_grad():
        return causal_conv1d_update(
            x, conv_state, weight, bias, activation, cache_seqlens, conv_state_indices
        )
