"""Pictures of predictions: the images with their classes, and the least certain ones first."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from longseq.core.figures import new_figure, save_png
from longseq.vision.data.images import ImageSet
from longseq.vision.data.parts import Part
from longseq.vision.data.pixels import unit
from longseq.vision.predict import Prediction


def picture(image: Tensor) -> np.ndarray:
    """Returns an image of a set as matplotlib draws it: (H, W) or (H, W, 3), in [0, 1].

    Args:
        image: (C, H, W); of more than three bands, or two, the first is drawn.
    """
    shown = unit(image if len(image) in (1, 3) else image[:1]).clamp(0, 1)
    return shown.permute(1, 2, 0).squeeze(-1).numpy()


def plot_predictions(
    images: ImageSet | Part,
    predictions: Sequence[Prediction],
    classes: Sequence[str],
    labels: Sequence[int],
    path: str | Path,
    columns: int = 8,
) -> None:
    """Draws three rows of images in order and three of the surest errors, as PNG.

    Args:
        images: what was classified.
        predictions: one per image, all readable.
        classes: names of the classes.
        labels: the true class of every image.
        path: the file.
        columns: images per row.
    """
    guesses = [
        max(range(len(classes)), key=lambda i: item.probabilities[i]) for item in predictions
    ]
    wrong = [i for i, guess in enumerate(guesses) if guess != labels[i]]
    wrong.sort(key=lambda i: -predictions[i].probabilities[guesses[i]])
    shown = [*range(min(3 * columns, len(predictions)))], wrong[: 3 * columns]
    figure = new_figure(1.3 * columns, 9.5)
    titles = ("In order (predicted class)", "The surest errors (predicted, true)")
    for part, indices, title in zip(figure.subfigures(2, 1, squeeze=False).ravel(), shown, titles):
        part.suptitle(title)
        grid = part.subplots(3, columns).ravel()
        for axes in grid:
            axes.axis("off")
        for axes, index in zip(grid, indices):
            axes.imshow(picture(images.image(index)), cmap="gray", vmin=0, vmax=1)
            right = guesses[index] == labels[index]
            text = (
                classes[guesses[index]]
                if right
                else f"{classes[guesses[index]]}\n({classes[labels[index]]})"
            )
            axes.set_title(text, fontsize=7, color="black" if right else "tab:red")
    save_png(figure, path)
