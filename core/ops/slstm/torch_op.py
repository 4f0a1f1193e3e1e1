"""The sLSTM as an operator of torch: by the device's kernel, or step by step in torch."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from longseq.core.kernels.custom_op import define
from longseq.core.ops.slstm import cpu, cuda, walk
from longseq.core.ops.slstm.arguments import Arguments, Kept, SLSTMState
from longseq.core.ops.slstm.reference import slstm_reference


class _Saving(NamedTuple):
    save: bool


class _Incoming(NamedTuple):
    grad_hs: Tensor
    grad_last: Tensor


Outputs = tuple[Tensor, Tensor, Tensor, Tensor]
Gradients = tuple[Tensor, Tensor, Tensor]


def _outputs(call: Arguments, saving: _Saving) -> Outputs:
    """Returns h, the last state, and what the backward needs: empty without ``save``, else
    private."""
    gates, _, first, _ = call
    batch, length, _, heads, width = gates.shape
    hs, last = gates.new_empty(batch, length, heads, width), gates.new_empty(first.shape)
    if not saving.save:
        return hs, last, gates.new_empty(0), gates.new_empty(0)
    if gates.device.type != "cpu":
        return hs, last, gates.new_empty(walk.saved_shape(gates)), gates.new_empty(0)
    marks = (length + cpu.MARK - 1) // cpu.MARK
    return hs, last, gates.new_empty(gates.shape), gates.new_empty(marks * 3, batch, heads, width)


def _gradients(into: _Incoming, kept: Kept) -> Gradients:
    batch, length, heads, width = kept.hs.shape
    gates = kept.hs.new_empty(batch, length, 4, heads, width)
    return (
        gates,
        kept.recurrent.new_empty(kept.recurrent.shape),
        kept.first.new_empty(kept.first.shape),
    )


def _forward_walk(call: Arguments, saving: _Saving) -> Outputs:
    hs, last, saved = walk.forward(call)
    return hs, last, saved if saving.save else hs.new_empty(0), hs.new_empty(0)


def _forward_cpu(call: Arguments, saving: _Saving) -> Outputs:
    hs, last, raw, marks = _outputs(call, saving)
    if hs.numel():
        cpu.forward(hs, last, raw if saving.save else None, marks if saving.save else None, call)
    return hs, last, raw, marks


def _forward_cuda(call: Arguments, saving: _Saving) -> Outputs:
    if cuda.reason(call.gates) is not None:
        return _forward_walk(call, saving)
    hs, last, saved, marks = _outputs(call, saving)
    if hs.numel():
        cuda.forward(hs, last, saved if saving.save else None, call)
    return hs, last, saved, marks


def _backward_walk(into: _Incoming, kept: Kept) -> Gradients:
    return walk.backward(*into, kept)


def _backward_cpu(into: _Incoming, kept: Kept) -> Gradients:
    grads = _gradients(into, kept)
    if kept.hs.numel():
        cpu.backward(grads, *into, kept)
    else:
        grads[1].zero_()
    return grads


def _backward_cuda(into: _Incoming, kept: Kept) -> Gradients:
    # What is saved is the same for both.
    if not kept.hs.numel() or cuda.reason(kept.hs) is not None:
        return _backward_walk(into, kept)
    return cuda.backward(*into, kept)


def _setup(ctx: Any, output: Outputs, call: Arguments, saving: _Saving) -> None:
    hs, _, saved, marks = output
    ctx.save_for_backward(*call[1:], hs, saved, marks)
    ctx.mark_non_differentiable(saved, marks)
    ctx.set_materialize_grads(False)  # or zeros as large as what was saved are made for nobody
    ctx.saved = saving.save


def _backward(
    ctx: Any, grad_hs: Tensor | None, grad_last: Tensor | None, *_: None
) -> tuple[Any, ...]:
    if not ctx.saved:
        raise RuntimeError("longseq::slstm_forward was called with save=False but needs a gradient")
    kept = Kept(*ctx.saved_tensors)
    grad_hs = torch.zeros_like(kept.hs) if grad_hs is None else grad_hs
    grad_last = torch.zeros_like(kept.first) if grad_last is None else grad_last
    return *backward(grad_hs, grad_last, *kept), None, None


def _composed(call: Arguments, saving: _Saving) -> Outputs:
    gates, recurrent, first, resets = call
    hs, last = slstm_reference(gates, recurrent, SLSTMState(*first.unbind(0)), resets)
    return hs, torch.stack(list(last)), gates.new_empty(0), gates.new_empty(0)


backward = define(
    "longseq::slstm_backward",
    (_Incoming, Kept),
    3,
    _gradients,
    everywhere=_backward_walk,
    cpu=_backward_cpu,
    cuda=_backward_cuda,
)
forward = define(
    "longseq::slstm_forward",
    (Arguments, _Saving),
    4,
    _outputs,
    everywhere=_forward_walk,
    cpu=_forward_cpu,
    cuda=_forward_cuda,
    setup=_setup,
    backward=_backward,
    composed=_composed,
)
