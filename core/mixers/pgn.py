"""PGN: the parallel gated network, a recurrent cell whose hidden state is read from a window at
once."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longseq.core.checks import check_positive
from longseq.core.mixers._attention import positions_in_pack
from longseq.core.mixers._submodules import holding
from longseq.core.mixers.base import Mixer, State, register_mixer, segment_resets

# Windows that are laid out at a time where sequences are packed: 64 MiB of float32.
_VALUES = 1 << 24


@register_mixer("pgn")
class PGN(Mixer):
    """Parallel gated network (arXiv 2409.17703, eq. 3-6).

        h_t = Σ_{l=1..W} A_l x_{t-l} + b
        g_t = σ(W_g [x_t, h_t] + b_g),   c_t = tanh(W_c [x_t, g_t h_t] + b_c)
        y_t = g_t h_t + (1 - g_t) c_t

    What a recurrent cell gathers step by step is one linear map of the window before each position,
    so that information travels any distance in the window in one step and all positions are
    computed at once. The state is the last W inputs.

    Args:
        d_model: width D.
        window: positions W before each one.

    Raises:
        ConfigError: if the window is not positive.
    """

    def __init__(self, d_model: int, window: int = 64) -> None:
        super().__init__(d_model)
        self.window = check_positive("window", window)
        self.history = nn.Conv1d(d_model, d_model, window)
        self.gate = nn.Linear(2 * d_model, d_model)
        self.candidate = nn.Linear(2 * d_model, d_model)

    def init_state(
        self, batch: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> State:
        """Returns the last W inputs (B, W, D) and how many of them there have been (B,)."""
        device, dtype = self._where(device, dtype)
        return {
            "x": torch.zeros(batch, self.window, self.d_model, device=device, dtype=dtype),
            "seen": torch.zeros(batch, device=device, dtype=torch.long),
        }

    def forward(
        self, x: Tensor, state: State | None = None, segment_ids: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Mixes a whole sequence or the next chunk of one; see ``Mixer.forward``."""
        resets = segment_resets(segment_ids)
        state = self.init_state(len(x), x.device, x.dtype) if state is None else state
        past = torch.cat([state["x"].to(x.dtype), x], 1)
        positions = positions_in_pack(resets, state["seen"], x.shape[1])
        if resets is None:
            h = self.history(past[:, :-1].mT).mT
        else:
            h = self._packed(past[:, :-1], positions)
        gate = torch.sigmoid(self.gate(torch.cat([x, h], -1)))
        candidate = torch.tanh(self.candidate(torch.cat([x, gate * h], -1)))
        kept = (positions[:, -1] + 1).clamp(max=self.window)
        last = past[:, -self.window :]
        place = torch.arange(self.window, 0, -1, device=x.device)
        last = torch.where((place <= kept[:, None]).unsqueeze(-1), last, 0)
        after = {"x": last.to(state["x"].dtype), "seen": kept}
        return gate * h + (1 - gate) * candidate, after

    def _packed(self, past: Tensor, positions: Tensor) -> Tensor:
        """Returns h (B, L, D) where windows end at the sequences' starts.

        Args:
            past: inputs, W before the first position and none of the last one (B, W + L - 1, D).
            positions: earlier positions of its own sequence that each one has (B, L).
        """
        conv = holding(self.history, nn.Conv1d, "history")
        window, weight = self.window, conv.weight.flatten(1)  # (D, D · W)
        place = torch.arange(window, 0, -1, device=past.device)  # distances of a window's columns
        block = max(1, _VALUES // (len(past) * window * self.d_model))
        found = []
        for lo in range(0, positions.shape[1], block):
            mine = positions[:, lo : lo + block]
            part = past[:, lo : lo + mine.shape[1] + window - 1].unfold(1, window, 1)
            part = torch.where((place <= mine.unsqueeze(-1)).unsqueeze(2), part, 0)
            found.append(F.linear(part.flatten(2), weight, conv.bias))
        return torch.cat(found, 1)
