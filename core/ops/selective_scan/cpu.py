"""The selective scan by the compiled CPU kernels: fills results that ``torch_op`` has made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from longseq.core.ops import cpu_calls
from longseq.core.ops.backends import cpu_reason, native
from longseq.core.ops.precision import compute_dtype
from longseq.core.ops.selective_scan.arguments import Arguments, Path

CHUNK, LANES = 32, 16
"""Positions between two saved states, and channels that a row of them is padded to."""
AHEAD = Path()
"""Positions as they lie in memory, with nothing added."""


def reason(x: Arguments) -> str | None:
    """Returns why the kernels cannot take a call, or None if they can."""
    return cpu_reason(*x[:9])


def saved_size(length: int, width: int, groups: int, A: Tensor) -> int:
    """Returns how many numbers are saved for a row."""
    padded = groups * ((width // groups + LANES - 1) // LANES * LANES)
    per_channel = 2 * A.shape[1] if A.is_complex() else A.shape[1]
    return (length + CHUNK - 1) // CHUNK * per_channel * padded


def _arguments(x: Arguments, states: Tensor | None) -> tuple[list[Any], list[Any], torch.dtype]:
    """Returns the kernels' arguments, the tensors that must outlive the call, and the compute
    dtype."""
    dtype = compute_dtype(x.u, x.A)
    u, delta, B, C = (cpu_calls.strided(t) for t in (x.u, x.delta, x.B, x.C))
    z = None if x.z is None else cpu_calls.strided(x.z)
    vectors = [cpu_calls.vector(t, dtype) for t in (x.A, x.D, x.delta_bias, x.initial_state)]
    flags = None if x.resets is None else x.resets.to(torch.uint8).contiguous()
    batch, length, width = u.shape
    A, D, bias, initial = (cpu_calls.pointer(t) for t in vectors)
    arguments = [
        (batch, length, width, x.A.shape[1], B.shape[2]),
        x.delta_softplus,
        x.A.is_complex(),
        cpu_calls.code(dtype),
        cpu_calls.threads(batch * length * width * x.A.shape[1]),
        cpu_calls.across(u),
        cpu_calls.across(delta),
        A,
        cpu_calls.across(B),
        cpu_calls.across(C),
        D,
        cpu_calls.across(z),
        bias,
        initial,
        cpu_calls.pointer(flags),
        cpu_calls.pointer(states),
    ]
    return arguments, [u, delta, B, C, z, flags, states, *vectors], dtype


def forward(
    y: Tensor,
    final: Tensor,
    states: Tensor | None,
    x: Arguments,
    path: Path = AHEAD,
    widen: Tensor | None = None,
) -> None:
    """Fills y, the final state, and the states for the backward pass where there is room for them.

    Args:
        y: the output.
        final: the final state.
        states: see ``saved_size``, or None.
        x: the call.
        path: of the call.
        widen: if x.delta is (B, L, R), the rows (D, R) by which it becomes step sizes.
    """
    arguments, alive, dtype = _arguments(x, states)
    add = None if path.add is None else cpu_calls.strided(path.add)
    arguments += [cpu_calls.across(y), final.data_ptr()]
    if path is AHEAD and widen is None:
        native().selective_scan_forward(*arguments)
    else:
        widen = cpu_calls.vector(widen, dtype)
        low = (0, 0) if widen is None else (widen.shape[1], widen.data_ptr())
        way = (path.reverse, path.height)
        native().selective_scan_along_forward(*low, cpu_calls.across(add), way, *arguments)
    del alive


def backward(
    outputs: Sequence[Tensor],
    dy: Tensor,
    dfinal: Tensor | None,
    x: Arguments,
    states: Tensor,
    path: Path = AHEAD,
    dadd: Tensor | None = None,
) -> None:
    """Fills the gradients of the first nine arguments.

    Args:
        outputs: shaped as the arguments; those of absent ones are left alone.
        dy: gradient of the output.
        dfinal: gradient of the final state.
        x: the call.
        states: that ``forward`` saved.
        path: of the call.
        dadd: filled with the gradient of what the path adds.
    """
    arguments, alive, dtype = _arguments(x, states)
    batch, _, width = x.u.shape
    du, ddelta, dA, dB, dC, dD, dz, dbias, dinitial = outputs
    # The kernel writes these in its compute dtype, whatever the arguments' dtypes are. It sums over
    # time; the sum over the batch is here, so that a row's part has its own place.
    state_dtype = torch.promote_types(dtype, torch.complex64) if x.A.is_complex() else dtype
    rows_A = x.A.new_empty((batch, *x.A.shape), dtype=state_dtype)
    rows_D, rows_bias = (x.u.new_empty((batch, width), dtype=dtype) for _ in range(2))
    wide_B, wide_C = (x.u.new_empty(x.B.shape, dtype=state_dtype) for _ in range(2))
    wide_initial = dinitial if dinitial.dtype == state_dtype else dinitial.to(state_dtype)
    dy = cpu_calls.strided(dy)
    dfinal = cpu_calls.vector(dfinal, dtype)
    arguments += [
        cpu_calls.across(dy),
        cpu_calls.pointer(dfinal),
        cpu_calls.across(du),
        cpu_calls.across(ddelta),
        cpu_calls.across(dz if x.z is not None else None),
        *[t.data_ptr() for t in (rows_A, wide_B, wide_C, rows_D, rows_bias)],
        wide_initial.data_ptr() if x.initial_state is not None else 0,
    ]
    if path is AHEAD:
        native().selective_scan_backward(*arguments)
    else:
        add, way = None if path.add is None else cpu_calls.strided(path.add), path[:2]
        native().selective_scan_along_backward(
            cpu_calls.across(add), way, cpu_calls.across(dadd), *arguments
        )
    del alive
    if wide_initial is not dinitial:
        dinitial.copy_(wide_initial)
    dA.copy_(rows_A.sum(0))
    dB.copy_(wide_B)
    dC.copy_(wide_C)
    if x.D is not None:
        dD.copy_(rows_D.sum(0))
    if x.delta_bias is not None:
        dbias.copy_(rows_bias.sum(0))
