"""A frame of the future: covariates that are known after the end of the series."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from longseq.core.errors import ConfigError
from longseq.core.files import require_file
from longseq.timeseries.data.columns import numbers
from longseq.timeseries.data.covariates import check_columns
from longseq.timeseries.data.frames import read_frame
from longseq.timeseries.data.panel import Panel
from longseq.timeseries.data.roles import ID_NAMES, TIME_NAMES, Roles, with_index
from longseq.timeseries.data.source import Source
from longseq.timeseries.data.times import ZONE_HINT, parse_times
from longseq.timeseries.frame_types import to_pandas


def known_future(panel: Panel, future: Any, horizon: int, roles: Roles) -> Panel:
    """Returns a panel that knows the future covariates of a frame or file; see ``with_future``."""
    if not isinstance(future, (str, Path)):
        return with_future(panel, to_pandas(future)[0], horizon, roles)
    file = require_file(future, "frame of the future")
    table, line = read_frame(file, roles.id)
    return with_future(panel, table, horizon, roles, file, line)


def with_future(
    panel: Panel,
    frame: pd.DataFrame,
    horizon: int,
    roles: Roles,
    file: str | Path = "the frame of the future",
    first_line: int = 0,
) -> Panel:
    """Returns a panel that knows the future covariates of a frame.

    Args:
        panel: the series.
        frame: rows of the future, in the columns of the panel's own frame without the target.
        horizon: rows h after the end of every series.
        roles: of the columns.
        file: that the frame was read from, for messages.
        first_line: of the file that its first row stands in; 0 where there are no lines.

    Raises:
        DataError: if a column is not there, times are of another kind than those of the series, or
            a time lies on no row, or comes twice (unless they are averaged over a step).
        ConfigError: if no covariate is to be taken from it.
    """
    if not roles.future:
        raise ConfigError(
            "a frame of the future is given, and no future covariate is named: --future NAME, "
            "future=['NAME'] in Python"
        )
    where = Source(Path(file), first_line, european=bool(frame.attrs.get("european")))
    frame = with_index(frame, roles, where).rename(columns=str)
    check_columns(roles.future, frame.columns, where, "future")
    lower = {name.lower(): name for name in reversed(frame.columns)}
    id_ = roles.id or next((lower[name] for name in ID_NAMES if name in lower), None)
    time = roles.time or next((lower[name] for name in TIME_NAMES if name in lower), None)
    if time is None or time not in frame.columns:
        named = "time column" if time is None else f"column {time!r} of times"
        raise where.error(f"has no {named}, as {panel.source} has")
    if id_ is not None and id_ not in frame.columns:
        raise where.error(
            f"has no column {id_!r} of the series' names, as {panel.source} has",
            hint="give the rows of every series, with its name",
        )
    longer = panel.extended(horizon)
    if id_ is None:
        codes = np.repeat(np.arange(len(panel.ids)), len(frame))
        frame = pd.concat([frame] * len(panel.ids), ignore_index=True)
    else:
        codes = pd.Index(panel.ids).get_indexer(pd.Index(frame[id_].astype(str)))
    ds = parse_times(frame[time], where, roles.zone, codes, roles.date_order)
    _check_kind(ds, longer.ds, panel.source, where)
    known = codes >= 0
    if roles.resample is None:
        rows = longer.ds.get_indexer(ds)
    else:  # averaged, as the series are, over the step that a row begins
        rows = np.asarray(longer.ds.searchsorted(ds, side="right")) - 1
        rows[np.asarray(ds >= longer.ds[-1] + panel.freq)] = -1
    off = known & (rows < 0) & np.asarray((ds >= longer.ds[0]) & (ds <= longer.ds[-1]))
    if off.any():
        raise where.error("the time lies on no row of the series", int(np.flatnonzero(off)[0]))
    known &= rows >= 0
    # What lies before the end of a series is known already.
    known &= rows >= panel.ends[np.maximum(codes, 0)]
    place = np.where(known, rows * len(panel.ids) + codes, -1 - np.arange(len(rows)))
    twice = pd.Index(place).duplicated()
    if twice.any() and roles.resample is None:
        at = int(np.flatnonzero(twice)[0])
        name = panel.ids[codes[at]]
        raise where.error(f"the time {ds[at]} of {name!r} comes twice in the future", at)
    strange = frame[id_][codes < 0] if id_ is not None else pd.Series(dtype=str)
    others = strange.astype(str).unique()
    if len(others):
        what = "is no series" if len(others) == 1 else f"and {len(others) - 1} more are no series"
        text = f"{others[0]!r} in the future {what} with a past: not forecast"
        panel = replace(panel, notes=(*panel.notes, text))
    future = {name: value.copy() for name, value in longer.covariates.future.items()}
    for name in roles.future:
        value = pd.Series(numbers(frame[name], name, where)[known]).groupby(place[known]).mean()
        future[name].flat[value.index.to_numpy()] = value.to_numpy()
        next_ = future[name][np.minimum(panel.ends, len(longer.ds) - 1), np.arange(len(panel.ids))]
        lacking = np.flatnonzero(np.isnan(next_) & ~np.isin(np.arange(len(panel.ids)), codes))
        if len(others) and len(lacking):
            text = f"{others[0]!r} is no series of {panel.source}, and {name!r} is given for none"
            raise where.error(f"{text} called {panel.ids[int(lacking[0])]!r}")
    return replace(panel, covariates=replace(panel.covariates, future=future))


def _check_kind(ds: pd.Index, own: pd.Index, source: str, where: Source) -> None:
    """Checks that times of the future can be told against those of the series.

    Raises:
        DataError: if only one of them are numbers, or have a zone.
    """
    kinds = [_kind(one) for one in (ds, own)]
    if kinds[0] != kinds[1]:
        zoned = all("clock" in one for one in kinds)
        raise where.error(
            f"its times are {kinds[0]}, those of {source} {kinds[1]}",
            hint=f"write both alike{f', or {ZONE_HINT}' if zoned else ''}",
        )


def _kind(ds: pd.Index) -> str:
    if not isinstance(ds, pd.DatetimeIndex):
        return "numbers"
    return "on a clock of no zone" if ds.tz is None else "on a clock with a zone"
