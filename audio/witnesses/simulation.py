"""Spectra of decoders that nobody built: lines drawn into spectra of real music, to train on.

As Zhang et al. (2019) did for generated images: what upsampling layers leave in a spectrum is
known from their factors alone, so a detector can learn it without any generator.
"""

from __future__ import annotations

import numpy as np

from longseq.audio.witnesses.spectrum import BIN, BINS

_RATES = (16000, 22050, 24000, 32000, 44100, 44100, 44100, 48000, 48000)


def draw_decoder(rng: np.random.Generator) -> list[float]:
    """Returns the rates in Hz that the last layers of a decoder work at, the highest first."""
    rate, found = float(rng.choice(_RATES)), []
    for _ in range(int(rng.integers(2, 5))):
        rate /= int(rng.choice([2, 2, 2, 3, 4, 4, 5, 5, 6, 7, 8, 8, 8, 10]))
        if rate < 300:
            break
        found.append(rate)
    return found


def add_lines(level: np.ndarray, rng: np.random.Generator, speed: float = 0.0) -> np.ndarray:
    """Returns a spectrum with the lines of a drawn decoder.

    Args:
        level: dB (8193,) of real music.
        rng: draws the decoder, and how clear its lines are.
        speed: the most that the lines are moved, as a share of their frequency.
    """
    from scipy.ndimage import median_filter

    floor = median_filter(level, 45, mode="nearest")
    added = np.zeros(BINS)
    factor = 1 + speed * rng.uniform(-1, 1)
    top = rng.uniform(3, 14)
    skirt = rng.uniform(0, 0.5) * (rng.random() < 0.4)
    for depth, rate in enumerate(draw_decoder(rng)):
        height = top - depth * rng.uniform(0, 5)
        if height < 1:
            break
        n = np.arange(1, int((BINS - 4) * BIN / rate / factor) + 1)
        heights = height + rng.normal(0, 3, len(n)) - rng.uniform(0, 4) * n / len(n)
        heights[rng.random(len(n)) < 0.15] = -20
        for number, tall in zip(n, heights):
            if tall < 0:
                continue
            place = number * rate * factor / BIN
            first = int(place) - 2
            bins = np.arange(max(0, first), min(BINS, first + 6))
            # The main lobe of a Hann window is a raised cosine of ±2 bins in amplitude.
            lobe = np.cos(np.clip((bins - place) / 4, -0.5, 0.5) * np.pi) ** 4
            added[bins] += 10 ** ((floor[bins] + tall) / 10) * lobe
            if skirt:
                wide = np.arange(max(0, first - 30), min(BINS, first + 36))
                bell = np.exp(-(((wide - place) / 12) ** 2))
                added[wide] += skirt * 10 ** ((floor[wide] + tall / 2) / 10) * bell
    return (10 * np.log10(10 ** (level / 10) + added)).astype(np.float32)
