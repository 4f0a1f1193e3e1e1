"""The demo: a small VMamba learns clothes from 4,500 images, beside logistic regression on the
pixels."""

from __future__ import annotations

import time
from pathlib import Path

from longseq.core.compare import write_table
from longseq.core.report.section import Picture, Section
from longseq.core.training.by_config import Train, few_steps
from longseq.core.training.loading import load_task
from longseq.vision.compare import BASELINES, ImageComparison, tie_width
from longseq.vision.data.idx import find_idx
from longseq.vision.data.pixels import Reading
from longseq.vision.data.sources import SAMPLES
from longseq.vision.plots import plot_predictions
from longseq.vision.predict import classify, open_images, write_predictions
from longseq.vision.task import ImageClassifier

CONFIG = "fashion_mnist_sample"


def demo(out: Path, train: Train, max_steps: int | None = None) -> Section:
    """Trains on the packaged images, scores the test images beside the baseline, and labels them.

    Args:
        out: folder for what is written.
        train: trains a configuration.
        max_steps: training steps, in place of the configuration's.
    """
    start = time.perf_counter()
    print(f"1. Training {CONFIG}.yaml on the packaged images")
    run = train(CONFIG, out, values=few_steps(max_steps))
    folder, checkpoint = run.folder, run.checkpoint

    print("2. Fitting logistic regression on the pixels of the same images")
    comparison = ImageComparison()
    models = comparison.checkpoint(checkpoint, CONFIG, None)
    rows = [*(row for name in BASELINES for row in comparison.baseline(name)), *models]
    scores, tested, data = comparison.scores(rows), comparison.images, comparison.known
    scored = folder / "scores.csv"
    write_table(scored, [(comparison, rows)])

    print("3. Predicting from the checkpoint alone")
    task = load_task(checkpoint, ImageClassifier)
    assert isinstance(task, ImageClassifier)
    source = find_idx(SAMPLES.path(CONFIG), "test", "images")
    assert source is not None
    images = open_images(source, Reading.of(task.preprocess))
    begin = time.perf_counter()
    predictions = list(classify(task, images))
    predicted = time.perf_counter() - begin
    table, image = folder / "predictions.csv", folder / "predictions.png"
    write_predictions(table, predictions, task.classes)
    plot_predictions(images, predictions, task.classes, data.parts["test"].labels.tolist(), image)
    caption = "Test images with the class that the model gives them, the least certain ones first."
    return Section(
        domain="vision",
        question="What kind of clothing is in the picture?",
        data=f"{len(data.parts['train']):,} training and {tested:,} test images of Fashion-MNIST "
        f"(Zalando, "
        "MIT licence); source in vision/samples/SOURCE.md.",
        scores=scores,
        metric="accuracy",
        tie=tie_width(max(row.value for row in rows), tested),
        lower_is_better=False,
        speed=f"Training took {run.seconds:.0f} s; "
        f"{len(predictions) / predicted:,.0f} images/s are labelled.",
        seconds=time.perf_counter() - start,
        pictures=[Picture(image, caption)],
        files=[checkpoint, folder / "loss_curve.png", scored, table, image],
    )
