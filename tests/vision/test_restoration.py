"""Restoration from clean images to restored files: learning, noise, baselines, tiles, depth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
import yaml
from PIL import Image

from longseq.core.errors import ConfigError, DataError
from longseq.core.shell.cli import main
from longseq.core.training.loading import load_task
from longseq.vision import Restoration, RestorationData
from longseq.vision.commands import DOMAIN
from longseq.vision.data.images import ArrayImages, FileImages
from longseq.vision.data.pixels import Reading
from longseq.vision.data.restoration import degrade
from longseq.vision.denoisers import PLAIN, RestorationComparison, plain_restoration, quality
from longseq.vision.models.serpent import enlarge
from longseq.vision.restore import restore

TINY = {"dims": [12, 8], "depths": [1, 1], "scans": [1], "patch": 1}


def scene(seed: int, side: int = 32) -> np.ndarray:
    """Plain shapes of several colours."""
    random = np.random.default_rng(seed)
    image = np.full((side, side, 3), random.integers(60, 200, 3))
    for _ in range(3):
        y, x = random.integers(0, side - 12, 2)
        image[y : y + 12, x : x + 12] = random.integers(60, 200, 3)
    return image.astype(np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for part, count in (("train", 6), ("valid", 1), ("test", 2)):
        (tmp_path / "set" / part).mkdir(parents=True)
        for i in range(count):
            image = Image.fromarray(scene(100 * len(part) + i))
            image.save(tmp_path / "set" / part / f"{i}.png")
    return tmp_path / "set"


def arguments(source: Path, steps: int, *more: str) -> list[str]:
    argv = ["vision", "fit", "--model=Restoration", "--data=RestorationData", "--name=r"]
    argv += [f"--data.source={source}", "--data.tile=16", "--data.batch_size=8"]
    argv += [f"--model.model_kwargs={TINY}", "--model.warmup_steps=2", "--model.lr=1e-2"]
    return [*argv, f"--trainer.max_steps={steps}", f"--trainer.val_check_interval={steps}", *more]


LAST = "outputs/vision/r/version_0/checkpoints/last.ckpt"


def test_it_learns_and_stands_beside_plain_filters(folder, workdir: Path, capsys) -> None:
    assert main(arguments(folder, 80)) == 0
    capsys.readouterr()
    assert main(["vision", "test", "--ckpt_path", LAST]) == 0
    out = capsys.readouterr().out
    assert "best baseline" in out and all(
        name in out for name in ("as_it_is", "bilinear", "median", "nl_means", "wavelet", "tv")
    )
    data = RestorationData(str(folder))
    (first, *_) = list(data.test_dataloader())
    image, clean = first["image"][0], first["target"][0]
    task = load_task(LAST, "vision")
    assert isinstance(task, Restoration)
    with torch.inference_mode():
        restored = task.eval()(image[None])[0]
    before, after = quality(image, clean), quality(restored, clean)
    assert before.psnr == pytest.approx(-20 * np.log10(0.098), abs=0.5)
    assert after.psnr > before.psnr + 3 and after.ssim > before.ssim


@pytest.mark.parametrize(
    "name", [name for name in sorted(DOMAIN.configs()) if name.startswith("restor")]
)
def test_every_shipped_configuration_trains(name: str, folder, workdir: Path) -> None:
    content = yaml.safe_load(DOMAIN.configs()[name].read_text())
    content["model"]["init_args"].update(model_kwargs=TINY)
    content["data"]["init_args"].update(source=str(folder), tile=16, batch_size=2)
    content["trainer"].update(max_steps=2, val_check_interval=2, logger=False)
    Path("small.yaml").write_text(yaml.safe_dump(content))
    argv = ["vision", "fit", "--config", "small.yaml", "--trainer.enable_checkpointing=false"]
    assert main(argv) == 0


def test_files_keep_their_depth_and_tiffs_are_restored_by_bands(
    folder, workdir: Path, monkeypatch, capsys
) -> None:
    for i in range(6):  # 16-bit grey in a range of its own
        grey = scene(100 * 5 + i).mean(2).astype(np.uint16) * 100 + 5000
        Image.fromarray(grey).save(folder / "train" / f"{i}.png")
    for part in ("valid", "test"):
        for path in (folder / part).iterdir():
            Image.fromarray(np.asarray(Image.open(path)).mean(2).astype(np.uint16) * 100).save(path)
    more = ["--data.channels=1", "--model.scale=2", "--data.scale=2", "--data.noise=0"]
    more.append("--model.lr=1e-6")
    assert main(arguments(folder, 1, *more)) == 0
    image = np.concatenate([scene(i).mean(2) for i in range(4)], 1).astype(np.uint16) * 100 + 5000
    tifffile.imwrite("a.tif", image, compression="zlib", rowsperstrip=5)
    Image.fromarray(image).save("a.png")
    predict = ["vision", "predict", "--ckpt_path", LAST, "--tile=24", "--overlap=8"]
    with monkeypatch.context() as patch:  # the TIFF is not read as a whole
        patch.setattr("longseq.vision.data.images.read_tiff", None)
        assert main([*predict, "a.tif", "--out=b.tif"]) == 0
    assert main([*predict, "a.png", "--out=b.png"]) == 0
    found = tifffile.imread("b.tif")
    assert found.dtype == np.uint16 and found.shape == (64, 256)
    assert np.array_equal(found, np.asarray(Image.open("b.png")))
    plain = enlarge(torch.from_numpy(image.astype(np.float32))[None, None], 2)[0, 0].numpy()
    assert np.abs(found - plain).mean() < 300  # after one step: nearly bicubic
    capsys.readouterr()
    for out, text in (("b.jpg", "must end in .png"), ("b.csv", "must end in .png")):
        assert main([*predict, "a.png", f"--out={out}"]) == 2
        assert text in capsys.readouterr().err
    assert main([*predict, "a.png", "--out=c.png", "--flip"]) == 2
    assert "is a Restoration" in capsys.readouterr().err
    Path("in").mkdir()
    Path("in/bad.png").write_bytes(b"no")
    Image.fromarray(image).save("in/a.png")
    tifffile.imwrite("in/a.tif", image)
    assert main([*predict, "in", "--out=./in"]) == 2 and len(list(Path("in").iterdir())) == 3
    assert "bad.png: is one of the images to restore" in capsys.readouterr().err
    assert main([*predict, "in", "--out=many"]) == 0
    assert "1 could not be read" in capsys.readouterr().out
    assert sorted(path.name for path in Path("many").iterdir()) == ["a.png.png", "a.tif.tif"]


@pytest.mark.parametrize("kept", [True, False])  # False: checkpoints of earlier versions
def test_colour_and_missing_pixels_of_16_bits_come_back_in_their_range(
    kept: bool, tmp_path: Path
) -> None:
    value = np.arange(32 * 20, dtype=np.uint16).reshape(32, 20) * 50 + 5000
    tifffile.imwrite(tmp_path / "colour.tif", np.stack([value] * 3, -1), photometric="rgb")
    holes = value.copy()
    holes[3, 4] = 0
    tag = [(42113, "s", 0, "0", True)]  # GDAL's no-data value
    tifffile.imwrite(tmp_path / "holes.tif", holes, extratags=tag)
    ranges = {"uint16": (0.0, 65535.0), "float": (5000.0, 37000.0)}
    reading = Reading(1, ranges=ranges, whole=kept)
    images = FileImages(tmp_path, ["colour.tif", "holes.tif"], [0, 0], ["a"], reading)
    task = Restoration(in_chans=1, model_kwargs=TINY).eval()
    with torch.no_grad():
        for weight in task.parameters():
            weight.zero_()  # gives back what it sees
    out = [tmp_path / "out" / name for name in images.names]
    assert [error for _, error in restore(task, images, out)] == ["", ""]
    colour, filled = (tifffile.imread(path) for path in out)
    assert colour.dtype == np.uint16 and np.abs(colour.astype(int) - value).max() <= 1
    whole = holes > 0
    assert filled.dtype == (np.uint16 if kept else np.float32)
    assert np.abs(filled.astype(float) - value)[whole].max() <= 1


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_what_lies_under_transparency_is_said(suffix: str, tmp_path: Path, capsys) -> None:
    solid = np.full((8, 8, 4), 255, np.uint8)
    clear = solid.copy()
    clear[:4] = 0
    arrays = {"solid": solid, "clear": clear, "clearer": clear}
    for name, array in arrays.items():
        path = tmp_path / f"{name}.{suffix}"
        if suffix == "png":
            Image.fromarray(array).save(path)
        else:
            tifffile.imwrite(path, array, photometric="rgb", extrasamples=["unassalpha"])
    task = Restoration(in_chans=3, model_kwargs=TINY).eval()
    with torch.no_grad():
        for weight in task.parameters():
            weight.zero_()
    names = [f"{name}.{suffix}" for name in arrays]
    for background, says in ((1.0, "over white"), (0.0, "over black"), (0.5, "brightness of 0.5")):
        images = FileImages(tmp_path, names, [0] * 3, ["a"], Reading(3, background=background))
        out = [tmp_path / "out" / f"{name}.png" for name in arrays]
        assert [error for _, error in restore(task, images, out)] == ["", "", ""]
        err = capsys.readouterr().err
        assert says in err and f"clear.{suffix} and 1 more" in err and "solid" not in err
        assert int(np.asarray(Image.open(out[1]))[0, 0, 0]) == round(255 * background)
    images = FileImages(tmp_path, names[:1], [0], ["a"], Reading(3))
    list(restore(task, images, out[:1]))
    assert "transparent" not in capsys.readouterr().err


def test_an_image_whose_result_is_no_number_is_not_written(tmp_path: Path) -> None:
    task = Restoration(in_chans=3, model_kwargs=TINY).eval()
    pictures = np.full((2, 16, 16, 3), 3e38, np.float32)
    pictures[0] = 1
    images = ArrayImages(pictures, [0] * 2, [], Reading(3, ranges={"float": (0, 1)}))
    good, bad = restore(task, images, [tmp_path / "a.tif", tmp_path / "b.tif"])
    assert good == (tmp_path / "a.tif", "") and good[0].is_file()
    assert bad[0] is None and "result is not a number" in bad[1]
    assert not (tmp_path / "b.tif").exists()


def test_batches_and_noise_are_functions_of_the_step(folder) -> None:
    data = RestorationData(str(folder), tile=40, batch_size=3, noise=[0.05, 0.2], scale=2)
    loader = data.train_dataloader()
    first, again = loader.dataset[5], loader.dataset[5]
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert first["image"].shape == (3, 3, 20, 20) and first["target"].shape == (3, 3, 40, 40)
    assert not torch.equal(first["image"], loader.dataset[6]["image"])
    assert (first["sigma"] >= 0.05).all() and (first["sigma"] <= 0.2).all()
    one, two = (list(RestorationData(str(folder)).val_dataloader()) for _ in range(2))
    assert torch.equal(one[0]["image"], two[0]["image"])


def test_degrading_is_what_it_says() -> None:
    clean = torch.rand(3, 40, 60)
    worse = degrade(clean, 2, 0.1, np.random.default_rng(0))
    assert worse.shape == (3, 20, 30)
    noise = worse - degrade(clean, 2, 0.0, np.random.default_rng(0))
    assert float(noise.std()) == pytest.approx(0.1, rel=0.05) and abs(float(noise.mean())) < 0.01
    flat = torch.full((1, 8, 8), 0.5)
    torch.testing.assert_close(degrade(flat, 4, 0, np.random.default_rng(0)), flat[:, :2, :2])


@pytest.mark.parametrize("name", sorted(PLAIN))
def test_plain_filters_keep_a_flat_image_and_enlarge(name: str) -> None:
    image = torch.full((3, 24, 17), 0.25)
    found = plain_restoration(name, image, 0.1, 1)
    torch.testing.assert_close(found, image, atol=1e-4, rtol=0)
    assert plain_restoration(name, torch.rand(1, 16, 16), 0.1, 2).shape == (1, 32, 32)
    if name not in ("as_it_is", "bilinear"):  # noise without edges: every filter takes most of it
        noisy = degrade(torch.full((3, 48, 48), 0.5), 1, 0.1, np.random.default_rng(1))
        least = {"median": 3.0, "wavelet": 4.0}.get(name, 6.0)
        gain = quality(plain_restoration(name, noisy, 0.1, 1), torch.full((3, 48, 48), 0.5)).psnr
        assert gain > quality(noisy, torch.full((3, 48, 48), 0.5)).psnr + least


def test_settings_are_chosen_on_the_validation_images(folder) -> None:
    data = RestorationData(str(folder))
    comparison = RestorationComparison(data)
    (row,) = comparison.baseline("median")
    scores = {value: comparison._mean("median", value, "valid").psnr for value in (3, 5)}
    assert row.state[1] == f"setting {max(scores, key=lambda v: scores[v])}"
    assert RestorationComparison.of_test(None, data) is None
    small = RestorationComparison(RestorationData(str(folder), scale=2, noise=0.0))
    assert list(small.at_test) == ["as_it_is", "bilinear"]
    assert [small.baseline(name)[0].model for name in small.at_test] == ["bicubic", "bilinear"]


def test_data_that_do_not_fit_are_named(folder, tmp_path: Path, workdir, capsys) -> None:
    for kwargs, text in (
        ({"noise": 0}, "nothing to restore"),
        ({"noise": [0.2, 0.1]}, "noise must be"),
        ({"tile": 33, "scale": 2}, "multiple of scale"),
    ):
        with pytest.raises(ConfigError, match=text):
            RestorationData(str(folder), **kwargs)
    with pytest.raises(DataError, match="no such folder"):
        RestorationData("none").setup()
    assert main(arguments(folder, 1, "--model.scale=2")) == 2
    assert "scale" in capsys.readouterr().err
    assert main(arguments(folder, 1, "--model.model_kwargs={dim: [8]}")) == 2
    assert "model_kwargs" in capsys.readouterr().err
    Image.fromarray(scene(0, 32)[:5]).save(folder / "test" / "0.png")
    assert len(list(RestorationData(str(folder)).test_dataloader())) == 1
    assert "at least 11" in capsys.readouterr().err
