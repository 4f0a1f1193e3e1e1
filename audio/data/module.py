"""The data module of songs: labelled folders, split by song, balanced batches by step, whole
evaluation."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from longseq.audio.data.folder import PARTS, Recording, list_recordings, split_recordings
from longseq.audio.data.reading import read_audio, read_excerpt
from longseq.core.checks import check_positive
from longseq.core.errors import ConfigError, DataError
from longseq.core.training.hyper import BaseData
from longseq.core.training.loader import step_dataloader

Batch = dict[str, Any]


class SongReader:
    """Reads excerpts; of the recordings for which there is room, it keeps all that it decoded.

    Which they are is settled at the start, so that an excerpt does not depend on what was read
    before.

    Args:
        sample_rate: Hz.
        recordings: that may be kept, the first that fit.
        cache_mb: room for decoded songs in MB; 0 for none.
    """

    def __init__(
        self, sample_rate: int, recordings: Sequence[Recording] = (), cache_mb: int = 0
    ) -> None:
        self.sample_rate, room = sample_rate, cache_mb * 1_000_000.0
        self._kept: set[Path] = set()
        for item in recordings:
            room -= item.seconds * sample_rate * 4
            if room < 0:
                break
            self._kept.add(item.path)
        self._cache: dict[Path, np.ndarray] = {}

    def excerpt(self, item: Recording, start: float, seconds: float) -> Tensor:
        """Returns samples (N,), padded with zeros where the recording ends.

        Args:
            item: the recording.
            start: s.
            seconds: length, s.
        """
        samples = round(seconds * self.sample_rate)
        if item.path in self._kept and item.path not in self._cache:
            self._cache[item.path] = read_audio(item.path, self.sample_rate)
        whole = self._cache.get(item.path)
        if whole is None:
            piece = read_excerpt(item.path, start, seconds, self.sample_rate)
        else:
            first = min(round(start * self.sample_rate), max(0, len(whole) - samples))
            piece = whole[first : first + samples]
        piece = piece[:samples]
        return torch.from_numpy(np.pad(piece, (0, samples - len(piece))))


class TrainingClips:
    """Batch n as a pure function of n: one half real excerpts, the other synthetic ones, of the
    same places.

    A pair shares song and place where the song has both versions, so that only the synthesis
    differs.

    Args:
        recordings: of the training part.
        reader: reads them.
        seconds: of an excerpt.
        batch_size: excerpts per batch and process; even.
        seed: of the draws.
        rank: of this process.
    """

    def __init__(
        self,
        recordings: Sequence[Recording],
        reader: SongReader,
        seconds: float,
        batch_size: int,
        seed: int,
        rank: int = 0,
    ) -> None:
        if batch_size < 2 or batch_size % 2:
            raise ConfigError(
                f"batch_size must be even (half real, half synthetic), got {batch_size}"
            )
        self.real = [item for item in recordings if not item.fake]
        self.fakes = [item for item in recordings if item.fake]
        self.methods = sorted({item.method for item in self.fakes})
        self.reader, self.seconds, self.batch_size = reader, seconds, batch_size
        self.seed, self.rank = seed, rank

    def __getitem__(self, step: int) -> Batch:
        rng = np.random.default_rng((self.seed, step, self.rank))
        clips, targets = [], []
        for _ in range(self.batch_size // 2):
            real = self.real[rng.integers(len(self.real))]
            # Methods are drawn alike, however many files each has.
            method = self.methods[rng.integers(len(self.methods))]
            own = [item for item in self.fakes if item.method == method]
            same = [item for item in own if item.song == real.song] or own
            fake = same[rng.integers(len(same))]
            start = rng.uniform(0, max(0.0, min(real.seconds, fake.seconds) - self.seconds))
            for item in (real, fake):
                clips.append(self.reader.excerpt(item, start, self.seconds))
                targets.append(float(item.fake))
        return {"audio": torch.stack(clips), "target": torch.tensor(targets)}


def windows(item: Recording, seconds: float) -> Iterator[tuple[float, float]]:
    """Yields (start, length) in s of the windows of a recording, a short rest left out.

    Args:
        item: the recording.
        seconds: of a window; a recording that is shorter is one window.
    """
    if item.seconds <= seconds:
        yield 0.0, item.seconds
        return
    for i in range(int(item.seconds / seconds + 1e-6)):
        yield i * seconds, seconds


class EvaluationClips(Dataset[Batch]):
    """All windows of recordings, in batches of windows of one length.

    Args:
        recordings: of a part.
        reader: reads them.
        seconds: of a window.
        batch_size: windows at once.
    """

    def __init__(
        self, recordings: Sequence[Recording], reader: SongReader, seconds: float, batch_size: int
    ) -> None:
        self.recordings, self.reader, self.seconds = list(recordings), reader, seconds
        places = [
            (i, *place)
            for i, item in enumerate(self.recordings)
            for place in windows(item, seconds)
        ]
        places.sort(key=lambda place: (-place[2], place[0], place[1]))
        self.batches: list[list[tuple[int, float, float]]] = []
        for place in places:
            last = self.batches[-1] if self.batches else []
            if last and last[0][2] == place[2] and len(last) < batch_size:
                last.append(place)
            else:
                self.batches.append([place])

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> Batch:
        places = self.batches[index]
        items = [self.recordings[i] for i, _, _ in places]
        clips = [
            self.reader.excerpt(item, start, length)
            for item, (_, start, length) in zip(items, places)
        ]
        return {
            "audio": torch.stack(clips),
            "target": torch.tensor([float(item.fake) for item in items]),
            "recording": torch.tensor([i for i, _, _ in places]),
        }


class SongData(BaseData):
    """Songs from a folder with ``real/`` and ``fake/<method>/``, split by song.

    Recordings of one song (the same file stem, whatever the folder) are in one part only, so that a
    song never leaks from training to test. Files that cannot be read are counted, listed and left
    out.

    Args:
        source: the folder.
        holdout: methods that only the test sees.
        clip_seconds: length of training excerpts, s.
        eval_seconds: length of evaluation windows, s.
        batch_size: excerpts a training batch; even.
        eval_batch_size: windows an evaluation batch; results do not depend on it.
        steps_per_epoch: training batches that count as an epoch.
        valid_fraction: share of the songs for validation.
        test_fraction: share of the songs for the test.
        seed: of split and draws.
        sample_rate: Hz; the model's.
        cache_mb: memory for decoded songs, MB per process; 0 decodes every excerpt anew.
        num_workers: processes that make batches.
    """

    def __init__(
        self,
        source: str,
        holdout: Sequence[str] = (),
        clip_seconds: float = 5.12,
        eval_seconds: float = 30.0,
        batch_size: int = 16,
        eval_batch_size: int = 4,
        steps_per_epoch: int = 100,
        valid_fraction: float = 0.2,
        test_fraction: float = 0.25,
        seed: int = 0,
        sample_rate: int = 16000,
        cache_mb: int = 1000,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        if not clip_seconds > 0 or not eval_seconds > 0 or cache_mb < 0:
            raise ConfigError(
                "clip_seconds and eval_seconds must be positive and cache_mb not negative"
            )
        self.source, self.holdout = source, [holdout] if isinstance(holdout, str) else list(holdout)
        self.clip_seconds, self.eval_seconds = clip_seconds, eval_seconds
        self.batch_size = check_positive("batch_size", batch_size)
        self.eval_batch_size = check_positive("eval_batch_size", eval_batch_size)
        self.steps_per_epoch = check_positive("steps_per_epoch", steps_per_epoch)
        self.valid_fraction, self.test_fraction = valid_fraction, test_fraction
        self.seed, self.sample_rate = seed, check_positive("sample_rate", sample_rate)
        self.num_workers, self.cache_mb = num_workers, cache_mb
        self.reader = SongReader(sample_rate)
        self._parts: dict[str, list[Recording]] | None = None

    @property
    def parts(self) -> dict[str, list[Recording]]:
        """The recordings of "train", "valid" and "test"; listed, checked and split at first use."""
        if self._parts is None:
            found, bad = list_recordings(self.source)
            list_bad(bad, len(found) + len(bad))
            self._parts = split_recordings(
                found, self.valid_fraction, self.test_fraction, self.seed, self.holdout
            )
            ordered = [item for part in ("train", "valid") for item in self._parts[part]]
            self.reader = SongReader(self.sample_rate, ordered, self.cache_mb)
        return self._parts

    @property
    def methods(self) -> list[str]:
        """Synthesis methods of the training part."""
        return sorted({item.method for item in self.parts["train"] if item.fake})

    @property
    def songs(self) -> dict[str, list[str]]:
        """Names of the songs of every part."""
        return {part: sorted({item.song for item in self.parts[part]}) for part in PARTS}

    def facts(self) -> dict[str, Any]:
        """Returns the methods that are trained on, and the songs of every part."""
        return {"methods": list(self.methods), "songs": self.songs}

    def setup(self, stage: str | None = None) -> None:
        """Lists and checks the folder, so that bad input fails before training starts."""
        parts = self.parts
        if stage in (None, "test") and not parts["test"]:
            raise DataError("has no test songs", path=self.source, hint="set data.test_fraction")

    def train_dataloader(self) -> Any:
        """Returns the loader of training batches, which resumes at any step."""
        rank = self.trainer.global_rank if self.trainer else 0
        clips = TrainingClips(
            self.parts["train"], self.reader, self.clip_seconds, self.batch_size, self.seed, rank
        )
        return step_dataloader(clips, self.trainer, self.steps_per_epoch, self.num_workers)

    def evaluation(self, part: str) -> Any:
        """Returns the loader of all windows of a part; with several processes, of every k-th
        recording.

        Args:
            part: "train", "valid" or "test".
        """
        mine = self.parts[part]
        if self.trainer is not None and self.trainer.world_size > 1:
            mine = mine[self.trainer.global_rank :: self.trainer.world_size]
        if not mine:
            return []
        clips = EvaluationClips(mine, self.reader, self.eval_seconds, self.eval_batch_size)
        return DataLoader(clips, batch_size=None, num_workers=self.num_workers)

    def val_dataloader(self) -> Any:
        """Returns the validation windows."""
        return self.evaluation("valid")

    def test_dataloader(self) -> Any:
        """Returns the test windows."""
        return self.evaluation("test")


def list_bad(bad: Sequence[DataError], total: int) -> None:
    """Says on stderr which files were left out and why.

    Args:
        bad: the reasons.
        total: number of files.
    """
    if bad:
        print(
            f"note: {len(bad)} of {total} files cannot be used and are left out:", file=sys.stderr
        )
        for error in bad[:10]:
            print(f"  {error}", file=sys.stderr)
        if len(bad) > 10:
            print(f"  and {len(bad) - 10} more", file=sys.stderr)
