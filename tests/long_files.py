"""Long frames of ragged series, and Parquet files of them in small row groups."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq


def ragged(lengths=(90, 7, 400, 1, 60), seed: int = 0) -> pd.DataFrame:
    """A long frame: series of these lengths that end on one day, the last two earlier, with
    values that are missing."""
    rng, parts = np.random.default_rng(seed), []
    ends = pd.Timestamp("2024-03-31") - pd.to_timedelta([0, 0, 0, 3, 5], "D")
    for i, (count, end) in enumerate(zip(lengths, ends)):
        ds = pd.date_range(end=end, periods=count, freq="D", unit="us")
        y = 20 + 5 * np.sin(np.arange(count) / 7 * 2 * np.pi) + rng.standard_normal(count)
        y[1::9] = np.nan
        parts.append(pd.DataFrame({"unique_id": f"s{i}", "ds": ds, "y": y}))
    return pd.concat(parts, ignore_index=True)


def write(frame: pd.DataFrame, path: Path, rows: int = 50, empty: bool = False) -> Path:
    """Writes row groups of so many rows, with one without rows between them."""
    table = pa.Table.from_pandas(frame, preserve_index=False)
    with pq.ParquetWriter(path, table.schema) as writer:
        for first in range(0, len(table), rows):
            writer.write_table(table.slice(first, rows))
            if empty:
                writer.write_table(table.slice(0, 0))
    return path
