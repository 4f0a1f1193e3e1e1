"""The plain baseline of detection: logistic regression on spectral statistics."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from longseq.audio.features import MelPower, normalise
from longseq.audio.metrics import auc
from longseq.core.errors import ConfigError, DataError
from longseq.core.files import atomic_path, require_file

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)


@torch.inference_mode()
def spectral_statistics(audio: Tensor, mel: MelPower) -> np.ndarray:
    """Returns one row of statistics a clip, float32 (B, 3·n_mels + 10); a gain changes none of
    them.

    Of every mel band in normalised dB: mean, deviation, mean absolute change between frames. Of the
    mel spectrum: mean and deviation over time of centroid, bandwidth, 85% roll-off, flatness and
    flux.

    Args:
        audio: samples (B, N).
        mel: the mel spectrogram.
    """
    audio = torch.nn.functional.pad(audio, (0, max(0, mel.shortest - audio.shape[1])))
    power = mel(audio).transpose(1, 2)  # (B, T, M)
    level = normalise(power)
    change = level.diff(dim=1).abs() if level.shape[1] > 1 else torch.zeros_like(level)
    bands = [level.mean(1), level.std(1, unbiased=False), change.mean(1)]
    share = power / power.sum(2, keepdim=True).clamp(min=1e-30)
    place = torch.linspace(0, 1, power.shape[2])
    centroid = (share * place).sum(2)
    width = (share * (place - centroid[..., None]).square()).sum(2).sqrt()
    rolloff = (share.cumsum(2) < 0.85).float().mean(2)
    flatness = (share.clamp(min=1e-12).log().mean(2) - share.mean(2).clamp(min=1e-12).log()).exp()
    flux = torch.nn.functional.pad(share.diff(dim=1).square().sum(2).sqrt(), (1, 0))
    tracks = torch.stack((centroid, width, rolloff, flatness, flux), 2)
    return torch.cat((*bands, tracks.mean(1), tracks.std(1, unbiased=False)), 1).numpy()


class SpectralRegression:
    """Logistic regression on standardised statistics; its strength is chosen by validation AUC.

    Args:
        strengths: inverse regularisation strengths C to choose from.
    """

    def __init__(self, strengths: Sequence[float] = STRENGTHS) -> None:
        if not strengths:
            raise ConfigError("there is no strength to choose from")
        self.strengths = tuple(strengths)
        self.strength = float("nan")
        self.weights = np.zeros(0)
        self.offset = 0.0

    def fit(
        self, x: np.ndarray, y: np.ndarray, x_valid: np.ndarray, y_valid: np.ndarray
    ) -> SpectralRegression:
        """Fits all strengths on the training rows and keeps the best on the validation rows.

        Args:
            x: training rows (N, P).
            y: 1 for synthetic (N,).
            x_valid: validation rows (M, P).
            y_valid: likewise (M,).
        """
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression

        mean, scale = x.mean(0, dtype=np.float64), x.std(0, dtype=np.float64)
        scale[scale == 0] = 1.0
        best = -1.0
        for strength in self.strengths:
            with warnings.catch_warnings():
                # Stopping early is a choice here: the ranking is flat by then.
                warnings.simplefilter("ignore", ConvergenceWarning)
                model = LogisticRegression(C=strength, class_weight="balanced", max_iter=300)
                model.fit((x - mean) / scale, y)
            # The standardisation is folded into the weights.
            weights = model.coef_[0] / scale
            offset = float(model.intercept_[0] - weights @ mean)
            scores = x_valid @ weights + offset if len(x_valid) else np.zeros(0)
            value = auc(scores[y_valid < 0.5], scores[y_valid > 0.5])
            if np.isnan(value) or value > best:
                best, self.strength, self.weights, self.offset = value, strength, weights, offset
        return self

    def score(self, x: np.ndarray) -> np.ndarray:
        """Returns log-odds of being synthetic (N,) of rows (N, P)."""
        return x @ self.weights + self.offset

    def save(self, path: str | Path) -> None:
        """Writes the fitted regression as JSON, whole or not at all.

        Args:
            path: the file.
        """
        weights = [float(f"{value:.9g}") for value in self.weights]
        content = {"strength": self.strength, "offset": self.offset, "weights": weights}
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(content), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> SpectralRegression:
        """Reads what ``save`` wrote.

        Args:
            path: the file.

        Raises:
            DataError: if it is no such file.
        """
        file, made = require_file(path, "baseline"), cls()
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            made.strength, made.offset = float(content["strength"]), float(content["offset"])
            made.weights = np.array(content["weights"], np.float64)
        except (ValueError, KeyError, TypeError) as error:
            raise DataError("is no fitted regression", path=file) from error
        return made
