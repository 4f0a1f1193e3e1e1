r"""The texture of short-time spectra: what rebuilding a phase from magnitudes leaves behind.

In a patch of K cells of a spectrogram, c = mean(ln P) - ln(mean P). Of noise, whose powers are
exponentially distributed, its mean is about -0.5; of tones and onsets it is lower. Magnitudes that
a mel filter smoothed, and phases that were made to fit them (Griffin & Lim 1984), pull it from
where music of the same kind has it. Patches along frequency and along time, four window lengths,
sixteen bands; a gain or an equaliser changes next to nothing.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from longseq.audio.witnesses.spectrum import RATE, frame_powers

SIZES = (512, 1024, 2048, 4096)
EDGES = (
    *(150, 400, 700, 1000, 1500, 2000, 2500, 3000, 4000, 5000, 6000, 7000, 8500),
    *(10000, 12000, 14000, 16000),
)
_CELLS, _MOST, _SILENCE = 5, 20000, 1e-6
FEATURES = 6 * len(SIZES) * (len(EDGES) - 1)


def _contrast(power: np.ndarray, logs: np.ndarray, axis: int) -> np.ndarray:
    """Returns c of patches of five cells along an axis of (frames, bins)."""
    whole = power.shape[axis] // _CELLS * _CELLS
    parts = []
    for x in (power, logs):
        cells = [x[i:whole:_CELLS] if axis == 0 else x[:, i:whole:_CELLS] for i in range(_CELLS)]
        parts.append(sum(cells[1:], cells[0]) / np.float32(_CELLS))
    return parts[1] - np.log(parts[0])


def known(high: float) -> np.ndarray:
    """Returns which features lie wholly below a frequency, bool (384,).

    Args:
        high: Hz, for example the recording's bandwidth.
    """
    bands = np.array(EDGES[1:]) <= high
    return np.tile(np.repeat(bands, 3), 2 * len(SIZES))


def texture(audio: np.ndarray) -> np.ndarray:
    """Returns mean, 10% and 90% of the contrast in every band, float32 (384,).

    Args:
        audio: samples (N,) at 44.1 kHz, N ≥ 8192.
    """
    x = np.ascontiguousarray(audio, dtype=np.float32)
    found: list[float] = []
    for size in SIZES:
        power = frame_powers(x, size, size // 2)
        total = power.mean(1)
        power = power[total > total.max() * _SILENCE]
        if len(power) < 2 * _CELLS:
            return np.zeros(FEATURES, np.float32)
        power = np.maximum(power, np.float32(1e-30))
        logs = np.log(power)
        hertz = np.arange(power.shape[1]) * RATE / size
        # Every other frame, so that windows do not overlap.
        still = _contrast(power[::2], logs[::2], 0)
        along = _contrast(power, logs, 1)
        centres = hertz[: along.shape[1] * _CELLS].reshape(-1, _CELLS).mean(1)
        for contrast, place in ((still, hertz), (along, centres)):
            for low, high in pairwise(EDGES):
                inside = (place >= low) & (place < high)
                values = contrast[:, inside].flatten()
                if not len(values):
                    found += [0.0, 0.0, 0.0]
                    continue
                if len(values) > _MOST:
                    values = values[:: len(values) // _MOST + 1]
                found += [float(values.mean()), *np.quantile(values, [0.1, 0.9]).tolist()]
    return np.array(found, np.float32)
