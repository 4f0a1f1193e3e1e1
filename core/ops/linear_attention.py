"""Linear attention with a decaying matrix state: no decay, one per head, or one per key channel."""

from __future__ import annotations

import torch
from torch import Tensor

from longseq.core.errors import ArgumentError
from longseq.core.ops import _native
from longseq.core.ops._chunking import (
    by_blocks,
    check_resets,
    chunk_length,
    fold,
    from_chunks,
    lower_triangular,
    pass_states,
    run_blocks,
    span_sums,
    to_chunks,
    unfold,
)
from longseq.core.ops._decay_attention import composed, decay_attention
from longseq.core.ops._triton import by_triton, lowered
from longseq.core.ops.backends import Backend, by_cpu

_NAME = "linear_attention"


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

    Inside a chunk the scores are a masked matrix product; between chunks one K × V state is handed on. With
    a decay per key channel the product is taken over halves, quarters, … of the chunk, each with its decays
    measured from the cut, so that every exponent is a sum of log-decays over a real span: nothing overflows
    for log-decays ≤ 0, and there is no division by a cumulative decay. See arXiv 2307.08621, eq. 7
    (retention), and arXiv 2312.06635, eq. 3-5 and section 4 (GLA).

    Args:
        q: queries (B, L, G, K).
        k: keys (B, L, G, K).
        v: values (B, L, H, V), H a multiple of G; consecutive heads share a query and a key.
        log_decay: g ≤ 0; None, (B, L, H) per head or (B, L, G, K) per key channel; -inf forgets all.
        scale: factor of the scores; 1/√K if None.
        initial_state: S before position 0, (B, H, K, V); zeros if None.
        resets: bool (B, L), true where the state is cleared before the position is read.
        chunk_size: positions a chunk, rounded up to a power of two; changes speed only.
        backend: see ``longseq.core.ops._triton.by_triton``.

    Returns:
        The output (B, L, H, V) in v's dtype and the final state (B, H, K, V), float32 or float64.

    Raises:
        ArgumentError: naming the argument that does not fit.
        BackendError: if the backend asked for cannot serve the call.
    """
    if by_triton(_NAME, backend, v, q, k, log_decay, initial_state):
        return _with_triton(q, k, v, log_decay, scale, initial_state, resets, chunk_size)
    if v.shape[1] == 1:
        return linear_attention_reference(q, k, v, log_decay, scale, initial_state, resets)
    # With gradients and a key for every head, the products of all chunks at once are quicker.
    lean = v.shape[2] > q.shape[2] or not torch.is_grad_enabled()
    lean = lean and (log_decay is None or log_decay.ndim == 3) and by_cpu(_NAME, backend, v)
    if by_blocks(v.shape[1]) and not lean:
        return run_blocks(
            lambda q, k, v, g, r, state: linear_attention(
                q, k, v, g, scale, state, r, chunk_size, backend="reference"
            ),
            (q, k, v, log_decay, resets),
            initial_state,
        )
    with torch.autocast(v.device.type, enabled=False):
        q, k, values, g, state = _prepare(q, k, v, log_decay, scale, initial_state, resets)
        if g.ndim == 3:
            attend = decay_attention if lean else composed
            y, last = attend(q, k, values, g, state, chunk_size)
        else:
            y, last = _decay_per_channel(q, k, values, g, state, chunk_size)
        return y.to(v.dtype), last


def _with_triton(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    scale: float | None,
    initial_state: Tensor | None,
    resets: Tensor | None,
    chunk_size: int,
) -> tuple[Tensor, Tensor]:
    """The operator by Triton."""
    from longseq.core.kernels.triton import gla
    from longseq.core.kernels.triton import linear_attention as per_head

    _check(q, k, v, log_decay, initial_state, resets)
    chunk_length(chunk_size, v.shape[1])
    scale = q.shape[3] ** -0.5 if scale is None else scale
    q, k, v = lowered(q, k, v)
    g = log_decay
    with torch.autocast(v.device.type, enabled=False):
        if resets is not None:
            g = torch.zeros(v.shape[:3], device=v.device) if g is None else g.float()
            g = g.masked_fill(resets.reshape(*resets.shape, *[1] * (g.ndim - 2)), -torch.inf)
        if g is not None and g.ndim == 4:
            return gla.attend(q, k, v, g, scale, initial_state, chunk_size)
        return per_head.attend(q, k, v, g, scale, initial_state, chunk_size)


def _decay_per_channel(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, state: Tensor, chunk_size: int
) -> tuple[Tensor, Tensor]:
    """The operator for log-decays (B, L, G, K)."""
    length, groups, shared = v.shape[1], q.shape[2], v.shape[2] // q.shape[2]
    chunk = chunk_length(chunk_size, length)
    qc, kc, vc = (to_chunks(x, chunk) for x in (q, k, v))
    spans = span_sums(to_chunks(g, chunk))
    through, behind = (x.squeeze(-3).exp() for x in spans[-1])  # (B, G, C, T, K)
    blocks = (_half(qc, a, 1) @ _half(kc, b, 0).transpose(-1, -2) for a, b in spans[:-1])
    diagonal = (qc * kc).sum(-1)[..., None, None]
    folded = fold(vc, groups)
    y = unfold(lower_triangular(diagonal, blocks, 0.0) @ folded, shared)
    local = (kc * behind).transpose(-1, -2) @ folded
    total = through[..., -1, :].unsqueeze(-1)  # (B, G, C, K, 1)
    carried, last = pass_states(fold(state.unsqueeze(2), groups).squeeze(2), local, total)
    y = y + unfold((qc * through) @ carried, shared)
    return from_chunks(y, length), unfold(last.unsqueeze(2), shared).squeeze(2)


def linear_attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None = None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    resets: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The same as ``linear_attention``, one position after the other.

    Args:
        q: queries (B, L, G, K).
        k: keys (B, L, G, K).
        v: values (B, L, H, V).
        log_decay: None, (B, L, H) or (B, L, G, K).
        scale: factor of the scores; 1/√K if None.
        initial_state: (B, H, K, V).
        resets: bool (B, L).

    Returns:
        The output (B, L, H, V) and the final state (B, H, K, V).

    Raises:
        ArgumentError: naming the argument that does not fit.
    """
    with torch.autocast(v.device.type, enabled=False):
        q, k, values, g, state = _prepare(q, k, v, log_decay, scale, initial_state, resets)
        shared = v.shape[2] // q.shape[2]
        q, k = q.repeat_interleave(shared, 2), k.repeat_interleave(shared, 2)
        decay = (g.unsqueeze(-1) if g.ndim == 3 else g.repeat_interleave(shared, 2)).exp().unsqueeze(-1)
        outputs = []
        for t in range(v.shape[1]):
            state = decay[:, t] * state + k[:, t].unsqueeze(-1) * values[:, t].unsqueeze(-2)
            outputs.append((q[:, t].unsqueeze(-2) @ state).squeeze(-2))
        return torch.stack(outputs, 1).to(v.dtype), state


def _check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    initial_state: Tensor | None,
    resets: Tensor | None,
) -> None:
    """Checks shapes and devices."""
    for name, tensor in (("q", q), ("v", v)):
        if tensor.ndim != 4 or tensor.shape[1] < 1:
            raise ArgumentError(
                f"{_NAME}: {name} must be (batch, length ≥ 1, heads, width), got {tuple(tensor.shape)}"
            )
    batch, length, heads, d_value = v.shape
    groups, d_key = q.shape[2:]
    _native.check(_NAME, "q", q, (batch, length, groups, d_key), "(batch, length, groups, key width)")
    _native.check(_NAME, "k", k, q.shape, "(batch, length, groups, key width)")
    if heads % groups:
        raise ArgumentError(f"{_NAME}: v must have a multiple of the {groups} heads of q, got {heads}")
    named = {"q": q, "k": k, "log_decay": log_decay, "initial_state": initial_state, "resets": resets}
    _native.check_device(_NAME, v, named)
    if log_decay is not None and log_decay.shape not in ((batch, length, heads), q.shape):
        raise ArgumentError(
            f"{_NAME}: log_decay must have shape {(batch, length, heads)} = (batch, length, heads) or "
            f"{tuple(q.shape)} = (batch, length, groups, key width), got {tuple(log_decay.shape)}"
        )
    if resets is not None:
        check_resets(_NAME, resets, v)
    if initial_state is not None:
        shape = (batch, heads, d_key, d_value)
        _native.check(_NAME, "initial_state", initial_state, shape, "(batch, heads, key width, value width)")


def _prepare(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    scale: float | None,
    initial_state: Tensor | None,
    resets: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Checks shapes; returns scaled q, k, v, log-decays (-inf at resets) and the state."""
    _check(q, k, v, log_decay, initial_state, resets)
    batch, length, heads, d_value = v.shape
    d_key = q.shape[3]
    dtype = _native.compute_dtype(q, k, v, log_decay, initial_state)
    if log_decay is None:
        g = torch.zeros(batch, length, heads, dtype=dtype, device=v.device)
    else:
        g = log_decay.to(dtype)
    if resets is not None:
        g = g.masked_fill(resets.reshape(batch, length, *[1] * (g.ndim - 2)), -torch.inf)
    if initial_state is None:
        state = torch.zeros((batch, heads, d_key, d_value), dtype=dtype, device=v.device)
    else:
        state = initial_state.to(dtype)
    scale = d_key**-0.5 if scale is None else scale
    return q.to(dtype) if scale == 1 else q.to(dtype) * scale, k.to(dtype), v.to(dtype), g, state


def _half(x: Tensor, exponent: Tensor, which: int) -> Tensor:
    """Returns the earlier (0) or later (1) block of each pair, (..., T/2h, h, K), decayed to the cut."""
    blocks = x.unflatten(-2, exponent.shape[-3:-1])
    return blocks[..., which::2, :, :] * exponent[..., which::2, :, :].exp()
