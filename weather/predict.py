"""``longseq weather predict``: a scenario in, CF NetCDF or Zarr out, from a checkpoint alone."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from longseq.core.command_line import CommandParser, add_device
from longseq.core.errors import ConfigError, DataError, LongseqError
from longseq.core.files import check_writable
from longseq.core.tables import SUFFIXES as TABLES
from longseq.core.training.loading import load_task
from longseq.weather.data.cf import SUFFIXES, is_zarr, resolve
from longseq.weather.data.field import Field, Scalar
from longseq.weather.data.grid import Grid
from longseq.weather.data.positive import keep_positive, reference
from longseq.weather.data.runs import check_history, check_quantity, read_run
from longseq.weather.data.scenario import (
    Scenario,
    Span,
    check_fixed,
    check_predictors,
    check_units,
    inside,
    make_scenario,
    need_years,
    parse_span,
    running_mean,
)
from longseq.weather.data.seasons import Part
from longseq.weather.data.series import read_series, read_units
from longseq.weather.data.times import mid_years, year_bounds
from longseq.weather.data.writer import (
    Variable,
    check_output,
    provenance,
    to_dataset,
    write_dataset,
)
from longseq.weather.task import ClimateEmulator


def load_emulator(path: str | Path) -> ClimateEmulator:
    """Returns the emulator in a checkpoint.

    Raises:
        DataError: if it holds another task, or was not trained.
    """
    task = load_task(path, "weather")
    if not isinstance(task, ClimateEmulator):
        raise DataError(
            f"is a checkpoint of {type(task).__name__}, not of ClimateEmulator", path=path
        )
    if not task.about:
        raise DataError("does not say what it was trained on", path=path, hint="train it with fit")
    return task


def run_emulator(task: ClimateEmulator, predictors: np.ndarray) -> np.ndarray:
    """Returns anomalies float32 (T, Y, X) of predictors (T, K), in the training's units.

    Args:
        task: in evaluation mode.
        predictors: the whole history.
    """
    device = next(task.parameters()).device
    with torch.inference_mode():
        x = torch.from_numpy(np.asarray(predictors, dtype=np.float32))[None].to(device)
        return task(x)[0].cpu().numpy()


def part_of(task: ClimateEmulator) -> Part:
    """Returns the part of every year that an emulator was trained on."""
    return Part(tuple(task.about.get("months", ())), bool(task.about.get("whole_years")))


def scenario_of(
    task: ClimateEmulator, path: str, forcing: str | None = None, interpolate: bool = False
) -> Scenario:
    """Returns a run as the emulator was trained to see it: its variable, units, baseline years and
    smoothing.

    Args:
        task: the emulator.
        path: file of the run.
        forcing: its forcings, for an emulator that was trained on forcings.
        interpolate: whether forcings are filled in linearly between the years of their file.

    Raises:
        DataError: if the file lacks something, or lies on another grid.
    """
    about = task.about
    if about["regional"] and forcing is not None:
        raise ConfigError(
            "--forcing: the checkpoint was trained on the regional mean, not on forcings"
        )
    if not about["regional"] and forcing is None:
        raise ConfigError(
            f"--forcing: the checkpoint was trained on {', '.join(about['names'])}: give their file"
        )
    anomalies = bool(about.get("anomalies"))
    data = read_run(path, None, about["units"], True if anomalies else None, part_of(task))
    if not anomalies:
        hint = "give the run with its history, the checkpoint's climatology is of these years"
        need_years(data, tuple(about["baseline"]), "baseline", hint)
    run = make_scenario(
        data, tuple(about["baseline"]), about["smooth"], forcing, anomalies, interpolate
    )
    check_predictors(about["names"], about.get("predictor_units", {}), run, "the checkpoint")
    check_fixed(about.get("fixed", {}), run.predictors, run.names, run.forcing)
    check_grid(task, run.field)
    check_history(about.get("first_year"), run.years, path)
    return run


def check_grid(task: ClimateEmulator, data: Field) -> None:
    """Checks that a field is of the quantity and on the grid of the training data.

    Raises:
        DataError: if not.
    """
    about = task.about
    scalars = [Scalar(*one) for one in about.get("scalars", ())]
    check_quantity(about["variable"], about["attrs"], scalars, "the checkpoint's training", data)
    grid = Grid.from_facts(about)
    if not data.grid.same(grid):
        text = f"its grid of {data.grid} is not the checkpoint's of {grid}"
        raise DataError(text, path=data.path, hint="regrid it")
    mask = task.about.get("mask")
    known = np.ones(grid.shape, bool) if mask is None else np.array(mask)
    own = np.ones(grid.shape, bool) if data.mask is None else data.mask
    if not np.array_equal(known, own):
        text = f"has values in {int(own.sum()):,} cells, the checkpoint in {int(known.sum()):,}"
        raise DataError(text, path=data.path, hint="mask it alike")


def predict_file(task: ClimateEmulator, args: argparse.Namespace, path: str, command: str) -> Any:
    """Returns the prediction for one file as a CF data set.

    Args:
        task: the emulator.
        args: of the command line.
        path: a run's file, or a table with the columns ``year`` and the predictors.
        command: for the history.
    """
    about = task.about
    climatology, grid = np.array(about["climatology"]), Grid.from_facts(about)
    mask = None if about.get("mask") is None else np.array(about["mask"])
    part = part_of(task)
    if Path(path.partition("::")[0]).suffix.lower() in TABLES:
        years, predictors, _ = read_series(path, about["names"], args.interpolate)
        known = about.get("predictor_units", {})
        check_units(known, read_units(path), path, "the checkpoint")
        check_fixed(about.get("fixed", {}), predictors, about["names"], path)
        check_history(about.get("first_year"), years, path)
        if about["regional"]:
            predictors = running_mean(predictors, about["smooth"])
        calendar = "noleap"
        time, bounds = mid_years(years, calendar), year_bounds(years, calendar)
        if part.months:
            time, bounds = part.axis(years - part.wraps, calendar)
        inputs = [path]
    else:
        run = scenario_of(task, path, args.forcing, args.interpolate)
        years, predictors, calendar = run.years, run.predictors, run.field.calendar
        time, bounds, climatology = run.field.time, run.field.bounds, run.climatology
        inputs = [path, *([args.forcing] if args.forcing else [])]
    anomalies = run_emulator(task, predictors)
    if about.get("positive"):
        scale = reference(climatology, grid.weights(mask=mask))
        anomalies = keep_positive(anomalies, climatology, scale)
    chosen = np.ones(len(years), dtype=bool)
    if args.period:
        chosen = inside(years, parse_span("--period", args.period))
        if not chosen.any():
            raise DataError(f"has no year of --period {args.period}", path=path)
    name, units, attrs = about["variable"], about["units"], dict(about["attrs"])
    baseline = "-".join(map(str, about["baseline"]))
    total = climatology + anomalies[chosen]
    if about.get("positive"):
        total = np.maximum(total, 0.0)  # the last digit of a total of nothing
    whole = [Variable(name, total, units, attrs)]
    fields = [
        *([] if about.get("anomalies") else whole),
        Variable(
            f"{name}_anomaly",
            anomalies[chosen],
            units,
            {
                "long_name": f"{attrs.get('long_name', name)} relative to {baseline}",
                **(
                    {
                        "standard_name": "air_temperature_anomaly",
                        "units_metadata": "temperature: difference",
                    }
                    if attrs.get("standard_name") == "air_temperature"
                    else {}
                ),
            },
        ),
    ]
    mixer = task.hparams["mixer"]
    model = f"{mixer if isinstance(mixer, str) else '+'.join(mixer)} emulator"
    about_file = provenance(model, args.ckpt_path, inputs, command)
    about_file["title"] = f"Emulated {name} for {Path(path).name}"
    about_file["training_files"] = ", ".join(Path(file).name for file in about["training"])
    about_file["baseline_years"] = baseline
    about_file["comment"] = (
        "A statistical estimate of the forced response, not a climate model's output."
    )
    return to_dataset(
        fields,
        time[chosen],
        calendar,
        grid,
        about_file,
        None if bounds is None else bounds[chosen],
        mask,
        [Scalar(*one) for one in about.get("scalars", ())],
    )


def run(argv: Sequence[str]) -> int:
    """Runs ``longseq weather predict``."""
    parser = CommandParser(
        prog="longseq weather predict",
        description="Predicts the yearly fields of a scenario from its regional mean (or "
        "forcings). A folder "
        "is done file by file: bad files are counted and listed, and the others are predicted.",
    )
    parser.add_argument(
        "input", help=".nc file, Zarr store, CSV (year and predictors), sample name, or folder"
    )
    parser.add_argument("--ckpt_path", required=True, help="checkpoint of an emulator")
    parser.add_argument(
        "--out", required=True, help=".nc or .zarr to write; for a folder, a folder"
    )
    parser.add_argument(
        "--forcing", help="forcings of the scenario, where the checkpoint was trained on them"
    )
    parser.add_argument(
        "--interpolate",
        action="store_true",
        help="fill in the years between those of a CSV linearly (refused otherwise)",
    )
    parser.add_argument("--period", help="years to write, such as 2080-2099 (all)")
    parser.add_argument("--map", help="PNG map of the mean anomaly over --map_period")
    parser.add_argument("--map_period", help="years of the map (the last 20 that are written)")
    add_device(parser)
    args = parser.parse_args(argv)
    command = "longseq weather predict " + " ".join(argv)
    folder = resolve(args.input)
    if folder.is_dir() and not is_zarr(folder):
        return _run_folder(args, folder, command)
    check_output(args.out)
    if args.map:
        check_writable(args.map)
    task = load_emulator(args.ckpt_path)
    task.to(args.device)
    data = predict_file(task, args, args.input, command)
    span = _map_span(args, _years_of(data))
    write_dataset(data, args.out)
    print(
        f"{args.out}: {data.sizes['time']} years of {task.about['variable']} "
        f"({task.about['units']})"
    )
    if args.map:
        _draw(args, task, data, span)
        print(args.map)
    return 0


def _map_span(args: argparse.Namespace, years: np.ndarray) -> Span:
    """Returns the first and last year of the map; refuses what is not written."""
    if not args.map_period:
        return int(years[max(0, len(years) - 20)]), int(years[-1])
    if not args.map:
        raise ConfigError("--map_period needs --map")
    first, last = parse_span("--map_period", args.map_period)
    if first < years[0] or last > years[-1]:
        text = f"the years written are {years[0]}-{years[-1]}"
        raise ConfigError(f"--map_period {args.map_period}: {text}")
    return first, last


def _draw(args: argparse.Namespace, task: ClimateEmulator, data: Any, span: Span) -> None:
    """Draws the mean anomaly of some years."""
    from longseq.weather.maps import plot_maps

    name = f"{task.about['variable']}_anomaly"
    chosen, (first, last) = inside(_years_of(data), span), span
    baseline = "-".join(map(str, task.about["baseline"]))
    title = f"{Path(args.input).name}: {first}-{last} relative to {baseline}"
    mean = data[name].values[chosen].mean(0)
    plot_maps({title: mean}, Grid.from_facts(task.about), args.map, data[name].units)


def _years_of(data: Any) -> np.ndarray:
    import cftime

    time = data["time"]
    dates = cftime.num2date(time.values, time.attrs["units"], time.attrs["calendar"])
    return np.array([date.year for date in dates])


def _run_folder(args: argparse.Namespace, folder: Path, command: str) -> int:
    """Predicts every file of a folder; bad ones are listed."""
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    if not files:
        raise DataError("holds no .nc files or Zarr stores", path=folder)
    out = Path(args.out)
    if out.is_file() or out.suffix.lower() in (".nc", ".zarr"):
        raise ConfigError(f"--out {out}: a folder is needed, because the input is one")
    if out.resolve() == folder.resolve():
        raise ConfigError(f"--out {out}: is the input folder; give another")
    if args.map or args.map_period:
        raise ConfigError("--map draws one run: give a file instead of a folder")
    task = load_emulator(args.ckpt_path)
    task.to(args.device)
    errors: list[LongseqError] = []
    stems = Counter([*files, *(file.with_suffix("") for file in files)])
    for file in files:
        try:
            data = predict_file(task, args, str(file), command)
        except DataError as error:
            errors.append(error)
            continue
        # Of two runs that differ in the ending alone, it stays in the name.
        target = out / f"{file.stem if stems[file.with_suffix('')] == 1 else file.name}.nc"
        write_dataset(data, target)
        print(f"{target}: {data.sizes['time']} years")
    if errors:
        print(f"note: {len(errors)} of {len(files)} files were left out:", file=sys.stderr)
        for problem in errors:
            print(f"  {problem}", file=sys.stderr)
    if len(errors) == len(files):
        raise DataError(f"none of its {len(files)} files can be predicted", path=folder)
    print(f"{out}: {len(files) - len(errors)} files")
    return 0
