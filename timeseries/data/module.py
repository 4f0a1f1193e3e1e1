"""The data module of forecasting: one file, one split protocol, scaled windows."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Literal

from torch.utils.data import DataLoader

from longseq.core.checks import check_positive
from longseq.core.errors import ConfigError, DataError
from longseq.core.training.hyper import BaseData
from longseq.core.training.loader import data_ranks, step_dataloader
from longseq.timeseries.data.frames import Missing, Panel, Roles, read_panel
from longseq.timeseries.data.protocols import Split, load_protocol
from longseq.timeseries.data.windows import EvaluationWindows, Scaler, TrainWindows, Windows
from longseq.timeseries.likelihoods import first_not_counts

Stage = Literal["train", "valid", "test"]
FACTS = ("ids", "mean", "std", "train_end", "frequency", "least", "covariates")


class ForecastData(BaseData):
    """Windows of a long or wide frame: stride 1, no window dropped, the scaler fitted on training
    rows only.

    Args:
        path: CSV, Parquet or TXT file, or a packaged sample's name; see ``read_panel``.
        protocol: "ett", "ratio", "rolling", or the path of a YAML file like theirs.
        context: known rows L of a window.
        horizon: predicted rows h.
        series: names of the series to take; None for all.
        missing: "ffill": a value that is missing is never a target of training or of a score, and
            contexts carry the last value forward; "error": it is refused.
        batch_size: windows a training step; a window is of one series, or of all of them where the
            model takes a fixed number.
        eval_batch_size: windows at once in validation and test; the figures do not depend on it.
        steps_per_epoch: batches between two ends of an epoch; None for one pass over the training
            windows.
        valid_stride: rows between validation cutoffs in ``fit``; the test always takes every
            window.
        seed: of the training batches.
        num_workers: processes that make batches.
        id: column with the name of the series, of a long frame; by the usual names if None.
        time: column with the times (None: usual names).
        target: column with the values (None: usual names).
        zone: IANA name of the clock of the times, for example "Europe/Berlin".
        resample: step to average over, for times on no regular step, for example "1min".
        min_context: rows since a series began that a window needs; None for the whole context.
            What is shorter than the context is padded on the left.
        future: columns that are known for the future too; read by ``MixerForecaster``.
        past: columns that are known up to the cutoff only; likewise.
        static: columns with one value a series, of a long frame; likewise.
        holidays: country whose public holidays are a future covariate, for example "DE".
        date_order: "dmy", "mdy" or "ymd" (01/02/24); of numbers "ymd", "epoch" or "number".
    """

    def __init__(
        self,
        path: str,
        protocol: str = "ratio",
        context: int = 336,
        horizon: int = 96,
        series: list[str] | None = None,
        missing: Literal["ffill", "error"] = "ffill",
        batch_size: int = 32,
        eval_batch_size: int = 128,
        steps_per_epoch: int | None = None,
        valid_stride: int = 1,
        seed: int = 0,
        num_workers: int = 0,
        id: str | None = None,
        time: str | None = None,
        target: str | None = None,
        zone: str | None = None,
        resample: str | None = None,
        min_context: int | None = None,
        future: list[str] | None = None,
        past: list[str] | None = None,
        static: list[str] | None = None,
        holidays: str | None = None,
        date_order: str | None = None,
    ) -> None:
        super().__init__()
        sizes = {"context": context, "horizon": horizon, "batch_size": batch_size}
        sizes |= {"eval_batch_size": eval_batch_size, "valid_stride": valid_stride}
        for name, value in sizes.items():
            check_positive(name, value)
        self.path, self.protocol = path, load_protocol(protocol)
        self.context, self.horizon, self.series = context, horizon, series
        self.missing: Missing = missing
        if min_context is not None and not 1 <= min_context <= context:
            raise ConfigError(
                f"min_context must lie between 1 and the context ({context}), got {min_context}"
            )
        beside = {"future": future, "past": past, "static": static}
        kinds = {name: tuple(columns or ()) for name, columns in beside.items()}
        usual = (id, time, target, zone, resample, missing)
        self.roles = Roles(*usual, **kinds, holidays=holidays, date_order=date_order)
        self.least = context if min_context is None else min_context
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.steps_per_epoch, self.valid_stride = steps_per_epoch, valid_stride
        self.seed, self.num_workers = seed, num_workers
        self._panel: Panel | None = None
        self._windows: Windows | None = None
        self._told = False

    @property
    def panel(self) -> Panel:
        """The series, read once."""
        if self._panel is None:
            self._panel = self.read().select(self.series)
        return self._panel

    def read(self) -> Panel:
        """Reads the file; what a data module of another format replaces."""
        if self.path.lower().endswith((".parquet", ".pq")):
            from longseq.timeseries.data.long_file import is_large

            if is_large(self.path, self.roles):
                print(
                    f"{self.path}: would take more than a quarter of the memory if it is read "
                    "whole; --data LongFileData trains on it in pieces",
                    file=sys.stderr,
                )
        return read_panel(Path(self.path), roles=self.roles)

    def split(self) -> Split:
        """Returns the rows of the three parts."""
        return self.protocol.split(self.panel, self.least, self.horizon)

    def scaler(self) -> Scaler:
        """Returns the scaler of the training rows."""
        return Scaler.fit(self.panel, self.split().train)

    def not_counts(self) -> str | None:
        """Returns the first series with a value that is no count; None if there is none."""
        return first_not_counts(self.panel.ids, self.panel.values)

    def facts(self) -> dict[str, Any]:
        """Returns what a model must know of the training rows: the scaler, when they end, their
        frequency and usual season, and how short a context may be."""
        end = str(self.panel.ds[self.split().train.end - 1])
        own = {"train_end": end, "frequency": self.panel.frequency, "least": self.least}
        return {**self.scaler().to_dict(), **own, "season": self.panel.season()}

    def windows(self, stage: Stage, stride: int = 1) -> Windows:
        """Returns all windows of a part.

        Args:
            stage: "train", "valid" or "test".
            stride: takes every so many-th cutoff.
        """
        part = getattr(self.split(), stage)
        cutoffs = part.cutoffs(self.least, self.horizon)[::stride]
        if self._windows is None:  # all parts share the scaled values
            sizes = self.context, self.horizon, self.least
            self._windows = Windows(self.panel, self.scaler(), cutoffs, *sizes)
        return self._windows.at(cutoffs)

    def setup(self, stage: str | None = None) -> None:
        """Reads and checks the file, so that bad input fails before training starts."""
        self.split()
        if stage in (None, "fit") and not self._told:
            self._told = True
            for note in self.panel.notes:
                print(f"{self.path}: {note}")

    def _ranks(self) -> tuple[int, int]:
        return data_ranks(self.trainer)

    @property
    def _pairs(self) -> bool:
        """Whether a window is one of one series: unless the model takes all series at once."""
        module = None if self.trainer is None else self.trainer.lightning_module
        return bool(getattr(module, "channel_independent", True))

    def train_dataloader(self) -> Any:
        """Returns the loader of training windows, which resumes at any step."""
        windows = self.windows("train")
        rank, world = self._ranks()
        batches = TrainWindows(windows, self.batch_size, self.seed, rank, world, self._pairs)
        if len(batches) == 0:
            raise DataError(
                f"no series has {self.least} rows before a training target",
                path=self.path,
                hint="shorten --data.context, or allow padded contexts by --data.min_context",
            )
        steps = self.steps_per_epoch or max(1, len(batches) // (self.batch_size * world))
        return step_dataloader(batches, self.trainer, steps, self.num_workers)

    def _evaluation(self, stage: Stage, stride: int = 1) -> Any:
        windows, (rank, world) = self.windows(stage, stride), self._ranks()
        batches = EvaluationWindows(windows, self.eval_batch_size, rank, world, self._pairs)
        return DataLoader(batches, batch_size=None)

    def val_dataloader(self) -> Any:
        """Returns the validation windows in order."""
        return self._evaluation("valid", self.valid_stride)

    def test_dataloader(self) -> Any:
        """Returns the test windows in order, every one."""
        return self._evaluation("test")
