"""Values that a file means as missing: its valid range, the fill values of the netCDF library, and
what looks like a fill value that the file does not declare."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from longseq.core.errors import DataError

# What the netCDF library leaves in blocks that nobody wrote (netcdf.h, NC_FILL_*).
_DEFAULT_FILL = {
    "f4": 9.969209968386869e36,
    "f8": 9.969209968386869e36,
    "i2": -32767,
    "u2": 65535,
    "i4": -2147483647,
    "u4": 4294967295,
}
_MARKS = ("_FillValue", "missing_value")
_SENTINELS = (99.0, 99.9, 99.99, 888.0, 999.0, 999.9, 999.99, 8888.0, 9999.0, 9999.9, 9999.99)
_LARGE = (32767.0, 32768.0, 99999.0, 999999.0, 9999999.0)
# The same of 16-bit integers that somebody has unpacked without their mark.
_LARGE += (3276.7, 3276.8, 327.67, 327.68, 6553.5, 655.35)
_HUGE = 1e15
# Weather that stands still for so many records does not.
_IDLE_RECORDS = 12


def check_packing(data: Any, variable: str | None, path: Path) -> None:
    """Checks that what packed values are scaled by is one number each, and no scale 0.

    Args:
        data: an xarray data set, decoded or not.
        variable: the one that is wanted; None for all.
        path: file, for messages.

    Raises:
        DataError: if it is not.
    """
    for name in map(str, data.variables):
        if variable in data.data_vars and name in data.data_vars and name != variable:
            continue
        said = {**data.variables[name].attrs, **data.variables[name].encoding}
        for key in ("scale_factor", "add_offset"):
            value = np.asarray(said.get(key, 1.0))
            usable = value.size == 1 and value.dtype.kind in "iuf" and np.isfinite(value).all()
            if usable and (key == "add_offset" or value.item() != 0):
                continue
            text = f"its {key} is {value.tolist()!r}, and must be a number"
            text += " other than 0" if key == "scale_factor" else ""
            hint = f"correct it: ncatted -a {key},{name},o,d,NUMBER in"
            raise DataError(text, path=path, record=name, hint=hint)


@dataclass(frozen=True)
class Marks:
    """What counts as missing in a variable, beside its _FillValue and missing_value.

    Args:
        low: the least valid value, unpacked; -inf for none.
        high: the greatest; inf for none.
        fills: the netCDF library's own fill value, unpacked, where the file declares none; marks
            declared in double precision that the file's own floats cannot equal (-999.9, 1e20).
        slack: half a step of packed integers, within which unpacked values are equal.
        extremes: of packed integers, unpacked, that often stand for missing values.
    """

    low: float = -np.inf
    high: float = np.inf
    fills: tuple[float, ...] = ()
    slack: float = 0.0
    extremes: tuple[float, ...] = ()

    @classmethod
    def of(cls, array: Any, netcdf: bool = True) -> Marks:
        """Returns the marks of an xarray array whose scale is applied already.

        Args:
            array: with its attributes and its encoding.
            netcdf: whether it comes from the netCDF library, which has fill values of its own.
        """
        coding, attrs = array.encoding, array.attrs
        packed = np.dtype(coding.get("dtype") or array.dtype)
        unsigned = str(attrs.get("_Unsigned", coding.get("_Unsigned", ""))).lower() == "true"
        scale = float(np.ravel(coding.get("scale_factor", 1.0))[0])
        offset = float(np.ravel(coding.get("add_offset", 0.0))[0])
        whole = packed.kind in "iu"
        if whole and unsigned:
            packed = np.dtype(f"u{packed.itemsize}")
        scaled = "scale_factor" in coding or "add_offset" in coding

        def limit(name: str, at: int) -> float | None:
            value = np.ravel(attrs.get(name, ()))
            if len(value) <= at or value.dtype.kind not in "iuf":
                return None
            if whole and unsigned and value.dtype.kind == "i":
                value = value.astype(f"i{packed.itemsize}").view(packed)
            number = float(value[at])
            # Limits wider than the packed integers' type are in the units of the unpacked values.
            return number * scale + offset if scaled and value.dtype.kind in "iu" else number

        pair = "valid_range" in attrs
        low = limit("valid_range", 0) if pair else limit("valid_min", 0)
        high = limit("valid_range", 1) if pair else limit("valid_max", 0)
        if scale < 0 and scaled:
            low, high = high, low
        declared = any(key in coding for key in _MARKS)
        fills: list[float] = []
        if netcdf and not declared and f"{packed.kind}{packed.itemsize}" in _DEFAULT_FILL:
            fills.append(_DEFAULT_FILL[f"{packed.kind}{packed.itemsize}"] * scale + offset)
        for value in np.concatenate([np.ravel(coding.get(key, ())) for key in _MARKS]):
            if packed.kind == "f" and isinstance(value, float) and np.isfinite(value):
                with np.errstate(over="ignore"):
                    near = float(packed.type(value))
                fills += [near * scale + offset] if near != value and np.isfinite(near) else []
        extremes: tuple[float, ...] = ()
        if whole:
            ends = np.iinfo(packed)
            extremes = tuple(v * scale + offset for v in (ends.min, ends.min + 1, ends.max))
        return cls(
            -np.inf if low is None else low,
            np.inf if high is None else high,
            tuple(fills),
            abs(scale) / 2 if whole else 0.0,
            extremes,
        )

    def __str__(self) -> str:
        parts = [f"below {self.low:g}"] if np.isfinite(self.low) else []
        parts += [f"above {self.high:g}"] if np.isfinite(self.high) else []
        parts += [f"of {fill:g}" for fill in self.fills]
        return " or ".join(parts)

    def apply(self, values: np.ndarray) -> np.ndarray:
        """Returns values with NaN where they mean missing; the same array if none does.

        Args:
            values: of the file, unpacked, in its own units; any shape.
        """
        if not values.size:
            return values
        bad = None
        if np.isfinite(self.low) or np.isfinite(self.high):
            kind = values.dtype.type if values.dtype.kind == "f" else np.float64
            with np.errstate(over="ignore"):
                bad = (values < kind(self.low - self.slack)) | (
                    values > kind(self.high + self.slack)
                )
        for fill in self.fills:
            near = max(self.slack, 1e-6 * abs(fill))
            with np.errstate(over="ignore", invalid="ignore"):
                unwritten = np.abs(values - values.dtype.type(fill)) < near
            bad = unwritten if bad is None else bad | unwritten
        if bad is not None and bad.any():
            values = np.where(bad, np.nan, values)
        return values

    def of_one(self, values: np.ndarray, path: str | Path, name: str) -> np.ndarray:
        """Returns all values of a variable with NaN where they mean missing, checked for marks that
        are not declared.

        Args:
            values: of the file, unpacked, in its own units; any shape.
            path: file, for messages.
            name: of the variable, likewise.

        Raises:
            DataError: as ``Suspects.check``.
        """
        found = self.apply(values)
        suspects = Suspects(self)
        suspects.see(found)
        suspects.check(path, name)
        return found

    def looks_missing(self, value: float) -> bool:
        """Returns whether a value is a usual mark of missing ones."""
        if abs(value) >= _HUGE:
            return True
        usual = (*_SENTINELS, *_LARGE)
        near = any(abs(abs(value) - one) <= 1e-6 * one for one in usual)
        return near or any(abs(value - one) <= max(self.slack, 1e-9) for one in self.extremes)


@dataclass
class Suspects:
    """Ends of a variable's values that are usual marks of missing values, gathered from blocks.

    Args:
        marks: of the variable.
        zero_is_chance: whether 0 is a value like any other, as of degC: cells that never have
            another one are then suspect too.
        gathers: whether values are amounts: those that never fall are then suspect as totals.
        counts: of every such end.
        low: the least of all other values.
        high: the greatest.
        idle: which cells have been 0 throughout (Y, X).
        records: fields that were seen.
        last: the last of them (…, 1, Y, X).
        falls: how many values are below the one before them, and by how much in all.
        rises: how many values of every cell are above the one before them (Y, X).
        risen: by how much in all.
    """

    marks: Marks
    zero_is_chance: bool = False
    gathers: bool = False
    counts: dict[float, int] = field(default_factory=dict)
    low: float = np.inf
    high: float = -np.inf
    idle: np.ndarray | None = None
    records: int = 0
    last: np.ndarray | None = None
    falls: tuple[int, float] = (0, 0.0)
    rises: np.ndarray | None = None
    risen: float = 0.0

    def see(self, values: np.ndarray) -> None:
        """Adds a block of values (…, Y, X), NaN where they are missing."""
        if self.zero_is_chance:
            idle = (values == 0).all(tuple(range(values.ndim - 2)))
            self.idle = idle if self.idle is None else self.idle & idle
        if self.zero_is_chance or self.gathers:
            self.records += int(np.prod(values.shape[:-2]))
        if self.gathers:
            joined = [values] if self.last is None else [self.last, values]
            steps = np.diff(np.concatenate(joined, -3), axis=-3)
            self.last, down, up = values[..., -1:, :, :], steps < 0, steps > 0
            lost, gained = (float(np.abs(steps[one], dtype=np.float64).sum()) for one in (down, up))
            self.falls = self.falls[0] + int(down.sum()), self.falls[1] + lost
            rises = up.sum(tuple(range(steps.ndim - 2)))
            self.rises = rises if self.rises is None else self.rises + rises
            self.risen += gained
        rest = values[np.isfinite(values)] if values.dtype.kind == "f" else values.ravel()
        # One after the other, from either end.
        while rest.size:
            ends = (float(rest.min()), float(rest.max()))
            found = [end for end in dict.fromkeys(ends) if self.marks.looks_missing(end)]
            if not found or len(self.counts) > 8:
                self.low, self.high = min(self.low, ends[0]), max(self.high, ends[1])
                return
            for end in found:
                self.counts[end] = self.counts.get(end, 0) + int((rest == end).sum())
                rest = rest[rest != end]

    def check(self, path: str | Path, name: str) -> None:
        """Checks that no suspect lies farther from all other values than these from each other.

        Raises:
            DataError: naming it.
        """
        idle = 0 if self.idle is None else int(self.idle.sum())
        if self.records >= _IDLE_RECORDS and idle and (self.low < 0 or self.high > 0):
            raise DataError(
                f"is exactly 0 in {idle:,} cells all the time, as land is where its mark was lost",
                path=path,
                record=name,
                hint="mask them: cdo setctomiss,0 in out; --anomalies if these are differences",
            )
        if self.records >= _IDLE_RECORDS and self._is_total():
            text, hint = "never falls and rises everywhere", "take differences: cdo deltat in out"
            if self.falls[0]:
                text = f"rises everywhere, and falls {self.falls[0]:,} times only, far at once"
                hint = "take differences, and the first value itself after every new start"
            text += ": these are totals since the start, not amounts of its intervals"
            raise DataError(text, path=path, record=name, hint=hint)
        spread = self.high - self.low
        for end, count in self.counts.items():
            if np.isfinite(spread):
                gap = min(abs(end - self.low), abs(end - self.high))
                outside = not self.low <= end <= self.high
                alone = outside and gap > max(spread, 1e-3 * abs(end))
            else:
                alone = abs(end) >= _HUGE and len(self.counts) == 1
            if alone:
                raise DataError(
                    f"{end:.6g} occurs {count:,} times, far from all other values: it looks like a "
                    f"mark of missing values that is not declared",
                    path=path,
                    record=name,
                    hint="declare it: ncatted -a _FillValue or missing_value",
                )

    def _is_total(self) -> bool:
        """Returns whether values rise in every cell and never fall, or fall as totals do that
        start anew (every year, or at a full bucket): a quarter as often as they rise at most, by
        three times as much on average at least. Amounts rise about as often as they fall."""
        if self.last is None or self.rises is None:
            return False
        there = np.isfinite(self.last).any(tuple(range(self.last.ndim - 2)))
        if not there.any() or not self.rises[there].all():
            return False
        (times, lost), rises = self.falls, int(self.rises.sum())
        # lost / times ≥ 3 · risen / rises, without dividing by no falls
        return 4 * times <= rises and lost * rises >= 3 * self.risen * times
