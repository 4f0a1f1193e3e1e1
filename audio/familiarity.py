"""Is a recording like the music that a detector learnt from? If not, its score is no ground for a
verdict."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from longseq.audio.baselines import spectral_statistics
from longseq.audio.data.module import EvaluationClips, SongData
from longseq.audio.features import MelPower

SECONDS = 10.0  # of a window
_GROUPS, _DIRECTIONS, _SHARE, _MOST = 8, 10, 0.95, 600


def profile(audio: torch.Tensor, mel: MelPower) -> np.ndarray:
    """Returns a coarse profile of every clip (B, P): spectral statistics, the bands averaged in
    groups.

    Args:
        audio: samples (B, N).
        mel: the detector's mel spectrogram.
    """
    rows = spectral_statistics(audio, mel)
    parts = [rows[:, i * mel.n_mels : (i + 1) * mel.n_mels] for i in range(3)]
    coarse = [np.stack([x.mean(1) for x in np.array_split(part, _GROUPS, 1)], 1) for part in parts]
    return np.concatenate((*coarse, rows[:, 3 * mel.n_mels :]), 1)


@dataclass(frozen=True)
class Familiarity:
    """Mahalanobis distance in the main directions of the training songs' profiles.

    Args:
        mean: of the profiles (P,).
        basis: maps a centred profile to directions of unit variance (P, K).
        limit: 95% of the validation windows lie within.
    """

    mean: list[float]
    basis: list[list[float]]
    limit: float

    def distance(self, rows: np.ndarray) -> np.ndarray:
        """Returns the distances (N,) of profiles (N, P); about 1 for the training songs."""
        return np.sqrt((((rows - np.array(self.mean)) @ np.array(self.basis)) ** 2).mean(1))

    def to_dict(self) -> dict[str, Any]:
        """Returns the plain values, for a checkpoint."""
        return asdict(self)


def fit_familiarity(data: SongData, mel: MelPower) -> Familiarity | None:
    """Measures the training songs, and sets the limit on the validation songs.

    Args:
        data: the songs.
        mel: the detector's mel spectrogram.

    Returns:
        None if there are too few windows to measure.
    """
    rows = []
    for part in ("train", "valid"):
        clips = EvaluationClips(data.parts[part], data.reader, SECONDS, 8)
        step = max(1, 8 * len(clips) // _MOST)
        found = [profile(clips[i]["audio"].cpu(), mel) for i in range(0, len(clips), step)]
        rows.append(np.concatenate(found).astype(np.float64) if found else np.zeros((0, 1)))
    train, valid = rows
    if len(train) < 3 or not len(valid):
        return None
    mean, spread = train.mean(0), train.std(0)
    spread[spread == 0] = 1.0
    _, values, directions = np.linalg.svd((train - mean) / spread, full_matrices=False)
    kept = min(_DIRECTIONS, int((values > 1e-6 * values[0]).sum()))
    basis = directions[:kept].T / (values[:kept] / np.sqrt(len(train))) / spread[:, None]
    made = Familiarity(
        [float(f"{v:.7g}") for v in mean], [[float(f"{v:.7g}") for v in row] for row in basis], 0.0
    )
    return Familiarity(made.mean, made.basis, float(np.quantile(made.distance(valid), _SHARE)))
