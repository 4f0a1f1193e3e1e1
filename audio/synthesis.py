"""Ways to make a synthetic version of a recording: Griffin-Lim, phase vocoder, low-rate codec.

Each takes the music as it is and keeps its melody, timing and length: what tells the result from
the original is the synthesis alone. Strengths are drawn by song, so that a detector cannot lean on
one setting.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from longseq.audio.features import mel_filters
from longseq.core.errors import ConfigError, did_you_mean

# Samples that are worked on at a time, with an overlap that is faded: an hour needs no more memory
# than this.
_PIECE, _FADE = 30 * 16000, 1600


def _stft(x: Tensor, n_fft: int, hop: int) -> Tensor:
    return torch.stft(x, n_fft, hop, window=torch.hann_window(n_fft), return_complex=True)


def _istft(spectrum: Tensor, n_fft: int, hop: int, length: int) -> Tensor:
    return torch.istft(spectrum, n_fft, hop, window=torch.hann_window(n_fft), length=length)


def griffin_lim(
    audio: np.ndarray, rng: np.random.Generator, sample_rate: int, iterations: int | None = None
) -> np.ndarray:
    """Rebuilds the phase from magnitudes alone: fast Griffin-Lim (Perraudin et al. 2013), momentum
    0.99.

    The magnitudes are those of the signal, or what 80, 128 or 256 mel bands leave of them, as in a
    vocoder.

    Args:
        audio: float32 (N,).
        rng: draws window, bands and iterations.
        sample_rate: Hz.
        iterations: instead of 16, 32 or 60.
    """
    n_fft = int(rng.choice([1024, 2048]))
    hop, steps = n_fft // 4, iterations or int(rng.choice([16, 32, 60]))
    n_mels = int(rng.choice([0, 80, 128, 256]))
    x = torch.from_numpy(audio)
    magnitude = _stft(x, n_fft, hop).abs()
    if n_mels:
        bank = mel_filters(n_fft, n_mels, 0.0, sample_rate / 2, sample_rate).double()
        mel = bank.T @ magnitude.double()
        magnitude = (torch.linalg.pinv(bank.T) @ mel).clamp(min=0).to(magnitude.dtype)
    turns = torch.from_numpy(rng.uniform(0, 2 * np.pi, magnitude.shape).astype(np.float32))
    phase, before = torch.polar(torch.ones_like(turns), turns), torch.zeros_like(magnitude) + 0j
    for _ in range(steps):
        rebuilt = _stft(_istft(magnitude * phase, n_fft, hop, len(x)), n_fft, hop)
        moved = rebuilt + 0.99 * (rebuilt - before)
        phase, before = moved / moved.abs().clamp(min=1e-12), rebuilt
    return _istft(magnitude * phase, n_fft, hop, len(x)).numpy()


def stretch(audio: np.ndarray, rate: float, n_fft: int) -> np.ndarray:
    """Plays samples (N,) ``rate`` times as fast at the same pitch, by a phase vocoder.

    Args:
        audio: float32.
        rate: above 1 is faster.
        n_fft: samples of a window.
    """
    return _stretch(torch.from_numpy(audio), rate, n_fft).numpy()


def _stretch(x: Tensor, rate: float, n_fft: int) -> Tensor:
    """Returns x played ``rate`` times as fast at the same pitch (Flanagan & Golden 1966)."""
    hop = n_fft // 4
    spectrum = _stft(x, n_fft, hop)
    frames = spectrum.shape[1]
    places = torch.arange(0, frames - 1, rate, dtype=torch.float64)
    left = places.long()
    share = (places - left).float()
    magnitude = (1 - share) * spectrum[:, left].abs() + share * spectrum[:, left + 1].abs()
    # The phase of a bin moves on by what it moved between the two frames of the source.
    expected = (
        2 * torch.pi * hop * torch.arange(len(spectrum), dtype=torch.float64)[:, None] / n_fft
    )
    angle = spectrum.angle().double()
    turn = angle[:, left + 1] - angle[:, left] - expected
    turn = turn - 2 * torch.pi * torch.round(turn / (2 * torch.pi)) + expected
    phase = torch.cat((angle[:, :1], angle[:, :1] + turn.cumsum(1)[:, :-1]), 1).float()
    return _istft(torch.polar(magnitude, phase), n_fft, hop, round(len(x) / rate))


def phase_vocoder(audio: np.ndarray, rng: np.random.Generator, sample_rate: int) -> np.ndarray:
    """Slows the music down or speeds it up at the same pitch, and back to its length.

    Args:
        audio: float32 (N,).
        rng: draws rate (0.7 to 1.4) and window.
        sample_rate: Hz.
    """
    n_fft = int(rng.choice([1024, 2048]))
    rate = float(rng.choice([0.7, 0.8, 0.9, 1.1, 1.25, 1.4]))
    there = _stretch(torch.from_numpy(audio), rate, n_fft)
    return _stretch(there, len(there) / len(audio), n_fft).numpy()


def codec(audio: np.ndarray, rng: np.random.Generator, sample_rate: int) -> np.ndarray:
    """Encodes with Opus, Vorbis or MP3 at the lowest rates, and decodes.

    Args:
        audio: float32 (N,).
        rng: draws codec and rate.
        sample_rate: Hz; 8000, 12000, 16000, 24000 or 48000 for Opus.
    """
    import soundfile

    kinds = [("OGG", "VORBIS", 0.9, 1.0), ("MP3", "MPEG_LAYER_III", 0.9, 1.0)]
    if sample_rate in (8000, 12000, 16000, 24000, 48000):
        kinds.append(("OGG", "OPUS", 0.95, 1.0))
    kind, subtype, low, high = kinds[rng.integers(len(kinds))]
    stream = io.BytesIO()
    level = float(rng.uniform(low, high))
    with soundfile.SoundFile(
        stream, "w", sample_rate, 1, subtype, format=kind, compression_level=level
    ) as file:
        # libsndfile's Vorbis encoder overflows on long writes
        for start in range(0, len(audio), 1 << 16):
            file.write(audio[start : start + (1 << 16)])
    stream.seek(0)
    decoded, _ = soundfile.read(stream, dtype="float32")
    return decoded


METHODS: dict[str, Callable[[np.ndarray, np.random.Generator, int], np.ndarray]] = {
    "griffin_lim": griffin_lim,
    "phase_vocoder": phase_vocoder,
    "codec": codec,
}


def synthesize(audio: np.ndarray, method: str, seed: int, sample_rate: int = 16000) -> np.ndarray:
    """Returns a synthetic version of a recording, of the same length and loudness (RMS), float32
    (N,).

    Long recordings are made in pieces of about 30 s with one setting, faded into each other.

    Args:
        audio: mono samples (N,).
        method: one of ``METHODS``.
        seed: of the settings: the same seed gives the same result.
        sample_rate: Hz.

    Raises:
        ConfigError: for an unknown method.
    """
    if method not in METHODS:
        raise ConfigError(f"no synthesis method named {method!r}; {did_you_mean(method, METHODS)}")
    function, out = METHODS[method], np.zeros(len(audio), np.float32)
    fade = np.linspace(0, 1, _FADE, dtype=np.float32)
    start = 0
    while start < len(audio):
        # A last piece that would be very short is joined to the one before.
        end = len(audio) if len(audio) - start < 1.5 * _PIECE else start + _PIECE
        piece = np.ascontiguousarray(audio[start:end], dtype=np.float32)
        padded = np.pad(piece, (0, max(0, 4096 - len(piece))))
        made = function(padded, np.random.default_rng(seed), sample_rate)
        made = np.pad(made, (0, max(0, len(piece) - len(made))))[: len(piece)]
        joint = min(_FADE, len(piece)) if start else 0
        made[:joint] *= fade[:joint]
        out[start : start + joint] *= 1 - fade[:joint]
        out[start:end] += made
        start = end if end == len(audio) else end - _FADE
    loudness = [float(np.sqrt(np.mean(np.square(x, dtype=np.float64)))) for x in (audio, out)]
    return out * np.float32(loudness[0] / loudness[1]) if loudness[1] > 0 else out
