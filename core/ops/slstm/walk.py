"""The sLSTM recurrence walked step by step in torch: for devices that have no kernel. Called by
``slstm``.

What can be batched is: a step is one GEMM over heads and rows, the backward walks back with no
graph, and dR is one GEMM over the whole of time.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from longseq.core.ops.slstm.arguments import Arguments, Kept


def saved_shape(gates: Tensor) -> tuple[int, ...]:
    """Returns the shape of what ``forward`` saves for ``backward``.

    Args:
        gates: (B, L, 4, H, P).
    """
    batch, length, _, heads, width = gates.shape
    return 7, length, heads, batch, width


def forward(call: Arguments) -> tuple[Tensor, Tensor, Tensor]:
    """Walks forward.

    Args:
        call: of the kernels.

    Returns:
        h (B, L, H, P), the last state (4, B, H, P), and for the backward c, n, i, f, tanh z̃, σ(õ)
        and σ(-f̃), (7, L, H, B, P).
    """
    gates, recurrent, first, resets = call
    batch, length, _, heads, width = gates.shape
    # Time first and batch inside heads: a step is then a contiguous (H, B, 4P) slab.
    steps = gates.permute(1, 3, 0, 2, 4).reshape(length, heads, batch, 4 * width)
    hs = gates.new_empty(length, heads, batch, width)
    saved = gates.new_empty(saved_shape(gates))
    raw = gates.new_empty(heads, batch, 4 * width)
    i_raw, f_raw, z_raw, o_raw = raw.unflatten(2, (4, width)).unbind(2)
    weights = recurrent.transpose(1, 2).contiguous()
    h, c, n, m = first.transpose(1, 2).unbind(0)
    for t, any_reset in enumerate(_steps_with_reset(resets, length)):
        if any_reset and resets is not None:
            reset = resets[:, t, None]
            h, c, n = (part.masked_fill(reset, 0) for part in (h, c, n))
            m = m.masked_fill(reset, -torch.inf)
        torch.baddbmm(steps[t], h, weights, out=raw)
        c_out, n_out, i, f, z, o, leak = saved[:, t].unbind(0)
        kept = F.logsigmoid(f_raw).add_(m)
        m = torch.maximum(kept, i_raw)
        torch.exp(torch.sub(i_raw, m), out=i)
        torch.exp(kept.sub_(m), out=f)
        torch.tanh(z_raw, out=z)
        torch.sigmoid(o_raw, out=o)
        torch.sigmoid(-f_raw, out=leak)
        c = torch.mul(f, c, out=c_out).addcmul_(i, z)
        n = torch.addcmul(i, f, n, out=n_out)
        h = torch.mul(o, c, out=hs[t]).div_(n)
    last = torch.stack([h, c, n, m]).transpose(1, 2).contiguous()
    return hs.permute(2, 0, 1, 3).contiguous(), last, saved


def backward(grad_hs: Tensor, grad_last: Tensor, kept: Kept) -> tuple[Tensor, Tensor, Tensor]:
    """Walks back. Returns the gradients of gates, recurrent and first, in their shapes.

    The maximum m is differentiated too, whichever of its arguments it is: h does not depend on it,
    but the final c, n and m do.

    Args:
        grad_hs: gradient of h (B, L, H, P).
        grad_last: gradient of the last state (4, B, H, P).
        kept: that ``forward`` saved.
    """
    recurrent, first, resets, hs, saved, _ = kept
    batch, length, heads, width = hs.shape
    cells, (i, f, z, o, leak) = saved[:2], saved[2:].unbind(0)
    hs, grad_hs, first = hs.permute(1, 2, 0, 3), grad_hs.permute(1, 2, 0, 3), first.transpose(1, 2)
    # (3, L, H, B, P)
    before = torch.cat([first[:3].unsqueeze(1), torch.stack([hs, *cells])[:, :-1]], 1)
    if resets is not None:
        before = before.masked_fill(resets.t()[None, :, None, :, None], 0)
    h_before, c_before, n_before = before.unbind(0)
    # What a step multiplies its gradients by does not depend on them: computed for all of time at
    # once.
    normaliser = cells[1]
    h_to_c, h_to_n, h_to_o = o / normaliser, hs / normaliser, hs * (1 - o)
    c_to_z = i * (1 - z * z)
    input_won = i >= f
    grad_gates = hs.new_empty(length, heads, batch, 4 * width)
    di, df, dz, do = grad_gates.unflatten(3, (4, width)).unbind(3)
    dh, dc, dn, dm = grad_last.transpose(1, 2).clone().unbind(0)
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
    grad_first = torch.stack([dh, dc, dn, dm]).transpose(1, 2).contiguous()
    by_gate = grad_gates.view(length, heads, batch, 4, width).permute(2, 0, 3, 1, 4).contiguous()
    return by_gate, torch.bmm(flat_gates.transpose(1, 2), flat_h), grad_first


def _steps_with_reset(resets: Tensor | None, length: int) -> list[bool]:
    return [False] * length if resets is None else resets.any(0).tolist()
