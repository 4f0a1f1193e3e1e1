"""Time series: forecasters on long and wide frames, beside repeat, seasonal naive and ridge
baselines."""

from __future__ import annotations

from typing import TYPE_CHECKING

from longseq.core.exports import lazy

if TYPE_CHECKING:
    from longseq.timeseries.baselines import make_baseline
    from longseq.timeseries.data.frames import FORMATS
    from longseq.timeseries.data.long_file_data import LongFileData
    from longseq.timeseries.data.module import ForecastData
    from longseq.timeseries.forecast import forecast_frame
    from longseq.timeseries.forecaster import Forecaster
    from longseq.timeseries.task import (
        TPGN,
        Autoformer,
        ForecastTask,
        Informer,
        InvertedForecaster,
        MixerForecaster,
        SpaceTime,
    )

# Packages of the `timeseries` extra that the domain needs; the command line checks them before it
# starts.
REQUIRES = ("pandas", "pyarrow")

_EXPORTS = {
    "FORMATS": "longseq.timeseries.data.frames",
    "Autoformer": "longseq.timeseries.task",
    "ForecastData": "longseq.timeseries.data.module",
    "ForecastTask": "longseq.timeseries.task",
    "Forecaster": "longseq.timeseries.forecaster",
    "Informer": "longseq.timeseries.task",
    "InvertedForecaster": "longseq.timeseries.task",
    "LongFileData": "longseq.timeseries.data.long_file_data",
    "MixerForecaster": "longseq.timeseries.task",
    "SpaceTime": "longseq.timeseries.task",
    "TPGN": "longseq.timeseries.task",
    "forecast_frame": "longseq.timeseries.forecast",
    "make_baseline": "longseq.timeseries.baselines",
}
__all__ = [
    "FORMATS",
    "REQUIRES",
    "TPGN",
    "Autoformer",
    "ForecastData",
    "ForecastTask",
    "Forecaster",
    "Informer",
    "InvertedForecaster",
    "LongFileData",
    "MixerForecaster",
    "SpaceTime",
    "forecast_frame",
    "make_baseline",
]
__getattr__ = lazy(__name__, _EXPORTS)
