"""The restoration network: sizes, its beginning, far sight, mirrored edges."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from longseq.core.errors import ArgumentError, ConfigError
from longseq.vision.models.serpent import Serpent, mirrored

TINY = {"dims": (8, 12), "depths": (1, 1), "scans": (1,)}


@pytest.mark.parametrize("size", [(1, 1), (3, 7), (16, 16), (9, 30)])
@pytest.mark.parametrize("scale", [1, 2, 3])
def test_it_begins_as_the_enlargement_at_any_size(size, scale) -> None:
    x = torch.rand(2, 3, *size)
    y = Serpent(scale=scale, **TINY)(x)
    expected = x if scale == 1 else F.interpolate(x, scale_factor=scale, mode="bicubic")
    torch.testing.assert_close(y, expected)


@pytest.mark.parametrize(("long", "far"), [("scan", True), ("modulation", False), ("none", False)])
def test_a_scan_sees_the_whole_image_and_a_kernel_does_not(long, far) -> None:
    torch.manual_seed(0)
    model = Serpent(1, long=long, **TINY).double()
    torch.nn.init.normal_(model.head.weight)
    x = torch.rand(1, 1, 96, 96, dtype=torch.float64, requires_grad=True)
    model(x)[0, 0, 90, 90].backward()
    assert x.grad is not None and bool((x.grad[0, 0, :8, :8] != 0).any()) == far


@pytest.mark.parametrize("long", ["scan", "modulation", "none"])
def test_every_weight_learns(long) -> None:
    model = Serpent(2, long=long, **TINY)
    torch.nn.init.normal_(model.head.weight)
    model(torch.rand(2, 2, 8, 8)).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_mirroring_is_numpys() -> None:
    x = torch.arange(15.0).view(1, 1, 3, 5)
    found = mirrored(x, 8)[0, 0].numpy()
    np.testing.assert_array_equal(found, np.pad(x[0, 0].numpy(), ((0, 5), (0, 3)), "symmetric"))
    assert mirrored(x, 1) is x


def test_wrong_arguments_are_named() -> None:
    for kwargs, text in (
        ({"scale": 5}, "scale must lie"),
        ({"scans": (2,)}, "scans must name levels"),
        ({"dims": (8,)}, "equally long"),
        ({"long": "attention"}, "long"),
    ):
        with pytest.raises(ConfigError, match=text):
            Serpent(**{**TINY, **kwargs})
    with pytest.raises(ArgumentError, match=r"\(batch, 3, height, width\)"):
        Serpent(**TINY)(torch.rand(1, 1, 8, 8))
