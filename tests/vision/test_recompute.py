"""Recomputed blocks give the same outputs, gradients and moments, and keep less in between."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

from longseq.vision.models.layers import ImageModel
from longseq.vision.models.registry import create_model
from longseq.vision.recompute import block_names, recompute_blocks
from longseq.vision.segmentation import Segmentation
from longseq.vision.task import ImageClassifier

MODELS = {
    "resnet8": {"drop_path": 0.5},
    "hybrid_pico": {"dims": (8, 16), "depths": (2, 1), "scans": (1,)},
    "vmamba_pico": {"dims": (8, 16), "depths": (2, 1), "drop_path": 0.5},
    "vim_nano": {"d_model": 16, "depth": 3, "patch_size": 8},
    "vit_pico": {"d_model": 24, "n_layers": 3, "patch_size": 8},
}


def step(model: ImageModel) -> tuple[list[Tensor], int]:
    """Returns output, gradients and buffers of a training step, and the bytes kept for backward."""
    kept = 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += tensor.numel() * tensor.element_size()
        return tensor

    torch.manual_seed(1)
    images = torch.rand(3, 3, 32, 32)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        found = model.train()(images)
        loss = found.square().sum()
    loss.backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return [found.detach(), *gradients, *model.buffers()], kept


@pytest.mark.parametrize("name", MODELS)
def test_nothing_changes_but_memory(name: str) -> None:
    torch.manual_seed(0)
    kwargs: dict[str, Any] = MODELS[name]
    plain = create_model(name, **kwargs)
    again = copy.deepcopy(plain)
    recompute_blocks(again)
    blocks = block_names(again)
    assert len(blocks) == 3 and list(again.state_dict()) == list(plain.state_dict())
    (expected, before), (found, after) = step(plain), step(again)
    assert len(found) == len(expected) and after < 0.8 * before
    for a, b in zip(found, expected):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    images = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(images), plain.eval()(images))


def test_copies_are_their_own() -> None:
    model = create_model("resnet8")
    recompute_blocks(model)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.zero_()
        images = torch.rand(1, 3, 32, 32)
        assert not other.eval()(images).any() and model.eval()(images).any()


def test_tasks_take_it() -> None:
    task = ImageClassifier("resnet8", 3, recompute=True, ema_decay=0.9)
    assert hasattr(task.model.get_submodule("stages.0.0").forward, "func")
    assert task.ema is not None
    assert not hasattr(task.ema.get_submodule("stages.0.0").forward, "func")
    cells = Segmentation("hybrid_unet", 2, recompute=True)
    assert hasattr(cells.model.encoder.model.get_submodule("stages.0.0").forward, "func")
