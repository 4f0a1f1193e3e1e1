"""The causal convolution on CUDA: grids and the kernels' arguments."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from longseq.core.kernels import nvrtc
from longseq.core.kernels.cuda_sources import parameters
from longseq.core.kernels.custom_op import in_transform
from longseq.core.ops import cuda_calls as _cuda
from longseq.core.ops.causal_conv1d.arguments import Arguments

_SOURCE = "causal_conv1d.cu"


def reason(call: Arguments) -> str | None:
    """Returns why the kernels cannot take a call, or None if they can."""
    return _cuda.cuda_reason(*call[:4])


def _launch(
    call: Arguments,
) -> tuple[dict[str, str | int], dict[str, int], tuple[int, int], list[Tensor | None]]:
    """Returns macros, common arguments, the grid, and what must outlive the launch."""
    x, weight, bias, initial, resets, silu = call
    batch, length, channels = x.shape
    x, initial = _cuda.dense(x), None if initial is None else _cuda.dense(initial)
    dense = [_cuda.parameter(weight), _cuda.parameter(bias), _cuda.flags(resets)]
    columns = math.ceil(channels / 128)
    # Long spans read less twice; short ones fill the device.
    span = 32
    while span < 256 and batch * columns * math.ceil(
        length / (2 * span)
    ) >= 8 * _cuda.multiprocessors(x.device):
        span *= 2
    while batch * math.ceil(length / span) > 65535:
        span *= 2
    spans = math.ceil(length / span)
    defines: dict[str, str | int] = {
        "LONGSEQ_X": _cuda.type_of(x),
        "LONGSEQ_INITIAL": _cuda.type_of(initial),
        "LONGSEQ_TAPS": weight.shape[1],
        "LONGSEQ_SILU": int(silu),
    }
    values = {
        "batch": batch,
        "length": length,
        "channels": channels,
        "span": span,
        "spans": spans,
        **_cuda.rows(x=x, initial=initial),
        **_cuda.addresses(**dict(zip(("weight", "bias", "resets"), dense))),
    }
    return defines, values, (columns, batch * spans), [x, initial, *dense]


def forward(y: Tensor, call: Arguments) -> None:
    """Fills y (B, L, D), dense."""
    defines, values, grid, alive = _launch(call)
    arguments = parameters(_SOURCE, "ConvParams", values | _cuda.addresses(y=y))
    nvrtc.launch(_SOURCE, "conv_forward", defines, grid, 128, arguments, y.device)
    del alive


def backward(dy: Tensor, call: Arguments) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Returns the gradients of x, weight, bias (float32) and of the initial state."""
    defines, values, grid, alive = _launch(call)
    x, weight, initial = call.x, call.weight, call.initial_state
    dy = _cuda.dense(dy.to(x.dtype))
    parts = (x.shape[0] * values["spans"], *weight.shape)
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    dinitial = (
        None
        if initial is None
        else torch.empty(initial.shape, dtype=initial.dtype, device=x.device)
    )
    dweight = torch.empty(parts, dtype=torch.float32, device=x.device)
    dbias = torch.empty(parts[:2], dtype=torch.float32, device=x.device)
    outputs = _cuda.addresses(dx=dx, dinitial=dinitial, dweight=dweight, dbias=dbias)
    arguments = parameters(_SOURCE, "ConvParams", values | _cuda.rows(dy=dy) | outputs)
    nvrtc.launch(_SOURCE, "conv_backward", defines, grid, 128, arguments, x.device)
    del alive
    return dx, dweight.sum(0), dbias.sum(0), dinitial


def one_position(*tensors: Tensor | None) -> bool:
    """Returns whether ``update`` may serve a call: one position of it, which only this process
    looks at.

    Args:
        *tensors: x (B, 1, D) first, the initial state last.
    """
    x = tensors[0]
    if x is None or tensors[-1] is None or x.shape[1] != 1 or not x.numel():
        return False
    if torch.compiler.is_compiling() or torch.is_autocast_enabled("cuda") or in_transform():
        return False
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        return False
    plain = all(t is None or type(t) in (Tensor, torch.nn.Parameter) for t in tensors)
    return plain and torch.utils._python_dispatch._get_current_dispatch_mode() is None


def update(
    x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor, silu: bool
) -> tuple[Tensor, Tensor]:
    """Convolves one position x (B, D) after W - 1 inputs (B, W - 1, D); returns y and the new
    state."""
    defines, values, grid, alive = _launch(
        Arguments(x.unsqueeze(1), weight, bias, state, None, silu)
    )
    y, after = (
        torch.empty(x.shape, dtype=x.dtype, device=x.device),
        torch.empty_like(state.contiguous()),
    )
    arguments = parameters(_SOURCE, "ConvParams", values | _cuda.addresses(y=y, after=after))
    nvrtc.launch(_SOURCE, "conv_update", defines, grid, 128, arguments, x.device)
    del alive
    return y, after
