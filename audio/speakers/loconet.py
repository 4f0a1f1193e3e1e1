r"""LoCoNet on sound: when does each of several enrolled speakers talk?

Wang, Cheng & Bertasius, "LoCoNet: Long-Short Context Network for Active Speaker Detection",
arXiv 2301.08237: every candidate's features (S, T, C) pass through blocks of

    long-term intra-speaker modelling:   x_s ← x_s + Mixer_time(x_s)    (one speaker, all T)
    short-term inter-speaker modelling:  x_s ← x_s + Conv_k(x)_s        (k frames, all speakers)

Here a candidate is known by a recording of the voice where the paper has a video of the face, and
candidates have no order, where the paper puts one first: the convolution over speakers is
Conv_k(x)_s = A_k x_s + B_k mean_{r≠s} x_r, which no order changes.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longseq.audio.features import MelPower
from longseq.core import Backbone
from longseq.core.checks import check_positive
from longseq.core.errors import ArgumentError

HOP = 0.02  # s, of a frame
_SILENCE = 1e-8


class InterSpeaker(nn.Module):
    """The convolution over neighbouring frames and all speakers, in any order of theirs.

    Args:
        width: C.
        kernel: frames, odd.
    """

    def __init__(self, width: int, kernel: int = 7) -> None:
        super().__init__()
        if check_positive("kernel", kernel) % 2 == 0:
            raise ArgumentError(f"kernel must be odd, got {kernel}")
        self.norm = nn.LayerNorm(width)
        self.own = nn.Conv1d(width, width, kernel, padding=kernel // 2)
        self.others = nn.Conv1d(width, width, kernel, padding=kernel // 2, bias=False)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, S, T, C) to (B, S, T, C); a single speaker has no others."""
        y = self.norm(x).movedim(-1, -2)  # (B, S, C, T)
        count = max(1, y.shape[1] - 1)
        others = (y.sum(1, keepdim=True) - y) / count if y.shape[1] > 1 else torch.zeros_like(y)
        mixed = self.own(y.flatten(0, 1)) + self.others(others.flatten(0, 1))
        return x + self.out(F.gelu(mixed.mT, approximate="tanh").unflatten(0, y.shape[:2]))


class LoCoNet(nn.Module):
    """Log-odds that each of S enrolled speakers talks, for every frame of 20 ms.

    Args:
        width: C.
        n_layers: blocks of one layer over time and one over speakers.
        mixer: of the layers over time, any mixer of the core; "bidirectional" wraps Mamba.
        mixer_kwargs: its hyper-parameters.
        kernel: frames of the convolution over speakers.
        n_mels: mel bands.
        sample_rate: Hz.
    """

    def __init__(
        self,
        width: int = 64,
        n_layers: int = 3,
        mixer: str = "bidirectional",
        mixer_kwargs: dict[str, Any] | None = None,
        kernel: int = 7,
        n_mels: int = 40,
        sample_rate: int = 8000,
    ) -> None:
        super().__init__()
        check_positive("n_layers", n_layers)
        self.hop = round(HOP * sample_rate)
        self.mel = MelPower(sample_rate, 4 * self.hop, self.hop, n_mels, 60.0, sample_rate / 2)
        self.listen = nn.Sequential(
            nn.Conv1d(n_mels, width, 5, padding=2),
            nn.GELU(approximate="tanh"),
            nn.Conv1d(width, width, 5, padding=4, dilation=2),
            nn.GELU(approximate="tanh"),
        )
        self.voice = nn.Linear(2 * width, 2 * width)
        self.heard = nn.Linear(width, width)
        self.long = nn.ModuleList(Backbone(width, 1, mixer, mixer_kwargs) for _ in range(n_layers))
        self.short = nn.ModuleList(InterSpeaker(width, kernel) for _ in range(n_layers))
        self.head = nn.Linear(width, 1)

    def frames(self, samples: int) -> int:
        """Returns how many frames a recording of so many samples has."""
        return samples // self.hop

    def levels(self, audio: Tensor, power: Tensor | None = None) -> Tensor:
        """Returns log mel power relative to a recording's mean, (B, n_mels, T).

        Args:
            audio: (B, N).
            power: mean square of the recordings that ``audio`` is a part of, (B,); its own if None.
        """
        count, short = self.frames(audio.shape[-1]), self.mel.shortest - audio.shape[-1]
        found = self.mel(F.pad(audio, (0, max(0, short))))[..., :count]
        power = audio.float().square().mean(-1) if power is None else power
        # Of white noise of that power the mean is one.
        filters = self.mel.mel_scale.fb.sum(0).mean()
        white = power.clamp(min=_SILENCE) * self.mel.spectrogram.window.square().sum() * filters
        return (found / white[:, None, None]).clamp(min=1e-5).log()

    def enrol(self, voices: Tensor) -> Tensor:
        """Returns what tells a voice from others, (B, S, 2 C), of recordings (B, S, M).

        Mean and deviation over the frames, weighted by their loudness so that pauses say nothing.
        """
        level = self.levels(voices.flatten(0, 1))
        loud = level.mean(1, keepdim=True).softmax(-1)
        heard = self.listen(level)
        mean = (heard * loud).sum(-1)
        spread = ((heard - mean[..., None]).square() * loud).sum(-1).add(1e-6).sqrt()
        return self.voice(torch.cat((mean, spread), -1)).unflatten(0, voices.shape[:2])

    def forward(self, audio: Tensor, voices: Tensor, power: Tensor | None = None) -> Tensor:
        """Returns log-odds (B, S, T).

        Args:
            audio: recordings (B, N).
            voices: a piece of each speaker alone, (B, S, M).
            power: see ``levels``.

        Raises:
            ArgumentError: for other shapes, or less than a frame.
        """
        if audio.ndim != 2 or voices.ndim != 3 or len(audio) != len(voices):
            raise ArgumentError(
                f"audio must be (B, N) and voices (B, S, M), got {tuple(audio.shape)} and "
                f"{tuple(voices.shape)}"
            )
        if min(audio.shape[1], voices.shape[2]) < self.hop:
            raise ArgumentError(f"recordings must have at least {self.hop} samples (a frame)")
        scale, shift = self.enrol(voices).unsqueeze(2).chunk(2, -1)  # (B, S, 1, C)
        heard = self.heard(self.listen(self.levels(audio, power)).mT).unsqueeze(1)
        x = heard * (1 + scale) + shift
        for long, short in zip(self.long, self.short):
            y, _ = long(x.flatten(0, 1))
            x = short(x + y.unflatten(0, x.shape[:2]))
        return self.head(x).squeeze(-1)
