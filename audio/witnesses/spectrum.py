r"""The averaged high-resolution spectrum of a recording, and the lines that stand out of it.

Layers that upsample by a factor r leave tones and mirror images at multiples of the rate they work
at (Odena et al. 2016; Pons et al. 2021 for audio): sample rate / r, / (r r'), … Averaged over
seconds of music at 2.7 Hz a bin, they are lines that stand still while notes come and go.
"""

from __future__ import annotations

import numpy as np

RATE = 44100  # of all evidence, Hz
N_FFT, HOP = 16384, 8192
BIN = RATE / N_FFT  # Hz
BINS = N_FFT // 2 + 1
# The neighbourhood of a bin whose median is taken off (121 Hz), and that its scale is of (503 Hz).
_FLOOR_BINS, _SCALE_BINS = 45, 187
_RANK_BINS = 450
# The quantile over time that is the steady level.
_STEADY = 0.1
_PRECISION = 130.0  # dB
_AT_ONCE = 1 << 17  # samples that are transformed at a time: they stay in the cache


def spectra(audio: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns of every bin the mean level over time, and the one that it keeps for 90% of it.

    Both in dB, float32 (8193,). Notes come and go, so that they are in the mean but not in the
    second, the steady level; a line of a decoder is in both. Silent frames are left out; a gain
    only shifts the levels.

    Args:
        audio: samples (N,) at 44.1 kHz; padded with zeros to one window.
    """
    x = np.ascontiguousarray(audio, dtype=np.float32)
    x = np.pad(x, (0, max(0, N_FFT - len(x))))
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is told by the caller
        power = frame_powers(x, N_FFT, HOP)
        total = power.mean(1, keepdims=True)
        heard = total[:, 0] > 0
        if not heard.any():
            return np.zeros(BINS, np.float32), np.zeros(BINS, np.float32)
        if not heard.all():
            power, total = power[heard], total[heard]
        level = np.maximum(power, total * np.float32(1e-12), out=power)
        np.log10(level, out=level)
        level *= 10
    rank = round(_STEADY * (len(level) - 1))
    # Deeper below a frame's loudest bin there is only what single precision leaves of a transform.
    deepest = level.max(1, keepdims=True) - np.float32(_PRECISION)
    mean = level.mean(0)
    over_time = np.maximum(level, deepest, out=level).T.copy()
    over_time.partition(rank, axis=1)
    return mean, over_time[:, rank].copy()


def frame_powers(audio: np.ndarray, size: int, hop: int) -> np.ndarray:
    """Returns the power of every bin of frames under a Hann window, float32 (frames, size/2 + 1).

    Args:
        audio: samples (N,), float32, N ≥ size.
        size: of a frame, samples.
        hop: from one frame to the next, samples.
    """
    from scipy.fft import rfft

    window = np.float32(0.5) - np.cos(np.arange(size) * (2 * np.pi / size)).astype(np.float32) / 2
    frames = np.lib.stride_tricks.sliding_window_view(audio, size)[::hop]
    power = np.empty((len(frames), size // 2 + 1), np.float32)
    rows = max(1, _AT_ONCE // size)
    for i in range(0, len(frames), rows):
        parts = rfft(frames[i : i + rows] * window, axis=1).view(np.float32)
        np.square(parts, out=parts)
        np.add(parts[:, ::2], parts[:, 1::2], out=power[i : i + rows])
    return power


def fine_spectrum(audio: np.ndarray) -> np.ndarray:
    """Returns the mean level of every bin over time in dB, float32 (8193,), of ``spectra``.

    Args:
        audio: samples (N,) at 44.1 kHz; padded with zeros to one window.
    """
    return spectra(audio)[0]


def line_scores(level: np.ndarray) -> np.ndarray:
    """Returns how far every bin stands above its neighbourhood, in that one's robust deviations.

    Args:
        level: dB (8193,).
    """
    from scipy.ndimage import median_filter

    above = level - median_filter(level, _FLOOR_BINS, mode="nearest")
    scale = 1.4826 * median_filter(np.abs(above), _SCALE_BINS, mode="nearest")
    return np.clip(above / np.maximum(scale, 0.25), -5, 15).astype(np.float32)


def surprise(scores: np.ndarray) -> np.ndarray:
    """Returns -ln of the share of a bin's neighbours, 1.2 kHz to either side, that are as high.

    If nothing but chance orders the bins, it is distributed exponentially with mean 1.

    Args:
        scores: of ``line_scores`` (8193,).
    """
    from scipy.ndimage import maximum_filter1d

    # A line falls between bins: the highest of three stands for its place.
    high = maximum_filter1d(scores, 3)
    padded = np.pad(high, _RANK_BINS, mode="reflect")
    around = np.lib.stride_tricks.sliding_window_view(padded, 2 * _RANK_BINS + 1)[:, ::3]
    above = (around > high[:, None]).sum(1)
    return -np.log((1 + above) / (1 + around.shape[1])).astype(np.float32)


def bandwidth(level: np.ndarray) -> float:
    """Returns the highest frequency in Hz that is not more than 95 dB below the loudest band.

    Above it there is nothing but what a resampler or a decoder leaves of silence.

    Args:
        level: dB (8193,).
    """
    from scipy.ndimage import uniform_filter1d

    smooth = uniform_filter1d(level, 40)
    return float(np.nonzero(smooth > smooth.max() - 95)[0].max() * BIN)
