"""Mixers side by side on one input, their outputs added, as in Falcon-H1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from longseq.core.errors import ConfigError
from longseq.core.mixers.base import Mixer, State, create_mixer, register_mixer


@register_mixer("parallel")
class Parallel(Mixer):
    """Several mixers on the same input (Falcon-H1, arXiv 2507.22448, figure 1).

        y = Σ_i out_i · mixer_i(in_i · x)

    The state is that of every mixer, its names behind the mixer's number: "0.ssm", "1.k", ...

    Args:
        d_model: width D.
        mixers: pairs of a mixer's name and its hyper-parameters.
        in_scales: constant factors in_i; None for 1.
        out_scales: constant factors out_i; None for 1.

    Raises:
        ConfigError: if there is no mixer, one is no such pair, or there is not one factor for each.
    """

    finite_state = False  # of some mixers: ``state_size`` tells

    def __init__(
        self,
        d_model: int,
        mixers: Sequence[Sequence[Any]] = (("mamba2", {}), ("attention", {})),
        in_scales: Sequence[float] | None = None,
        out_scales: Sequence[float] | None = None,
    ) -> None:
        super().__init__(d_model)
        if not mixers:
            raise ConfigError("mixers is empty: parallel needs at least one")
        for pair in mixers:
            if isinstance(pair, str) or len(pair) != 2 or not isinstance(pair[1], Mapping):
                raise ConfigError(
                    "mixers holds pairs of a name and its hyper-parameters, as in "
                    f'[["mamba2", {{}}], ["attention", {{}}]], got {pair!r}'
                )
        self.mixers = nn.ModuleList(
            create_mixer(name, d_model, **settings) for name, settings in mixers
        )
        for name, scales in (("in_scales", in_scales), ("out_scales", out_scales)):
            if scales is not None and len(scales) != len(mixers):
                raise ConfigError(f"{name} must have one factor for each mixer, got {scales!r}")
        ones = [1.0] * len(mixers)
        self.in_scales = ones if in_scales is None else [float(s) for s in in_scales]
        self.out_scales = ones if out_scales is None else [float(s) for s in out_scales]
        self.causal = all(mixer.causal for mixer in self._all())
        self.ssm_parameters = tuple(  # type: ignore[misc]
            f"mixers.{i}.{name}" for i, m in enumerate(self._all()) for name in m.ssm_parameters
        )

    def _all(self) -> list[Mixer]:
        return [cast(Mixer, mixer) for mixer in self.mixers]

    def forward(
        self, x: Tensor, state: State | None = None, segment_ids: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Mixes a whole sequence or the next chunk of one; see ``Mixer.forward``."""
        y = torch.zeros_like(x)
        after: State = {}  # a call of the alias is nothing that torch.compile knows
        for i, mixer in enumerate(self._all()):
            own = None if state is None else _part(state, i)
            out, own = mixer(_scaled(x, self.in_scales[i]), own, segment_ids)
            y = y + _scaled(out, self.out_scales[i])
            after |= _named(own, i)
        return y, after

    def step(self, x_t: Tensor, state: State) -> tuple[Tensor, State]:
        """See ``Mixer.step``."""
        y_t = torch.zeros_like(x_t)
        after: State = {}
        for i, mixer in enumerate(self._all()):
            out, own = mixer.step(_scaled(x_t, self.in_scales[i]), _part(state, i))
            y_t = y_t + _scaled(out, self.out_scales[i])
            after |= _named(own, i)
        return y_t, after

    def init_state(
        self, batch: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> State:
        """See ``Mixer.init_state``."""
        after: State = {}
        for i, mixer in enumerate(self._all()):
            after |= _named(mixer.init_state(batch, device, dtype), i)
        return after

    def join_states(self, states: Sequence[State]) -> State:
        """See ``Mixer.join_states``."""
        after: State = {}
        for i, mixer in enumerate(self._all()):
            after |= _named(mixer.join_states([_part(state, i) for state in states]), i)
        return after

    def state_size(self, length: int) -> int:
        """Returns the number of values that one row carries after ``length`` positions."""
        return sum(mixer.state_size(length) for mixer in self._all())


def _scaled(x: Tensor, factor: float) -> Tensor:
    return x if factor == 1 else x * factor


def _named(state: State, number: int) -> State:
    return {f"{number}.{name}": value for name, value in state.items()}


def _part(state: State, number: int) -> State:
    head = f"{number}."
    return {n.removeprefix(head): value for n, value in state.items() if n.startswith(head)}
