"""Columns of a frame: the numbers in them, and their means over a step."""

from __future__ import annotations

import re
import shlex
from decimal import Decimal
from numbers import Real
from typing import Any

import numpy as np
import pandas as pd

from longseq.core.errors import ConfigError
from longseq.timeseries.data.source import Source

_NUMBER = re.compile(r"\s*[-+]?[\d.,]*\d[\d.,]*(e[-+]?\d+)?\s*", re.IGNORECASE)
_EITHER = re.compile(r"\s*[-+]?[1-9]\d{0,2}[.,]\d{3}\s*")  # 1.234: of thousands, or of decimals
_LARGEST = 1e150  # of which, and of sums of such, squares are finite
# Between thousands beside points and commas: spaces, no-break and narrow ones, apostrophes.
_BETWEEN = re.compile(r"(?<=\d)[ \u00a0\u2009\u202f'\u2019](?=\d{3}(?!\d))")
_FILLED = re.compile(r"-?99+(\.9+)?")  # -999, 9999: what loggers write where they have no value
_MISSING_TEXT = {"", "na", "n/a", "nan", "null", "none", "-", "#n/a"}


def holds_names(column: pd.Series) -> bool:
    """Returns whether a column holds texts none of which begins like a number or is missing."""
    if column.dtype != object and not pd.api.types.is_string_dtype(column):
        return False
    first = column.dropna().astype(str).drop_duplicates().head(1000).str.strip()
    given = first[~first.str.lower().isin(_MISSING_TEXT)]
    return len(given) > 0 and not given.str.match(r"[^\w]{0,4}\d|[-+]?(inf|Inf)").any()


def holds_times(column: pd.Series) -> bool:
    """Returns whether a column looks like dates: for messages, nothing is decided by it."""
    if pd.api.types.is_datetime64_any_dtype(column) or isinstance(column.dtype, pd.PeriodDtype):
        return True
    if column.dtype != object and not pd.api.types.is_string_dtype(column):
        return False
    given = column.dropna().astype(str).head(20)
    return len(given) > 0 and bool(given.str.match(r"\s*\d{1,4}[-./]\d{1,2}[-./]\d{1,4}").all())


def named_columns(series: pd.DataFrame, where: Source) -> pd.DataFrame:
    """Returns the columns of a wide frame that have names, which pandas gives to others.

    Raises:
        DataError: if one without a name does not count the rows, and holds anything.
    """
    for name in [name for name in series.columns if re.fullmatch(r"Unnamed: \d+(\.\d+)?", name)]:
        place = int(float(name[9:])) + 1
        value = pd.to_numeric(series[name], errors="coerce").to_numpy(np.float64)
        if (np.diff(value) == 1).all() and value[0] in (0, 1):
            where.notes.append(f"column {place} has no name and counts the rows: not used")
        elif series[name].notna().any():
            raise where.error(
                f"column {place} has no name, and is no series without one",
                hint="name it in the header, take it away, or name the one series by --target",
            )
        series = series.drop(columns=name)
    return series


def refuse_names(series: pd.DataFrame, targets: list[str], where: Source) -> None:
    """Refuses a frame that was taken for a wide one and has a column of names: a long frame whose
    columns are called otherwise.

    Args:
        series: the columns that would be series.
        targets: columns of the frame with the usual name of a target.
        where: the frame.

    Raises:
        DataError: with the columns to name.
    """
    texts = [name for name in series.columns if holds_names(series[name])]
    if not texts:
        return
    id_ = max(texts, key=lambda name: series[name].nunique())
    rest = [name for name in series.columns if name not in texts]
    target = (*targets, *rest, "NAME")[0]
    one = series[id_].dropna().iloc[0]
    raise where.error(
        f"the column {id_!r} holds names, like {str(one)!r}, and no numbers",
        hint=f"a long frame? say which column names the series: --id {shlex.quote(id_)} "
        f"--target {shlex.quote(target)}, in "
        "fit --data.id and --data.target, in Python id= and target=; a single series? name its "
        "column: --target, target=",
    )


def numbers(column: pd.Series, name: str, where: Source) -> np.ndarray:
    """Returns a column as float64; NaN where it is empty.

    Raises:
        DataError: at the first value that is no finite number, or whose square is none.
    """
    if isinstance(column.dtype, pd.CategoricalDtype):
        column = column.astype(column.cat.categories.dtype)
    _refuse_kinds(column, name, where)
    text = column
    if column.dtype == object or pd.api.types.is_string_dtype(column):
        texts = {one for one in set(column.dropna()) if isinstance(one, str)}
        joined = {one: plain for one in texts if (plain := _joined(one)) != one}
        if joined:
            column = column.map(lambda one: joined.get(one, one), na_action="ignore")
        mark = _decimal_mark(column, name, where)
        plain = {one: _plain(one, mark) for one in set(column.dropna()) if isinstance(one, str)}
        text = column.map(lambda one: plain.get(one, one), na_action="ignore")
    values = pd.to_numeric(text, errors="coerce").to_numpy(np.float64, copy=True)
    bad = (np.isnan(values) & column.notna().to_numpy()) | np.isinf(values)
    if bad.any():
        for row in np.flatnonzero(bad):
            value = column.iloc[int(row)]
            if isinstance(value, str) and value.strip().lower() in _MISSING_TEXT:
                continue
            shown = repr(value) if isinstance(value, str) else str(value)
            raise where.error(f"{name!r} is {shown}, a finite number is needed", int(row))
    beyond = np.abs(values) > _LARGEST
    if beyond.any():
        row = int(beyond.argmax())
        raise where.error(
            f"{name!r} is {values[row]:g}, beyond {_LARGEST:g}, so that its square is no number",
            row,
            hint="leave the field empty where it says that nothing was measured, or divide the "
            "column by a power of ten",
        )
    _note_filled(values, name, where)
    return values


def _joined(text: str) -> str:
    """Returns a text without what stands between the thousands of a number, and with a plain minus;
    any other text as it is."""
    plain = _BETWEEN.sub("", text).replace("\u2212", "-")
    return plain if _NUMBER.fullmatch(plain) else text


def _note_filled(values: np.ndarray, name: str, where: Source) -> None:
    """Notes a number like -999 that is far outside all others: was anything measured there?"""
    known = values[~np.isnan(values)]
    if len(known) == 0:
        return
    for one in sorted({float(known.min()), float(known.max())}):
        rest = known[known != one]
        if not _FILLED.fullmatch(f"{one:.15g}") or len(rest) == 0:
            continue
        if abs(one) >= 10 * np.abs(rest).max() or (one < 0 <= rest.min()):
            count = len(known) - len(rest)
            rows = f"{count:,} rows" if count > 1 else "one row"
            where.notes.append(
                f"{name} is {one:.15g} in {rows}, and {rest.min():g} to {rest.max():g} in all "
                "others: if it says that nothing was measured, leave these fields empty"
            )


def _refuse_kinds(column: pd.Series, name: str, where: Source) -> None:
    """Refuses what would be cut or counted to become a number: complex values, times, durations."""
    if column.dtype == object:
        other = {
            type(one).__name__: row
            for row, one in enumerate(column)
            if not isinstance(one, (str, Real, Decimal, np.bool_)) and pd.isna(one) is not True
        }
        if other:
            kind, row = next(iter(other.items()))
            raise where.error(f"{name!r} is of {kind}, a finite number is needed", row)
    elif column.notna().any() and not (
        pd.api.types.is_string_dtype(column)
        or pd.api.types.is_bool_dtype(column)
        or (pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_complex_dtype(column))
    ):
        raise where.error(f"{name!r} is of {column.dtype}, numbers are needed")


def _decimal_mark(column: pd.Series, name: str, where: Source) -> str:
    """Returns the mark before the decimals, "." or ",", as the numbers of a column tell it.

    Raises:
        DataError: if they do not: 1,500 may be 1500 or 1.5.
    """
    told, either = set(), {}
    for row, one in enumerate(column):
        if not (isinstance(one, str) and _NUMBER.fullmatch(one)) or not ({".", ","} & set(one)):
            continue
        last = "," if one.rfind(",") > one.rfind(".") else "."
        other = "." if last == "," else ","
        if other in one:
            told.add(last)
        elif one.count(last) > 1:
            told.add(other)
        elif _EITHER.fullmatch(one):
            either.setdefault(last, row)
        else:
            told.add(last)
    if len(told) == 1:
        return told.pop()
    if told or not either:
        return "."  # and what does not fit is no number
    usual = "," if where.european else "."
    if set(either) == {usual}:
        return usual
    row = min(either.values())
    raise where.error(
        f"{name!r} is {column.iloc[row]!r}: does the mark separate thousands or decimals?",
        row,
        "no number of the column tells; write them without marks between thousands, and with a "
        "decimal point",
    )


def _plain(text: str, mark: str) -> str:
    """Returns a number without marks between thousands and with a decimal point; any other text as
    it is."""
    other = "." if mark == "," else ","
    if other in text:
        whole = text.strip().partition(mark)[0]
        if not re.fullmatch(rf"[-+]?\d{{1,3}}({re.escape(other)}\d{{3}})+", whole):
            return text if mark == "." else text.replace(".", ",")  # which is no number
    return text.replace(other, "").replace(mark, ".")


def resample(
    ds: pd.Index, codes: np.ndarray, values: np.ndarray, step: str, where: Source, name: str = ""
) -> tuple[pd.Index, np.ndarray, np.ndarray]:
    """Returns the means over every step, by the beginning of the step.

    A series with about one row a step, whose times scatter around a phase of it, is averaged over
    the step around that phase: with bins that begin there, scatter would put two rows into one bin
    and none into the next. Its times are the middles of these bins.

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
    if fixed <= pd.Timedelta(0):
        raise ConfigError(f"resample is a step above 0, got {step!r}")
    # Days begin at the local midnight; shorter steps are cut in instants, which clocks share.
    by_day = fixed >= pd.Timedelta(days=1)
    if by_day:
        bins = local.floor(fixed)
    else:
        bins = _bins(ds, codes, fixed)
    known = ~np.isnan(values)
    grouped = pd.Series(values[known]).groupby([codes[known], bins[known]], sort=True).mean()
    found = pd.DatetimeIndex(grouped.index.get_level_values(1))
    if by_day and ds.tz is not None:
        found = found.tz_localize(ds.tz, ambiguous=True, nonexistent="shift_forward")  # type: ignore[arg-type]
    if not name:
        where.notes.append(f"averaged over {step}: {len(values):,} values became {len(grouped):,}")
    return found, grouped.index.get_level_values(0).to_numpy(), grouped.to_numpy()


_SHARP = 0.5  # mean resultant length of phases from which on they are taken to scatter around one


def _bins(ds: pd.DatetimeIndex, codes: np.ndarray, step: pd.Timedelta) -> pd.DatetimeIndex:
    """Returns the bin of every row: the step that it lies in, or the one around its phase."""
    width = step.as_unit("ns").value
    time = ds.as_unit("ns").asi8
    # Steps of hours begin with the day as the first row's clock has it: 6h at 0, 6, 12, 18.
    ahead = pd.Timedelta(0) if ds.tz is None else ds[0].utcoffset()
    clock = pd.Timedelta(ahead).as_unit("ns").value
    turn = np.exp(2j * np.pi * (time % width) / width)
    count = np.bincount(codes)
    seen = np.maximum(count, 1)
    mean = (np.bincount(codes, turn.real) + 1j * np.bincount(codes, turn.imag)) / seen
    span = np.ones(len(count))
    for code, (first, last) in enumerate(_spans(time, codes, len(count))):
        span[code] = max((last - first) / width, 1)
    # Series sampled much faster than the step have no phase: a minute of seconds begins at :00.
    sharp = (np.abs(mean) > _SHARP) & (count < 1.5 * (span + 1))
    if not sharp.any():
        floor = (time + clock) // width * width - clock
        return pd.DatetimeIndex(floor, tz="UTC").tz_convert(ds.tz).as_unit(ds.unit)
    phase = np.where(sharp, np.angle(mean) / (2 * np.pi), 0.0)
    # All series share one axis: a phase is kept to a tenth of the step, and only one of them.
    common = round(float(np.angle(mean[sharp].sum()) / (2 * np.pi)), 1) * width
    own = (phase * width)[codes]
    middle = np.rint((time - own) / width).astype(np.int64) * width + int(common)
    begin = (time - int(common)) // width * width + int(common)
    found = np.where(sharp[codes], middle, begin)
    return pd.DatetimeIndex(found, tz="UTC").tz_convert(ds.tz).as_unit(ds.unit)


def _spans(time: np.ndarray, codes: np.ndarray, count: int) -> np.ndarray:
    """Returns the first and the last time of every series, int64 (count, 2)."""
    first = np.full(count, np.iinfo(np.int64).max)
    last = np.full(count, np.iinfo(np.int64).min)
    np.minimum.at(first, codes, time)
    np.maximum.at(last, codes, time)
    return np.stack([first, np.maximum(first, last)], 1)
