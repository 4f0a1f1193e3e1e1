"""Segmentation from images with masks to masks of new images: learning, metrics, tiles, errors."""

from __future__ import annotations

import csv
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
from longseq.vision import Segmentation, SegmentationData
from longseq.vision.commands import DOMAIN
from longseq.vision.data.images import ArrayImages, FileImages
from longseq.vision.data.masks import IGNORED
from longseq.vision.data.pixels import Reading
from longseq.vision.segment import segment
from longseq.vision.segmentation import BoundaryF1, ForegroundDice, dice_loss

TINY = {"dims": [8, 8], "depths": [1, 1], "scans": [1]}


def scene(seed: int, side: int = 24, values=(0, 7, 200)):
    """A noisy image with a bright square and a red one, and its mask."""
    random = np.random.default_rng(seed)
    image, mask = random.integers(20, 60, (side, side, 3)), np.full((side, side), values[0])
    for value, tint in zip(values[1:], ((150, 150, 150), (150, 0, 0))):
        y, x = random.integers(0, side - 9, 2)
        image[y : y + 9, x : x + 9] = image[y : y + 9, x : x + 9] % 40 + np.array(tint)
        mask[y : y + 9, x : x + 9] = value
    return image.astype(np.uint8), mask.astype(np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for part, count in (("train", 12), ("valid", 2), ("test", 3)):
        for i in range(count):
            image, mask = scene(100 * len(part) + i)
            for kind, array in (("images", image), ("masks", mask)):
                path = tmp_path / "set" / part / kind / f"{i:02d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(path)
    return tmp_path / "set"


def arguments(source: Path, steps: int, *more: str) -> list[str]:
    argv = ["vision", "fit", "--model=Segmentation", "--data=SegmentationData"]
    argv += [f"--data.source={source}", "--data.tile=16", "--data.batch_size=4", "--name=s"]
    argv += [
        "--model.encoder=hybrid_unet",
        f"--model.encoder_kwargs={TINY}",
        "--model.warmup_steps=2",
        "--model.lr=1e-2",
    ]
    return [*argv, f"--trainer.max_steps={steps}", f"--trainer.val_check_interval={steps}", *more]


LAST = "outputs/vision/s/version_0/checkpoints/last.ckpt"


def test_it_learns_and_writes_masks_with_the_values_of_training(
    folder, workdir: Path, capsys
) -> None:
    assert main(arguments(folder, 60)) == 0
    assert main(["vision", "test", "--ckpt_path", LAST]) == 0
    task = load_task(LAST, "vision")
    assert task.values == [0, 7, 200] and task.preprocess["tile"] == 16
    assert (
        main(["vision", "predict", str(folder / "test/images"), "--ckpt_path", LAST, "--out=p"])
        == 0
    )
    capsys.readouterr()
    images = str(folder / "test/images")
    assert main(["vision", "predict", images, "--ckpt_path", LAST, "--out=f", "--flip"]) == 2
    assert "--flip: is for classes" in capsys.readouterr().err and not Path("f").exists()
    dices = []
    for i in range(3):
        found = np.asarray(Image.open(f"p/masks/{i:02d}.png"))
        truth = np.asarray(Image.open(folder / f"test/masks/{i:02d}.png"))
        assert set(np.unique(found)) <= {0, 7, 200} and found.shape == truth.shape
        dices += [
            2 * ((found == v) & (truth == v)).sum() / ((found == v).sum() + (truth == v).sum())
            for v in (7, 200)
        ]
        assert np.asarray(Image.open(f"p/overlays/{i:02d}.png")).shape == (24, 24, 3)
    assert np.mean(dices) > 0.8
    with Path("p/areas.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 and rows[0]["width"] == "24" and rows[0]["mask"] == "masks/00.png"
    assert sum(float(rows[0][f"share_{v}"]) for v in (0, 7, 200)) == pytest.approx(1, abs=1e-5)
    assert main(["vision", "predict", images, "--ckpt_path", LAST, "--out=f", "--tile=0"]) == 2
    assert "--tile must be an integer of at least 1" in capsys.readouterr().err
    drawn = (folder / "test/masks/00.png").read_bytes()  # the masks of training lie beside images
    beside = ["vision", "predict", images, "--ckpt_path", LAST, f"--out={folder / 'test'}"]
    assert main(beside) == 2 and (folder / "test/masks/00.png").read_bytes() == drawn
    assert "masks: lies beside the images and is not of predict" in capsys.readouterr().err
    for path in (folder / "test/masks").iterdir():
        path.unlink()
    (folder / "test/masks").rmdir()
    assert main(beside) == main(beside) == 0  # what predict wrote it may write again


def test_an_image_too_small_for_the_encoder_is_named_among_others(tmp_path: Path) -> None:
    task = Segmentation(encoder="unet", encoder_kwargs={"dims": [4, 4]}, num_classes=2).eval()
    task.facts = {"preprocess": {"tile": 16, "mean": [0.5], "std": [0.5]}, "values": [0, 1]}
    for name, height in (("a", 1), ("b", 20)):
        Image.fromarray(np.zeros((height, 20, 3), np.uint8)).save(tmp_path / f"{name}.png")
    images = FileImages(tmp_path, ["a.png", "b.png"], [0, 0], [], Reading(3))
    small, fits = segment(task, images, tmp_path / "out")
    assert "a.png: UNetEncoder" in small.error and "sides of at least 2" in small.error
    assert not fits.error and (tmp_path / "out/masks/b.png").exists()


@pytest.mark.parametrize(
    "name", [name for name in sorted(DOMAIN.configs()) if name.startswith("segment")]
)
def test_every_shipped_configuration_trains(name: str, folder, workdir: Path) -> None:
    content = yaml.safe_load(DOMAIN.configs()[name].read_text())
    model, data = content["model"]["init_args"], content["data"]["init_args"]
    small = TINY if "hybrid" in model["encoder"] else {"dims": [4, 4]}
    model.update(num_classes=3, encoder_kwargs=small)
    data.update(source=str(folder), tile=16, batch_size=2)
    content["trainer"].update(max_steps=2, val_check_interval=2, logger=False)
    Path("small.yaml").write_text(yaml.safe_dump(content))
    argv = ["vision", "fit", "--config", "small.yaml", "--trainer.enable_checkpointing=false"]
    assert main(argv) == 0


def test_a_tiff_is_segmented_by_bands_as_it_is_whole(folder, workdir: Path, monkeypatch) -> None:
    assert main(arguments(folder, 2)) == 0
    image = np.concatenate([scene(i)[0] for i in range(4)], 1)
    Path("in").mkdir()
    Path("many").mkdir()
    tifffile.imwrite("in/a.tif", image, compression="zlib", rowsperstrip=5, photometric="rgb")
    Image.fromarray(image).save("many/a.png")
    Image.fromarray(image).save("many/a.bmp")  # of the same stem: both keep their endings
    Path("many/bad.png").write_bytes(b"no")
    with monkeypatch.context() as patch:  # the TIFF is not read as a whole
        patch.setattr("longseq.vision.data.images.read_tiff", None)
        assert main(["vision", "predict", "in", "--ckpt_path", LAST, "--out=t"]) == 0
    assert main(["vision", "predict", "many", "--ckpt_path", LAST, "--out=m", "--no_overlays"]) == 0
    found = tifffile.imread("t/masks/a.tif")
    assert found.dtype == np.uint8 and found.shape == image.shape[:2]
    for name in ("a.png.png", "a.bmp.png"):
        assert np.array_equal(found, np.asarray(Image.open(f"m/masks/{name}")))
    assert not Path("m/overlays").exists()
    assert "not an image" in Path("m/areas.csv").read_text()


def test_an_image_whose_result_is_no_number_has_no_mask(tmp_path: Path) -> None:
    task = Segmentation(encoder="unet", encoder_kwargs={"dims": [4, 4]}, num_classes=2)
    task.facts = {"preprocess": {"tile": 16, "mean": [0.5], "std": [0.5]}, "values": [0, 1]}
    pictures = np.full((2, 16, 16, 3), 3e38, np.float32)
    pictures[0] = 1
    images = ArrayImages(pictures, [0] * 2, [], Reading(3, ranges={"float": (0, 1)}))
    good, bad = segment(task.eval(), images, tmp_path)
    assert sum(good.shares) == pytest.approx(1) and not good.error
    assert "result is not a number" in bad.error and not bad.mask
    assert len(list((tmp_path / "masks").rglob("*.png"))) == 1


def test_batches_are_functions_of_the_step_and_resume(folder) -> None:
    data = SegmentationData(str(folder), tile=32, batch_size=3)
    loader = data.train_dataloader()
    first, again = loader.dataset[5], loader.dataset[5]
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert first["image"].shape == (3, 3, 32, 32)
    # Beyond the image's 24 pixels nothing counts, whichever way it was turned.
    assert ((first["target"] == IGNORED).sum((1, 2)) == 32 * 32 - 24 * 24).all()
    assert not torch.equal(first["image"], loader.dataset[6]["image"])


def test_an_image_and_its_mask_turn_together(folder) -> None:
    data = SegmentationData(str(folder), tile=16, batch_size=64, mean=[0.0], std=[1.0])
    batch = data.train_dataloader().dataset[0]
    bright, red = (batch["target"] == 1), (batch["target"] == 2)
    green = batch["image"][:, 1] * 255
    assert bright.any() and (green[bright] >= 150).all()
    assert red.any() and (green[red] < 60).all()


def test_the_metrics_are_their_definitions() -> None:
    target = torch.tensor([[[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 1, -1]]])
    preds = torch.tensor([[[0, 1, 1, 1], [0, 0, 1, 1], [0, 2, 1, 0]]])
    dice = ForegroundDice(4)  # the fourth class is in neither and does not count
    dice.update(preds, target)
    assert float(dice.compute()) == pytest.approx((2 * 5 / 11 + 2 * 1 / 3) / 2)
    empty = ForegroundDice(3)
    empty.update(torch.zeros(1, 2, 2, dtype=torch.int64), torch.zeros(1, 2, 2, dtype=torch.int64))
    assert torch.isnan(empty.compute())
    square = torch.zeros(1, 20, 20, dtype=torch.int64)
    square[:, 5:12, 5:12] = 1
    for shift, expected in ((0, 1.0), (2, 1.0), (8, 0.3)):
        border = BoundaryF1()
        border.update(square.roll(shift, 2), square)
        assert float(border.compute()) == 1.0 if expected == 1 else float(border.compute()) < 0.6
    nothing = BoundaryF1()
    nothing.update(square * 0, square * 0)
    assert float(nothing.compute()) == 1.0
    nothing.update(square * 0, square)
    assert float(nothing.compute()) == 0.0


def test_the_dice_loss_is_its_formula_and_ignores_what_does_not_count() -> None:
    torch.manual_seed(0)
    logits, target = torch.randn(2, 3, 4, 4, dtype=torch.float64), torch.randint(0, 2, (2, 4, 4))
    target[0, 0] = IGNORED
    chances, valid = logits.softmax(1), target >= 0
    terms = []
    for k in range(2):  # class 2 is not in the batch
        p, t = chances[:, k][valid], (target == k)[valid].double()
        terms.append(2 * (p * t).sum() / (p.sum() + t.sum()))
    assert float(dice_loss(logits, target)) == pytest.approx(1 - float(sum(terms)) / 2)
    none = torch.full((1, 2, 2), IGNORED)
    assert float(dice_loss(torch.randn(1, 3, 2, 2), none)) == 0.0


def test_class_weights_weigh_the_pixels() -> None:
    torch.manual_seed(0)
    kwargs = {"encoder": "unet", "encoder_kwargs": {"dims": [4, 4]}, "dice_weight": 0.0}
    logits, target = (
        torch.randn(1, 2, 3, 3),
        torch.tensor([[[0, 0, 1], [0, IGNORED, 1], [0, 0, 0]]]),
    )
    weighted = Segmentation(class_weights=[1.0, 3.0], **kwargs)._loss(logits, target)
    expected = torch.nn.functional.cross_entropy(
        logits, target, torch.tensor([1.0, 3.0]), ignore_index=IGNORED
    )
    torch.testing.assert_close(weighted, expected)
    with pytest.raises(ConfigError, match="class_weights must be 2 numbers"):
        Segmentation(class_weights=[1.0], **kwargs)


def test_data_that_do_not_fit_are_named(folder, tmp_path: Path, capsys, workdir) -> None:
    image = folder / "train/images/03.png"
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(image)
    pairs = SegmentationData(str(folder)).pairs["train"]
    with pytest.raises(DataError, match=r"03\.png: has 24 × 24 pixels, its image .* has 9 × 9"):
        pairs.pair(3)
    with pytest.raises(ConfigError, match=r"data\.names has 1 names"):
        SegmentationData(str(folder), names=["a"]).setup()
    assert (
        main(
            [
                "vision",
                "fit",
                "--model=Segmentation",
                "--data=SegmentationData",
                "--data.source=none",
                "--trainer.max_steps=1",
            ]
        )
        == 2
    )
    assert "none: no such folder" in capsys.readouterr().err
    binary = SegmentationData(str(folder), binary=True, names=["ground", "thing"])
    assert binary.classes == ["ground", "thing"] and binary.values == [0, 1]
