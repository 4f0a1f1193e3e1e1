"""Separators by name: a filter bank, a network that gives every voice a mask, and its inverse."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longseq.audio.separation.mossformer import MossFormerBlock
from longseq.audio.separation.spectral import SpectralSeparator
from longseq.audio.separation.voices import fitted, ordered
from longseq.core import Backbone
from longseq.core.checks import check_positive
from longseq.core.registry import Preset, Registry


class MaskSeparator(nn.Module):
    """Encoder, masks, decoder (Conv-TasNet's frame, arXiv 1809.07454, eq. 1-4).

        W = ReLU(Conv(x)),  M = ReLU(network(W)),  x_s = Conv⁻¹(W ⊙ M_s)

    A recording is scaled to a mean power of one and back, so that its level changes nothing else.
    The voices are scaled by the one factor that brings their sum nearest to the recording
    (``fitted``).

    Args:
        network: maps (B, L, D) to (B, L, D).
        width: D.
        voices: number S of them.
        filters: of the filter bank.
        kernel: samples of a filter; its step is half of that.
    """

    def __init__(
        self, network: nn.Module, width: int, voices: int = 2, filters: int = 128, kernel: int = 16
    ) -> None:
        super().__init__()
        self.voices = check_positive("voices", voices)
        self.kernel, self.stride = check_positive("kernel", kernel), kernel // 2
        self.encoder = nn.Conv1d(1, filters, kernel, self.stride, bias=False)
        self.norm, self.before = nn.LayerNorm(filters), nn.Linear(filters, width)
        self.network = network
        self.after = nn.Linear(width, voices * filters)
        self.decoder = nn.ConvTranspose1d(filters, 1, kernel, self.stride, bias=False)

    def forward(self, audio: Tensor) -> Tensor:
        """Returns the voices (B, S, N) of recordings (B, N)."""
        batch, length = audio.shape
        scale = audio.square().mean(1, keepdim=True).sqrt().clamp(min=1e-8)
        spare = max(0, self.kernel - length) or -(length - self.kernel) % self.stride
        edge = self.kernel - self.stride  # so that the ends lie under as many filters as the middle
        x = F.pad(audio / scale, (edge, spare + edge))
        bank = torch.relu(self.encoder(x.unsqueeze(1))).mT
        masks = torch.relu(self.after(self.network(self.before(self.norm(bank)))))
        masks = masks.unflatten(-1, (self.voices, -1)).movedim(2, 1)
        masked = (bank.unsqueeze(1) * masks).flatten(0, 1)
        out = self.decoder(masked.mT).squeeze(1)[:, edge : edge + length]
        return fitted(out.unflatten(0, (batch, self.voices)), audio)


class MossFormer(MaskSeparator):
    """MossFormer (arXiv 2302.11824).

    Args:
        width: D.
        n_layers: blocks.
        voices: number of them.
        filters: of the filter bank.
        kernel: samples of a filter.
        chunk: positions of full attention.
        **block: see ``MossFormerBlock``.
    """

    def __init__(
        self,
        width: int = 64,
        n_layers: int = 4,
        voices: int = 2,
        filters: int = 128,
        kernel: int = 16,
        chunk: int = 128,
        **block: Any,
    ) -> None:
        blocks = [MossFormerBlock(width, chunk=chunk, **block) for _ in range(n_layers)]
        network = nn.Sequential(*blocks, nn.LayerNorm(width))
        super().__init__(network, width, voices, filters, kernel)


class _TemporalBlock(nn.Module):
    """One-by-one map, dilated depthwise convolution and map back, each with a norm and a PReLU."""

    def __init__(self, width: int, hidden: int, kernel: int, dilation: int) -> None:
        super().__init__()
        padding = dilation * (kernel // 2)
        self.layers = nn.Sequential(
            nn.Conv1d(width, hidden, 1),
            nn.PReLU(),
            nn.GroupNorm(1, hidden),
            nn.Conv1d(hidden, hidden, kernel, padding=padding, dilation=dilation, groups=hidden),
            nn.PReLU(),
            nn.GroupNorm(1, hidden),
            nn.Conv1d(hidden, width, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, D) to the same."""
        return x + self.layers(x.mT).mT


class ConvTasNet(MaskSeparator):
    """Conv-TasNet (arXiv 1809.07454), not causal: the plain network to compare with.

    Args:
        width: D.
        hidden: channels of the depthwise convolutions.
        repeats: stacks of growing dilation.
        depth: blocks of a stack, dilations 1, 2, 4, …
        voices: number of them.
        filters: of the filter bank.
        kernel: samples of a filter.
    """

    def __init__(
        self,
        width: int = 64,
        hidden: int = 128,
        repeats: int = 2,
        depth: int = 6,
        voices: int = 2,
        filters: int = 128,
        kernel: int = 16,
    ) -> None:
        dilations = [2**i for i in range(depth)] * repeats
        blocks = [_TemporalBlock(width, hidden, 3, dilation) for dilation in dilations]
        super().__init__(nn.Sequential(*blocks), width, voices, filters, kernel)


class _Stack(nn.Module):
    def __init__(self, stack: Backbone) -> None:
        super().__init__()
        self.stack = stack

    def forward(self, x: Tensor) -> Tensor:
        return self.stack(x, keep_states=False)[0]


class MixerSeparator(MaskSeparator):
    """Any mixer of the core, read from both ends.

    Args:
        width: D.
        n_layers: of the stack.
        mixer: name of a causal mixer.
        mixer_kwargs: its hyper-parameters.
        voices: number of them.
        filters: of the filter bank.
        kernel: samples of a filter.
    """

    def __init__(
        self,
        width: int = 64,
        n_layers: int = 4,
        mixer: str = "mamba",
        mixer_kwargs: dict[str, Any] | None = None,
        voices: int = 2,
        filters: int = 128,
        kernel: int = 16,
    ) -> None:
        both = {"mixer": mixer, "mixer_kwargs": mixer_kwargs}
        stack = Backbone(width, n_layers, "bidirectional", both)
        super().__init__(_Stack(stack), width, voices, filters, kernel)


class MeanSeparator(nn.Module):
    """The mean of several separators, whose errors are partly others.

    Args:
        members: of each its "model", a name of ``SEPARATORS``, and "model_kwargs".
        voices: number of them.
    """

    def __init__(
        self,
        members: Sequence[Mapping[str, Any]] = ({"model": "mossformer"}, {"model": "spectral"}),
        voices: int = 2,
    ) -> None:
        super().__init__()
        self.voices = check_positive("voices", voices)
        check_positive("the number of members", len(members))
        made: list[Separator] = [
            create_separator(one["model"], **{**(one.get("model_kwargs") or {}), "voices": voices})
            for one in members
        ]
        self.members = nn.ModuleList(made)
        # Where steps differ, as 8 and 64 do, half of the sum lies between those of each.
        self.stride: int = sum({int(one.stride) for one in made})

    def forward(self, audio: Tensor) -> Tensor:
        """Returns the voices (B, S, N) of recordings (B, N), in the order of the first member."""
        first, *others = (member(audio) for member in self.members)
        total = first
        for other in others:
            total = total + ordered(other.to(first.dtype), first)
        return fitted(total, audio)


Separator = MaskSeparator | SpectralSeparator | MeanSeparator

SEPARATORS: Registry[Preset] = Registry("separator")
SEPARATORS.add("mossformer", Preset(MossFormer, {}, "full attention in chunks, linear beyond"))
SEPARATORS.add("conv_tasnet", Preset(ConvTasNet, {}, "dilated convolutions"))
SEPARATORS.add(
    "spectral",
    Preset(SpectralSeparator, {}, "complex masks on the spectrum, attention over frames"),
)
SEPARATORS.add("mean", Preset(MeanSeparator, {}, "the mean of several of the others"))
SEPARATORS.add("mamba", Preset(MixerSeparator, {}, "a mixer of the core from both ends"))


def create_separator(name: str, **kwargs: Any) -> Separator:
    """Makes a separator by name.

    Args:
        name: one of ``SEPARATORS``.
        **kwargs: hyper-parameters in place of the preset's.

    Raises:
        ConfigError: for an unknown name or hyper-parameter, with the nearest one.
    """
    made: Separator = SEPARATORS[name].create(name, **kwargs)
    return made
