"""Causal convolution, linear scan and the sLSTM recurrence on CUDA: grids and the kernels' arguments."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from longseq.core.kernels import nvrtc
from longseq.core.ops import _cuda, _native

_CONV, _LINEAR, _SLSTM = "causal_conv1d.cu", "linear_scan.cu", "slstm.cu"
MAX_SLSTM_WIDTH = 512
"""Units of a head: wider ones would read megabytes of weights at every step through one multiprocessor."""


def _conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, initial: Tensor | None, resets: Tensor | None, silu: bool
) -> tuple[dict[str, str | int], dict[str, int], tuple[int, int], list[Tensor | None]]:
    """Returns macros, common arguments, the grid, and what must outlive the launch."""
    batch, length, channels = x.shape
    x, initial = _cuda.dense(x), None if initial is None else _cuda.dense(initial)
    dense = [_cuda.parameter(weight), _cuda.parameter(bias), _cuda.flags(resets)]
    columns = math.ceil(channels / 128)
    # Long spans read less twice; short ones fill the device.
    span = 32
    while span < 256 and batch * columns * math.ceil(length / (2 * span)) >= 8 * _cuda.multiprocessors(
        x.device
    ):
        span *= 2
    while batch * math.ceil(length / span) > 65535:
        span *= 2
    spans = math.ceil(length / span)
    defines: dict[str, str | int] = {
        "LONGSEQ_X": _cuda.type_of(x), "LONGSEQ_INITIAL": _cuda.type_of(initial),
        "LONGSEQ_TAPS": weight.shape[1], "LONGSEQ_SILU": int(silu),
    }  # fmt: skip
    values = {
        "batch": batch, "length": length, "channels": channels, "span": span, "spans": spans,
        **_cuda.rows(x=x, initial=initial),
        **_cuda.addresses(**dict(zip(("weight", "bias", "resets"), dense))),
    }  # fmt: skip
    return defines, values, (columns, batch * spans), [x, initial, *dense]


def conv_forward(
    y: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, initial: Tensor | None, resets: Tensor | None,
    silu: bool,
) -> None:  # fmt: skip
    """Fills y (B, L, D), dense. Other arguments as in ``causal_conv1d``."""
    defines, values, grid, alive = _conv(x, weight, bias, initial, resets, silu)
    arguments = nvrtc.parameters(_CONV, "ConvParams", values | _cuda.addresses(y=y))
    nvrtc.launch(_CONV, "conv_forward", defines, grid, 128, arguments, x.device)
    del alive


def conv_backward(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, initial: Tensor | None, resets: Tensor | None,
    silu: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:  # fmt: skip
    """Returns the gradients of x, weight, bias (float32) and of the initial state."""
    defines, values, grid, alive = _conv(x, weight, bias, initial, resets, silu)
    dy = _cuda.dense(dy.to(x.dtype))
    parts = (x.shape[0] * values["spans"], *weight.shape)
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    dinitial = None if initial is None else torch.empty(initial.shape, dtype=initial.dtype, device=x.device)
    dweight = torch.empty(parts, dtype=torch.float32, device=x.device)
    dbias = torch.empty(parts[:2], dtype=torch.float32, device=x.device)
    outputs = _cuda.addresses(dx=dx, dinitial=dinitial, dweight=dweight, dbias=dbias)
    arguments = nvrtc.parameters(_CONV, "ConvParams", values | _cuda.rows(dy=dy) | outputs)
    nvrtc.launch(_CONV, "conv_backward", defines, grid, 128, arguments, x.device)
    del alive
    return dx, dweight.sum(0), dbias.sum(0), dinitial


def one_position(*tensors: Tensor | None) -> bool:
    """Returns whether ``conv_update`` may serve a call: one position of it, which only this process looks at.

    Args:
        *tensors: x (B, 1, D) first, the initial state last.
    """
    x = tensors[0]
    if x is None or tensors[-1] is None or x.shape[1] != 1 or not x.numel():
        return False
    if torch.compiler.is_compiling() or torch.is_autocast_enabled("cuda") or _native.in_transform():
        return False
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        return False
    plain = all(t is None or type(t) in (Tensor, torch.nn.Parameter) for t in tensors)
    return plain and torch.utils._python_dispatch._get_current_dispatch_mode() is None


def conv_update(
    x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor, silu: bool
) -> tuple[Tensor, Tensor]:
    """Convolves one position x (B, D) after W - 1 inputs (B, W - 1, D); returns y and the new state."""
    defines, values, grid, alive = _conv(x.unsqueeze(1), weight, bias, state, None, silu)
    y, after = torch.empty(x.shape, dtype=x.dtype, device=x.device), torch.empty_like(state.contiguous())
    arguments = nvrtc.parameters(_CONV, "ConvParams", values | _cuda.addresses(y=y, after=after))
    nvrtc.launch(_CONV, "conv_update", defines, grid, 128, arguments, x.device)
    del alive
    return y, after


def _linear(a: Tensor, b: Tensor, out: Tensor, reverse: bool, **values: int) -> None:
    """Runs the scan over b (B, L, D) with decays a, into out and what else ``values`` points at."""
    batch, length, channels = b.shape
    a, b = _cuda.dense(a), _cuda.dense(b)
    tiles = math.ceil(channels / 32)
    chunk, chunks = _cuda.split(length, batch * tiles, 64, b.device)
    defines: dict[str, str | int] = {
        "LONGSEQ_COMPLEX": int(b.is_complex()), "LONGSEQ_REVERSE": int(reverse),
        "LONGSEQ_A": _cuda.type_of(a), "LONGSEQ_B": _cuda.type_of(b), "LONGSEQ_OUT": _cuda.type_of(out),
    }  # fmt: skip
    values |= {
        "batch": batch, "length": length, "channels": channels, "tiles": tiles, "chunk": chunk,
        "chunks": chunks, **_cuda.rows(a=a, b=b), **_cuda.addresses(out=out),
    }  # fmt: skip
    alive: list[Tensor] = []

    def launch(kernel: str, grid: tuple[int, ...], threads: int) -> None:
        arguments = nvrtc.parameters(_LINEAR, "LinearParams", values)
        nvrtc.launch(_LINEAR, kernel, defines, grid, threads, arguments, b.device)

    if chunks > 1:
        dtype = torch.complex64 if b.is_complex() else torch.float32
        alive = [torch.empty(batch, chunks, channels, dtype=dtype, device=b.device) for _ in range(3)]
        values |= _cuda.addresses(local=alive[0], product=alive[1])
        launch("linear_summary", (batch * tiles, chunks), 256)
        values |= _cuda.addresses(starts=alive[2])
        launch("linear_join", (math.ceil(batch * channels / 128),), 128)
    launch("linear_forward", (batch * tiles, chunks), 256)
    del alive


def linear_forward(h: Tensor, a: Tensor, b: Tensor, initial: Tensor | None) -> None:
    """Fills h (B, L, D), dense, float32 or complex64. Other arguments as in ``linear_scan``, flattened."""
    initial = _cuda.parameter(initial)
    _linear(a, b, h, False, **_cuda.addresses(initial=initial))


def linear_backward(
    da: Tensor, db: Tensor, dinitial: Tensor, dh: Tensor, a: Tensor, initial: Tensor | None, h: Tensor
) -> None:
    """Fills da, db (dense, in the dtypes of a and b) and dinitial (as h): the scan from right to left."""
    initial = _cuda.parameter(initial)
    _linear(a, dh, db, True, **_cuda.addresses(initial=initial, h=h, da=da, dinitial=dinitial))


def slstm_reason(tensor: Tensor) -> str | None:
    """Returns why the sLSTM kernels cannot take a call, or None.

    Args:
        tensor: of the call, its last dimension a head's units.
    """
    why = _cuda.cuda_reason(tensor)
    if why is None and tensor.shape[-1] > MAX_SLSTM_WIDTH:
        why = f"it takes heads of up to {MAX_SLSTM_WIDTH} units, these have {tensor.shape[-1]}"
    return why


def shared_limit(device: torch.device) -> int:
    """Returns the bytes of shared memory that a block may ask for."""
    properties = torch.cuda.get_device_properties(device)
    return int(getattr(properties, "shared_memory_per_block_optin", 99 * 1024))


def _slstm(kernel: str, hs: Tensor, floats: int, values: dict[str, int]) -> None:
    batch, length, heads, width = hs.shape
    limit = _cuda.multiprocessors(hs.device)
    rows = next((one for one in (1, 2, 4) if heads * math.ceil(batch / one) <= limit), 8)
    threads = min(math.ceil(4 * width / 32) * 32, 512)
    shared = 4 * floats * width * rows
    resident = shared + 16 * width * width <= shared_limit(hs.device)
    defines: dict[str, str | int] = {
        "LONGSEQ_WIDTH": width, "LONGSEQ_ROWS": rows, "LONGSEQ_THREADS": threads,
        "LONGSEQ_RESIDENT": int(resident),
    }  # fmt: skip
    arguments = nvrtc.parameters(
        _SLSTM, "SlstmParams", values | {"batch": batch, "length": length, "heads": heads}
    )
    grid = (heads, math.ceil(batch / rows))
    size = shared + (16 * width * width if resident else 0)
    nvrtc.launch(_SLSTM, kernel, defines, grid, threads, arguments, hs.device, shared=size)


def slstm_forward(
    hs: Tensor, last: Tensor, saved: Tensor | None, gates: Tensor, recurrent: Tensor, first: Tensor,
    resets: Tensor | None,
) -> None:  # fmt: skip
    """Fills hs (B, L, H, P), last (4, B, H, P) and saved (7, L, H, B, P), all float32 and dense.

    Args:
        hs, last, saved: to be filled; saved is None where no gradient is wanted.
        gates: (B, L, 4, H, P).
        recurrent: (H, 4P, P).
        first: (4, B, H, P).
        resets: bool (B, L).
    """
    weights = recurrent.transpose(1, 2).contiguous()
    gates, first, flags = gates.contiguous(), first.contiguous(), _cuda.flags(resets)
    values = _cuda.addresses(
        gates=gates, weights=weights, first=first, resets=flags, hs=hs, last=last, saved=saved
    )
    _slstm("slstm_forward", hs, 8, values)


def slstm_backward(
    grad_hs: Tensor, grad_last: Tensor, recurrent: Tensor, first: Tensor, resets: Tensor | None, hs: Tensor,
    saved: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Returns the gradients of gates, recurrent and first, in their shapes.

    Args:
        grad_hs: gradient of hs.
        grad_last: gradient of last.
        recurrent, first, resets, hs, saved: as in ``slstm_forward``.
    """
    batch, length, heads, width = hs.shape
    grad_gates, grad_first = hs.new_empty(batch, length, 4, heads, width), first.new_empty(first.shape)
    weights, first, flags = recurrent.contiguous(), first.contiguous(), _cuda.flags(resets)
    grad_hs, grad_last = grad_hs.contiguous(), grad_last.contiguous()
    values = _cuda.addresses(
        weights=weights, first=first, resets=flags, saved=saved, dhs=grad_hs, dlast=grad_last,
        dgates=grad_gates, dfirst=grad_first,
    )  # fmt: skip
    _slstm("slstm_backward", hs, 11, values)
    before = torch.cat([first[0].unsqueeze(1), hs[:, :-1]], 1)
    if resets is not None:
        before = before.masked_fill(resets[:, :, None, None], 0)
    before = before.flatten(0, 1).transpose(0, 1)  # (H, BL, P)
    steps = grad_gates.permute(3, 2, 4, 0, 1).reshape(heads, 4 * width, batch * length)
    return grad_gates, torch.bmm(steps, before), grad_first
