r"""One position of a whole Mamba layer in one call of the CPU kernels, for decoding.

    u, z = W_in x;   u' = silu(conv(u));   Δ, B, C = W_x u';
    y = W_out (scan(u', W_dt Δ, A, B, C, D) · silu(z))

At a batch of one, time goes into reading the weights and into the calls between them; here the weights are
read once, in order, by all threads, and nothing else is called.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from longseq.core.ops import _native
from longseq.core.ops.backends import native

LARGEST_BATCH = 8
"""Beyond it, matrix products that keep the weights in registers are faster."""


def serves(state: Tensor, x: Tensor, weights: tuple[Tensor | None, ...]) -> bool:
    """Returns whether ``mamba_step`` takes these tensors: of one dtype, dense, a small batch.

    Args:
        state: h (B, D, N).
        x: (B, d_model).
        weights: the layer's parameters and the convolution's state; None for an absent bias.
    """
    dtype, width = x.dtype, weights[1].shape[1]  # type: ignore[union-attr]
    if dtype not in (torch.float32, torch.float64) or x.shape != (state.shape[0], width):
        return False
    if not 1 <= x.shape[0] <= LARGEST_BATCH:
        return False
    return all(t is None or (t.dtype == dtype and t.is_contiguous()) for t in (state, x, *weights))


def plain_maps(*maps: nn.Module) -> bool:
    """Returns whether these are linear maps and no more: no hooks, no forward of their own."""
    return all(
        type(m) is nn.Linear
        and not m._forward_hooks
        and not m._forward_pre_hooks
        and "forward" not in m.__dict__
        for m in maps
    )


def mamba_step(
    x: Tensor, conv: Tensor, state: Tensor, weights: tuple[Tensor | None, ...]
) -> tuple[Tensor, Tensor, Tensor]:
    """Takes one step. Only for tensors that are ``direct`` and that ``serves`` accepts.

    Args:
        x: (B, d_model).
        conv: the last d_conv - 1 inputs of the convolution, (B, d_conv - 1, D).
        state: h (B, D, N).
        weights: of the input map (2 D, d_model), its bias or None; of the convolution (D, 1, d_conv), its
            bias or None; of the map to Δ, B and C (rank + 2 N, D); of that to the step sizes (D, rank)
            and its bias (D,); log(-A) (D, N); skip (D,); of the output map (d_model, D), its bias or None.

    Returns:
        y (B, d_model), the new ``conv`` and the new ``state``.
    """
    y, next_conv, after = torch.empty_like(x), torch.empty_like(conv), torch.empty_like(state)
    batch, width, states = state.shape
    rank, taps = weights[5].shape[1], conv.shape[1] + 1  # type: ignore[union-attr]
    size = 3 * width * x.shape[1]
    native().mamba_step(
        (batch, x.shape[1], width, states, rank, taps),
        _native.code(x.dtype),
        _native.threads(batch * size),
        [_native.pointer(t) for t in (x, conv, state, *weights, y, next_conv, after)],
    )
    return y, next_conv, after
