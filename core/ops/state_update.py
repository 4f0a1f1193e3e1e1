r"""One position of a diagonal state-space layer, for decoding: ``selective_scan`` and ``ssd`` at L = 1.

    Δ = softplus(dt + dt_bias);   h' = exp(Δ A) h + Δ B u;   y = (C h' + D u) · silu(z)

The kernels are called without the dispatch of a custom operator, which would cost more than the arithmetic;
so they serve only calls that no autograd, compiler, transform or autocast has to see. ``direct`` says which.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from longseq.core.ops import _native
from longseq.core.ops.backends import cpu_reason, native


def direct(*tensors: Tensor | None) -> bool:
    """Returns whether kernels may be called on these tensors directly.

    Args:
        *tensors: the call's arguments, parameters included; None stands for an absent one.
    """
    if torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu") or _native.in_transform():
        return False
    if cpu_reason() is not None:
        return False
    if torch._C._len_torch_dispatch_stack() > 0:
        return False
    grad = torch.is_grad_enabled()
    for t in tensors:
        if t is None:
            continue
        # Another subclass, such as a fake tensor, has no memory of its own to point at.
        if type(t) not in _PLAIN or not t.is_cpu or t.is_neg() or (grad and t.requires_grad):
            return False
    return True


_PLAIN = (Tensor, torch.nn.Parameter)


def state_update(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, math.inf),
    log_decay: bool = False,
) -> tuple[Tensor, Tensor]:
    """Takes one step. Only for tensors that are ``direct``; shapes are the caller's business.

    Args:
        state: h, (B, D, N) or (B, H, P, N), real, of the compute dtype.
        x: u, (B, D), with D = H P.
        dt: step sizes before bias and softplus: (B, D), or (B, H) one for each head.
        A: decays (D, N), or (H,) one number for each head.
        B: input map (B, N) or (B, G, N).
        C: output map, as B.
        D: skip (D,) or (H,).
        z: gate (B, D).
        dt_bias: (D,) or (H,), as dt.
        dt_softplus: whether the softplus is applied.
        dt_limit: bounds of the step size; (0, inf) is no bound, as in ``ssd``.
        log_decay: whether ``A`` is log(-A).

    Returns:
        y (B, D) in x's dtype and the new state, shaped as ``state``.
    """
    batch, width = x.shape
    dtype = state.dtype
    heads = dt.shape[1]
    x, dt, B, C = _dense(x), _dense(dt), _dense(B), _dense(C)
    z = None if z is None else _dense(z)
    vectors = [_native.vector(t, dtype) for t in (A, D, dt_bias, state)]
    y, after = x.new_empty(batch, width), state.new_empty(state.shape)
    if not after.numel():
        return y.zero_(), after
    states = state.shape[-1]
    scalar = A.dim() == 1
    skip_per_head = D is not None and D.shape[0] == heads
    groups = B.shape[1] if B.dim() == 3 else 1
    low, high = (-math.inf, math.inf) if tuple(dt_limit) == (0.0, math.inf) else dt_limit
    p, rows = _native.pointer, _rows
    native().state_update(
        (batch, width, states, groups, width // heads), (dt_softplus, log_decay, scalar, skip_per_head),
        low, high, _native.code(dtype), _native.threads(batch * width * states), rows(x), rows(dt),
        p(vectors[0]), rows(B), rows(C), p(vectors[1]), rows(z), p(vectors[2]), p(vectors[3]), rows(y),
        p(after),
    )  # fmt: skip
    return y, after


def _dense(tensor: Tensor) -> Tensor:
    """Returns the tensor with every dimension after the first dense."""
    if tensor.dim() == 2:
        return tensor if tensor.stride(1) == 1 else tensor.contiguous()
    dense = tensor.stride(2) == 1 and tensor.stride(1) == tensor.shape[2]
    return tensor if dense else tensor.contiguous()


def _rows(tensor: Tensor | None) -> _native.Arg:
    """Returns (pointer, dtype, batch stride, 0)."""
    if tensor is None:
        return 0, 0, 0, 0
    return tensor.data_ptr(), _native.code(tensor.dtype), tensor.stride(0), 0
