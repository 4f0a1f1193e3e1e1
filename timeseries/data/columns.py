"""Columns of a frame: the numbers in them, and their means over a step."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pandas as pd

from longseq.core.errors import ConfigError
from longseq.timeseries.data.times import Source

_DECIMAL_COMMA = re.compile(r"^\s*-?(\d{1,3}(\.\d{3})+|\d+),\d+\s*$")
_MISSING_TEXT = {"", "na", "n/a", "nan", "null", "none", "-", "#n/a"}


def numbers(column: pd.Series, name: str, where: Source) -> np.ndarray:
    """Returns a column as float64; NaN where it is empty.

    Raises:
        DataError: at the first value that is no finite number.
    """
    text = column
    if column.dtype == object or pd.api.types.is_string_dtype(column):
        given = column.dropna().astype(str)
        if given.str.match(_DECIMAL_COMMA.pattern).any():
            # 1.234,5: every point in such a column separates thousands.
            text = column.str.replace(".", "", regex=False).str.replace(",", ".", regex=False)
    values = pd.to_numeric(text, errors="coerce").to_numpy(np.float64, copy=True)
    bad = (np.isnan(values) & column.notna().to_numpy()) | np.isinf(values)
    if bad.any():
        for row in np.flatnonzero(bad):
            value = column.iloc[int(row)]
            if isinstance(value, str) and value.strip().lower() in _MISSING_TEXT:
                continue
            shown = repr(value) if isinstance(value, str) else str(value)
            raise where.error(f"{name!r} is {shown}, a finite number is needed", int(row))
    return values


def resample(
    ds: pd.Index, codes: np.ndarray, values: np.ndarray, step: str, where: Source, name: str = ""
) -> tuple[pd.Index, np.ndarray, np.ndarray]:
    """Returns the means over every step, by the beginning of the step.

    Raises:
        ConfigError: for a step that is none, or times that are none.
    """
    if not isinstance(ds, pd.DatetimeIndex):
        raise ConfigError(f"{where.file}: resample needs dates, the times are whole numbers")
    try:
        offset: Any = pd.tseries.frequencies.to_offset(step)
        local = ds.tz_localize(None) if ds.tz is not None else ds
        fixed = pd.Timedelta(offset)
    except ValueError as error:
        raise ConfigError(
            f"resample is a step of fixed length like 10s, 1min, 1h or 1D, got {step!r}"
        ) from error
    # Days begin at the local midnight; shorter steps are cut in instants, which clocks share.
    by_day = fixed >= pd.Timedelta(days=1)
    bins = (local if by_day else ds).floor(fixed)
    known = ~np.isnan(values)
    grouped = pd.Series(values[known]).groupby([codes[known], bins[known]], sort=True).mean()
    found = pd.DatetimeIndex(grouped.index.get_level_values(1))
    if by_day and ds.tz is not None:
        found = found.tz_localize(ds.tz, ambiguous=True, nonexistent="shift_forward")  # type: ignore[arg-type]
    if not name:
        where.notes.append(f"averaged over {step}: {len(values):,} values became {len(grouped):,}")
    return found, grouped.index.get_level_values(0).to_numpy(), grouped.to_numpy()
