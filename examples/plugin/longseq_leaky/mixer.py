"""A mixer of one's own: exponentially forgetting averages of every channel, with learnt rates."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from longseq.core.mixers import Mixer, State, register_mixer
from longseq.core.mixers.base import recurrent_dtype, segment_resets
from longseq.core.ops.linear_scan import linear_scan


@register_mixer("leaky_average")
class LeakyAverage(Mixer):
    """y_t = W h_t with h_t = a h_{t-1} + (1 - a) x_t, one a in (0, 1) per channel.

    Args:
        d_model: width D.
        slowest: largest time constant at the start, in positions.
    """

    ssm_parameters = ("log_rate",)  # no weight decay, and the learning rate --model.ssm_lr

    def __init__(self, d_model: int, slowest: float = 100.0) -> None:
        super().__init__(d_model)
        rates = torch.logspace(0.0, -math.log10(slowest), d_model)
        self.log_rate = nn.Parameter(rates.log())
        self.out_proj = nn.Linear(d_model, d_model)

    def init_state(
        self, batch: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> State:
        """Returns averages of nothing: zeros (B, D)."""
        device, dtype = self._where(device, dtype)
        return {"h": torch.zeros(batch, self.d_model, device=device, dtype=recurrent_dtype(dtype))}

    def forward(
        self, x: Tensor, state: State | None = None, segment_ids: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """See ``Mixer.forward``."""
        decay = (-self.log_rate.exp()).exp().to(recurrent_dtype(x.dtype))
        decays = decay.expand(x.shape)
        resets = segment_resets(segment_ids)
        if resets is not None:  # a decay of zero forgets what was before
            decays = decays.masked_fill(resets.unsqueeze(-1), 0.0)
        inputs = (1 - decay) * x.to(decay.dtype)
        states, last = linear_scan(decays, inputs, None if state is None else state["h"])
        return self.out_proj(states.to(x.dtype)), {"h": last}
