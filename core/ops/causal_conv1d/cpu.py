"""The causal convolution by the compiled CPU kernels: fills results that ``torch_op`` has made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from longseq.core.ops import cpu_calls
from longseq.core.ops.backends import cpu_reason, native
from longseq.core.ops.causal_conv1d.arguments import Arguments
from longseq.core.ops.precision import compute_dtype

SHORT = 64
"""Positions that ``shift`` takes at most: it holds them beside the buffer, tile by tile."""


def reason(call: Arguments) -> str | None:
    """Returns why the kernels cannot take a call, or None if they can."""
    return cpu_reason(*call[:4])


def _backwards(rows: cpu_calls.Wide, length: int, size: int) -> cpu_calls.Wide:
    """Returns the rows of a tensor from the last to the first, as a kernel takes them.

    Args:
        rows: of ``cpu_calls.across``, channels dense.
        length: L.
        size: bytes of an element.
    """
    address, dtype, batch, time, channels = rows
    return address + (length - 1) * time * size, dtype, batch, -time, channels


def _rows(tensor: Tensor, reverse: bool) -> cpu_calls.Wide:
    """Returns how a kernel takes a tensor (B, L, D) with dense channels, whichever way."""
    rows = cpu_calls.across(tensor)
    return _backwards(rows, tensor.shape[1], tensor.element_size()) if reverse else rows


def _arguments(call: Arguments, reverse: bool = False) -> tuple[list[Any], list[Any]]:
    """Returns the kernels' common arguments and the tensors that must outlive the call."""
    dtype = compute_dtype(call.x, call.weight)
    x = cpu_calls.dense(call.x) if reverse else cpu_calls.strided(call.x)
    initial = None if call.initial_state is None else cpu_calls.dense(call.initial_state)
    weight, bias = (cpu_calls.vector(t, dtype) for t in (call.weight, call.bias))
    flags = None if call.resets is None else call.resets.to(torch.uint8).contiguous()
    batch, length, channels = x.shape
    arguments = [
        (batch, length, channels, call.weight.shape[1]),
        call.silu,
        cpu_calls.code(dtype),
        cpu_calls.threads(batch * length * channels * 4),
        _rows(x, reverse),
        cpu_calls.pointer(weight),
        cpu_calls.pointer(bias),
        cpu_calls.rows(initial),
        cpu_calls.pointer(flags),
    ]
    return arguments, [x, weight, bias, initial, flags]


def forward(y: Tensor, call: Arguments, reverse: bool = False) -> None:
    """Fills y (B, L, D), time dense where x's is; backwards, channels are dense, and there are
    neither an initial state nor resets."""
    arguments, alive = _arguments(call, reverse)
    native().causal_conv_forward(*arguments, _rows(y, reverse))
    del alive


def backward(outputs: Sequence[Tensor], dy: Tensor, call: Arguments, reverse: bool = False) -> None:
    """Fills the gradients of x, weight, bias and the initial state; those of absent ones are left
    alone."""
    dx, dweight, dbias, dinitial = outputs
    arguments, alive = _arguments(call, reverse)
    dtype = compute_dtype(call.x, call.weight)
    rows_w = dx.new_empty((dx.shape[0], *call.weight.shape), dtype=dtype)
    rows_b = dx.new_empty((dx.shape[0], dx.shape[2]), dtype=dtype)
    cpu_calls.fresh(dx)
    dy = cpu_calls.strided_as(dy, dx)
    native().causal_conv_backward(
        *arguments,
        _rows(dy, reverse),
        _rows(dx, reverse),
        cpu_calls.rows(None if call.initial_state is None else dinitial),
        rows_w.data_ptr(),
        rows_b.data_ptr(),
    )
    del alive
    dweight.copy_(rows_w.sum(0))
    if call.bias is not None:
        dbias.copy_(rows_b.sum(0))


def update(
    x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor, silu: bool
) -> tuple[Tensor, Tensor]:
    """Convolves one position, past torch's dispatcher: only where ``cpu_calls.direct_reason`` is
    None.

    Args:
        x: input (B, D).
        weight: kernels (D, W) or (D, 1, W).
        bias: (D,).
        state: the W-1 inputs before x (B, W-1, D).
        silu: whether that is the activation.

    Returns:
        The output (B, D) in x's dtype, and the last W-1 inputs (B, W-1, D).
    """
    dtype = compute_dtype(x, weight)
    taps, channels = weight.shape[-1], x.shape[1]
    x = x if x.stride(1) == 1 else x.contiguous()
    dense, bias = (cpu_calls.vector(t, dtype) for t in (weight, bias))
    state = cpu_calls.dense(state)
    y, after = x.new_empty(x.shape), x.new_empty(state.shape)
    if y.numel():
        native().causal_conv_update(
            (x.shape[0], 1, channels, taps),
            silu,
            cpu_calls.code(dtype),
            cpu_calls.threads(x.shape[0] * channels * 4),
            (x.data_ptr(), cpu_calls.code(x.dtype), x.stride(0), 0),
            cpu_calls.pointer(dense),
            cpu_calls.pointer(bias),
            cpu_calls.rows(state),
            (y.data_ptr(), cpu_calls.code(y.dtype), channels, 0),
            cpu_calls.rows(after),
        )
    return y, after


def shift(call: Arguments, buffer: Tensor) -> Tensor:
    """Convolves the positions after a buffer and moves it on, past torch's dispatcher: only where
    ``cpu_calls.direct_reason`` is None.

    Args:
        call: at most ``SHORT`` positions, no initial state and no resets.
        buffer: the last T inputs (B, T, D) in x's dtype, any strides.

    Returns:
        The output (B, L, D).
    """
    x, dtype = call.x, compute_dtype(call.x, call.weight)
    weight, bias = (cpu_calls.vector(t, dtype) for t in (call.weight, call.bias))
    y = cpu_calls.empty_as(x)
    batch, length, channels = x.shape
    if y.numel():
        native().causal_conv_shift(
            (batch, length, channels, call.weight.shape[1]),
            call.silu,
            cpu_calls.code(dtype),
            cpu_calls.threads(y.numel() * 4),
            cpu_calls.anyhow(x),
            cpu_calls.pointer(weight),
            cpu_calls.pointer(bias),
            buffer.shape[1],
            cpu_calls.anyhow(buffer),
            cpu_calls.anyhow(y),
        )
    return y
