"""What the command line offers for weather and climate; imports nothing heavy."""

from longseq.core.domain import Command, Domain
from longseq.weather import REQUIRES

_DIGITS = "moving_digits.MovingDigits"

DOMAIN = Domain(
    name="weather",
    help="climate emulators on CF NetCDF and Zarr, beside linear pattern scaling; ConvS5 video "
    "models",
    requires=REQUIRES,
    task="longseq.core.training.task.BaseTask",
    data="longseq.core.training.hyper.BaseData",
    demo=Command(
        "train on packaged runs and compare with the baselines", "longseq.weather.demo:demo"
    ),
    compare=Command(
        "emulators beside linear pattern scaling, with a noise floor",
        "longseq.weather.compare:EmulatorComparison",
    ),
    modules=(
        "longseq.weather.task",
        "longseq.weather.video.task",
        "longseq.weather.forecasting.task",
        "longseq.weather.forecasting.station_task",
        "longseq.weather.forecasting.query_task",
        "longseq.weather.data.module",
        "longseq.weather.video.moving_digits",
    ),
    commands={
        "predict": Command(
            "fields of a checkpoint for a scenario, to CF NetCDF or Zarr",
            "longseq.weather.predict:run",
        ),
        "rollout": Command(
            "video frames of a checkpoint after a context, beside persistence",
            "longseq.weather.video.rollout:run",
        ),
        "overshoot": Command(
            "where memory must beat pattern scaling: train and score on a climate that has one",
            "longseq.weather.overshoot:run",
        ),
        "forecast": Command(
            "forecasts of a generated flow by lead time, beside a linear inverse model",
            "longseq.weather.forecasting.forecast:run",
        ),
        "query": Command(
            "a generated flow at any place and time from scattered observations, beside a Gaussian "
            "process",
            "longseq.weather.forecasting.query:run",
        ),
        "discover": Command(
            "which terms a model of a flow lacks, from the errors of its short forecasts (MEDIDA)",
            "longseq.weather.forecasting.discovery:run",
        ),
        "scenarios": Command(
            "forcings of a table (RCMIP, IIASA) to global warming to maps, with realisations",
            "longseq.weather.scenarios:run",
        ),
        "inspect": Command(
            "what a NetCDF file or Zarr store holds, checked", "longseq.weather.inspect:run"
        ),
    },
    shared=(("context", "context"),),
    examples={"fit": "--config emulator"},
    moved={
        "longseq.weather.video.VideoForecaster": "longseq.weather.video.task.VideoForecaster",
        f"longseq.weather.data.{_DIGITS}": f"longseq.weather.video.{_DIGITS}",
    },
    defaults={
        "model": "longseq.weather.task.ClimateEmulator",
        "data": "longseq.weather.data.module.ScenarioData",
        "trainer.check_val_every_n_epoch": None,
        "trainer.gradient_clip_val": 1.0,
    },
)
