"""Weather and climate: emulators over any mixer beside linear pattern scaling, and ConvS5 video
models."""

from __future__ import annotations

from typing import TYPE_CHECKING

from longseq.core.exports import lazy

if TYPE_CHECKING:
    from longseq.weather.data.cf import FORMATS
    from longseq.weather.data.module import ScenarioData
    from longseq.weather.task import ClimateEmulator
    from longseq.weather.video.moving_digits import MovingDigits
    from longseq.weather.video.task import VideoForecaster

# Packages of the `weather` extra that the domain needs; the command line checks them before it
# starts.
REQUIRES = ("xarray", "cf_units", "h5netcdf", "h5py", "zarr", "cftime", "scipy", "sklearn")

_EXPORTS = {
    "FORMATS": "longseq.weather.data.cf",
    "ClimateEmulator": "longseq.weather.task",
    "MovingDigits": "longseq.weather.video.moving_digits",
    "ScenarioData": "longseq.weather.data.module",
    "VideoForecaster": "longseq.weather.video.task",
}
__all__ = [
    "FORMATS",
    "REQUIRES",
    "ClimateEmulator",
    "MovingDigits",
    "ScenarioData",
    "VideoForecaster",
]
__getattr__ = lazy(__name__, _EXPORTS)
