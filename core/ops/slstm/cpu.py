"""The sLSTM by the compiled CPU kernels: fills results that ``torch_op`` has made."""

from __future__ import annotations

import torch
from torch import Tensor

from longseq.core.ops import cpu_calls
from longseq.core.ops.backends import cpu_reason, native
from longseq.core.ops.slstm.arguments import Arguments, Kept

MARK = 16
"""Steps between the cells that the kernels save."""


def reason(call: Arguments) -> str | None:
    """Returns why the kernels cannot take a call, or None if they can."""
    return cpu_reason(*call)


def _threads(hs: Tensor) -> int:
    return cpu_calls.threads(hs.numel() * 4 * hs.shape[3])


def _flags(resets: Tensor | None) -> Tensor | None:
    return None if resets is None else resets.to(torch.uint8).contiguous()


def forward(
    hs: Tensor, last: Tensor, raw: Tensor | None, marks: Tensor | None, call: Arguments
) -> None:
    """Fills h (B, L, H, P) and the last state; pre-activations and cells where there is room for
    them."""
    gates, recurrent, first = (x.contiguous() for x in call[:3])
    flags = _flags(call.resets)
    cpu_calls.fresh(hs, *[] if raw is None else [raw])
    given = (recurrent, flags, raw, marks, gates, first, hs, last)
    native().slstm_forward(
        hs.shape, cpu_calls.code(hs.dtype), _threads(hs), *[cpu_calls.pointer(x) for x in given]
    )


def backward(
    grads: tuple[Tensor, Tensor, Tensor], grad_hs: Tensor, grad_last: Tensor, kept: Kept
) -> None:
    """Fills the gradients of gates, recurrent and first.

    Args:
        grads: to be filled.
        grad_hs: gradient of hs.
        grad_last: gradient of the last state.
        kept: that ``forward`` saved.
    """
    recurrent, first, resets, hs, saved, marks = kept
    grad_gates, grad_recurrent, grad_first = grads
    recurrent, grad_hs, grad_last = (x.contiguous() for x in (recurrent, grad_hs, grad_last))
    flags = _flags(resets)
    cpu_calls.fresh(grad_gates)
    given = (recurrent, flags, saved, marks, grad_hs, grad_last, grad_gates, grad_first)
    native().slstm_backward(
        hs.shape, cpu_calls.code(hs.dtype), _threads(hs), *[cpu_calls.pointer(x) for x in given]
    )
    before = torch.empty_like(hs)
    cpu_calls.fresh(before)
    before[:, 0], before[:, 1:] = first[0], hs[:, :-1]
    if resets is not None:
        before.masked_fill_(resets[:, :, None, None], 0)
    width = hs.shape[3]
    before = before.flatten(0, 1).transpose(0, 1)  # (H, BL, P)
    for k in range(4):  # a gate's weights at a time: no gradient is copied
        part = grad_gates[:, :, k].flatten(0, 1).permute(1, 2, 0)
        torch.bmm(part, before, out=grad_recurrent[:, k * width : (k + 1) * width])
