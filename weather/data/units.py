"""Units by UDUNITS-2 (cf-units): one canonical unit for every quantity; what cannot be converted is
refused."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from longseq.core.errors import ConfigError

if TYPE_CHECKING:
    from cf_units import Unit

# A quantity is brought to the first of these that its unit converts to.
CANONICAL = ("K", "kg m-2 s-1", "Pa", "m s-1", "1", "W m-2", "m", "kg m-2")
CANONICAL += ("K2", "Pa2", "m2 s-2", "J m-2", "K s-1", "Pa s-1", "s-1")
# What files write and UDUNITS does not know, or takes for another thing ("C" is the coulomb,
# "degrees C" an angle times a charge).
_ALIASES = {
    "oc": "degC",
    "f": "degF",
    "k": "K",
    "fraction": "1",
    "(0 - 1)": "1",
    "0-1": "1",
    "psu": "1e-3",
    "gpm": "m",
    "gpdm": "dam",
    "geopotential meters": "m",
    "dimensionless": "1",
    "none": "1",
    "unitless": "1",
    "nondimensional": "1",
    "non-dimensional": "1",
    "okta": "0.125",
    "oktas": "0.125",
    "octas": "0.125",
    "gr/kg": "g/kg",
    "mph": "mile/hour",
    "kph": "km/hour",
    "kmh": "km/hour",
    "mps": "m/s",
    "deg": "degree",
    "degs": "degree",
}
# Words inside of units, likewise: "mb" is a millibarn to UDUNITS, "pa" a square metre, "a" an are.
_WORDS = {
    "mb": "hPa",
    "mbs": "hPa",
    "pa": "Pa",
    "hpa": "hPa",
    "mo": "month",
    "mon": "month",
    "months": "month",
    "dy": "day",
    "hrs": "hour",
    "wk": "week",
    "celcius": "degC",
}
# A centigrade is a hundredth of a right angle's hundredth to UDUNITS.
_DEGREES = re.compile(
    r"\bdeg(?:ree)?s?[ _]?(?:(c|celsius|celcius|centigrades?)|(f|fahrenheit)|(k|kelvin))\b|"
    r"\b(centigrades?)\b",
    re.I,
)
# "ms-1" is per millisecond to UDUNITS; speeds and accelerations are meant.
_METRES = re.compile(r"^ms((?:\^|\*\*)?-[12])$")
# Carbon is no coulomb ("g C m-2"): the mass of one element of a substance.
_CARBON = re.compile(r"\b(?:[kGTPM]?g|t|[mµu]?mol)[ _]?C\b")
_UNKNOWN = ("unit", "units", "-")
# "mm/6h" is per six hours, not a sixth of a millimetre times hours; "6h-1" likewise.
_PER_SOME = re.compile(r"(/|\bper\b)\s*(\d+)\s*([A-Za-z]+)\b(?![-^*\d])")
_SOME_EACH = re.compile(r"(?<![\w.^*-])(\d+)([A-Za-z]+)(?:\^|\*\*)?-1\b")
_PER_YEAR = re.compile(r"(/|\bper)\s*a\b|\ba(?:\^|\*\*)?-1\b")
OF_WATER = re.compile(
    r"\b(mm|cm|m|in|inch|inches)\s+(?:of\s+)?(?:(?:liquid\s+)?water(?:\s+equiv(?:alent|\.)?)?|w\.?\s?e\.?|h2o)"
    r"(?=$|[\s/])",
    re.I,
)
_PERIODS = {"month": r"month", "year": r"(?:year|yr|annum)s?"}
# A cubic metre of water weighs a tonne: mm/day of rain are kg m-2 day-1.
_WATER = 1000.0


def spelled(text: str) -> str:
    """Returns a unit as UDUNITS spells it.

    Args:
        text: as a file has it, for example "deg C/day", "mb", "mm/6h" or "mm per mon".
    """
    plain = " ".join(text.split()).replace("º", "°")
    # A sign that is no UTF-8 before a C or F is the degree of Latin-1, lost on reading NetCDF-3.
    plain = re.sub(r"^\ufffd(?= ?[CF]$)", "°", plain)
    if known := _ALIASES.get(plain.lower().replace("_", " ")):
        return known
    plain = _DEGREES.sub(lambda m: "degF" if m[2] else "K" if m[3] else "degC", plain)
    plain = _METRES.sub(r"m s\1", plain)
    plain = OF_WATER.sub(r"\1", plain)
    plain = re.sub(r"[^\W\d_]+", lambda m: _WORDS.get(m[0].lower(), m[0]), plain)
    if not _CARBON.search(plain):
        plain = re.sub(r"(?<![\w°])C(?![\w°])", "degC", plain)
    plain = _PER_YEAR.sub(lambda m: f"{m[1]} year" if m[1] else "year-1", plain)
    plain = _PER_SOME.sub(r"/(\2 \3)", plain)
    return _SOME_EACH.sub(r"(\1 \2)^-1", plain)


def per_period(text: str) -> tuple[str, str] | None:
    """Returns "month" or "year" and the unit per day, for a unit per month or year; else None.

    Args:
        text: as a file has it, for example "mm/month" or "mm yr-1".
    """
    plain = spelled(text)
    for period, word in _PERIODS.items():
        found = re.fullmatch(rf"(.+?)(?:\s*/\s*|\s+per\s+){word}", plain, re.I)
        found = found or re.fullmatch(rf"(.+?)[ .*]{word}(?:\^|\*\*)?-1", plain, re.I)
        if found:
            return period, f"{found[1]} day-1"
    return None


@lru_cache(maxsize=256)
def parse(text: str) -> Unit | None:
    """Returns a unit, or None if neither UDUNITS nor the list of usual spellings knows it.

    Args:
        text: as a file has it, for example "degrees C", "mm/month", "kg m**-2 s**-1" or "M/S".
    """
    import cf_units

    plain = spelled(text)
    if plain in _UNKNOWN or _CARBON.search(plain):
        return None
    for form in (plain, plain.lower()):
        try:
            unit = cf_units.Unit(form)
        except ValueError:
            continue
        if not unit.is_unknown() and not unit.is_no_unit():
            return unit
    return None


def has_offset(text: str) -> bool:
    """Returns whether a unit's zero is not that of its quantity, as of degC.

    Args:
        text: any unit.
    """
    unit = parse(text)
    return unit is not None and fits(unit, "K") and float(unit.convert(0.0, "K")) != 0


def fits(unit: Unit, other: Unit | str) -> bool:
    """Returns whether values convert by a factor and an offset.

    UDUNITS calls days and s-1 convertible too, by the reciprocal, and logarithms (dBZ).

    Args:
        unit: of values.
        other: a unit, or what UDUNITS reads.
    """
    if not unit.is_convertible(other):
        return False
    zero, one, two = (float(unit.convert(value, other)) for value in (0.0, 1.0, 2.0))
    return bool(np.isfinite(zero)) and abs((two - one) - (one - zero)) <= 1e-9 * abs(two - one)


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
            if fits(unit, target) or fits(unit, depth):
                return target
    if re.search(r"(^|\s)rad$", str(unit.definition)):
        return "degree"  # dimensionless to UDUNITS, as fractions are
    return next((name for name in CANONICAL if fits(unit, name)), text)


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
    if not fits(one, other) and water:
        heavy = parse("kg m-3")
        if fits(one * heavy, other):
            one, factor = one * heavy, _WATER
        elif fits(one, other * heavy):
            other, factor = other * heavy, 1 / _WATER
    if not fits(one, other):
        raise ConfigError(f"{source!r} cannot be converted to {target!r}")
    if one == other:
        return values * factor if factor != 1.0 else values
    if difference:
        slope = one.convert(1.0, other) - one.convert(0.0, other)
        return values * (slope * factor)
    scale, shift = one.convert(1.0, other) - one.convert(0.0, other), one.convert(0.0, other)
    return values * (scale * factor) + shift
