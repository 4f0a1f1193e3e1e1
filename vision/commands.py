"""What the command line offers for vision; imports nothing heavy."""

from longseq.core.domain import Command, Domain
from longseq.vision import REQUIRES

DOMAIN = Domain(
    name="vision",
    help="classes, masks and restored images: Vim, VMamba, any mixer, beside plain baselines",
    requires=REQUIRES,
    task="longseq.core.training.task.BaseTask",
    data="longseq.core.training.hyper.BaseData",
    models="longseq.vision.models.registry.MODELS",
    demo=Command(
        "train on packaged images and compare with the baseline", "longseq.vision.demo:demo"
    ),
    compare=Command(
        "test accuracy of models beside logistic regression on the pixels",
        "longseq.vision.compare:ImageComparison",
    ),
    modules=(
        "longseq.vision.task",
        "longseq.vision.multi_label",
        "longseq.vision.segmentation",
        "longseq.vision.restoration",
        "longseq.vision.data.module",
        "longseq.vision.data.labels",
        "longseq.vision.data.segmentation",
        "longseq.vision.data.restoration",
        "longseq.vision.video.task",
        "longseq.vision.video.moving_shapes",
        "longseq.vision.points.task",
        "longseq.vision.points.data",
        "longseq.vision.manipulation.task",
    ),
    commands={
        "export": Command(
            "a model as ONNX or as a torch program, checked against itself",
            "longseq.vision.export:run",
        ),
        "report": Command(
            "a classifier's scores by class, its confusions and its surest errors",
            "longseq.vision.report:run",
        ),
        "predict": Command(
            "classes of images, to CSV or Parquet; their masks; or the images restored",
            "longseq.vision.predict:run",
        ),
        "matte": Command(
            "an alpha matte of every frame of a clip, in constant memory",
            "longseq.vision.video.matte:run",
        ),
        "forge": Command(
            "forged images with exact masks from photographs, to train on",
            "longseq.vision.manipulation.forge:run",
        ),
        "score": Command(
            "test scores of video, point clouds and manipulations beside plain baselines",
            "longseq.vision.score:run",
        ),
    },
    examples={"fit": "--config cifar --data.source images.zip"},
    defaults={
        "model": "longseq.vision.task.ImageClassifier",
        "data": "longseq.vision.data.module.ImageData",
        "trainer.check_val_every_n_epoch": None,
        "trainer.gradient_clip_val": 1.0,
    },
)
