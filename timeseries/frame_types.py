"""Frames of pandas and of polars: what goes in as one comes out as the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from longseq.core.errors import ConfigError


def to_pandas(frame: Any) -> tuple[pd.DataFrame, bool]:
    """Returns a frame of pandas, and whether it was one of polars; of a series of pandas the frame
    with its index."""
    polars = type(frame).__module__.split(".")[0] == "polars"
    if polars and hasattr(frame, "collect"):  # lazy
        frame = frame.collect()
    try:
        table = frame.to_pandas() if polars else frame
    except ValueError as error:  # Arrow has no whole numbers of 128 bits
        text = f"the frame of polars ({frame.schema}) has no form in pandas: {error}"
        raise ConfigError(f"{text}; cast the column, to pl.Float64 for one of numbers") from error
    if isinstance(table, pd.Series) and not polars:  # its index holds the times
        table = table.to_frame("y" if table.name is None else table.name)
    if isinstance(frame, (str, Path)):
        raise ConfigError(f"a frame is needed here, got the path {str(frame)!r}: read it first")
    if not isinstance(table, pd.DataFrame):
        raise ConfigError(
            f"a pandas or polars frame or a path is needed, got {type(frame).__name__}"
        )
    return table, polars


def same_type(frame: pd.DataFrame, polars: bool) -> Any:
    """Returns a frame of pandas, as one of polars where that was given."""
    if not polars:
        return frame
    import polars as pl

    return pl.from_pandas(frame)
