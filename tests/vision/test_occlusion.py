"""Occlusion maps: what an answer rests on is found, and every pixel has the mean of its squares."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from longseq.core.errors import ConfigError
from longseq.vision.occlusion import occlusion_map


def looks_at(images: Tensor) -> Tensor:
    """Logits of two classes, of the pixel in row 2 and column 5 alone."""
    one = images[:, 0, 2, 5]
    return torch.stack([one, -one], 1)


@pytest.mark.parametrize(
    ("size", "patch", "stride"), [((9, 12), 3, 2), ((4, 7), 1, 1), ((8, 8), 4, 4)]
)
def test_a_map_is_its_definition(size: tuple[int, int], patch: int, stride: int) -> None:
    image = torch.rand(3, *size, generator=torch.Generator().manual_seed(0)) + 0.5
    found = occlusion_map(looks_at, image, patch=patch, stride=stride, batch_size=5)
    fall = float(torch.softmax(looks_at(image[None])[0], 0)[0]) - 0.5
    height, width = size
    tops = sorted({*range(0, height - patch, stride), height - patch})
    lefts = sorted({*range(0, width - patch, stride), width - patch})
    for row in range(height):
        for column in range(width):
            over = [
                fall if top <= 2 < top + patch and left <= 5 < left + patch else 0.0
                for top in tops
                for left in lefts
                if top <= row < top + patch and left <= column < left + patch
            ]
            assert float(found[row, column]) == pytest.approx(sum(over) / len(over), abs=1e-6)


def test_classes_squares_and_their_limits() -> None:
    image = torch.ones(1, 16, 24)
    own, other = (occlusion_map(looks_at, image, target) for target in (0, 1))
    assert torch.allclose(own, -other, atol=1e-6)  # what speaks for one speaks against the other
    assert torch.equal(own, occlusion_map(looks_at, image)) and own.argmax() == 2 * 24 + 5
    assert torch.equal(image, torch.ones(1, 16, 24))
    assert occlusion_map(lambda x: x.flatten(1), torch.ones(2, 1, 1)).shape == (1, 1)
    for patch, stride in ((17, 1), (2, 3)):
        with pytest.raises(ConfigError, match="stride <= patch <= sides"):
            occlusion_map(looks_at, image, patch=patch, stride=stride)
    with pytest.raises(ConfigError, match="patch"):
        occlusion_map(looks_at, image, patch=0)
