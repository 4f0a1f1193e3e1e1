"""``longseq weather inspect``: what a NetCDF file or Zarr store holds, read and checked as for
training."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import numpy as np

from longseq.core.errors import DataError
from longseq.weather.data.cf import SUFFIXES, is_zarr, read_field, resolve


def run(argv: Sequence[str]) -> int:
    """Runs ``longseq weather inspect``."""
    parser = argparse.ArgumentParser(prog="longseq weather inspect", description=__doc__)
    parser.add_argument(
        "inputs", nargs="+", help=".nc files, Zarr stores, sample names or folders of them"
    )
    parser.add_argument("--variable", help="name or standard name (the only one)")
    parser.add_argument("--units", help="to convert to (canonical ones)")
    args = parser.parse_args(argv)
    files: list[str] = []
    for text in args.inputs:
        path = resolve(text)
        if path.is_dir() and not is_zarr(path):
            found = sorted(
                str(child) for child in path.iterdir() if child.suffix.lower() in SUFFIXES
            )
            if not found:
                raise DataError("holds no .nc files or Zarr stores", path=path)
            files += found
        else:
            files.append(text)
    errors: list[DataError] = []
    for file in files:
        try:
            _show(file, args.variable, args.units)
        except DataError as error:
            if len(files) == 1:
                raise
            errors.append(error)
    if len(errors) == len(files):
        raise DataError(f"none of the {len(files)} files can be read; the first: {errors[0]}")
    if errors:
        print(f"note: {len(errors)} of {len(files)} files cannot be read:", file=sys.stderr)
        for problem in errors:
            print(f"  {problem}", file=sys.stderr)
    return 0


def _show(file: str, variable: str | None, units: str | None) -> None:
    data = read_field(file, variable, units)
    low, high, mean = (float(f(data.values)) for f in (np.min, np.max, np.mean))
    print(
        f"{file}: {data.name} ({data.attrs.get('standard_name', 'no standard name')}), {data.units}"
    )
    print(f"  {len(data.time)} times {data.time[0]} … {data.time[-1]}, calendar {data.calendar}")
    print(f"  latitude {data.lat[0]:g} … {data.lat[-1]:g} ({len(data.lat)}), ", end="")
    print(f"longitude {data.lon[0]:g} … {data.lon[-1]:g} ({len(data.lon)})")
    print(f"  values {low:.6g} … {high:.6g}, mean {mean:.6g}")
    for note in data.notes:
        print(f"  changed: {note}")
