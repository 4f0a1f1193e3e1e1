"""Patches in a basis of cosines: scipy's transform of every patch, and nothing lost."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.fft import dctn

from longseq.core.errors import ConfigError
from longseq.vision.models.cosine_patches import CosinePatches


def test_every_patch_has_scipys_transform() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 2, 7, 10, generator=generator, dtype=torch.float64)
    layer = CosinePatches(2).double()
    found = layer(x)
    assert found.shape == (2, layer.channels, 3, 5) and layer.channels == 32
    padded = np.pad(x.numpy(), ((0, 0), (0, 0), (1, 1), (1, 1)))
    for row in range(3):
        for column in range(5):
            patch = padded[:, :, 2 * row : 2 * row + 4, 2 * column : 2 * column + 4]
            expected = dctn(patch, axes=(2, 3), norm="ortho").reshape(2, 32)
            np.testing.assert_allclose(found[:, :, row, column], expected, rtol=0, atol=5e-6)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_the_basis_is_orthonormal_and_not_trained(channels: int) -> None:
    layer = CosinePatches(channels)
    rows = layer.filters.flatten(1)
    torch.testing.assert_close(rows @ rows.T, torch.eye(16 * channels), rtol=0, atol=2e-6)
    assert not list(layer.parameters()) and not layer.state_dict()
    with pytest.raises(ConfigError, match="channels"):
        CosinePatches(0)


def test_the_first_of_three_channels_is_the_brightness() -> None:
    grey = torch.full((1, 3, 8, 8), 2.0)
    inner = CosinePatches(3)(grey)[0, :, 1, 1]
    # A mean of 16 equal values under an orthonormal basis: 4 times each, over sqrt(3) channels.
    assert inner[0].item() == pytest.approx(2 * 4 * 3**0.5, rel=1e-5)
    assert inner[1:].abs().max() < 1e-5
