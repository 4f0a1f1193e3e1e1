"""The data module of point clouds: generated shapes, or class folders of files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from longseq.core.checks import check_positive
from longseq.core.errors import ConfigError, DataError
from longseq.core.training.hyper import BaseData
from longseq.core.training.loader import step_dataloader
from longseq.vision.data.images import named
from longseq.vision.data.sources import PART_NAMES, split_indices
from longseq.vision.points.clouds import SUFFIXES, normalised, read_cloud
from longseq.vision.points.shapes import SHAPES, make_shape, rotation

_PARTS = ("train", "valid", "test")
Batch = dict[str, Tensor]


def join_clouds(items: Sequence[tuple[np.ndarray, int]]) -> Batch:
    """Returns clouds of any sizes as one batch: ``points`` (M, 3), ``cloud`` (M,), ``label`` (B,).

    Args:
        items: clouds (N, 3) and their classes.
    """
    counts = torch.tensor([len(points) for points, _ in items])
    return {
        "points": torch.from_numpy(np.concatenate([points for points, _ in items])),
        "cloud": torch.repeat_interleave(torch.arange(len(items)), counts),
        "label": torch.tensor([label for _, label in items]),
    }


class GeneratedClouds(Dataset[tuple[np.ndarray, int]]):
    """Clouds of ``SHAPES`` by number, each a pure function of seed and number.

    Args:
        count: number of clouds.
        points: fewest and most points of a cloud.
        noise: see ``make_shape``.
        missing: likewise.
        seed: of every draw.
    """

    def __init__(
        self, count: int, points: tuple[int, int], noise: float, missing: float, seed: int
    ) -> None:
        self.count, self.points, self.noise, self.missing = count, points, noise, missing
        self.seed = seed

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        random = np.random.default_rng((self.seed, index))
        label = int(random.integers(len(SHAPES)))
        size = int(random.integers(self.points[0], self.points[1] + 1))
        made = make_shape(random, SHAPES[label], size, self.noise, self.missing)
        return normalised(made, f"shape {index}"), label


class FileClouds(Dataset[tuple[np.ndarray, int]]):
    """Clouds in files, read when asked for.

    Args:
        files: their paths.
        labels: their classes (N,).
    """

    def __init__(self, files: Sequence[Path], labels: np.ndarray) -> None:
        self.files, self.labels = list(files), labels

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        file = self.files[index]
        return normalised(read_cloud(file), file), int(self.labels[index])


class TrainingClouds:
    """Batch n of training clouds as a pure function of n: turned at random, some points left out.

    Args:
        clouds: of the training part; numbers wrap around where they have an end.
        batch_size: clouds a batch.
        most: a cloud with more points is thinned to so many.
        rotate: whether clouds are turned.
        seed: of every draw.
        rank: of this process.
        world: number of processes.
    """

    def __init__(
        self,
        clouds: Any,
        batch_size: int,
        most: int,
        rotate: bool,
        seed: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.clouds, self.batch_size, self.most, self.rotate = clouds, batch_size, most, rotate
        self.seed, self.rank = seed, rank
        self.per_epoch = max(1, len(clouds) // (batch_size * world))

    def __getitem__(self, step: int) -> Batch:
        random = np.random.default_rng((self.seed, step, self.rank))
        items = []
        for index in random.integers(len(self.clouds), size=self.batch_size):
            points, label = self.clouds[int(index)]
            if len(points) > self.most:
                points = points[random.choice(len(points), self.most, replace=False)]
            if self.rotate:
                points = (points @ rotation(random).T).astype(np.float32)
            items.append((points, label))
        return join_clouds(items)


class PointClouds(BaseData):
    """Point clouds of classes: generated shapes, or files in a folder per class.

    Args:
        source: "shapes" for generated ones, or a folder of class folders, perhaps inside
            ``train/``, ``valid/`` and ``test/``, with .npy, .xyz or .ply files. Every cloud is
            moved to its mean and scaled to a radius of 1.
        points: fewest and most points of a generated cloud; more in a file are thinned in training.
        noise: of generated shapes: standard deviation.
        missing: of generated shapes: greatest share of points that is cut off.
        rotate: whether training clouds are turned at random.
        train_clouds: number of generated training clouds.
        eval_clouds: of generated clouds for validation and for the test.
        batch_size: clouds per training step.
        valid_fraction: share of the training files for validation where there is no such part.
        test_fraction: likewise for the test.
        seed: of everything random.
        num_workers: processes that make batches.
    """

    fits = ("num_classes",)

    def __init__(
        self,
        source: str = "shapes",
        points: Sequence[int] = (150, 400),
        noise: float = 0.03,
        missing: float = 0.5,
        rotate: bool = True,
        train_clouds: int = 4000,
        eval_clouds: int = 400,
        batch_size: int = 16,
        valid_fraction: float = 0.15,
        test_fraction: float = 0.15,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        if len(points) != 2 or not 3 <= points[0] <= points[1]:
            raise ConfigError(f"points must be two numbers, 3 ≤ fewest ≤ most, got {list(points)}")
        if noise < 0 or not 0 <= missing < 1:
            raise ConfigError(
                f"noise must be at least 0 and missing in [0, 1), got {noise} and {missing}"
            )
        sizes = {"train_clouds": train_clouds, "eval_clouds": eval_clouds, "batch_size": batch_size}
        for name, value in sizes.items():
            check_positive(name, value)
        self.source, self.points, self.batch_size = source, (points[0], points[1]), batch_size
        self.noise, self.missing, self.rotate = float(noise), float(missing), rotate
        self.counts = {"train": train_clouds, "valid": eval_clouds, "test": eval_clouds}
        self.fractions, self.seed, self.num_workers = (
            (valid_fraction, test_fraction),
            seed,
            num_workers,
        )
        self._parts: dict[str, Any] | None = None
        self._classes: list[str] = list(SHAPES)

    @property
    def parts(self) -> dict[str, Any]:
        """The clouds of "train", "valid" and "test", opened at first use."""
        if self._parts is None:
            self._parts = self._generated() if self.source == "shapes" else self._files()
        return self._parts

    def _generated(self) -> dict[str, Any]:
        return {
            part: GeneratedClouds(
                self.counts[part], self.points, self.noise, self.missing, self.seed * 3 + number
            )
            for number, part in enumerate(_PARTS)
        }

    def _files(self) -> dict[str, Any]:
        root = Path(self.source)
        if not root.is_dir():
            raise DataError("no such folder", path=root, hint="give shapes, or a folder")
        found: dict[str, list[tuple[str, Path]]] = {}
        for name in named(root, lambda one: one.lower().endswith(SUFFIXES), "clouds"):
            file, inside = root / name, name.split("/")
            part = PART_NAMES.get(inside[0].lower(), "")
            if len(inside) < (3 if part else 2):
                raise DataError("lies in no class folder", path=file)
            if len(inside) > (3 if part else 2):  # <class>/train/…, or a folder per scan
                hint = "put its files into <class>/ or train/<class>/"
                raise DataError("lies in a folder inside its class folder", path=file, hint=hint)
            found.setdefault(part or "train", []).append((inside[-2], file))
        if "train" not in found:
            raise DataError(f"holds no training clouds ({', '.join(SUFFIXES)})", path=root)
        self._classes = sorted({name for name, _ in found["train"]})
        if len(self._classes) < 2:
            raise DataError(f"holds one class only ({self._classes[0]})", path=root)
        for name, file in (one for items in found.values() for one in items):
            if name not in self._classes:
                raise DataError(f"the class {name!r} has no training clouds", path=file)
        sets = {}
        for part, items in found.items():
            labels = np.array([self._classes.index(name) for name, _ in items])
            sets[part] = FileClouds([file for _, file in items], labels)
        shares = [0.0 if part in sets else share for part, share in zip(_PARTS[1:], self.fractions)]
        train = sets["train"]
        valid, test, rest = split_indices(train.labels, shares, self.seed)
        if not len(rest):
            raise DataError("the splits leave no clouds for training", path=root)
        cuts = {
            part: FileClouds([train.files[i] for i in rows], train.labels[rows])
            for part, rows in (("train", rest), ("valid", valid), ("test", test))
        }
        return {**cuts, **{part: sets[part] for part in ("valid", "test") if part in sets}}

    @property
    def classes(self) -> list[str]:
        """Names of the classes."""
        _ = self.parts
        return list(self._classes)

    def facts(self) -> dict[str, Any]:
        """Returns the names of the classes."""
        return {"classes": self.classes}

    def model_arguments(self) -> dict[str, Any]:
        """Returns the number of classes."""
        return {"num_classes": len(self.classes)}

    def setup(self, stage: str | None = None) -> None:
        """Lists the clouds, so that bad input fails before training starts."""
        _ = self.parts

    def train_dataloader(self) -> Any:
        """Returns the loader of training clouds, which resumes at any step."""
        trainer = self.trainer
        rank, world = (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
        batches = TrainingClouds(
            self.parts["train"],
            self.batch_size,
            self.points[1],
            self.rotate,
            self.seed,
            rank,
            world,
        )
        return step_dataloader(batches, trainer, batches.per_epoch, self.num_workers)

    def evaluation(self, part: str) -> Any:
        """Returns the loader of a part's clouds as they are, in order.

        Args:
            part: "train", "valid" or "test".
        """
        return DataLoader(
            self.parts[part],
            self.batch_size,
            num_workers=self.num_workers,
            collate_fn=join_clouds,
        )

    def val_dataloader(self) -> Any:
        """Returns the validation clouds."""
        return self.evaluation("valid")

    def test_dataloader(self) -> Any:
        """Returns the test clouds."""
        return self.evaluation("test")
