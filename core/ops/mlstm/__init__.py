"""The mLSTM's matrix memory: exponential input gates, sigmoid forget gates, and a stabiliser, over
chunks."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from longseq.core.ops.backends import Backend, Dispatch
from longseq.core.ops.exported import exported, is_open
from longseq.core.ops.mlstm import chunked, cpu, reference, torch_op, triton
from longseq.core.ops.mlstm.arguments import EPS, NAME, Arguments, MLSTMState, checked
from longseq.core.ops.mlstm.reference import mlstm_reference
from longseq.core.ops.precision import compute_dtype

__all__ = ["MLSTMState", "mlstm", "mlstm_reference"]


def _example(new: Callable[..., Tensor]) -> Arguments:
    rows, gates = new(1, 64, 2, 16), new(1, 64, 2)
    return Arguments(rows, rows, rows, gates, gates)


_DISPATCH = Dispatch(NAME, {"cpu": cpu.reason, "triton": triton.reason}, _example, "chunked")
_RUN = {
    "triton": triton.run,
    "cpu": torch_op.run,
    "chunked": chunked.run,
    "reference": reference.run,
}


class _Open(NamedTuple):
    q: Tensor
    k: Tensor
    v: Tensor
    i: Tensor
    f: Tensor
    c: Tensor | None
    n: Tensor | None
    m: Tensor | None
    resets: Tensor | None
    chunk_size: int
    eps: float


def _empty(call: _Open) -> list[Tensor]:
    v, dtype = call.v, compute_dtype(*call[:5])
    shape = (v.shape[0], v.shape[2], call.q.shape[3], v.shape[3])
    last = [v.new_empty(size, dtype=dtype) for size in (shape, shape[:3], shape[:2])]
    return [v.new_empty(v.shape), *last]


def _whole(call: _Open) -> list[Tensor]:
    *inputs, c, n, m, resets, chunk_size, eps = call
    first = None if c is None or n is None or m is None else (c, n, m)
    q, k, v, i, f = inputs
    h, last = mlstm(q, k, v, i, f, first, resets, chunk_size, eps)
    return [h, *last]


_OPEN = exported("longseq::mlstm_memory", _Open, _empty, _whole)


def mlstm(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    initial_state: MLSTMState | None = None,
    resets: Tensor | None = None,
    chunk_size: int = 128,
    eps: float = EPS,
    *,
    backend: Backend = "auto",
) -> tuple[Tensor, MLSTMState]:
    """Runs the stabilised mLSTM recurrence in chunks.

    With F_t = logsigmoid(f_t), keys scaled by 1/√K and all of C, n held in units of exp(m):
    m_t = max(F_t + m_{t-1}, i_t); C_t = exp(F_t + m_{t-1} - m_t) C_{t-1} + exp(i_t - m_t) k_t v_tᵀ;
    n_t alike with k_t; h_t = C_tᵀ q_t / (max(|n_tᵀ q_t|, exp(-m_t)) + eps).
    See arXiv 2405.04517, eq. 19-27 and appendix A.

    Args:
        q: queries (B, L, H, K).
        k: keys (B, L, H, K), not yet scaled.
        v: values (B, L, H, V).
        i: input gates before their exponential (B, L, H).
        f: forget gates before their sigmoid (B, L, H).
        initial_state: C (B, H, K, V), n (B, H, K), m (B, H); None for the start: zeros, and m =
            -inf.
        resets: bool or integer (B, L), true where the state is cleared before the position is read.
        chunk_size: positions per chunk, rounded up to a power of two; changes speed only.
        eps: added to the denominator.
        backend: see ``longseq.core.ops.backends``.

    Returns:
        The output (B, L, H, V) in v's dtype and the final (C, n, m), float32 or float64.

    Raises:
        ArgumentError: naming the argument that does not fit.
        BackendError: if the backend asked for cannot serve the call.
    """
    call = checked(Arguments(q, k, v, i, f, initial_state, resets, chunk_size, eps))
    if is_open(v.shape[1]):
        first = (None, None, None) if initial_state is None else initial_state
        h, c, n, m = _OPEN(q, k, v, i, f, *first, call.resets, chunk_size, eps)
        return h, (c, n, m)
    return _RUN[_DISPATCH.choose(backend, call)](call)
