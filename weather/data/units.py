"""Units by UDUNITS-2 (cf-units): one canonical unit for every quantity; what cannot be converted is
refused."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from longseq.core.errors import ConfigError

if TYPE_CHECKING:
    from cf_units import Unit

# A quantity is brought to the first of these that its unit converts to.
CANONICAL = ("K", "kg m-2 s-1", "Pa", "m s-1", "1", "W m-2", "m", "kg m-2")
# What files write and UDUNITS does not know, or takes for another thing ("C" is the coulomb,
# "degrees C" an angle times a charge).
_ALIASES = {
    "c": "degC",
    "deg c": "degC",
    "degree c": "degC",
    "degrees c": "degC",
    "degrees celsius": "degC",
    "degree celsius": "degC",
    "celcius": "degC",
    "degc": "degC",
    "f": "degF",
    "deg f": "degF",
    "degrees f": "degF",
    "degrees fahrenheit": "degF",
    "degree fahrenheit": "degF",
    "deg k": "K",
    "degrees k": "K",
    "degree k": "K",
    "k": "K",
    "degrees kelvin": "K",
    "fraction": "1",
    "(0 - 1)": "1",
    "0-1": "1",
    "psu": "1",
    "gpm": "m",
    "gpdm": "dam",
    "geopotential meters": "m",
    "dimensionless": "1",
    "none": "1",
    "pascal": "Pa",
    "mm/dy": "mm/day",
    "gr/kg": "g/kg",
}
# A cubic metre of water weighs a tonne: mm/day of rain are kg m-2 day-1.
_WATER = 1000.0
_WATER_WORDS = ("precip", "rain", "snow", "evapo", "runoff", "drizzle")
_WATER_NAMES = ("pr", "prc", "prsn", "tp", "pre", "evspsbl", "mrro", "pr90")
_POSITIVE_WORDS = (
    "precipitation",
    "rainfall",
    "snowfall",
    "specific_humidity",
    "relative_humidity",
    "wind_speed",
    "area_fraction",
    "thickness",
)
_DIFFERENCE_WORDS = ("anomaly", "anomalies", "difference", "range")
_DIFFERENCE_NAMES = ("dtr", "diurnal_temperature_range")
# Temperatures of the Earth's air and sea; a value outside means that the unit's label is wrong.
PLAUSIBLE = {"K": (150.0, 350.0)}


@lru_cache(maxsize=256)
def parse(text: str) -> Unit | None:
    """Returns a unit, or None if neither UDUNITS nor the list of usual spellings knows it.

    Args:
        text: as a file has it, for example "degrees C", "mm/month", "kg m**-2 s**-1" or "M/S".
    """
    import cf_units

    plain = " ".join(text.split())
    for form in (_ALIASES.get(plain.lower().replace("_", " ")), plain, plain.lower()):
        if not form:
            continue
        try:
            unit = cf_units.Unit(form)
        except ValueError:
            continue
        if not unit.is_unknown() and not unit.is_no_unit():
            return unit
    return None


def is_water(name: str, attrs: dict[str, Any]) -> bool:
    """Returns whether a variable is an amount or a flux of water, so that mm are kg m-2.

    Args:
        name: of the variable.
        attrs: its attributes.
    """
    words = " ".join(str(attrs.get(key, "")) for key in ("standard_name", "long_name")).lower()
    return name.lower() in _WATER_NAMES or any(word in words for word in _WATER_WORDS)


def is_direction(attrs: dict[str, Any], units: str) -> bool:
    """Returns whether values are angles of a direction, of which 359° and 1° have no mean of 180°.

    Args:
        attrs: of the variable: standard_name, long_name.
        units: of the file.
    """
    words = " ".join(str(attrs.get(key, "")) for key in ("standard_name", "long_name")).lower()
    angle = units.strip().lower().startswith(("deg", "rad")) and parse(units) is not None
    return "direction" in words and angle and not parse(units).is_convertible("K")  # type: ignore[union-attr]


def is_positive(name: str, attrs: dict[str, Any]) -> bool:
    """Returns whether a variable cannot be negative (precipitation, humidity, wind speed).

    Args:
        name: of the variable.
        attrs: its attributes.
    """
    if is_difference(name, attrs):
        return False
    standard = str(attrs.get("standard_name", "")).lower()
    return name.lower() in ("pr", "pr90", "prc", "prsn", "tp", "huss", "hurs", "sfcwind") or any(
        word in standard for word in _POSITIVE_WORDS
    )


def is_difference(name: str, attrs: dict[str, Any]) -> bool:
    """Returns whether values are differences (anomalies, ranges), which take no offset when degC
    becomes K.

    Args:
        name: of the variable.
        attrs: its attributes: standard_name, long_name, units_metadata, cell_methods.
    """
    words = " ".join(
        str(attrs.get(key, "")) for key in ("standard_name", "long_name", "units_metadata")
    ).lower()
    methods = str(attrs.get("cell_methods", "")).lower().split()
    parts = name.lower().replace("-", "_").split("_")
    return (
        any(word in words for word in _DIFFERENCE_WORDS)
        or "range" in methods
        or name.lower() in _DIFFERENCE_NAMES
        or any(part in (*_DIFFERENCE_WORDS, "anom") for part in parts)
    )


def canonical(text: str, water: bool = False) -> str:
    """Returns the canonical unit of a unit's quantity, for example "K" for "degC".

    Args:
        text: a unit that ``parse`` knows.
        water: whether the quantity is water, whose mm are kg m-2.
    """
    unit = parse(text)
    assert unit is not None
    if water:
        for target, depth in (("kg m-2 s-1", "m s-1"), ("kg m-2", "m")):
            if unit.is_convertible(target) or unit.is_convertible(depth):
                return target
    return next((name for name in CANONICAL if unit.is_convertible(name)), text)


def convert(
    values: np.ndarray, source: str, target: str, difference: bool = False, water: bool = False
) -> np.ndarray:
    """Converts values from one unit to another, in float64.

    Args:
        values: any shape.
        source: their unit.
        target: the unit wanted.
        difference: whether the values are differences, which take no offset.
        water: whether the quantity is water, whose mm are kg m-2.

    Raises:
        ConfigError: if either is unknown, or they measure different quantities.
    """
    one, other = parse(source), parse(target)
    for unit, text in ((one, source), (other, target)):
        if unit is None:
            raise ConfigError(f"the unit {text!r} is unknown to UDUNITS")
    assert one is not None and other is not None
    values = np.asarray(values, dtype=np.float64)
    factor = 1.0
    if not one.is_convertible(other) and water:
        heavy = parse("kg m-3")
        if (one * heavy).is_convertible(other):
            one, factor = one * heavy, _WATER
        elif one.is_convertible(other * heavy):
            other, factor = other * heavy, 1 / _WATER
    if not one.is_convertible(other):
        raise ConfigError(f"{source!r} cannot be converted to {target!r}")
    if one == other:
        return values * factor if factor != 1.0 else values
    if difference:
        slope = one.convert(1.0, other) - one.convert(0.0, other)
        return values * (slope * factor)
    scale, shift = one.convert(1.0, other) - one.convert(0.0, other), one.convert(0.0, other)
    return values * (scale * factor) + shift
