"""Every model by name: sizes, shapes at any resolution, features, determinism, published
layouts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from longseq.core.errors import ArgumentError, ConfigError
from longseq.vision import create_model, list_models
from longseq.vision.models import vmamba
from longseq.vision.models.layers import DropPath, FeatureExtractor, path_rates
from longseq.vision.models.registry import MODELS

# The published models' parameters, counted in the published code.
PUBLISHED = {
    "vim_tiny": 7_148_008,
    "vim_small": 25_796_584,
    "vim_base": 97_598_440,
    "vmamba_tiny": 30_249_064,
    "vmamba_small": 49_012_840,
    "vmamba_base": 86_614_504,
    "vmamba_tiny_s2l5": 30_705_832,
    "vmamba_small_s2l15": 50_147_752,
    "vmamba_base_s2l15": 88_557_800,
    "vmamba_tiny_m2": 25_340_296,
    "vmamba_small_m2": 39_079_816,
    "vmamba_base_m2": 67_527_528,
    "vim_tiny_plus": 7_250_344,
    "vim_small_plus": 26_001_256,
}
SMALL = [
    "vim_nano",
    "vmamba_nano",
    "vmamba_pico",
    "vit_nano",
    "vit_pico",
    "sequential",
    "resnet8",
    "hybrid_pico",
]


def images(size: tuple[int, int] = (20, 28), batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_published_models_have_their_exact_size(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == PUBLISHED[name]


def test_the_vits_are_of_their_counterparts_size() -> None:
    def size(name: str) -> int:
        return sum(parameter.numel() for parameter in create_model(name).parameters())

    assert abs(size("vit_nano") / size("vmamba_nano") - 1) < 0.06
    assert abs(size("vit_pico") / size("vmamba_pico") - 1) < 0.01


@pytest.mark.parametrize("name", SMALL)
def test_any_resolution_classifies_and_yields_features(name: str) -> None:
    model = create_model(name, num_classes=7).eval()
    with torch.no_grad():
        for size in ((20, 28), (9, 13)):
            x = images(size)
            features = model.forward_features(x)
            logits = model(x)
            assert logits.shape == (2, 7)
            assert torch.equal(model.forward_head(features), logits)
            assert model.forward_head(features, pre_logits=True).shape == (2, model.num_features)


@pytest.mark.parametrize("name", SMALL)
def test_a_row_does_not_depend_on_its_neighbours(name: str) -> None:
    model, x = create_model(name).eval(), images((12, 12), 3)
    with torch.no_grad():
        torch.testing.assert_close(model(x)[1:2], model(x[1:2]), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(model(x), model(x), rtol=0, atol=0)


@pytest.mark.parametrize("name", SMALL)
def test_features_only_gives_maps_of_the_promised_size(name: str) -> None:
    extractor = create_model(name, features_only=True)
    assert isinstance(extractor, FeatureExtractor)
    maps = extractor.eval()(images((16, 24)))
    assert len(maps) == len(extractor.feature_info)
    for found, info in zip(maps, extractor.feature_info):
        assert found.shape == (
            2,
            info["channels"],
            16 // info["reduction"],
            24 // info["reduction"],
        )
    last = create_model(name, features_only=True, out_indices=(-1,))
    assert len(last(images((16, 24)))) == 1


def test_features_come_in_the_order_asked_for() -> None:
    torch.manual_seed(0)
    a = create_model("vim_nano", features_only=True).eval()
    b = create_model("vim_nano", features_only=True, out_indices=(3, 0)).eval()
    b.load_state_dict(a.state_dict())
    maps, swapped = a(images()), b(images())
    assert torch.equal(maps[3], swapped[0]) and torch.equal(maps[0], swapped[1])


@pytest.mark.parametrize("name", SMALL)
def test_every_parameter_learns(name: str) -> None:
    torch.manual_seed(0)
    model = create_model(name).train()
    torch.nn.functional.cross_entropy(model(images((32, 32))), torch.tensor([0, 1])).backward()
    without = [
        key for key, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()
    ]
    assert not without


@pytest.mark.parametrize("name", SMALL)
def test_what_was_evaluated_can_be_trained(name: str) -> None:
    # Also after a trace with stand-ins for tensors: nothing made under one mode may serve another.
    model, x = create_model(name), images((11, 13))
    with torch.inference_mode():
        model.eval()(x)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        model.eval()(mode.from_tensor(images((17, 19))))
    for size in ((11, 13), (17, 19)):
        model.train()(images(size)).sum().backward()


def test_the_positions_keep_the_class_token_in_the_middle() -> None:
    model = create_model("vim_nano", img_size=16).eval()  # 4 × 4 patches, the class token at 8
    with torch.no_grad():
        model.pos_embed.zero_()
        model.pos_embed[:, 8] = 5.0
        for height, width in ((4, 4), (2, 3), (7, 5)):
            found = model._positions(height, width)
            assert found.shape == (1, height * width + 1, 128)
            assert (found[:, height * width // 2] == 5).all() and found.sum() == 5 * 128


@pytest.mark.parametrize("order", ["raster", "column_reversed", "spiral"])
def test_directions_scanned_one_at_a_time_give_the_same_map(order: str, monkeypatch) -> None:
    orders = ("column", order, "raster_reversed")
    torch.manual_seed(0)
    op = vmamba.SS2D(6, 2, orders=orders, gate=True)
    x = torch.randn(2, 5, 7, 6, requires_grad=True)
    found = []
    for limit in (1 << 60, 0):
        monkeypatch.setattr(vmamba, "BY_LANE", limit)
        y = op(x)
        grads = torch.autograd.grad(y.square().sum(), [x, *op.parameters()])
        found.append([y, *grads])
    for joint, single in zip(*found, strict=True):
        torch.testing.assert_close(single, joint, rtol=1e-4, atol=1e-5)


def test_sequential_runs_any_mixer_and_any_order() -> None:
    for mixer, order in (("s4d", "snake"), ("mlstm", "spiral"), (["mamba", "attention"], "zigzag")):
        model = create_model(
            "sequential",
            mixer=mixer,
            d_model=16,
            n_layers=2,
            order=order,
            in_chans=1,
            num_classes=3,
        )
        assert model(torch.randn(2, 1, 5, 6)).shape == (2, 3)


def test_a_causal_sequence_ends_at_the_last_pixel_of_its_order() -> None:
    model = create_model(
        "sequential", d_model=16, n_layers=1, order="column_reversed", pool="last"
    ).eval()
    x = images((4, 4), 1)
    changed = x.clone()
    changed[..., 0, 0] += 1  # the last pixel
    with torch.no_grad():
        first, second = model.forward_features(x), model.forward_features(changed)
    assert torch.equal(first[:, :-1], second[:, :-1]) and not torch.equal(
        first[:, -1], second[:, -1]
    )


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ConfigError, match="did you mean 'vim_tiny'"):
        create_model("vim_tinny")
    with pytest.raises(ConfigError, match="did you mean 'drop_path'"):
        create_model("vim_nano", drop_paths=0.1)
    with pytest.raises(ConfigError, match="between -4 and 3"):
        create_model("vim_nano", features_only=True, out_indices=(4,))
    with pytest.raises(ConfigError, match="features_only"):
        create_model("vim_nano", out_indices=(0,))
    for name in ("vmamba_nano", "resnet8"):
        with pytest.raises(ConfigError, match="stem_stride"):
            create_model(name, stem_stride=3)
    with pytest.raises(ConfigError, match="stages from 0 to 2"):
        create_model("hybrid_pico", scans=(3,))
    with pytest.raises(ConfigError, match="did you mean 'column'"):
        create_model("hybrid_pico", orders=("colum",))
    with pytest.raises(ArgumentError, match="sides of at least 4"):
        create_model("vim_nano")(torch.zeros(1, 3, 3, 8))
    with pytest.raises(ArgumentError, match="batch, 3, height"):
        create_model("vmamba_nano")(torch.zeros(1, 1, 8, 8))
    assert {"vim_tiny", "vim_small", "vim_base", "vim_nano"} <= set(list_models("vim*"))
    assert all(MODELS[name].help for name in list_models())


def test_stochastic_depth_keeps_the_mean() -> None:
    torch.manual_seed(0)
    layer = DropPath(0.25)
    y = layer(torch.ones(4000, 2))
    assert y.unique().tolist() == pytest.approx([0, 4 / 3])
    assert y.mean().item() == pytest.approx(1, abs=0.05) and torch.equal(y[:, 0], y[:, 1])
    assert torch.equal(layer.eval()(y), y)
    assert path_rates(0.2, 3) == [0.0, 0.1, 0.2] and path_rates(0.2, 1) == [0.0]
