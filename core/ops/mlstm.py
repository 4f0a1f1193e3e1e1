"""The mLSTM's matrix memory: exponential input gates, sigmoid forget gates, and a stabiliser, over chunks."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from longseq.core.errors import ArgumentError
from longseq.core.ops import _native
from longseq.core.ops._chunking import (
    by_blocks,
    check_resets,
    chunk_length,
    from_chunks,
    lower_triangular,
    pass_states,
    run_blocks,
    span_sums,
    to_chunks,
)
from longseq.core.ops._triton import by_triton
from longseq.core.ops.backends import Backend

_NAME = "mlstm"

MLSTMState = tuple[Tensor, Tensor, Tensor]
# exp(-m) is a floor under the denominator; beyond this exponent the output is zero to any rounding, while
# float32 would overflow.
_MAX_FLOOR_EXPONENT = 60.0


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
        return mlstm_reference(q, k, v, i, f, initial_state, resets, eps)
    if by_blocks(v.shape[1]):
        return run_blocks(
            lambda q, k, v, i, f, r, state: mlstm(
                q, k, v, i, f, state, r, chunk_size, eps, backend="reference"
            ),
            (q, k, v, i, f, resets),
            initial_state,
        )
    with torch.autocast(v.device.type, enabled=False):
        q, k, values, i, log_f, (c, n, m) = _prepare(q, k, v, i, f, initial_state, resets)
        chunk = chunk_length(chunk_size, v.shape[1])
        qc, kc, vc = (to_chunks(x, chunk) for x in (q, k, values))
        ic = to_chunks(i.unsqueeze(-1), chunk, -torch.inf)  # (B, H, C, T, 1)
        spans = span_sums(to_chunks(log_f.unsqueeze(-1), chunk))
        through, behind = (x.squeeze(-3) for x in spans[-1])  # (B, H, C, T, 1)

        # The exponents of the state's units at the borders of the chunks: never below any inside the chunk.
        exponent, total = behind + ic, through[..., -1, :]
        units = [m.unsqueeze(-1)]
        for chunk_m, chunk_total in zip(exponent.amax(-2).unbind(2), total.unbind(2)):
            units.append(torch.maximum(chunk_total + units[-1], chunk_m))
        borders = torch.stack(units, 2)  # (B, H, C + 1, 1)
        carried_m, last_m = borders[:, :, :-1], _finite(borders[:, :, 1:])
        weighted = kc * torch.exp(exponent - last_m.unsqueeze(-2))
        # n is the memory of a value that is always 1: one more column of C.
        vc = torch.cat([vc, torch.ones_like(vc[..., :1])], -1)
        own = weighted.transpose(-1, -2) @ vc  # (B, H, C, K, V + 1)
        keep = torch.exp(total + carried_m - last_m).unsqueeze(-1)
        carried, state = pass_states(torch.cat([c, n.unsqueeze(-1)], -1), own, keep)

        blocks = (a[..., 1::2, :, :] + b[..., 0::2, :, :].transpose(-1, -2) for a, b in spans[:-1])
        zeros = torch.zeros_like(spans[0][0])
        log_weights = lower_triangular(zeros, blocks, -torch.inf) + ic.transpose(-1, -2)
        from_state = through + carried_m.unsqueeze(-2)  # (B, H, C, T, 1)
        row_m = torch.maximum(from_state, log_weights.amax(-1, keepdim=True))
        unit = _finite(row_m)
        scores = (qc @ kc.transpose(-1, -2)) * torch.exp(log_weights - unit)
        queries = (qc * torch.exp(from_state - unit)).flatten(0, 2)
        y = torch.baddbmm((scores @ vc).flatten(0, 2), queries, carried.flatten(0, 2))
        h = _normalise(y.view(*row_m.shape[:4], -1), row_m.squeeze(-1), eps)
        last = (state[..., :-1], state[..., -1], units[-1].squeeze(-1))
        return from_chunks(h, v.shape[1]).to(v.dtype), last


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
        outputs = []
        for t in range(v.shape[1]):
            last_m = torch.maximum(log_f[:, t] + m, i[:, t])
            unit = _finite(last_m)
            keep, add = torch.exp(log_f[:, t] + m - unit), torch.exp(i[:, t] - unit)
            c = keep[..., None, None] * c + add[..., None, None] * k[:, t].unsqueeze(-1) * values[
                :, t
            ].unsqueeze(-2)
            n = keep.unsqueeze(-1) * n + add.unsqueeze(-1) * k[:, t]
            m = last_m
            y = (q[:, t].unsqueeze(-2) @ torch.cat([c, n.unsqueeze(-1)], -1)).squeeze(-2)
            outputs.append(_normalise(y, m, eps))
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
    """Checks shapes; returns q, scaled k, v, i, log forget gates (-inf at resets) and the state."""
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
    return q.to(dtype), k.to(dtype) * d_key**-0.5, v.to(dtype), i.to(dtype), log_f, state


def _finite(m: Tensor) -> Tensor:
    """Returns m with -inf (nothing seen yet) made finite, so that exp(-inf - m) is 0 and not NaN."""
    return m.clamp_min(-1e30)


def _normalise(y: Tensor, m: Tensor, eps: float) -> Tensor:
    """Returns h (..., V) for y (..., V + 1), whose last column is nᵀq, and the stabiliser m (...)."""
    floor = torch.exp((-m).clamp_max(_MAX_FLOOR_EXPONENT)).unsqueeze(-1)
    return y[..., :-1] / (torch.maximum(y[..., -1:].abs(), floor) + eps)
