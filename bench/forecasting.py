"""``longseq bench forecasting``: forecasters on many data sets at once, against seasonal naive."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from longseq.core.command_line import CommandParser
from longseq.core.errors import ConfigError, DataError, did_you_mean
from longseq.core.files import require_file
from longseq.core.tables import check_table, write_frame
from longseq.timeseries.baselines import BASELINES
from longseq.timeseries.calibrated import panel_intervals
from longseq.timeseries.data.frames import read_panel
from longseq.timeseries.local import LocalModel, StatsForecast
from longseq.timeseries.quantiles import at_levels, naive_error, seasonal_naive
from longseq.timeseries.zero_shot import LEVELS, Quantiles

INTERVALS = (20, 40, 60, 80)
_USUAL = "zero_shot,auto_theta,auto_ets,auto_arima"
_LONGEST = 2048


@dataclass(frozen=True)
class Case:
    """A data set: contexts and what came after them.

    Attributes:
        name: for tables.
        horizon: rows h.
        season: rows of a season.
        windows: known values (n,) and the h that follow, for every series and cutoff.
        cutoffs: of the windows, counted from the end; all the same if empty.
    """

    name: str
    horizon: int
    season: int
    windows: list[tuple[np.ndarray, np.ndarray]]
    cutoffs: tuple[int, ...] = ()


@dataclass(frozen=True)
class Scored:
    """How one model did on one data set.

    Attributes:
        case: the data set.
        model: the model.
        series: windows scored.
        mase: mean absolute scaled error.
        relative: of the seasonal naive forecast's MASE.
        quantile_loss: summed pinball loss over the naive forecast's summed error; NaN where the
            model gives no quantiles.
        coverage: share of values between the quantiles 0.1 and 0.9; NaN likewise.
        milliseconds: of processor time a window.
    """

    case: str
    model: str
    series: int
    mase: float
    relative: float
    quantile_loss: float
    coverage: float
    milliseconds: float


def read_case(text: str, limit: int | None = None) -> Case:
    """Reads ``PATH[+TEST],horizon=48,season=24[,windows=1][,step=48][,name=…]``.

    PATH is a frame as of ``longseq timeseries predict``, a ``.tsf`` file, or with ``+TEST`` two
    tables of one series per row, as the M4 competition's.

    Args:
        text: the specification.
        limit: windows taken, evenly over all; None for all.

    Raises:
        ConfigError: for a wrong specification.
        DataError: for a file that cannot be used.
    """
    path, *pairs = text.split(",")
    options: dict[str, str] = {}
    for pair in pairs:
        key, _, value = pair.partition("=")
        known = ("horizon", "season", "windows", "step", "name")
        if key not in known or not value:
            raise ConfigError(f"{text}: {did_you_mean(key, known)} (as key=value)")
        options[key] = value
    try:
        horizon, season = int(options["horizon"]), int(options.get("season", 1))
        count = int(options.get("windows", 1))
        step = int(options.get("step", horizon))
    except (KeyError, ValueError) as error:
        raise ConfigError(f"{text}: whole numbers are needed, and at least horizon=…") from error
    first, _, second = path.partition("+")
    name = options.get("name", Path(first).name.split(".")[0])
    at: list[int] = []
    if second:
        windows = _paired(Path(first), Path(second), horizon)
        at = [0] * len(windows)
    else:
        series = _tsf(Path(first)) if first.endswith(".tsf") else _frame(first)
        windows = []
        for one in series:
            for i in range(count):
                end = len(one) - horizon - i * step
                if end < 3:
                    break
                windows.append((one[max(0, end - _LONGEST) : end], one[end : end + horizon]))
                at.append(i)
    kept = [i for i, (x, _) in enumerate(windows) if not np.isnan(naive_error(x, season))]
    if not kept:
        raise DataError("holds no series that is long enough and not constant", path=first)
    if limit is not None and limit < len(kept):
        kept = [kept[i * len(kept) // limit] for i in range(limit)]
    cutoffs = tuple(at[i] for i in kept)
    return Case(name, horizon, season, [windows[i] for i in kept], cutoffs)


def _frame(path: str) -> list[np.ndarray]:
    panel = read_panel(path)
    carried = panel.carried()
    return [carried[a:b, c] for c, (a, b) in enumerate(zip(panel.starts, panel.ends)) if b > a]


def _tsf(path: Path) -> list[np.ndarray]:
    file, found = require_file(path, "series file"), []
    for number, line in enumerate(file.read_text(encoding="latin-1").splitlines(), 1):
        if not line.strip() or line[0] in "#@" or ":" not in line:
            continue
        try:
            text = line.rsplit(":", 1)[1].replace("?", "nan")
            found.append(np.array([float(value) for value in text.split(",")]))
        except ValueError as error:
            raise DataError("a value is no number", path=file, record=f"line {number}") from error
    return found


def _paired(train: Path, test: Path, horizon: int) -> list[tuple[np.ndarray, np.ndarray]]:
    tables = [pd.read_csv(require_file(path, "table")) for path in (train, test)]
    rows = [table.iloc[:, 1:].to_numpy(np.float64) for table in tables]
    known = [row[~np.isnan(row)] for row in rows[0]]
    return [(one[-_LONGEST:], row[:horizon]) for one, row in zip(known, rows[1])]


def quantile_forecasts(
    name: str, case: Case, calibrate: bool | None = None
) -> tuple[np.ndarray, bool]:
    """Returns forecasts of every window (n, h, 9), and whether they are quantiles or nine times the
    point forecast.

    Args:
        name: of a local model or baseline.
        case: the data set.
        calibrate: scale the zero-shot forecaster's intervals by its errors one horizon before each
            cutoff; None where there are 50 series and more.
    """
    contexts = [x for x, _ in case.windows]
    if name == "zero_shot":
        network = Quantiles()

        def make(known: list[np.ndarray]) -> np.ndarray:
            return network.forecast(known, case.horizon, case.season)

        # What is calibrated for one cutoff must not have seen what follows an earlier one.
        own = make(contexts)
        return panel_intervals(make, contexts, own, case.cutoffs or None, calibrate), True
    if name in ("repeat", "seasonal_naive"):
        lag = case.season if name == "seasonal_naive" else 1
        points = np.stack([seasonal_naive(x, lag, case.horizon) for x in contexts])
        return np.repeat(points[..., None], len(LEVELS), -1), False
    model = BASELINES[name](case.horizon, case.season)
    if not isinstance(model, LocalModel):
        raise ConfigError(f"{name} is fitted on many windows: it is no local model")
    found = []
    for x in contexts:
        if isinstance(model, StatsForecast):
            mean, *ends = model.quantiles(x, INTERVALS)
            # Ends come as low, high of every level: 20, 40, 60, 80.
            order = [ends[6], ends[4], ends[2], ends[0], mean, ends[1], ends[3], ends[5], ends[7]]
            found.append(np.stack(order, -1))
        else:
            found.append(np.repeat(model.paths(x[None])[0][:, None], len(LEVELS), -1))
    return np.stack(found), isinstance(model, StatsForecast)


def score(case: Case, name: str, forecasts: np.ndarray, quantiles: bool, seconds: float) -> Scored:
    """Returns how forecasts did.

    Args:
        case: the data set.
        name: of the model.
        forecasts: (n, h, 9).
        quantiles: whether they are quantiles.
        seconds: of processor time for all.
    """
    middle = at_levels(forecasts, LEVELS, np.array([0.5]))[..., 0]
    mine, naive, pinball, plain, inside = [], [], 0.0, 0.0, []
    for (x, y), point, q in zip(case.windows, middle, forecasts):
        unit, seen = naive_error(x, case.season), ~np.isnan(y)
        rival = seasonal_naive(x, case.season, case.horizon)
        mine.append(np.abs(y - point)[seen].mean() / unit)
        naive.append(np.abs(y - rival)[seen].mean() / unit)
        error = (y[:, None] - q)[seen]
        pinball += float(2 * np.maximum(LEVELS * error, (LEVELS - 1) * error).mean(1).sum())
        plain += float(np.abs(y - rival)[seen].sum())
        inside.append(((y >= q[:, 0]) & (y <= q[:, -1]))[seen].mean())
    mase, count = float(np.mean(mine)), len(case.windows)
    return Scored(
        case.name,
        name,
        count,
        mase,
        mase / float(np.mean(naive)),
        pinball / plain if quantiles else float("nan"),
        float(np.mean(inside)) if quantiles else float("nan"),
        1000 * seconds / count,
    )


def geometric_means(rows: Sequence[Scored]) -> dict[str, tuple[float, float]]:
    """Returns the geometric means over data sets of relative MASE and relative quantile loss, by
    model."""
    found = {}
    for name in dict.fromkeys(row.model for row in rows):
        mine = [row for row in rows if row.model == name]
        means = [
            float(np.exp(np.mean(np.log([getattr(row, key) for row in mine]))))
            for key in ("relative", "quantile_loss")
        ]
        found[name] = means[0], means[1]
    return found


def run(argv: Sequence[str], show: Callable[[str], None] = print) -> int:
    """Runs ``longseq bench forecasting``."""
    parser = CommandParser(
        prog="longseq bench forecasting",
        description="Scores forecasters on many data sets: MASE and weighted quantile loss, each "
        "relative to the seasonal naive forecast, and their geometric means.",
    )
    parser.add_argument(
        "sets", nargs="+", help="PATH[+TEST],horizon=48,season=24[,windows=1][,step=48][,name=…]"
    )
    parser.add_argument("--models", default=_USUAL, help=f"local models by commas ({_USUAL})")
    parser.add_argument("--limit", type=int, help="windows of every set, evenly drawn (all)")
    parser.add_argument(
        "--calibrate",
        choices=("auto", "yes", "no"),
        default="auto",
        help="scale the zero-shot forecaster's intervals by what it missed one horizon earlier "
        "(auto: where 50 series and more have a cutoff)",
    )
    parser.add_argument("--out", help=".csv, .tsv or .parquet table to write")
    args = parser.parse_args(argv)
    if args.out is not None:
        check_table(args.out)
    if args.limit is not None and args.limit < 1:
        raise ConfigError(f"--limit must be at least 1, got {args.limit}")
    models = list(dict.fromkeys(args.models.split(",")))
    for name in models:
        if name not in BASELINES:
            raise ConfigError(f"--models: {did_you_mean(name, BASELINES)}")
    cases = [read_case(text, args.limit) for text in args.sets]
    if len({case.name for case in cases}) < len(cases):
        raise ConfigError("two sets have the same name: tell them apart by name=…")
    calibrate = {"auto": None, "yes": True, "no": False}[args.calibrate]
    rows: list[Scored] = []
    for case in cases:
        show(
            f"{case.name}: {len(case.windows):,} windows, horizon {case.horizon}, "
            f"season {case.season}"
        )
        for name in models:
            start = time.process_time()
            forecasts, quantiles = quantile_forecasts(name, case, calibrate)
            row = score(case, name, forecasts, quantiles, time.process_time() - start)
            rows.append(row)
            show(
                f"  {name:<16} MASE {row.mase:.3f}  relative {row.relative:.3f}  quantile loss "
                f"{row.quantile_loss:.3f}  coverage {row.coverage:.2f}  "
                f"{row.milliseconds:.1f} ms per window"
            )
    means = geometric_means(rows)
    show("geometric means over the sets (relative MASE, relative quantile loss):")
    for name, (relative, loss) in sorted(means.items(), key=lambda item: item[1][0]):
        show(f"  {name:<16} {relative:.3f}  {loss:.3f}")
    if len(means) > 1:
        best = min(means, key=lambda name: means[name][0])
        worse = [
            row.case
            for row in rows
            if row.model == best
            and row.relative > min(one.relative for one in rows if one.case == row.case)
        ]
        lost = f"; it is not the best on {', '.join(worse)}" if worse else ", on every set"
        show(f"the best is {best}{lost}")
    if args.out is not None:
        write_frame(pd.DataFrame([vars(row) for row in rows]), args.out)
    return 0
