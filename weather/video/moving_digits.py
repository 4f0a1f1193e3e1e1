"""Moving digits: small videos of bouncing hand-written digits, from scikit-learn's or IDX files."""

from __future__ import annotations

import gzip
import zlib
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from longseq.core.checks import check_positive
from longseq.core.errors import ConfigError, DataError
from longseq.core.files import require_file
from longseq.core.training.hyper import BaseData
from longseq.core.training.loader import step_dataloader

_PARTS = ("train", "valid", "test")


@lru_cache(maxsize=4)
def load_digits(source: str = "digits") -> np.ndarray:
    """Returns grey images float32 (N, h, w) in [0, 1].

    Args:
        source: "digits" for scikit-learn's 1,797 digits of 8 × 8, or an IDX file of images (perhaps
            .gz).

    Raises:
        DataError: if the file is no IDX file of images.
    """
    if source == "digits":
        from sklearn.datasets import load_digits as bundled

        return (bundled().images / 16).astype(np.float32)
    file = require_file(source, "IDX file")
    try:
        content = file.read_bytes()
        content = gzip.decompress(content) if file.suffix == ".gz" else content
    except (OSError, EOFError, zlib.error) as error:
        raise DataError("the IDX file is truncated or damaged", path=file) from error
    if content[:4] != b"\x00\x00\x08\x03" or len(content) < 16:
        raise DataError("is not an IDX file of images", path=file)
    count, height, width = (int.from_bytes(content[i : i + 4], "big") for i in (4, 8, 12))
    if len(content) != 16 + count * height * width or not count:
        raise DataError("the IDX file is truncated", path=file, hint="copy it again")
    pixels = np.frombuffer(content, np.uint8, offset=16).reshape(count, height, width)
    return (pixels / 255).astype(np.float32)


def make_video(
    rng: np.random.Generator, images: np.ndarray, frames: int, size: int, digits: int, speed: int
) -> np.ndarray:
    """Returns a video float32 (L, size, size): digits that move straight and bounce off the walls.

    Args:
        rng: draws the digits, their places and velocities.
        images: (N, h, w) to draw from.
        frames: L.
        size: side of a frame; at least that of the images.
        digits: number of digits.
        speed: greatest number of pixels per frame, along each axis; the least is 1.
    """
    height, width = images.shape[1:]
    video = np.zeros((frames, size, size), np.float32)
    for _ in range(digits):
        image = images[rng.integers(len(images))]
        rooms = (size - height, size - width)
        paths = []
        for room in rooms:
            # Real velocities, so that hardly any video repeats itself, drawn at whole pixels.
            start, velocity = rng.uniform(0, room), rng.uniform(1, speed) * rng.choice((-1, 1))
            # A bounce is a reflection: positions run round a circle of twice the room.
            where = (
                np.mod(start + velocity * np.arange(frames), 2 * room) if room else np.zeros(frames)
            )
            where = np.minimum(where, 2 * room - where)
            paths.append(np.floor(where + 0.5).astype(int))
        for frame, y, x in zip(video, *paths):
            patch = frame[y : y + height, x : x + width]
            np.maximum(patch, image, out=patch)
    return video


class DigitVideos(Dataset[dict[str, Tensor]]):
    """Batch n of videos as a pure function of n, or of an item where ``batch_size`` is None.

    Args:
        images: (N, h, w) to draw from.
        frames: of a video.
        size: side of a frame.
        digits: in a video.
        speed: see ``make_video``.
        seed: first part of every video's seed.
        count: number of items; None for no end.
        batch_size: videos an item.
        rank: of this process.
    """

    def __init__(
        self,
        images: np.ndarray,
        frames: int,
        size: int,
        digits: int,
        speed: int,
        seed: int,
        count: int | None = None,
        batch_size: int | None = None,
        rank: int = 0,
    ) -> None:
        self.images, self.count, self.batch_size, self.seed, self.rank = (
            images,
            count,
            batch_size,
            seed,
            rank,
        )
        self.shape = (frames, size, digits, speed)

    def __len__(self) -> int:
        assert self.count is not None
        return self.count

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        numbers = [index] if self.batch_size is None else range(self.batch_size)
        videos = []
        for number in numbers:
            key = (
                (self.seed, number)
                if self.batch_size is None
                else (self.seed, index, self.rank, number)
            )
            videos.append(make_video(np.random.default_rng(key), self.images, *self.shape))
        made = torch.from_numpy(np.stack(videos))[:, :, None]
        return {"video": made if self.batch_size is not None else made[0]}


class MovingDigits(BaseData):
    """Videos of bouncing digits; training, validation and test use different images.

    Args:
        source: "digits" (scikit-learn's) or an IDX file of images.
        size: side of a frame.
        digits: in a video.
        speed: greatest number of pixels per frame along each axis.
        frames: of a training video.
        context: frames that are given before the prediction begins.
        horizon: frames that follow the context in validation and test.
        batch_size: videos a training step.
        eval_batch_size: videos at once in validation and test.
        eval_videos: number of videos of validation and test.
        steps_per_epoch: batches between two ends of an epoch.
        seed: of everything random.
        num_workers: processes that make batches.
    """

    def __init__(
        self,
        source: str = "digits",
        size: int = 16,
        digits: int = 1,
        speed: int = 2,
        frames: int = 30,
        context: int = 15,
        horizon: int = 40,
        batch_size: int = 8,
        eval_batch_size: int = 16,
        eval_videos: int = 16,
        steps_per_epoch: int = 100,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        sizes: dict[str, Any] = {"size": size, "digits": digits, "speed": speed, "frames": frames}
        sizes |= {"context": context, "horizon": horizon, "batch_size": batch_size}
        sizes |= {"eval_batch_size": eval_batch_size, "eval_videos": eval_videos}
        for name, value in sizes.items():
            check_positive(name, value)
        if frames <= context:
            raise ConfigError(f"data.frames ({frames}) must exceed data.context ({context})")
        self.source, self.size, self.digits, self.speed = source, size, digits, speed
        self.frames, self.context, self.horizon = frames, context, horizon
        self.batch_size, self.eval_batch_size, self.eval_videos = (
            batch_size,
            eval_batch_size,
            eval_videos,
        )
        self.steps_per_epoch, self.seed, self.num_workers = steps_per_epoch, seed, num_workers

    def images(self, part: str) -> np.ndarray:
        """Returns the images of a part: of every ten, eight are for training, one each for the
        others.

        Args:
            part: "train", "valid" or "test".
        """
        found = load_digits(self.source if self.source == "digits" else str(Path(self.source)))
        if max(found.shape[1:]) > self.size:
            raise ConfigError(
                f"data.size ({self.size}) is smaller than the digits of {found.shape[1]} × "
                f"{found.shape[2]}"
            )
        if len(found) < 10:
            raise DataError(f"has {len(found)} images, 10 are needed", path=self.source)
        turn = np.arange(len(found)) % 10
        return found[(turn < 8) if part == "train" else turn == 7 + _PARTS.index(part)]

    def videos(self, part: str, count: int, frames: int) -> DigitVideos:
        """Returns videos of a part, one an item.

        Args:
            part: "train", "valid" or "test".
            count: number of videos.
            frames: of a video.
        """
        seed = self.seed * 3 + _PARTS.index(part)
        return DigitVideos(
            self.images(part), frames, self.size, self.digits, self.speed, seed, count
        )

    def setup(self, stage: str | None = None) -> None:
        """Reads the images, so that bad input fails before training starts."""
        self.images("train")

    def train_dataloader(self) -> Any:
        """Returns the loader of training videos, which resumes at any step."""
        rank = self.trainer.global_rank if self.trainer else 0
        made = DigitVideos(
            self.images("train"),
            self.frames,
            self.size,
            self.digits,
            self.speed,
            self.seed * 3,
            None,
            self.batch_size,
            rank,
        )
        return step_dataloader(made, self.trainer, self.steps_per_epoch, self.num_workers)

    def _evaluation(self, part: str) -> Any:
        videos = self.videos(part, self.eval_videos, self.context + self.horizon)
        return DataLoader(videos, self.eval_batch_size, num_workers=self.num_workers)

    def val_dataloader(self) -> Any:
        """Returns the validation videos."""
        return self._evaluation("valid")

    def test_dataloader(self) -> Any:
        """Returns the test videos."""
        return self._evaluation("test")
