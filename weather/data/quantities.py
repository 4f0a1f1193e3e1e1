"""What a variable is, by its name and attributes: water, a difference, a sum, what is possible."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from longseq.weather.data.units import OF_WATER, canonical, convert, fits, has_offset, parse

_WATER_WORDS = re.compile(r"\b(precip|rain|snow|evapo|runoff|drizzle)")
# Metres of snow are no metres of water, unless it is said.
_SNOW_DEPTH = re.compile(
    r"\b(snow|rain)\w*( \w+)* (depth|thickness|height|level|line|altitude|size|length)\b|"
    r"\b(depth|thickness|height|level|altitude|density) of (\w+ )*snow|\bsnowline\b|"
    r"\brain\w* (level|height)"
)
_GATHERS = re.compile(r"\b(precipitation|rain(fall)?|snow(fall| ?melt)|evapo\w*|runoff|drizzle)\b")
_LIQUID = re.compile(r"\blwe\b|water equiv|liquid water|\bswe\b")
# Variables' own names, where no standard name says more: gridMET's precipitation_amount.
_WATER_NAME = re.compile(
    r"(?:(?:total|daily|monthly|annual|mean|convective|accumulated)_)*"
    r"(?:precip(?:itation)?|rain(?:fall)?)(?:_(?:amount|flux|rate|total|sum|mean))?"
)
# "mm/m" is 0.001 to UDUNITS, and millimetres per month to climatologists.
_PER_M = re.compile(r"(mm|cm|in|inch|inches)\s*(?:/\s*m|\s+per\s+m|\s*m(?:\^|\*\*)?-1)", re.I)
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
_SIGNED = re.compile(r"tendency|minus|due_to|isotope|temperature|_in_precipitation|\s")
_DIFFERENCE_WORDS = re.compile(
    r"\b(anomal(y|ies)|differences?|(?<!valid )(?<!actual )(?<!long )ranges?|departures?|"
    r"deviations?|std ?dev|stdev|(standard|sampling) errors?|uncertaint(y|ies)|spread|increments?|"
    r"interquartile|rmse|(dew ?point|wet ?bulb|freezing point) depression|change over time in)\b"
    r"(?! (?:removed|corrected|adjusted|checked))"
)
_DIFFERENCE_NAMES = ("dtr", "diurnal_temperature_range")
# Parts of a variable's name, anywhere or at its end.
_DIFFERENCE_PARTS = ("anomaly", "anomalies", "anom", "difference", "range", "stddev", "stdev")
_DIFFERENCE_ENDS = ("std", "sd", "sigma", "sem", "spread", "error", "err", "uncertainty", "unc")
_DIFFERENCE_ENDS += ("bias", "diff", "delta", "change", "iqr", "rmse", "increment")
_DIFFERENCE_METHODS = ("range", "standard_deviation")
# Names that say so themselves: tasmax, TMAX, tn (E-OBS), t2m_max, mx2t (ECMWF).
_EXTREME_NAMES = (
    ("maximum", re.compile(r"max(imum)?(_|\d|$)|^tx[nx]?$|^mx2t")),
    ("minimum", re.compile(r"min(imum)?(_|\d|$)|^tn[nx]?$|^mn2t")),
)
# Methods whose results in degC cannot be told in K: they do not go with an offset.
_NO_OFFSET = ("variance", "root_mean_square", "sum_of_squares", "sum", "mean_absolute_value")
_NO_OFFSET += ("maximum_absolute_value", "minimum_absolute_value")
# What CF's standard names measure, where files are often labelled wrongly.
_QUANTITIES = (
    (re.compile(r"(?!.*_(?:of|and)_)\w*temperature"), "K"),
    (re.compile(r"(?:surface_)?air_pressure(?:_at_\w+)?"), "Pa"),
    (re.compile(r"(?:eastward|northward|[xy])_wind|wind_speed(?:_of_gust)?"), "m s-1"),
    (re.compile(r"(?:relative|specific)_humidity|\w*area_fraction"), "1"),
    (re.compile(r"geopotential_height"), "m"),
)
_WATER_RATE = re.compile(r"\w*(?:precip|rain|snow|evapo|runoff)\w*(?:_flux|_rate)")
# What the Earth has; a value outside means that the unit's label is wrong, or a mark of missing
# values not declared: by standard name (any), unit, least, most, what they would be.
_PLAUSIBLE = (
    (re.compile(r".*"), "K", 150.0, 350.0, "temperatures"),
    (
        re.compile(r"surface_air_pressure|air_pressure_at_(?:mean_)?sea_level|psl?|m?slp?|sp"),
        "Pa",
        3e4,
        1.2e5,
        "pressures at the surface",
    ),
    (re.compile(r"relative_humidity|\w*area_fraction|hurs|clt"), "1", -0.5, 2.0, "fractions"),
    (re.compile(r"specific_humidity|huss"), "1", -0.01, 0.1, "specific humidities"),
    (
        re.compile(r"(?!.*practical)\w*salinity|sos?"),
        "1",
        -0.01,
        0.5,
        "salinities",
    ),
    (
        re.compile(r"\w*(?:precipitation|rainfall|snowfall)\w*(?:_flux|_rate)|pr"),
        "kg m-2 s-1",
        -0.2,
        0.2,
        "rates of precipitation",
    ),
)
# What the greatest value of a whole field over time is above, likewise: fractions labelled as per
# cent, and kg m-2 s-1 labelled as mm/day.
_FAINT = (
    (
        re.compile(r"relative_humidity|(?:cloud|sea_ice)_area_fraction|hurs|clt|siconc"),
        "1",
        0.0101,
        "fractions that are labelled as per cent have such",
    ),
    (
        re.compile(r"(?:lwe_)?precipitation_(?:flux|rate)|pr"),
        "kg m-2 s-1",
        1e-8,
        "rates in kg m-2 s-1 that are labelled as mm/day have such",
    ),
)
# Of what cannot be negative: a share of the largest value within which negatives are rounding, or
# ringing of a spectral model.
NOISE = 0.01


def _words(attrs: Mapping[str, Any], *keys: str) -> str:
    """Returns the words of attributes, in small letters and with spaces."""
    return " ".join(str(attrs.get(key, "")) for key in keys).lower().replace("_", " ")


def is_water(name: str, attrs: Mapping[str, Any]) -> bool:
    """Returns whether a variable is an amount or a flux of water, so that mm are kg m-2.

    Args:
        name: of the variable.
        attrs: its attributes: standard_name, long_name, units.
    """
    if OF_WATER.search(str(attrs.get("units", ""))):
        return True
    words = _words(attrs, "standard_name", "long_name")
    if _SNOW_DEPTH.search(words) and not _LIQUID.search(words):
        return False
    own = name.lower()
    named = own in _WATER_NAMES or _WATER_NAME.fullmatch(own) is not None
    return named or _WATER_WORDS.search(words) is not None


def is_accumulated(name: str, attrs: Mapping[str, Any], units: str) -> bool:
    """Returns whether values are amounts that gathered over an interval (rain in mm, radiation in
    J m-2) and nothing says how: no method over time, no step of GRIB.

    Args:
        name: of the variable.
        attrs: its attributes: standard_name, long_name, cell_methods, GRIB_stepType.
        units: of the values.
    """
    unit = parse(units)
    said = "time" in str(attrs.get("cell_methods", "")) or (
        str(attrs.get("GRIB_stepType", "accum")) != "accum"
    )
    if unit is None or said or is_difference(name, attrs):
        return False
    words = _words(attrs, "standard_name", "long_name")
    if fits(unit, "J m-2"):
        return "radiation" in words or "flux" in words
    amount = fits(unit, "kg m-2") or fits(unit, "m")
    gathers = _GATHERS.search(words) is not None or name.lower() in _WATER_NAMES
    return amount and gathers and is_water(name, attrs)


def per_day(attrs: Mapping[str, Any], units: str) -> list[str]:
    """Returns a note where amounts are means of daily ones: ERA5's monthly means of what gathers.

    Args:
        attrs: of a variable: GRIB_stepType.
        units: of the values.
    """
    unit = parse(units)
    if attrs.get("GRIB_stepType") != "avgad" or unit is None:
        return []
    amount = any(fits(unit, one) for one in ("kg m-2", "m", "J m-2"))
    return ["amounts per day (GRIB_stepType avgad): means are taken of them"] if amount else []


def suspicions(
    name: str, attrs: Mapping[str, Any], units: str, difference: bool
) -> tuple[bool, bool]:
    """Returns whether 0 is a value like any other, as of degC, so that cells that have no other one
    are land; and whether values gather, so that those that never fall are totals since the start,
    unless they are said to be sums over their intervals.

    Args:
        name: of the variable.
        attrs: its attributes: standard_name, long_name, description, cell_methods.
        units: of the file.
        difference: whether values are differences.
    """
    unit = parse(units)
    if difference or unit is None:
        return False, False
    words = _words(attrs, "standard_name", "long_name", "description")
    gathers = "accum" in words or _GATHERS.search(words) is not None or name.lower() in _WATER_NAMES
    amount = any(fits(unit, one) for one in ("kg m-2", "m", "J m-2"))
    return has_offset(units), amount and gathers and "sum" not in cell_methods(attrs)


def is_direction(attrs: Mapping[str, Any], units: str) -> bool:
    """Returns whether values are angles of a direction, of which 359° and 1° have no mean of 180°.

    Args:
        attrs: of the variable: standard_name, long_name.
        units: of the file.
    """
    words = _words(attrs, "standard_name", "long_name")
    unit = parse(units)
    angle = units.strip().lower().startswith(("deg", "rad", "°"))
    return "direction" in words and angle and (unit is None or not unit.is_convertible("K"))


def is_positive(name: str, attrs: Mapping[str, Any]) -> bool:
    """Returns whether a variable cannot be negative (precipitation, humidity, wind speed).

    Args:
        name: of the variable.
        attrs: its attributes.
    """
    if is_difference(name, attrs):
        return False
    standard = str(attrs.get("standard_name", "")).lower()
    if _SIGNED.search(standard):
        return False
    own = name.lower()
    return (
        own in ("pr", "pr90", "prc", "prsn", "tp", "huss", "hurs", "sfcwind")
        or _WATER_NAME.fullmatch(own) is not None
        or any(word in standard for word in _POSITIVE_WORDS)
    )


def is_difference(name: str, attrs: Mapping[str, Any]) -> bool:
    """Returns whether values are differences (anomalies, ranges), which take no offset when degC
    becomes K.

    Args:
        name: of the variable.
        attrs: its attributes: standard_name, long_name, units_metadata, cell_methods.
    """
    said = _words(attrs, "units_metadata")
    if "on scale" in said or "difference" in said:
        return "difference" in said
    parts = name.lower().replace("-", "_").split("_")
    return (
        _DIFFERENCE_WORDS.search(_words(attrs, "standard_name", "long_name")) is not None
        or any(method in _DIFFERENCE_METHODS for method in cell_methods(attrs))
        or name.lower() in _DIFFERENCE_NAMES
        or any(part in _DIFFERENCE_PARTS for part in parts)
        or (len(parts) > 1 and parts[-1] in _DIFFERENCE_ENDS)
    )


def cell_methods(attrs: Mapping[str, Any]) -> list[str]:
    """Returns the methods of ``cell_methods``, comments and dimensions left out.

    Args:
        attrs: of a variable.
    """
    text = re.sub(r"\([^)]*\)", " ", str(attrs.get("cell_methods", "")).lower())
    return re.findall(r":\s*([a-z_]+)\b(?!\s*:)", text)


def methods_of(name: str, attrs: Mapping[str, Any]) -> set[str]:
    """Returns what values are beside means: by ``cell_methods``, or without them by the name
    (``tasmax``, ``tn``, ``tas_sd``).

    Args:
        name: of a variable.
        attrs: its attributes: cell_methods, long_name, standard_name.
    """
    methods = {*cell_methods(attrs)}
    if not methods:
        methods = {method for method, pattern in _EXTREME_NAMES if pattern.search(name.lower())}
    if is_difference(name, attrs) and not methods.intersection(_DIFFERENCE_METHODS):
        methods.add("difference")
    return methods - {"mean", "point"}


def other_quantity(
    name: str, attrs: Mapping[str, Any], other: str, others: Mapping[str, Any]
) -> str:
    """Returns how two variables differ in what they are; empty if nothing says so.

    They are the same by their standard names, or by their own where one has none; and by what
    ``cell_methods`` says beside means (a daily maximum, a deviation). Without ``cell_methods`` a
    variable is what its name says, otherwise a mean (or a sum).

    Args:
        name: of the first.
        attrs: its attributes: standard_name, cell_methods.
        other: name of the second.
        others: its attributes.
    """
    standards = [str(one.get("standard_name", "")).lower() for one in (attrs, others)]
    if any(one in ("", "unknown") for one in standards):
        standards = [name.lower(), other.lower()]
    if standards[0] != standards[1]:
        return f"{standards[1]}, not {standards[0]}"
    first, second = methods_of(name, attrs), methods_of(other, others)
    if not (cell_methods(attrs) and cell_methods(others)):
        # A name tells neither a sum from a mean, nor one spread from another; and the mean of daily
        # maxima (tasmax) is called a mean by some.
        spreads = {"difference", *_DIFFERENCE_METHODS}
        first, second = first - {"sum"}, second - {"sum"}
        if first & spreads and second & spreads:
            return ""
        if name == other and first | second == methods_of(name, {}):
            return ""
    if first != second:
        one, two = (" ".join(sorted(methods)) or "mean" for methods in (first, second))
        return f"a {two} of {standards[1]}, not a {one}"
    return ""


def quantity_problem(text: str, attrs: Mapping[str, Any], water: bool = False) -> str:
    """Returns why a unit cannot be that of a variable; empty if it can.

    Args:
        text: a unit that ``parse`` knows.
        attrs: of the variable: standard_name, cell_methods.
        water: whether the quantity is water.
    """
    unit, methods = parse(text), cell_methods(attrs)
    assert unit is not None
    if water and (found := _PER_M.fullmatch(text.strip())):
        return (
            f"units {text!r} are a ratio of lengths, and water is {found[1]} per time: write "
            f"'{found[1]}/month' if that is meant"
        )
    if has_offset(text):
        bad = next((method for method in methods if method in _NO_OFFSET), None)
        if bad:
            return f"units: a {bad} in {text!r} cannot be told in K, which begins elsewhere"
    standard, *modifiers = str(attrs.get("standard_name", "")).split() or [""]
    if modifiers or any(method in ("variance", *_NO_OFFSET) for method in methods):
        return ""
    for pattern, quantity in _QUANTITIES:
        if pattern.fullmatch(standard) and not fits(unit, quantity):
            return f"units {text!r} are none of {standard} ({quantity})"
    if _WATER_RATE.fullmatch(standard) and (fits(unit, "kg m-2") or fits(unit, "m")):
        return f"units {text!r} are an amount, and {standard} is one per time"
    return ""


def plausible(
    name: str, attrs: Mapping[str, Any], units: str, water: bool
) -> tuple[float, float, str] | None:
    """Returns the least and the greatest value that a quantity has on the Earth, in ``units``, and
    what it is; None where nothing is known.

    Args:
        name: of the variable, where it has no standard name.
        attrs: its attributes: standard_name, cell_methods.
        units: of the values.
        water: whether the quantity is water.
    """
    unit = parse(units)
    standard = str(attrs.get("standard_name", "")) or name.lower()
    if unit is None or any(method in ("variance", *_NO_OFFSET) for method in cell_methods(attrs)):
        return None
    for pattern, own, low, high, what in _PLAUSIBLE:
        if pattern.fullmatch(standard) and canonical(units, water) == own:
            ends = convert(np.array([low, high]), own, units, water=water)
            return float(ends[0]), float(ends[1]), what
    return None


def faint(name: str, attrs: Mapping[str, Any], units: str, water: bool) -> tuple[float, str] | None:
    """Returns what the greatest value of a field over time is above on the Earth, in ``units``, and
    what a smaller one means; None where nothing is known.

    Args:
        name: of the variable, where it has no standard name.
        attrs: its attributes: standard_name.
        units: of the values.
        water: whether the quantity is water.
    """
    standard = str(attrs.get("standard_name", "")) or name.lower()
    if parse(units) is None:
        return None
    for pattern, own, least, what in _FAINT:
        if pattern.fullmatch(standard) and canonical(units, water) == own:
            return float(convert(np.array([least]), own, units, water=water)[0]), what
    return None
