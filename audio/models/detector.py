"""The Mamba detector: mel frames of a whole song, streamed through a causal backbone with a carried
state."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from longseq.audio.calibration import Segment
from longseq.audio.features import BlockStream, MelPower, normalise_blocks
from longseq.core.backbone import Backbone
from longseq.core.checks import check_positive
from longseq.core.errors import ArgumentError, ConfigError
from longseq.core.mixers import State


class FrameStem(nn.Module):
    """Embeds every frame on its own: convolutions over frequency, then a linear map.

    What synthesis leaves behind is local texture at any frequency: the convolutions look for it
    everywhere with the same weights, and the linear map keeps where it was.

    Args:
        n_mels: bands.
        d_model: width of the embedding.
        channels: of the convolutions, doubled with every halving of the bands.
    """

    def __init__(self, n_mels: int, d_model: int, channels: int) -> None:
        super().__init__()
        sizes = [2, channels, 2 * channels, 4 * channels]
        self.convs = nn.ModuleList(
            nn.Conv1d(a, b, 5, stride=2, padding=2) for a, b in pairwise(sizes)
        )
        bands = n_mels
        for _ in self.convs:
            bands = (bands + 1) // 2
        self.out = nn.Linear(sizes[-1] * bands, d_model)

    def forward(self, frames: Tensor, before: Tensor) -> Tensor:
        """Maps frames (B, T, n_mels), with the frame before the first (B, 1, n_mels), to (B, T,
        d_model)."""
        change = frames - torch.cat((before, frames[:, :-1]), 1)
        x = torch.stack((frames, change), 2).flatten(0, 1)  # (B·T, 2, n_mels)
        for conv in self.convs:
            x = nn.functional.gelu(conv(x), approximate="tanh")
        return self.out(x.flatten(1)).unflatten(0, frames.shape[:2])


class MambaDetector(nn.Module):
    """Scores every mel frame of a recording with all that came before it; a song's score is the
    mean.

    Audio is normalised in blocks of a few seconds, so neither gain nor what comes later matters,
    and an hour needs no more memory than a minute. The window is short, 32 ms: synthesis blurs
    onsets in time, which the 128 ms of the published front end would blur anyway.

    Args:
        d_model: width.
        n_layers: layers of the backbone.
        mixer: any causal mixer of the core, or a pattern of them.
        mixer_kwargs: its hyper-parameters.
        channels: of the frame stem.
        dropout: on residual branches and before the head.
        block: mel frames that are normalised together and make a segment; 320 are 5.12 s.
        centre: whether every band's mean over the block is taken off, so that the timbre of the
            training songs cannot be learnt by heart.
        sample_rate: Hz.
        n_fft: samples of a window.
        hop: samples between frames.
        n_mels: bands.
        f_min: lowest edge, Hz.
        f_max: highest edge, Hz.

    Raises:
        ConfigError: if the mixer is not causal.
    """

    def __init__(
        self,
        d_model: int = 64,
        n_layers: int = 2,
        mixer: Any = "mamba",
        mixer_kwargs: dict[str, Any] | None = None,
        channels: int = 8,
        dropout: float = 0.0,
        block: int = 320,
        centre: bool = True,
        sample_rate: int = 16000,
        n_fft: int = 512,
        hop: int = 256,
        n_mels: int = 64,
        f_min: float = 20.0,
        f_max: float = 8000.0,
    ) -> None:
        super().__init__()
        self.block, self.centre = check_positive("block", block), centre
        self.mel = MelPower(sample_rate, n_fft, hop, n_mels, f_min, f_max)
        self.stem = FrameStem(n_mels, d_model, check_positive("channels", channels))
        self.backbone = Backbone(d_model, n_layers, mixer, mixer_kwargs, dropout=dropout)
        if not self.backbone.causal:
            raise ConfigError(f"the detector streams: it needs a causal mixer, not {mixer!r}")
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(d_model, 1)

    @property
    def sample_rate(self) -> int:
        """Of the audio that it takes, Hz."""
        return self.mel.sample_rate

    def frame_logits(
        self, frames: Tensor, state: dict[str, Any] | None = None
    ) -> tuple[Tensor, dict[str, Any]]:
        """Returns the log-odds of every frame (B, T) and the state after the last one.

        Args:
            frames: normalised mel frames (B, T, n_mels), the whole recording or the next part of
                it.
            state: from the part before; None at the start.
        """
        before = frames[:, :1] if state is None else state["frame"]
        layers: list[State] | None = None if state is None else state["layers"]
        y, layers = self.backbone(self.stem(frames, before), layers)
        return self.head(self.dropout(y)).squeeze(-1), {"frame": frames[:, -1:], "layers": layers}

    def features(self, audio: Tensor) -> Tensor:
        """Returns normalised mel frames (B, T, n_mels) of audio (B, N)."""
        if audio.ndim != 2 or audio.shape[1] < 1:
            raise ArgumentError(f"audio must be (B, N) with N ≥ 1, got {tuple(audio.shape)}")
        missing = max(0, self.mel.shortest - audio.shape[1])
        audio = nn.functional.pad(audio, (0, missing))
        return normalise_blocks(self.mel(audio).transpose(1, 2), self.block, self.centre)

    def forward(self, audio: Tensor, equaliser: Tensor | None = None) -> Tensor:
        """Returns the log-odds (B,) that each recording is synthetic.

        Args:
            audio: samples (B, N) at ``sample_rate``, any gain.
            equaliser: added to the features, (B, 1, n_mels); augmentation in training.
        """
        frames = self.features(audio)
        if equaliser is not None:
            frames = frames + equaliser
        return self.frame_logits(frames)[0].mean(1)

    @torch.inference_mode()
    def segments(self, chunks: Iterable[np.ndarray]) -> Iterator[Segment]:
        """Yields the segments of a recording that comes in chunks, each scored with all that came
        before.

        The mean of the segments' logits by weight is what ``forward`` gives of the whole.

        Args:
            chunks: float32 arrays of samples (N,), of any lengths.
        """
        stream = BlockStream(self.mel, self.block, self.centre)
        state: dict[str, Any] | None = None
        device = self.head.weight.device
        samples, frames = 0, 0
        step = self.mel.hop / self.sample_rate
        iterator = iter(chunks)
        finished = False
        while not finished:
            chunk = next(iterator, None)
            finished = chunk is None
            if chunk is None:
                blocks = stream.finish()
            else:
                samples += len(chunk)
                blocks = stream.push(torch.from_numpy(chunk).to(device))
            for block in blocks:
                logits, state = self.frame_logits(block, state)
                start, frames = frames * step, frames + block.shape[1]
                end = min(frames * step, max(start, samples / self.sample_rate))
                yield Segment(start, end, float(logits.mean()), float(block.shape[1]))
