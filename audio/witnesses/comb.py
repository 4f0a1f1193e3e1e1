r"""The comb witness: equally spaced lines where a decoder's upsampling layers would leave them. It
learns nothing from any decoder; only its threshold is settled, on real music.

For a spacing F, s(F) = Σ_n u(n F) over the N multiples in the band, u the surprise of a bin. Were
the bins in chance order, s would be Gamma(N)-distributed: score(F) = -log₁₀ P(Gamma(N) ≥ s(F)).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from longseq.audio.witnesses.spectrum import BIN, BINS, bandwidth, line_scores, surprise

# Sample rates that decoders work at, Hz, and products of the factors of their last layers.
_RATES = (16000, 22050, 24000, 32000, 44100, 48000)
_FACTORS = (
    *(*range(2, 11), 12, 14, 15, 16, 18, 20, 21, 24, 25, 28),
    *(30, 32, 35, 36, 40, 42, 48, 56, 60, 64),
)
# The band that is looked at, Hz: notes have most of their partials below it; and the spacings,
# above the fundamentals of most notes.
_LOW, _HIGH, _NARROWEST, _WIDEST = 4000.0, 20000.0, 1300.0, 9000.0
# Speeds that are tried besides 1: a record played a little too fast moves every line alike.
_SPEEDS = np.exp(np.arange(-95, 96) * 1.3e-4)


@dataclass(frozen=True)
class Comb:
    """The clearest comb of a spectrum.

    Args:
        score: -log₁₀ of its chance, at speed 1.
        moved: the same, the best of all speeds within ±1.2%.
        spacing: Hz, of the better of the two.
        lines: of it: (Hz, robust deviations above the neighbourhood), the clearest first.
    """

    score: float
    moved: float
    spacing: float
    lines: list[tuple[float, float]]


@lru_cache(1)
def spacings() -> np.ndarray:
    """Returns the spacings that are looked for, Hz, each once."""
    found = sorted({rate / factor for rate in _RATES for factor in _FACTORS})
    kept = [found[0]]
    for spacing in found:
        if spacing / kept[-1] > 1.0005:
            kept.append(spacing)
    return np.array([f for f in kept if _NARROWEST < f < _WIDEST])


def _sums(u: np.ndarray, spacing: np.ndarray, high: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns Σ u and the number of lines of every spacing between the band's ends."""
    first, last = np.ceil(_LOW / spacing).astype(int), np.floor(high / spacing).astype(int)
    total, count = np.zeros(spacing.shape), np.maximum(last - first + 1, 0)
    for step in range(int(count.max(initial=0))):
        inside = first + step <= last
        place = np.rint((first + step) * spacing / BIN).astype(int)
        total += np.where(inside, u[np.minimum(place, BINS - 1)], 0.0)
    return total, count


def comb_scores(u: np.ndarray, spacing: np.ndarray, high: float) -> np.ndarray:
    """Returns the score of every spacing; 0 where fewer than three of its lines lie in the band.

    Args:
        u: surprise of every bin (8193,).
        spacing: Hz, any shape.
        high: upper end of the band, Hz.
    """
    from scipy.special import gammaincc

    total, count = _sums(u, spacing, high)
    score = -np.log10(np.maximum(gammaincc(np.maximum(count, 1), total), 1e-300))
    return np.where(count >= 3, score, 0.0)


def find_comb(level: np.ndarray) -> Comb:
    """Looks for the clearest comb.

    Args:
        level: dB (8193,), of ``fine_spectrum``.
    """
    z = line_scores(level)
    u, high = surprise(z), min(bandwidth(level), _HIGH)
    grid = spacings()
    still = comb_scores(u, grid, high)
    moved = comb_scores(u, grid[:, None] * _SPEEDS, high)
    best, elsewhere = int(still.argmax()), np.unravel_index(moved.argmax(), moved.shape)
    faster = moved[elsewhere] > still[best] + 3
    spacing = float(grid[elsewhere[0]] * _SPEEDS[elsewhere[1]] if faster else grid[best])
    places = np.arange(np.ceil(_LOW / spacing), np.floor(high / spacing) + 1) * spacing
    heights = [float(z[max(0, round(f / BIN) - 1) : round(f / BIN) + 2].max()) for f in places]
    lines = sorted(zip(places.tolist(), heights), key=lambda line: -line[1])
    return Comb(float(still[best]), float(moved[elsewhere]), spacing, lines)
