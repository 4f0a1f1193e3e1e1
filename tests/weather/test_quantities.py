"""What variables are, told by names and attributes, and units as archives spell them."""

from __future__ import annotations

import numpy as np
import pytest

from longseq.core.errors import ConfigError, DataError
from longseq.weather.data import quantities
from longseq.weather.data import units as unit_library
from longseq.weather.data.source import read_field
from longseq.weather.data.yearly import read_years


def made(lab, value: float, units: str, name: str = "tas", **attrs: str):
    """Returns a data set of one value in all cells."""
    data = lab.dataset(np.full((3, 4, 5), value, np.float32), units=units, name=name)
    data[name].attrs.pop("standard_name")
    data[name].attrs.update(attrs)
    return data


@pytest.mark.parametrize(
    "attrs",
    [
        {"cell_methods": "time: standard_deviation"},
        {"cell_methods": "time: mean area: standard_deviation (interval: 1 day)"},
        {"cell_methods": "time: lat: range"},
        {"standard_name": "air_temperature standard_error"},
        {"standard_name": "air_temperature_anomaly"},
        {"standard_name": "dew_point_depression"},
        {"long_name": "estimated error standard deviation of analysed_sst"},
        {"long_name": "Ensemble spread"},
        {"units_metadata": "temperature: difference"},
    ],
)
def test_spreads_are_differences(attrs, lab, write) -> None:
    found = read_field(write(made(lab, 8.0, "degC", **attrs)))
    assert found.units == "K" and (found.values == 8).all()
    found = read_field(write(made(lab, 8.0, "K", **attrs), "k.nc"))
    assert (found.values == 8).all()


@pytest.mark.parametrize("name", ["tas_std", "sst_err", "tas_anom", "t2m_spread", "tas_bias"])
def test_spreads_by_name(name, lab, write) -> None:
    assert (read_field(write(made(lab, 8.0, "degC", name))).values == 8).all()


@pytest.mark.parametrize(
    "attrs",
    [
        {"long_name": "Bias-Adjusted Near-Surface Air Temperature"},
        {"long_name": "orange plots: temperature (valid range -90 to 60)"},
        {"cell_methods": "time: mean (comment: standard_deviation in another file)"},
        {"long_name": "temperature range mid-point", "units_metadata": "temperature: on_scale"},
        {"cell_methods": "time: mid_range"},
    ],
)
def test_levels_are_no_differences(attrs, lab, write) -> None:
    found = read_field(write(made(lab, 8.0, "degC", **attrs)))
    assert np.allclose(found.values, 281.15)


def test_variances_are_squared(lab, write) -> None:
    how = {"cell_methods": "time: variance", "standard_name": "air_temperature"}
    for name, units in (("c.nc", "degC2"), ("k.nc", "K2"), ("d.nc", "deg C^2")):
        found = read_field(write(made(lab, 8.0, units, **how), name))
        assert found.units == "K2" and (found.values == 8).all()
    with pytest.raises(DataError, match="a variance in 'degC' cannot be told in K"):
        read_field(write(made(lab, 8.0, "degC", **how)))
    how["cell_methods"] = "time: root_mean_square"
    with pytest.raises(DataError, match="a root_mean_square in 'degC'"):
        read_field(write(made(lab, 8.0, "degC", **how)))


@pytest.mark.parametrize(
    ("text", "canonical", "value"),
    [
        ("mb", "Pa", 100.0),
        ("MB", "Pa", 100.0),
        ("mb/s", "Pa s-1", 100.0),
        ("pa", "Pa", 1.0),
        ("hpa", "Pa", 100.0),
        ("mm/6h", "kg m-2 s-1", 1 / 21600),
        ("mm per 6 hours", "kg m-2 s-1", 1 / 21600),
        ("kg m-2 6h-1", "kg m-2 s-1", 1 / 21600),
        ("mm/24h", "kg m-2 s-1", 1 / 86400),
        ("mm water day-1", "kg m-2 s-1", 1 / 86400),
        ("m of water equivalent", "kg m-2", 1000.0),
        ("mm w.e.", "kg m-2", 1.0),
        ("deg C/day", "K s-1", 1 / 86400),
        ("C/day", "K s-1", 1 / 86400),
        ("centigrade/day", "K s-1", 1 / 86400),
        ("ms-1", "kg m-2 s-1", 1000.0),
        ("ms**-1", "kg m-2 s-1", 1000.0),
        ("degC^2", "K2", 1.0),
        ("mph", "kg m-2 s-1", 447.04),
        ("MJ m-2", "J m-2", 1e6),
        ("day-1", "s-1", 1 / 86400),
        ("deg", "degree", 1.0),
    ],
)
def test_spellings(text: str, canonical: str, value: float) -> None:
    assert unit_library.canonical(text, water=True) == canonical
    found = unit_library.convert(np.ones(1), text, canonical, difference=True, water=True)
    assert found == pytest.approx(value, rel=1e-6)


@pytest.mark.parametrize("text", ["g C m-2 d-1", "gC m-2", "kg C m-2 s-1", "units", "mm/blink"])
def test_what_udunits_would_misread_is_unknown(text: str) -> None:
    assert unit_library.parse(text) is None


def test_reciprocals_and_logarithms_are_no_conversions() -> None:
    assert unit_library.canonical("days") == "days" and unit_library.canonical("s m-1") == "s m-1"
    with pytest.raises(ConfigError, match="'days' cannot be converted to 's-1'"):
        unit_library.convert(np.ones(1), "days", "s-1")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mm/month", ("month", "mm day-1")),
        ("mm per mon", ("month", "mm day-1")),
        ("kg m-2 month^-1", ("month", "kg m-2 day-1")),
        ("mm a-1", ("year", "mm day-1")),
        ("mm/yr", ("year", "mm day-1")),
        ("mm/day", None),
        ("months", None),
    ],
)
def test_rates_per_month_and_year(text: str, expected) -> None:
    assert unit_library.per_period(text) == expected


def test_years_of_rain_are_divided_by_their_own_days(lab, write) -> None:
    data = made(lab, 360.0, "mm/year", "pr", standard_name="precipitation_flux")
    assert np.allclose(read_field(write(data), units="mm/day").values, 1.0)  # 360_day


@pytest.mark.parametrize(
    ("attrs", "expected"),
    [
        ({"long_name": "Terrain height"}, False),
        ({"standard_name": "surface_snow_thickness"}, False),
        ({"long_name": "Snow depth"}, False),
        ({"standard_name": "lwe_thickness_of_surface_snow_amount"}, True),
        ({"standard_name": "thickness_of_rainfall_amount"}, True),
        ({"long_name": "Snow depth", "units": "m of water equivalent"}, True),
        ({"long_name": "Total precipitation"}, True),
    ],
)
def test_metres_of_water(attrs, expected: bool) -> None:
    assert quantities.is_water("x", attrs) == expected


@pytest.mark.parametrize(
    ("units", "attrs", "message"),
    [
        ("mm", {"standard_name": "precipitation_flux"}, "'mm' are an amount"),
        ("kg m-2", {"standard_name": "rainfall_rate"}, "'kg m-2' are an amount"),
        ("Pa", {"standard_name": "air_temperature"}, "'Pa' are none of air_temperature"),
        ("K", {"standard_name": "air_pressure_at_sea_level"}, "'K' are none of"),
        ("m", {"standard_name": "relative_humidity"}, "'m' are none of relative_humidity"),
    ],
)
def test_units_of_another_quantity_are_refused(units, attrs, message, lab, write) -> None:
    with pytest.raises(DataError, match=message):
        read_field(write(made(lab, 1.0, units, "x", **attrs)))


@pytest.mark.parametrize(
    ("units", "value", "name", "message"),
    [
        ("1", 80.0, "relative_humidity", "are no fractions"),
        ("1", 9.0, "specific_humidity", "are no specific humidities"),
        ("kg m-2 s-1", 3.0, "precipitation_flux", "are no rates of precipitation"),
        ("Pa", 1013.0, "surface_air_pressure", "are no pressures at the surface"),
    ],
)
def test_wrong_labels_show_in_the_values(units, value, name, message, lab, write) -> None:
    path = write(made(lab, value, units, "x", standard_name=name))
    with pytest.raises(DataError, match=message):
        read_field(path)
    assert (read_field(path, difference=True).values == value).all()


def test_temperatures_are_checked_in_units_of_ones_own(lab, write) -> None:
    with pytest.raises(DataError, match=r"from 280 to 280 degC are no temperatures"):
        read_field(write(made(lab, 280.0, "degC")), units="degC")


def test_what_cannot_be_negative(lab, write) -> None:
    data = made(lab, 5.0, "mm/day", "pr", standard_name="precipitation_flux")
    data["pr"].values[1, 2, 3] = -0.01
    found = read_field(write(data), units="mm/day")
    assert "negative values down to -0.01 (mm/day) are kept" in found.notes
    data["pr"].values[1, 2, 3] = -1
    path = write(data, "b.nc")
    with pytest.raises(DataError, match=r"down to -1 .*cannot be negative.*missing_value"):
        read_field(path, units="mm/day")
    assert read_field(path, units="mm/day", difference=True).values.min() == -1


DAYS = np.array([31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31])
MEAN = float(np.average(DAYS, weights=DAYS))  # a month's rain is its days


@pytest.mark.parametrize(
    ("bounds", "methods", "expected", "note"),
    [
        (True, None, 365.0, "taken as sums"),
        (True, "area: mean", 365.0, "taken as sums"),
        (True, "time: mean", MEAN, None),
        (False, None, MEAN, "no sums"),
    ],
)
def test_amounts_of_months_add_up(bounds, methods, expected, note, lab, write) -> None:
    values = np.ones((12, 4, 5), np.float32) * DAYS[:, None, None]
    edges = np.concatenate([[0], np.cumsum(DAYS)]) + 365.0 * 50
    times = (edges[1:] + edges[:-1]) / 2
    data = lab.dataset(values, calendar="noleap", times=times, units="mm", name="pr")
    data["pr"].attrs["standard_name"] = "precipitation_amount"
    if methods:
        data["pr"].attrs["cell_methods"] = methods
    if bounds:
        data["time_bnds"] = (("time", "bnds"), np.stack([edges[:-1], edges[1:]], 1))
        data["time"].attrs["bounds"] = "time_bnds"
    found = read_years(write(data))
    assert np.allclose(found.values, expected, rtol=1e-5) and len(found.years) == 1
    assert note is None or any(note in one for one in found.notes)


def test_stocks_are_no_sums(lab) -> None:
    for name in ("surface_snow_amount", "atmosphere_mass_content_of_water_vapor"):
        assert not quantities.is_accumulated("x", {"standard_name": name}, "kg m-2")


def test_a_conversion_without_an_offset_is_told(lab, write) -> None:
    note = "without an offset: its name or attributes say differences or a spread"
    assert note in read_field(write(made(lab, 8.0, "degC", long_name="daily range"))).notes
    checked = made(lab, 8.0, "degC", long_name="temperature, range checked")
    found = read_field(write(checked, "b.nc"))
    assert note not in found.notes and np.allclose(found.values, 281.15)


@pytest.mark.parametrize(
    ("name", "methods", "other", "others", "differs"),
    [
        ("tas", None, "tasmax", "time: maximum within days time: mean over days", "a maximum of"),
        ("tas_sd", "time: standard_deviation", "tas", None, "a mean of"),
        ("tasmax", None, "tasmax", "time: maximum", ""),
        ("tas", None, "air", "time: mean", ""),
        ("pr", None, "precip", "time: sum", ""),
        ("tas", "time: minimum", "tas", "time: mean", "a mean of"),
        ("tas", None, "tas", "time: maximum within days time: mean over days", "a maximum of"),
        ("tas", "time: maximum", "tas", None, "a mean of"),
        ("tas", None, "tas", "time: standard_deviation", "a standard_deviation of"),
        ("tas", None, "tas", "time: variance", "a variance of"),
        ("tas", None, "tas", "time: mean (interval: 6 hours)", ""),
        ("tas", None, "tas", "time: point", ""),
        ("pr", None, "pr", "time: sum", ""),
        ("tas", None, "tasmax", None, "a maximum of"),
        ("tasmax", None, "tasmin", None, "a minimum of"),
        ("tasmax", None, "tasmax", "time: minimum", "a minimum of"),
        ("tasmax", "time: mean", "tasmax", None, ""),
        ("tx", None, "tasmax", "time: maximum", ""),
        ("tn", None, "TMIN", None, ""),
        ("mx2t", None, "t2m_max", "time: maximum", ""),
        ("tas_sd", None, "tas_sd", "time: standard_deviation", ""),
        ("dtr", "time: range", "dtr", None, ""),
        ("tas", None, "tas_anomaly", None, "a difference of"),
        ("minutes", None, "minutes", "time: mean", ""),
    ],
)
def test_a_variable_without_cell_methods_is_a_mean(name, methods, other, others, differs) -> None:
    sets = [{"standard_name": "x", "cell_methods": one} for one in (methods, others)]
    attrs = [{key: value for key, value in one.items() if value} for one in sets]
    found = quantities.other_quantity(name, attrs[0], other, attrs[1])
    assert found.startswith(differs) and bool(found) == bool(differs)


@pytest.mark.parametrize("units", ["mm/m", "mm m-1", "mm per m", "in/m"])
def test_millimetres_per_m_are_not_taken_for_a_ratio(units: str, lab, write) -> None:
    data = made(lab, 3.0, units, "pr")
    with pytest.raises(DataError, match=r"pr: units .* are a ratio of lengths.*/month'"):
        read_field(write(data))
    # What is no water may be a ratio.
    assert read_field(write(made(lab, 3.0, units, "soil_capacity"), "s.nc")).units == "1"


@pytest.mark.parametrize("name", ["precipitation_amount", "Total_Precipitation", "rain", "precip"])
def test_water_by_the_variables_name(name: str, lab, write) -> None:
    found = read_field(write(made(lab, 3.0, "mm", name)))
    assert found.units == "kg m-2" and np.allclose(found.values, 3.0)
    with pytest.raises(DataError, match="cannot be negative"):
        read_field(write(made(lab, -3.0, "mm", name), "n.nc"))


@pytest.mark.parametrize("name", ["rain_days", "precip_anomaly", "rain_height", "snow_depth"])
def test_what_only_sounds_like_water(name: str, lab, write) -> None:
    assert read_field(write(made(lab, -3.0, "mm", name))).units == "m"


@pytest.mark.parametrize(
    ("units", "value", "attrs", "expected"),
    [
        ("psu", 35.0, {"standard_name": "sea_surface_salinity"}, 0.035),
        ("PSU", 35.0, {"long_name": "salinity"}, 0.035),
        ("1e-3", 35.0, {"standard_name": "sea_surface_salinity"}, 0.035),
        ("0.001", 35.0, {"standard_name": "sea_water_salinity"}, 0.035),
        ("g kg-1", 35.0, {"standard_name": "sea_water_absolute_salinity"}, 0.035),
        ("psu", 35.0, {"standard_name": "sea_water_practical_salinity"}, 35.0),
        ("1", 35.0, {"standard_name": "sea_water_practical_salinity"}, 35.0),
    ],
)
def test_salinities_of_all_spellings_are_alike(units, value, attrs, expected, lab, write) -> None:
    found = read_field(write(made(lab, value, units, "sss", **attrs)))
    assert found.units == "1"
    np.testing.assert_allclose(found.values, expected, rtol=1e-6)


def test_a_salinity_without_its_factor_is_refused(lab, write) -> None:
    path = write(made(lab, 35.0, "1", "sos", standard_name="sea_surface_salinity"))
    with pytest.raises(DataError, match=r"values from 35 to 35 1 are no salinities"):
        read_field(path)


@pytest.mark.parametrize(("units", "name"), [("m", "tp"), ("J m**-2", "ssrd")])
def test_means_of_daily_amounts_are_called_so(units, name, lab, write) -> None:
    daily = made(lab, 0.003, units, name, long_name=name, GRIB_stepType="avgad")
    assert any("amounts per day" in note for note in read_field(write(daily)).notes)
    rate = made(lab, 3e-8, "m s-1", "tprate", GRIB_stepType="avgad")
    assert not any("per day" in note for note in read_field(write(rate, "r.nc")).notes)


@pytest.mark.parametrize(
    ("units", "value", "name", "message"),
    [
        (
            "%",
            0.9,
            "cloud_area_fraction",
            r"above 0.009 1: fractions that are labelled as per cent",
        ),
        ("%", 0.8, "relative_humidity", "its units say '%': correct them"),
        ("mm/day", 2e-4, "precipitation_flux", r"rates in kg m-2 s-1 .* labelled as mm/day"),
        ("kg m-2 s-1", 1.5, "precipitation_flux", "are no rates of precipitation"),
        ("kg m-2 s-1", 0.5, "precipitation_flux", "are no rates of precipitation"),  # of mm/day
    ],
)
def test_labels_of_another_scale_are_refused(units, value, name, message, lab, write) -> None:
    path = write(made(lab, value, units, "x", standard_name=name))
    with pytest.raises(DataError, match=message):
        read_field(path)
    assert read_field(path, difference=True).values.max() > 0


@pytest.mark.parametrize(
    ("units", "value", "name"),
    [
        ("%", 3.0, "cloud_area_fraction"),
        ("1", 0.9, "cloud_area_fraction"),
        ("%", 0.0, "sea_ice_area_fraction"),  # none is none in any unit
        ("%", 0.5, "area_fraction"),  # of cities, say
        ("mm/day", 0.002, "precipitation_flux"),  # a desert
        ("mm/day", 1800.0, "precipitation_flux"),  # the wettest day on record
    ],
)
def test_what_the_earth_has_is_read(units, value, name, lab, write) -> None:
    found = read_field(write(made(lab, value, units, "x", standard_name=name)))
    assert np.isfinite(found.values).all()
