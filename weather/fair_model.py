"""Emissions to global warming through FaIR 1.6 where it is installed (the extra ``fair``)."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from longseq.core.errors import DataError

FIRST, LAST = 1765, 2500
"""The years for which FaIR has natural emissions, volcanoes and the sun."""

# Millions of tonnes in a unit of mass.
_MASS = {"kg": 1e-9, "t": 1e-6, "kt": 1e-3, "Gg": 1e-3, "Mt": 1.0, "Tg": 1.0, "Gt": 1e3, "Pg": 1e3}
_UNIT = re.compile(r"(\w+?)\s+([\w-]+)\s*(?:/|\bper\b)\s*(?:yr|year|a|y)", re.I)
# Molecular weights as FaIR has them.
_C, _N, _N2, _S = 12.01, 14.0067, 28.013, 32.065
# Name → what its mass is multiplied by, to be that of the element which FaIR counts.
_ELEMENT = {
    "CO2": {"CO2": _C / 44.01, "C": 1.0},
    "N2O": {"N2O": _N2 / 44.013, "N2": 1.0, "N": 1.0, "N2O-N": 1.0},
    "Sulfur": {"SO2": _S / 64.066, "S": 1.0},
    "NOx": {"NO2": _N / 46.0055, "NOx": _N / 46.0055, "NO": _N / 30.01, "N": 1.0},
}
_FOSSIL = "MAGICC Fossil and Industrial"
# FaIR's columns after the year: names in RCMIP's and in IIASA's tables, and a column's share of a
# million tonnes (CO2 counts in thousands of millions of tonnes, rare gases in thousands).
_COLUMNS: tuple[tuple[tuple[str, ...], float], ...] = (
    ((f"CO2|{_FOSSIL}", "CO2|Energy and Industrial Processes"), 1e-3),
    (("CO2|MAGICC AFOLU", "CO2|AFOLU"), 1e-3),
    *(((name,), 1.0) for name in ("CH4", "N2O", "Sulfur", "CO", "VOC", "NOx", "BC", "OC", "NH3")),
    *(((f"F-Gases|PFC|{name}",), 1e3) for name in ("CF4", "C2F6", "C6F14")),
    *(
        ((f"F-Gases|HFC|{name}",), 1e3)
        for name in ("HFC23", "HFC32", "HFC4310mee", "HFC125", "HFC134a", "HFC143a")
    ),
    *(((f"F-Gases|HFC|{name}",), 1e3) for name in ("HFC227ea", "HFC245fa")),
    (("F-Gases|SF6",), 1e3),
    *((("Montreal Gases|CFC|" + name,), 1e3) for name in ("CFC11", "CFC12", "CFC113", "CFC114")),
    (("Montreal Gases|CFC|CFC115",), 1e3),
    *(((f"Montreal Gases|{name}",), 1e3) for name in ("CCl4", "CH3CCl3", "HCFC22", "HCFC141b")),
    *(((f"Montreal Gases|{name}",), 1e3) for name in ("HCFC142b", "Halon1211", "Halon1202")),
    *(((f"Montreal Gases|{name}",), 1e3) for name in ("Halon1301", "Halon2402", "CH3Br", "CH3Cl")),
)


def emission_table(
    years: np.ndarray, table: Mapping[str, np.ndarray], units: Mapping[str, str], where: str
) -> np.ndarray:
    """Returns FaIR's emissions (T, 40): the year, CO2 of fossil fuels and of land use (Gt C), CH4
    (Mt), N2O (Mt N2), SOx (Mt S), CO, VOC (Mt), NOx (Mt N), BC, OC, NH3 (Mt), and 28 gases (kt).

    Args:
        years: of the table (T).
        table: variable (``Emissions|CH4``) → values (T).
        units: variable → unit (``Mt CH4/yr``).
        where: the table and the scenario, for messages.

    Raises:
        DataError: for missing species or values, and units that are no mass of the species per
            year.
    """
    found, lost = [years.astype(np.float64)], []
    for names, share in _COLUMNS:
        name = next((own for one in names if (own := f"Emissions|{one}") in table), None)
        if name is None:
            lost.append(f"Emissions|{names[0]}")
            continue
        values = np.asarray(table[name], dtype=np.float64)
        if not np.isfinite(values).all():
            year = years[~np.isfinite(values)][0]
            hint = "--interpolate fills in the years between linearly"
            raise DataError(f"{name} is missing", path=where, record=f"year {year}", hint=hint)
        found.append(values * _megatonnes(name, units.get(name, ""), where) * share)
    if lost:
        names_text = ", ".join(lost[:4]) + (f" and {len(lost) - 4} more" if len(lost) > 4 else "")
        raise DataError(
            f"holds emissions, and FaIR needs {len(lost)} that it lacks: {names_text}",
            path=where,
            hint="add them, as the tables of RCMIP have them",
        )
    return np.stack(found, 1)


def _megatonnes(name: str, unit: str, where: str) -> float:
    """Returns what a variable's values are multiplied by to be Mt of FaIR's element."""
    match = _UNIT.fullmatch(unit.strip())
    species = name.split("|")[1] if name.split("|")[1] in _ELEMENT else name.split("|")[-1]
    if species == _FOSSIL:
        species = name.split("|")[1]
    known = _ELEMENT.get(species, {species: 1.0})
    if match and match[1] in _MASS:
        factors = {key.lower(): value for key, value in known.items()}
        if match[2].lower() in factors:
            return _MASS[match[1]] * factors[match[2].lower()]
    wanted = " or ".join(f"Mt {one}/yr" for one in known)
    has = f"has the unit {unit!r}" if unit else "has no unit"
    raise DataError(f"{name} {has}, {wanted} is needed", path=where)


def fair_warming(
    years: np.ndarray,
    table: Mapping[str, np.ndarray],
    units: Mapping[str, str],
    where: str,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the years from 1765 on (T) and FaIR's global warming above that year (T), K.

    FaIR's own settings: default parameters, natural emissions, volcanoes and sun; the shares of
    fossil methane and of aviation's NOx are the table's, where it has them.

    Args:
        years: of the table, without gaps.
        table: as in ``emission_table``.
        units: likewise.
        where: likewise.

    Raises:
        DataError: as ``emission_table``; if FaIR is not there; for emissions that begin after 1765.
    """
    model = _load(where)
    if years[0] > FIRST:
        text = f"its emissions begin in {years[0]}, FaIR needs them from {FIRST}"
        raise DataError(text, path=where, hint="put the historical emissions of RCMIP before them")
    inside = (years >= FIRST) & (years <= LAST)
    years, table = years[inside], {name: values[inside] for name, values in table.items()}
    emissions = emission_table(years, table, units, where)
    count = len(years)
    shares: dict[str, Any] = {}
    for argument, name, column in (
        ("fossilCH4_frac", f"Emissions|CH4|{_FOSSIL}", 3),
        ("aviNOx_frac", f"Emissions|NOx|{_FOSSIL}|Aircraft", 8),
    ):
        if name in table and np.isfinite(table[name]).all():
            part = table[name] * _megatonnes(name, units.get(name, ""), where)
            whole = emissions[:, column]
            shares[argument] = np.divide(part, whole, out=np.zeros(count), where=whole > 0)
    with warnings.catch_warnings(), _numbers_from_arrays(model):
        warnings.simplefilter("ignore")
        _, _, warming = model.fair_scm(
            emissions=emissions,
            natural=model.natural.Emissions.emissions[:count],
            F_volcanic=model.cmip6_volcanic.Forcing.volcanic[:count],
            F_solar=model.cmip6_solar.Forcing.solar[:count],
            **shares,
        )
    return years, np.asarray(warming, dtype=np.float64)


def _load(where: str) -> Any:
    try:
        import fair
        import fair.forward as model
    except ImportError as error:
        raise DataError(
            f"holds emissions, which need FaIR ({error})",
            path=where,
            hint='pip install "longseq[fair]", or give forcings or temperatures',
        ) from error
    if not str(fair.__version__).startswith("1.6"):
        text = f"holds emissions, and FaIR is {fair.__version__}: 1.6 has parameters of its own"
        raise DataError(text, path=where, hint='pip install "longseq[fair]"')
    return model


@contextmanager
def _numbers_from_arrays(model: Any) -> Iterator[None]:
    """Lets FaIR 1.6 run beside NumPy 2.4, which no longer takes an array of one element, as FaIR's
    tropospheric ozone is, for a number."""
    own = model.ozone_tr.stevenson

    def stevenson(*args: Any, **kwargs: Any) -> Any:
        found = np.asarray(own(*args, **kwargs))
        return found.item() if found.size == 1 else found

    model.ozone_tr.stevenson = stevenson
    try:
        yield
    finally:
        model.ozone_tr.stevenson = own
