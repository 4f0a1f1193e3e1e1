"""Tiles cover an image, and their blended maps are those of the whole where a model looks at one
pixel."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from longseq.core.errors import ConfigError
from longseq.vision.tiles import starts, taper, tiled, whole_logits


def pointwise(x):
    """Logits of two classes that depend on the pixel alone."""
    return torch.stack([x[:, 0], 1 - x[:, 0]], 1)


@pytest.mark.parametrize("size", [(1, 1), (7, 30), (8, 8), (9, 8), (25, 17), (40, 3)])
@pytest.mark.parametrize(("tile", "overlap"), [(8, 0), (8, 3), (8, 7), (5, None)])
def test_bands_put_together_are_the_map(size, tile, overlap) -> None:
    torch.manual_seed(0)
    image = torch.randn(1, *size)
    found = whole_logits(pointwise, image, tile, overlap)
    expected = torch.log_softmax(pointwise(image[None]), 1)[0]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_bands_come_in_order_and_only_their_rows_are_read() -> None:
    image, read = torch.randn(1, 50, 20), []

    def window(first, last):
        read.append((first, last))
        return image[:, first:last]

    bands = list(tiled(pointwise, window, 50, 20, 16, 4))
    tops = np.cumsum([0, *(band.shape[1] for _, band in bands)])
    assert [top for top, _ in bands] == tops[:-1].tolist() and tops[-1] == 50
    assert all(last - first == 16 for first, last in read)


def test_neighbours_are_blended_by_their_distance_to_the_edge() -> None:
    calls = iter([0.0, 1.0])

    def model(x):  # the left tile is sure of class 0, the right one of class 1
        left = torch.tensor([1.0 - next(calls) for _ in x]) if len(x) == 2 else None
        assert left is not None
        one = left.view(-1, 1, 1).expand(-1, *x.shape[2:])
        return torch.stack([one, 1 - one], 1) * 50

    ((_, band),) = tiled(model, lambda a, b: torch.zeros(1, b - a, 12), 8, 12, 8, 4)
    assert (band[1, 0].diff() >= -1e-6).all() and band[1, 0, 0] < 1e-6 and band[1, 0, -1] > 1 - 1e-6
    assert band[1, 0, 5] == pytest.approx(2 / 5, abs=1e-5)


def test_starts_and_weights() -> None:
    assert starts(20, 8, 2) == [0, 6, 12] and starts(8, 8, 2) == [0] and starts(9, 8, 2) == [0, 1]
    assert (taper(5, 4) > 0).all() and taper(9, 2)[4] == 1
    with pytest.raises(ConfigError, match="overlap"):
        list(tiled(pointwise, lambda a, b: torch.zeros(1, b - a, 4), 4, 4, 4, 4))
