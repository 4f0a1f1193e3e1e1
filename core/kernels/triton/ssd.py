"""State-space duality by Triton: linear attention whose keys are B, queries C, values x, input
factors dt."""

from __future__ import annotations

from torch import Tensor

from longseq.core.kernels.triton.linear_attention import attend


def scan(
    x: Tensor,
    step: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    initial_states: Tensor | None,
    resets: Tensor | None,
    chunk_size: int,
) -> tuple[Tensor, Tensor]:
    """Runs h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_tᵀ, y_t = h_t C_t + D x_t.

    Args:
        x: (B, L, H, P).
        step: dt after bias, softplus and limits (B, L, H).
        A: (H,).
        B: (B, L, G, N).
        C: (B, L, G, N).
        D: (H,), (H, P) or None.
        initial_states: (B, H, P, N) or None.
        resets: bool (B, L) or None.
        chunk_size: positions per chunk asked for.

    Returns:
        The output (B, L, H, P) in x's dtype and the final state (B, H, P, N), float32.
    """
    step = step.float()
    decay = step * A.float()
    if resets is not None:
        decay = decay.masked_fill(resets.unsqueeze(-1), float("-inf"))
    skip = None
    if D is not None:
        skip = (D if D.ndim == 2 else D.unsqueeze(-1)).float().expand(x.shape[2:])
    state = None if initial_states is None else initial_states.transpose(-1, -2)
    y, last = attend(C, B, x, decay, 1.0, state, chunk_size, weight=step, skip=skip)
    return y, last.transpose(-1, -2)
