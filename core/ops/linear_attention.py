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
    from_chunks,
    lower_triangular,
    run_blocks,
    span_sums,
    to_chunks,
)

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

    Returns:
        The output (B, L, H, V) in v's dtype and the final state (B, H, K, V), float32 or float64.

    Raises:
        ArgumentError: naming the argument that does not fit.
    """
    if v.shape[1] == 1:
        return linear_attention_reference(q, k, v, log_decay, scale, initial_state, resets)
    if by_blocks(v.shape[1]):
        return run_blocks(
            lambda q, k, v, g, r, state: linear_attention(q, k, v, g, scale, state, r, chunk_size),
            (q, k, v, log_decay, resets),
            initial_state,
        )
    with torch.autocast(v.device.type, enabled=False):
        q, k, values, g, state = _prepare(q, k, v, log_decay, scale, initial_state, resets)
        length, groups, shared = v.shape[1], q.shape[2], v.shape[2] // q.shape[2]
        chunk = chunk_length(chunk_size, length)
        per_head = g.ndim == 3
        qc, kc, vc = (to_chunks(x, chunk) for x in (q, k, values))
        spans = span_sums(to_chunks(g.unsqueeze(-1) if per_head else g, chunk))
        through, behind = (x.squeeze(-3).exp() for x in spans[-1])  # (B, H or G, C, T, 1 or K)
        if per_head:
            blocks = (
                a[..., 1::2, :, :].exp() * b[..., 0::2, :, :].exp().transpose(-1, -2) for a, b in spans[:-1]
            )
            ones = torch.ones_like(spans[0][0])
            decay = lower_triangular(ones, blocks, 0.0)  # (B, H, C, T, T)
            scores = (qc @ kc.transpose(-1, -2)).unsqueeze(2) * decay.unflatten(1, (groups, shared))
            y = scores.flatten(1, 2) @ vc
            local = kc.transpose(-1, -2) @ _fold(vc * behind, groups)  # (B, G, C, K, R·V)
            total = through[..., -1, :].unflatten(1, (groups, shared)).permute(0, 1, 3, 4, 2)
            total = total.repeat_interleave(v.shape[3], dim=-1)  # (B, G, C, 1, R·V)
        else:
            blocks = (_half(qc, a, 1) @ _half(kc, b, 0).transpose(-1, -2) for a, b in spans[:-1])
            diagonal = (qc * kc).sum(-1)[..., None, None]
            folded = _fold(vc, groups)
            y = _unfold(lower_triangular(diagonal, blocks, 0.0) @ folded, shared)
            local = (kc * behind).transpose(-1, -2) @ folded
            total = through[..., -1, :].unsqueeze(-1)  # (B, G, C, K, 1)
        carried, last = _pass_states(_fold(state.unsqueeze(2), groups).squeeze(2), local, total)
        if per_head:
            y = y + _unfold(qc @ carried, shared) * through
        else:
            y = y + _unfold((qc * through) @ carried, shared)
        return from_chunks(y, length).to(v.dtype), _unfold(last.unsqueeze(2), shared).squeeze(2)


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
    dtype = _native.compute_dtype(q, k, v, log_decay, initial_state)
    if log_decay is None:
        g = torch.zeros(batch, length, heads, dtype=dtype, device=v.device)
    elif log_decay.shape in ((batch, length, heads), q.shape):
        g = log_decay.to(dtype)
    else:
        raise ArgumentError(
            f"{_NAME}: log_decay must have shape {(batch, length, heads)} = (batch, length, heads) or "
            f"{tuple(q.shape)} = (batch, length, groups, key width), got {tuple(log_decay.shape)}"
        )
    if resets is not None:
        check_resets(_NAME, resets, v)
        g = g.masked_fill(resets.reshape(batch, length, *[1] * (g.ndim - 2)), -torch.inf)
    shape = (batch, heads, d_key, d_value)
    if initial_state is None:
        state = torch.zeros(shape, dtype=dtype, device=v.device)
    else:
        _native.check(_NAME, "initial_state", initial_state, shape, "(batch, heads, key width, value width)")
        state = initial_state.to(dtype)
    return q.to(dtype) * (d_key**-0.5 if scale is None else scale), k.to(dtype), v.to(dtype), g, state


def _half(x: Tensor, exponent: Tensor, which: int) -> Tensor:
    """Returns the earlier (0) or later (1) block of each pair, (..., T/2h, h, K), decayed to the cut."""
    blocks = x.unflatten(-2, exponent.shape[-3:-1])
    return blocks[..., which::2, :, :] * exponent[..., which::2, :, :].exp()


def _fold(x: Tensor, groups: int) -> Tensor:
    """(B, G·R, C, T, V) → (B, G, C, T, R·V): the heads that share a key become one wide matrix product."""
    return x.unflatten(1, (groups, -1)).permute(0, 1, 3, 4, 2, 5).flatten(-2)


def _unfold(x: Tensor, shared: int) -> Tensor:
    """(B, G, C, T, R·V) → (B, G·R, C, T, V)."""
    return x.unflatten(-1, (shared, -1)).permute(0, 1, 4, 2, 3, 5).flatten(1, 2)


def _pass_states(state: Tensor, local: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
    """Hands the state on; returns the state before each chunk, stacked at dim 2, and the last."""
    before = []
    for own, decay in zip(local.unbind(2), total.unbind(2)):
        before.append(state)
        state = torch.addcmul(own, decay.expand_as(own), state)
    return torch.stack(before, 2), state
