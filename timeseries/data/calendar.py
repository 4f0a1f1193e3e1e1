"""Calendar features of times, each scaled to [-0.5, 0.5]: known for the future as well as for the
past."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

# Finest first; a step of a day drops the clock, a step of an hour the minutes. The order is that of
# the published checkpoints of Informer and Autoformer.
FEATURES = ("minute", "hour", "weekday", "day", "yearday")
_FIRST = {"t": 0, "h": 1, "d": 2}
N_FEATURES = {"t": 5, "h": 4, "d": 3, "n": 0}


def resolution(freq: Any) -> str:
    """Returns which features make sense for a step: "t" (below an hour), "h", "d" (a day and more).

    "n" (none) is for series without dates.

    Args:
        freq: step of a panel.
    """
    if isinstance(freq, int):
        return "n"
    try:
        step = pd.Timedelta(freq)
    except ValueError:  # months, quarters, business days: no fixed length, and all at least a day
        return "d"
    return "t" if step < pd.Timedelta(hours=1) else "h" if step < pd.Timedelta(days=1) else "d"


def calendar_features(ds: pd.Index, kind: str) -> np.ndarray:
    """Returns float32 (T, F).

    Args:
        ds: times.
        kind: of ``resolution``.
    """
    if kind == "n":
        return np.zeros((len(ds), 0), np.float32)
    times = pd.DatetimeIndex(ds)
    columns = {
        "minute": times.minute / 59.0,
        "hour": times.hour / 23.0,
        "weekday": times.day_of_week / 6.0,
        "day": (times.day - 1) / 30.0,
        "yearday": (times.day_of_year - 1) / 365.0,
    }
    chosen = FEATURES[_FIRST[kind] :]
    return np.stack(
        [np.asarray(columns[name], np.float32) - np.float32(0.5) for name in chosen], axis=1
    )
