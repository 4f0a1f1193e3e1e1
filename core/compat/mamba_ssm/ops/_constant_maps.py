"""The selective scan where B or C, or both, do not depend on time."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import silu
from torch.utils.checkpoint import checkpoint

from longseq.core.compat._operators import selective_scan
from longseq.core.errors import ArgumentError
from longseq.core.ops.precision import autocast_off, compute_dtype


def scan_with_constant_maps(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    maps: list[Tensor],
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> tuple[Tensor, Tensor]:
    """The scan where B or C, or both, are constants (D, N).

    The recurrence is linear, so a factor per channel and state can be applied to what comes out of
    it: each state is scanned with ones in the place of the constants. That is one scan per state,
    in the memory of a few (B, L, D) tensors; in the backward pass each is run again.
    """
    if (maps[0].is_complex() or maps[1].is_complex()) and not A.is_complex():
        raise ArgumentError(
            "selective_scan_fn: B or C is complex, so A must be, got " + str(A.dtype)
        )
    dtype = compute_dtype(u, A)
    state_dtype = torch.promote_types(dtype, torch.complex64) if A.is_complex() else dtype
    batch, length, _ = u.shape
    groups = next((m.shape[2] for m in maps if m.dim() == 4), 1)
    ones = torch.ones((), dtype=state_dtype, device=u.device).expand(batch, length, groups, 1)
    x = u.to(dtype)

    def one_state(
        n: int, x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor
    ) -> tuple[Tensor, Tensor]:
        def scan(turn: complex) -> tuple[Tensor, Tensor]:
            B_n, C_n = (m[..., n : n + 1].to(state_dtype) if m.dim() == 4 else ones for m in (B, C))
            C_n = C_n if turn == 1 else turn * C_n
            return selective_scan(
                x,
                delta,
                A[:, n : n + 1],
                B_n,
                C_n,
                None,
                None,
                delta_bias,
                delta_softplus=delta_softplus,
            )

        first, second = (m[:, n].to(state_dtype) if m.dim() == 2 else None for m in (B, C))
        y, last = scan(1)
        if first is not None:
            last = last * first.unsqueeze(-1)
        factor = first if second is None else second if first is None else first * second
        assert factor is not None  # one of the maps is a constant
        if factor.is_complex():
            # The operator returns real parts only; the imaginary part of w is the real part of -iw.
            return y * factor.real - scan(-1j)[0] * factor.imag, last
        return y * factor, last

    recompute = torch.is_grad_enabled()
    outputs, states = torch.zeros_like(x), []
    with autocast_off(u):  # x is at full precision because outputs are summed
        for n in range(A.shape[1]):
            arguments = (n, x, delta, A, *maps)
            if recompute:
                y, last = checkpoint(
                    one_state, *arguments, use_reentrant=False, preserve_rng_state=False
                )
            else:
                y, last = one_state(*arguments)  # type: ignore[arg-type]
            outputs = outputs + y
            states.append(last)
        if D is not None:
            outputs = outputs + x * D.to(dtype)
        if z is not None:
            outputs = outputs * silu(z.to(dtype))
    return outputs.to(u.dtype), torch.cat(states, -1)
