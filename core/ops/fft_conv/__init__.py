"""Causal long convolution by real FFTs: carried history, packed segments, and the direct sum."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from longseq.core.ops.backends import Backend, Dispatch
from longseq.core.ops.fft_conv import composed, cpu, torch_op
from longseq.core.ops.fft_conv.arguments import NAME, Arguments, check, work_dtype
from longseq.core.ops.fft_conv.composed import fft_size
from longseq.core.ops.fft_conv.reference import fft_conv_reference
from longseq.core.ops.fft_conv.segments import by_segments, carry_history, segment_table

__all__ = [
    "carry_history",
    "fft_conv",
    "fft_conv_reference",
    "fft_size",
    "segment_table",
    "work_dtype",
]


def _example(new: Callable[..., Tensor]) -> Arguments:
    return Arguments(new(1, 64, 32), new(32, 64))


# For other devices torch's own FFTs are the operator's proper form, which nobody needs to be warned
# of.
_DISPATCH = Dispatch(NAME, {"cpu": cpu.reason}, _example, "composed", announced=False)


def fft_conv(
    u: Tensor,
    k: Tensor,
    skip: Tensor | None = None,
    history: Tensor | None = None,
    segment_ids: Tensor | None = None,
    *,
    backend: Backend = "auto",
) -> Tensor:
    """Causal convolution ``y[t] = Σ_j k[j]·u[t-j] + skip·u[t]`` in O((H + L) log(H + L)).

    The history is joined to the input and only the outputs of the new positions are kept
    (overlap-save), so that the FFT may wrap around into what is thrown away: its size is max(H + L,
    L + taps - 1). A sequence much longer than the kernel is cut into overlapping frames, O(L log
    taps). Packed segments are convolved apart, in groups padded to the next power of two. Computed
    in float32, or float64 if u or k is; on a CPU by compiled kernels that keep nothing but the
    input and the kernel for the backward, elsewhere by ``torch.fft``.

    Args:
        u: input (B, L, D), L ≥ 1.
        k: kernel (D, taps), any number of taps.
        skip: weight (D,) of a direct connection.
        history: inputs (B, H, D) before position 0, oldest first, any H ≥ 0; zeros stand for
            nothing.
        segment_ids: integers (B, L); a change of id ends the reach of what came before. Position 0
            continues the history.
        backend: see ``longseq.core.ops.backends``; "reference" is the direct sum.

    Returns:
        (B, L, D) in u's dtype.

    Raises:
        ArgumentError: for shapes that do not fit.
        BackendError: if the backend asked for cannot serve the call.
    """
    call = Arguments(u, k, skip, history, segment_ids)
    check(call)
    chosen = _DISPATCH.choose(backend, call)
    if chosen == "reference":
        return fft_conv_reference(*call)
    convolve = torch_op.convolve if chosen == "cpu" else composed.convolve
    dtype = work_dtype(u, k)
    x, taps = u, k.to(dtype)
    if history is not None:
        # Older inputs are out of the kernel's reach.
        reach = min(history.shape[1], taps.shape[1] - 1)
        x = torch.cat([history[:, history.shape[1] - reach :].to(u.dtype), u], 1) if reach else u
    direct = None if skip is None else skip.to(dtype)
    if segment_ids is None:
        return convolve(x, taps, direct, u.shape[1]).to(u.dtype)
    y = by_segments(x, taps, segment_ids, convolve)
    return (y if direct is None else y + direct * u).to(u.dtype)
