"""The delta rule: a matrix state that is corrected towards each value, with any kind of decay."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from longseq.core.ops.backends import Backend, Dispatch
from longseq.core.ops.delta_rule import chunked, cpu, reference, triton
from longseq.core.ops.delta_rule.arguments import NAME, Arguments, checked
from longseq.core.ops.delta_rule.reference import delta_rule_reference
from longseq.core.ops.exported import exported, is_open
from longseq.core.ops.precision import compute_dtype

__all__ = ["delta_rule", "delta_rule_reference"]


def _example(new: Callable[..., Tensor]) -> Arguments:
    rows, gates = new(1, 64, 2, 16), new(1, 64, 2)
    return Arguments(rows, rows, rows, gates, gates)


_DISPATCH = Dispatch(NAME, {"cpu": cpu.reason, "triton": triton.reason}, _example, "chunked")
_RUN = {
    "cpu": cpu.run,
    "triton": triton.run,
    "chunked": chunked.run,
    "reference": reference.run,
}


class _Open(NamedTuple):
    q: Tensor
    k: Tensor
    v: Tensor
    beta: Tensor
    log_decay: Tensor | None
    initial_state: Tensor | None
    resets: Tensor | None
    scale: float
    chunk_size: int


def _empty(call: _Open) -> tuple[Tensor, Tensor]:
    q, k, v, beta, log_decay, first, *_ = call
    shape = (v.shape[0], v.shape[2], q.shape[3], v.shape[3])
    dtype = compute_dtype(q, k, v, beta, log_decay, first)
    return v.new_empty(v.shape), v.new_empty(shape, dtype=dtype)


def _whole(call: _Open) -> tuple[Tensor, Tensor]:
    q, k, v, beta, log_decay, first, resets, scale, chunk_size = call
    return delta_rule(q, k, v, beta, log_decay, scale, first, resets, chunk_size)


_OPEN = exported("longseq::delta_rule", _Open, _empty, _whole)


def delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor | None = None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    resets: Tensor | None = None,
    chunk_size: int = 64,
    *,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:
    """Runs S_t = D_t S_{t-1} + β_t k_t (v_t - (D_t S_{t-1})ᵀ k_t)ᵀ, o_t = scale · S_tᵀ q_t, in
    chunks.

    D_t = diag(exp g_t). What a chunk writes, U, solves (I + diag(β) A) U = diag(β) (V - F S_0),
    with A the strictly lower triangle of the decayed k_t·k_j and F the keys decayed from the
    chunk's start: the WY form of a product of generalised Householder matrices. All else is linear
    attention over U. Every exponent is a sum of log-decays over a real span, so that nothing
    overflows for log-decays ≤ 0; nothing is divided by a cumulative decay. The recurrence is stable
    for β |k|² ≤ 2: keys are meant to have norm 1.

    See arXiv 2406.06484, eq. 8-11 (DeltaNet, no decay), arXiv 2412.06464, eq. 10 (Gated DeltaNet,
    per head), and arXiv 2510.26692, eq. 1 (KDA, per key channel).

    Args:
        q: queries (B, L, G, K).
        k: keys (B, L, G, K).
        v: values (B, L, H, V), H a multiple of G; consecutive heads share a query and a key.
        beta: β (B, L, H), the part of the difference that is written; 0 to 2.
        log_decay: g ≤ 0; None, (B, L, H) per head or (B, L, G, K) per key channel; -inf forgets
            all.
        scale: factor of the output; 1/√K if None.
        initial_state: S before position 0, (B, H, K, V); zeros if None.
        resets: bool or integer (B, L), true where the state is cleared before the position is read.
        chunk_size: positions per chunk, rounded up to a power of two; changes speed only.
        backend: see ``longseq.core.ops.backends``.

    Returns:
        The output (B, L, H, V) in v's dtype and the final state (B, H, K, V), float32 or float64.

    Raises:
        ArgumentError: naming the argument that does not fit.
        BackendError: if the backend asked for cannot serve the call.
    """
    call = checked(Arguments(q, k, v, beta, log_decay, scale, initial_state, resets, chunk_size))
    if is_open(v.shape[1]):
        scale = q.shape[3] ** -0.5 if scale is None else scale
        y, last = _OPEN(q, k, v, beta, log_decay, initial_state, call.resets, scale, chunk_size)
        return y, last
    return _RUN[_DISPATCH.choose(backend, call)](call)
