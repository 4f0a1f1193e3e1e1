"""The demo: which garment lies opposite the bag, at the far side of a canvas? A hybrid whose last
block scans the map, beside plain networks and what knows where the pictures lie."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from longseq.core.compare import Row, write_table
from longseq.core.report.section import Picture, Section
from longseq.core.training.by_config import Train, Values, few_steps
from longseq.core.training.loading import load_task
from longseq.vision.baselines import PixelRegression
from longseq.vision.compare import ImageComparison, tie_width
from longseq.vision.data.canvas import DEFAULT_LAYOUT, CanvasImages
from longseq.vision.data.module import ImageData
from longseq.vision.plots import plot_predictions
from longseq.vision.predict import classify, write_predictions
from longseq.vision.task import ImageClassifier

SAMPLE = "fashion_mnist_sample"
STEPS, CANVASES, KEY = 200, 4_000, DEFAULT_LAYOUT.key
"""Training steps of each network, training canvases for the regression, class of the bag."""
NETWORKS = {
    "hybrid_pico": ("canvas", "hybrid_pico"),
    "resnet8": ("canvas", "resnet8"),
    "vit_pico": ("canvas_vit", "vit_pico"),
}
"""Name → configuration and model."""


def demo(out: Path, train: Train, max_steps: int | None = None) -> Section:
    """Trains three networks on canvases of the packaged pictures and scores the test canvases.

    Args:
        out: folder for what is written.
        train: trains a configuration.
        max_steps: training steps, in place of the demo's own.
    """
    start = time.perf_counter()
    steps = STEPS if max_steps is None else max_steps
    comparison = ImageComparison(limit=CANVASES)
    rows: list[Row] = []
    checkpoints, seconds = {}, {}
    for number, (name, (config, model)) in enumerate(NETWORKS.items(), start=1):
        print(f"{number}. Training {name} for {steps} steps on canvases of the packaged pictures")
        values: Values = {
            "model": {"model": model},
            "data": {"source": f"canvas:{SAMPLE}"},
            **few_steps(steps, parts=1, most=steps),
        }
        run = train(config, out, name, values)
        checkpoints[name], seconds[name] = run.checkpoint, run.seconds
        rows += comparison.checkpoint(run.checkpoint, name, None)

    print("4. Fitting logistic regression on the pixels of the canvases, and on single pictures")
    rows += [
        *comparison.baseline("most_frequent_class"),
        *comparison.baseline("logistic_regression"),
    ]
    told = told_where(comparison.known)
    scored = out / "scores.csv"
    write_table(scored, [(comparison, rows)])

    print("5. Predicting from the hybrid's checkpoint alone")
    task = load_task(checkpoints["hybrid_pico"], ImageClassifier)
    assert isinstance(task, ImageClassifier)
    images = comparison.known.parts["test"].images
    begin = time.perf_counter()
    predictions = list(classify(task, images))
    rate = len(predictions) / (time.perf_counter() - begin)
    table, image = out / "predictions.csv", out / "predictions.png"
    write_predictions(table, predictions, task.classes)
    plot_predictions(images, predictions, task.classes, images.labels.tolist(), image)
    return Section(
        domain="vision",
        question="Which garment lies opposite the bag, at the other side of the canvas?",
        data=f"{len(comparison.known.parts['train']):,} training and {comparison.images:,} test "
        "canvases of 160 pixels, painted with pictures of Fashion-MNIST (Zalando, MIT licence; "
        "source in vision/samples/SOURCE.md). Four garments at the left border, one of them a "
        "bag, and four at the right: a task that is made for models that see far.",
        scores=comparison.scores(rows),
        metric="accuracy",
        tie=tie_width(max(row.value for row in rows), comparison.images),
        lower_is_better=False,
        speed=f"{steps} steps took "
        + ", ".join(f"{name} {value:.0f} s" for name, value in seconds.items())
        + f"; {rate:,.0f} canvases/s are labelled.",
        seconds=time.perf_counter() - start,
        pictures=[
            Picture(
                image,
                "Test canvases with the class that the hybrid gives to the garment opposite the "
                "bag: the first ones, and the surest errors.",
            )
        ],
        files=[checkpoints["hybrid_pico"], scored, table, image],
        findings=[
            "Who picks one of the four garments at the right at random is right once in four "
            "times; ResNet-8's field touches only one side of the canvas.",
            "For reference, logistic regression on single pictures, told where on the canvas each "
            f"one lies and what the question is: accuracy {told:.4f}.",
        ],
    )


def told_where(data: ImageData) -> float:
    """Returns the accuracy of logistic regression on single pictures cut out of the canvases.

    It knows what the networks have to find out: where the pictures lie, which row counts (that of
    the likeliest bag) and that the answer is the right picture's class.

    Args:
        data: canvases, with their parts.
    """
    train, test = data.parts["train"].images, data.parts["test"].images
    assert isinstance(train, CanvasImages) and isinstance(test, CanvasImages)
    numbers, seen = np.unique(train.picked, return_index=True)
    x, y = _flat(train, numbers), train.shown.reshape(-1)[seen]
    regression = PixelRegression().fit(x, y, x[:0], y[:0])
    numbers, places = np.unique(test.picked, return_inverse=True)
    chances = regression.probabilities(_flat(test, numbers))
    chances = chances[places.reshape(test.picked.shape)]  # (canvases, rows, sides, classes)
    rows = chances[:, :, 0, KEY].argmax(1)
    right = chances[np.arange(len(rows)), rows, 1]
    return float((np.delete(right, KEY, axis=1).argmax(1) == test.labels).mean())


def _flat(canvases: CanvasImages, numbers: np.ndarray) -> np.ndarray:
    """Returns pictures as rows of numbers from 0 to 1."""
    return canvases.pictures[numbers].reshape(len(numbers), -1).astype(np.float32) / 255
