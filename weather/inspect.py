"""``longseq weather inspect``: what a NetCDF file or Zarr store holds, read and checked as for
training."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np

from longseq.core.command_line import CommandParser
from longseq.core.errors import DataError
from longseq.weather.data.cf import SUFFIXES, is_zarr, resolve
from longseq.weather.data.field import Field, kind_of_years, year_plan
from longseq.weather.data.runs import read_run, run_files
from longseq.weather.data.source import read_field
from longseq.weather.metrics import area_mean


def run(argv: Sequence[str]) -> int:
    """Runs ``longseq weather inspect``."""
    parser = CommandParser(prog="longseq weather inspect", description=__doc__)
    parser.add_argument(
        "inputs",
        nargs="+",
        help=".nc files, Zarr stores, sample names or folders of them; runs of several files, a "
        "pattern or joined by +, are also joined as compare joins them",
    )
    parser.add_argument("--variable", help="name or standard name (the only one)")
    parser.add_argument("--units", help="to convert to (canonical ones)")
    parser.add_argument(
        "--anomalies", action="store_true", help="the values are anomalies or other differences"
    )
    args = parser.parse_args(argv)
    files: list[str] = []
    runs: list[str] = []
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
            own = run_files(text)
            files += own
            runs += [text] if len(own) > 1 else []
    errors: list[DataError] = []
    for file in files:
        try:
            _show(file, args.variable, args.units, args.anomalies)
        except DataError as error:
            if len(files) == 1:
                raise
            errors.append(error)
    for text in runs:
        try:
            _show_run(text, args.variable, args.units, args.anomalies)
        except DataError as error:
            if not errors:
                raise
            print(f"note: {text} cannot be joined: {error}", file=sys.stderr)
    if errors:
        print(f"note: {len(errors)} of {len(files)} files cannot be read:", file=sys.stderr)
        for problem in errors:
            print(f"  {problem}", file=sys.stderr)
    if len(errors) == len(files):
        raise DataError(f"none of the {len(files)} files can be read")
    return 0


def _show(file: str, variable: str | None, units: str | None, anomalies: bool) -> None:
    data = read_field(file, variable, units, True if anomalies else None)
    low, high = float(np.nanmin(data.values)), float(np.nanmax(data.values))
    mean = float(area_mean(np.nan_to_num(data.mean), data.grid.weights(mask=data.mask)).mean())
    print(
        f"{file}: {data.name} ({data.attrs.get('standard_name', 'no standard name')}), {data.units}"
    )
    print(f"  {len(data.time)} times {data.time[0]} … {data.time[-1]}, calendar {data.calendar}")
    rows, columns = data.grid.shape
    if data.grid.lat.ndim == 1:
        print(f"  latitude {data.lat[0]:g} … {data.lat[-1]:g} ({rows}), ", end="")
        print(f"longitude {data.lon[0]:g} … {data.lon[-1]:g} ({columns})")
        print(f"  {'round the globe' if data.grid.periodic else 'a region'}; ", end="")
    else:
        north, east = data.grid.edges()
        print(f"  latitude {north[0]:g} … {north[1]:g}, longitude {east[0]:g} … {east[1]:g}")
        whole = "the globe" if data.grid.global_ else "a region"
        print(f"  {whole} on {rows} × {columns} curvilinear cells; ", end="")
    print(f"values {low:.6g} … {high:.6g}, area mean {mean:.6g}")
    if data.bounds is not None:
        print(f"  intervals from {data.bounds[0, 0]} to {data.bounds[-1, 1]}")
    for scalar in data.scalars:
        print(f"  {scalar.name} {scalar.value:g} {scalar.attrs.get('units', '')}".rstrip())
    print(f"  {_years(data)}")
    for note in data.notes:
        print(f"  changed: {note}")


def _show_run(text: str, variable: str | None, units: str | None, anomalies: bool) -> None:
    data = read_run(text, variable, units, True if anomalies else None)
    members = f", {data.values.shape[0]} members" if data.values.ndim == 4 else ""
    print(f"{text}: {len(run_files(text))} files joined")
    print(
        f"  years {data.years[0]} … {data.years[-1]}{members}, yearly {kind_of_years(data.attrs)}"
    )


def _years(data: Field) -> str:
    """Returns which years the records make, or why ``compare`` and ``fit`` would refuse them."""
    try:
        plan, _, notes = year_plan(data.time, data.calendar, data.bounds, "")
    except DataError as error:
        return f"no whole years: {error}"
    first, last = plan[0], plan[-1]
    text = f"years {first.year} … {last.year}, {first.stop - first.start} records each"
    same = len({year.stop - year.start for year in plan}) == 1
    text = text if same else f"years {first.year} … {last.year}"
    return "; ".join((text, *notes))
