"""ViR: the recurrent form equals the parallel one, and retention its definition."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from longseq.core.errors import ArgumentError, ConfigError
from longseq.vision import create_model
from longseq.vision.models.vir import VisionRetention

SMALL = {"img_size": 32, "patch_size": 8, "d_model": 16, "n_heads": 4, "depth": 2}


@pytest.mark.parametrize("pool", ["token", "mean"])
@pytest.mark.parametrize(("height", "width"), [(32, 32), (41, 24), (8, 8)])
@pytest.mark.parametrize("rows", [1, 2, 9])
def test_the_recurrent_form_equals_the_parallel_one(
    pool: str, height: int, width: int, rows: int
) -> None:
    torch.manual_seed(0)
    model = create_model("vir_nano", pool=pool, **SMALL).double().eval()
    x = torch.randn(2, 3, height, width, dtype=torch.float64)
    with torch.no_grad():
        found, expected = model.forward_recurrent(x, rows), model(x)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)


def test_retention_equals_its_parallel_definition() -> None:
    torch.manual_seed(0)
    layer = VisionRetention(12, 3).double()
    x = torch.randn(2, 7, 12, dtype=torch.float64)
    q, k, v = layer.qkv(x).chunk(3, -1)
    distance = torch.arange(7)[:, None] - torch.arange(7)
    parts = []
    for h in range(3):
        own = slice(4 * h, 4 * h + 4)
        decay = (1 - 2.0 ** (-5 - h)) ** distance.clamp(min=0).double() * (distance >= 0)
        parts.append((q[..., own] @ k[..., own].mT / 2 * decay) @ v[..., own])
    expected = layer.proj(F.gelu(layer.norm(torch.cat(parts, -1))))
    torch.testing.assert_close(layer(x)[0], expected, rtol=1e-11, atol=1e-12)


def test_later_patches_leave_earlier_ones_alone() -> None:
    torch.manual_seed(0)
    model = create_model("vir_nano", **SMALL).eval()
    x = torch.randn(1, 3, 32, 32)
    changed = x.clone()
    changed[:, :, 16:] += 1
    with torch.no_grad():
        a, b = model.forward_features(x), model.forward_features(changed)
    assert torch.equal(a[:, :8], b[:, :8]) and not torch.allclose(a[:, -1], b[:, -1])


def test_wrong_use_is_named() -> None:
    with pytest.raises(ConfigError, match="n_heads"):
        create_model("vir_nano", d_model=130)
    with pytest.raises(ConfigError, match="pool"):
        create_model("vir_nano", pool="max")
    model = create_model("vir_nano", **SMALL)
    with pytest.raises(ArgumentError, match="evaluation"):
        model.train().forward_recurrent(torch.zeros(1, 3, 32, 32))
    with pytest.raises(ConfigError, match="rows"):
        model.eval().forward_recurrent(torch.zeros(1, 3, 32, 32), 0)
