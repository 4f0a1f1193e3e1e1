"""Any causal mixer run on every s-th position: s interleaved sequences, one for each phase."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from longseq.core.checks import check_positive
from longseq.core.errors import ConfigError
from longseq.core.mixers.base import Mixer, State, create_mixer, register_mixer, segment_resets


@register_mixer("strided")
class Strided(Mixer):
    """One causal mixer on the s subsequences x_j, x_{j+s}, x_{j+2s}, … of its input, j = 0 … s-1.

        y_t = mixer(…, x_{t-2s}, x_{t-s}, x_t)

    With s = 3 a first layer over DNA reads each of the three reading frames by itself; with the
    period of a season it compares like with like. The state has a row a phase, that of the next
    position first, so that no position has to be counted.

    Args:
        d_model: width D.
        mixer: name of a causal mixer with a finite state.
        stride: s.
        mixer_kwargs: the mixer's hyper-parameters.

    Raises:
        ConfigError: if the mixer is not causal, or carries its history.
    """

    closed_length = "its phases depend on how the length divides; export it for one length"

    def __init__(
        self,
        d_model: int,
        mixer: str = "mamba",
        stride: int = 3,
        mixer_kwargs: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(d_model)
        self.stride = check_positive("stride", stride)
        self.inner = create_mixer(mixer, d_model, **(mixer_kwargs or {}))
        if not (self.inner.causal and self.inner.finite_state):
            raise ConfigError(f"strided needs a causal mixer with a finite state, not {mixer!r}")

    def init_state(
        self, batch: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> State:
        """See ``Mixer.init_state``: the inner mixer's, each with a dimension s after the batch."""
        state = self.inner.init_state(batch * self.stride, device, dtype)
        return self._split(state, batch, self.stride)

    def _split(self, state: State, batch: int, phases: int) -> State:
        """Returns the state of (B · n) rows, n phases, as that of (B, n)."""
        return {name: value.unflatten(0, (batch, phases)) for name, value in state.items()}

    def _cleared(self, state: State, rows: Tensor) -> State:
        """Returns the state with some rows (B, s) as at the start of a sequence."""
        start = self.init_state(len(rows), rows.device)
        out = {}
        for name, value in state.items():
            where = rows.reshape(*rows.shape, *[1] * (value.ndim - 2))
            out[name] = torch.where(where, start[name][:, : rows.shape[1]].to(value.dtype), value)
        return out

    def forward(
        self, x: Tensor, state: State | None = None, segment_ids: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """See ``Mixer.forward``."""
        batch, length, width = x.shape
        s = self.stride
        whole, rest = length // s, length % s
        resets = segment_resets(segment_ids) if length else None
        # Counted, so that two sequences of one id with a short one between stay apart.
        segment = None if resets is None else resets.long().cumsum(1)
        if state is None and (segment is not None or whole == 0):
            state = self.init_state(batch, x.device, x.dtype)
        outputs = []
        seen = torch.zeros(batch, s, dtype=torch.long, device=x.device)  # the last segment a phase
        if whole or not rest:  # also of nothing
            ids = None
            if segment is not None and state is not None:
                phases = segment[:, : whole * s].unflatten(1, (whole, s)).mT
                state = self._cleared(state, phases[:, :, 0] != 0)
                ids, seen = phases.flatten(0, 1), phases[:, :, -1]
            rows = x[:, : whole * s].reshape(batch, whole, s, width).transpose(1, 2)
            rows = rows.reshape(batch * s, whole, width)
            given = None if state is None else {k: v.flatten(0, 1) for k, v in state.items()}
            y, after = self.inner(rows, given, ids)
            state = self._split(after, batch, s)
            y = y.reshape(batch, s, whole, width).transpose(1, 2)
            outputs.append(y.reshape(batch, whole * s, width))
        assert state is not None
        if rest:
            first = {name: value[:, :rest] for name, value in state.items()}
            if segment is not None:
                now = segment[:, whole * s :]
                first = self._cleared(first, now != seen[:, :rest])
                seen = torch.cat([seen[:, rest:], now], 1)
            rows = x[:, whole * s :].reshape(batch * rest, 1, width)
            y, after = self.inner(rows, {k: v.flatten(0, 1) for k, v in first.items()})
            outputs.append(y.reshape(batch, rest, width))
            new = self._split(after, batch, rest)
            state = {k: torch.cat([v[:, rest:], new[k]], 1) for k, v in state.items()}
        if segment is not None and length:
            state = self._cleared(state, seen != segment[:, -1:])
        return torch.cat(outputs, 1) if len(outputs) > 1 else outputs[0], state

    def step(self, x_t: Tensor, state: State) -> tuple[Tensor, State]:
        """See ``Mixer.step``."""
        y, new = self.inner.step(x_t, {name: value[:, 0] for name, value in state.items()})
        return y, {k: torch.cat([v[:, 1:], new[k].unsqueeze(1)], 1) for k, v in state.items()}
