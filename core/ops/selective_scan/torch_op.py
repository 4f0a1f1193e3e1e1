"""The selective scan as an operator of torch: results, gradients, and the rules of autocast and
vmap."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from longseq.core.kernels.custom_op import define, gradients_of, in_transform, seen_by
from longseq.core.ops import cpu_calls
from longseq.core.ops.precision import compute_dtype
from longseq.core.ops.selective_scan import cpu, cuda, reference
from longseq.core.ops.selective_scan.arguments import Arguments, Path


class _Saving(NamedTuple):
    save_states: bool


class _Incoming(NamedTuple):
    dy: Tensor
    dfinal: Tensor | None


class _Saved(NamedTuple):
    states: Tensor


def _outputs(x: Arguments, saving: _Saving) -> tuple[Tensor, Tensor, Tensor]:
    """Returns y, the final state, and the saved states (private to the kernels), all empty."""
    dtype = compute_dtype(x.u, x.A)
    batch, length, width = x.u.shape
    if x.u.device.type == "cuda":
        size = cuda.saved_size(length, x.A)
    else:
        size = cpu.saved_size(length, width, x.B.shape[2], x.A)
    # In two dimensions: the number of chunks as a size of its own would be 1 or not, and bind
    # torch.export.
    saved = (batch, size) if saving.save_states else (0,)
    kept = torch.promote_types(dtype, torch.complex64) if x.A.is_complex() else dtype
    final = x.u.new_empty((batch, width, x.A.shape[1]), dtype=kept)
    return cpu_calls.empty_as(x.u), final, x.u.new_empty(saved, dtype=dtype)


def _gradients(into: _Incoming, x: Arguments, saved: _Saved) -> list[Tensor]:
    """Returns room for the gradients of the first nine arguments; none for absent ones."""
    absent = x.u.new_empty((0,))
    room = [absent.clone() if t is None else t.new_empty(t.shape) for t in x[:9]]
    for i, rows in ((0, x.u), (1, x.delta), (6, x.z)):
        if rows is not None:
            room[i] = cpu_calls.empty_as(rows)
    return room


def _outputs_along(x: Arguments, path: Path, saving: _Saving) -> tuple[Tensor, Tensor, Tensor]:
    return _outputs(x, saving)


def _gradients_along(into: _Incoming, x: Arguments, path: Path, saved: _Saved) -> list[Tensor]:
    """Returns room for the gradients of the first nine arguments, and of what the path adds."""
    room = x.u.new_empty((0,)) if path.add is None else cpu_calls.empty_as(path.add)
    return [*_gradients(into, x, saved), room]


def _forward_cpu(x: Arguments, saving: _Saving) -> tuple[Tensor, Tensor, Tensor]:
    return _along_cpu(x, cpu.AHEAD, saving)


def _along_cpu(
    x: Arguments, path: Path, saving: _Saving, widen: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    y, final, states = _outputs(x, saving)
    if x.u.shape[2] // x.B.shape[2] % cpu.LANES:
        # The kernels leave the padding alone; an operator's outputs must be the same twice.
        states.zero_()
    cpu_calls.fresh(y, states)
    if y.numel():
        cpu.forward(y, final, states if saving.save_states else None, x, path, widen)
    return y, final, states


def _forward_cuda(x: Arguments, saving: _Saving) -> tuple[Tensor, Tensor, Tensor]:
    y, final, states = _outputs(x, saving)
    if y.numel():
        cuda.forward(y, final, states if saving.save_states else None, x)
    return y, final, states


def _backward_cpu(into: _Incoming, x: Arguments, saved: _Saved) -> list[Tensor]:
    outputs = _gradients(into, x, saved)
    if not x.u.numel():
        return [t.zero_() for t in outputs]
    cpu_calls.fresh(outputs[0], outputs[1], outputs[6])
    cpu.backward(outputs, into.dy, into.dfinal, x, saved.states)
    return outputs


def _backward_along_cpu(into: _Incoming, x: Arguments, path: Path, saved: _Saved) -> list[Tensor]:
    outputs = _gradients_along(into, x, path, saved)
    if not x.u.numel():
        return [t.zero_() for t in outputs]
    dadd = None if path.add is None else outputs[9]
    cpu_calls.fresh(outputs[0], outputs[1], outputs[6], outputs[9])
    cpu.backward(outputs[:9], into.dy, into.dfinal, x, saved.states, path, dadd)
    return outputs


def _backward_cuda(into: _Incoming, x: Arguments, saved: _Saved) -> list[Tensor]:
    outputs = _gradients(into, x, saved)
    if not x.u.numel():
        return [t.zero_() for t in outputs]
    grads = cuda.backward(into.dy, into.dfinal, x, saved.states)
    names = ("du", "ddelta", "dA", "dB", "dC", "dD", "dz", "dbias", "dinitial")
    return [
        out if given is None else grads[name].to(given.dtype)
        for name, given, out in zip(names, x[:9], outputs)
    ]


def _setup(ctx: Any, output: tuple[Tensor, Tensor, Tensor], x: Arguments, saving: _Saving) -> None:
    ctx.save_for_backward(*x[:10], output[2])
    ctx.softplus, ctx.save_states = x.delta_softplus, saving.save_states
    ctx.mark_non_differentiable(output[2])
    ctx.set_materialize_grads(False)


def _backward(
    ctx: Any, dy: Tensor | None, dfinal: Tensor | None, _: Tensor | None
) -> tuple[Any, ...]:
    if not ctx.save_states:
        raise RuntimeError(
            "longseq::selective_scan was called with save_states=False but needs a gradient"
        )
    *tensors, states = ctx.saved_tensors
    x = Arguments._make([*tensors, ctx.softplus])
    grads = backward(torch.zeros_like(x.u) if dy is None else dy, dfinal, *x, states)
    kept = [g if needed else None for g, needed in zip(grads, ctx.needs_input_grad)]
    return (*kept, None, None, None)


def _setup_along(
    ctx: Any, output: tuple[Tensor, Tensor, Tensor], x: Arguments, path: Path, saving: _Saving
) -> None:
    _setup(ctx, output, x, saving)
    ctx.save_for_backward(*x[:10], path.add, output[2])
    ctx.way = path[:2]


def _backward_along(
    ctx: Any, dy: Tensor | None, dfinal: Tensor | None, _: Tensor | None
) -> tuple[Any, ...]:
    if not ctx.save_states:
        raise RuntimeError(
            "longseq::selective_scan_along was called with save_states=False but needs a gradient"
        )
    *tensors, add, states = ctx.saved_tensors
    x, path = Arguments._make([*tensors, ctx.softplus]), Path(ctx.way[0], ctx.way[1], add)
    dy = torch.zeros_like(x.u) if dy is None else dy
    # Without a gate behind it, what is added has the output's own gradient.
    own = x.z is None
    *grads, dadd = backward_along(
        dy, dfinal, *x, *(path._replace(add=None) if own else path), states
    )
    dadd = dy.to(add.dtype) if own and add is not None else dadd
    needed = ctx.needs_input_grad
    kept = [g if wanted else None for g, wanted in zip(grads, needed)]
    # Behind the nine: resets, softplus, reverse and height; add; whether states are saved.
    return (*kept, None, None, None, None, dadd if needed[13] else None, None)


def _composed(x: Arguments, saving: _Saving) -> tuple[Tensor, Tensor, Tensor]:
    y, final = reference.run(x)
    return y, final, x.u.new_empty((0,))


def _composed_backward(into: _Incoming, x: Arguments, saved: _Saved) -> list[Tensor]:
    def run(*given: Tensor | None) -> tuple[Tensor, Tensor]:
        return reference.run(Arguments._make([*given, *x[9:]]))

    found = gradients_of(run, x[:9], into)
    return [x.u.new_empty((0,)) if grad is None else grad for grad in found]


def _composed_along(x: Arguments, path: Path, saving: _Saving) -> tuple[Tensor, Tensor, Tensor]:
    y, final = reference.along(x, path, reference.run)
    return y, final, x.u.new_empty((0,))


def _composed_backward_along(
    into: _Incoming, x: Arguments, path: Path, saved: _Saved
) -> list[Tensor]:
    def run(*given: Tensor | None) -> tuple[Tensor, Tensor]:
        call = Arguments._make([*given[:9], *x[9:]])
        return reference.along(call, path._replace(add=given[9]), reference.run)

    found = gradients_of(run, [*x[:9], path.add], into)
    return [x.u.new_empty((0,)) if grad is None else grad for grad in found]


# The gradients of A, D and delta_bias differ between vmapped samples, which therefore run one by
# one.
backward = define(
    "longseq::selective_scan_backward",
    (_Incoming, Arguments, _Saved),
    None,
    _gradients,
    cpu=_backward_cpu,
    cuda=_backward_cuda,
    composed=_composed_backward,
)
forward = define(
    "longseq::selective_scan",
    (Arguments, _Saving),
    3,
    _outputs,
    cpu=_forward_cpu,
    cuda=_forward_cuda,
    rows=("u", "delta", "B", "C", "z", "initial_state", "resets"),
    setup=_setup,
    backward=_backward,
    composed=_composed,
    lower=("u", "B", "C", "z"),
    keep=("A", "D", "delta_bias", "initial_state"),
)

backward_along = define(
    "longseq::selective_scan_along_backward",
    (_Incoming, Arguments, Path, _Saved),
    None,
    _gradients_along,
    cpu=_backward_along_cpu,
    composed=_composed_backward_along,
)
forward_along = define(
    "longseq::selective_scan_along",
    (Arguments, Path, _Saving),
    3,
    _outputs_along,
    cpu=_along_cpu,
    rows=("u", "delta", "B", "C", "z", "initial_state", "resets", "add"),
    setup=_setup_along,
    backward=_backward_along,
    composed=_composed_along,
    lower=("u", "B", "C", "z", "add"),
    keep=("A", "D", "delta_bias", "initial_state"),
)


def _saves(*tensors: Tensor | None) -> bool:
    """Returns whether a call saves the states that its gradient needs."""
    # Inside a torch.func transform, requires_grad says nothing about the outer levels.
    return in_transform() or (
        torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    )


def run(x: Arguments) -> tuple[Tensor, Tensor]:
    """Runs a checked call by the kernels of its device; returns the output and the final state."""
    y, final, _ = forward(*x, _saves(*x[:9]))
    return y, final


def run_widening(x: Arguments, path: Path, widen: Tensor) -> tuple[Tensor, Tensor] | None:
    """Runs a checked call on the CPU whose step sizes are products of x.delta (B, L, R) and rows
    (D, R), made where they are used; None if a gradient or torch has to see the call."""
    if seen_by([*x, path.add, widen]) is not None:
        return None
    y, final, _ = _along_cpu(x, path, _Saving(False), widen)
    return y, final


def run_along(x: Arguments, path: Path) -> tuple[Tensor, Tensor]:
    """Runs a checked call along a checked path by the CPU kernels."""
    y, final, _ = forward_along(*x, *path, _saves(*x[:9], path.add))
    return y, final
