"""Exported models give the model's results, say what they need, and are refused where they do
not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from longseq.bench import vision_export
from longseq.core.errors import ConfigError, DataError
from longseq.core.shell.cli import main
from longseq.vision import ImageClassifier, Segmentation, create_model
from longseq.vision import export as module
from longseq.vision.export import WithPixels, export, export_task
from longseq.vision.models import registry
from longseq.vision.task import Mirrored

onnxruntime = pytest.importorskip("onnxruntime", reason='pip install "longseq[export]"')

SMALL = {
    "hybrid_pico": ({"dims": [4, 8], "depths": [1, 1], "scans": [1]}, (12, 15)),
    "vmamba_pico": ({"dims": [8], "depths": [1]}, (8,)),
    "vim_nano": ({"depth": 1, "d_model": 16, "img_size": 8}, (12,)),
}

# One block of every kind, on as few positions as leave windows and grids incomplete: the exporter's
# time grows with the number of operations.
FAMILIES: dict[str, tuple[dict[str, Any], int]] = {
    "mambavision_tiny": (
        {"dim": 8, "stem_dim": 8, "depths": (1, 1, 2), "n_heads": (1, 1, 2), "windows": (4, 4, 2)},
        18,
    ),
    "mobilemamba_t2": (
        {"dims": (32,), "depths": (1,), "scanned": (0.8,), "convolved": (0.2,), "sizes": (3,)},
        32,
    ),
    "groupmamba_tiny": (
        {"dims": (16,), "depths": (1,), "mlp_ratios": (1,), "stem_dim": 8},
        8,
    ),
    "efficientvmamba_tiny": ({"dims": (16, 16), "depths": (1, 1), "scans": 1}, 12),
    "mhsvm_nano": ({"dims": (16,), "depths": (1,), "d_state": 2}, 8),
    "vir_nano": ({"depth": 1, "d_model": 16, "n_heads": 2, "img_size": 32}, 12),
    "inceptionnext_atto": ({"dims": (8, 16), "depths": (1, 1), "mlp_ratios": (1, 1)}, 32),
    "dinat_mini": (
        {"dim": 8, "depths": (2,), "n_heads": (1,), "dilations": (2,), "kernel": 3},
        16,
    ),
    "favit_b0": (
        {"dims": (16, 16), "depths": (1, 1), "n_heads": (1, 1), "mlp_ratios": (1, 1)}
        | {"strides": (2, 1)},
        32,
    ),
}


def model(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    made = create_model(name, num_classes=5, **SMALL[name][0])
    return WithPixels(made, [0.4, 0.5, 0.6], [0.2, 0.3, 0.2]).eval()


@pytest.mark.parametrize("name", sorted(SMALL))
def test_onnxruntime_gives_the_same_logits(name: str, tmp_path: Path) -> None:
    made = model(name)
    for side in SMALL[name][1]:
        path = tmp_path / f"{side}.onnx"
        assert export(made, path, (3, side, side), {"classes": ["a"]}) < 1e-5
        session = onnxruntime.InferenceSession(path)
        notes = session.get_modelmeta().custom_metadata_map["longseq"]
        assert json.loads(notes) == {"classes": ["a"]}
        x = torch.rand(1, 3, side, side)
        (found,) = session.run(None, {"images": x.numpy()})
        with torch.no_grad():
            np.testing.assert_allclose(found, made(x).numpy(), atol=1e-5)


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_every_family_exports(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    kwargs, side = FAMILIES[name]
    made = create_model(name, num_classes=5, **kwargs)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    path, x = tmp_path / "a.onnx", torch.rand(1, 3, side, side)
    difference = export(made, path, (3, side, side))
    (found,) = onnxruntime.InferenceSession(path).run(None, {"images": x.numpy()})
    with torch.no_grad():
        expected = made(x).numpy()
    print(f"{name} {side}: {difference / np.abs(expected).max():.1e}")
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


def test_what_onnx_has_no_form_for_is_named(tmp_path: Path) -> None:
    class Airy(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.special.airy_ai(x).mean((2, 3))

    with pytest.raises(ConfigError, match=r"no ONNX form .*airy.*\.pt2"):
        export(Airy(), tmp_path / "a.onnx", (3, 4, 4))
    assert not list(tmp_path.iterdir())


def test_the_bench_says_what_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def check(name: str, pixels: int) -> tuple[float, float]:
        if pixels > 32:
            raise ConfigError("mlstm cannot be exported")
        return 1.0, 2e-8

    monkeypatch.setattr(vision_export, "check", check)
    assert vision_export.main(["--models", "vit*", "--largest", "2"]) == 1
    said = capsys.readouterr().out
    assert "difference 2.0e-08" in said and "45 px refused: mlstm cannot be exported" in said
    assert "left out" in said


def test_no_registered_family_is_forgotten() -> None:
    for file in registry._FILES:
        assert set(file.PRESETS) & set(FAMILIES), f"{file.__name__}: no export is tested"


def test_a_torch_program_needs_no_operator_of_ours(tmp_path: Path) -> None:
    made, path = model("hybrid_pico"), tmp_path / "m.pt2"
    assert export(made, path, (3, 12, 12), {"classes": ["a", "b"]}) < 1e-5
    extra = {"longseq": ""}
    with path.open("rb") as file:
        program = torch.export.load(file, extra_files=extra)
    assert json.loads(extra["longseq"])["classes"] == ["a", "b"]
    assert not [n for n in program.graph.nodes if "longseq" in str(n.target)]


def test_int8_is_smaller_and_near(tmp_path: Path) -> None:
    made = create_model("vit_pico", num_classes=5, n_layers=1, d_model=96, img_size=8).eval()
    path = tmp_path / "a.onnx"
    assert export(made, path, (3, 8, 8), int8=True) < 0.05
    assert path.stat().st_size < 2.5 * sum(p.numel() for p in made.parameters())


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("hybrid_pico", (("onnx", 12), ("onnx", 15))),
        ("vim_nano", (("pt2", 12),)),
    ],
)
def test_models_with_mirror_images_export(
    name: str, files: tuple[tuple[str, int], ...], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    kwargs = {"img_size": 12, **SMALL[name][0]}
    task = ImageClassifier(name, 5, model_kwargs=kwargs, mirrored=True).eval()
    task.classes = list("abcde")
    task.preprocess = {"img_size": 12, "mean": [0.5], "std": [0.5]}
    for suffix, size in files:
        path = tmp_path / f"{size}.{suffix}"
        shape, difference = export_task(task, path, size)
        assert shape == (3, size, size) and difference < 1e-5
        x = torch.rand(1, 3, size, size)
        with torch.no_grad():
            views = [task.model((one - 0.5) / 0.5) for one in (x, x.flip(3))]
            assert not torch.allclose(*views, atol=1e-4)
            if suffix == "onnx":
                session = onnxruntime.InferenceSession(path)
                found = torch.from_numpy(session.run(None, {"images": x.numpy()})[0])
                notes = session.get_modelmeta().custom_metadata_map["longseq"]
                assert json.loads(notes)["mirrored"] is True
            else:
                found = torch.export.load(path).module()(x)
        mean = sum(views) / 2
        torch.testing.assert_close(found, mean, rtol=0, atol=1e-4 * float(mean.abs().max()))


def test_int8_of_mirror_images_is_smaller_too(tmp_path: Path) -> None:
    made = create_model("vit_pico", num_classes=5, n_layers=1, d_model=96, img_size=8).eval()
    path = tmp_path / "a.onnx"
    assert export(Mirrored(made), path, (3, 8, 8), int8=True) < 0.05
    assert path.stat().st_size < 2.5 * sum(p.numel() for p in made.parameters())


def test_a_wrong_file_is_not_left_behind(tmp_path: Path, monkeypatch) -> None:
    made, path = model("hybrid_pico"), tmp_path / "m.pt2"
    monkeypatch.setattr(module, "_torch_runner", lambda path: lambda x: torch.zeros(len(x), 5))
    with pytest.raises(DataError, match="logits differ by"):
        export(made, path, (3, 12, 12))
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ConfigError, match=r"must end in \.onnx or \.pt2"):
        export(made, tmp_path / "m.pt", (3, 12, 12))
    with pytest.raises(ConfigError, match="int8 needs"):
        export(made, path, (3, 12, 12), int8=True)


def test_tasks_are_exported_with_what_they_learnt(tmp_path: Path) -> None:
    kwargs, (side, *_) = SMALL["hybrid_pico"]
    task = ImageClassifier("hybrid_pico", 2, img_size=side, model_kwargs=kwargs).eval()
    with pytest.raises(ConfigError, match="never fitted"):
        export_task(task, tmp_path / "a.onnx")
    task.classes = ["a", "b"]
    task.preprocess = {"img_size": side, "mean": [0.5], "std": [0.5]}
    shape, difference = export_task(task, tmp_path / "a.pt2")
    assert shape == (3, side, side) and difference < 1e-5
    segmentation = Segmentation("unet", 2, encoder_kwargs={"dims": [4, 4]}).eval()
    segmentation.classes, segmentation.values = ["0", "1"], [0, 255]
    segmentation.preprocess = {"tile": 8, "mean": [0.5], "std": [0.5]}
    shape, _ = export_task(segmentation, tmp_path / "s.pt2", 10)
    assert shape == (3, 10, 10)
    with (tmp_path / "s.pt2").open("rb") as file:
        program = torch.export.load(file).module()
    assert program(torch.rand(4, 3, 10, 10)).shape == (4, 2, 10, 10)


def test_published_weights_predict_and_export_without_training(
    workdir: Path, capsys, monkeypatch
) -> None:
    from PIL import Image

    from longseq.vision.models.pyramid import IMAGENET, ImagePreset
    from longseq.vision.models.vmamba import VMamba

    sizes = {"dims": (8,), "depths": (1,), "num_classes": 7}
    small = ImagePreset(VMamba, sizes, "small", {**IMAGENET, "img_size": 16})
    monkeypatch.setitem(registry.MODELS._things, "vmamba_tiny", small)
    torch.manual_seed(0)
    made = create_model("vmamba_tiny").eval()
    torch.save({"model": made.state_dict()}, "w.pth")
    Path("in").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (18, 18, 3), np.uint8)
    Image.fromarray(pixels).save("in/a.png")
    argv = ["vision", "predict", "in", "--ckpt_path", "w.pth", "--model", "vmamba_tiny"]
    assert main([*argv, "--out", "p.csv"]) == 0
    header, row = Path("p.csv").read_text().splitlines()
    assert header.count("p_") == 7
    x = torch.from_numpy(pixels[1:17, 1:17]).permute(2, 0, 1)[None] / 255
    mean, std = (torch.tensor(registry.IMAGENET[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        expected = torch.softmax(made((x - mean) / std), 1)[0]
    found = [float(value) for value in row.split(",")[3:10]]
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)
    argv = ["vision", "export", "--ckpt_path", "w.pth", "--model", "vmamba_tiny", "--out", "m.pt2"]
    assert main(argv) == 0 and "largest difference" in capsys.readouterr().out
    assert (
        main(["vision", "export", "--ckpt_path", "w.pth", "--model", "unet", "--out", "m.pt2"]) == 2
    )
