"""Conversations of known speakers, made as they are needed from a folder of single voices."""

from __future__ import annotations

from typing import Any

import numpy as np

from longseq.audio.separation.mixtures import Drawn, SpeechMixtures, Voices
from longseq.audio.speakers.loconet import HOP
from longseq.core.errors import ConfigError

TURN, GAP, ENROLLED = (0.8, 2.5), (-0.5, 0.5), 3.0  # s: lengths of a turn, pauses or overlaps
_SPEECH = 1e-2  # of a turn's mean power: a frame below is a pause


def active_frames(voice: np.ndarray, hop: int) -> np.ndarray:
    """Returns the frames in which a voice is heard, bool (T,).

    Args:
        voice: it alone, samples (N,).
        hop: samples of a frame.
    """
    power = np.square(voice[: len(voice) // hop * hop].reshape(-1, hop)).mean(1)
    heard = power[power > 0]
    return power > _SPEECH * heard.mean() if len(heard) else np.zeros(len(power), bool)


def converse(
    voices: Voices, count: int, samples: int, rate: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns a conversation (N,), pieces of the candidates' voices (S, M), and who is heard in
    which frame, (S, T).

    Turns of 0.8 to 2.5 s follow each other, up to half a second apart or over each other. One
    candidate in four is silent throughout. What a candidate is known by is drawn from the same
    recordings as what is heard, so that by chance it can be the same one.

    Args:
        voices: to draw from.
        count: candidates S.
        samples: N.
        rate: Hz.
        rng: draws.
    """
    chosen = rng.permutation(len(voices.names))[:count]
    talking = [i for i in range(count) if rng.random() > 0.25] or [int(rng.integers(count))]
    gains = 0.1 * 10 ** (rng.uniform(-3, 3, count) / 20)
    lines = np.zeros((count, samples), np.float32)
    start, last = int(rng.uniform(0, 0.5) * rate), -1
    while start < samples:
        others = [i for i in talking if i != last] or talking
        last = int(rng.choice(others))
        length = min(int(rng.uniform(*TURN) * rate), samples - start)
        if length < rate // 10:
            break
        piece = voices.piece(int(chosen[last]), length, rng)
        lines[last, start : start + length] += gains[last] * piece
        start += max(rate // 10, length + int(rng.uniform(*GAP) * rate))
    known = [voices.piece(int(i), round(ENROLLED * rate), rng) for i in chosen]
    hop = round(HOP * rate)
    heard = np.stack([active_frames(line, hop) for line in lines])
    noise = 1e-3 * rng.standard_normal(samples).astype(np.float32)
    return lines.sum(0) + noise, 0.1 * np.stack(known), heard


class Conversations(Drawn):
    """Batch n of conversations.

    Args:
        count: candidates.
        samples: of a conversation.
        rate: Hz.
        *drawn: the arguments of ``Drawn``.
    """

    def __init__(self, count: int, samples: int, rate: int, *drawn: Any) -> None:
        super().__init__(*drawn)
        self.count, self.samples, self.rate = count, samples, rate

    def example(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Returns a conversation, what its candidates are known by, and who is heard when."""
        audio, known, heard = converse(self.voices, self.count, self.samples, self.rate, rng)
        return {"audio": audio, "voices": known.astype(np.float32), "heard": heard}


class SpeechConversations(SpeechMixtures):
    """Conversations from a folder with a folder of recordings for each speaker, split by speaker.

    Args:
        source: the folder.
        voices: candidates in a conversation.
        seconds: length of a conversation, s.
        **data: the remaining arguments of ``SpeechMixtures``.
    """

    fits = ("sample_rate",)

    def __init__(
        self,
        source: str,
        voices: int = 3,
        seconds: float = 8.0,
        batch_size: int = 4,
        eval_batch_size: int = 8,
        steps_per_epoch: int = 100,
        n_valid: int = 40,
        n_test: int = 100,
        valid_fraction: float = 0.2,
        test_fraction: float = 0.25,
        seed: int = 0,
        sample_rate: int = 8000,
        num_workers: int = 0,
    ) -> None:
        super().__init__(
            source,
            voices,
            seconds,
            0.0,
            batch_size,
            eval_batch_size,
            steps_per_epoch,
            n_valid,
            n_test,
            valid_fraction,
            test_fraction,
            seed,
            sample_rate,
            num_workers,
        )
        if seconds < 1:
            raise ConfigError(f"seconds must be at least 1, got {seconds}")

    def model_arguments(self) -> dict[str, Any]:
        """Returns the sample rate."""
        return {"sample_rate": self.sample_rate}

    def mixtures(self, part: str) -> Drawn:
        """Returns the conversations of a part.

        Args:
            part: "train", "valid" or "test".
        """
        samples = round(self.seconds * self.sample_rate)
        return Conversations(self.voices, samples, self.sample_rate, *self.drawn(part))
