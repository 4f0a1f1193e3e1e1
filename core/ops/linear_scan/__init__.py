r"""Linear scan h_t = a_t h_{t-1} + b_t over time: the recurrence of S5, the LRU and minGRU."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from longseq.core.errors import ArgumentError
from longseq.core.ops.arguments import check_device, check_kind, check_shape, present
from longseq.core.ops.backends import Backend, Dispatch
from longseq.core.ops.linear_scan import cpu, cuda, torch_op
from longseq.core.ops.linear_scan.arguments import Arguments
from longseq.core.ops.linear_scan.reference import linear_scan_reference
from longseq.core.ops.precision import compute_dtype

__all__ = ["linear_scan", "linear_scan_reference"]
_NAME = "linear_scan"


def _example(new: Callable[..., Tensor]) -> Arguments:
    return Arguments(new(1, 64, 32), new(1, 64, 32), None)


_DISPATCH = Dispatch(_NAME, {"cpu": cpu.reason, "cuda": cuda.reason}, _example)


def linear_scan(
    a: Tensor, b: Tensor, initial_state: Tensor | None = None, *, backend: Backend = "auto"
) -> tuple[Tensor, Tensor]:
    """Runs h_t = a_t h_{t-1} + b_t for every channel.

    Args:
        a: decays, broadcastable to b; a decay of exactly zero resets the channel.
        b: inputs (B, L, …), real or complex; float32, float64, bfloat16, float16, complex64 or
            complex128.
        initial_state: (B, …); zero if None.
        backend: see ``longseq.core.ops.backends``.

    Returns:
        All states (B, L, …) and the last one (B, …): float32 or float64 or their complex
        counterparts.

    Raises:
        ArgumentError: naming the argument that does not fit.
    """
    check_kind(_NAME, False, a=a, b=b, **present(initial_state=initial_state))
    if b.dim() < 2 or b.shape[1] == 0:
        raise ArgumentError(
            f"{_NAME}: b must be (batch, length ≥ 1, channels…), got {tuple(b.shape)}"
        )
    check_shape(_NAME, "b", b, b.shape, "(batch, length, channels…)")
    try:
        a_full = a.expand(b.shape)
    except RuntimeError:
        raise ArgumentError(
            f"{_NAME}: a must broadcast to the shape of b {tuple(b.shape)}, got {tuple(a.shape)}"
        ) from None
    check_shape(_NAME, "a", a_full, b.shape, "(batch, length, channels…)")
    shape = (b.shape[0], *b.shape[2:])
    if initial_state is not None:
        check_shape(_NAME, "initial_state", initial_state, shape, "(batch, channels…)")
    check_device(_NAME, b, {"a": a, "initial_state": initial_state})
    dtype = compute_dtype(a, b, initial_state)
    if any(t is not None and t.is_complex() for t in (a, b, initial_state)):
        # The kernel takes all complex or all real.
        dtype = torch.promote_types(dtype, torch.complex64)
        a_full, b = a_full.to(dtype), b.to(dtype)
    elif dtype != compute_dtype(a, b):
        b = b.to(dtype)  # only the initial state is float64
    if _DISPATCH.choose(backend, Arguments(a, b, initial_state)) == "reference":
        h = linear_scan_reference(a_full, b, initial_state)
    else:
        flat = initial_state
        if flat is not None:
            flat = flat.to(dtype).flatten(1) if flat.dim() > 1 else flat.to(dtype).unsqueeze(1)
        h = torch_op.forward(_flatten(a_full), _flatten(b), flat).view(b.shape)
    return h, h[:, -1].clone()


def _flatten(tensor: Tensor) -> Tensor:
    """Returns (B, L, …) as (B, L, D), keeping a broadcast batch or time dimension
    unmaterialised."""
    return tensor.unsqueeze(2) if tensor.dim() == 2 else tensor.flatten(2)
