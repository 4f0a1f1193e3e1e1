"""The sLSTM on CUDA: grids and the kernels' arguments."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from longseq.core.kernels import nvrtc
from longseq.core.kernels.cuda_sources import parameters
from longseq.core.ops import cuda_calls as _cuda
from longseq.core.ops.slstm.arguments import Arguments, Kept

_SOURCE = "slstm.cu"
MAX_WIDTH = 512
"""Units of a head: wider ones would read megabytes of weights at every step through one
multiprocessor."""


def reason(tensor: Tensor) -> str | None:
    """Returns why the sLSTM kernels cannot take a call, or None.

    Args:
        tensor: of the call, its last dimension a head's units.
    """
    why = _cuda.cuda_reason(tensor)
    if why is None and tensor.shape[-1] > MAX_WIDTH:
        why = f"it takes heads of up to {MAX_WIDTH} units, these have {tensor.shape[-1]}"
    return why


def shared_limit(device: torch.device) -> int:
    """Returns the bytes of shared memory that a block may ask for."""
    properties = torch.cuda.get_device_properties(device)
    return int(getattr(properties, "shared_memory_per_block_optin", 99 * 1024))


def _launch(kernel: str, hs: Tensor, floats: int, values: dict[str, int]) -> None:
    batch, length, heads, width = hs.shape
    limit = _cuda.multiprocessors(hs.device)
    rows = next((one for one in (1, 2, 4) if heads * math.ceil(batch / one) <= limit), 8)
    threads = min(math.ceil(4 * width / 32) * 32, 512)
    shared = 4 * floats * width * rows
    resident = shared + 16 * width * width <= shared_limit(hs.device)
    defines: dict[str, str | int] = {
        "LONGSEQ_WIDTH": width,
        "LONGSEQ_ROWS": rows,
        "LONGSEQ_THREADS": threads,
        "LONGSEQ_RESIDENT": int(resident),
    }
    arguments = parameters(
        _SOURCE, "SlstmParams", values | {"batch": batch, "length": length, "heads": heads}
    )
    grid = (heads, math.ceil(batch / rows))
    size = shared + (16 * width * width if resident else 0)
    nvrtc.launch(_SOURCE, kernel, defines, grid, threads, arguments, hs.device, shared=size)


def forward(hs: Tensor, last: Tensor, saved: Tensor | None, call: Arguments) -> None:
    """Fills hs (B, L, H, P), last (4, B, H, P) and saved (7, L, H, B, P), all float32 and dense.

    Args:
        hs, last, saved: to be filled; saved is None where no gradient is wanted.
        call: of the kernels.
    """
    gates, recurrent, first, resets = call
    weights = recurrent.transpose(1, 2).contiguous()
    gates, first, flags = gates.contiguous(), first.contiguous(), _cuda.flags(resets)
    values = _cuda.addresses(
        gates=gates, weights=weights, first=first, resets=flags, hs=hs, last=last, saved=saved
    )
    _launch("slstm_forward", hs, 8, values)


def backward(grad_hs: Tensor, grad_last: Tensor, kept: Kept) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the gradients of gates, recurrent and first, in their shapes.

    Args:
        grad_hs: gradient of hs.
        grad_last: gradient of last.
        kept: that ``forward`` saved.
    """
    recurrent, first, resets, hs, saved, _ = kept
    batch, length, heads, width = hs.shape
    grad_gates, grad_first = (
        hs.new_empty(batch, length, 4, heads, width),
        first.new_empty(first.shape),
    )
    weights, first, flags = recurrent.contiguous(), first.contiguous(), _cuda.flags(resets)
    grad_hs, grad_last = grad_hs.contiguous(), grad_last.contiguous()
    values = _cuda.addresses(
        weights=weights,
        first=first,
        resets=flags,
        saved=saved,
        dhs=grad_hs,
        dlast=grad_last,
        dgates=grad_gates,
        dfirst=grad_first,
    )
    _launch("slstm_backward", hs, 11, values)
    before = torch.cat([first[0].unsqueeze(1), hs[:, :-1]], 1)
    if resets is not None:
        before = before.masked_fill(resets[:, :, None, None], 0)
    before = before.flatten(0, 1).transpose(0, 1)  # (H, BL, P)
    steps = grad_gates.permute(3, 2, 4, 0, 1).reshape(heads, 4 * width, batch * length)
    return grad_gates, torch.bmm(steps, before), grad_first
