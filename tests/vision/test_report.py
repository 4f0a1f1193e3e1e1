"""Scores by class are their definitions, and the report is written from a checkpoint alone."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from longseq.core.shell.cli import main
from longseq.vision.report import Judged, class_rows


def test_rows_are_their_definitions() -> None:
    labels, guesses = np.array([0, 0, 0, 1, 1, 2]), np.array([0, 0, 1, 1, 0, 1])
    judged = Judged(labels, np.eye(4)[guesses], np.arange(6))
    assert judged.confusion.tolist() == [[2, 1, 0, 0], [1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]]
    rows = class_rows(judged, ["a", "b", "c", "d"])
    assert rows[0] == ["a", 3, 2 / 3, 2 / 3, 2 / 3, "b"]
    assert rows[1] == ["b", 2, 1 / 2, 1 / 3, 2 / 5, "a"]
    assert rows[2] == ["c", 1, 0.0, None, 0.0, "b"]
    assert rows[3] == ["d", 0, None, None, None, None]  # neither there nor predicted


def test_the_report_needs_only_the_checkpoint(workdir: Path, make_zip, capsys) -> None:
    argv = ["vision", "fit", f"--data.source={make_zip(6)}", "--data.img_size=12", "--name=r"]
    argv += ["--data.batch_size=8", "--model.model_kwargs={dims: [8], depths: [1]}"]
    argv += ["--model.model=vmamba_pico", "--trainer.max_steps=2", "--trainer.val_check_interval=2"]
    assert main(argv) == 0
    last = "outputs/vision/r/version_0/checkpoints/last.ckpt"
    capsys.readouterr()
    assert main(["vision", "report", "--ckpt_path", last, "--out", "report"]) == 0
    said = capsys.readouterr().out
    assert "18 images: accuracy" in said and "(of the validation images)" in said
    assert "occlusion" not in said and not Path("report/occlusion.png").exists()
    drawn = ["--out", "report", "--part", "valid", "--occlusion", "2"]
    assert main(["vision", "report", "--ckpt_path", last, *drawn]) == 0
    said = capsys.readouterr().out
    assert "calibration error" in said and "temperature" not in said  # not of its own images
    assert main(["vision", "report", "--ckpt_path", last, "--out", "report"]) == 0
    with Path("report/classes.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == ["bright", "dark", "stripes"]
    assert [row["images"] for row in rows] == ["6"] * 3
    for name in ("confusion.png", "errors.png", "reliability.png", "occlusion.png"):
        assert Path("report", name).read_bytes().startswith(b"\x89PNG")
    assert main(["vision", "report", "--ckpt_path", last, "--out", "o", "--source", "no"]) == 2
    assert main(["vision", "report", "--ckpt_path", last, "--out", "o", "--occlusion", "-1"]) == 2
