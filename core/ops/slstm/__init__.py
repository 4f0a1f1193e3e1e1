"""The stabilised sLSTM recurrence of xLSTM, with recurrent weights inside each head.

For one head of width P and the gate pre-activations g_t = (ĩ, f̃, z̃, õ)_t ∈ R^{4P} (arXiv
2405.04517, eq. 8-14, stabilised by eq. 15-17):

    (ĩ, f̃, z̃, õ) = g_t + R h_{t-1}
    m_t = max(log σ(f̃) + m_{t-1}, ĩ)          i = exp(ĩ - m_t)     f = exp(log σ(f̃) + m_{t-1} -
    m_t) c_t = f c_{t-1} + i tanh(z̃)               n_t = f n_{t-1} + i   h_t = σ(õ) c_t / n_t

m is a running maximum in the logarithm, so that i and f never exceed 1 and one of them is 1: from a
fresh state (h, c, n, m) = (0, 0, 0, -inf) the normaliser n_t is at least 1, and no division is
unsafe.

The recurrence is not linear, so time is walked step by step: on a CPU by a compiled kernel that
keeps a head's weights in a core's cache, on a CUDA device by one that keeps them in shared memory,
elsewhere by ``walk``. The CPU kernel's backward computes the gates again from saved pre-activations
and saved cells; dR is one GEMM over the whole of time.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from longseq.core.errors import ArgumentError
from longseq.core.ops.arguments import check_device, check_kind, check_resets, check_shape
from longseq.core.ops.backends import Backend, Dispatch
from longseq.core.ops.precision import autocast_off
from longseq.core.ops.slstm import cpu, cuda, torch_op
from longseq.core.ops.slstm.arguments import NAME, Arguments, SLSTMState
from longseq.core.ops.slstm.reference import slstm_reference

__all__ = ["SLSTMState", "slstm", "slstm_reference"]


def _example(new: Callable[..., Tensor]) -> Arguments:
    return Arguments(new(1, 64, 4, 2, 16), new(2, 64, 16), new(4, 1, 2, 16), None)


_DISPATCH = Dispatch(
    NAME, {"cpu": cpu.reason, "cuda": lambda call: cuda.reason(call.gates)}, _example, "composed"
)


def slstm(
    gates: Tensor,
    recurrent: Tensor,
    initial_state: SLSTMState | None = None,
    resets: Tensor | None = None,
    *,
    backend: Backend = "auto",
) -> tuple[Tensor, SLSTMState]:
    """Runs the recurrence over a sequence or the next chunk of one.

    Args:
        gates: pre-activations (B, L, 4, H, P) in the order i, f, z, o, input and bias parts added
            up.
        recurrent: R, (H, 4P, P): row k·P + p of a head gives pre-activation k of unit p.
        initial_state: from the previous chunk; None stands for a fresh start.
        resets: bool or integer (B, L), true where the state is forgotten before the position is
            read.
        backend: see ``longseq.core.ops.backends``.

    Returns:
        h (B, L, H, P) in the dtype of ``gates``, and the state after the last position, at least
        float32.

    Raises:
        ArgumentError: naming the argument that does not fit.
        BackendError: if the backend asked for cannot serve the call.
    """
    _check(gates, recurrent, initial_state)
    batch, length, _, heads, width = gates.shape
    resets = check_resets(NAME, resets, batch, length)
    dtype = torch.float64 if gates.dtype == torch.float64 else torch.float32
    state = initial_state or SLSTMState.fresh(batch, heads, width, gates.device, dtype)
    save = torch.is_grad_enabled() and any(t.requires_grad for t in (gates, recurrent, *state))
    with autocast_off(gates):
        first = torch.stack([part.to(dtype) for part in state])
        call = Arguments(gates.to(dtype), recurrent.to(dtype), first, resets)
        chosen = _DISPATCH.choose(backend, call)
        if chosen == "reference" or (chosen == "composed" and gates.device.type == "cpu"):
            return slstm_reference(gates, recurrent, state, resets)
        hs, last, *_ = torch_op.forward(*call, save)
        return hs.to(gates.dtype), SLSTMState(*last.unbind(0))


def _check(gates: Tensor, recurrent: Tensor, initial_state: SLSTMState | None) -> None:
    """Checks shapes and devices: the kernels read what the shape of ``gates`` says is there.

    Raises:
        ArgumentError: naming the argument that does not fit.
    """
    check_kind(NAME, True, gates=gates, recurrent=recurrent)
    if gates.ndim != 5 or gates.shape[2] != 4 or gates.shape[1] < 1:
        raise ArgumentError(f"{NAME}: gates must be (B, L ≥ 1, 4, H, P), got {tuple(gates.shape)}")
    batch, _, _, heads, width = gates.shape
    shape = (heads, 4 * width, width)
    check_shape(NAME, "recurrent", recurrent, shape, "(heads, 4 · width, width)")
    if initial_state is not None and not isinstance(initial_state, SLSTMState):
        got = type(initial_state).__name__
        raise ArgumentError(f"{NAME}: initial_state must be an SLSTMState (h, c, n, m), got {got}")
    state = {} if initial_state is None else initial_state._asdict()
    for name, part in state.items():
        check_shape(
            NAME, f"{name} of initial_state", part, (batch, heads, width), "(batch, heads, width)"
        )
        check_kind(NAME, True, **{f"{name} of initial_state": part})
    check_device(NAME, gates, {"recurrent": recurrent, **state})
