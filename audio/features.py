r"""Log-mel spectrograms in torch, whole or streamed: the published front end of SpecTTTra, and
blocks of it.

power(t, f) = |STFT(t, f)|²      Hann window of n_fft samples, centred, reflected at both ends
mel(t, m)   = Σ_f power(t, f) · triangle_m(f)      HTK mel scale, triangles of height 1
dB          = 10 log₁₀ max(mel, 1e-10), clamped to 80 dB below the clip's own maximum
feature     = (dB - mean) / (std + 1e-6)      over the clip
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from longseq.core.checks import check_positive
from longseq.core.errors import ArgumentError, ConfigError
from longseq.core.ops.precision import autocast_off

# A power ratio below the loudest of a block: 80 dB.
_FLOOR = 1e-8


def mel_filters(n_fft: int, n_mels: int, f_min: float, f_max: float, sample_rate: int) -> Tensor:
    """Returns triangular filters on the HTK mel scale, float32 (n_fft // 2 + 1, n_mels), each of
    height 1.

    Args:
        n_fft: samples of a Fourier transform.
        n_mels: number of filters.
        f_min: lowest edge, Hz.
        f_max: highest edge, Hz.
        sample_rate: Hz.

    Raises:
        ConfigError: for frequencies that are out of order or above half the sample rate.
    """
    if not 0 <= f_min < f_max <= sample_rate / 2:
        raise ConfigError(
            f"need 0 ≤ f_min < f_max ≤ {sample_rate / 2:g} Hz, got {f_min} and {f_max}"
        )
    low, high = (2595.0 * math.log10(1.0 + f / 700.0) for f in (f_min, f_max))
    # float32 throughout, as the published filters were made: they are part of the checkpoints.
    edges = 700.0 * (10.0 ** (torch.linspace(low, high, n_mels + 2) / 2595.0) - 1.0)
    bins = torch.linspace(0, sample_rate // 2, n_fft // 2 + 1)
    width = edges[1:] - edges[:-1]
    slopes = edges[None, :] - bins[:, None]
    falling, rising = -slopes[:, :-2] / width[:-1], slopes[:, 2:] / width[1:]
    return torch.minimum(falling, rising).clamp(min=0.0)


class _Spectrogram(nn.Module):
    """Holds the window, under the published name."""

    window: Tensor

    def __init__(self, n_fft: int) -> None:
        super().__init__()
        self.register_buffer("window", torch.hann_window(n_fft))


class _MelScale(nn.Module):
    """Holds the filters, under the published name."""

    fb: Tensor

    def __init__(self, filters: Tensor) -> None:
        super().__init__()
        self.register_buffer("fb", filters)


class MelPower(nn.Module):
    """Mel power spectrogram (B, N) → (B, n_mels, 1 + N // hop); buffers named as in published
    checkpoints.

    Args:
        sample_rate: Hz.
        n_fft: samples of a window.
        hop: samples between frames.
        n_mels: number of filters.
        f_min: lowest edge, Hz.
        f_max: highest edge, Hz.
    """

    def __init__(
        self,
        sample_rate: int = 16000,
        n_fft: int = 2048,
        hop: int = 512,
        n_mels: int = 128,
        f_min: float = 20.0,
        f_max: float = 8000.0,
    ) -> None:
        super().__init__()
        self.sample_rate, self.n_fft, self.hop = sample_rate, check_positive("n_fft", n_fft), hop
        self.n_mels = check_positive("n_mels", n_mels)
        check_positive("hop", hop)
        self.spectrogram = _Spectrogram(n_fft)
        self.mel_scale = _MelScale(mel_filters(n_fft, n_mels, f_min, f_max, sample_rate))

    @property
    def shortest(self) -> int:
        """The fewest samples that can be reflected at both ends."""
        return self.n_fft // 2 + 1

    def frames(self, padded: Tensor) -> Tensor:
        """Returns the power of every window that lies wholly in ``padded`` (B, N), as (B, T,
        n_mels)."""
        windows = padded.unfold(-1, self.n_fft, self.hop) * self.spectrogram.window
        spectrum = torch.fft.rfft(windows)
        return (spectrum.real.square() + spectrum.imag.square()) @ self.mel_scale.fb

    def forward(self, audio: Tensor) -> Tensor:
        """Returns the mel power, float32 (B, n_mels, T).

        Args:
            audio: samples (B, N) with N > n_fft / 2.

        Raises:
            ArgumentError: for another shape.
        """
        if audio.ndim != 2 or audio.shape[1] < self.shortest:
            raise ArgumentError(
                f"audio must be (B, N) with N ≥ {self.shortest}, got {tuple(audio.shape)}: pad it "
                f"with zeros"
            )
        with autocast_off(audio):
            half = self.n_fft // 2
            padded = nn.functional.pad(audio.float()[:, None], (half, half), mode="reflect")[:, 0]
            return self.frames(padded).transpose(1, 2)


class LogMel(nn.Module):
    """The published front end: mel power in dB, clamped and normalised by each clip on its own.

    The published code clamps to 80 dB below the maximum of the *batch*, so that a neighbour changes
    a clip's score; here a clip's maximum is its own, which is the same for a batch of one.

    Args:
        top_db: dynamic range, dB.
        **mel: arguments of ``MelPower``.
    """

    def __init__(self, top_db: float = 80.0, **mel: float) -> None:
        super().__init__()
        self.top_db = top_db
        self.audio2melspec = MelPower(**mel)  # type: ignore[arg-type]

    def forward(self, audio: Tensor) -> Tensor:
        """Returns features (B, n_mels, 1 + N // hop) of audio (B, N)."""
        db = 10.0 * self.audio2melspec(audio).clamp(min=1e-10).log10()
        db = torch.maximum(db, db.amax((1, 2), keepdim=True) - self.top_db)
        mean, std = db.mean((1, 2), keepdim=True), db.flatten(1).std(1)[:, None, None]
        return (db - mean) / (std + 1e-6)


def unit_gain(audio: Tensor) -> Tensor:
    """Divides each clip (B, N) by its standard deviation, as the published loader does; silence
    stays.

    Args:
        audio: samples.
    """
    std = audio.std(1, unbiased=False, keepdim=True)
    return audio / torch.where(std > 0, std, torch.ones_like(std))


def normalise(power: Tensor, reference: Tensor | None = None, centre: bool = False) -> Tensor:
    """Returns mel power in dB, at most 80 dB below the loudest, with mean 0 and deviation 1.

    A gain multiplies all powers alike and so changes nothing; silence becomes zeros.

    Args:
        power: (B, T, n_mels).
        reference: frames that the statistics are of (B, T', n_mels); ``power`` itself if None.
        centre: whether each band's own mean is taken off as well, and with it the song's timbre.
    """
    basis = power if reference is None else reference
    peak = basis.amax((1, 2), keepdim=True)
    peak = torch.where(peak > 0, peak, torch.ones_like(peak))

    def decibel(x: Tensor) -> Tensor:
        return 10.0 * (x / peak).clamp(min=_FLOOR).log10()

    level = decibel(basis)
    std, mean = torch.std_mean(level, (1, 2), keepdim=True)
    if centre:
        mean = level.mean(1, keepdim=True)
    return (decibel(power) - mean) / (std + 1e-6)


def normalise_blocks(power: Tensor, block: int, centre: bool = False) -> Tensor:
    """Normalises a whole sequence of frames block by block, as ``BlockStream`` does in a stream.

    What is left after the last whole block takes its statistics from the last ``block`` frames of
    all.

    Args:
        power: (B, T, n_mels).
        block: frames.
        centre: see ``normalise``.
    """
    length = power.shape[1]
    whole = length // block * block
    parts = (
        [normalise(part, None, centre) for part in power[:, :whole].split(block, 1)]
        if whole
        else []
    )
    if whole < length:
        parts.append(normalise(power[:, whole:], power[:, max(0, length - block) :], centre))
    return torch.cat(parts, 1)


class BlockStream:
    """Turns a stream of samples into blocks of normalised mel frames, in constant memory.

    The frames are those of the whole recording: windows overlap the chunks' borders, and only its
    two ends are reflected. Chunks may be of any length.

    Args:
        mel: the mel spectrogram.
        block: frames per block.
        centre: see ``normalise``.
    """

    def __init__(self, mel: MelPower, block: int, centre: bool = False) -> None:
        if mel.hop > mel.n_fft:
            raise ConfigError(f"a stream needs hop ≤ n_fft, got {mel.hop} and {mel.n_fft}")
        self.mel, self.block, self.centre = mel, check_positive("block", block), centre
        window = mel.spectrogram.window
        self._samples, self._last = window.new_zeros(1, 0), window.new_zeros(1, 0)
        self._started = False
        self._before = window.new_zeros(1, 0, mel.n_mels)

    def push(self, chunk: Tensor) -> list[Tensor]:
        """Takes samples (N,) and returns the blocks (1, block, n_mels) that are complete now."""
        half = self.mel.n_fft // 2
        chunk = chunk[None].to(self._samples)
        self._samples = torch.cat((self._samples, chunk), 1)
        self._last = torch.cat((self._last, chunk), 1)[:, -half - 1 :]
        if not self._started:
            if self._samples.shape[1] < self.mel.n_fft:
                return []
            self._samples = torch.cat((self._samples[:, 1 : half + 1].flip(1), self._samples), 1)
            self._started = True
        return self._advance(self._samples)

    def _advance(self, samples: Tensor) -> list[Tensor]:
        """Makes blocks of all windows in ``samples`` whose block is complete, and keeps the
        rest."""
        mel, ready = self.mel, []
        while True:
            # A whole block's windows at a time: the work is cut in the same places whatever the
            # chunks are.
            needed = (self.block - 1) * mel.hop + mel.n_fft
            if samples.shape[1] < needed:
                break
            frames = mel.frames(samples[:, :needed])
            samples = samples[:, self.block * mel.hop :]
            ready.append(normalise(frames, None, self.centre))
            self._before = frames
        self._samples = samples
        return ready

    def finish(self) -> list[Tensor]:
        """Returns the last blocks, of at most ``block`` frames; nothing for no samples at all."""
        mel, half = self.mel, self.mel.n_fft // 2
        samples = self._samples
        if not self._started:
            if not samples.shape[1]:
                return []
            samples = nn.functional.pad(samples, (0, max(0, mel.shortest - samples.shape[1])))
            self._last = samples[:, -half - 1 :]
            samples = torch.cat((samples[:, 1 : half + 1].flip(1), samples), 1)
        samples = torch.cat((samples, self._last[:, :-1].flip(1)), 1)
        ready = self._advance(samples)
        if self._samples.shape[1] >= mel.n_fft:
            rest = mel.frames(self._samples)
            basis = torch.cat((self._before, rest), 1)[:, -self.block :]
            ready.append(normalise(rest, basis, self.centre))
        return ready
