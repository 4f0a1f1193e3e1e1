"""Mixtures of speakers, made as they are needed from a folder of single voices."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from longseq.audio.data.listing import list_audio
from longseq.audio.data.reading import read_audio
from longseq.audio.separation.voices import centred
from longseq.core.checks import check_positive
from longseq.core.errors import ConfigError, DataError
from longseq.core.training.hyper import BaseData
from longseq.core.training.loader import step_dataloader

Batch = dict[str, Tensor]
PARTS = ("train", "valid", "test")
_QUIET = 1e-3  # of a recording's root mean square: a piece below is silence


def speakers_of(source: str | Path) -> dict[str, list[Path]]:
    """Returns the files of every speaker: a folder for each.

    Args:
        source: folder with a folder of recordings for each speaker, of any depth inside.

    Raises:
        DataError: if there are no such folders.
    """
    root = Path(source)
    files, _ = list_audio(root)
    found: dict[str, list[Path]] = {}
    for file in files:
        parts = file.relative_to(root).parts if root.is_dir() else ()
        if len(parts) > 1:
            found.setdefault(parts[0], []).append(file)
    if not found:
        raise DataError(
            "holds no recordings of speakers", path=root, hint="expected <speaker>/<recording>.wav"
        )
    return dict(sorted(found.items()))


class Voices:
    """Recordings of a part's speakers, in memory.

    Args:
        files: of every speaker.
        rate: Hz.
    """

    def __init__(self, files: dict[str, list[Path]], rate: int) -> None:
        self.names, self._pause = list(files), rate // 4
        self.recordings = [self._read(name, files[name], rate) for name in self.names]

    @staticmethod
    def _read(name: str, files: Sequence[Path], rate: int) -> list[np.ndarray]:
        heard = []
        for file in files:
            audio, power = centred(read_audio(file, rate))
            if not np.isfinite(power):
                raise DataError("has samples that are not finite", path=file)
            if power > 0:
                heard.append((audio / power).astype(np.float32))
        if not heard:
            raise DataError("every recording of this speaker is silent", path=files[0].parent)
        return heard

    def piece(
        self, speaker: int, samples: int, rng: np.random.Generator, speed: float = 0.0
    ) -> np.ndarray:
        """Returns a piece of a speaker's recordings that is not silent, float32 (samples,).

        A recording that is shorter is followed by others of the speaker, after pauses of at most a
        quarter of a second, as words of a list are.

        Args:
            speaker: its number.
            samples: length.
            rng: draws recording, place and speed.
            speed: the piece is played at a speed of 1 ± this, its pitch and formants with it, as
                another speaker's would be.
        """
        if speed:
            import soxr

            factor = rng.uniform(1 - speed, 1 + speed)
            source = self.piece(speaker, math.ceil((samples + 2) * factor), rng)
            piece = soxr.resample(source, factor, 1.0)[:samples]
            power = float(np.sqrt(np.mean(np.square(piece))))
            piece, power = (piece, power) if power > _QUIET else (source[:samples], 1.0)
            return (piece / power).astype(np.float32)
        own = self.recordings[speaker]
        for _ in range(20):
            audio = own[rng.integers(len(own))]
            if len(audio) < samples:
                audio = self._joined(own, audio, samples, rng)
            first = rng.integers(len(audio) - samples + 1)
            piece = audio[first : first + samples]
            power = float(np.sqrt(np.mean(np.square(piece))))
            if power > _QUIET:
                return (piece / power).astype(np.float32)
        raise DataError(f"speaker {self.names[speaker]!r} is silent nearly everywhere")

    def _joined(
        self, own: list[np.ndarray], audio: np.ndarray, samples: int, rng: np.random.Generator
    ) -> np.ndarray:
        """Returns recordings one after the other, at least ``samples`` long: the first begins at a
        random place, or later."""
        late = rng.integers(-len(audio) + 1, self._pause + 1)
        parts = [np.zeros(max(late, 0), np.float32), audio[max(-late, 0) :]]
        length = sum(map(len, parts))
        while length < samples:
            pause = np.zeros(rng.integers(self._pause + 1), np.float32)
            parts += [pause, own[rng.integers(len(own))]]
            length += len(parts[-1]) + len(parts[-2])
        return np.concatenate(parts)


def draw(
    voices: Voices,
    count: int,
    samples: int,
    level: float,
    rng: np.random.Generator,
    speed: float = 0.0,
    shares: np.ndarray | None = None,
    signs: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns a mixture (N,) and its voices (S, N), the voices' levels ± ``level`` / 2 dB apart.

    Args:
        voices: to draw from.
        count: number S of different speakers.
        samples: N.
        level: greatest difference, dB.
        rng: draws.
        speed: see ``Voices.piece``.
        shares: how often each speaker is drawn first, of sum one; all alike if None.
        signs: every voice is multiplied by 1 or -1, drawn for each: a microphone may have either.
    """
    everyone = len(voices.names)
    if shares is None:
        chosen = rng.permutation(everyone)[:count]
    else:
        chosen = rng.choice(everyone, count, replace=False, p=shares)
    gains = 10 ** (rng.uniform(-level / 2, level / 2, count) / 20)
    parts = [gain * voices.piece(int(i), samples, rng, speed) for gain, i in zip(gains, chosen)]
    stacked = np.stack(parts).astype(np.float32) * np.float32(0.1)
    if signs:  # drawn last, so that the pieces are the same with and without
        stacked *= rng.choice(np.float32([-1, 1]), (count, 1))
    return stacked.sum(0), stacked


class Drawn(Dataset[Batch], ABC):
    """Batch n of examples as a pure function of n: every example is drawn by its own number.

    Args:
        voices: of a part.
        batch_size: examples.
        key: of the draws; parts and ranks have different ones.
        length: number of examples in all; None for no end.
    """

    def __init__(
        self, voices: Voices, batch_size: int, key: tuple[int, ...], length: int | None = None
    ) -> None:
        self.voices, self.batch_size, self.key, self.length = voices, batch_size, key, length

    def __len__(self) -> int:
        return -(-(self.length or 0) // self.batch_size)

    def __getitem__(self, step: int) -> Batch:
        first = step * self.batch_size
        stop = first + self.batch_size
        numbers = range(first, stop if self.length is None else min(stop, self.length))
        made = [self.example(np.random.default_rng((*self.key, number))) for number in numbers]
        return {name: torch.from_numpy(np.stack([one[name] for one in made])) for name in made[0]}

    @abstractmethod
    def example(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Returns the arrays of one example, by name.

        Args:
            rng: draws.
        """


class Mixtures(Drawn):
    """Batch n of mixtures.

    Args:
        count: speakers in a mixture.
        samples: of a mixture.
        level: see ``draw``.
        speed: see ``Voices.piece``.
        weights: see ``SpeechMixtures``.
        signs: see ``draw``.
        *drawn: the arguments of ``Drawn``.
    """

    def __init__(
        self,
        count: int,
        samples: int,
        level: float,
        speed: float,
        weights: Mapping[str, float],
        signs: bool,
        *drawn: Any,
    ) -> None:
        super().__init__(*drawn)
        self.count, self.samples, self.level, self.speed = count, samples, level, speed
        self.signs, self.shares = signs, None
        if weights:
            own = [
                next((weight for start, weight in weights.items() if name.startswith(start)), 1.0)
                for name in self.voices.names
            ]
            self.shares = np.array(own) / sum(own)

    def example(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Returns a mixture and its voices."""
        of = (self.voices, self.count, self.samples, self.level)
        mixture, voices = draw(*of, rng, self.speed, self.shares, self.signs)
        return {"mixture": mixture, "voices": voices}


class SpeechMixtures(BaseData):
    """Mixtures of speakers from a folder with a folder of recordings for each, split by speaker.

    In training every voice has a sign of its own, drawn for each mixture.

    Args:
        source: the folder.
        voices: speakers in a mixture.
        seconds: length of a mixture, s.
        level: greatest difference of the voices' levels, dB.
        batch_size: mixtures per training batch.
        eval_batch_size: mixtures per evaluation batch; results do not depend on it.
        steps_per_epoch: training batches that count as an epoch.
        n_valid: mixtures of the validation.
        n_test: mixtures of the test.
        valid_fraction: share of the speakers for validation.
        test_fraction: share of the speakers for the test.
        seed: of split and draws.
        sample_rate: Hz.
        num_workers: processes that make batches.
        speed: training pieces are played at a speed of 1 ± this, drawn for each: more speakers than
            the folder has.
        weights: how often speakers whose names begin so are drawn in training, as a multiple of the
            others: {"espeak": 0.5}.
    """

    fits = ("voices", "sample_rate")

    def __init__(
        self,
        source: str,
        voices: int = 2,
        seconds: float = 2.0,
        level: float = 5.0,
        batch_size: int = 4,
        eval_batch_size: int = 8,
        steps_per_epoch: int = 100,
        n_valid: int = 60,
        n_test: int = 200,
        valid_fraction: float = 0.2,
        test_fraction: float = 0.25,
        seed: int = 0,
        sample_rate: int = 8000,
        num_workers: int = 0,
        speed: float = 0.0,
        weights: dict[str, float] | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= speed < 1:
            raise ConfigError(f"speed must be at least 0 and below 1, got {speed}")
        if not seconds > 0 or not level >= 0:
            raise ConfigError(
                f"seconds must be positive and level not negative, got {seconds} and {level}"
            )
        self.source, self.seconds, self.level = source, seconds, level
        self.voices = check_positive("voices", voices)
        self.batch_size = check_positive("batch_size", batch_size)
        self.eval_batch_size = check_positive("eval_batch_size", eval_batch_size)
        self.steps_per_epoch = check_positive("steps_per_epoch", steps_per_epoch)
        self.sizes = {"valid": n_valid, "test": n_test}
        self.shares = {"valid": valid_fraction, "test": test_fraction}
        self.seed, self.sample_rate = seed, check_positive("sample_rate", sample_rate)
        self.num_workers, self.speed = num_workers, speed
        self.weights = dict(weights or {})
        if not all(0 < weight < math.inf for weight in self.weights.values()):
            raise ConfigError(f"weights must be positive and finite, got {self.weights}")
        self._read: dict[str, Voices] = {}
        self._files: dict[str, list[Path]] = {}

    def model_arguments(self) -> dict[str, Any]:
        """Returns the number of voices and the sample rate."""
        return {"voices": self.voices, "sample_rate": self.sample_rate}

    @property
    def files(self) -> dict[str, list[Path]]:
        """Recordings of every speaker, listed at first use."""
        self._files = self._files or speakers_of(self.source)
        return self._files

    @property
    def speakers(self) -> dict[str, list[str]]:
        """Names of the speakers of every part.

        Raises:
            DataError: if a part has fewer speakers than a mixture has voices.
        """
        names = list(self.files)
        order = [names[i] for i in np.random.default_rng(self.seed).permutation(len(names))]
        parts: dict[str, list[str]] = {}
        for part, share in self.shares.items():
            count = max(self.voices, round(share * len(names))) if share else 0
            parts[part], order = sorted(order[:count]), order[count:]
        parts["train"] = sorted(order)
        for part in PARTS:
            if len(parts[part]) < self.voices and (part == "train" or self.shares[part]):
                raise DataError(
                    f"has {len(names)} speakers: too few for mixtures of {self.voices} in every "
                    "part, with no speaker in two of them",
                    path=self.source,
                )
        return parts

    def part(self, part: str) -> Voices:
        """Returns the recordings of a part's speakers, read at first use.

        Args:
            part: "train", "valid" or "test".
        """
        if part not in self._read:
            chosen = {name: self.files[name] for name in self.speakers[part]}
            self._read[part] = Voices(chosen, self.sample_rate)
        return self._read[part]

    def setup(self, stage: str | None = None) -> None:
        """Lists the folder, so that bad input fails before training starts."""
        speakers = self.speakers
        for start in self.weights if stage in (None, "fit") else ():
            if not any(name.startswith(start) for name in self.files):
                raise ConfigError(
                    f"weights: the name of no speaker in {self.source} begins with {start!r}"
                )
        if stage in (None, "test") and not speakers["test"]:
            raise DataError("has no test speakers", path=self.source, hint="set data.test_fraction")

    def drawn(self, part: str) -> tuple[Any, ...]:
        """Returns the arguments of ``Drawn`` for a part; the examples of the training have no end.

        Args:
            part: "train", "valid" or "test".
        """
        train = part == "train"
        rank = self.trainer.global_rank if train and self.trainer else 0
        size = self.batch_size if train else self.eval_batch_size
        length = None if train else self.sizes[part]
        return self.part(part), size, (self.seed, PARTS.index(part), rank), length

    def mixtures(self, part: str) -> Drawn:
        """Returns the mixtures of a part.

        Args:
            part: "train", "valid" or "test".
        """
        samples = round(self.seconds * self.sample_rate)
        own = (self.speed, self.weights, True) if part == "train" else (0.0, {}, False)
        return Mixtures(self.voices, samples, self.level, *own, *self.drawn(part))

    def train_dataloader(self) -> Any:
        """Returns the loader of training batches, which resumes at any step."""
        mixtures = self.mixtures("train")
        return step_dataloader(mixtures, self.trainer, self.steps_per_epoch, self.num_workers)

    def _evaluation(self, part: str) -> Any:
        made = self.mixtures(part)
        ranks = self.trainer.world_size if self.trainer else 1
        own = range(self.trainer.global_rank if self.trainer else 0, len(made), ranks)
        return DataLoader(made, batch_size=None, sampler=own, num_workers=self.num_workers)

    def val_dataloader(self) -> Any:
        """Returns the validation mixtures."""
        return self._evaluation("valid")

    def test_dataloader(self) -> Any:
        """Returns the test mixtures."""
        return self._evaluation("test")
