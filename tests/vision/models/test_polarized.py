"""Polarized self-attention equals its equations and the published code; a ResNet takes it."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest
import torch

from longseq.core.errors import ConfigError
from longseq.vision import create_model
from longseq.vision.models.polarized import PolarizedAttention

FOLDER = os.environ.get("LONGSEQ_UPSTREAM_VISION")
FILE = Path(FOLDER or "none") / "PSA/semantic-segmentation/network/PSA.py"


@pytest.mark.parametrize("form", ["parallel", "sequential"])
def test_it_equals_its_equations(form: str) -> None:
    torch.manual_seed(0)
    layer = PolarizedAttention(8, form).double()
    x = torch.randn(2, 8, 3, 5, dtype=torch.float64)

    def weight(conv: torch.nn.Module) -> torch.Tensor:
        return conv.weight[:, :, 0, 0]

    for b in range(2):
        y = x[b]
        share = torch.exp(torch.einsum("c,chw->hw", weight(layer.conv_q_right)[0], y))
        seen = torch.einsum("dc,chw,hw->d", weight(layer.conv_v_right), y, share / share.sum())
        if form == "parallel":
            channels = weight(layer.conv_up) @ seen
        else:
            first, norm, _, second = layer.conv_up
            small = weight(first) @ seen + first.bias
            small = (small - small.mean()) / (small.var(correction=0) + norm.eps).sqrt()
            channels = weight(second) @ small.clamp(min=0) + second.bias
        channels = channels.sigmoid()[:, None, None]
        z = y if form == "parallel" else y * channels
        query = torch.einsum("dc,chw->d", weight(layer.conv_q_left), z) / 15
        values = torch.einsum("dc,chw->dhw", weight(layer.conv_v_left), z)
        if form == "parallel":
            places = torch.exp(torch.einsum("d,dhw->hw", query, values))
            expected = y * channels + y * (places / places.sum()).sigmoid()
        else:
            shares = values.exp() / values.exp().sum((1, 2), keepdim=True)
            expected = z * torch.einsum("d,dhw->hw", query, shares).sigmoid()
        torch.testing.assert_close(layer(x)[b], expected, rtol=1e-10, atol=1e-10)


@pytest.mark.skipif(not FILE.exists(), reason=f"no checkout of DeLightCMU/PSA at {FILE}")
@pytest.mark.parametrize(("form", "name"), [("parallel", "PSA_p"), ("sequential", "PSA_s")])
def test_it_equals_the_published_code(form: str, name: str) -> None:
    spec = importlib.util.spec_from_file_location("published_psa", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    theirs, ours = getattr(module, name)(16, 16), PolarizedAttention(16, form)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = torch.randn(2, 16, 7, 5)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("form", ["parallel", "sequential"])
def test_a_resnet_takes_it(form: str) -> None:
    plain = create_model("resnet8", dims=(8, 16), depths=(1, 1))
    model = create_model("resnet8", dims=(8, 16), depths=(1, 1), polarized=form)
    extra = set(model.state_dict()) - set(plain.state_dict())
    assert extra and all(".attend." in key for key in extra)
    model(torch.randn(2, 3, 9, 8)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ConfigError, match="form"):
        PolarizedAttention(8, "both")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="channels // 8"):
        PolarizedAttention(6)
