"""ClimateBench (https://doi.org/10.1029/2021MS002954): its files, its predictors, its scores."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from longseq.core.compare import Row
from longseq.core.errors import ConfigError, DataError
from longseq.core.files import atomic_path
from longseq.core.results import digits
from longseq.weather.baselines import PatternScaling, predict_baseline, stacked
from longseq.weather.compare import EmulatorComparison
from longseq.weather.data.cf import grid_of, is_zarr, kinds_of, open_dataset
from longseq.weather.data.coords import kind_of
from longseq.weather.data.missing import Marks
from longseq.weather.data.module import ScenarioData
from longseq.weather.data.scenario import Scenario, check_same_units, parse_span
from longseq.weather.data.source import open_source
from longseq.weather.data.times import decode_time
from longseq.weather.data.writer import Variable, to_dataset, write_dataset
from longseq.weather.metrics import area_mean, global_rmse, spatial_rmse

TRAIN = ("ssp126", "ssp370", "ssp585", "hist-GHG", "hist-aer")
TEST, PERIOD, HISTORICAL = "ssp245", "2080-2100", "historical"
# Units are those of files without any; scores are relative, so the choice does not matter.
VARIABLES = {
    "tas": "K",
    "diurnal_temperature_range": "K",
    "pr": "kg m-2 s-1",
    "pr90": "kg m-2 s-1",
}
SERIES, FIELDS, EOFS = ("CO2", "CH4"), ("SO2", "BC"), 5


@dataclass(frozen=True)
class Inputs:
    """What drives an experiment.

    Args:
        years: (T).
        series: (T, S), those of ``SERIES``.
        fields: one (T, Y·X) for each of ``FIELDS``.
    """

    years: np.ndarray
    series: np.ndarray
    fields: Sequence[np.ndarray]


def read_inputs(path: Path) -> Inputs:
    """Reads ``inputs_<experiment>.nc``: CO2 and CH4 on time, SO2 and BC on time and the grid.

    Raises:
        DataError: for a variable that is missing or has missing values.
    """
    with open_dataset(path) as data:
        found: dict[str, np.ndarray] = {}
        for name in (*SERIES, *FIELDS):
            if name not in data.variables:
                raise DataError(f"has no {name}", path=path, hint="inputs need CO2, CH4, SO2, BC")
            array = data[name]
            if name in FIELDS:
                kinds = kinds_of(array, data)
                if set(kinds) != {"time", "latitude", "longitude"}:
                    text = f"is on {array.dims}, not on time, latitude and longitude"
                    raise DataError(text, path=path, record=name)
                array = array.transpose(*(kinds[k] for k in ("time", "latitude", "longitude")))
            marks = Marks.of(data[name], not is_zarr(path))
            values = marks.of_one(np.asarray(array.values, dtype=np.float64), path, name)
            if not np.isfinite(values).all():
                raise DataError("has missing values", path=path, record=name)
            if name in FIELDS:
                # Experiments may differ in the order of rows and columns; their EOFs may not.
                _, flipped, order, _ = grid_of(data, data[name], path)
                values = (values[:, ::-1] if flipped else values)[..., order]
            found[name] = values.reshape(len(values), -1)
        time = next((d for d in data.dims if kind_of(str(d), dict(data[d].attrs)) == "time"), None)
        if time is None:
            raise DataError("has no time coordinate", path=path)
        years = decode_time(data[time].values, dict(data[time].attrs), path).dates
    numbers = np.array([date.year for date in years])
    if any(len(values) != len(numbers) for values in found.values()):
        raise DataError("its variables have different lengths", path=path)
    return Inputs(
        numbers,
        np.concatenate([found[name] for name in SERIES], 1),
        [found[name] for name in FIELDS],
    )


def _joined(one: Inputs, other: Inputs) -> Inputs:
    return Inputs(
        np.concatenate([one.years, other.years]),
        np.concatenate([one.series, other.series]),
        [np.concatenate(pair) for pair in zip(one.fields, other.fields)],
    )


def principal_components(fields: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the mean (C) and the axes (C, K) whose products with departures have a variance of
    one: the leading EOFs without weights, as the benchmark takes them.

    Args:
        fields: (T, C).
        count: number of EOFs; fewer where the fields have fewer.
    """
    mean = fields.mean(0)
    _, size, axes = np.linalg.svd(fields - mean, full_matrices=False)
    kept = size[:count] > 1e-10 * max(float(size[0]), 1e-300)
    deviation = size[:count][kept] / np.sqrt(max(1, len(fields) - 1))
    return mean, axes[:count][kept].T / deviation


class Archive:
    """A folder in ClimateBench's layout: ``inputs_<experiment>.nc``, ``outputs_<experiment>.nc``.

    Args:
        folder: with the files.
        train: experiments to train on; those of the benchmark that are there if empty.
        test: experiment to score.

    Raises:
        DataError: if a file is missing.
    """

    def __init__(self, folder: str | Path, train: Sequence[str] = (), test: str = TEST) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise DataError("is no folder", path=folder, hint="give that of inputs_*, outputs_*")
        there = [name for name in TRAIN if self._file("outputs", name).exists() and name != test]
        self.train, self.test = list(train) or there, test
        if test in self.train:
            raise ConfigError(f"{test} is both trained on and scored")
        if not self.train:
            raise DataError(f"has no outputs_<experiment>.nc of {', '.join(TRAIN)}", path=folder)
        for name in {*self.train, test, *([HISTORICAL] if self._future() else [])}:
            for kind in ("inputs", "outputs"):
                if not self._file(kind, name).exists():
                    raise DataError(f"has no {kind}_{name}.nc", path=folder)

    def _file(self, kind: str, name: str) -> Path:
        return self.folder / f"{kind}_{name}.nc"

    def _future(self) -> bool:
        return any(not name.startswith("hist") for name in (*self.train, self.test))

    def run(self, name: str) -> str:
        """Returns the outputs of an experiment, a scenario's after the historical ones."""
        own = str(self._file("outputs", name))
        return own if name.startswith("hist") else f"{self._file('outputs', HISTORICAL)}+{own}"

    def variables(self) -> list[str]:
        """Returns which of ``VARIABLES`` the test's outputs have."""
        with open_dataset(self._file("outputs", self.test)) as data:
            found = [name for name in VARIABLES if name in data.variables]
        if not found:
            text = f"has none of {', '.join(VARIABLES)}"
            raise DataError(text, path=self._file("outputs", self.test))
        return found

    def write_predictors(self, folder: Path) -> dict[str, str]:
        """Writes the predictors of every experiment as CSV, and returns the files by experiment.

        CO2, CH4, and the principal components of SO2 and BC. Their EOFs are those of the training
        experiments, whose historical years count once.

        Args:
            folder: to write to.
        """
        parts = {
            name: read_inputs(self._file("inputs", name))
            for name in dict.fromkeys((HISTORICAL, *self.train, self.test))
            if name != HISTORICAL or self._future()
        }
        check_same_units([self._file("inputs", name) for name in parts])
        used = dict.fromkeys(
            (*([HISTORICAL] if any(map(self._is_future, self.train)) else []), *self.train)
        )
        solved = [
            principal_components(np.concatenate([parts[name].fields[at] for name in used]), EOFS)
            for at in range(len(FIELDS))
        ]
        names = [*SERIES]
        for field, (_, axes) in zip(FIELDS, solved):
            names += [f"{field}_{index + 1}" for index in range(axes.shape[1])]
        found = {}
        for name in (*self.train, self.test):
            own = parts[name]
            if self._is_future(name):
                own = _joined(parts[HISTORICAL], own)
            scores = [(own.fields[at] - mean) @ axes for at, (mean, axes) in enumerate(solved)]
            table = np.concatenate([own.series, *scores], 1)
            rows = "".join(
                f"{year},{','.join(f'{value:.17g}' for value in row)}\n"
                for year, row in zip(own.years, table)
            )
            target = folder / f"predictors_{name}.csv"
            with atomic_path(target) as temporary:
                temporary.write_text(f"year,{','.join(names)}\n{rows}", encoding="utf-8")
            found[name] = str(target)
        return found

    @staticmethod
    def _is_future(name: str) -> bool:
        return not name.startswith("hist")

    def truth(self, variable: str, span: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Returns the mean over members (T, Y, X) in float64, in the scored years, and the weights
        (Y, X): cosines of the latitudes as the file has them.

        Args:
            variable: one of ``VARIABLES``.
            span: years.
        """
        path = self._file("outputs", self.test)
        with open_source(path, variable, VARIABLES[variable], difference=True) as source:
            years = np.array([date.year for date in source.times.dates])
            values = np.asarray(source.read(0, len(years)), dtype=np.float64)
            if source.grid.lat.ndim != 1:
                raise DataError("lies on a curvilinear grid, a regular one is needed", path=path)
            rows = np.asarray(source.array[source.array.dims[-2]].values, dtype=np.float64)
        values = values.mean(0) if values.ndim == 4 else values
        weights = np.cos(np.deg2rad(np.sort(rows)))[:, None] * np.ones(values.shape[-1])
        chosen = (years >= span[0]) & (years <= span[1])
        return values[chosen], weights / weights.sum()


class CO2PatternScaling:
    """The benchmark's linear pattern scaling: cumulative CO2 → global temperature → local field,
    both by least squares (https://doi.org/10.1029/2024MS004619)."""

    def fit(self, co2: np.ndarray, warming: np.ndarray, fields: np.ndarray) -> CO2PatternScaling:
        """Fits both steps.

        Args:
            co2: (T).
            warming: global mean temperature anomaly (T).
            fields: anomalies (T, Y, X).
        """
        self.level = PatternScaling().fit(co2[:, None], warming[:, None, None])
        self.pattern = PatternScaling().fit(warming[:, None], fields)
        return self

    def predict(self, co2: np.ndarray) -> np.ndarray:
        """Returns anomalies (T, Y, X)."""
        return self.pattern.predict(self.level.predict(co2[:, None])[:, :, 0])


class ClimateBenchComparison(EmulatorComparison):
    """One variable of ClimateBench: NRMSE spatial, global and total of 2080-2100.

    Args:
        archive: the files.
        data: runs of the variable.
        variable: one of ``VARIABLES``.
        temperature: training runs of tas, whose global mean ``lps`` goes through.
        predictions: folder to write predictions to; None for none.
    """

    score = "total"
    columns = {
        "variable": "",
        "model": "",
        "seed": "d",
        **dict.fromkeys(("spatial", "global", "total"), ".12g"),
        "verdict": "",
        "kind": "",
    }

    def __init__(
        self,
        archive: Archive,
        data: ScenarioData,
        variable: str,
        temperature: Sequence[Scenario],
        predictions: Path | None = None,
    ) -> None:
        period = data.spans["period"]
        title = f"ClimateBench, {variable}: {archive.test} {period[0]}-{period[1]}, trained on "
        super().__init__(data, title + ", ".join(archive.train))
        self.variable, self.temperature, self.predictions = variable, temperature, predictions
        self.values_true, self.cosines = archive.truth(variable, period)
        self.scale = abs(float(area_mean(self.values_true.mean(0), self.cosines)))
        if not self.scale > 0:
            raise DataError("its mean is zero: no relative error", path=archive.run(archive.test))

    @property
    def metric(self) -> str:
        return "total NRMSE"

    @property
    def heading(self) -> str:
        return self.metric

    @property
    def label(self) -> str:
        return self.variable

    @property
    def prefix(self) -> str:
        return f"{self.variable}: "

    def _row(self, model: str, kind: Any, prediction: np.ndarray, seed: int | None = None) -> Row:
        # What a file of the prediction would hold is what is scored.
        made = np.asarray(self.test.admissible(prediction), dtype=np.float32)
        if self.predictions is not None:
            suffix = "" if seed is None else f"_seed{seed}"
            self._write(made, self.predictions / f"{self.variable}_{model}{suffix}.nc")
        spatial = spatial_rmse(made, self.values_true, self.cosines) / self.scale
        whole = global_rmse(made, self.values_true, self.cosines) / self.scale
        numbers = {"spatial": spatial, "global": whole, "variable": self.variable}
        mean = made.astype(np.float64).mean(0)
        return Row(model, kind, spatial + 5 * whole, seed, numbers=numbers, state=mean)

    def _write(self, values: np.ndarray, path: Path) -> None:
        field = self.test.field
        about = {"title": f"{self.variable} anomaly of {self.title}"}
        made = [Variable(self.variable, values, field.units, dict(field.attrs))]
        time = field.time[self.chosen]
        write_dataset(to_dataset(made, time, field.calendar, field.grid, about), path)

    def baseline(self, name: str) -> list[Row]:
        if name == "lps":
            weights = self.cosines
            warming = np.concatenate(
                [area_mean(run.anomalies[run.counted], weights) for run in self.temperature]
            )
            predictors, fields = stacked(self.train)
            model = CO2PatternScaling().fit(predictors[:, 0], warming, fields)
            prediction = model.predict(self.test.predictors[self.chosen, 0])
        else:
            prediction = predict_baseline(name, self.train, self.test, self.chosen, self.known)
        return [self._row(name, "baseline", prediction)]

    def tie(self, row: Row, rival: Row) -> float:
        """The spatial score's share of the total that variability explains."""
        scores = tuple(one.numbers["spatial"] * self.scale for one in (row, rival))
        return self.noise.margin(row.state, rival.state, (scores[0], scores[1])) / self.scale

    def notes(self, rows: Sequence[Row]) -> dict[str, str]:
        return {
            key: digits(float(np.mean([row.numbers[key] for row in rows])))
            for key in ("spatial", "global")
        }

    def verdicts(self, rows: Sequence[Row]) -> list[str]:
        return super(EmulatorComparison, self).verdicts(rows)


def comparisons(args: argparse.Namespace) -> Iterator[ClimateBenchComparison]:
    """Yields a comparison for every variable.

    Args:
        args: of ``compare``: ``train`` is the folder, then experiments; ``test`` the experiment.
    """
    if args.train_forcing or args.test_forcing:
        raise ConfigError("--protocol climatebench: the forcings are those of its inputs_*.nc")
    for option in ("units", "months", "whole_years", "interpolate"):
        if getattr(args, option):
            raise ConfigError(f"--{option} is no option of --protocol climatebench")
    archive = Archive(args.train[0], args.train[1:], args.test)
    if not args.train[1:]:
        lost = [name for name in TRAIN if name not in (*archive.train, archive.test)]
        if lost:
            print(f"note: {', '.join(lost)} are not there: this is not the benchmark's training.")
    folder = Path(args.folder) / "climatebench"
    predictors = archive.write_predictors(folder)
    period = args.period or PERIOD
    parse_span("--period", period)

    def data_of(variable: str) -> ScenarioData:
        return ScenarioData(
            [archive.run(name) for name in archive.train],
            archive.run(archive.test),
            variable,
            VARIABLES[variable],
            valid=args.valid,
            period=period,
            forcing=[predictors[name] for name in archive.train],
            test_forcing=predictors[archive.test],
            anomalies=True,
        )

    names = archive.variables()
    if args.variable:
        if args.variable not in names:
            raise ConfigError(f"--variable: one of {', '.join(names)}, got {args.variable!r}")
        names = [args.variable]
    temperature = data_of("tas")
    save = Path(args.predictions) if args.predictions else None
    for name in names:
        data = temperature if name == "tas" else data_of(name)
        yield ClimateBenchComparison(archive, data, name, temperature.train_runs, save)
