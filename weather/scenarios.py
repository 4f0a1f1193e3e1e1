"""``longseq weather scenarios``: forcings to global warming to maps, for every scenario."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from longseq.core.command_line import CommandParser
from longseq.core.errors import ConfigError, DataError
from longseq.core.results import digits
from longseq.core.tables import write_rows
from longseq.weather.baselines import LaggedPatternScaling
from longseq.weather.data.module import ScenarioData
from longseq.weather.data.positive import keep_positive, reference
from longseq.weather.data.scenario import REGIONAL, inside, parse_span
from longseq.weather.data.series import list_scenarios, read_series
from longseq.weather.data.times import mid_years, year_bounds
from longseq.weather.data.writer import Variable, plain_provenance, to_dataset, write_dataset
from longseq.weather.energy_balance import EnergyBalance, fit_energy_balance
from longseq.weather.variability import Variability
from longseq.weather.warming import ERF, Warming, global_warming

METHODS = ("lps", "lagged")


class PatternEmulator:
    """Maps of global warming: a pattern with or without a memory, and realisations around it.

    Args:
        data: training runs, whose predictor is the global warming.
        method: "lps" or "lagged".
    """

    def __init__(self, data: ScenarioData, method: str = "lps") -> None:
        runs = data.train_runs
        first = runs[0]
        if len(first.names) != 1:
            raise ConfigError(f"one predictor is needed, the global warming, got {first.names}")
        if tuple(first.names) == (REGIONAL,) and not first.field.grid.global_:
            raise DataError(
                "is a region: its mean is not the global warming",
                path=first.field.path,
                hint="give the global warming of the training runs with --train_forcing",
            )
        self.data, self.run, self.method = data, first, method
        model = LaggedPatternScaling()
        if method == "lps":
            model.CANDIDATES = ((),)
        self.model = model.fit(
            [run.predictors for run in runs],
            [run.anomalies for run in runs],
            first.weights,
            [run.counted for run in runs],
            [run.own for run in runs],
        )
        departures = [
            run.anomalies[run.counted] - self.model.predict(run.predictors)[run.counted]
            for run in runs
        ]
        columns = 2 + len(self.model.scales)
        self.variability = Variability.fit(
            np.concatenate(departures), first.weights, degrees=columns
        )

    def maps(self, warming: np.ndarray, members: int = 0, seed: int = 0) -> np.ndarray:
        """Returns anomalies float32 (T, Y, X), or (M, T, Y, X) with realisations around them.

        Args:
            warming: global, of every year from the start (T), K.
            members: M; 0 for the forced response alone.
            seed: of the draws.
        """
        forced = self.model.predict(np.asarray(warming, dtype=np.float64)[:, None])
        made = forced
        if members:
            made = forced + self.variability.sample(members, len(warming), seed)
        run = self.run
        if run.positive:
            scale = reference(run.climatology, run.weights)
            made = keep_positive(made, run.climatology, scale)
        return made.astype(np.float32)


def fit_boxes(path: str, table: str, scenarios: Sequence[str]) -> EnergyBalance:
    """Returns the energy balance that follows given temperatures best.

    Args:
        path: table of forcings.
        table: CSV with ``year`` and a column for every scenario that is fitted to, K.
        scenarios: that the forcings have.
    """
    years, values, names = read_series(table)
    used = [name for name in names if name in scenarios]
    if not used:
        hint = f"columns named like {', '.join(scenarios[:3])}"
        raise DataError("has no scenario of the forcings", path=table, hint=hint)
    forcing, warming = [], []
    for name in used:
        own, found, _ = read_series(f"{path}::{name}", [ERF])
        start, stop = max(own[0], years[0]), min(own[-1], years[-1])
        if own[0] > years[0]:
            raise DataError(f"begins in {own[0]}, after {table}", path=path)
        forcing.append(found[inside(own, (start, stop)), 0])
        warming.append(values[inside(years, (start, stop)), names.index(name)])
    return fit_energy_balance(np.stack(forcing), np.stack(warming), 2)


def write_maps(
    emulator: PatternEmulator,
    warming: Warming,
    scenario: str,
    path: Path,
    span: tuple[int, int],
    members: int,
    seed: int,
    about: dict[str, str],
) -> None:
    """Writes the anomalies of a scenario, its realisations and its global warming.

    Args:
        emulator: fitted.
        warming: relative to the baseline years.
        scenario: its name.
        path: ending in .nc or .zarr.
        span: years to write.
        members: realisations; 0 for none.
        seed: of their draws.
        about: global attributes.
    """
    field, run = emulator.run.field, emulator.run
    chosen = inside(warming.years, span)
    years = warming.years[chosen]
    baseline = "-".join(map(str, run.baseline))
    attrs = {"long_name": f"{field.name} relative to {baseline}"}
    if field.attrs.get("standard_name") == "air_temperature":
        attrs |= {"standard_name": "air_temperature_anomaly"}
        attrs |= {"units_metadata": "temperature: difference"}
    name = f"{field.name}_anomaly"
    made = [Variable(name, emulator.maps(warming.values)[chosen], field.units, attrs)]
    if members:
        more = {**attrs, "long_name": f"realisations of {attrs['long_name']}"}
        values = emulator.maps(warming.values, members, seed)[:, chosen]
        made.append(Variable(f"{name}_realisation", values, field.units, more))
    made.append(
        Variable(
            "global_warming",
            warming.values[chosen],
            "K",
            {"long_name": f"global warming relative to {baseline}", "comment": warming.how},
        )
    )
    data = to_dataset(
        made,
        mid_years(years, "noleap"),
        "noleap",
        field.grid,
        {**about, "title": f"{field.name} of {scenario} by pattern scaling"},
        year_bounds(years, "noleap"),
        field.mask,
        field.scalars,
    )
    write_dataset(data, path)


def run(argv: Sequence[str]) -> int:
    """Runs ``longseq weather scenarios``."""
    parser = CommandParser(
        prog="longseq weather scenarios",
        description="Global warming of every scenario of a table (RCMIP or IIASA: temperatures, or "
        "effective radiative forcings through an energy balance), then maps by the pattern of "
        "training runs, with realisations of their variability where asked.",
    )
    parser.add_argument("table", help="CSV in the layout of RCMIP; table.csv::ssp126 for one")
    parser.add_argument("--train", required=True, nargs="+", help="runs, as for compare")
    parser.add_argument("--train_forcing", nargs="+", help="their global warming, CSV (own mean)")
    parser.add_argument("--out", required=True, help="folder of <scenario>.nc and warming.csv")
    parser.add_argument("--variable", help="name or standard name (the only one)")
    parser.add_argument("--units", help="to convert to (canonical ones)")
    parser.add_argument("--baseline", default="1850-1900", help="years of the climatology")
    parser.add_argument("--period", default="1850-2100", help="years to write (1850-2100)")
    parser.add_argument("--smooth", type=int, default=31, help="years of the running mean (31)")
    parser.add_argument("--method", choices=METHODS, default="lps", help="pattern (lps)")
    parser.add_argument("--members", type=int, default=0, help="realisations (0)")
    parser.add_argument("--seed", type=int, default=0, help="of the realisations (0)")
    parser.add_argument(
        "--fit_to",
        help="CSV of year and a column of warming per scenario, to "
        "which an energy balance is fitted (one that stands for FaIR 1.6.4)",
    )
    parser.add_argument("--interpolate", action="store_true", help="fill in missing years linearly")
    args = parser.parse_args(argv)
    if args.members < 0:
        raise ConfigError(f"--members is at least 0, got {args.members}")
    began = time.perf_counter()
    path, _, wanted = args.table.partition("::")
    known = list_scenarios(path)
    if wanted and wanted not in known:
        raise DataError(f"has no scenario {wanted!r} (it has {', '.join(known)})", path=path)
    scenarios = [wanted] if wanted else known
    span, baseline = parse_span("--period", args.period), parse_span("--baseline", args.baseline)
    out = Path(args.out)
    if out.suffix.lower() in (".nc", ".zarr") or out.is_file():
        raise ConfigError(f"--out {out}: a folder is needed")
    data = ScenarioData(
        args.train,
        variable=args.variable,
        units=args.units,
        baseline=args.baseline,
        valid=None,
        smooth=args.smooth,
        forcing=args.train_forcing,
        interpolate=args.interpolate,
    )
    emulator = PatternEmulator(data, args.method)
    boxes = fit_boxes(path, args.fit_to, known) if args.fit_to else None
    found = {}
    for scenario in scenarios:
        warming = global_warming(path, scenario, boxes, args.interpolate)
        found[scenario] = warming.relative(*baseline)
    out.mkdir(parents=True, exist_ok=True)
    about = plain_provenance(
        f"{args.method} pattern scaling",
        [path, *args.train],
        "longseq weather scenarios " + " ".join(argv),
    )
    for number, (scenario, warming) in enumerate(found.items(), 1):
        target = out / f"{scenario}.nc"
        write_maps(
            emulator, warming, scenario, target, span, args.members, args.seed + number, about
        )
        last = warming.values[inside(warming.years, (span[1] - 19, span[1]))]
        late = f"{digits(float(last.mean()))} K in {span[1] - 19}-{span[1]}" if len(last) else ""
        print(f"[{number}/{len(found)}] {target}: {late}", flush=True)
    _write_table(out / "warming.csv", found)
    if span[1] > 2100 and any("FaIR" in one.how for one in found.values()):
        print("note: the packaged energy balance follows FaIR until 2100; later it may be 2 K off.")
    how = ", ".join(dict.fromkeys(one.how for one in found.values()))
    print(f"from {how}; {time.perf_counter() - began:.1f} s")
    return 0


def _write_table(path: Path, found: dict[str, Warming]) -> None:
    years = sorted({int(year) for one in found.values() for year in one.years})
    columns = {"year": "d", **dict.fromkeys(found, ".5f")}
    values = {name: dict(zip(one.years.tolist(), one.values)) for name, one in found.items()}
    rows = [[year, *(values[name].get(year) for name in found)] for year in years]
    write_rows(path, columns, rows)
