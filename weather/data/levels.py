"""The level a field lies on, by its scalar coordinates: pressure, height, depth or a number."""

from __future__ import annotations

from collections.abc import Sequence

from longseq.weather.data.field import Scalar
from longseq.weather.data.units import fits, parse

# Of standard names, or of the variable's own where it has none.
_HEIGHTS = {"height": "m above the ground", "altitude": "m above the sea", "depth": "m of depth"}
_NUMBERS = ("model_level_number", "lev", "level", "levels", "plev", "number_of_level", "bottom_top")
# Models have the air's temperature at 1.5 or 2 m, and both are called near the surface.
_SCREEN = 3.0
_EQUAL = 1e-3


def level_of(scalars: Sequence[Scalar]) -> tuple[str, float] | None:
    """Returns what a level is measured in and its value; None if no scalar coordinate says.

    Args:
        scalars: of the field.
    """
    for one in scalars:
        text = str(one.attrs.get("units", "")).strip()
        unit = parse(text) if text else None
        standard = str(one.attrs.get("standard_name", "")).lower() or one.name.lower()
        if unit is not None and fits(unit, "Pa") and "surface" not in standard:
            return "Pa", float(unit.convert(one.value, "Pa"))
        if standard in _HEIGHTS and unit is not None and fits(unit, "m"):
            return _HEIGHTS[standard], float(unit.convert(one.value, "m"))
        if standard in _NUMBERS and (unit is None or unit.is_dimensionless()):
            return "the level's number", one.value
    return None


def other_level(scalars: Sequence[Scalar], others: Sequence[Scalar]) -> str:
    """Returns on which other level a second field lies; empty if nothing says so.

    Args:
        scalars: of the first field.
        others: of the second.
    """
    first, second = level_of(scalars), level_of(others)
    if first is None or second is None or first[0] != second[0]:
        return ""
    one, other = first[1], second[1]
    if first[0].endswith("ground") and max(one, other) <= _SCREEN:
        return ""
    if abs(one - other) <= _EQUAL * max(abs(one), abs(other)):
        return ""
    return f"values at {other:g} and not at {one:g} ({first[0]})"
