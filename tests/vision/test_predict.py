"""Prediction from the checkpoint alone, over folders, zips and IDX files; bad images are
reported."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from longseq.core.errors import ConfigError
from longseq.core.shell.cli import main
from longseq.vision.data.images import ArrayImages
from longseq.vision.data.pixels import Reading
from longseq.vision.predict import Prediction, classify, open_images, write_predictions
from longseq.vision.task import ImageClassifier

CLASSES = ["bright", "dark", "stripes"]
HOW = {"img_size": 12, "channels": 3, "mean": [0.5], "std": [0.5], "crop_ratio": 1.0}


@pytest.fixture
def task() -> ImageClassifier:
    torch.manual_seed(0)
    made = ImageClassifier("vmamba_pico", 3, 3, 12, {"dims": [8], "depths": [1]})
    made.facts = {"classes": CLASSES, "preprocess": HOW}
    return made.eval()


def test_neither_batches_nor_the_container_change_a_prediction(task, make_folder, make_zip) -> None:
    folder, packed = (open_images(made, Reading(3)) for made in (make_folder(4), make_zip(4)))
    whole = list(classify(task, folder, 64))
    for images, size in ((folder, 1), (folder, 5), (packed, 64)):
        for a, b in zip(classify(task, images, size), whole, strict=True):
            assert a.file == b.file and a.probabilities == pytest.approx(b.probabilities, rel=1e-5)
    assert all(sum(item.probabilities) == pytest.approx(1) for item in whole)


def test_a_mirror_image_has_the_same_flipped_prediction(task) -> None:
    array = np.random.default_rng(0).integers(0, 256, (3, 12, 12, 3), np.uint8)
    plain, mirrored = (ArrayImages(a, [0] * 3, [], Reading(3)) for a in (array, array[:, :, ::-1]))

    def logits(images, flip):
        task.mirrored = flip
        return np.log([one.probabilities for one in classify(task, images, 2)])

    single = logits(plain, False), logits(mirrored, False)
    assert np.abs(single[0] - single[1]).max() > 1e-6
    mean = sum(single) / 2  # of logits; their softmax is what is wanted
    mean -= np.log(np.exp(mean).sum(1, keepdims=True))
    for images in (plain, mirrored):
        np.testing.assert_allclose(logits(images, True), mean, atol=1e-5)


def test_a_temperature_divides_the_logits(task, make_folder) -> None:
    images = open_images(make_folder(2), Reading(3))
    plain, warm = (
        np.array([one.probabilities for one in classify(task, images, temperature=t)])
        for t in (1.0, 3.0)
    )
    raised = plain ** (1 / 3)
    np.testing.assert_allclose(warm, raised / raised.sum(1, keepdims=True), rtol=1e-9)
    with pytest.raises(ConfigError, match="temperature"):
        list(classify(task, images, temperature=0.0))


def test_bad_images_keep_their_rows(task, make_folder) -> None:
    folder = make_folder(2, ("",))
    (folder / "dark/00.png").write_bytes(b"")
    (folder / "dark/01.png").write_text("no image")
    (folder / "notes.txt").write_text("left out by name")
    found = {item.file: item for item in classify(task, open_images(folder, Reading(3)), 4)}
    assert len(found) == 6
    assert "empty" in found["dark/00.png"].error and "known format" in found["dark/01.png"].error
    assert sum(bool(item.probabilities) for item in found.values()) == 4


def test_an_image_whose_result_is_no_number_has_no_label(task) -> None:
    images = np.full((2, 12, 12, 3), 3e38, np.float32)
    images[0] = 1
    reading = Reading(3, ranges={"float": (0, 1)})
    good, bad = classify(task, ArrayImages(images, [0] * 2, [], reading), 2)
    assert sum(good.probabilities) == pytest.approx(1) and not good.error
    assert not bad.probabilities and "result is not a number" in bad.error


def test_csv_and_parquet_hold_the_same(tmp_path: Path) -> None:
    rows = [Prediction("a, b.png", [0.2, 0.7, 0.1]), Prediction("c.png", [], "c.png: empty")]
    write_predictions(tmp_path / "p.csv", rows, CLASSES)
    write_predictions(tmp_path / "p.parquet", rows, CLASSES)
    text, table = pd.read_csv(tmp_path / "p.csv"), pd.read_parquet(tmp_path / "p.parquet")
    columns = ["file", "label", "probability", "p_bright", "p_dark", "p_stripes", "error"]
    assert list(text.columns) == list(table.columns) == columns
    assert text["label"].tolist()[0] == table["label"].tolist()[0] == "dark"
    assert text["probability"].iloc[0] == pytest.approx(0.7) and table["p_bright"].iloc[0] == 0.2
    assert pd.isna(text["label"].iloc[1]) and text["error"].iloc[1] == "c.png: empty"
    with pytest.raises(ConfigError, match=r"\.csv, \.tsv or \.parquet"):
        write_predictions(tmp_path / "p.txt", rows, CLASSES)


@pytest.fixture
def checkpoint(make_zip, tmp_path: Path) -> Path:
    argv = [
        "vision",
        "fit",
        f"--data.source={make_zip(8)}",
        "--data.img_size=12",
        "--data.batch_size=8",
    ]
    argv += [
        "--model.model=vmamba_pico",
        "--model.model_kwargs={dims: [8], depths: [1]}",
        "--name=r",
    ]
    argv += [
        "--model.num_classes=3",
        "--model.ema_decay=0.9",
        f"--trainer.default_root_dir={tmp_path}",
    ]
    assert main([*argv, "--trainer.max_steps=2", "--trainer.val_check_interval=2"]) == 0
    return tmp_path / "r/version_0/checkpoints/last.ckpt"


def test_the_command_line(
    checkpoint: Path, make_folder, make_idx, tmp_path: Path, capsys, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = make_folder(3, ("",), "new")
    (folder / "dark/00.png").write_bytes(b"")
    base = ["vision", "predict", str(folder), "--ckpt_path", str(checkpoint), "--out"]
    capsys.readouterr()
    assert main([*base, "p.csv"]) == 0
    out = capsys.readouterr()
    assert (
        "9 images, 1 could not be read" in out.out and "dark/00.png: the image is empty" in out.err
    )
    with Path("p.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows][:2] == ["bright/00.png", "bright/01.png"]
    good = [row for row in rows if not row["error"]]
    assert len(good) == 8 and {row["label"] for row in good} <= set(CLASSES)
    assert main([*base, "f.csv", "--flip"]) == 0 and len(pd.read_csv("f.csv")) == 9
    for name, option in (("m", "true"), ("n", "false")):
        assert main([*base, f"{name}.csv", "--model.mirrored", option]) == 0
    texts = [Path(f"{name}.csv").read_text() for name in "fmnp"]
    assert texts[0] == texts[1] != texts[2] == texts[3]
    assert main([*base, "p.parquet"]) == 0 and len(pd.read_parquet("p.parquet")) == 9
    Path("stacks").mkdir()
    frames = [Image.open(folder / f"{name}/01.png") for name in ("bright", "stripes")]
    frames[0].save("stacks/a.tif", save_all=True, append_images=frames[1:])
    frames[0].save("stacks/a.gif", save_all=True, append_images=frames[1:])
    stacks = ["vision", "predict", "stacks", *base[3:], "s.csv"]
    assert main(stacks) == 2
    assert "predict --page (0 is the first)" in capsys.readouterr().err
    for page in range(2):
        assert main([*stacks, "--page", str(page)]) == 0
        names = ["bright", "stripes"][page]
        first = pd.read_csv("p.csv").set_index("file").loc[f"{names}/01.png", "p_dark"]
        found = pd.read_csv("s.csv").set_index("file")["p_dark"]
        assert found["a.tif"] == pytest.approx(first, abs=1e-5)
    assert main([*stacks, "--page", "-1"]) == 2
    assert "--page must be at least 0" in capsys.readouterr().err
    assert main([*stacks, "--page", "2"]) == 2
    one, idx = folder / "bright/00.png", make_idx(5, 2) / "train-images-idx3-ubyte"
    for source, count in ((one, 1), (idx, 5)):
        assert main(["vision", "predict", str(source), *base[3:], "q.csv"]) == 0
        assert len(pd.read_csv("q.csv")) == count

    bad = tmp_path / "bad"
    bad.mkdir()
    cases = {"holds no images": [str(bad)], "no such file": ["none"]}
    for message, source in cases.items():
        assert main(["vision", "predict", *source, *base[3:], "p.csv"]) == 2
        assert message in capsys.readouterr().err
    (bad / "a.png").write_text("no image")
    assert main(["vision", "predict", str(bad), *base[3:], "p.csv"]) == 2
    assert "none of its 1 images can be read" in capsys.readouterr().err
    assert main([*base, "p.txt"]) == 2
    assert (
        main(["vision", "predict", str(folder), "--ckpt_path", "none.ckpt", "--out", "p.csv"]) == 2
    )
    with Path("p.csv").open() as file:
        assert list(csv.DictReader(file)) == rows  # the earlier output is intact
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
