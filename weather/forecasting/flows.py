"""What every generated flow is, and how one is chosen by name."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from longseq.core import plugins
from longseq.core.errors import ConfigError, did_you_mean
from longseq.core.registry import check_keywords

FLOWS = {
    "quasigeostrophic": "longseq.weather.forecasting.quasigeostrophic.TwoLayerFlow",
    "shallow_water": "longseq.weather.forecasting.shallow_water.ShallowWater",
    "kuramoto_sivashinsky": "longseq.weather.forecasting.kuramoto_sivashinsky.KuramotoSivashinsky",
}


class Flow(ABC):
    """A flow on a periodic domain, solved in float64 for many members side by side.

    A state is a tensor whose first axis is the members; what it holds is the solver's own. A class
    of one's own needs ``start``, ``advance``, ``fields`` and the attributes below, and takes
    ``size`` first.

    Attributes:
        channels: fields per frame C.
        shape: rows and columns of a field (H, W).
        every: time steps between frames that suit forecasting.
        spin_up: time steps until a flow has settled.
        step: length of a time step.
    """

    channels: ClassVar[int]
    every: ClassVar[int]
    spin_up: ClassVar[int]
    shape: tuple[int, int]
    step: float

    @abstractmethod
    def start(self, members: int, seed: int) -> Tensor:
        """Returns small random states of some members."""

    @abstractmethod
    def advance(self, state: Tensor, steps: int) -> Tensor:
        """Returns the state after some time steps."""

    @abstractmethod
    def fields(self, state: Tensor) -> Tensor:
        """Returns what is seen of a state, on the grid (…, C, H, W)."""

    def state_of(self, fields: Tensor) -> Tensor:
        """Returns the state whose fields (…, C, H, W) are given.

        Raises:
            ConfigError: if the flow cannot tell.
        """
        raise ConfigError(f"{type(self).__name__} has no state_of: no state follows from fields")

    def terms(self, fields: Tensor) -> dict[str, Tensor]:
        """Returns the terms that a model of the flow may lack, name → (…, H, W).

        Args:
            fields: (…, C, H, W).

        Raises:
            ConfigError: if the flow has none.
        """
        raise ConfigError(f"{type(self).__name__} has no terms to look for")

    def run(
        self,
        members: int,
        frames: int,
        every: int | None = None,
        spin_up: int | None = None,
        seed: int = 0,
    ) -> Tensor:
        """Returns fields float32 (M, T, C, H, W) of flows that have settled.

        Args:
            members: flows side by side M.
            frames: T.
            every: time steps between frames; the flow's own if None.
            spin_up: time steps before the first; the flow's own if None.
            seed: of the starts.

        Raises:
            ConfigError: if the flow has blown up.
        """
        every = self.every if every is None else every
        state = self.start(members, seed)
        state = self.advance(state, self.spin_up if spin_up is None else spin_up)
        made = torch.empty(members, frames, self.channels, *self.shape)
        for frame in range(frames):
            if frame:
                state = self.advance(state, every)
            made[:, frame] = self.fields(state).float()
        if not made.isfinite().all():
            raise ConfigError(
                f"{type(self).__name__} has blown up: take a step below {self.step}, or more "
                "viscosity"
            )
        return made


def make_flow(name: str, size: int, options: Mapping[str, Any] | None = None) -> Flow:
    """Returns a flow.

    Args:
        name: one of ``FLOWS``, or the dotted path of a class of one's own, whose module
            ``--import`` has named.
        size: points along a side.
        options: further arguments of the flow's class.

    Raises:
        ConfigError: for an unknown name or option.
    """
    path = FLOWS.get(name, name)
    module, _, attribute = path.rpartition(".")
    if not module:
        raise ConfigError(
            f"no flow named {name!r}; {did_you_mean(name, list(FLOWS))}; one of your own is given "
            "by its class path"
        )
    if not plugins.is_allowed(module):
        raise ConfigError(f"flow {name}: --import {module} allows its module")
    try:
        cls = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"no flow {name!r}: {error}") from error
    if not (isinstance(cls, type) and issubclass(cls, Flow)):
        raise ConfigError(f"{name} is no subclass of {Flow.__module__}.Flow")
    check_keywords(f"flow {name}", cls, dict(options or {}))
    made = cls(size, **(options or {}))  # type: ignore[call-arg]
    assert isinstance(made, Flow)
    return made
