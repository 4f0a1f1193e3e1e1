"""The mLSTM's matrix memory: exponential input gates, sigmoid forget gates, and a stabiliser, over chunks."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from longseq.core.errors import ArgumentError
from longseq.core.ops import _native
from longseq.core.ops._chunking import by_blocks, check_resets, chunk_length, run_blocks
from longseq.core.ops._mlstm_walk import composed, finite, normalise, walk
from longseq.core.ops._triton import by_triton, lowered
from longseq.core.ops.backends import Backend, by_cpu

_NAME = "mlstm"

MLSTMState = tuple[Tensor, Tensor, Tensor]


def mlstm(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    initial_state: MLSTMState | None = None,
    resets: Tensor | None = None,
    chunk_size: int = 128,
    eps: float = 1e-6,
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
        initial_state: C (B, H, K, V), n (B, H, K), m (B, H); None for the start: zeros, and m = -inf.
        resets: bool (B, L), true where the state is cleared before the position is read.
        chunk_size: positions a chunk, rounded up to a power of two; changes speed only.
        eps: added to the denominator.
        backend: see ``longseq.core.ops._triton.by_triton``.

    Returns:
        The output (B, L, H, V) in v's dtype and the final (C, n, m), float32 or float64.

    Raises:
        ArgumentError: naming the argument that does not fit.
        BackendError: if the backend asked for cannot serve the call.
    """
    if by_triton(_NAME, backend, v, q, k, i, f, *(initial_state or ())):
        return _with_triton(q, k, v, i, f, initial_state, resets, chunk_size, eps)
    if v.shape[1] == 1:
        return _one(q, k, v, i, f, initial_state, resets, eps)
    on_cpu = by_cpu(_NAME, backend, q, k, v, i, f, *(initial_state or ()))
    if by_blocks(v.shape[1]) and not on_cpu:
        return run_blocks(
            lambda q, k, v, i, f, r, state: mlstm(
                q, k, v, i, f, state, r, chunk_size, eps, backend="reference"
            ),
            (q, k, v, i, f, resets),
            initial_state,
        )
    with torch.autocast(v.device.type, enabled=False):
        q, k, values, i, log_f, state = _prepare(q, k, v, i, f, initial_state, resets)
        run = walk if on_cpu else composed
        h, *last = run(q, k, values, i, log_f, *state, chunk_size, eps)
        return h.to(v.dtype), (last[0], last[1], last[2])


def _one(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    initial_state: MLSTMState | None,
    resets: Tensor | None,
    eps: float,
) -> tuple[Tensor, MLSTMState]:
    """One position: what takes time is going over C, which is read and written as seldom as torch can."""
    with torch.autocast(v.device.type, enabled=False):
        *inputs, (c, n, m) = _prepare(q, k, v, i, f, initial_state, resets)
        q, k, values, i, log_f = (x[:, 0] for x in inputs)
        last_m = torch.maximum(log_f + m, i)
        unit = finite(last_m)
        keep, add = torch.exp(log_f + m - unit).unsqueeze(-1), torch.exp(i - unit).unsqueeze(-1)
        key = add * (k * k.shape[2] ** -0.5)
        c = torch.addcmul(keep.unsqueeze(-1) * c, key.unsqueeze(-1), values.unsqueeze(-2))
        n = keep * n + key
        y = (q.unsqueeze(-2) @ c).squeeze(-2)
        h = normalise(torch.cat([y, (q * n).sum(-1, keepdim=True)], -1), last_m, eps)
        return h.unsqueeze(1).to(v.dtype), (c, n, last_m)


def mlstm_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    initial_state: MLSTMState | None = None,
    resets: Tensor | None = None,
    eps: float = 1e-6,
) -> tuple[Tensor, MLSTMState]:
    """The same as ``mlstm``, one position after the other.

    Args:
        q: (B, L, H, K).
        k: (B, L, H, K).
        v: (B, L, H, V).
        i: (B, L, H).
        f: (B, L, H).
        initial_state: C (B, H, K, V), n (B, H, K), m (B, H).
        resets: bool (B, L).
        eps: added to the denominator.

    Returns:
        The output (B, L, H, V) and the final (C, n, m).

    Raises:
        ArgumentError: naming the argument that does not fit.
    """
    with torch.autocast(v.device.type, enabled=False):
        q, k, values, i, log_f, (c, n, m) = _prepare(q, k, v, i, f, initial_state, resets)
        k, outputs = k * k.shape[3] ** -0.5, []
        for t in range(v.shape[1]):
            last_m = torch.maximum(log_f[:, t] + m, i[:, t])
            unit = finite(last_m)
            keep, add = torch.exp(log_f[:, t] + m - unit), torch.exp(i[:, t] - unit)
            c = keep[..., None, None] * c + add[..., None, None] * k[:, t].unsqueeze(-1) * values[
                :, t
            ].unsqueeze(-2)
            n = keep.unsqueeze(-1) * n + add.unsqueeze(-1) * k[:, t]
            m = last_m
            y = (q[:, t].unsqueeze(-2) @ torch.cat([c, n.unsqueeze(-1)], -1)).squeeze(-2)
            outputs.append(normalise(y, m, eps))
        return torch.stack(outputs, 1).to(v.dtype), (c, n, m)


def _with_triton(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    initial_state: MLSTMState | None,
    resets: Tensor | None,
    chunk_size: int,
    eps: float,
) -> tuple[Tensor, MLSTMState]:
    """The operator by Triton."""
    from longseq.core.kernels.triton import mlstm as kernels

    _check(q, k, v, i, f, initial_state, resets)
    chunk_length(chunk_size, v.shape[1])
    q, k, v = lowered(q, k, v)
    with torch.autocast(v.device.type, enabled=False):
        log_f = logsigmoid(f.float())
        if resets is not None:
            log_f = log_f.masked_fill(resets.unsqueeze(-1), -torch.inf)
        return kernels.mlstm(q, k, v, i, log_f, initial_state, chunk_size, eps)


def _check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    initial_state: MLSTMState | None,
    resets: Tensor | None,
) -> None:
    """Checks shapes and devices."""
    if v.ndim != 4 or v.shape[1] < 1:
        raise ArgumentError(f"{_NAME}: v must be (batch, length ≥ 1, heads, width), got {tuple(v.shape)}")
    batch, length, heads, d_value = v.shape
    d_key = q.shape[-1]
    for name, tensor in (("q", q), ("k", k)):
        _native.check(_NAME, name, tensor, (batch, length, heads, d_key), "(batch, length, heads, key width)")
    for name, tensor in (("i", i), ("f", f)):
        _native.check(_NAME, name, tensor, (batch, length, heads), "(batch, length, heads)")
    _native.check_device(_NAME, v, {"q": q, "k": k, "i": i, "f": f, "resets": resets})
    if initial_state is not None:
        c, n, m = initial_state
        shape = (batch, heads, d_key, d_value)
        _native.check(_NAME, "C of initial_state", c, shape, "(batch, heads, key width, value width)")
        _native.check(_NAME, "n of initial_state", n, shape[:3], "(batch, heads, key width)")
        _native.check(_NAME, "m of initial_state", m, shape[:2], "(batch, heads)")
    if resets is not None:
        check_resets(_NAME, resets, v)


def _prepare(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    initial_state: MLSTMState | None,
    resets: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, MLSTMState]:
    """Checks shapes; returns q, k, v, i, log forget gates (-inf at resets) and the state."""
    _check(q, k, v, i, f, initial_state, resets)
    batch, _, heads, d_value = v.shape
    d_key = q.shape[-1]
    dtype = _native.compute_dtype(q, k, v, i, f)
    if initial_state is None:
        shape = (batch, heads, d_key, d_value)
        state = (
            torch.zeros(shape, dtype=dtype, device=v.device),
            torch.zeros(shape[:3], dtype=dtype, device=v.device),
            torch.full(shape[:2], -torch.inf, dtype=dtype, device=v.device),
        )
    else:
        c, n, m = initial_state
        state = (c.to(dtype), n.to(dtype), m.to(dtype))
    log_f = logsigmoid(f.to(dtype))
    if resets is not None:
        log_f = log_f.masked_fill(resets.unsqueeze(-1), -torch.inf)
    return q.to(dtype), k.to(dtype), v.to(dtype), i.to(dtype), log_f, state
