"""What the command line offers for audio; imports nothing heavy."""

from longseq.audio import REQUIRES
from longseq.core.domain import Command, Domain

DOMAIN = Domain(
    name="audio",
    help="real or synthetic song: Mamba over whole songs and SpecTTTra, beside spectral statistics",
    requires=REQUIRES,
    task="longseq.core.training.task.BaseTask",
    data="longseq.core.training.hyper.BaseData",
    models="longseq.audio.models.registry.MODELS",
    demo=Command("detect resynthesised music on packaged clips", "longseq.audio.demo:demo"),
    compare=Command(
        "AUC of every synthesis method, one of them held out, beside the baseline's",
        "longseq.audio.compare:SongComparison",
    ),
    modules=(
        "longseq.audio.task",
        "longseq.audio.data.module",
        "longseq.audio.separation.task",
        "longseq.audio.separation.mixtures",
        "longseq.audio.speakers.task",
        "longseq.audio.speakers.conversations",
    ),
    commands={
        "scan": Command(
            "every file of a folder: probability, verdict and timeline, to CSV, JSONL and HTML",
            "longseq.audio.scan:run",
        ),
        "predict": Command(
            "probabilities of the files in a folder, to CSV, TSV or Parquet",
            "longseq.audio.predict:run",
        ),
        "synthesize": Command(
            "resynthesised versions of songs beside the originals, through one identical chain",
            "longseq.audio.synthesize:run",
        ),
        "witnesses": Command(
            "the packaged kind of detector, fitted and calibrated on a labelled folder",
            "longseq.audio.witnesses.fit:run",
        ),
        "stress": Command(
            "do verdicts survive re-encoding, resampling, speed, pitch, gain, crop and noise?",
            "longseq.audio.stress:run",
        ),
        "separate": Command(
            "the voices of recordings, each to a file of its own",
            "longseq.audio.separation.separate:run",
        ),
        "speakers": Command(
            "who of the enrolled speakers talks when in recordings, to RTTM",
            "longseq.audio.speakers.listen:run",
        ),
        "export": Command(
            "a checkpoint's detector or separator alone, as safetensors", "longseq.audio.export:run"
        ),
    },
    examples={"fit": "--config mamba --data.source songs"},
    defaults={
        "model": "longseq.audio.task.SongDetector",
        "data": "longseq.audio.data.module.SongData",
        "trainer.check_val_every_n_epoch": None,
        "trainer.gradient_clip_val": 1.0,
    },
)
