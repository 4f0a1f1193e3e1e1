"""MHS-VM: published sizes and files, routes, and their fusion."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from longseq.core.errors import ConfigError, DataError
from longseq.vision import create_model, create_segmenter
from longseq.vision.models import mhsvm
from longseq.vision.models.mhsvm import MultiHeadScan, fuse_routes

SMALL = {"dims": (16, 32), "depths": (1, 1), "d_state": 2}


# Counted in the published code's encoder under a head for 1,000 classes.
@pytest.mark.parametrize(("name", "count"), [("mhsvm_3h", 9_479_176), ("mhsvm_4h", 9_414_664)])
def test_the_encoder_has_its_exact_size(
    name: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for function in ("trunc_normal_", "kaiming_uniform_", "uniform_"):  # slow, even of no data
        monkeypatch.setattr(nn.init, function, lambda x, *_, **__: x)
    with torch.device("meta"):
        model = create_model(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == count


def test_files_of_the_whole_published_network_load(tmp_path: Path, capsys: Any) -> None:
    """Its state dict has tensors twice, a decoder and no classifier."""
    torch.manual_seed(0)
    source, x = create_model("mhsvm_4h", **SMALL).eval(), torch.randn(2, 3, 32, 32)
    state = {}
    for key, value in source.state_dict().items():
        if key.startswith(("head.", "norm.")):
            continue
        state[f"vmunet.{key}"] = value
        state[f"vmunet.{key.replace('.mambaeng.', '.scanning.seq2seq_engine.')}"] = value
        state[f"vmunet.{key.replace('.x_ssproj.weight', '.x_ssproj_W')}"] = value
    for extra in ("layers_up.0.blocks.0.ln_1.weight", "final_up.norm.bias", "final_conv.bias"):
        state[f"vmunet.{extra}"] = torch.ones(3)
    torch.save(state, tmp_path / "best.pth")
    found = create_model(
        "mhsvm_4h", pretrained=tmp_path / "best.pth", features_only=True, **SMALL
    ).eval()
    with torch.no_grad():
        for a, b in zip(found(x), source.forward_maps(x, (0, 1)), strict=True):
            assert torch.equal(a, b)
    assert "head.weight" in capsys.readouterr().err
    state.pop("vmunet.layers.0.blocks.0.ln_1.weight")
    torch.save(state, tmp_path / "cut.pth")
    with pytest.raises(DataError, match="missing"):
        create_model("mhsvm_4h", pretrained=tmp_path / "cut.pth", **SMALL)


def test_it_is_an_encoder_of_segmenters() -> None:
    model = create_segmenter("mhsvm_nano", 3, **SMALL)
    y = model(torch.randn(1, 3, 24, 32))
    y.square().mean().backward()
    assert y.shape == (1, 3, 24, 32)
    missing = [k for k, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not missing


@pytest.mark.parametrize("heads", [1, 3, 4])
def test_programs_scan_all_heads_at_once(heads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    layer, x = MultiHeadScan(8, 2, heads).double(), torch.randn(2, 3, 4, 8).double()
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    expected, calls = layer(x), []
    original = mhsvm.scan_side_by_side
    monkeypatch.setattr(
        mhsvm, "scan_side_by_side", lambda *a: calls.append(a[0].shape[2]) or original(*a)
    )
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    torch.testing.assert_close(layer(x), expected, rtol=1e-10, atol=1e-10)
    assert calls == [4 * heads]


def test_fusion_equals_its_definition_and_agreement_gives_no_infinite_gradient() -> None:
    y = torch.randn(2, 5, 4, 3, dtype=torch.float64)
    deviation = ((y - y.mean(2, keepdim=True)).square().sum(2) / 3).sqrt()
    spread = y.mean(2) - y.min(2).values
    expected = y.sum(2) * torch.relu(deviation / (spread + 1e-5) - 0.8)
    torch.testing.assert_close(fuse_routes(y, 0.8), expected, rtol=1e-12, atol=1e-12)
    same = torch.ones(1, 2, 4, 3, requires_grad=True)
    fuse_routes(same, 0.0).sum().backward()
    assert same.grad is not None and same.grad.isfinite().all()


def test_a_black_image_trains() -> None:
    model = create_model("mhsvm_nano", **SMALL)
    model(torch.zeros(2, 3, 16, 16)).square().mean().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_every_head_sees_the_whole_map() -> None:
    torch.manual_seed(0)
    layer = MultiHeadScan(8, 2, 4, 0.0).double()
    for letter in layer.letters:
        engine = getattr(layer, f"scanhead_{letter}").mambaeng
        x = torch.randn(1, 12, 2, dtype=torch.float64)
        jacobian = torch.autograd.functional.jacobian(lambda x, e=engine: e(x, 3, 4).sum(2), x)
        assert (jacobian.abs().sum((0, 2, 3, 5)) > 0).all()


def test_heads_are_checked() -> None:
    with pytest.raises(ConfigError, match="n_heads must lie between 1 and 4"):
        create_model("mhsvm_nano", n_heads=5)
    assert create_model("mhsvm_nano", n_heads=1, **SMALL)(torch.randn(1, 3, 16, 16)).shape == (
        1,
        10,
    )
