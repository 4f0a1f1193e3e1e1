"""A sequence model along the frequency axis: the averaged spectrum's 8,193 bins as a sequence."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from longseq.audio.witnesses.comb import comb_scores, spacings
from longseq.audio.witnesses.spectrum import BIN, BINS, bandwidth, line_scores, surprise
from longseq.core.backbone import Backbone
from longseq.core.checks import check_positive

CHANNELS = 3
_HIGH = 20000.0


def sequence_features(level: np.ndarray) -> np.ndarray:
    """Returns what the model sees of every bin, float32 (3, 8193).

    Its height above the neighbourhood, its surprise, and the score of the clearest comb that the
    bin is a tooth of; zeros above the recording's bandwidth.

    Args:
        level: dB (8193,), of ``fine_spectrum``.
    """
    z = line_scores(level)
    u = surprise(z)
    grid = spacings()
    top = bandwidth(level)
    scores = comb_scores(u, grid, min(top, _HIGH))
    support = np.zeros(BINS, np.float32)
    for spacing, score in zip(grid, scores):
        teeth = np.arange(1, int((BINS - 1) * BIN / spacing) + 1) * spacing / BIN
        place = np.rint(teeth).astype(int)
        support[place] = np.maximum(support[place], score)
    features = np.stack((z / 5, u / 4, support / 5)).astype(np.float32)
    features[:, round(top / BIN) :] = 0.0
    return features


class FrequencyModel(nn.Module):
    """Log-odds that a spectrum is a decoder's: convolutions over bins, a backbone over frequency.

    Args:
        d_model: width.
        n_layers: layers of the backbone.
        mixer: any mixer of the core.
        mixer_kwargs: its hyper-parameters.
        channels: of the first convolution.
    """

    def __init__(
        self,
        d_model: int = 32,
        n_layers: int = 2,
        mixer: str = "bidirectional",
        mixer_kwargs: dict[str, Any] | None = None,
        channels: int = 16,
    ) -> None:
        super().__init__()
        check_positive("channels", channels)
        self.stem = nn.Sequential(
            nn.Conv1d(CHANNELS, channels, 7, stride=2, padding=3),
            nn.GELU(approximate="tanh"),
            nn.Conv1d(channels, 2 * channels, 5, stride=4, padding=2),
            nn.GELU(approximate="tanh"),
            nn.Conv1d(2 * channels, d_model, 5, stride=4, padding=2),
        )
        tokens = BINS
        for stride in (2, 4, 4):
            tokens = (tokens - 1) // stride + 1
        self.position = nn.Parameter(torch.zeros(tokens, d_model))
        self.backbone = Backbone(d_model, n_layers, mixer, mixer_kwargs)
        self.head = nn.Linear(2 * d_model, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Maps features (B, 3, 8193) to log-odds (B,)."""
        x = self.stem(features).transpose(1, 2) + self.position
        y, _ = self.backbone(x)
        return self.head(torch.cat((y.mean(1), y.amax(1)), -1)).squeeze(-1)
