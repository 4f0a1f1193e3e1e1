"""The family of published backbones: what every one must do, and its results beside the published
code's.

The live comparisons run where LONGSEQ_UPSTREAM_VISION names a folder of checkouts (see
bench/vision_family.py); with it, running this file as a program writes the frozen numbers again (of
the models named as arguments, or all).
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from longseq.core.errors import ArgumentError, ConfigError, DataError
from longseq.vision import create_model
from longseq.vision.models.dinat import neighborhood_attention
from longseq.vision.models.favit import window_keys
from longseq.vision.models.pyramid import by_windows, fuse_batch_norm
from longseq.vision.models.registry import MODELS

sys.path.insert(0, str(Path(__file__).parent))
from family import TINY

ROOT = Path(__file__).parents[3]
FIXTURE = Path(__file__).parents[1] / "fixtures" / "vision_family.npz"
FOLDER = os.environ.get("LONGSEQ_UPSTREAM_VISION")
NAMES = sorted(TINY)
# FaViT's published code reflects a map once, so a map must be larger than what a window lacks.
SIZES = {"favit": ((160, 192), (224, 224))}
# Counted in the published code; MobileMamba's without its 30,208 to 57,088 fixed filter taps.
PUBLISHED = {
    "mambavision_tiny": 31_794_248,
    "mambavision_tiny2": 35_104_008,
    "mambavision_small": 50_140_584,
    "mambavision_base": 97_685_288,
    "mambavision_large": 227_961_048,
    "mambavision_large2": 241_554_824,
    "mambavision_large3_256": 739_570_472,
    "mobilemamba_t2": 8_806_682,
    "mobilemamba_t4": 14_137_690,
    "mobilemamba_s6": 14_996_696,
    "mobilemamba_b1": 17_070_625,
    "groupmamba_tiny": 23_361_917,
    "groupmamba_small": 34_781_555,
    "groupmamba_base": 57_150_838,
    "efficientvmamba_tiny": 6_493_660,
    "efficientvmamba_small": 11_273_688,
    "efficientvmamba_base": 33_717_136,
    "dinat_mini": 19_984_174,
    "dinat_tiny": 27_901_582,
    "dinat_small": 50_719_681,
    "dinat_base": 89_769_652,
    "dinat_large": 200_943_514,
    "favit_b0": 3_427_704,
    "favit_b1": 12_958_568,
    "favit_b2": 24_919_896,
    "favit_b3": 48_746_440,
    "inceptionnext_atto": 4_156_520,
    "inceptionnext_tiny": 28_055_680,
    "inceptionnext_small": 49_374_016,
    "inceptionnext_base": 86_672_136,
}


def tiny(name: str, **kwargs: Any) -> Any:
    torch.manual_seed(0)
    preset, own, _ = TINY[name]
    return stirred(create_model(preset, **{"num_classes": 5, **own, **kwargs}))


def stirred(model: nn.Module) -> nn.Module:
    """Moves every parameter and statistic away from its start."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
        for key, buffer in model.named_buffers():
            if key.endswith("running_mean"):
                buffer.add_(0.1 * torch.randn_like(buffer))
            elif key.endswith("running_var"):
                buffer.mul_(0.5 + torch.rand_like(buffer))
    return model


def images(height: int, width: int, channels: int = 3, batch: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, channels, height, width, generator=generator)


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_published_models_have_their_exact_size(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for function in ("trunc_normal_", "kaiming_uniform_", "uniform_"):  # slow, even of no data
        monkeypatch.setattr(nn.init, function, lambda x, *_, **__: x)
    with torch.device("meta"):
        model = create_model(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == PUBLISHED[name]
    assert model.pretrained_cfg["interpolation"] == "bicubic" and MODELS[name].help


@pytest.mark.parametrize("name", NAMES)
def test_any_resolution_and_any_channels(name: str) -> None:
    for channels, (height, width) in ((1, (33, 47)), (4, (64, 32)), (13, (35, 35))):
        model = tiny(name, in_chans=channels).eval()
        x = images(height, width, channels, 3)
        with torch.no_grad():
            features, logits = model.forward_features(x), model(x)
            assert logits.shape == (3, 5)
            assert torch.equal(model.forward_head(features), logits)
            assert model.forward_head(features, pre_logits=True).shape == (3, model.num_features)
            torch.testing.assert_close(model(x[1:2]), logits[1:2], rtol=1e-4, atol=1e-4)
    with pytest.raises(ArgumentError, match="batch, 13"):
        model(images(35, 35, 3))


@pytest.mark.parametrize("name", NAMES)
def test_features_only_gives_maps_of_the_promised_size(name: str) -> None:
    preset, own, _ = TINY[name]
    extractor = create_model(preset, features_only=True, **own).eval()
    maps = extractor(images(64, 128))
    assert len(maps) == len(extractor.feature_info) >= 3
    for found, info in zip(maps, extractor.feature_info, strict=True):
        step = info["reduction"]
        assert found.shape == (2, info["channels"], 64 // step, 128 // step)


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_learns_and_evaluation_leaves_no_trace(name: str) -> None:
    model = tiny(name)
    with torch.inference_mode():
        model.eval()(images(64, 64))
    loss = nn.functional.cross_entropy(model.train()(images(64, 64)), torch.tensor([0, 1]))
    loss.backward()
    grads = {key: parameter.grad for key, parameter in model.named_parameters()}
    assert not [key for key, grad in grads.items() if grad is None or not grad.isfinite().all()]


@pytest.mark.parametrize("name", NAMES)
def test_no_images_give_no_logits(name: str) -> None:
    model, x = tiny(name).eval(), images(64, 64)[:0].requires_grad_()
    y = model(x)
    assert y.shape == (0, model(images(64, 64)).shape[1])
    y.sum().backward()
    assert x.grad is not None and x.grad.shape == x.shape


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_is_close(name: str) -> None:
    model, x = tiny(name).eval(), images(64, 64)
    with torch.no_grad():
        expected = model(x)
        with torch.autocast("cpu", torch.bfloat16):
            found = model(x).float()
    assert (found - expected).abs().max() <= 0.05 * expected.abs().max()


@pytest.mark.parametrize("name", NAMES)
def test_published_files_load_fitted(name: str, tmp_path: Path, capsys: Any) -> None:
    preset, own, _ = TINY[name]
    source, file, x = tiny(name).eval(), tmp_path / "a.pth", images(64, 64)
    state = {f"module.{key}": value for key, value in source.state_dict().items()}
    torch.save({"state_dict": state, "args": {"lr": 1}}, file)
    with torch.no_grad():
        same = create_model(preset, pretrained=file, **own).eval()
        assert torch.equal(same(x), source(x)) and not capsys.readouterr().err
        other = create_model(preset, pretrained=file, in_chans=4, num_classes=7, **own).eval()
        notes = capsys.readouterr().err
        assert "from 3 to 4 channels" in notes and "start anew" in notes
        assert other(images(64, 64, 4)).shape == (2, 7)
        bare = create_model(preset, pretrained=file, num_classes=0, **own).eval()
        torch.testing.assert_close(bare(x).shape[1], source.num_features)
    state.pop(next(iter(state)))
    torch.save(state, file)
    with pytest.raises(DataError, match="missing"):
        create_model(preset, pretrained=file, **own)


@pytest.mark.parametrize("name", [*NAMES, "resnet8"])
def test_batch_norms_fuse_to_the_same_results(name: str) -> None:
    model = tiny(name) if name in TINY else stirred(create_model(name))
    x = images(64, 64)
    with pytest.raises(ConfigError, match="evaluation mode"):
        fuse_batch_norm(model.train())
    with torch.no_grad():
        expected = model.eval()(x)
        before = sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())
        found = fuse_batch_norm(model)(x)
    after = sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    assert after < before or before == 0
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_windows_are_padded_with_zeros_and_cut_again() -> None:
    x = torch.arange(2 * 3 * 5 * 3).view(2, 3, 5, 3).float() + 1
    seen = []

    def mix(windows: Tensor) -> Tensor:
        seen.append(windows)
        return windows * 2

    assert torch.equal(by_windows(x, 2, mix, channels_last=True), 2 * x)
    first = seen[0][0]
    assert torch.equal(first, torch.stack([x[0, 0, 0], x[0, 0, 1], x[0, 1, 0], x[0, 1, 1]]))
    assert seen[0].shape == (2 * 2 * 3, 4, 3) and (seen[0][2][1] == 0).all()
    turned = x.permute(0, 3, 1, 2)
    assert torch.equal(by_windows(turned, 2, mix), 2 * turned)


@pytest.mark.parametrize(("height", "width", "dilation"), [(3, 5, 1), (7, 8, 2), (11, 9, 3)])
def test_neighborhood_attention_equals_the_obvious_loop(
    height: int, width: int, dilation: int
) -> None:
    q, k, v = torch.randn(3, 2, 2, height, width, 4, dtype=torch.float64)
    bias = torch.randn(2, 5, 5, dtype=torch.float64)

    def line(i: int, length: int) -> list[int]:
        same = list(range(i % dilation, length, dilation))
        return sorted(sorted(same, key=lambda j: (abs(j - i), j))[:3])

    expected = torch.empty_like(q)
    for i in range(height):
        for j in range(width):
            near = [(a, b) for a in line(i, height) for b in line(j, width)]
            scores = torch.stack(
                [
                    (q[:, :, i, j] * k[:, :, a, b]).sum(-1)
                    + bias[:, (a - i) // dilation + 2, (b - j) // dilation + 2]
                    for a, b in near
                ],
                -1,
            ).softmax(-1)
            values = torch.stack([v[:, :, a, b] for a, b in near], -2)
            expected[:, :, i, j] = (scores[..., None] * values).sum(-2)
    found = neighborhood_attention(q, k, v, bias, dilation)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    with pytest.raises(ArgumentError, match="is smaller than"):
        neighborhood_attention(q[:, :, :2], k[:, :, :2], v[:, :, :2], bias, dilation)


def test_keys_of_a_window_follow_the_published_layout() -> None:
    x = torch.randn(1, 2 * 3, 7, 7)  # one window: its places themselves
    assert torch.equal(window_keys(x, 1, 2), x.view(1, 2, 3, 49).transpose(2, 3))
    small = window_keys(x[..., :1, :2], 2, 2)  # reflected again and again
    assert small.shape == (1, 2, 49, 3) and small.isfinite().all()


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ConfigError, match="multiples of 16"):
        create_model("favit_b0", dims=(33, 64, 128, 256))
    with pytest.raises(ConfigError, match="kernel must be odd"):
        create_model("dinat_mini", kernel=4)
    with pytest.raises(ConfigError, match="n_heads needs one value per stage"):
        create_model("mambavision_tiny", n_heads=(2, 4))
    with pytest.raises(ConfigError, match="3 heads do not divide"):
        create_model("mambavision_tiny", n_heads=(2, 4, 3, 16))
    with pytest.raises(ConfigError, match="multiples of 4"):
        create_model("groupmamba_tiny", dims=(64, 126, 348, 448))
    with pytest.raises(ConfigError, match="equally long"):
        create_model("mobilemamba_t2", depths=(1, 2))
    with pytest.raises(ConfigError, match="must be odd"):
        create_model("inceptionnext_tiny", band=4)


def published(name: str, folder: str) -> nn.Module:
    """The published code's model of ``TINY``."""
    sys.path.insert(0, str(ROOT))
    spec = importlib.util.spec_from_file_location("vision_family", ROOT / "bench/vision_family.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, name)(Path(folder), num_classes=5, **TINY[name][2])


def waves(*shape: int) -> Tensor:
    steps = torch.arange(int(np.prod(shape)), dtype=torch.float64)
    return torch.sin(0.9 * steps**1.1).view(shape).float()


def fill(model: nn.Module) -> None:
    """Gives parameters and statistics values that any machine computes alike."""
    state = model.state_dict()
    for index, key in enumerate(sorted(state)):
        value = state[key]
        if not value.is_floating_point() or "filter" in key:
            continue
        steps = torch.arange(value.numel(), dtype=torch.float64)
        wave = torch.sin(1.3 * steps + 0.7 * index).view_as(value)
        norm = (value.dim() == 1 and key.endswith("weight")) or "running_var" in key
        scale = 0.3 if value.dim() == 1 else 0.6 * (value[0].numel() + 4) ** -0.5
        value.copy_(scale * wave + (1.0 if norm else 0.0))


def sizes(name: str) -> tuple[tuple[int, int], ...]:
    return SIZES.get(name, ((33, 47), (64, 64)))


def results(model: nn.Module, name: str) -> dict[str, np.ndarray]:
    """Logits at two sizes, and projections of the gradients of a weighted sum on waves.

    Gradients are of the square size: on others GroupMamba's published code takes the columns'
    gradients for rows' (CrossScan_2.backward), where ours equal those of float64.
    """
    found, total = {}, torch.zeros(())
    for size in sizes(name):
        y = model.eval()(waves(2, 3, *size))
        found[f"y{size[0]}"] = y.detach().double().numpy()
        total = (y * torch.linspace(-1, 1, y.numel()).view_as(y).cos()).sum()
    named = sorted((k, p) for k, p in model.named_parameters() if p.requires_grad)
    rows = []
    for _, grad in zip(named, torch.autograd.grad(total, [p for _, p in named]), strict=True):
        flat = grad.double().flatten()
        phase = torch.arange(flat.numel(), dtype=torch.float64)
        rows.append([float((flat * torch.cos((0.3 + k) * phase)).sum()) for k in range(2)])
    return {**found, "gradients": np.array(rows, np.float32)}


def ours(name: str) -> nn.Module:
    preset, own, _ = TINY[name]
    model = create_model(preset, num_classes=5, **own)
    fill(model)
    return model


@pytest.mark.parametrize("name", NAMES)
def test_equals_the_published_codes_frozen_results(name: str) -> None:
    frozen = np.load(FIXTURE)
    for key, value in results(ours(name), name).items():
        expected = frozen[f"{name}/{key}"]
        np.testing.assert_allclose(value, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


@pytest.mark.skipif(not FOLDER, reason="LONGSEQ_UPSTREAM_VISION names no folder of checkouts")
@pytest.mark.parametrize("name", NAMES)
def test_equals_the_published_code(name: str) -> None:
    assert FOLDER is not None
    torch.manual_seed(0)
    theirs = stirred(published(name, FOLDER)).eval()
    mine = ours(name).eval()
    mine.load_state_dict(theirs.state_dict(), strict=True)
    for size in sizes(name):
        with torch.no_grad():
            expected = theirs(images(*size))
            found = (mine(images(*size)) - expected).abs().max() / expected.abs().max()
        print(f"{name} {size}: {found:.1e}")
        assert found <= 1e-5


def write_fixture(folder: str, names: list[str]) -> None:
    """Writes the published code's results at the weights of ``fill``; others stay as they are."""
    values = dict(np.load(FIXTURE)) if names else {}
    for name in names or NAMES:
        theirs = published(name, folder)
        theirs.load_state_dict(ours(name).state_dict(), strict=True)
        values |= {f"{name}/{key}": value for key, value in results(theirs, name).items()}
    np.savez_compressed(FIXTURE, **values)


if __name__ == "__main__":
    assert FOLDER, "set LONGSEQ_UPSTREAM_VISION"
    write_fixture(FOLDER, sys.argv[1:])
