"""Time series: forecasters on long and wide frames, beside repeat, seasonal naive and ridge baselines."""

from __future__ import annotations

# Packages of the `timeseries` extra that the domain needs; the command line checks them before it starts.
REQUIRES = ("pandas", "pyarrow")

__all__ = ["REQUIRES"]
