"""A matrix state whose transition is any diagonal matrix plus any matrix of rank one, as in
RWKV-7."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from longseq.core.ops.backends import Backend, Dispatch
from longseq.core.ops.dplr import chunked, cpu, reference
from longseq.core.ops.dplr.arguments import NAME, Arguments, checked
from longseq.core.ops.dplr.reference import dplr_reference
from longseq.core.ops.exported import exported, is_open
from longseq.core.ops.precision import compute_dtype

__all__ = ["dplr", "dplr_reference"]


def _example(new: Callable[..., Tensor]) -> Arguments:
    rows = new(1, 64, 2, 16)
    return Arguments(rows, rows, rows, rows, rows, rows)


_DISPATCH = Dispatch(NAME, {"cpu": cpu.reason}, _example, "chunked")
_RUN = {"cpu": cpu.run, "chunked": chunked.run, "reference": reference.run}


class _Open(NamedTuple):
    q: Tensor
    k: Tensor
    v: Tensor
    a: Tensor
    b: Tensor
    log_decay: Tensor
    initial_state: Tensor | None
    resets: Tensor | None
    scale: float
    chunk_size: int


def _empty(call: _Open) -> tuple[Tensor, Tensor]:
    shape = (*call.v.shape[::2], call.q.shape[3], call.v.shape[3])
    last = call.v.new_empty(shape, dtype=compute_dtype(*call[:7]))
    return call.v.new_empty(call.v.shape), last


def _whole(call: _Open) -> tuple[Tensor, Tensor]:
    return dplr(*call[:6], call.scale, call.initial_state, call.resets, call.chunk_size)


_OPEN = exported("longseq::dplr", _Open, _empty, _whole)


def dplr(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    log_decay: Tensor,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    resets: Tensor | None = None,
    chunk_size: int = 64,
    *,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:
    """Runs S_t = (diag(exp g_t) + a_t b_tᵀ) S_{t-1} + k_t v_tᵀ, o_t = scale · S_tᵀ q_t, in chunks.

    What the positions of a chunk find, P with rows p_t = S_{t-1}ᵀ b_t, solves (I - A) P = B V + F
    S_0: A and B are the strictly lower triangles of b_t with a_j and with k_j, decayed over what
    lies between, and F is b decayed from the chunk's start. All else is linear attention over V and
    P. Every exponent is a sum of log-decays over a real span: nothing overflows for log-decays ≤ 0,
    and nothing is divided by a cumulative decay. See arXiv 2503.14456, eq. 16-17 (RWKV-7: a = κ̂ ∘
    η, b = -κ̂, and |κ̂| = 1 keeps it stable); the delta rule is a = -β k, b = exp(g) ∘ k.

    Args:
        q: queries (B, L, H, K).
        k: keys (B, L, H, K).
        v: values (B, L, H, V).
        a: where what b finds is added (B, L, H, K).
        b: what is looked for in the state (B, L, H, K).
        log_decay: g ≤ 0 (B, L, H, K); -inf forgets a channel, but for what b finds in it.
        scale: factor of the output; 1/√K if None.
        initial_state: S before position 0, (B, H, K, V); zeros if None.
        resets: bool (B, L), true where the state is cleared before the position is read.
        chunk_size: positions per chunk, rounded up to a power of two; changes speed only.
        backend: see ``longseq.core.ops.backends``.

    Returns:
        The output (B, L, H, V) in v's dtype and the final state (B, H, K, V), float32 or float64.

    Raises:
        ArgumentError: naming the argument that does not fit.
        BackendError: if the backend asked for cannot serve the call.
    """
    call = checked(Arguments(q, k, v, a, b, log_decay, scale, initial_state, resets, chunk_size))
    if is_open(v.shape[1]):
        scale = q.shape[3] ** -0.5 if scale is None else scale
        y, last = _OPEN(q, k, v, a, b, log_decay, initial_state, call.resets, scale, chunk_size)
        return y, last
    return _RUN[_DISPATCH.choose(backend, call)](call)
