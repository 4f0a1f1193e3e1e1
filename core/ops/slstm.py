"""The stabilised sLSTM recurrence of xLSTM, with recurrent weights inside each head.

For one head of width P and the gate pre-activations g_t = (ĩ, f̃, z̃, õ)_t ∈ R^{4P} (arXiv 2405.04517,
eq. 8-14, stabilised by eq. 15-17):

    (ĩ, f̃, z̃, õ) = g_t + R h_{t-1}
    m_t = max(log σ(f̃) + m_{t-1}, ĩ)          i = exp(ĩ - m_t)     f = exp(log σ(f̃) + m_{t-1} - m_t)
    c_t = f c_{t-1} + i tanh(z̃)               n_t = f n_{t-1} + i   h_t = σ(õ) c_t / n_t

m is a running maximum in the logarithm, so that i and f never exceed 1 and one of them is 1: from a fresh
state (h, c, n, m) = (0, 0, 0, -inf) the normaliser n_t is at least 1, and no division is unsafe.

The recurrence is not linear, so time is walked step by step: on a CPU by a compiled kernel that keeps a
head's weights in a core's cache, on a CUDA device by one that keeps them in shared memory, elsewhere by
``_slstm_walk``. The CPU kernel's backward computes the gates again from saved pre-activations and saved
cells; dR is one GEMM over the whole of time.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from longseq.core.ops import _cuda_walks, _native, _slstm_walk
from longseq.core.ops.backends import choose, native

_MARK = 16  # steps between the cells that the kernels save


class SLSTMState(NamedTuple):
    """What the recurrence carries: four tensors (B, H, P) of at least float32."""

    h: Tensor
    c: Tensor
    n: Tensor
    m: Tensor

    @staticmethod
    def fresh(
        batch: int, heads: int, width: int, device: torch.device | str | None, dtype: torch.dtype
    ) -> SLSTMState:
        """Returns the state at the start of a sequence.

        Args:
            batch: number of rows B.
            heads: number of heads H.
            width: width of a head P.
            device: where.
            dtype: float32 or float64.
        """
        h, c, n = torch.zeros(3, batch, heads, width, device=device, dtype=dtype).unbind(0)
        return SLSTMState(h.clone(), c.clone(), n.clone(), torch.full_like(h, -torch.inf))


def slstm(
    gates: Tensor,
    recurrent: Tensor,
    initial_state: SLSTMState | None = None,
    resets: Tensor | None = None,
) -> tuple[Tensor, SLSTMState]:
    """Runs the recurrence over a sequence or the next chunk of one.

    Args:
        gates: pre-activations (B, L, 4, H, P) in the order i, f, z, o, input and bias parts added up.
        recurrent: R, (H, 4P, P): row k·P + p of a head gives pre-activation k of unit p.
        initial_state: from the previous chunk; None stands for a fresh start.
        resets: bool (B, L), true where the state is forgotten before the position is read.

    Returns:
        h (B, L, H, P) in the dtype of ``gates``, and the state after the last position, at least float32.
    """
    batch, _, _, heads, width = gates.shape
    dtype = torch.float64 if gates.dtype == torch.float64 else torch.float32
    state = initial_state or SLSTMState.fresh(batch, heads, width, gates.device, dtype)
    save = torch.is_grad_enabled() and any(t.requires_grad for t in (gates, recurrent, *state))
    with torch.autocast(gates.device.type, enabled=False):
        first = torch.stack([part.to(dtype) for part in state])
        hs, last, *_ = _forward(gates.to(dtype), recurrent.to(dtype), first, resets, save)
        return hs.to(gates.dtype), SLSTMState(*last.unbind(0))


def slstm_reference(
    gates: Tensor,
    recurrent: Tensor,
    initial_state: SLSTMState | None = None,
    resets: Tensor | None = None,
) -> tuple[Tensor, SLSTMState]:
    """The equations one position at a time, differentiated by autograd; takes and returns as ``slstm``."""
    batch, length, _, heads, width = gates.shape
    dtype = torch.float64 if gates.dtype == torch.float64 else torch.float32
    state = initial_state or SLSTMState.fresh(batch, heads, width, gates.device, dtype)
    h, c, n, m = (part.to(dtype) for part in state)
    weights = recurrent.to(dtype).unflatten(1, (4, width))
    outputs = []
    for t in range(length):
        if resets is not None:
            reset = resets[:, t, None, None]
            h, c, n = (part.masked_fill(reset, 0) for part in (h, c, n))
            m = m.masked_fill(reset, -torch.inf)
        i_raw, f_raw, z_raw, o_raw = (
            gates[:, t].to(dtype) + torch.einsum("hkop,bhp->bkho", weights, h)
        ).unbind(1)
        kept = F.logsigmoid(f_raw) + m
        m = torch.maximum(kept, i_raw)
        i, f = torch.exp(i_raw - m), torch.exp(kept - m)
        c = f * c + i * torch.tanh(z_raw)
        n = f * n + i
        h = torch.sigmoid(o_raw) * c / n
        outputs.append(h)
    return torch.stack(outputs, 1).to(gates.dtype), SLSTMState(h, c, n, m)


@torch.library.custom_op("longseq::slstm_forward", mutates_args=())
def _forward(
    gates: Tensor, recurrent: Tensor, first: Tensor, resets: Tensor | None, save: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Walks forward. gates (B, L, 4, H, P), recurrent (H, 4P, P), first = (h, c, n, m) (4, B, H, P).

    Returns h (B, L, H, P), the last state (4, B, H, P), and what the backward needs, empty without ``save``:
    private to the device's kernel.
    """
    hs, last, saved = _slstm_walk.forward(gates, recurrent, first, resets)
    return hs, last, saved if save else gates.new_empty(0), gates.new_empty(0)


@_forward.register_kernel("cpu")
def _forward_cpu(
    gates: Tensor, recurrent: Tensor, first: Tensor, resets: Tensor | None, save: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    hs, last, raw, marks = _forward_fake(gates, recurrent, first, resets, save)
    gates, recurrent, first = gates.contiguous(), recurrent.contiguous(), first.contiguous()
    flags = None if resets is None else resets.to(torch.uint8).contiguous()
    if hs.numel():
        _native.fresh(hs, raw)
        p = _native.pointer
        native().slstm_forward(
            hs.shape, _native.code(hs.dtype), _threads(hs), p(recurrent), p(flags), p(raw if save else None),
            p(marks if save else None), p(gates), p(first), p(hs), p(last),
        )  # fmt: skip
    return hs, last, raw, marks


@_forward.register_kernel("cuda")
def _forward_cuda(
    gates: Tensor, recurrent: Tensor, first: Tensor, resets: Tensor | None, save: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if choose("slstm", "auto", {"cuda": _cuda_walks.slstm_reason(gates)}) == "reference":
        hs, last, saved = _slstm_walk.forward(gates, recurrent, first, resets)
        return hs, last, saved if save else gates.new_empty(0), gates.new_empty(0)
    hs, last, saved, marks = _forward_fake(gates, recurrent, first, resets, save)
    if hs.numel():
        _cuda_walks.slstm_forward(hs, last, saved if save else None, gates, recurrent, first, resets)
    return hs, last, saved, marks


@_forward.register_fake
def _forward_fake(
    gates: Tensor, recurrent: Tensor, first: Tensor, resets: Tensor | None, save: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, length, _, heads, width = gates.shape
    hs, last = gates.new_empty(batch, length, heads, width), gates.new_empty(first.shape)
    if not save:
        return hs, last, gates.new_empty(0), gates.new_empty(0)
    if gates.device.type != "cpu":
        return hs, last, gates.new_empty(_slstm_walk.saved_shape(gates)), gates.new_empty(0)
    marks = (length + _MARK - 1) // _MARK
    return hs, last, gates.new_empty(gates.shape), gates.new_empty(marks * 3, batch, heads, width)


@torch.library.custom_op("longseq::slstm_backward", mutates_args=())
def _backward(
    grad_hs: Tensor,
    grad_last: Tensor,
    recurrent: Tensor,
    first: Tensor,
    resets: Tensor | None,
    hs: Tensor,
    saved: Tensor,
    marks: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Walks back. Returns the gradients of gates, recurrent and first, in their shapes."""
    return _slstm_walk.backward(grad_hs, grad_last, recurrent, first, resets, hs, saved)


@_backward.register_kernel("cpu")
def _backward_cpu(
    grad_hs: Tensor,
    grad_last: Tensor,
    recurrent: Tensor,
    first: Tensor,
    resets: Tensor | None,
    hs: Tensor,
    saved: Tensor,
    marks: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    outputs = _backward_fake(grad_hs, grad_last, recurrent, first, resets, hs, saved, marks)
    grad_gates, grad_recurrent, grad_first = outputs
    if not hs.numel():
        grad_recurrent.zero_()
        return outputs
    recurrent, grad_hs, grad_last = recurrent.contiguous(), grad_hs.contiguous(), grad_last.contiguous()
    flags = None if resets is None else resets.to(torch.uint8).contiguous()
    _native.fresh(grad_gates)
    p = _native.pointer
    native().slstm_backward(
        hs.shape, _native.code(hs.dtype), _threads(hs), p(recurrent), p(flags), p(saved), p(marks),
        p(grad_hs), p(grad_last), p(grad_gates), p(grad_first),
    )  # fmt: skip
    before = torch.empty_like(hs)
    _native.fresh(before)
    before[:, 0], before[:, 1:] = first[0], hs[:, :-1]
    if resets is not None:
        before.masked_fill_(resets[:, :, None, None], 0)
    width = hs.shape[3]
    before = before.flatten(0, 1).transpose(0, 1)  # (H, BL, P)
    for k in range(4):  # a gate's weights at a time: no gradient is copied
        part = grad_gates[:, :, k].flatten(0, 1).permute(1, 2, 0)
        torch.bmm(part, before, out=grad_recurrent[:, k * width : (k + 1) * width])
    return outputs


@_backward.register_kernel("cuda")
def _backward_cuda(
    grad_hs: Tensor,
    grad_last: Tensor,
    recurrent: Tensor,
    first: Tensor,
    resets: Tensor | None,
    hs: Tensor,
    saved: Tensor,
    marks: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    if not hs.numel() or _cuda_walks.slstm_reason(hs) is not None:  # what is saved is the same for both
        return _slstm_walk.backward(grad_hs, grad_last, recurrent, first, resets, hs, saved)
    return _cuda_walks.slstm_backward(grad_hs, grad_last, recurrent, first, resets, hs, saved)


@_backward.register_fake
def _backward_fake(
    grad_hs: Tensor,
    grad_last: Tensor,
    recurrent: Tensor,
    first: Tensor,
    resets: Tensor | None,
    hs: Tensor,
    saved: Tensor,
    marks: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    batch, length, heads, width = hs.shape
    gates = hs.new_empty(batch, length, 4, heads, width)
    return gates, recurrent.new_empty(recurrent.shape), first.new_empty(first.shape)


def _threads(hs: Tensor) -> int:
    return _native.threads(hs.numel() * 4 * hs.shape[3])


def _save(
    ctx: torch.autograd.function.FunctionCtx,
    inputs: tuple[Tensor, Tensor, Tensor, Tensor | None, bool],
    output: tuple[Tensor, Tensor, Tensor, Tensor],
) -> None:
    _, recurrent, first, resets, save = inputs
    hs, _, saved, marks = output
    ctx.save_for_backward(recurrent, first, resets, hs, saved, marks)  # type: ignore[arg-type]
    ctx.mark_non_differentiable(saved, marks)
    ctx.set_materialize_grads(False)  # or zeros as large as what was saved are made for nobody
    ctx.saved = save  # type: ignore[attr-defined]


def _differentiate(
    ctx: torch.autograd.function.FunctionCtx, grad_hs: Tensor | None, grad_last: Tensor | None, *_: None
) -> tuple[Tensor, Tensor, Tensor, None, None]:
    if not ctx.saved:  # type: ignore[attr-defined]
        raise RuntimeError("longseq::slstm_forward was called with save=False but needs a gradient")
    recurrent, first, resets, hs, saved, marks = ctx.saved_tensors  # type: ignore[attr-defined]
    grad_hs = torch.zeros_like(hs) if grad_hs is None else grad_hs
    grad_last = torch.zeros_like(first) if grad_last is None else grad_last
    return *_backward(grad_hs, grad_last, recurrent, first, resets, hs, saved, marks), None, None


_forward.register_autograd(_differentiate, setup_context=_save)
