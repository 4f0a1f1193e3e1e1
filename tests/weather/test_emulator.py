"""The emulator: starts as pattern scaling, sees only the past, and streams."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer

from longseq.core.errors import ConfigError, DataError
from longseq.weather.baselines import PatternScaling, exponential_filter, held_out_error
from longseq.weather.data.module import ScenarioData, TrainingScenarios
from longseq.weather.data.series import read_series
from longseq.weather.models.emulator import FieldEmulator
from longseq.weather.predict import run_emulator, scenario_of
from longseq.weather.task import ClimateEmulator

SMALL = {"height": 4, "width": 5, "d_model": 8, "n_layers": 1, "mixer_kwargs": {"d_state": 4}}
SPANS = {"baseline": "1900-1919", "valid": "1950-1955", "period": "1970-1979", "smooth": 5}


def trained(data: ScenarioData, steps: int, **kwargs) -> ClimateEmulator:
    torch.manual_seed(0)
    task = ClimateEmulator(**{**SMALL, **kwargs})
    trainer = Trainer(
        max_steps=steps,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        accelerator="cpu",
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(task, data)
    return task.eval()


def test_it_starts_as_pattern_scaling_of_the_training_years(runs) -> None:
    data = ScenarioData([runs[0]], runs[1], **SPANS)
    task = trained(data, 1, lr=0.0)
    run, mask = data.train_runs[0], data.scored(data.train_runs[0], "train")
    assert mask.sum() == 74 and not mask[50:56].any()
    expected = (
        PatternScaling()
        .fit(run.predictors[mask], run.anomalies[mask])
        .predict(data.test_run.predictors)
    )
    assert np.abs(run_emulator(task, data.test_run.predictors) - expected).max() < 1e-4


def test_training_changes_the_network_and_not_the_frozen_pattern(runs) -> None:
    data = ScenarioData([runs[0], runs[1]], None, **{**SPANS, "valid": None})
    start, task = trained(data, 1, lr=0.0), trained(data, 5, lr=1e-2)
    assert torch.equal(start.model.weight, task.model.weight)
    assert not torch.equal(start.model.head.weight, task.model.head.weight)
    learned = trained(data, 5, lr=1e-2, linear="learned")
    assert not torch.equal(start.model.weight, learned.model.weight)
    assert float(trained(data, 1, linear="none").model.weight.abs().sum()) == 0


@pytest.mark.parametrize("mixer", ["s5", "mamba"])
def test_a_year_sees_only_the_past_and_histories_stream(mixer) -> None:
    torch.manual_seed(0)
    kwargs = {"d_state": 4}
    model = FieldEmulator(3, 4, 2, 8, 2, mixer, kwargs, linear="none").eval()
    x = torch.randn(2, 11, 2)
    later = x.clone()
    later[:, 6:] += 1
    with torch.no_grad():
        whole, _ = model(x)
        assert (model(later)[0][:, :6] - whole[:, :6]).abs().max() < 1e-6
        first, states = model(x[:, :4])
        second, _ = model(x[:, 4:], states)
        assert (torch.cat([first, second], 1) - whole).abs().max() < 1e-5
        assert model(x[:, :1])[0].shape == (2, 1, 3, 4)


def test_the_order_of_the_runs_is_a_function_of_the_step() -> None:
    batches = [{"n": torch.tensor(i)} for i in range(3)]
    order = [int(TrainingScenarios(batches, 7)[step]["n"]) for step in range(30)]
    assert (
        all(sorted(order[i : i + 3]) == [0, 1, 2] for i in range(0, 30, 3))
        and order[:3] * 10 != order
    )
    halves = [
        [int(TrainingScenarios(batches, 7, rank, 2)[step]["n"]) for step in range(15)]
        for rank in (0, 1)
    ]
    assert [n for pair in zip(*halves) for n in pair] == order


def test_what_travels_with_the_checkpoint_is_of_the_training_years(runs) -> None:
    data = ScenarioData([runs[0]], runs[1], **SPANS)
    about, run = data.facts(), data.train_runs[0]
    mask = data.scored(run, "train")
    assert about["mean"] == pytest.approx(run.predictors[mask].mean(0))
    assert about["lat"] == run.field.lat.tolist() and about["smooth"] == 5 and about["regional"]
    with pytest.raises(ConfigError, match="one per training run"):
        ScenarioData([runs[0]], forcing=["a", "b"])
    with pytest.raises(ConfigError, match="at least one file"):
        ScenarioData([])
    with pytest.raises(ConfigError, match="linear"):
        FieldEmulator(2, 2, linear="some")  # type: ignore[arg-type]


def test_forcings_in_the_place_of_the_regional_mean(runs, tmp_path, lab) -> None:
    level = np.clip((lab.YEARS - 1940) / 39, 0, 1)
    files = []
    for name, rise in (("high", 3.0), ("low", 1.5)):
        rows = [f"{year},{rise * value:.6f},{value:.6f}" for year, value in zip(lab.YEARS, level)]
        (tmp_path / f"{name}.csv").write_text("\n".join(["year,co2,ch4", *rows]))
        files.append(str(tmp_path / f"{name}.csv"))
    data = ScenarioData([runs[0]], runs[1], forcing=files[:1], test_forcing=files[1], **SPANS)
    task = trained(data, 2, predictors=2, lr=1e-3)
    assert data.test_run.predictors.shape == (80, 2) and task.about["names"] == ["co2", "ch4"]
    guess = run_emulator(task, data.test_run.predictors)
    assert guess.shape == (80, 4, 5) and np.isfinite(guess).all()


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("memory", [True, False])
def test_the_linear_part_has_filters_where_held_out_years_need_them(
    count, memory, tmp_path, lab, write, capsys
) -> None:
    """By least squares of its own, for one run (fifths of its years) and for several."""
    years, rng = lab.YEARS, np.random.default_rng(0)
    files, forcings = [], []
    for index in range(count):
        force = np.clip((years - 1930) / 20, 0, 1 + index) * np.cos((years - 1900) / 12)
        answer = exponential_filter(force[:, None], 50.0)[:, 0] if memory else force
        field = answer[:, None, None] * np.linspace(1, 2, 20).reshape(4, 5)
        field += 0.01 * rng.standard_normal(field.shape)
        files.append(str(write(lab.dataset(280 + field), f"{index}.nc")))
        rows = [f"{year},{value:.6f}" for year, value in zip(years, force)]
        (tmp_path / f"{index}.csv").write_text("\n".join(["year,force", *rows]))
        forcings.append(str(tmp_path / f"{index}.csv"))
    data = ScenarioData(files, None, forcing=forcings, **{**SPANS, "valid": None})
    task, same = (trained(data, 1, lr=0.0, linear=name) for name in ("auto", "lagged"))
    said = (
        f"linear part: {'lagged' if memory else 'lps'} (held-out {'runs' if count > 1 else 'years'}"
    )
    assert capsys.readouterr().err.count(said) == 1
    if memory:
        assert torch.equal(task.model.weight, same.model.weight)
        return
    run = data.train_runs[0]
    expected = (
        PatternScaling()
        .fit(
            *(
                np.concatenate([getattr(r, k) for r in data.train_runs])
                for k in ("predictors", "anomalies")
            )
        )
        .predict(run.predictors)
    )
    assert (
        float(task.model.weight[:, 1:].abs().sum())
        == 0
        < float(same.model.weight[:, 1:].abs().sum())
    )
    assert np.abs(run_emulator(task, run.predictors) - expected).max() < 1e-4


def test_a_common_history_stays_in_the_fit_where_runs_are_held_out(
    tmp_path, lab, write, capsys
) -> None:
    """Volcanoes that erupt in the historical years alone have no slope in a fit without them."""
    years, common = lab.YEARS, np.random.default_rng(0).standard_normal((80, 4, 5))
    volcano = np.where(np.isin(years, (1906, 1921, 1933)), -2.0, 0.0)
    late = np.clip((years - 1939) / 40, 0, 1)
    files, forcings = [], []
    for index, level in enumerate((0.5, 2.0, 4.0)):
        force = (years - 1900) / 80 + level * np.sin(3 * late)
        answer = exponential_filter(force[:, None], 50.0)[:, 0] + 0.5 * volcano
        noise = np.random.default_rng(index + 1).standard_normal((80, 4, 5))
        noise = np.where((years < 1940)[:, None, None], common, noise)
        field = answer[:, None, None] * np.linspace(1, 2, 20).reshape(4, 5) + 0.05 * noise
        files.append(str(write(lab.dataset(280 + field), f"{index}.nc")))
        rows = [f"{year},{a:.6f},{b:.6f}" for year, a, b in zip(years, force, volcano)]
        (tmp_path / f"{index}.csv").write_text("\n".join(["year,force,volcano", *rows]))
        forcings.append(str(tmp_path / f"{index}.csv"))
    data = ScenarioData(files, None, forcing=forcings, **{**SPANS, "valid": None})
    first, *others = data.train_runs
    assert (first.own == (years >= 1940)).all() and first.counted.all()
    assert all((run.own == run.counted).all() for run in others)
    task, same = (
        trained(data, 1, lr=0.0, linear=name, predictors=2) for name in ("auto", "lagged")
    )
    said = capsys.readouterr().err
    assert said.count("linear part: lagged (held-out runs") == 1
    # Without slopes of volcanoes it would be 0.2 and more, with them it is the noise of 0.05.
    assert float(re.search(r"root mean square error (\S+) with", said)[1]) < 0.1  # type: ignore
    assert torch.equal(task.model.weight, same.model.weight)


def test_fifths_are_held_out_where_one_run_alone_has_years_of_its_own() -> None:
    x, y = np.arange(20.0)[:, None] % 7, np.arange(20.0)[:, None]
    own = [np.zeros(8, bool), np.ones(12, bool)]
    parts = held_out_error([x[:8], x[8:]], [y[:8], y[8:]], own)
    assert parts == pytest.approx(held_out_error([x], [y]), rel=1e-12)
    # By hand: the mean over the years that were held out, the shared ones in every fit.
    z, kept = np.concatenate([np.ones((20, 1)), x], 1), np.arange(20) < 4
    error = 0.0
    for out in ((np.arange(20) >= 4) & (np.arange(20) < 8), np.arange(20) >= 8):
        slope = np.linalg.lstsq(z[~out], y[~out], rcond=None)[0]
        error += float(((z[out] @ slope - y[out]) ** 2).sum())
    found = held_out_error([x[:8], x[8:]], [y[:8], y[8:]], [~kept[:8], ~kept[8:]], 0.0)
    assert found == pytest.approx(error / 16, rel=1e-9)


def test_the_regional_mean_needs_no_filters(runs, capsys) -> None:
    data = ScenarioData(list(runs), None, **{**SPANS, "valid": None})
    task, plain = (trained(data, 1, lr=0.0, linear=name) for name in ("auto", "lps"))
    assert torch.equal(task.model.weight[:, :1], plain.model.weight)
    assert float(task.model.weight[:, 1:].abs().sum()) == 0
    assert "linear part" not in capsys.readouterr().err


def test_a_forcing_that_never_changed_in_training_may_not_change_later(runs, tmp_path, lab) -> None:
    """0.1 eighty times has a deviation of 1e-17, by which nothing may be divided."""
    for name, sun in (("same", 0.1), ("other", 0.15)):
        rows = [f"{year},{max(0, year - 1940)},{sun}" for year in lab.YEARS]
        (tmp_path / f"{name}.csv").write_text("\n".join(["year,co2,sun", *rows]))
    same, other = str(tmp_path / "same.csv"), str(tmp_path / "other.csv")
    own = {**SPANS, "forcing": [same]}
    data = ScenarioData([runs[0]], str(runs[1]), test_forcing=same, **own)
    assert data.facts()["spread"][1] == 1.0 and data.facts()["fixed"] == {"sun": 0.1}
    task = trained(data, 1, predictors=2)
    assert data.test_run.names == scenario_of(task, str(runs[1]), same).names
    text = r"other.csv: sun: is 0.15 here and 0.1 in all training years"
    with pytest.raises(DataError, match=text):
        _ = ScenarioData([runs[0]], str(runs[1]), test_forcing=other, **own).test_run
    with pytest.raises(DataError, match=text):
        scenario_of(task, str(runs[1]), other)
    assert "fixed" not in ScenarioData([runs[0]], None, **SPANS).facts()


def test_a_test_run_without_the_history_of_the_training_is_refused(
    runs, tmp_path, lab, write
) -> None:
    """Filters would begin in the middle of the rise as if nothing had been before."""
    rows = [f"{year},{max(0, year - 1940)}" for year in lab.YEARS]
    (tmp_path / "co2.csv").write_text("\n".join(["year,co2", *rows]))
    co2 = str(tmp_path / "co2.csv")
    late = write(lab.dataset(lab.fields(1)).isel(time=slice(20, None)), "late.nc")
    own = {**SPANS, "baseline": "1920-1939", "forcing": [co2], "test_forcing": co2}
    data = ScenarioData([runs[0]], str(late), **own)
    with pytest.raises(DataError, match=r"late.nc: begins in 1920, the training runs in 1900"):
        _ = data.test_run


def test_forcings_of_other_names_or_units_are_refused(runs, tmp_path, lab) -> None:
    def table(name: str, *columns: tuple[str, str]) -> str:
        head = ",".join(("Scenario", "Region", "Variable", "Unit", *map(str, lab.YEARS)))
        rows = [
            ",".join(("s", "World", one, unit, *(f"{0.01 * i}" for i in range(80))))
            for one, unit in columns
        ]
        (tmp_path / name).write_text("\n".join((head, *rows)) + "\n")
        return str(tmp_path / name)

    def test_run(name: str) -> None:
        how = {"baseline": "1900-1919", "period": "1970-1979", "valid": None}
        _ = ScenarioData([runs[0]], runs[1], forcing=[first], test_forcing=name, **how).test_run

    first = table("a.csv", ("co2", "W m-2"), ("ch4", "Mt CH4/yr"))
    test_run(table("b.csv", ("co2", "W/m2"), ("ch4", "Mt CH4/yr")))
    for name, columns, message in (
        ("c.csv", [("ch4", "Mt CH4/yr"), ("co2", "W m-2")], "has the predictors ch4, co2"),
        ("d.csv", [("co2", "mW m-2"), ("ch4", "Mt CH4/yr")], "co2: is in mW m-2"),
        ("e.csv", [("co2", "W m-2"), ("ch4", "kt CH4/yr")], "ch4: is in kt CH4/yr"),
    ):
        with pytest.raises(DataError, match=message):
            test_run(table(name, *columns))


def test_forcing_fields_with_gaps_are_refused(tmp_path, lab) -> None:
    made = lab.dataset(lab.fields(), units="W m-2", name="rf")
    made["rf"].attrs.pop("standard_name")
    made["rf"].values[3] = np.nan  # a record wholly missing: no year is a forcing of zero
    made.to_netcdf(tmp_path / "f.nc", engine="h5netcdf")
    with pytest.raises(DataError, match="rf: 20 of 1,600 values are missing"):
        read_series(tmp_path / "f.nc")
    made["rf"].values[:] = 1.0
    made["rf"].values[:, 1, 1] = np.nan
    made.to_netcdf(tmp_path / "g.nc", engine="h5netcdf")
    assert np.allclose(read_series(tmp_path / "g.nc")[1], 1.0)
