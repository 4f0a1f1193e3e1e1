"""Units: one canonical unit for every quantity; what cannot be converted is refused."""

from __future__ import annotations

import re

import numpy as np

from longseq.core.errors import ConfigError

# unit → (family, factor, offset): canonical = factor · value + offset. The first of a family is
# canonical.
_UNITS: dict[str, tuple[str, float, float]] = {
    "K": ("temperature", 1.0, 0.0),
    "degC": ("temperature", 1.0, 273.15),
    "degF": ("temperature", 5 / 9, 273.15 - 32 * 5 / 9),
    "kg m-2 s-1": ("precipitation", 1.0, 0.0),
    "mm day-1": ("precipitation", 1 / 86400, 0.0),
    "mm s-1": ("precipitation", 1.0, 0.0),
    "mm h-1": ("precipitation", 1 / 3600, 0.0),
    "Pa": ("pressure", 1.0, 0.0),
    "hPa": ("pressure", 100.0, 0.0),
    "kPa": ("pressure", 1000.0, 0.0),
    "m s-1": ("speed", 1.0, 0.0),
    "km h-1": ("speed", 1 / 3.6, 0.0),
    "knot": ("speed", 1852 / 3600, 0.0),
    "1": ("fraction", 1.0, 0.0),
    "%": ("fraction", 0.01, 0.0),
    "g kg-1": ("fraction", 1e-3, 0.0),
    "W m-2": ("power", 1.0, 0.0),
    "m": ("length", 1.0, 0.0),
    "km": ("length", 1000.0, 0.0),
}
_ALIASES = {
    "kelvin": "K",
    "degk": "K",
    "degreek": "K",
    "degreesk": "K",
    "c": "degC",
    "°c": "degC",
    "celsius": "degC",
    "degreec": "degC",
    "degreesc": "degC",
    "deg_c": "degC",
    "degree_celsius": "degC",
    "degrees_celsius": "degC",
    "degree_c": "degC",
    "degrees_c": "degC",
    "f": "degF",
    "°f": "degF",
    "fahrenheit": "degF",
    "degree_fahrenheit": "degF",
    "degrees_f": "degF",
    "mm d-1": "mm day-1",
    "mm hr-1": "mm h-1",
    "pascal": "Pa",
    "mbar": "hPa",
    "millibar": "hPa",
    "knots": "knot",
    "kt": "knot",
    "kg kg-1": "1",
    "fraction": "1",
    "percent": "%",
    "metre": "m",
    "meter": "m",
}
_LOWER = {name.lower(): name for name in _UNITS}
# Temperatures of the Earth's air and sea; a value outside means that the unit's label is wrong.
PLAUSIBLE = {"temperature": (150.0, 350.0)}


def normal_form(text: str) -> str | None:
    """Returns a unit as it is written here ("degC", "mm day-1"), or None if it is unknown.

    Args:
        text: as a file has it, for example "degrees_celsius", "mm/day" or "kg m**-2 s**-1".
    """
    tidy = re.sub(r"\s+", " ", text.strip().replace("**", "").replace("^", "").replace(".", " "))
    head, *below = [part.strip() for part in tidy.split("/")]
    tidy = " ".join([head, *(f"{part}-1" for part in below)])
    if tidy in _UNITS:
        return tidy
    lower = tidy.lower()
    return _ALIASES.get(lower) or _LOWER.get(lower)


def canonical(unit: str) -> str:
    """Returns the canonical unit of a unit's quantity, for example "K" for "degC".

    Args:
        unit: in normal form.
    """
    family = _UNITS[unit][0]
    return next(name for name, entry in _UNITS.items() if entry[0] == family)


def family(unit: str) -> str:
    """Returns the quantity that a unit in normal form measures, for example "temperature"."""
    return _UNITS[unit][0]


def convert(values: np.ndarray, source: str, target: str, difference: bool = False) -> np.ndarray:
    """Converts values from one unit to another, in float64.

    Args:
        values: any shape.
        source: their unit.
        target: the unit wanted.
        difference: whether the values are differences (anomalies, ranges), which take no offset.

    Raises:
        ConfigError: if either is unknown, or they measure different quantities.
    """
    one, other = normal_form(source), normal_form(target)
    if one is None or other is None:
        wrong = source if one is None else target
        raise ConfigError(f"the unit {wrong!r} is unknown; known: {', '.join(_UNITS)}")
    if family(one) != family(other):
        raise ConfigError(
            f"{source!r} ({family(one)}) cannot be converted to {target!r} ({family(other)})"
        )
    if one == other:
        return np.asarray(values, dtype=np.float64)
    (_, up, shift), (_, down, back) = _UNITS[one], _UNITS[other]
    if difference:
        shift = back = 0.0
    return (np.asarray(values, dtype=np.float64) * up + (shift - back)) / down
