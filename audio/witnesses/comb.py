r"""The comb witness: equally spaced lines where a decoder's upsampling layers would leave them. It
learns nothing from any decoder; only its threshold is settled, on real music.

For a spacing F, s(F) = Σ_n u(n F) over the N multiples in the band, u the surprise of a bin of the
mean level. Were the bins in chance order, s would be Gamma(N)-distributed: score(F) =
-log₁₀ P(Gamma(N) ≥ s(F)).

Of a comb at another speed there are 190 times as many to choose from, so it has to be clearer than
ranks can tell. Let z be the height of a bin of the steady level above its neighbourhood in robust
deviations, v = min(max(z, 0), 8), so that no single line decides, and m the mean of v over the
band: t(F) = Σ_n (v(n F) - m) / √N. Its score is the largest t(c F) less the 90% quantile of t(c F)
over all speeds c: music that is full of lines scores high at every speed, a decoder at one.

Over minutes the steady level grows sharper, and with it t, of music as well. So what t is above its
quantile is measured on pieces of 20 s, the length that the threshold is settled on, and averaged
over them at the same spacing and speed: no recording scores above its clearest piece.
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
# Robust deviations that a line counts for at most.
_TALLEST = 8.0
# Speeds that are tried besides 1: a record played a little too fast moves every line alike.
_SPEEDS = np.exp(np.arange(-95, 96) * 1.3e-4)


@dataclass(frozen=True)
class Comb:
    """The clearest comb of a spectrum.

    Args:
        score: -log₁₀ of its chance, at speed 1.
        moved: t at the best of the speeds within ±1.2%, above 90% of the others; the mean over
            pieces.
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


@lru_cache(1)
def _teeth() -> np.ndarray:
    """Returns the lines of every spacing at every speed, Hz (spacings, speeds, N); what lies above
    the band is infinite."""
    grid = spacings()[:, None] * _SPEEDS
    first = np.ceil(_LOW / grid)
    places = (first[..., None] + np.arange(int(_HIGH / _NARROWEST) + 1)) * grid[..., None]
    return np.where(places <= _HIGH, places, np.inf)


def moved_scores(z: np.ndarray, high: float) -> np.ndarray:
    """Returns t of every spacing at every speed; 0 where fewer than three lines lie in the band.

    Args:
        z: of ``line_scores`` (8193,).
        high: upper end of the band, Hz.
    """
    v = np.clip(z, 0, _TALLEST)
    mean = v[round(_LOW / BIN) : max(round(high / BIN), round(_LOW / BIN) + 1)].mean()
    inside = _teeth() <= high
    bins = np.rint(np.where(inside, _teeth(), 0.0) / BIN).astype(int)
    count = inside.sum(-1)
    total = ((v[bins] - mean) * inside).sum(-1)
    return np.where(count >= 3, total / np.sqrt(np.maximum(count, 1)), 0.0)


def clear_scores(level: np.ndarray, steady: np.ndarray) -> np.ndarray:
    """Returns by how much t of every spacing at every speed is above 90% of the speeds, or 0.

    Args:
        level: mean level of every bin, dB (8193,), of ``spectra``.
        steady: its steady level, dB (8193,).
    """
    moved = moved_scores(line_scores(steady), min(bandwidth(level), _HIGH))
    # A piece without the comb says nothing against one that holds it.
    return np.maximum(moved - np.quantile(moved, 0.9, axis=1, keepdims=True), 0.0)


def find_comb(
    level: np.ndarray, steady: np.ndarray | None = None, clear: np.ndarray | None = None
) -> Comb:
    """Looks for the clearest comb.

    Args:
        level: mean level of every bin, dB (8193,), of ``spectra``.
        steady: its steady level, dB (8193,); the mean if it was not measured.
        clear: the mean of ``clear_scores`` over pieces; of these levels if None.
    """
    z = line_scores(level)
    high, grid = min(bandwidth(level), _HIGH), spacings()
    still = comb_scores(surprise(z), grid, high)
    if steady is None:
        steady = level
    if clear is None:
        clear = clear_scores(level, steady)
    tallest = clear.max(1)
    best, elsewhere = int(still.argmax()), int(tallest.argmax())
    faster = tallest[elsewhere] > still[best] + 3
    if faster:
        z = line_scores(steady)
        spacing = float(grid[elsewhere] * _SPEEDS[clear[elsewhere].argmax()])
    else:
        spacing = float(grid[best])
    places = np.arange(np.ceil(_LOW / spacing), np.floor(high / spacing) + 1) * spacing
    heights = [float(z[max(0, round(f / BIN) - 1) : round(f / BIN) + 2].max()) for f in places]
    lines = sorted(zip(places.tolist(), heights), key=lambda line: -line[1])
    return Comb(float(still[best]), float(tallest[elsewhere]), spacing, lines)
