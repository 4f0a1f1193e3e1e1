"""Clips of a soft-edged shape that moves over a photograph among others that stand still.

A frame is I = α F + (1 - α) B with textures cut from photographs. The shapes that stand still look
like the one that moves, and belong to the background: which is which no single frame tells.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from longseq.core.checks import check_positive
from longseq.core.errors import ConfigError
from longseq.core.training.hyper import BaseData
from longseq.core.training.loader import step_dataloader
from longseq.vision.data.photographs import image_files
from longseq.vision.data.pixels import unit

MOTIONS = ("right", "left", "down", "up", "clockwise", "anticlockwise")
"""Classes of clips: how the shape moves."""
_PARTS = ("train", "valid", "test")


@lru_cache(maxsize=4)
def load_photographs(source: str) -> tuple[np.ndarray, ...]:
    """Returns photographs float32 (H, W, 3) from 0 to 1.

    Args:
        source: "sklearn" for the two that scikit-learn brings, or a folder or zip of images.

    Raises:
        DataError: if there are none.
    """
    if source == "sklearn":
        from sklearn.datasets import load_sample_images

        return tuple((one / 255).astype(np.float32) for one in load_sample_images().images)
    images = image_files(source)
    return tuple(unit(images.image(i)).permute(1, 2, 0).numpy() for i in range(len(images)))


def part_of(photograph: np.ndarray, part: str) -> np.ndarray:
    """Returns the columns of a photograph that a part may show: 60% for training, 20% for each of
    the others.

    Args:
        photograph: (H, W, 3).
        part: "train", "valid" or "test".
    """
    low, high = {"train": (0.0, 0.6), "valid": (0.6, 0.8), "test": (0.8, 1.0)}[part]
    width = photograph.shape[1]
    return photograph[:, int(low * width) : int(high * width)]


def _path(
    random: np.random.Generator, motion: int, frames: int, size: int, reach: float
) -> np.ndarray:
    """Returns the middle of a moving shape at every frame, (L, 2) as (y, x)."""
    at = np.linspace(0, 1, frames) if frames > 1 else np.zeros(1)
    if motion >= 4:
        radius = random.uniform(0.12, 0.2) * size
        room = reach + radius
        middle = random.uniform(min(room, size / 2), max(size - room, size / 2), 2)
        turn = random.uniform(0, 2 * np.pi) + (1 if motion == 4 else -1) * 1.5 * np.pi * at
        return middle + radius * np.stack([np.sin(turn), np.cos(turn)], 1)
    span = random.uniform(0.3, 0.5) * size
    axis, sign = (1, 0)[motion // 2], (1, -1)[motion % 2]
    start = random.uniform(reach, max(size - reach, reach), 2)
    start[axis] = random.uniform(reach, max(size - reach - span, reach))
    path = np.repeat(start[None], frames, 0)
    path[:, axis] += span * (at if sign > 0 else 1 - at)
    return path


class _Shape:
    """A disc, box or star with a soft edge, drawn at any place.

    Args:
        random: draws it.
        size: side of a frame.
    """

    def __init__(self, random: np.random.Generator, size: int) -> None:
        self.radius = random.uniform(0.11, 0.17) * size
        self.kind, self.turn = int(random.integers(3)), random.uniform(0, 2 * np.pi)
        self.points, self.soft = int(random.integers(3, 7)), random.uniform(0.4, 1.4)
        self.tint = random.uniform(0.5, 1.0, 3).astype(np.float32)

    def alpha(self, y: float, x: float, size: int) -> np.ndarray:
        """Returns its opacity with the middle at (y, x), float32 (size, size)."""
        rows, columns = np.arange(size)[:, None] - y, np.arange(size)[None] - x
        if self.kind == 1:
            cos, sin = np.cos(self.turn), np.sin(self.turn)
            across = np.maximum(abs(cos * rows - sin * columns), abs(sin * rows + cos * columns))
            distance = across - 0.8 * self.radius
        else:
            away = np.hypot(rows, columns)
            wave = np.cos(self.points * (np.arctan2(rows, columns) - self.turn))
            swing = 0.25 * wave if self.kind == 2 else 0.0
            distance = away - self.radius * (1 + swing) / (1.25 if self.kind == 2 else 1.0)
        return (1 / (1 + np.exp(np.clip(distance / self.soft, -30, 30)))).astype(np.float32)


def make_clip(
    random: np.random.Generator,
    photographs: tuple[np.ndarray, ...],
    frames: int,
    size: int,
    distractors: int,
    noise: float,
    pan: float,
) -> tuple[np.ndarray, np.ndarray, int]:
    """Returns frames (L, size, size, 3), alpha (L, size, size), both float32, and the motion.

    Args:
        random: draws everything.
        photographs: (H, W, 3), sides of at least ``size``.
        frames: L.
        size: side of a frame.
        distractors: shapes that stand still.
        noise: standard deviation of the sensor's noise, of a range of 1.
        pan: pixels per frame by which the camera moves, in a direction of its own.
    """
    motion = int(random.integers(len(MOTIONS)))
    drift = np.zeros((frames, 2))
    if pan:
        heading = random.uniform(0, 2 * np.pi)
        drift = pan * np.arange(frames)[:, None] * np.array([[np.sin(heading), np.cos(heading)]])
    margin = int(np.ceil(pan * frames))
    wide = size + 2 * margin

    def texture(side: int) -> np.ndarray:
        photograph = photographs[random.integers(len(photographs))]
        top, left = (int(random.integers(max(n - side, 0) + 1)) for n in photograph.shape[:2])
        cut = photograph[top : top + side, left : left + side]
        rows, columns = (np.pad(np.arange(n), (0, side - n), "symmetric") for n in cut.shape[:2])
        return cut[rows][:, columns]

    scene, front = texture(wide), texture(size)
    for _ in range(distractors):
        shape, place = _Shape(random, size), random.uniform(margin, margin + size, 2)
        mask = shape.alpha(place[0], place[1], wide)[..., None]
        scene = mask * (texture(wide) * shape.tint) + (1 - mask) * scene
    figure = _Shape(random, size)
    front = front * figure.tint
    path = _path(random, motion, frames, size, figure.radius)
    shown, mattes = [], []
    for (y, x), (down, right) in zip(path, np.rint(drift).astype(int)):
        top, left = margin + down, margin + right
        background = scene[top : top + size, left : left + size]
        alpha = figure.alpha(y, x, size)
        # The texture moves with the shape.
        moved = np.roll(front, (round(y), round(x)), (0, 1))
        shown.append(alpha[..., None] * moved + (1 - alpha[..., None]) * background)
        mattes.append(alpha)
    video = np.stack(shown) + noise * random.standard_normal((frames, size, size, 3))
    return video.clip(0, 1).astype(np.float32), np.stack(mattes), motion


class ShapeClips(Dataset[dict[str, Tensor]]):
    """Batch n of clips as a pure function of n, or of an item where ``batch_size`` is None.

    Args:
        photographs: to draw textures from.
        make: arguments of ``make_clip`` after the photographs.
        seed: first part of every clip's seed.
        count: number of items; None for no end.
        batch_size: clips an item.
        rank: of this process.
    """

    def __init__(
        self,
        photographs: tuple[np.ndarray, ...],
        make: tuple[int, int, int, float, float],
        seed: int,
        count: int | None = None,
        batch_size: int | None = None,
        rank: int = 0,
    ) -> None:
        self.photographs, self.make, self.seed = photographs, make, seed
        self.count, self.batch_size, self.rank = count, batch_size, rank

    def __len__(self) -> int:
        assert self.count is not None
        return self.count

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        one = self.batch_size is None
        keys = [
            (self.seed, index) if one else (self.seed, index, self.rank, number)
            for number in range(self.batch_size or 1)
        ]
        clips = [make_clip(np.random.default_rng(k), self.photographs, *self.make) for k in keys]
        batch = {
            "frames": torch.from_numpy(np.stack([c[0] for c in clips])).permute(0, 1, 4, 2, 3),
            "alpha": torch.from_numpy(np.stack([c[1] for c in clips]))[:, :, None],
            "label": torch.tensor([c[2] for c in clips]),
        }
        return {key: value[0] for key, value in batch.items()} if one else batch


class MovingShapes(BaseData):
    """Clips of a shape that moves among others that stand still, with its mattes and its motion;
    training, validation and test show different columns of the photographs.

    Args:
        source: "sklearn" for scikit-learn's two photographs, or a folder or zip of images.
        size: side of a frame in pixels.
        frames: of a clip.
        distractors: shapes that stand still.
        noise: standard deviation of the sensor's noise, of a range of 1.
        pan: pixels per frame by which the camera moves.
        batch_size: clips per training step.
        eval_clips: number of clips of validation and of the test.
        steps_per_epoch: batches between two ends of an epoch.
        seed: of everything random.
        num_workers: processes that make batches.
    """

    def __init__(
        self,
        source: str = "sklearn",
        size: int = 32,
        frames: int = 8,
        distractors: int = 2,
        noise: float = 0.02,
        pan: float = 0.0,
        batch_size: int = 4,
        eval_clips: int = 64,
        steps_per_epoch: int = 100,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        sizes = {"size": size, "frames": frames, "batch_size": batch_size, "eval_clips": eval_clips}
        for name, value in sizes.items():
            check_positive(name, value)
        if min(distractors, noise, pan) < 0:
            raise ConfigError(
                f"distractors, noise and pan must be at least 0, got {distractors}, {noise}, {pan}"
            )
        self.source, self.size, self.batch_size = source, size, batch_size
        self.make = (frames, size, distractors, float(noise), float(pan))
        self.eval_clips, self.steps_per_epoch = eval_clips, steps_per_epoch
        self.seed, self.num_workers = seed, num_workers

    def clips(self, part: str, count: int | None, batch_size: int | None = None) -> ShapeClips:
        """Returns clips of a part.

        Args:
            part: "train", "valid" or "test".
            count: number of items; None for no end.
            batch_size: clips an item; None for one without a batch's dimension.
        """
        shown = tuple(part_of(one, part) for one in load_photographs(self.source))
        rank = self.trainer.global_rank if self.trainer else 0
        seed = self.seed * 3 + _PARTS.index(part)
        return ShapeClips(shown, self.make, seed, count, batch_size, rank)

    def facts(self) -> dict[str, Any]:
        """Returns the names of the motions."""
        return {"classes": list(MOTIONS)}

    def setup(self, stage: str | None = None) -> None:
        """Reads the photographs, so that bad input fails before training starts."""
        load_photographs(self.source)

    def train_dataloader(self) -> Any:
        """Returns the loader of training clips, which resumes at any step."""
        clips = self.clips("train", None, self.batch_size)
        return step_dataloader(clips, self.trainer, self.steps_per_epoch, self.num_workers)

    def evaluation(self, part: str) -> Any:
        """Returns the loader of a part's clips.

        Args:
            part: "train", "valid" or "test".
        """
        clips = self.clips(part, self.eval_clips)
        return DataLoader(clips, self.batch_size, num_workers=self.num_workers)

    def val_dataloader(self) -> Any:
        """Returns the validation clips."""
        return self.evaluation("valid")

    def test_dataloader(self) -> Any:
        """Returns the test clips."""
        return self.evaluation("test")
