"""Fields of other levels are neither joined nor compared."""

from __future__ import annotations

import pytest

from longseq.core.errors import DataError
from longseq.weather.data.field import Scalar
from longseq.weather.data.levels import level_of, other_level
from longseq.weather.data.runs import read_run

PRESSURE, HEIGHT = {"standard_name": "air_pressure"}, {"standard_name": "height", "units": "m"}


def scalar(value: float, name: str = "plev", **attrs: str) -> list[Scalar]:
    return [Scalar("time_of_run", 3.0, {"units": "day"}), Scalar(name, value, attrs)]


@pytest.mark.parametrize(
    ("scalars", "expected"),
    [
        (scalar(850.0, units="hPa", **PRESSURE), ("Pa", 85000.0)),
        (scalar(850.0, units="millibars"), ("Pa", 85000.0)),
        (scalar(2.0, "height", **HEIGHT), ("m above the ground", 2.0)),
        (scalar(0.5, "depth", units="km"), ("m of depth", 500.0)),
        (scalar(17, "lev"), ("the level's number", 17.0)),
        (scalar(17, "lev", units="1"), ("the level's number", 17.0)),
        (scalar(1000.0, "ps", units="hPa", standard_name="surface_air_pressure"), None),
        (scalar(3.0, "forecast_reference", units="h"), None),
        ([], None),
    ],
)
def test_levels_are_told_by_coordinates(scalars, expected) -> None:
    found = level_of(scalars)
    assert found == (expected if expected is None else (expected[0], pytest.approx(expected[1])))


def test_what_is_another_level() -> None:
    hpa, pa = scalar(850.0, units="hPa"), scalar(85000.0, units="Pa")
    screen = [scalar(value, "height", **HEIGHT) for value in (1.5, 2.0, 10.0)]
    assert other_level(hpa, pa) == other_level(hpa, []) == other_level(hpa, screen[0]) == ""
    assert other_level(screen[0], screen[1]) == ""
    assert "10 and not at 2" in other_level(screen[1], screen[2])
    assert "50000 and not at 85000 (Pa)" in other_level(hpa, scalar(500.0, units="hPa"))


@pytest.mark.parametrize("whole", [False, True])
def test_other_levels_are_not_joined(whole: bool, write, lab) -> None:
    data = lab.dataset(lab.fields())

    def at(part: slice, pressure: float, units: str) -> str:
        made = data.isel(time=part).copy()
        if whole:  # a dimension of one
            made["tas"] = made.tas.expand_dims(plev=[pressure], axis=1)
        else:
            made = made.assign_coords(plev=pressure)
            made.tas.attrs["coordinates"] = "plev"
        made["plev"].attrs.update(units=units, standard_name="air_pressure")
        return str(write(made, f"{part.start}_{pressure:g}_{units}.nc"))

    first = at(slice(0, 40), 85000.0, "Pa")
    assert len(read_run(f"{first}+{at(slice(40, 80), 850.0, 'hPa')}").years) == 80
    with pytest.raises(DataError, match="50000 and not at 85000"):
        read_run(f"{first}+{at(slice(40, 80), 500.0, 'hPa')}")
