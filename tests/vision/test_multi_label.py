"""Any number of labels per image, from fit over test to predict."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchmetrics.functional.classification import binary_average_precision

from longseq.core.shell.cli import main
from longseq.core.training.loading import load_task
from longseq.vision.multi_label import ByLabel, MultiLabelClassifier
from longseq.vision.multi_label_compare import LabelRegression, mean_average_precision

LAST = "outputs/vision/m/version_0/checkpoints/last.ckpt"


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Images with a bright left half, a bright right half, both or neither."""
    random, rows = np.random.default_rng(0), ["file,part,left,right"]
    for i in range(72):
        left, right = (i >> 0) & 1, (i >> 1) & 1
        image = random.integers(0, 60, (12, 12, 3))
        image[:, :6] += 150 * left
        image[:, 6:] += 150 * right
        Image.fromarray(image.astype(np.uint8)).save(tmp_path / f"{i:02d}.png")
        part = ("train", "train", "train", "train", "valid", "test")[i // 4 % 6]
        rows.append(f"{i:02d}.png,{part},{left},{right}")
    path = tmp_path / "labels.csv"
    path.write_text("\n".join(rows) + "\n")
    return path


def test_from_fit_to_predict(table: Path, workdir: Path, capsys) -> None:
    argv = ["vision", "fit", "--model=MultiLabelClassifier", "--data=MultiLabelData", "--name=m"]
    argv += [f"--data.source={table}", "--data.img_size=12", "--data.batch_size=16"]
    argv += ["--data.augment=none", "--model.model=resnet8", "--model.lr=1e-2"]
    argv += ["--model.model_kwargs={dims: [8], depths: [1]}", "--model.warmup_steps=2"]
    assert main([*argv, "--trainer.max_steps=60", "--trainer.val_check_interval=60"]) == 0
    assert "val/map" in capsys.readouterr().err
    assert main(["vision", "test", "--ckpt_path", LAST]) == 0
    out = capsys.readouterr().out
    assert "chance" in out and "logistic regression" in out and "best baseline" in out
    label = next(line for line in out.splitlines() if line.startswith("left"))
    assert float(label.split()[1]) > 0.9 and label.split()[3] == "0.5000"
    task = load_task(LAST, "vision")
    assert isinstance(task, MultiLabelClassifier) and task.classes == ["left", "right"]
    folder = str(table.parent)
    assert main(["vision", "predict", folder, "--ckpt_path", LAST, "--out=p.csv", "--flip"]) == 0
    assert main(["vision", "predict", folder, "--ckpt_path", LAST, "--out=p.csv"]) == 0
    with Path("p.csv").open() as file:
        rows = {row["file"]: row for row in csv.DictReader(file)}
    right = sum(
        rows[f"{i:02d}.png"]["labels"]
        == ";".join(n for n, on in (("left", i & 1), ("right", i >> 1 & 1)) if on)
        for i in range(72)
    )
    assert right >= 65 and 0 <= float(rows["00.png"]["p_left"]) <= 1
    capsys.readouterr()
    more = ["--temperature=2"]
    assert main(["vision", "predict", folder, "--ckpt_path", LAST, "--out=q.csv", *more]) == 2
    assert "one class per image" in capsys.readouterr().err
    assert main(["vision", "report", "--ckpt_path", LAST, "--out=r"]) == 2
    assert main(["vision", "compare", "--models", LAST, "--out=c.csv"]) == 2


def test_other_data_are_refused(make_zip, workdir: Path, capsys) -> None:
    argv = ["vision", "fit", "--model=MultiLabelClassifier", f"--data.source={make_zip(4)}"]
    argv += ["--data.batch_size=4", "--data.img_size=12", "--trainer.max_steps=1"]
    assert main([*argv, "--model.model_kwargs={dims: [8], depths: [1]}"]) == 2
    assert "needs --data MultiLabelData" in capsys.readouterr().err


def test_the_loss_is_the_binary_cross_entropy_of_every_label() -> None:
    torch.manual_seed(0)
    task = MultiLabelClassifier(
        "resnet8", 3, model_kwargs={"dims": [4], "depths": [1]}, label_smoothing=0.2
    )
    batch = {"image": torch.randn(4, 3, 8, 8), "target": torch.randint(0, 2, (4, 3)).float()}
    for mode, smooth in ((False, 0.0), (True, 0.2)):
        task.train(mode)
        found = task.compute(batch)
        p = torch.sigmoid(found["pair"][0])
        wanted = batch["target"] * (1 - smooth) + smooth / 2
        expected = -(wanted * p.log() + (1 - wanted) * (1 - p).log()).mean()
        torch.testing.assert_close(found["loss"], expected)
    torch.testing.assert_close(found["preds"], p.double())


def test_scores_by_label_are_those_of_each_alone() -> None:
    torch.manual_seed(1)
    preds, target = torch.rand(20, 3), torch.randint(0, 2, (20, 3))
    target[:, 2] = 0
    metric = ByLabel(3, average="macro")
    assert metric.scores() == []
    metric.update(preds[:7], target[:7])
    metric.update(preds[7:], target[7:])
    rows = metric.scores()
    for k in range(2):
        expected = float(binary_average_precision(preds[:, k], target[:, k]))
        assert rows[k][0] == pytest.approx(expected, abs=1e-6)
        hit = ((preds[:, k] >= 0.5) & (target[:, k] == 1)).sum()
        f1 = 2 * hit / ((preds[:, k] >= 0.5).sum() + target[:, k].sum())
        assert rows[k][1] == pytest.approx(float(f1), abs=1e-6)
        assert rows[k][2] == int(target[:, k].sum())
    assert np.isnan(rows[2][0]) and rows[2][2] == 0
    mean = mean_average_precision(preds.numpy(), target.numpy().astype(np.float32))
    assert mean == pytest.approx((rows[0][0] + rows[1][0]) / 2, abs=1e-6)


def test_the_regression_takes_labels_that_all_have() -> None:
    random = np.random.default_rng(0)
    x = random.normal(size=(40, 3)).astype(np.float32)
    y = np.stack([x[:, 0] > 0, np.ones(40), np.zeros(40)], 1).astype(np.float32)
    found = LabelRegression(1.0).fit(x, y).predict(x)
    assert ((found[:, 0] > 0.5) == (y[:, 0] > 0)).mean() > 0.9
    assert (found[:, 1] == 1).all() and (found[:, 2] == 0).all()
