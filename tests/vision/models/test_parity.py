"""Vim and VMamba against the published code (hustvl/Vim, MzeroMiko/VMamba), live and from frozen
numbers.

The live tests run where LONGSEQ_UPSTREAM_VIM and LONGSEQ_UPSTREAM_VMAMBA name checkouts and einops
is installed; with both set, running this file as a program writes the frozen numbers again.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from longseq.vision import create_model
from longseq.vision.models.published import convert_names

FIXTURE = Path(__file__).parents[1] / "fixtures" / "vision_mamba.npz"
ROOT = Path(__file__).parents[3]
REPOSITORIES = {"vim": "hustvl/Vim", "vmamba": "MzeroMiko/VMamba"}
CHECKOUTS = {name: os.environ.get(f"LONGSEQ_UPSTREAM_{name.upper()}") for name in REPOSITORIES}


def needs(name: str) -> pytest.MarkDecorator:
    variable = f"LONGSEQ_UPSTREAM_{name.upper()}"
    missing = [] if CHECKOUTS[name] else [f"{variable} names no checkout of {REPOSITORIES[name]}"]
    if name == "vim" and importlib.util.find_spec("einops") is None:
        missing.append("einops is not installed (pip install einops)")
    return pytest.mark.skipif(bool(missing), reason=", ".join(missing))


def upstream() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "vision_upstream", ROOT / "bench/vision_upstream.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def their_vim(**kwargs: Any) -> nn.Module:
    module = upstream()
    return module.make_vim(module.load_vim(CHECKOUTS["vim"]), **kwargs)


def their_vmamba(channel_first: bool, **kwargs: Any) -> nn.Module:
    found = upstream().load_vmamba(CHECKOUTS["vmamba"])
    if not kwargs:
        return found.vmamba_tiny_s1l8(channel_first=channel_first)
    return found.VSSM(
        ssm_d_state=1,
        ssm_ratio=1.0,
        ssm_dt_rank="auto",
        ssm_conv=3,
        ssm_conv_bias=False,
        ssm_init="v0",
        forward_type="v05_noz",
        norm_layer="ln2d" if channel_first else "ln",
        downsample_version="v3",
        patchembed_version="v2",
        **kwargs,
    )


def randomise(model: nn.Module) -> nn.Module:
    """Moves every parameter away from its start, so that no term is absent by its
    initialisation."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 0.05 if parameter.dim() > 1 and "A_" not in name else 0.1
            parameter.add_(scale * torch.randn_like(parameter))
    return model


def fill(model: nn.Module) -> None:
    """Gives every parameter values that any machine computes alike."""
    with torch.no_grad():
        for index, (name, parameter) in enumerate(sorted(model.named_parameters())):
            steps = torch.arange(parameter.numel(), dtype=torch.float64)
            wave = torch.sin(1.3 * steps + 0.7 * index).view_as(parameter)
            norm = "norm" in name or name.endswith((".2.weight", ".7.weight", ".3.weight"))
            parameter.copy_(0.2 * wave + (1.0 if norm and name.endswith("weight") else 0.0))


def waves(*shape: int) -> Tensor:
    return (
        torch.sin(0.9 * torch.arange(int(np.prod(shape)), dtype=torch.float64) ** 1.1)
        .view(shape)
        .float()
    )


def outcome(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """The logits, and gradients of a weighted sum of them."""
    x = x.clone().requires_grad_()
    y = model.eval()(x)
    weights = torch.linspace(-1, 1, y.numel()).view_as(y).cos()
    leaves = {"x": x, **dict(model.named_parameters())}
    grads = torch.autograd.grad((y * weights).sum(), [*leaves.values()])
    return {"y": y.detach(), **dict(zip(leaves, grads))}


def largest(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest difference, relative to its tensor's largest value, or to 1e-2 of the largest of
    all."""
    floor = 1e-2 * max(value.abs().max().item() for value in expected.values())
    return max(
        (actual[key].reshape(value.shape) - value).abs().max().item()
        / max(value.abs().max().item(), floor)
        for key, value in expected.items()
    )


@needs("vim")
@pytest.mark.parametrize("size", [48, 64])
def test_vim_tiny_equals_upstream(size: int) -> None:
    torch.manual_seed(0)
    theirs = randomise(their_vim(img_size=size, patch_size=16, embed_dim=192, depth=24))
    ours = create_model("vim_tiny", img_size=size)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = torch.randn(2, 3, size, size)
    with torch.no_grad():
        found = (ours.eval()(x) - theirs.eval()(x)).abs().max().item()
    print(f"vim_tiny {size} px: {found:.1e}")
    assert found <= 1e-4


@needs("vim")
def test_vim_gradients_equal_upstreams() -> None:
    torch.manual_seed(0)
    theirs = randomise(their_vim(img_size=48, patch_size=16, embed_dim=64, depth=3, num_classes=5))
    ours = create_model("vim_tiny", img_size=48, d_model=64, depth=3, num_classes=5)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = torch.randn(2, 3, 48, 48)
    found = largest(outcome(ours, x), outcome(theirs, x))
    print(f"vim gradients: {found:.1e}")
    assert found <= 1e-4


@needs("vmamba")
@pytest.mark.parametrize("channel_first", [True, False])
def test_vmamba_tiny_equals_upstream(channel_first: bool) -> None:
    torch.manual_seed(0)
    theirs = randomise(their_vmamba(channel_first))
    ours = create_model("vmamba_tiny")
    ours.load_state_dict(convert_names(theirs.state_dict(), ours), strict=True)
    x = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        found = (ours.eval()(x) - theirs.eval()(x)).abs().max().item()
    print(f"vmamba_tiny: {found:.1e}")
    assert found <= 1e-4


@needs("vmamba")
def test_vmamba_gradients_equal_upstreams() -> None:
    torch.manual_seed(0)
    sizes = {"dims": [16, 32], "depths": [1, 2], "num_classes": 5}
    theirs, ours = randomise(their_vmamba(True, **sizes)), create_model("vmamba_tiny", **sizes)
    ours.load_state_dict(convert_names(theirs.state_dict(), ours), strict=True)
    x = torch.randn(2, 3, 32, 48)
    found = largest(outcome(ours, x), outcome(theirs, x))
    print(f"vmamba gradients: {found:.1e}")
    assert found <= 1e-4


def their_vmamba_m2(**kwargs: Any) -> nn.Module:
    return (
        upstream()
        .load_vmamba(CHECKOUTS["vmamba"])
        .VSSM(
            ssm_d_state=64,
            ssm_ratio=1.0,
            ssm_act_layer="gelu",
            ssm_conv_bias=False,
            ssm_init="v2",
            forward_type="m0_noz",
            norm_layer="ln",
            downsample_version="v3",
            patchembed_version="v2",
            **kwargs,
        )
    )


@needs("vmamba")
@pytest.mark.skipif(
    importlib.util.find_spec("einops") is None,
    reason="einops is not installed (pip install einops)",
)
def test_vmamba_m2_equals_upstream() -> None:
    torch.manual_seed(0)
    theirs = randomise(their_vmamba_m2(dims=[96, 192, 384, 768], depths=[2, 2, 4, 2]))
    ours = create_model("vmamba_tiny_m2")
    ours.load_state_dict(convert_names(theirs.state_dict(), ours), strict=True)
    x = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        found = (ours.eval()(x) - theirs.eval()(x)).abs().max().item()
    sizes = {"dims": [16, 32], "depths": [1, 2], "num_classes": 5}
    theirs, ours = randomise(their_vmamba_m2(**sizes)), create_model("vmamba_tiny_m2", **sizes)
    ours.load_state_dict(convert_names(theirs.state_dict(), ours), strict=True)
    slopes = largest(outcome(ours, x), outcome(theirs, x))
    print(f"vmamba_tiny_m2: {found:.1e}, gradients {slopes:.1e}")
    assert found <= 1e-4
    assert slopes <= 1e-4


def digest(values: dict[str, Tensor]) -> dict[str, np.ndarray]:
    """The logits, and four projections of every gradient on waves, which tell any two gradients
    apart."""
    found = {"y": values["y"].double().numpy()}
    rows = []
    for name in sorted(values.keys() - {"y"}):
        flat = values[name].double().flatten()
        phase = torch.arange(flat.numel(), dtype=torch.float64)
        rows.append([float((flat * torch.cos((0.3 + k) * phase)).sum()) for k in range(4)])
    return {**found, "gradients": np.array(rows, np.float32)}


def small(name: str) -> tuple[nn.Module, Tensor]:
    """The models and inputs of the frozen numbers."""
    if name == "vim":
        kwargs: dict[str, Any] = {"img_size": 12, "patch_size": 4, "d_model": 16, "depth": 2}
    else:
        kwargs = {"dims": [8, 16], "depths": [1, 1]}
    family, *variant = name.split("_")
    model = create_model("_".join([family, "tiny", *variant]), num_classes=3, **kwargs)
    fill(model)
    return model, waves(2, 3, 12, 12)


@pytest.mark.parametrize("name", ["vim", "vmamba", "vmamba_m2"])
def test_equals_frozen_upstream(name: str) -> None:
    frozen, actual = np.load(FIXTURE), digest(outcome(*small(name)))
    for key, value in actual.items():
        expected = frozen[f"{name}/{key}"]
        np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def write_fixture() -> None:
    """Writes logits and gradients of the published code."""
    vim = their_vim(img_size=12, patch_size=4, stride=4, embed_dim=16, depth=2, num_classes=3)
    vmamba = their_vmamba(True, dims=[8, 16], depths=[1, 1], num_classes=3)
    heads = their_vmamba_m2(dims=[8, 16], depths=[1, 1], num_classes=3)
    values = {}
    for name, theirs in (("vim", vim), ("vmamba", vmamba), ("vmamba_m2", heads)):
        ours, x = small(name)
        theirs.load_state_dict(ours.state_dict(), strict=True)
        values |= {f"{name}/{key}": value for key, value in digest(outcome(theirs, x)).items()}
    FIXTURE.parent.mkdir(exist_ok=True)
    np.savez_compressed(FIXTURE, **values)


if __name__ == "__main__":
    write_fixture()
