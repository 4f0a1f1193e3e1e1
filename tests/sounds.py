"""Sounds for the audio tests: white noise, and noise with equally spaced tones."""

import numpy as np

RATE = 44100


def noise(seconds=6.0, seed=0):
    """White noise, float32 (N,)."""
    rng = np.random.default_rng(seed)
    return (0.1 * rng.standard_normal(round(seconds * RATE))).astype(np.float32)


def with_tones(spacing, level=0.002, seconds=6.0):
    """White noise with a faint tone at every multiple of a spacing in Hz."""
    time = np.arange(round(seconds * RATE)) / RATE
    tones = sum(
        np.sin(2 * np.pi * spacing * n * time + n) for n in range(1, int(20000 / spacing) + 1)
    )
    return (noise(seconds) + level * tones).astype(np.float32)
