"""Metrics of detection: the area under the ROC curve of arrays, and under other draws of songs."""

from __future__ import annotations

import numpy as np


def auc(real: np.ndarray, fake: np.ndarray) -> float:
    """Returns the share of (real, fake) pairs in which the fake scores higher, ties counting half.

    Args:
        real: scores of real recordings (N,).
        fake: scores of synthetic ones (M,).

    Returns:
        From 0 to 1; 0.5 is chance; NaN if either is empty.
    """
    if not len(real) or not len(fake):
        return float("nan")
    ordered = np.sort(np.asarray(real, np.float64))
    fake = np.asarray(fake, np.float64)
    below, up_to = (np.searchsorted(ordered, fake, side) for side in ("left", "right"))
    return float((below + up_to).sum() / (2 * len(real) * len(fake)))


def auc_draws(
    real: np.ndarray,
    fake: np.ndarray,
    real_songs: np.ndarray,
    fake_songs: np.ndarray,
    draws: int = 500,
    seed: int = 0,
) -> np.ndarray:
    """Returns the AUC under other draws of songs (draws,): a bootstrap over songs, not over
    windows.

    Windows of one song are alike: to draw windows would make an interval far too narrow. The same
    seed draws the same songs, so that the draws of two models can be subtracted.

    Args:
        real: scores of real windows (N,).
        fake: scores of synthetic windows (M,).
        real_songs: song of every real window (N,).
        fake_songs: song of every synthetic window (M,).
        draws: of songs.
        seed: of the draws.
    """
    songs = np.unique(np.concatenate((real_songs, fake_songs)))
    rows = [
        [values[of == song] for song in songs]
        for values, of in ((real, real_songs), (fake, fake_songs))
    ]
    rng, found = np.random.default_rng(seed), []
    for _ in range(draws):
        chosen = rng.integers(len(songs), size=len(songs))
        found.append(auc(*(np.concatenate([part[i] for i in chosen]) for part in rows)))
    return np.array(found)
