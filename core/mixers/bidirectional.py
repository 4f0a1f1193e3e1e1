"""Any causal mixer run from both ends, so that every position sees the whole sequence."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from longseq.core.errors import ConfigError, did_you_mean
from longseq.core.mixers.base import Mixer, State, create_mixer, register_mixer

Combine = Literal["sum", "product", "concat"]


@register_mixer("bidirectional")
class Bidirectional(Mixer):
    """Two copies of a causal mixer, one on the sequence and one on its mirror image.

        y = fwd(x) ∘ flip(rev(flip(x))),   ∘ a sum, a product, or a linear map of both side by side

    Packed sequences are mirrored inside the pack: flipping the pack flips each of them and their
    order, and the reset at every change of id keeps them apart. Caduceus (arXiv 2403.03234, section
    3.1) is ``mixer="mamba"``, ``combine="sum"``, ``tied=("in_proj", "out_proj")``.

    Args:
        d_model: width D.
        mixer: name of a causal mixer.
        mixer_kwargs: its hyper-parameters.
        combine: how the two directions meet.
        tied: parameters, or submodules, that both copies share; by their names in the mixer.

    Raises:
        ConfigError: if the mixer is not causal, or for an unknown name or choice.
    """

    causal = False

    def __init__(
        self,
        d_model: int,
        mixer: str = "mamba",
        mixer_kwargs: dict[str, Any] | None = None,
        combine: Combine = "sum",
        tied: tuple[str, ...] = (),
    ) -> None:
        super().__init__(d_model)
        if combine not in get_args(Combine):
            raise ConfigError(
                f"unknown combine {combine!r}; {did_you_mean(combine, get_args(Combine))}"
            )
        self.combine = combine
        self.fwd = create_mixer(mixer, d_model, **(mixer_kwargs or {}))
        self.rev = create_mixer(mixer, d_model, **(mixer_kwargs or {}))
        if not self.fwd.causal:
            raise ConfigError(f"mixer must be causal to be run from both ends, {mixer!r} is not")
        if isinstance(tied, str):
            raise ConfigError(f"tied must be a sequence of names, got the single string {tied!r}")
        for name in tied:
            self._tie(name)
        self.merge = nn.Linear(2 * d_model, d_model, bias=False) if combine == "concat" else None

    def _tie(self, name: str) -> None:
        """Makes ``rev`` use the parameters of ``fwd`` under ``name``."""
        own = dict(self.fwd.named_parameters())
        chosen = [key for key in own if key == name or key.startswith(f"{name}.")]
        if not chosen:
            known = {*own, *(key.rpartition(".")[0] for key in own if "." in key)}
            raise ConfigError(
                f"tied names no parameter of the mixer: {name!r}; {did_you_mean(name, known)}"
            )
        for key in chosen:
            owner, _, leaf = key.rpartition(".")
            setattr(self.rev.get_submodule(owner), leaf, own[key])

    def init_state(
        self, batch: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> State:
        """Returns nothing: the whole sequence is needed at once, so there is no state to carry."""
        return {}

    def forward(
        self, x: Tensor, state: State | None = None, segment_ids: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Mixes a whole sequence; see ``Mixer.forward``.

        Raises:
            ConfigError: if a state is given.
        """
        if state is not None:
            raise ConfigError(
                "a bidirectional mixer sees the whole sequence at once: it takes no state"
            )
        ahead, _ = self.fwd(x, None, segment_ids)
        mirrored = None if segment_ids is None else segment_ids.flip(1)
        back = self.rev(x.flip(1), None, mirrored)[0].flip(1)
        if self.merge is not None:
            return self.merge(torch.cat([ahead, back], -1)), {}
        return (ahead + back if self.combine == "sum" else ahead * back), {}
