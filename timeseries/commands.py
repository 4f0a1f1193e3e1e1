"""What the command line offers for time series; imports nothing heavy."""

from longseq.core.domain import Command, Domain
from longseq.timeseries import REQUIRES

DOMAIN = Domain(
    name="timeseries",
    help="forecasters on CSV or Parquet frames, zero-shot or trained, beside plain baselines",
    requires=REQUIRES,
    task="longseq.core.training.task.BaseTask",
    data="longseq.core.training.hyper.BaseData",
    demo=Command(
        "train on packaged electricity demand and compare with the baselines",
        "longseq.timeseries.demo:demo",
    ),
    compare=Command(
        "models beside baselines on one file, with a verdict",
        "longseq.timeseries.compare:ForecastComparison",
    ),
    modules=(
        "longseq.timeseries.task",
        "longseq.timeseries.zero_shot_task",
        "longseq.timeseries.data.module",
        "longseq.timeseries.data.long_file_data",
        "longseq.timeseries.data.pretraining",
    ),
    commands={
        "predict": Command(
            "forecasts for a frame, with no training or by a checkpoint, to CSV or Parquet",
            "longseq.timeseries.predict:run",
        ),
        "import": Command(
            "published Informer, Autoformer, SpaceTime or TPGN weights as a checkpoint of ours",
            "longseq.timeseries.published:run",
        ),
    },
    check="longseq.timeseries.data.check:check",
    shared=(("context", "context"), ("horizon", "horizon")),
    examples={"fit": "--config mixer_forecaster --data.path sales.csv --data.horizon 96"},
    defaults={
        "model": "longseq.timeseries.task.MixerForecaster",
        "data": "longseq.timeseries.data.module.ForecastData",
        "trainer.check_val_every_n_epoch": None,
        "trainer.gradient_clip_val": 1.0,
    },
)
