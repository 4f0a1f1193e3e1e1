"""Conversations of known speakers, made as they are needed from a folder of single voices."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from longseq.audio.separation.mixtures import PARTS, Batch, SpeechMixtures, Voices
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


class Conversations(Dataset[Batch]):
    """Batch n of conversations as a pure function of n.

    Args:
        voices: of a part.
        count: candidates.
        samples: of a conversation.
        rate: Hz.
        batch_size: conversations.
        key: of the draws.
        length: number of conversations in all; None for no end.
    """

    def __init__(
        self,
        voices: Voices,
        count: int,
        samples: int,
        rate: int,
        batch_size: int,
        key: tuple[int, ...],
        length: int | None = None,
    ) -> None:
        self.voices, self.count, self.samples, self.rate = voices, count, samples, rate
        self.batch_size, self.key, self.length = batch_size, key, length

    def __len__(self) -> int:
        return -(-(self.length or 0) // self.batch_size)

    def __getitem__(self, step: int) -> Batch:
        stop = (step + 1) * self.batch_size
        numbers = range(
            step * self.batch_size, stop if self.length is None else min(stop, self.length)
        )
        made = [
            converse(
                self.voices,
                self.count,
                self.samples,
                self.rate,
                np.random.default_rng((*self.key, number)),
            )
            for number in numbers
        ]
        audio, known, heard = (torch.from_numpy(np.stack(each)) for each in zip(*made))
        return {"audio": audio, "voices": known.float(), "heard": heard}


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

    def mixtures(self, part: str) -> Any:
        """Returns the conversations of a part; those of the training have no end.

        Args:
            part: "train", "valid" or "test".
        """
        train = part == "train"
        rank = self.trainer.global_rank if train and self.trainer else 0
        return Conversations(
            self.part(part),
            self.voices,
            round(self.seconds * self.sample_rate),
            self.sample_rate,
            self.batch_size if train else self.eval_batch_size,
            (self.seed, PARTS.index(part), rank),
            None if train else self.sizes[part],
        )
