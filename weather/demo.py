"""The demo: an emulator learns one scenario and predicts another, beside linear pattern scaling;
then a made-up climate with a memory, where pattern scaling cannot follow."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from longseq.core.compare import Row, write_table
from longseq.core.report.section import Picture, Section
from longseq.core.training.by_config import Train, few_steps
from longseq.weather.baselines import BASELINES
from longseq.weather.commands import DOMAIN
from longseq.weather.compare import EmulatorComparison
from longseq.weather.data.module import ScenarioData
from longseq.weather.data.scenario import spans_text
from longseq.weather.maps import plot_maps, plot_series
from longseq.weather.metrics import area_mean
from longseq.weather.overshoot import PERIOD, STEPS, overshoot
from longseq.weather.predict import load_emulator, run_emulator
from longseq.weather.predict import run as predict

CONFIG = "emulator"
SEEDS = (0, 1, 2)  # one seed says little here: see docs/weather.md
TRAIN, TEST = "A1B_north_america", "E1_north_america"


def demo(out: Path, train: Train, max_steps: int | None = None) -> Section:
    """Trains the emulator on the packaged A1B run and predicts the E1 run.

    Args:
        out: folder for everything that is written.
        train: trains a configuration.
        max_steps: training steps, instead of the configuration's.
    """
    started = time.perf_counter()
    print(f"1. Reading {TRAIN} and {TEST}, and checking that no scored year was trained on")
    data = ScenarioData([TRAIN], TEST, valid=None)
    comparison = EmulatorComparison(data, f"{TEST}, 2080-2099, spatial RMSE of the mean")
    print(
        f"   {spans_text(comparison.known)} are the same in both: never scored. Scored: 2080-2099 "
        f"of {TEST}."
    )

    print(f"2. Training {CONFIG}.yaml on {TRAIN}, with {len(SEEDS)} seeds")
    begin, config = time.perf_counter(), DOMAIN.configs()[CONFIG]
    checkpoints = []
    for seed in SEEDS:
        values = dict(comparison.values(config, seed))
        values["trainer"] = {
            **values["trainer"],
            **few_steps(max_steps, most=25).get("trainer", {}),
        }
        checkpoints.append(train(CONFIG, out, f"{CONFIG}_seed{seed}", values, seed).checkpoint)
    training = time.perf_counter() - begin

    print("3. Fitting the baselines and scoring all on the same years")
    rows = [row for name in BASELINES for row in comparison.baseline(name)]
    pairs = zip(checkpoints, SEEDS)
    models = [comparison.checkpoint(path, "s5 emulator", seed)[0] for path, seed in pairs]
    rows += models
    table = out / "scores.csv"
    write_table(table, [(comparison, rows)])
    comparison.report(rows)

    middle, checkpoint = sorted(zip(models, checkpoints), key=lambda pair: pair[0].value)[
        len(SEEDS) // 2
    ]
    print("\n4. Predicting from the checkpoint of the median seed alone, to CF NetCDF")
    fields = out / "prediction.nc"
    begin = time.perf_counter()
    predict([TEST, "--ckpt_path", str(checkpoint), "--out", str(fields)])
    predicting = time.perf_counter() - begin
    maps, curves = _pictures(out, comparison, checkpoint)

    print("\n5. A made-up climate with a memory: scenarios that turn back")
    made = overshoot(
        out / "overshoot",
        seeds=SEEDS[:1],
        steps=max_steps or STEPS,
        baselines=("lps", "lagged"),
    )

    best = min((row for row in rows if row.kind == "baseline"), key=lambda row: row.value)
    years = len(comparison.test.years)
    return Section(
        domain="weather",
        question=(
            "Can the warming of a mitigation scenario (E1) be mapped by an emulator that saw only "
            "one of rising emissions (A1B)?"
        ),
        data=(
            "Yearly air temperature over North America 1860-2099 from two Met Office Unified "
            "Model runs (iris-sample-data 2.5.2; © British Crown copyright, Open Government "
            "Licence v3.0)."
        ),
        scores=comparison.scores(rows),
        metric="K spatial RMSE",
        speed=(
            f"Trained {len(SEEDS)} seeds in {training:.0f} s; {years} years of "
            f"{data.train_runs[0].weights.size:,} cells predicted and written in {predicting:.1f} "
            f"s."
        ),
        seconds=time.perf_counter() - started,
        pictures=[
            Picture(
                maps,
                "Warming of 2080-2099 over 1860-1889 in E1: the run, the emulator, the difference.",
            ),
            Picture(
                curves,
                "Regional mean of both runs and of the emulator; the shaded years are scored.",
            ),
            Picture(
                out / "overshoot" / "hysteresis.png",
                "A made-up climate with a memory under ssp534-over: at the same global warming the "
                "southern ocean is warmer on the way down than on the way up. Pattern scaling "
                "(lps) knows one line for both ways.",
            ),
        ],
        findings=_memory(made),
        files=[checkpoint, table, fields, maps, curves],
        tie=comparison.tie(middle, best),
    )


def _memory(made: Mapping[str, Sequence[Row]]) -> list[str]:
    """Returns what was seen in the made-up climate, a sentence for each test scenario."""
    found = []
    for test, rows in made.items():
        value = {row.model: row.value for row in rows}
        found.append(
            f"Where memory matters (a made-up climate, {test}, {PERIOD}): S5 emulator "
            f"{value['S5 emulator']:.3f} K, linear pattern scaling {value['lps']:.3f} K, lagged "
            f"pattern scaling {value['lagged']:.3f} K."
        )
    return [*found, "The memory is in the emulator's lagged linear part; the network adds little."]


def _pictures(out: Path, comparison: EmulatorComparison, checkpoint: Path) -> tuple[Path, Path]:
    """Draws the maps and the curves of the regional mean."""
    test, train = comparison.test, comparison.train[0]
    predicted = run_emulator(load_emulator(checkpoint), test.predictors)
    truth = comparison.truth.mean(0, dtype=np.float64)
    guess = predicted[comparison.chosen].mean(0, dtype=np.float64)
    maps, curves = out / "warming.png", out / "regional_mean.png"
    panels: dict[str, Any] = {
        "E1, 2080-2099": truth,
        "emulator": guess,
        "emulator - E1": guess - truth,
    }
    plot_maps(panels, test.field.grid, maps, test.field.units, ["emulator - E1"])
    plot_series(
        {
            "A1B (trained on)": (train.years, train.mean()),
            "E1": (test.years, test.mean()),
            "emulator for E1": (test.years, area_mean(predicted, test.weights)),
        },
        curves,
        f"anomaly to 1860-1889 ({test.field.units})",
        [
            (*comparison.data.spans["period"], "scored"),
            (*comparison.data.spans["baseline"], "baseline"),
        ],
    )
    return maps, curves
