"""Forecasts of a long Parquet file that is larger than memory: read, forecast and written in
pieces."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from copy import copy
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from longseq.core.errors import ConfigError, DataError
from longseq.core.files import atomic_path
from longseq.core.tables import DELIMITERS, check_table, write_batches
from longseq.timeseries.data.long_file import READ_WHOLE, LongFile, is_large
from longseq.timeseries.data.panel import Panel
from longseq.timeseries.local import BASELINES, LocalModel
from longseq.timeseries.zero_shot import Quantiles, zero_shot_frame

if TYPE_CHECKING:
    from longseq.timeseries.forecaster import Forecaster


def piece_forecaster(
    file: LongFile,
    horizon: int,
    task: Any = None,
    levels: Iterable[int] = (),
    batch_size: int = 64,
    season: int | None = None,
    device: str = "cpu",
) -> Callable[[Panel], pd.DataFrame]:
    """Returns what forecasts a piece of a file: the packaged forecaster, or a trained model.

    Args:
        file: of the pieces.
        horizon: rows h.
        task: a fitted ``ForecastTask``; the packaged forecaster if None.
        levels: percentages of the intervals.
        batch_size: series at once.
        season: rows of a season; the calendar's usual one if None.
        device: of the packaged forecaster; a model of a task stays where it is.

    Raises:
        ConfigError: for a model that takes all series at once.
    """
    wanted = tuple(levels)
    if task is None:
        network = Quantiles(device=device)

        def plain(panel: Panel) -> pd.DataFrame:
            # What the series of a piece say together would change with where pieces end.
            return zero_shot_frame(
                *(panel, horizon, None, wanted, batch_size, season, network), calibrate=False
            )

        return plain
    from longseq.timeseries.forecast import forecast_frame

    if not task.channel_independent or task.covariates:
        what = "takes covariates" if task.channel_independent else "takes all series at once"
        raise ConfigError(
            f"{file.path}: {type(task).__name__} {what}, so the file cannot be read in pieces: "
            f"{READ_WHOLE}, or take another model"
        )

    def trained(panel: Panel) -> pd.DataFrame:
        return forecast_frame(task, panel, None, wanted, batch_size, season, piece=True)

    return trained


def forecast_pieces(
    file: LongFile, make: Callable[[Panel], pd.DataFrame], say: bool = True
) -> Iterator[tuple[Panel, pd.DataFrame]]:
    """Yields every piece of a file and its forecasts.

    Args:
        file: the series.
        make: forecasts a piece.
        say: report on stderr that pieces are taken, and how far it is.
    """
    from rich.console import Console
    from rich.progress import Progress

    if say:
        print(
            f"{file.path}: {file.rows:,} rows in {file.groups:,} row groups are read in pieces",
            file=sys.stderr,
        )
    shown = {"transient": True, "disable": not (say and sys.stderr.isatty())}
    with Progress(console=Console(stderr=True), **shown) as progress:
        bar = progress.add_task("checking the file", total=None)
        progress.update(bar, total=file.survey.series, description="forecasts")
        if file.survey.empty is not None:
            raise DataError(f"the series {file.survey.empty!r} has no value", path=file.path)
        some = False
        for panel in file.panels():
            frame = make(panel)
            some = some or len(frame) > 0
            yield panel, frame
            progress.advance(bar, len(panel.ids))
        if not some:
            raise DataError("no series is long enough for the model's context", path=file.path)


def write_pieces(path: str | Path, frames: Iterable[pd.DataFrame], days: bool = False) -> int:
    """Writes frames of consecutive rows as one table, whole or not at all, and returns its rows.

    Args:
        path: the file; in Parquet every frame is a row group.
        frames: of the same columns, at least one of them with rows; those without are left out.
        days: whether all times are midnights, which text writes as days.
    """
    import pyarrow as pa

    kind, count, parts = check_table(path), 0, (frame for frame in frames if len(frame))
    first = next(parts)
    if kind == ".parquet":
        schema = pa.Schema.from_pandas(first, preserve_index=False)

        def tables() -> Iterator[pa.Table]:
            nonlocal count
            for frame in chain([first], parts):
                count += len(frame)
                yield pa.Table.from_pandas(frame, schema=schema, preserve_index=False)

        write_batches(path, schema, tables())
        return count
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        for frame in chain([first], parts):
            text = frame.copy(deep=False)
            for name in ("ds", "cutoff"):
                # A piece whose times are all midnights must look like the others.
                if text[name].dtype.kind == "M" and not days:
                    text[name] = text[name].map(str)
            text.to_csv(file, index=False, header=count == 0, sep=DELIMITERS[kind])
            count += len(frame)
    return count


def all_days(file: LongFile) -> bool:
    """Returns whether all times of a file are midnights of no zone."""
    axis = file.survey.axis
    dated = isinstance(axis, pd.DatetimeIndex) and axis.tz is None
    return dated and bool((axis == axis.normalize()).all())


def path_in_pieces(forecaster: Forecaster, frame: Any, out: str | Path | None) -> bool:
    """Returns whether ``Forecaster.predict`` takes a file in pieces: one that is large, or any long
    Parquet file whose forecasts are to be written.

    Args:
        forecaster: with the roles of the columns.
        frame: what ``predict`` was given.
        out: file for the forecasts, or None.
    """
    if not isinstance(frame, (str, Path)) or not str(frame).lower().endswith((".parquet", ".pq")):
        return False
    return is_large(frame, forecaster.roles, always=out is not None)


def _one_by_one(forecaster: Forecaster) -> bool:
    """Returns whether the forecast of a series does not depend on the others."""
    if forecaster.conformal:
        return False
    if forecaster.trained:
        return forecaster._task is None or forecaster._task.channel_independent
    plain = ("zero_shot", "repeat", "seasonal_naive")
    return forecaster.model in plain or issubclass(BASELINES[forecaster.model], LocalModel)


def path_forecasts(
    forecaster: Forecaster, path: str | Path, horizon: int, out: str | Path | None
) -> pd.DataFrame | Path:
    """Returns the forecasts of a long Parquet file that is read in pieces, or writes them.

    Args:
        forecaster: one whose forecasts of a series do not depend on the others.
        path: of the file.
        horizon: rows h.
        out: file for the forecasts, which is returned; None returns them as a frame.

    Raises:
        ConfigError: for a model that looks at all series at once.
    """
    if out is not None:
        check_table(out)
    if not _one_by_one(forecaster):
        what = "conformal intervals look" if forecaster.conformal else f"{forecaster.model} looks"
        raise ConfigError(
            f"{path}: {what} at all series at once, which a file read in pieces does not give: "
            "read it and give the frame"
        )
    file, single = LongFile(path, forecaster.roles), copy(forecaster)
    single.conformal = 0  # what the series of a piece say would change with where pieces end
    parts = (
        frame
        for _, frame in forecast_pieces(
            file, lambda panel: single._frame(panel, horizon, None), say=False
        )
    )
    if out is None:
        return pd.concat(parts, ignore_index=True)
    write_pieces(out, parts, all_days(file))
    return Path(out)
