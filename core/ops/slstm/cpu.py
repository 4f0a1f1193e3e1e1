"""The sLSTM by the compiled CPU kernels: fills results that ``torch_op`` has made."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from longseq.core.ops import cpu_calls
from longseq.core.ops.backends import cpu_reason, native
from longseq.core.ops.slstm.arguments import Arguments, Kept

MARK = 16
"""Steps between the cells that the kernels save."""
_VECTOR = 64  # bytes of the widest vector


def reason(call: Arguments) -> str | None:
    """Returns why the kernels cannot take a call, or None if they can."""
    return cpu_reason(*call)


def _threads(hs: Tensor) -> int:
    return cpu_calls.threads(hs.numel() * 4 * hs.shape[3])


def _flags(resets: Tensor | None) -> Tensor | None:
    return None if resets is None else resets.to(torch.uint8).contiguous()


def _merged(dtype: torch.dtype, heads: int, width: int) -> int:
    """Returns how many neighbouring heads the kernels take for one, of which a vector is full.

    Their lanes are the units of one head: of narrow heads most lanes would be empty.
    """
    lanes = _VECTOR // dtype.itemsize
    return max(n for n in range(1, max(1, lanes // width) + 1) if heads % n == 0)


def _side_by_side(recurrent: Tensor, n: int) -> Tensor:
    """Returns the weights (H/n, 4nP, nP) of n heads taken for one: zero from one to another."""
    heads, _, width = recurrent.shape
    joined = recurrent.new_zeros(heads // n, 4, n, width, n, width)
    own = joined.diagonal(dim1=2, dim2=4)  # (H/n, 4, P, P, n)
    own.copy_(recurrent.view(heads // n, n, 4, width, width).permute(0, 2, 3, 4, 1))
    return joined.view(heads // n, 4 * n * width, n * width)


def _finite(*tensors: Tensor) -> bool:
    return all(math.isfinite(float(x.sum())) for x in tensors)


def _run(
    kernel: Callable[..., None],
    hs: Tensor,
    recurrent: Tensor,
    given: Sequence[Tensor | None],
    written: Sequence[Tensor],
) -> None:
    """Calls a kernel, with narrow heads side by side where that ends in finite numbers.

    Args:
        kernel: of the forward or the backward pass.
        hs: the hidden states (B, L, H, P), for sizes and dtype.
        recurrent: weights (H, 4P, P).
        given: the kernel's other tensors.
        written: those of its results by which a number that is not finite would show.
    """
    batch, length, heads, width = hs.shape
    n = _merged(hs.dtype, heads, width)
    # Zero times what is not finite passes from head to head: then each by itself, anew.
    for merged in (n, 1) if n > 1 else (1,):
        weights = _side_by_side(recurrent, n) if merged > 1 else recurrent
        pointers = [cpu_calls.pointer(x) for x in (weights, *given)]
        sizes = (batch, length, heads // merged, merged * width)
        kernel(sizes, cpu_calls.code(hs.dtype), _threads(hs), *pointers)
        if merged > 1 and _finite(*written):
            return


def forward(
    hs: Tensor, last: Tensor, raw: Tensor | None, marks: Tensor | None, call: Arguments
) -> None:
    """Fills h (B, L, H, P) and the last state; pre-activations and cells where there is room for
    them."""
    gates, recurrent, first = (x.contiguous() for x in call[:3])
    flags = _flags(call.resets)
    cpu_calls.fresh(hs, *[] if raw is None else [raw])

    given = (flags, raw, marks, gates, first, hs, last)
    _run(native().slstm_forward, hs, recurrent, given, (hs,))


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

    given = (flags, saved, marks, grad_hs, grad_last, grad_gates, grad_first)
    _run(native().slstm_backward, hs, recurrent, given, (grad_gates, grad_first))
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
