"""GRIB files as data sets of the CF conventions, through cfgrib and ecCodes (extra ``grib``)."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import signal
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from longseq.core.errors import DataError

# How the values of a step's type came about in its interval; others hold at one time.
_METHODS = {"accum": "sum", "avg": "mean", "max": "maximum", "min": "minimum"}
_HOURS = {"s": 1 / 3600, "m": 1 / 60, "h": 1.0, "3h": 3.0, "6h": 6.0, "12h": 12.0, "D": 24.0}
_UNREADABLE = 3
_SPLIT = "take one kind out: grib_copy -w shortName=… in.grib out.grib"


@dataclass(frozen=True)
class Message:
    """What a message of a GRIB file says of itself.

    Args:
        names: by which its quantity is called: the short name, those of the CF table.
        place: level, member and valid time.
        kind: of the step, for example "instant" or "accum".
        hours: length of its interval.
    """

    names: tuple[str, ...]
    place: tuple[Any, ...]
    kind: str
    hours: float


def read_messages(file: Path) -> list[Message]:
    """Returns what the messages of a GRIB file say, without their values.

    Raises:
        DataError: if it is truncated or damaged.
    """
    import eccodes

    found = []
    try:
        with file.open("rb") as stream:
            while (
                handle := eccodes.codes_grib_new_from_file(stream, headers_only=True)
            ) is not None:
                try:
                    found.append(_message(eccodes, handle))
                finally:
                    eccodes.codes_release(handle)
    except eccodes.CodesInternalError as error:
        text = f"is GRIB, and message {len(found) + 1} is truncated or damaged ({error})"
        raise DataError(text, path=file, hint="copy it again") from error
    return found


def _message(eccodes: Any, handle: Any) -> Message:
    def get(key: str, default: Any = "") -> Any:
        try:
            return eccodes.codes_get(handle, key)
        except eccodes.CodesInternalError:
            return default

    unit = _HOURS.get(str(get("stepUnits", "h")), 1.0)
    unit = {0: 1 / 60, 1: 1.0, 2: 24.0, 13: 1 / 3600}.get(get("stepUnits", 1), unit)
    hours = (float(get("endStep", 0)) - float(get("startStep", 0))) * unit
    names = dict.fromkeys(str(get(key)) for key in ("shortName", "cfVarName", "cfName", "paramId"))
    place = tuple(
        get(key) for key in ("typeOfLevel", "level", "number", "validityDate", "validityTime")
    )
    return Message(tuple(names), place, str(get("stepType", "instant")), hours)


def open_grib(file: Path, variable: str | None = None) -> Any:
    """Returns an xarray data set, its values unread and its times undecoded.

    Records are dated by the time at which they hold; sums, means and extremes of a step have the
    step's interval as their bounds.

    Args:
        file: its path.
        variable: the one to read, where the file's quantities do not fit into one data set.

    Raises:
        DataError: without cfgrib; for damaged files, messages that hold at the same time, steps of
            several lengths, and quantities that do not fit into one data set.
    """
    try:
        import cfgrib
        import eccodes
    except (ImportError, RuntimeError) as error:
        raise DataError(
            f"is GRIB, which needs cfgrib and ecCodes ({error})",
            path=file,
            hint='pip install "longseq[grib]", or cdo -f nc4 copy in.grib out.nc',
        ) from error
    _rehearse(file, variable)
    return _opened(file, variable, cfgrib, eccodes)


def _rehearse(file: Path, variable: str | None) -> None:
    """Reads a file in a process of its own first: of damaged ones ecCodes can free memory twice or
    stop on an assertion, and either ends the process.

    Raises:
        DataError: if it does, or if values cannot be read.
    """
    if not hasattr(os, "fork"):  # there, a damaged file may end the program
        return
    about = file.stat()
    signum, status = _survived(file, variable, about.st_mtime_ns, about.st_size)
    if signum:
        said = f"the GRIB file is damaged (ecCodes ended by {signal.Signals(signum).name})"
        raise DataError(said, path=file, hint="copy it again")
    if status == _UNREADABLE:
        said = "the GRIB file is damaged (the values of a message cannot be read)"
        raise DataError(said, path=file, hint="copy it again")


@lru_cache(maxsize=1024)  # a file is opened several times, to look at it and to read it
def _survived(file: Path, variable: str | None, modified: int, size: int) -> tuple[int, int]:
    """Returns the signal by which a process ended that opened the file and read it record by
    record, and its status, one of the two 0."""
    import cfgrib
    import eccodes

    pid = os.fork()
    if pid == 0:
        status, data = 0, None
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        with contextlib.suppress(BaseException):  # the other process says it
            data = _opened(file, variable, cfgrib, eccodes)
        try:
            for one in () if data is None else data.data_vars.values():
                for place in np.ndindex(one.shape[:-2]):  # a map at a time
                    np.asarray(one[place])
        except BaseException:  # noqa: BLE001 - of whatever kind, they cannot be read
            status = _UNREADABLE
        data = one = None
        gc.collect()  # what is freed twice is freed here
        os._exit(status)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        return os.WTERMSIG(status), 0
    return 0, os.WEXITSTATUS(status)


def _opened(file: Path, variable: str | None, cfgrib: Any, eccodes: Any) -> Any:
    """Returns the data set of ``open_grib``."""
    import xarray as xr

    messages = read_messages(file)
    wanted = [one for one in messages if variable is None or variable in one.names]
    if not wanted:
        known = ", ".join(dict.fromkeys(one.names[0] for one in messages))
        raise DataError(f"has no variable {variable!r} (it has {known})", path=file)
    how: dict[str, Any] = {"indexpath": "", "time_dims": ("valid_time",), "errors": "raise"}
    if variable is not None:
        how["filter_by_keys"] = {"shortName": wanted[0].names[0]}
    logging.getLogger("cfgrib").setLevel(logging.CRITICAL)
    try:
        data = xr.open_dataset(
            file, engine="cfgrib", decode_times=False, chunks=None, cache=False, backend_kwargs=how
        )
    except cfgrib.DatasetBuildError as error:
        names = ", ".join(dict.fromkeys(one.names[0] for one in wanted))
        text = f"its messages ({names}) do not fit into one data set"
        hint = "name one with --variable" if variable is None else _SPLIT
        raise DataError(text, path=file, hint=hint) from error
    except (eccodes.CodesInternalError, EOFError, KeyError, ValueError, TypeError) as error:
        raise DataError(f"the GRIB file is damaged ({error})", path=file) from error
    data = data.drop_vars([name for name in ("surface", "meanSea") if name in data.coords])
    if "valid_time" in data.coords and data["valid_time"].ndim == 0:  # of a single record
        data = data.expand_dims("valid_time")
    for name in data.data_vars:
        if data[name].attrs.get("standard_name") == "unknown":
            del data[name].attrs["standard_name"]
        data = _with_interval(data, str(name), wanted, file)
    return data


def _with_interval(data: Any, name: str, messages: list[Message], file: Path) -> Any:
    """Returns the data set with the name and the interval of a variable's steps."""
    short = str(data[name].attrs.get("GRIB_shortName", name))
    own = [one for one in messages if one.names[0] == short]
    twice, count = Counter(one.place for one in own).most_common(1)[0]
    if count > 1:
        text = f"{count} messages hold at {twice[-2]} {twice[-1]:04d}, from different starts"
        raise DataError(text, path=file, record=short, hint="keep one step of every start")
    kinds = {(one.kind, one.hours) for one in own}
    method = _METHODS.get(own[0].kind)
    if method is None:
        return data
    if len(kinds) > 1:
        lengths = ", ".join(f"{hours:g}" for hours in sorted({one.hours for one in own}))
        text = f"its values are of steps of {lengths} hours in one file"
        raise DataError(text, path=file, record=short, hint="keep steps of one length")
    hours = own[0].hours
    if hours <= 0:
        return data
    data[name].attrs["cell_methods"] = f"time: {method}"
    end = np.atleast_1d(np.asarray(data["valid_time"].values, dtype=np.float64))
    if data["valid_time"].ndim == 1 and "time_bounds" not in data.variables:
        data["time_bounds"] = (("valid_time", "bnds"), np.stack([end - 3600 * hours, end], 1))
        data["valid_time"].attrs["bounds"] = "time_bounds"
    return data
