"""The delta rule: a matrix state that is corrected towards each value, with any kind of decay."""

from __future__ import annotations

import torch
from torch import Tensor

from longseq.core.errors import ArgumentError
from longseq.core.ops import _native
from longseq.core.ops._chunking import (
    Spans,
    by_blocks,
    check_resets,
    chunk_length,
    from_chunks,
    lower_triangular,
    run_blocks,
    span_sums,
    to_chunks,
)
from longseq.core.ops._triton import by_triton, lowered
from longseq.core.ops.backends import Backend

_NAME = "delta_rule"


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
    """Runs S_t = D_t S_{t-1} + β_t k_t (v_t - (D_t S_{t-1})ᵀ k_t)ᵀ, o_t = scale · S_tᵀ q_t, in chunks.

    D_t = diag(exp g_t). What a chunk writes, U, solves (I + diag(β) A) U = diag(β) (V - F S_0), with A the
    strictly lower triangle of the decayed k_t·k_j and F the keys decayed from the chunk's start: the WY form
    of a product of generalised Householder matrices. All else is linear attention over U. Every exponent is a
    sum of log-decays over a real span, so that nothing overflows for log-decays ≤ 0; nothing is divided by a
    cumulative decay. The recurrence is stable for β |k|² ≤ 2: keys are meant to have norm 1.

    See arXiv 2406.06484, eq. 8-11 (DeltaNet, no decay), arXiv 2412.06464, eq. 10 (Gated DeltaNet, per head),
    and arXiv 2510.26692, eq. 1 (KDA, per key channel).

    Args:
        q: queries (B, L, G, K).
        k: keys (B, L, G, K).
        v: values (B, L, H, V), H a multiple of G; consecutive heads share a query and a key.
        beta: β (B, L, H), the part of the difference that is written; 0 to 2.
        log_decay: g ≤ 0; None, (B, L, H) per head or (B, L, G, K) per key channel; -inf forgets all.
        scale: factor of the output; 1/√K if None.
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
    if by_triton(_NAME, backend, v, q, k, beta, log_decay, initial_state):
        return _with_triton(q, k, v, beta, log_decay, scale, initial_state, resets, chunk_size)
    if v.shape[1] == 1:
        return delta_rule_reference(q, k, v, beta, log_decay, scale, initial_state, resets)
    if by_blocks(v.shape[1]):
        return run_blocks(
            lambda q, k, v, b, g, r, state: delta_rule(
                q, k, v, b, g, scale, state, r, chunk_size, backend="reference"
            ),
            (q, k, v, beta, log_decay, resets),
            initial_state,
        )
    with torch.autocast(v.device.type, enabled=False):
        q, k, values, beta, g, state = _prepare(q, k, v, beta, log_decay, scale, initial_state, resets)
        y, last = _chunked(q, k, values, beta, g, state, chunk_length(chunk_size, v.shape[1]))
        return y.to(v.dtype), last


def _with_triton(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor | None,
    scale: float | None,
    initial_state: Tensor | None,
    resets: Tensor | None,
    chunk_size: int,
) -> tuple[Tensor, Tensor]:
    """The operator by Triton, whose chunks are always of 64 positions."""
    from longseq.core.kernels.triton import delta_rule as kernels

    _check(q, k, v, beta, log_decay, initial_state, resets)
    chunk_length(chunk_size, v.shape[1])
    scale = q.shape[3] ** -0.5 if scale is None else scale
    q, k, v = lowered(q, k, v)
    g = log_decay
    with torch.autocast(v.device.type, enabled=False):
        if resets is not None:
            g = torch.zeros(v.shape[:3], device=v.device) if g is None else g.float()
            g = g.masked_fill(resets.reshape(*resets.shape, *[1] * (g.ndim - 2)), -torch.inf)
        return kernels.attend(q, k, v, beta, g, scale, initial_state)


def _chunked(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, g: Tensor, state: Tensor, chunk: int
) -> tuple[Tensor, Tensor]:
    """The operator for prepared arguments, q scaled."""
    length, shared = v.shape[1], v.shape[2] // q.shape[2]
    qc, kc, vc, bc = (to_chunks(x, chunk) for x in (q, k, v, beta.unsqueeze(-1)))
    spans = span_sums(to_chunks(g if g.ndim == 4 else g.unsqueeze(-1), chunk))
    through, behind = (x.squeeze(-3).exp() for x in spans[-1])  # (B, G or H, C, T, K or 1)
    if g.ndim == 4:
        read, met = _products_per_channel(qc, kc, spans)
        read, met = read.repeat_interleave(shared, 1), met.repeat_interleave(shared, 1)
        through, behind = through.repeat_interleave(shared, 1), behind.repeat_interleave(shared, 1)
    else:
        decay = _decay_matrix(spans)
        read, met = (
            (x @ kc.transpose(-1, -2)).repeat_interleave(shared, 1) * decay for x in (qc, kc)
        )  # (B, H, C, T, T)
    qc, kc = qc.repeat_interleave(shared, 1), kc.repeat_interleave(shared, 1)
    # solve_triangular takes the diagonal as ones and does not look above it.
    writes = torch.linalg.solve_triangular(
        bc * met, bc * torch.cat([vc, kc * through], -1), upper=False, unitriangular=True
    )
    own, corrections = writes.split([vc.shape[-1], kc.shape[-1]], -1)
    keys, total = (kc * behind).transpose(-1, -2), through[..., -1, :].unsqueeze(-1)
    before, written = [], []
    for c in range(own.shape[2]):
        before.append(state)
        written.append(own[:, :, c] - corrections[:, :, c] @ state)
        state = total[:, :, c] * state + keys[:, :, c] @ written[-1]
    y = (qc * through) @ torch.stack(before, 2) + read @ torch.stack(written, 2)
    return from_chunks(y, length), state


def _decay_matrix(spans: Spans) -> Tensor:
    """Returns exp(g_{j+1} + … + g_i) for j ≤ i, else 0, (..., T, T), of sums (..., T/h, h, 1)."""
    blocks = (
        a[..., 1::2, :, :] + b[..., 0::2, :, :].transpose(-1, -2) for a, b in spans[:-1]
    )  # later rows, earlier columns
    return lower_triangular(spans[0][1], blocks, -torch.inf).exp()


def _products_per_channel(q: Tensor, k: Tensor, spans: Spans) -> tuple[Tensor, Tensor]:
    """Returns the decayed products of queries and keys, and of keys and earlier keys, (B, G, C, T, T)."""
    halves = [(_half(k, b, 0).transpose(-1, -2), a) for a, b in spans[:-1]]
    diagonal = (q * k).sum(-1)[..., None, None]
    read = lower_triangular(diagonal, [_half(q, a, 1) @ early for early, a in halves], 0.0)
    met = lower_triangular(torch.zeros_like(diagonal), [_half(k, a, 1) @ early for early, a in halves], 0.0)
    return read, met


def _half(x: Tensor, exponent: Tensor, which: int) -> Tensor:
    """Returns the earlier (0) or later (1) block of each pair, (..., T/2h, h, K), decayed to the cut."""
    blocks = x.unflatten(-2, exponent.shape[-3:-1])
    return blocks[..., which::2, :, :] * exponent[..., which::2, :, :].exp()


def delta_rule_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor | None = None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    resets: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The same as ``delta_rule``, one position after the other.

    Args:
        q: queries (B, L, G, K).
        k: keys (B, L, G, K).
        v: values (B, L, H, V).
        beta: (B, L, H).
        log_decay: None, (B, L, H) or (B, L, G, K).
        scale: factor of the output; 1/√K if None.
        initial_state: (B, H, K, V).
        resets: bool (B, L).

    Returns:
        The output (B, L, H, V) and the final state (B, H, K, V).

    Raises:
        ArgumentError: naming the argument that does not fit.
    """
    with torch.autocast(v.device.type, enabled=False):
        q, k, values, beta, g, state = _prepare(q, k, v, beta, log_decay, scale, initial_state, resets)
        shared = v.shape[2] // q.shape[2]
        q, k = q.repeat_interleave(shared, 2), k.repeat_interleave(shared, 2)
        decay = (g.unsqueeze(-1) if g.ndim == 3 else g.repeat_interleave(shared, 2)).exp().unsqueeze(-1)
        outputs = []
        for t in range(v.shape[1]):
            state = decay[:, t] * state
            held = (k[:, t].unsqueeze(-2) @ state).squeeze(-2)  # the value that the key finds, (B, H, V)
            written = beta[:, t].unsqueeze(-1) * (values[:, t] - held)
            state = state + k[:, t].unsqueeze(-1) * written.unsqueeze(-2)
            outputs.append((q[:, t].unsqueeze(-2) @ state).squeeze(-2))
        return torch.stack(outputs, 1).to(v.dtype), state


def _check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
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
    _native.check(_NAME, "beta", beta, (batch, length, heads), "(batch, length, heads)")
    named = {"q": q, "k": k, "beta": beta, "log_decay": log_decay}
    named |= {"initial_state": initial_state, "resets": resets}
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
    beta: Tensor,
    log_decay: Tensor | None,
    scale: float | None,
    initial_state: Tensor | None,
    resets: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Checks shapes; returns scaled q, k, v, beta, log-decays (-inf at resets) and the state."""
    _check(q, k, v, beta, log_decay, initial_state, resets)
    batch, length, heads, d_value = v.shape
    d_key = q.shape[3]
    dtype = _native.compute_dtype(q, k, v, beta, log_decay, initial_state)
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
    q = q.to(dtype) if scale == 1 else q.to(dtype) * scale
    return q, k.to(dtype), v.to(dtype), beta.to(dtype), g, state
