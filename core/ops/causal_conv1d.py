r"""Causal depthwise convolution over time, as in H3 and Mamba: y_t = act(Σ_k w_k x_{t-W+1+k} + bias)."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from longseq.core.errors import ArgumentError
from longseq.core.ops import _cuda, _cuda_walks, _native
from longseq.core.ops.backends import Backend, choose, cpu_reason, native

_NAME = "causal_conv1d"
MAX_WIDTH = 32
"""Widest kernel: a longer one is a long convolution, see ``longseq.core.ops.fft_conv``."""


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    initial_state: Tensor | None = None,
    resets: Tensor | None = None,
    activation: Literal["silu"] | None = None,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:
    """Convolves every channel with its own short kernel, seeing only the past.

    Args:
        x: input (B, L, D).
        weight: kernels (D, W), the newest tap last.
        bias: (D,).
        initial_state: the W-1 inputs before x (B, W-1, D); zeros if None.
        resets: bool (B, L); a position sees nothing before the last true position at or before it.
        activation: "silu" or None.
        backend: see ``longseq.core.ops.backends``.

    Returns:
        The output (B, L, D) in x's dtype, and the last W-1 inputs (B, W-1, D): the next chunk's
        initial state.

    Raises:
        ArgumentError: naming the argument that does not fit.
    """
    resets = _check(x, weight, bias, initial_state, resets, activation)
    tensors = (x, weight, bias, initial_state)
    chosen = choose(_NAME, backend, {"cpu": cpu_reason(*tensors), "cuda": _cuda.cuda_reason(*tensors)})
    if chosen == "cuda" and resets is None and _cuda_walks.one_position(x, weight, bias, initial_state):
        assert initial_state is not None
        y, after = _cuda_walks.conv_update(x[:, 0], weight, bias, initial_state, activation == "silu")
        return y.unsqueeze(1), after.to(x.dtype)
    if chosen == "reference":
        y = causal_conv1d_reference(x, weight, bias, initial_state, resets, activation)
    else:
        y = _call(x, weight, bias, initial_state, resets, activation == "silu")
    return y, _final_state(x, weight.shape[1], initial_state, resets)


def causal_conv1d_step(
    x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor, activation: Literal["silu"] | None = None
) -> tuple[Tensor, Tensor]:
    """Convolves one position. Only for tensors that are ``longseq.core.ops.state_update.direct``.

    Args:
        x: input (B, D).
        weight: kernels (D, W), the newest tap last.
        bias: (D,).
        state: the W-1 inputs before x (B, W-1, D).
        activation: "silu" or None.

    Returns:
        The output (B, D) in x's dtype, and the last W-1 inputs (B, W-1, D).
    """
    dtype = _native.compute_dtype(x, weight)
    taps, channels = weight.shape[1], x.shape[1]
    x = x if x.stride(1) == 1 else x.contiguous()
    weight, bias = (_native.vector(t, dtype) for t in (weight, bias))  # type: ignore[assignment]
    state = _native.dense(state)
    y, after = x.new_empty(x.shape), x.new_empty(state.shape)
    if y.numel():
        native().causal_conv_update(
            (x.shape[0], 1, channels, taps), activation == "silu", _native.code(dtype),
            _native.threads(x.shape[0] * channels * 4), (x.data_ptr(), _native.code(x.dtype), x.stride(0), 0),
            weight.data_ptr(), _native.pointer(bias), _native.rows(state),
            (y.data_ptr(), _native.code(y.dtype), channels, 0), _native.rows(after),
        )  # fmt: skip
    return y, after


def causal_conv1d_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    initial_state: Tensor | None = None,
    resets: Tensor | None = None,
    activation: Literal["silu"] | None = None,
) -> Tensor:
    """The sum over taps written out. Arguments as in ``causal_conv1d``; returns the output only."""
    dtype = _native.compute_dtype(x, weight)
    batch, length, _ = x.shape
    width = weight.shape[1]
    past = x.new_zeros(batch, width - 1, x.shape[2]) if initial_state is None else initial_state
    padded = torch.cat([past.to(dtype), x.to(dtype)], 1)
    segment = None if resets is None else resets.cumsum(1)
    y = torch.zeros_like(padded[:, :length])
    for tap in range(width):
        back = width - 1 - tap
        seen = padded[:, tap : tap + length]
        if segment is not None:
            # What lies before the sequence belongs to segment 0, like everything before the first reset.
            source = F.pad(segment, (back, 0))[:, :length]
            seen = torch.where((source == segment).unsqueeze(-1), seen, torch.zeros_like(seen))
        y = y + seen * weight[:, tap].to(dtype)
    if bias is not None:
        y = y + bias.to(dtype)
    return (F.silu(y) if activation == "silu" else y).to(x.dtype)


def _final_state(x: Tensor, width: int, initial_state: Tensor | None, resets: Tensor | None) -> Tensor:
    """Returns the last W-1 inputs; those of an earlier segment than the last position's are zero."""
    past = width - 1
    if past == 0:
        return x[:, :0]
    if initial_state is None:
        before = x.new_zeros(x.shape[0], past, x.shape[2])
    else:
        before = initial_state.to(x.dtype)
    seen = torch.cat([before, x[:, -past:]], 1)[:, -past:]
    if resets is None:
        return seen.clone()  # the slice would keep twice its size alive
    segment = resets.cumsum(1)
    source = torch.cat([segment.new_zeros(x.shape[0], past), segment[:, -past:]], 1)[:, -past:]
    return torch.where((source == segment[:, -1:]).unsqueeze(-1), seen, torch.zeros_like(seen))


def _check(
    x: Tensor, weight: Tensor, bias: Tensor | None, initial_state: Tensor | None, resets: Tensor | None,
    activation: str | None,
) -> Tensor | None:  # fmt: skip
    optional = _native.present(bias=bias, initial_state=initial_state)
    _native.check_kind(_NAME, True, x=x, weight=weight, **optional)
    if x.dim() != 3 or x.shape[1] == 0:
        raise ArgumentError(f"{_NAME}: x must be (batch, length ≥ 1, channels), got {tuple(x.shape)}")
    batch, length, channels = x.shape
    _native.check(_NAME, "x", x, x.shape, "(batch, length, channels)")
    if weight.dim() != 2 or not 1 <= weight.shape[1] <= MAX_WIDTH:
        raise ArgumentError(
            f"{_NAME}: weight must be (channels, 1 to {MAX_WIDTH} taps), got {tuple(weight.shape)}"
        )
    width = weight.shape[1]
    _native.check(_NAME, "weight", weight, (channels, width), "(channels, taps)")
    if bias is not None:
        _native.check(_NAME, "bias", bias, (channels,), "(channels,)")
    if initial_state is not None:
        _native.check(
            _NAME, "initial_state", initial_state, (batch, width - 1, channels), "(batch, taps - 1, channels)"
        )
    if activation not in (None, "silu"):
        raise ArgumentError(f"{_NAME}: activation must be 'silu' or None, got {activation!r}")
    resets = _native.check_resets(_NAME, resets, batch, length)
    named = {"weight": weight, "bias": bias, "initial_state": initial_state, "resets": resets}
    _native.check_device(_NAME, x, named)
    return resets


def _arguments(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    resets: Tensor | None,
    silu: bool,
) -> tuple[list[Any], list[Any]]:
    """Returns the kernels' common arguments and the tensors that must outlive the call."""
    dtype = _native.compute_dtype(x, weight)
    x = _native.dense(x)
    initial = None if initial_state is None else _native.dense(initial_state)
    weight, bias = (_native.vector(t, dtype) for t in (weight, bias))  # type: ignore[assignment]
    flags = None if resets is None else resets.to(torch.uint8).contiguous()
    batch, length, channels = x.shape
    arguments = [
        (batch, length, channels, weight.shape[1]), silu, _native.code(dtype),
        _native.threads(batch * length * channels * 4), _native.rows(x), weight.data_ptr(),
        _native.pointer(bias), _native.rows(initial), _native.pointer(flags),
    ]  # fmt: skip
    return arguments, [x, weight, bias, initial, flags]


@torch.library.custom_op("longseq::causal_conv1d", mutates_args=(), device_types="cpu")
def _conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    resets: Tensor | None,
    silu: bool,
) -> Tensor:
    y = x.new_empty(x.shape)
    _native.fresh(y)
    arguments, alive = _arguments(x, weight, bias, initial_state, resets, silu)
    native().causal_conv_forward(*arguments, _native.rows(y))
    del alive
    return y


@_conv.register_kernel("cuda")
def _conv_cuda(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    resets: Tensor | None,
    silu: bool,
) -> Tensor:
    y = x.new_empty(x.shape)
    if y.numel():
        _cuda_walks.conv_forward(y, x, weight, bias, initial_state, resets, silu)
    return y


@_conv.register_fake
def _conv_fake(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    resets: Tensor | None,
    silu: bool,
) -> Tensor:
    return x.new_empty(x.shape)


@torch.library.custom_op("longseq::causal_conv1d_backward", mutates_args=(), device_types="cpu")
def _conv_backward(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, initial_state: Tensor | None,
    resets: Tensor | None, silu: bool,
) -> list[Tensor]:  # fmt: skip
    dx, dweight, dbias, dinitial = outputs = _conv_backward_fake(
        dy, x, weight, bias, initial_state, resets, silu
    )
    arguments, alive = _arguments(x, weight, bias, initial_state, resets, silu)
    dtype = _native.compute_dtype(x, weight)
    rows_w = x.new_empty((x.shape[0], *weight.shape), dtype=dtype)
    rows_b = x.new_empty((x.shape[0], x.shape[2]), dtype=dtype)
    _native.fresh(dx)
    dy = _native.dense(dy)
    native().causal_conv_backward(
        *arguments, _native.rows(dy), _native.rows(dx),
        _native.rows(None if initial_state is None else dinitial), rows_w.data_ptr(), rows_b.data_ptr(),
    )  # fmt: skip
    del alive
    dweight.copy_(rows_w.sum(0))
    if bias is not None:
        dbias.copy_(rows_b.sum(0))
    return outputs


@_conv_backward.register_kernel("cuda")
def _conv_backward_cuda(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, initial_state: Tensor | None,
    resets: Tensor | None, silu: bool,
) -> list[Tensor]:  # fmt: skip
    outputs = _conv_backward_fake(dy, x, weight, bias, initial_state, resets, silu)
    if not x.numel():
        return [t.zero_() for t in outputs]
    grads = _cuda_walks.conv_backward(dy, x, weight, bias, initial_state, resets, silu)
    given = (x, weight, bias, initial_state)
    return [
        out if argument is None or grad is None else grad.to(argument.dtype)
        for argument, grad, out in zip(given, grads, outputs)
    ]


@_conv_backward.register_fake
def _conv_backward_fake(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, initial_state: Tensor | None,
    resets: Tensor | None, silu: bool,
) -> list[Tensor]:  # fmt: skip
    return [x.new_empty((0,) if t is None else t.shape, dtype=None if t is None else t.dtype)
            for t in (x, weight, bias, initial_state)]  # fmt: skip


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:5])
    ctx.silu = inputs[5]


def _backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
    grads = _call_backward(dy, *ctx.saved_tensors, ctx.silu)
    return (*[g if needed else None for g, needed in zip(grads, ctx.needs_input_grad)], None, None)


_conv.register_autograd(_backward, setup_context=_setup)
_native.register_autocast(_conv, lower=("x", "initial_state"), keep=("weight", "bias"))


def _conv_vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> Any:
    return _native.vmap_fold(_call, (0, 3, 4), info, in_dims, args), 0


def _conv_backward_vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> Any:
    return _native.vmap_loop(_call_backward, info, in_dims, args), (0,) * 4


_call_backward = _native.transformable(_conv_backward, _conv_backward_vmap)
_call = _native.transformable(_conv, _conv_vmap, _setup, _backward)
