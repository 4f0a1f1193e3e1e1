"""The data module of forecasting: one file, one split protocol, scaled windows."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from torch.utils.data import DataLoader

from longseq.core.checks import check_positive
from longseq.core.training.hyper import BaseData
from longseq.core.training.loader import step_dataloader
from longseq.timeseries.data.frames import Panel, read_panel
from longseq.timeseries.data.protocols import Split, load_protocol
from longseq.timeseries.data.windows import EvaluationWindows, Scaler, TrainWindows, Windows

Stage = Literal["train", "valid", "test"]


class ForecastData(BaseData):
    """Windows of a long or wide frame: stride 1, no window dropped, the scaler fitted on training
    rows only.

    Args:
        path: CSV, Parquet or TXT file, or a packaged sample's name; see ``read_panel``.
        protocol: "ett", "ratio", "rolling", or the path of a YAML file like theirs.
        context: known rows L of a window.
        horizon: predicted rows h.
        series: names of the series to take; None for all.
        missing: what a missing value is: "error", or "ffill" to carry the last value forward.
        batch_size: windows a training step.
        eval_batch_size: windows at once in validation and test; the figures do not depend on it.
        steps_per_epoch: batches between two ends of an epoch; None for one pass over the training
            windows.
        valid_stride: rows between validation cutoffs in ``fit``; the test always takes every
            window.
        seed: of the training batches.
        num_workers: processes that make batches.
    """

    def __init__(
        self,
        path: str,
        protocol: str = "ratio",
        context: int = 336,
        horizon: int = 96,
        series: list[str] | None = None,
        missing: Literal["error", "ffill"] = "error",
        batch_size: int = 32,
        eval_batch_size: int = 128,
        steps_per_epoch: int | None = None,
        valid_stride: int = 1,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        sizes = {"context": context, "horizon": horizon, "batch_size": batch_size}
        sizes |= {"eval_batch_size": eval_batch_size, "valid_stride": valid_stride}
        for name, value in sizes.items():
            check_positive(name, value)
        self.path, self.protocol = path, load_protocol(protocol)
        self.context, self.horizon, self.series = context, horizon, series
        self.missing: Literal["error", "ffill"] = missing
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.steps_per_epoch, self.valid_stride = steps_per_epoch, valid_stride
        self.seed, self.num_workers = seed, num_workers
        self._panel: Panel | None = None

    @property
    def panel(self) -> Panel:
        """The series, read once."""
        if self._panel is None:
            self._panel = self.read().select(self.series)
        return self._panel

    def read(self) -> Panel:
        """Reads the file; what a data module of another format replaces."""
        return read_panel(Path(self.path), self.missing)

    def split(self) -> Split:
        """Returns the rows of the three parts."""
        return self.protocol.split(self.panel, self.context, self.horizon)

    def scaler(self) -> Scaler:
        """Returns the scaler of the training rows."""
        return Scaler.fit(self.panel, self.split().train)

    def facts(self) -> dict[str, Any]:
        """Returns what a model must know of the training rows: the scaler, and when they end."""
        return {
            **self.scaler().to_dict(),
            "train_end": str(self.panel.ds[self.split().train.end - 1]),
        }

    def windows(self, stage: Stage, stride: int = 1) -> Windows:
        """Returns all windows of a part.

        Args:
            stage: "train", "valid" or "test".
            stride: takes every so many-th cutoff.
        """
        part = getattr(self.split(), stage)
        cutoffs = part.cutoffs(self.context, self.horizon)[::stride]
        return Windows(self.panel, self.scaler(), cutoffs, self.context, self.horizon)

    def setup(self, stage: str | None = None) -> None:
        """Reads and checks the file, so that bad input fails before training starts."""
        self.split()

    def _ranks(self) -> tuple[int, int]:
        trainer = self.trainer
        return (0, 1) if trainer is None else (trainer.global_rank, trainer.world_size)

    def train_dataloader(self) -> Any:
        """Returns the loader of training windows, which resumes at any step."""
        windows = self.windows("train")
        rank, world = self._ranks()
        steps = self.steps_per_epoch or max(1, len(windows) // (self.batch_size * world))
        batches = TrainWindows(windows, self.batch_size, self.seed, rank, world)
        return step_dataloader(batches, self.trainer, steps, self.num_workers)

    def _evaluation(self, stage: Stage, stride: int = 1) -> Any:
        batches = EvaluationWindows(
            self.windows(stage, stride), self.eval_batch_size, *self._ranks()
        )
        return DataLoader(batches, batch_size=None)

    def val_dataloader(self) -> Any:
        """Returns the validation windows in order."""
        return self._evaluation("valid", self.valid_stride)

    def test_dataloader(self) -> Any:
        """Returns the test windows in order, every one."""
        return self._evaluation("test")
