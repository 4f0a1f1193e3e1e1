"""MHS-VM's segmenter: the published code, its equations, files of one class, training."""

from __future__ import annotations

import copy
import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from longseq.core.errors import ConfigError, DataError
from longseq.vision import Segmentation, create_segmenter
from longseq.vision.models.mhsvm_unet import MHSVMUNet, PatchExpand

sys.path.insert(0, str(Path(__file__).parent))
from family import TINY

ROOT = Path(__file__).parents[3]
FOLDER = os.environ.get("LONGSEQ_UPSTREAM_VISION")
FIXTURE = Path(__file__).parents[1] / "fixtures" / "mhsvm_unet.npz"
SMALL = {"dims": (8, 16), "depths": (1, 1), "d_state": 2, "threshold": 0.0}
THEIRS = {**TINY["mhsvm"][2], "depths_decoder": [2, 1, 1]}
OURS = {**TINY["mhsvm"][1], "depths_decoder": (2, 1, 1), "n_heads": 4}


def filled() -> MHSVMUNet:
    """A model whose parameters any machine computes alike."""
    model = MHSVMUNet(3, **OURS).eval()
    with torch.no_grad():
        for index, (key, value) in enumerate(sorted(model.state_dict().items())):
            steps = torch.arange(value.numel(), dtype=torch.float64)
            wave = torch.sin(1.3 * steps + 0.7 * index).view_as(value)
            norm = value.dim() == 1 and key.endswith("weight")
            scale = 0.3 if value.dim() == 1 else 0.6 * (value[0].numel() + 4) ** -0.5
            value.copy_(scale * wave + (1.0 if norm else 0.0))
    return model


def waves(*shape: int) -> Tensor:
    steps = torch.arange(int(np.prod(shape)), dtype=torch.float64)
    return torch.sin(0.9 * steps**1.1).view(shape).float()


def theirs(state: dict[str, Tensor]) -> Any:
    """The published code's network with our weights."""
    assert FOLDER is not None
    path = ROOT / "bench/vision_family.py"
    spec = importlib.util.spec_from_file_location("vision_family", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.mhsvm_whole(Path(FOLDER), 3, **THEIRS).eval()
    model.load_state_dict(state, strict=True)
    return model


@pytest.mark.skipif(not FOLDER, reason="LONGSEQ_UPSTREAM_VISION names no folder of checkouts")
def test_equals_the_published_code() -> None:
    torch.manual_seed(0)
    model = MHSVMUNet(3, **OURS).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        published = theirs(model.state_dict())
        for size in ((32, 48), (64, 64)):
            x = torch.randn(2, 3, *size)
            # Ten blocks of quotients: each side's own rounding is some 5e-6, so both are measured
            # by the same network in float64.
            exact = copy.deepcopy(model).double()(x.double())
            for name, found in (("ours", model(x)), ("theirs", published(x))):
                error = float((found - exact).abs().max() / exact.abs().max())
                print(f"mhsvm_unet {size} {name}: {error:.1e}")
                assert error <= 1e-5


def test_equals_the_published_codes_frozen_results() -> None:
    expected = np.load(FIXTURE)["logits"]
    with torch.no_grad():
        found = filled()(waves(2, 3, 32, 48)).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def test_expansion_equals_its_definition() -> None:
    layer, x = PatchExpand(6, 2, 3).double(), torch.randn(2, 3, 5, 6, dtype=torch.float64)
    y = layer(x)
    assert y.shape == (2, 6, 10, 3)
    for row, column in ((0, 0), (3, 7), (5, 2)):
        place = 3 * (2 * (row % 2) + column % 2)
        one = layer.expand.weight[place : place + 3] @ x[1, row // 2, column // 2]
        torch.testing.assert_close(y[1, row, column], layer.norm(one))


# Counted in the published code, with the decoder's blocks 2, 2, 2, 1.
@pytest.mark.parametrize(("heads", "count"), [(3, 17_386_153), (4, 17_257_129)])
def test_the_network_has_its_exact_size(heads: int, count: int) -> None:
    with torch.device("meta"):
        model = MHSVMUNet(1, n_heads=heads)
    assert sum(parameter.numel() for parameter in model.parameters()) == count


@pytest.mark.parametrize("size", [(8, 8), (1, 3), (13, 20)])
def test_any_size_goes_in_and_comes_out(size: tuple[int, int]) -> None:
    model = MHSVMUNet(3, **SMALL).eval()
    assert model(torch.randn(1, 3, *size)).shape == (1, 3, *size)


def test_a_published_file_of_one_class_gives_its_sigmoid(tmp_path: Path, capsys: Any) -> None:
    torch.manual_seed(0)
    one, x = MHSVMUNet(1, **SMALL).eval(), torch.randn(1, 3, 16, 16)
    state = {f"vmunet.{key}": value for key, value in one.state_dict().items()}
    for key in list(state):
        if ".mambaeng." in key:
            state[key.replace(".mambaeng.", ".scanning.seq2seq_engine.")] = state[key]
    torch.save(state, tmp_path / "best.pth")
    two = create_segmenter("mhsvm_4h", 2, "own", pretrained=tmp_path / "best.pth", **SMALL).eval()
    assert not capsys.readouterr().err
    with torch.no_grad():
        torch.testing.assert_close(two(x).softmax(1)[:, 1], one(x)[:, 0].sigmoid())
    task = Segmentation(
        "mhsvm_4h",
        decoder="own",
        encoder_kwargs=dict(SMALL),
        pretrained=str(tmp_path / "best.pth"),
    )
    task.setup("fit")
    with torch.no_grad():
        torch.testing.assert_close(task.eval()(x), two(x))
    state.pop("vmunet.layers_up.0.blocks.0.ln_1.weight")
    torch.save(state, tmp_path / "cut.pth")
    with pytest.raises(DataError, match="missing"):
        create_segmenter("mhsvm_4h", 2, "own", pretrained=tmp_path / "cut.pth", **SMALL)


def test_every_weight_learns_also_recomputed() -> None:
    task = Segmentation("mhsvm_nano", 3, decoder="own", encoder_kwargs=dict(SMALL), recompute=True)
    task(torch.randn(2, 3, 16, 16)).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in task.model.parameters())


def test_wrong_choices_are_named() -> None:
    with pytest.raises(ConfigError, match="unet has no decoder of its own"):
        create_segmenter("unet", 2, "own")
    with pytest.raises(ConfigError, match="dims must double"):
        create_segmenter("mhsvm_nano", 2, "own", dims=(8, 12), depths=(1, 1))
    with pytest.raises(ConfigError, match="dims"):
        create_segmenter("mhsvm_nano", 2, "own", dim=8)


if __name__ == "__main__":
    with torch.no_grad():
        logits = theirs(filled().state_dict())(waves(2, 3, 32, 48)).numpy()
    np.savez_compressed(FIXTURE, logits=logits)
