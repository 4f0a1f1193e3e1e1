"""The stabilised sLSTM recurrence of xLSTM, with recurrent weights inside each head.

For one head of width P and the gate pre-activations g_t = (ĩ, f̃, z̃, õ)_t ∈ R^{4P} (arXiv 2405.04517,
eq. 8-14, stabilised by eq. 15-17):

    (ĩ, f̃, z̃, õ) = g_t + R h_{t-1}
    m_t = max(log σ(f̃) + m_{t-1}, ĩ)          i = exp(ĩ - m_t)     f = exp(log σ(f̃) + m_{t-1} - m_t)
    c_t = f c_{t-1} + i tanh(z̃)               n_t = f n_{t-1} + i   h_t = σ(õ) c_t / n_t

m is a running maximum in the logarithm, so that i and f never exceed 1 and one of them is 1: from a fresh
state (h, c, n, m) = (0, 0, 0, -inf) the normaliser n_t is at least 1, and no division is unsafe.

The recurrence is not linear, so time is walked step by step. What can be batched is: a step is one GEMM over
heads and rows, the backward walks back with no graph, and dR is one GEMM over the whole of time.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class SLSTMState(NamedTuple):
    """What the recurrence carries: four tensors (B, H, P) of at least float32."""

    h: Tensor
    c: Tensor
    n: Tensor
    m: Tensor

    @staticmethod
    def fresh(
        batch: int, heads: int, width: int, device: torch.device | str | None, dtype: torch.dtype
    ) -> SLSTMState:
        """Returns the state at the start of a sequence.

        Args:
            batch: number of rows B.
            heads: number of heads H.
            width: width of a head P.
            device: where.
            dtype: float32 or float64.
        """
        h, c, n = torch.zeros(3, batch, heads, width, device=device, dtype=dtype).unbind(0)
        return SLSTMState(h.clone(), c.clone(), n.clone(), torch.full_like(h, -torch.inf))


def slstm(
    gates: Tensor,
    recurrent: Tensor,
    initial_state: SLSTMState | None = None,
    resets: Tensor | None = None,
) -> tuple[Tensor, SLSTMState]:
    """Runs the recurrence over a sequence or the next chunk of one.

    Args:
        gates: pre-activations (B, L, 4, H, P) in the order i, f, z, o, input and bias parts added up.
        recurrent: R, (H, 4P, P): row k·P + p of a head gives pre-activation k of unit p.
        initial_state: from the previous chunk; None stands for a fresh start.
        resets: bool (B, L), true where the state is forgotten before the position is read.

    Returns:
        h (B, L, H, P) in the dtype of ``gates``, and the state after the last position, at least float32.
    """
    batch, _, _, heads, width = gates.shape
    dtype = torch.float64 if gates.dtype == torch.float64 else torch.float32
    state = initial_state or SLSTMState.fresh(batch, heads, width, gates.device, dtype)
    with torch.autocast(gates.device.type, enabled=False):
        # Time first and batch inside heads: a step is then a contiguous (H, B, 4P) slab.
        steps = gates.to(dtype).permute(1, 3, 0, 2, 4).reshape(gates.shape[1], heads, batch, 4 * width)
        first = torch.stack([part.to(dtype).transpose(0, 1) for part in state])
        hs, last = _forward(steps, recurrent.to(dtype), first, resets)[:2]
        y = hs.permute(2, 0, 1, 3).to(gates.dtype)
        return y, SLSTMState(*(part.transpose(0, 1) for part in last.unbind(0)))


def slstm_reference(
    gates: Tensor,
    recurrent: Tensor,
    initial_state: SLSTMState | None = None,
    resets: Tensor | None = None,
) -> tuple[Tensor, SLSTMState]:
    """The equations one position at a time, differentiated by autograd; takes and returns as ``slstm``."""
    batch, length, _, heads, width = gates.shape
    dtype = torch.float64 if gates.dtype == torch.float64 else torch.float32
    state = initial_state or SLSTMState.fresh(batch, heads, width, gates.device, dtype)
    h, c, n, m = (part.to(dtype) for part in state)
    weights = recurrent.to(dtype).unflatten(1, (4, width))
    outputs = []
    for t in range(length):
        if resets is not None:
            reset = resets[:, t, None, None]
            h, c, n = (part.masked_fill(reset, 0) for part in (h, c, n))
            m = m.masked_fill(reset, -torch.inf)
        i_raw, f_raw, z_raw, o_raw = (
            gates[:, t].to(dtype) + torch.einsum("hkop,bhp->bkho", weights, h)
        ).unbind(1)
        kept = F.logsigmoid(f_raw) + m
        m = torch.maximum(kept, i_raw)
        i, f = torch.exp(i_raw - m), torch.exp(kept - m)
        c = f * c + i * torch.tanh(z_raw)
        n = f * n + i
        h = torch.sigmoid(o_raw) * c / n
        outputs.append(h)
    return torch.stack(outputs, 1).to(gates.dtype), SLSTMState(h, c, n, m)


def _steps_with_reset(resets: Tensor | None, length: int) -> list[bool]:
    return [False] * length if resets is None else resets.any(0).tolist()


@torch.library.custom_op("longseq::slstm_forward", mutates_args=())
def _forward(
    gates: Tensor, recurrent: Tensor, first: Tensor, resets: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Walks forward. gates (L, H, B, 4P), recurrent (H, 4P, P), first = (h, c, n, m) (4, H, B, P).

    Returns h (L, H, B, P), the last state (4, H, B, P), and for the backward c and n (2, L, H, B, P) and
    i, f, tanh z̃, σ(õ), σ(-f̃) (5, L, H, B, P).
    """
    length, heads, batch, width = *gates.shape[:3], recurrent.shape[2]
    hs = gates.new_empty(length, heads, batch, width)
    cells = gates.new_empty(2, length, heads, batch, width)
    acts = gates.new_empty(5, length, heads, batch, width)
    raw = gates.new_empty(heads, batch, 4 * width)
    i_raw, f_raw, z_raw, o_raw = raw.unflatten(2, (4, width)).unbind(2)
    weights = recurrent.transpose(1, 2).contiguous()
    h, c, n, m = first.unbind(0)
    for t, any_reset in enumerate(_steps_with_reset(resets, length)):
        if any_reset and resets is not None:
            reset = resets[:, t, None]
            h, c, n = (part.masked_fill(reset, 0) for part in (h, c, n))
            m = m.masked_fill(reset, -torch.inf)
        torch.baddbmm(gates[t], h, weights, out=raw)
        i, f, z, o, leak = (acts[k, t] for k in range(5))
        kept = F.logsigmoid(f_raw).add_(m)
        m = torch.maximum(kept, i_raw)
        torch.exp(torch.sub(i_raw, m), out=i)
        torch.exp(kept.sub_(m), out=f)
        torch.tanh(z_raw, out=z)
        torch.sigmoid(o_raw, out=o)
        torch.sigmoid(-f_raw, out=leak)
        c = torch.mul(f, c, out=cells[0, t]).addcmul_(i, z)
        n = torch.addcmul(i, f, n, out=cells[1, t])
        h = torch.mul(o, c, out=hs[t]).div_(n)
    return hs, torch.stack([h, c, n, m]), cells, acts


@_forward.register_fake
def _(
    gates: Tensor, recurrent: Tensor, first: Tensor, resets: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    hs = gates.new_empty(*gates.shape[:3], recurrent.shape[2])
    return hs, torch.empty_like(first), hs.new_empty(2, *hs.shape), hs.new_empty(5, *hs.shape)


@torch.library.custom_op("longseq::slstm_backward", mutates_args=())
def _backward(
    grad_hs: Tensor,
    grad_last: Tensor,
    recurrent: Tensor,
    first: Tensor,
    resets: Tensor | None,
    hs: Tensor,
    cells: Tensor,
    acts: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Walks back. Returns the gradients of gates, recurrent and first, in their shapes.

    The maximum m is differentiated too, whichever of its arguments it is: h does not depend on it, but the
    final c, n and m do.
    """
    length, heads, batch, width = hs.shape
    i, f, z, o, leak = acts.unbind(0)
    before = torch.cat([first[:3].unsqueeze(1), torch.stack([hs, *cells])[:, :-1]], 1)  # (3, L, H, B, P)
    if resets is not None:
        before = before.masked_fill(resets.t()[None, :, None, :, None], 0)
    h_before, c_before, n_before = before.unbind(0)
    # What a step multiplies its gradients by does not depend on them: computed for all of time at once.
    normaliser = cells[1]
    h_to_c, h_to_n, h_to_o = o / normaliser, hs / normaliser, hs * (1 - o)
    c_to_z = i * (1 - z * z)
    input_won = i >= f
    grad_gates = hs.new_empty(length, heads, batch, 4 * width)
    di, df, dz, do = grad_gates.unflatten(3, (4, width)).unbind(3)
    dh, dc, dn, dm = grad_last.clone().unbind(0)
    any_reset = _steps_with_reset(resets, length)
    for t in range(length - 1, -1, -1):
        dh = dh + grad_hs[t]
        torch.mul(dh, h_to_o[t], out=do[t])
        dc = torch.addcmul(dc, dh, h_to_c[t])
        dn = torch.addcmul(dn, dh, h_to_n[t], value=-1)
        torch.mul(dc, c_to_z[t], out=dz[t])
        through_i = torch.addcmul(dn, dc, z[t]).mul_(i[t])
        through_f = torch.mul(dc, c_before[t]).addcmul_(dn, n_before[t]).mul_(f[t])
        torch.where(input_won[t], dm - through_f, through_i, out=di[t])
        dm = torch.where(input_won[t], through_f, dm - through_i)
        torch.mul(dm, leak[t], out=df[t])
        dc, dn = dc * f[t], dn * f[t]
        dh = torch.bmm(grad_gates[t], recurrent)
        if any_reset[t] and resets is not None:
            dh, dc, dn, dm = (part.masked_fill(resets[:, t, None], 0) for part in (dh, dc, dn, dm))
    flat_gates = grad_gates.transpose(0, 1).reshape(heads, length * batch, 4 * width)
    flat_h = h_before.transpose(0, 1).reshape(heads, length * batch, width)
    return grad_gates, torch.bmm(flat_gates.transpose(1, 2), flat_h), torch.stack([dh, dc, dn, dm])


@_backward.register_fake
def _(
    grad_hs: Tensor,
    grad_last: Tensor,
    recurrent: Tensor,
    first: Tensor,
    resets: Tensor | None,
    hs: Tensor,
    cells: Tensor,
    acts: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    gates = hs.new_empty(*hs.shape[:3], 4 * hs.shape[3])
    return gates, torch.empty_like(recurrent), torch.empty_like(first)


def _save(
    ctx: torch.autograd.function.FunctionCtx,
    inputs: tuple[Tensor, Tensor, Tensor, Tensor | None],
    output: tuple[Tensor, Tensor, Tensor, Tensor],
) -> None:
    _, recurrent, first, resets = inputs
    hs, _, cells, acts = output
    ctx.save_for_backward(recurrent, first, resets, hs, cells, acts)  # type: ignore[arg-type]
    ctx.set_materialize_grads(False)  # or zeros as large as cells and acts are made for nobody


def _differentiate(
    ctx: torch.autograd.function.FunctionCtx, grad_hs: Tensor | None, grad_last: Tensor | None, *_: None
) -> tuple[Tensor, Tensor, Tensor, None]:
    recurrent, first, resets, hs, cells, acts = ctx.saved_tensors  # type: ignore[attr-defined]
    grad_hs = torch.zeros_like(hs) if grad_hs is None else grad_hs
    grad_last = torch.zeros_like(first) if grad_last is None else grad_last
    return *_backward(grad_hs, grad_last, recurrent, first, resets, hs, cells, acts), None


_forward.register_autograd(_differentiate, setup_context=_save)
