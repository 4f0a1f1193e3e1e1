"""Linear attention with a decaying matrix state: no decay, one per head, or one per key channel."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from longseq.core.ops.backends import Backend, Dispatch
from longseq.core.ops.linear_attention import chunked, cpu, reference, torch_op, triton
from longseq.core.ops.linear_attention.arguments import NAME, Arguments, checked
from longseq.core.ops.linear_attention.reference import linear_attention_reference

__all__ = ["linear_attention", "linear_attention_reference"]


def _example(new: Callable[..., Tensor]) -> Arguments:
    rows = new(1, 64, 2, 16)
    return Arguments(rows, rows, rows, new(1, 64, 2))


_DISPATCH = Dispatch(NAME, {"cpu": cpu.reason, "triton": triton.reason}, _example, "chunked")
_RUN = {
    "triton": triton.run,
    "cpu": torch_op.run,
    "chunked": chunked.run,
    "reference": reference.run,
}


def linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None = None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    resets: Tensor | None = None,
    chunk_size: int = 64,
    *,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:
    """Runs S_t = diag(exp g_t) S_{t-1} + k_t v_tᵀ, o_t = scale · S_tᵀ q_t, in chunks.

    Inside a chunk the scores are a masked matrix product; between chunks one K × V state is handed
    on. With a decay per key channel the product is taken over halves, quarters, … of the chunk,
    each with its decays measured from the cut, so that every exponent is a sum of log-decays over a
    real span: nothing overflows for log-decays ≤ 0, and there is no division by a cumulative decay.
    See arXiv 2307.08621, eq. 7 (retention), and arXiv 2312.06635, eq. 3-5 and section 4 (GLA).

    Args:
        q: queries (B, L, G, K).
        k: keys (B, L, G, K).
        v: values (B, L, H, V), H a multiple of G; consecutive heads share a query and a key.
        log_decay: g ≤ 0; None, (B, L, H) per head or (B, L, G, K) per key channel; -inf forgets
            all.
        scale: factor of the scores; 1/√K if None.
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
    call = checked(Arguments(q, k, v, log_decay, scale, initial_state, resets, chunk_size))
    return _RUN[_DISPATCH.choose(backend, call)](call)
