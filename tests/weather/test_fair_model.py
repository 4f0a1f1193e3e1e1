"""Emissions through FaIR: units and species of the table, its own numbers, what it lacks."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np
import pytest

from longseq.core.errors import DataError
from longseq.weather.data.series import read_units
from longseq.weather.fair_model import _COLUMNS, emission_table, fair_warming
from longseq.weather.warming import global_warming

YEARS = np.arange(1765, 1801)
_UNITS = {"N2O": "kt N2O/yr", "Sulfur": "Mt SO2/yr", "NOx": "Mt NOx/yr", "VOC": "Mt VOC/yr"}


def table() -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Returns every species that FaIR needs, growing, and RCMIP's units."""
    values, units = {}, {}
    for number, (names, _) in enumerate(_COLUMNS):
        name = f"Emissions|{names[0]}"
        values[name] = 1.0 + number * np.linspace(0, 1, len(YEARS))
        last = names[0].split("|")[1 if names[0].startswith("CO2") else -1]
        last = names[0].split("|")[0] if names[0].startswith("CO2") else last
        rare = "Gases" in names[0]
        units[name] = _UNITS.get(names[0], f"{'kt' if rare else 'Mt'} {last}/yr")
    return values, units


def test_units_become_fairs() -> None:
    values, units = table()
    made = emission_table(YEARS, values, units, "t")
    assert made.shape == (36, 40) and (made[:, 0] == YEARS).all()
    factors = made[0, 1:]
    assert factors[0] == pytest.approx(12.01 / 44.01 / 1000)  # Mt CO2 → Gt C
    assert factors[3] == pytest.approx(28.013 / 44.013 / 1000)  # kt N2O → Mt N2
    assert factors[4] == pytest.approx(32.065 / 64.066)  # Mt SO2 → Mt S
    assert np.allclose(factors[[2, 5, 6, 11, -1]], 1)
    # Other units of the same are the same.
    name = "Emissions|CO2|MAGICC Fossil and Industrial"
    carbon = {**values, name: values[name] * 12.01 / 44.01 / 1000}
    same = emission_table(YEARS, carbon, {**units, name: "PgC/yr".replace("C/", " C/")}, "t")
    assert np.allclose(same, made, rtol=1e-12)
    iiasa = {key: value for key, value in values.items() if key != name}
    iiasa["Emissions|CO2|Energy and Industrial Processes"] = values[name]
    more = {"Emissions|CO2|Energy and Industrial Processes": "Mt CO2/yr"}
    assert np.array_equal(emission_table(YEARS, iiasa, {**units, **more}, "t"), made)


@pytest.mark.parametrize(
    ("lost", "unit", "text"),
    [
        ("Emissions|CH4", None, r"lacks: Emissions\|CH4"),
        (None, "W/m^2", r"CH4 has the unit 'W/m\^2', Mt CH4/yr is needed"),
        (None, "Mt CO2/yr", "CH4 has the unit 'Mt CO2/yr'"),
        (None, "", "CH4 has no unit"),
    ],
)
def test_what_fair_cannot_take_is_refused(lost, unit, text) -> None:
    values, units = table()
    values = {name: own for name, own in values.items() if name != lost}
    if unit is not None:
        units["Emissions|CH4"] = unit
    with pytest.raises(DataError, match=text):
        emission_table(YEARS, values, units, "t")


def test_without_fair_the_way_on_is_said(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "fair", None)
    with pytest.raises(DataError, match=r"need FaIR.*longseq\[fair\]"):
        fair_warming(YEARS, *table(), "t")


def write_rcmip(path: Path, years: np.ndarray) -> Path:
    values, units = table()
    with path.open("w", newline="") as stream:
        out = csv.writer(stream)
        out.writerow(["Model", "Scenario", "Region", "Variable", "Unit", *years])
        for name, row in values.items():
            out.writerow(["m", "a", "World", name, units[name], *np.resize(row, len(years))])
    return path


def test_a_table_of_emissions_warms_as_fair_says(tmp_path: Path) -> None:
    pytest.importorskip("fair", reason="FaIR is in the extra fair")
    path = write_rcmip(tmp_path / "e.csv", YEARS)
    assert read_units(f"{path}::a")["Emissions|NOx"] == "Mt NOx/yr"
    found = global_warming(path, "a")
    assert found.how == "emissions through FaIR 1.6" and found.years.tolist() == YEARS.tolist()
    import fair.forward as model

    from longseq.weather.fair_model import _numbers_from_arrays

    emissions = emission_table(YEARS, *table(), "t")
    with _numbers_from_arrays(model):
        _, _, own = model.fair_scm(
            emissions=emissions,
            natural=model.natural.Emissions.emissions[:36],
            F_volcanic=model.cmip6_volcanic.Forcing.volcanic[:36],
            F_solar=model.cmip6_solar.Forcing.solar[:36],
        )
    np.testing.assert_array_equal(found.values, own)
    with pytest.raises(DataError, match="begin in 1800, FaIR needs them from 1765"):
        global_warming(write_rcmip(tmp_path / "late.csv", YEARS + 35), "a")


def test_a_tables_units_of_warming_and_forcing_are_read(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    years = np.arange(1850, 1900)
    row = ",".join(f"{value:.3f}" for value in np.linspace(0, 1500, 50))
    head = "Model,Scenario,Region,Variable,Unit," + ",".join(map(str, years))
    for name, unit in (
        ("Surface Air Temperature Change", "mK"),
        ("Effective Radiative Forcing", "mW/m^2"),
    ):
        path.write_text(f"{head}\nm,a,World,{name},{unit},{row}\n")
        small = global_warming(path, "a").values
        path.write_text(f"{head}\nm,a,World,{name},{unit[1:]},{row}\n")
        assert np.allclose(small * 1000, global_warming(path, "a").values, rtol=1e-12)
    path.write_text(f"{head}\nm,a,World,{name},kg,{row}\n")
    with pytest.raises(DataError, match="'kg' cannot be converted to 'W m-2'"):
        global_warming(path, "a")


@pytest.mark.parametrize("scenario", ["ssp119", "ssp585"])
def test_the_packaged_energy_balance_stands_for_fair(scenario: str) -> None:
    fair = pytest.importorskip("fair", reason="FaIR is in the extra fair")
    folder = Path(fair.__file__).parent / "SSPs" / "data"
    runs = []
    for kind in ("emissions", "radiative-forcing"):
        path = folder / f"rcmip-{kind}-annual-means-5-1-0-ssp-only.csv"
        found = global_warming(path, scenario, interpolate=True).relative(1850, 1900)
        runs.append(found.values[np.searchsorted(found.years, np.arange(1850, 2101))])
    assert np.abs(runs[0] - runs[1]).max() < 0.1
