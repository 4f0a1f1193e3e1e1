"""The sLSTM's equations one position at a time, differentiated by autograd."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from longseq.core.ops.arguments import check_resets
from longseq.core.ops.slstm.arguments import NAME, SLSTMState


def slstm_reference(
    gates: Tensor,
    recurrent: Tensor,
    initial_state: SLSTMState | None = None,
    resets: Tensor | None = None,
) -> tuple[Tensor, SLSTMState]:
    """The equations one position at a time, differentiated by autograd; takes and returns as
    ``slstm``."""
    batch, length, _, heads, width = gates.shape
    resets = check_resets(NAME, resets, batch, length)
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
