"""Published checkpoints as their makers write them: objects beside the weights, prefixes, layouts,
and other channels, sizes and classes."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from longseq.core.errors import ConfigError, DataError
from longseq.vision import create_model
from longseq.vision.models.published import fit_stem

VIM = {"depth": 1, "img_size": 16}


def images(channels: int = 3, side: int = 20) -> Tensor:
    return torch.randn(2, channels, side, side, generator=torch.Generator().manual_seed(0))


class Config(dict):
    """A configuration as yacs keeps it: a dict with attributes."""

    def __init__(self, **kwargs) -> None:
        super().__init__(kwargs)
        self.frozen = True


class Payload:
    """Runs a command when it is unpickled in the usual way."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (os.system, (f"touch {self.path}",))


@pytest.fixture
def vim(tmp_path: Path):
    torch.manual_seed(0)
    return create_model("vim_nano", **VIM).eval()


@pytest.mark.parametrize("legacy", [False, True])
def test_objects_beside_the_weights_stay_inert(vim, tmp_path: Path, legacy: bool) -> None:
    harm, file = tmp_path / "harm", tmp_path / "full.pth"
    content = {
        "model": vim.state_dict(),
        "optimizer": torch.optim.AdamW(vim.parameters()).state_dict(),
        "args": argparse.Namespace(model="vim", lr=5e-4, path=Path("x")),
        "config": Config(MODEL=Config(TYPE="vim")),
        "payload": Payload(harm),
        "list": [Payload(harm)],
        "epoch": 264,
    }
    torch.save(content, file, _use_new_zipfile_serialization=not legacy)
    loaded = create_model("vim_nano", pretrained=file, **VIM).eval()
    assert torch.equal(loaded(images()), vim(images())) and not harm.exists()
    torch.save({"model": {**vim.state_dict(), "norm_f.weight": Payload(harm)}}, file)
    with pytest.raises(DataError, match=r"missing: norm_f\.weight"):
        create_model("vim_nano", pretrained=file, **VIM)
    assert not harm.exists()


@pytest.mark.parametrize("prefix", ["module.", "backbone.", "_orig_mod.", "model.", "ema."])
def test_prefixes_are_left_out(vim, tmp_path: Path, prefix: str) -> None:
    state = {prefix + key: value for key, value in vim.state_dict().items()}
    state["decode_head.weight"] = torch.zeros(3)
    torch.save({"state_dict": state}, tmp_path / "a.pth")
    loaded = create_model("vim_nano", pretrained=tmp_path / "a.pth", **VIM).eval()
    assert torch.equal(loaded(images()), vim(images()))


def test_a_backbone_has_no_head(tmp_path: Path, capsys) -> None:
    kwargs = {"dims": (8, 16), "depths": (1, 1)}
    source = create_model("vmamba_nano", **kwargs).eval()
    state = {
        f"backbone.{key}": v
        for key, v in source.state_dict().items()
        if not key.startswith("classifier.")
    }
    state["backbone.outnorm0.weight"] = torch.ones(8)
    torch.save({"state_dict": state}, tmp_path / "seg.pth")
    loaded = create_model(
        "vmamba_nano", pretrained=tmp_path / "seg.pth", features_only=True, **kwargs
    ).eval()
    expected = source.forward_maps(images(), (0, 1))
    assert all(torch.equal(a, b) for a, b in zip(loaded(images()), expected))
    assert "classifier.norm.weight, " in capsys.readouterr().err


@pytest.mark.parametrize("channels", [1, 4, 13])
@pytest.mark.parametrize("name", ["vim_nano", "vmamba_pico", "vit_pico", "resnet8"])
def test_the_first_convolution_is_fitted(name: str, channels: int, tmp_path: Path, capsys) -> None:
    source = create_model(name).eval()
    torch.save({"model": source.state_dict()}, tmp_path / "a.pth")
    loaded = create_model(name, in_chans=channels, pretrained=tmp_path / "a.pth").eval()
    own, old = loaded.state_dict()[loaded.stem_key], source.state_dict()[source.stem_key]
    torch.testing.assert_close(own.sum(1), old.sum(1))
    grey = images(1).expand(-1, 3, -1, -1)
    with torch.no_grad():
        expected, found = source(grey), loaded(images(1).expand(-1, channels, -1, -1))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert f"was fitted from 3 to {channels} channels" in capsys.readouterr().err
    assert fit_stem(torch.zeros(8, 5, 3, 3), 4) is None


@pytest.mark.parametrize("name", ["vim_nano", "vit_pico"])
def test_positions_are_resized_as_the_model_does_it(name: str, tmp_path: Path) -> None:
    source = create_model(name, img_size=32).eval()
    torch.save({"model": source.state_dict()}, tmp_path / "a.pth")
    loaded = create_model(name, img_size=48, pretrained=tmp_path / "a.pth").eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(images(3, 48)), source(images(3, 48)))


def test_the_head_is_the_files_or_begins_anew(vim, tmp_path: Path, capsys) -> None:
    file = tmp_path / "a.pth"
    torch.save({"model": create_model("vim_nano", num_classes=7, **VIM).state_dict()}, file)
    assert create_model("vim_nano", pretrained=file, **VIM).head.out_features == 7
    assert capsys.readouterr().err == ""
    assert create_model("vim_nano", pretrained=file, num_classes=5, **VIM).head.out_features == 5
    assert "head.weight, head.bias start anew" in capsys.readouterr().err
    none = create_model("vim_nano", pretrained=file, num_classes=0, **VIM)
    assert none(images()).shape == (2, 128)


def test_averaged_weights_come_first(vim, tmp_path: Path) -> None:
    other = create_model("vim_nano", **VIM)
    torch.save({"model": other.state_dict(), "model_ema": vim.state_dict()}, tmp_path / "a.pth")
    loaded = create_model("vim_nano", pretrained=tmp_path / "a.pth", **VIM).eval()
    assert torch.equal(loaded(images()), vim(images()))


def test_files_of_other_kinds_are_refused(vim, tmp_path: Path) -> None:
    torch.save({"model": create_model("vit_pico").state_dict()}, tmp_path / "vit.pth")
    (tmp_path / "text.pth").write_text("hello")
    torch.save({"model": [1, 2]}, tmp_path / "list.pth")
    torch.save({"model": {}, "optimizer": Path("x")}, tmp_path / "object.pth")
    torch.save({"model": vim.state_dict()}, tmp_path / "cut.pth")
    cut = (tmp_path / "cut.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(cut[: len(cut) // 2])
    for name, message in (
        ("vit.pth", "another model"),
        ("text.pth", "damaged"),
        ("cut.pth", "damaged"),
        ("list.pth", "no state dict"),
        ("object.pth", "no state dict"),
        ("none.pth", "no such"),
    ):
        with pytest.raises(DataError, match=message) as caught:
            create_model("vim_nano", pretrained=tmp_path / name)
        assert name in str(caught.value)


def test_published_presets_say_how_they_were_evaluated() -> None:
    with torch.device("meta"):
        found = create_model("vmamba_tiny").pretrained_cfg
        assert found["crop_ratio"] == 0.875 and found["interpolation"] == "bicubic"
        assert not create_model("vim_nano").pretrained_cfg


def test_both_vmamba_layouts_load(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source, x = create_model("vmamba_nano").eval(), images()
    other = {}
    for key, value in source.state_dict().items():
        if key.endswith(("x_proj_weight", "dt_projs_weight")):
            key, value = key.replace("_weight", ".weight"), value.flatten(0, 1)
        elif key.endswith("in_proj.weight"):
            value = value[:, :, None, None]
        other[key] = value
    torch.save({"model": other}, tmp_path / "flat.pth")
    torch.save({"model_ema": source.state_dict(), "model": {}}, tmp_path / "ema.pth")
    for name in ("flat.pth", "ema.pth"):
        loaded = create_model("vmamba_nano", pretrained=tmp_path / name).eval()
        with torch.no_grad():
            assert torch.equal(loaded(x), source(x))


def test_what_others_pass_is_named() -> None:
    # pretrained=True, as timm has it, and a number as text ended in a TypeError.
    for value in (True, False):
        with pytest.raises(ConfigError, match=f"pretrained is {value}: it is the path of a file"):
            create_model("vim_nano", pretrained=value)
    with pytest.raises(ConfigError, match="num_classes must be an integer of at least 0, got '5'"):
        create_model("vim_nano", num_classes="5")
