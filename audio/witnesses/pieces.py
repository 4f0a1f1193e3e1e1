"""A recording in pieces of 20 s, the length that thresholds are settled on, and their averages."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from longseq.audio.witnesses.comb import Comb, clear_scores, find_comb
from longseq.audio.witnesses.spectrum import BINS, RATE, spectra

SECONDS = 20.0
# No song of 88 keeps its loud bins within 7.3 dB of their mean for 90% of the time; noise stays
# within 7.2, test tones and hum within 1. Of the least busy song half the blocks sound.
_STILL, _LOUD = 1.5, 40.0
_BUSY, _BLOCK, _FAINT = 0.25, 441, 1e-4


def busy(audio: np.ndarray) -> float:
    """Returns the share of blocks of 10 ms that reach -80 dB of the loudest.

    Args:
        audio: samples (N,) at 44.1 kHz.
    """
    whole = len(audio) // _BLOCK * _BLOCK
    if not whole:
        return 1.0
    peaks = np.abs(audio[:whole]).reshape(-1, _BLOCK).max(1)
    return float((peaks >= _FAINT * peaks.max()).mean())


class Averages:
    """Means over the pieces of a recording, by length, in constant memory."""

    def __init__(self) -> None:
        self._samples, self._busy = 0.0, 0.0
        self._level, self._steady, self._clear = np.zeros(BINS), np.zeros(BINS), np.zeros(())

    def add(self, audio: np.ndarray) -> tuple[np.ndarray, float]:
        """Takes a piece in; returns its level, dB (8193,), and the score of its own moved comb.

        Args:
            audio: samples (N,) at 44.1 kHz. If they are not finite, neither is the score.
        """
        level, steady = (part.astype(np.float64) for part in spectra(audio))
        finite = bool(np.isfinite(level).all())
        clear = clear_scores(level, steady) if finite else np.full((), np.nan)
        weight = float(len(audio))
        self._level = self._level + weight * level
        self._steady = self._steady + weight * steady
        self._clear = self._clear + weight * clear
        self._samples += weight
        self._busy += weight * busy(audio)
        return level, float(clear.max())

    @property
    def level(self) -> np.ndarray | None:
        """Mean level of every bin, dB (8193,); None without pieces or if one is not finite."""
        if not self._samples or not np.isfinite(self._level).all():
            return None
        return self._level / self._samples

    @property
    def odd(self) -> str:
        """Why this is no music, whatever lines or phases it has; empty if it may be."""
        if self.level is None:
            return ""
        loud = self._level > self._level.max() - _LOUD * self._samples
        if np.median((self._level - self._steady)[loud]) < _STILL * self._samples:
            return "a sound that never changes, as a test tone or hum: no music"
        if self._busy < _BUSY * self._samples:
            return f"single clicks: {1 - self._busy / self._samples:.0%} of it is silent"
        return ""

    def comb(self) -> Comb:
        """Returns the clearest comb; only where there is a level."""
        level, steady, clear = (
            part / self._samples for part in (self._level, self._steady, self._clear)
        )
        return find_comb(level, steady, clear)


def cut(stream: Iterable[np.ndarray], size: int = round(SECONDS * RATE)) -> Iterator[np.ndarray]:
    """Yields pieces of a stream; what is left joins the last if it is short.

    Args:
        stream: samples (N,), chunk by chunk.
        size: of a piece, samples.
    """
    waiting, count = [], 0
    held: np.ndarray | None = None
    for chunk in stream:
        waiting.append(chunk)
        count += len(chunk)
        while count >= size:
            whole = np.concatenate(waiting)
            if held is not None:
                yield held
            held, rest = whole[:size], whole[size:]
            waiting, count = [rest], len(rest)
    rest = np.concatenate(waiting) if count else np.zeros(0, np.float32)
    if held is not None and len(rest) < size // 4:
        yield np.concatenate((held, rest))
        return
    if held is not None:
        yield held
    if len(rest):
        yield rest
