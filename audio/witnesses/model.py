"""A sequence model along the frequency axis, to train: convolutions over bins, a backbone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from longseq.audio.witnesses.sequence import CHANNELS, STRIDES, TOKENS
from longseq.core.arrays import check_arrays
from longseq.core.backbone import Backbone
from longseq.core.checks import check_positive


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
            nn.Conv1d(CHANNELS, channels, 7, STRIDES[0], padding=3),
            nn.GELU(approximate="tanh"),
            nn.Conv1d(channels, 2 * channels, 5, STRIDES[1], padding=2),
            nn.GELU(approximate="tanh"),
            nn.Conv1d(2 * channels, d_model, 5, STRIDES[2], padding=2),
        )
        self.position = nn.Parameter(torch.zeros(TOKENS, d_model))
        self.backbone = Backbone(d_model, n_layers, mixer, mixer_kwargs)
        self.head = nn.Linear(2 * d_model, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Maps features (B, 3, 8193) to log-odds (B,)."""
        x = self.stem(features).transpose(1, 2) + self.position
        y, _ = self.backbone(x)
        return self.head(torch.cat((y.mean(1), y.amax(1)), -1)).squeeze(-1)


def run_trained(
    hyper: Mapping[str, Any], weights: Mapping[str, np.ndarray], device: str = "cpu"
) -> Callable[[np.ndarray], float]:
    """Returns what maps features (3, 8193) to log-odds, by torch: any mixer, any device.

    Args:
        hyper: hyper-parameters of ``FrequencyModel``.
        weights: of it.
        device: to run on.

    Raises:
        DataError: if the weights are not those of these hyper-parameters.
    """
    model = FrequencyModel(**hyper)
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    check_arrays(shapes, weights, "FrequencyModel")
    model.load_state_dict({name: torch.tensor(value) for name, value in weights.items()})
    model.eval().to(device)

    @torch.inference_mode()
    def run(features: np.ndarray) -> float:
        return float(model(torch.from_numpy(features).to(device)[None])[0])

    return run
