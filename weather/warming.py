"""Global warming of a scenario from a table of RCMIP or IIASA: its own, or from its forcings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from longseq.core.errors import ConfigError, DataError
from longseq.weather.data import units as unit_library
from longseq.weather.data.cf import resolve
from longseq.weather.data.series import read_series, read_units
from longseq.weather.energy_balance import EnergyBalance
from longseq.weather.fair_model import fair_warming

_TEMPERATURES = (
    "Surface Air Temperature Change",
    "Surface Air Ocean Blended Temperature Change",
    "Surface Temperature (GSAT)",
)
ERF = "Effective Radiative Forcing"
# Two boxes and weights of the parts of RCMIP's forcing that follow FaIR 1.6.4's temperature (driven
# by RCMIP's emissions, as ``fair_warming`` does it) over ten SSPs 1850-2100: least squares, weights
# not negative. The weights also make up for what FaIR's forcings differ from RCMIP's by: they are
# no efficacies of the agents.
FAIR = EnergyBalance((7.489, 69.505), (1.4099, 0.6296))
FAIR_PARTS = {
    f"{ERF}|Anthropogenic|CO2": 0.801,
    f"{ERF}|Anthropogenic|CH4": 0.0,
    f"{ERF}|Anthropogenic|N2O": 1.185,
    f"{ERF}|Anthropogenic|Aerosols": 0.540,
    f"{ERF}|Anthropogenic|Albedo Change": 1.232,
    f"{ERF}|Anthropogenic|Other": 1.794,
    f"{ERF}|Anthropogenic|Stratospheric Ozone": 2.792,
    f"{ERF}|Anthropogenic|Tropospheric Ozone": 1.779,
    f"{ERF}|Natural|Solar": 1.791,
    f"{ERF}|Natural|Volcanic": 0.594,
}


@dataclass(frozen=True)
class Warming:
    """Global mean surface temperature of a scenario.

    Args:
        years: (T), without gaps.
        values: (T), K above the start of the table, or as the table has them.
        how: what they were made from, in words.
    """

    years: np.ndarray
    values: np.ndarray
    how: str

    def relative(self, first: int, last: int) -> Warming:
        """Returns the warming relative to the mean of a span of years.

        Raises:
            DataError: if years of the span are missing.
        """
        if self.years[0] > first or self.years[-1] < last:
            text = f"the years {self.years[0]}-{self.years[-1]} lack some of {first}-{last}"
            raise DataError(text)
        inside = (self.years >= first) & (self.years <= last)
        return Warming(self.years, self.values - self.values[inside].mean(), self.how)


def global_warming(
    path: str | Path,
    scenario: str,
    boxes: EnergyBalance | None = None,
    interpolate: bool = False,
) -> Warming:
    """Returns the global warming of a scenario of a table in the layout of RCMIP or IIASA.

    A temperature in the table is taken as it is. Otherwise effective radiative forcings drive an
    energy balance: the given one by their total, or the packaged one, which stands for FaIR 1.6.4,
    by their parts. Emissions go through FaIR itself where it is installed.

    Args:
        path: of the table.
        scenario: its name.
        boxes: an energy balance; None for the packaged one.
        interpolate: whether missing years are filled in linearly.

    Raises:
        DataError: if the table has neither, saying what it has, and as ``fair_warming``.
    """
    where = f"{path}::{scenario}"
    years, values, names = read_series(where, interpolate=interpolate, gaps=True)
    units = read_units(where)
    table = {
        name: _in_units(column, name, units.get(name, ""), where)
        for name, column in zip(names, values.T)
    }
    for name in _TEMPERATURES:
        if name in table:
            return _whole(Warming(years, table[name], name), where)
    if boxes is not None and ERF in table:
        found = boxes.temperatures(_finite(table[ERF], ERF, where))[:, 0]
        return _whole(Warming(years, found, f"{ERF} through a fitted energy balance"), where)
    if all(name in table for name in FAIR_PARTS):
        driven = np.zeros(len(years))
        for name, factor in FAIR_PARTS.items():
            driven += factor * _finite(table[name], name, where)
        how = f"{ERF} through an energy balance that stands for FaIR 1.6.4"
        return _whole(Warming(years, FAIR.temperatures(driven)[:, 0], how), where)
    if ERF in table:
        found = EnergyBalance().temperatures(_finite(table[ERF], ERF, where))[:, 0]
        how = f"{ERF} through three boxes of heat of typical size"
        return _whole(Warming(years, found, how), where)
    if any(name.startswith("Emissions|") for name in table):
        when, found = fair_warming(years, table, units, where)
        return _whole(Warming(when, found, "emissions through FaIR 1.6"), where)
    text = f"has neither {_TEMPERATURES[0]} nor {ERF}"
    raise DataError(text, path=resolve(path), record=scenario)


def _in_units(values: np.ndarray, name: str, unit: str, where: str) -> np.ndarray:
    """Returns temperatures in K and forcings in W m-2, whatever the table has them in."""
    wanted = "K" if name in _TEMPERATURES else "W m-2" if name.startswith(ERF) else ""
    if not wanted or not unit:
        return values
    try:
        return unit_library.convert(values, unit, wanted, difference=True)
    except ConfigError as error:
        raise DataError(f"{name}: {error}", path=where) from error


def _finite(values: np.ndarray, name: str, where: str) -> np.ndarray:
    if not np.isfinite(values).all():
        raise DataError(f"{name} is missing in some years", path=where)
    return values


def _whole(found: Warming, where: str) -> Warming:
    _finite(found.values, found.how, where)
    return found
