"""Curves of a comparison's trainings: what is read, drawn and written, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from longseq.core.curves import Curve, check_curves, read_curve, save_curves
from longseq.core.errors import ConfigError, DataError
from longseq.core.tables import read_rows


def test_a_curve_is_read_from_the_log_of_a_run(tmp_path: Path) -> None:
    log = tmp_path / "metrics.csv"
    log.write_text(
        "step,train/loss,val/accuracy,val/cpu_seconds\n9,1.5,,\n9,,0.25,30.5\n19,,0.5,61\n"
    )
    curve = read_curve(tmp_path, "val/accuracy", "net", 3)
    assert curve == Curve("net", 3, [(10, 30.5, 0.25), (20, 61.0, 0.5)])
    log.write_text("step,val/loss\n4,2.5\n")
    assert read_curve(tmp_path, "val/loss", "net", 0).points == [(5, None, 2.5)]
    with pytest.raises(DataError, match=r"metrics\.csv.*holds no val/accuracy"):
        read_curve(tmp_path, "val/accuracy", "net", 0)
    log.unlink()
    with pytest.raises(DataError, match="so there is no curve"):
        read_curve(tmp_path, "val/loss", "net", 0)


def test_curves_are_drawn_over_time_with_a_table_beside_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []
    monkeypatch.setattr(
        "longseq.core.curves.save_png", lambda figure, path: drawn.append(figure.axes[0])
    )
    slow, quick = Curve("slow", 0, [(2, 60.0, 0.5)]), Curve("quick", 0, [(5, 30.0, 0.25)])
    save_curves(tmp_path / "c.png", [slow, quick], "val/accuracy")
    assert drawn[0].get_xlabel() == "CPU minutes" and drawn[0].get_ylabel() == "val/accuracy"
    lines = [(line.get_label(), list(line.get_xdata())) for line in drawn[0].get_lines()]
    assert lines == [("slow", [1.0]), ("quick", [0.5])]
    rows = read_rows(tmp_path / "c.csv")
    assert [list(row.values()) for row in rows] == [
        ["slow", "0", "2", "60.0", "0.500000"],
        ["quick", "0", "5", "30.0", "0.250000"],
    ]
    save_curves(tmp_path / "c.png", [slow, Curve("slow", 1, [(4, None, 0.75)])], "val/loss")
    assert drawn[1].get_xlabel() == "optimiser step"
    lines = [(line.get_label(), list(line.get_xdata())) for line in drawn[1].get_lines()]
    assert lines == [("slow, seed 0", [2]), ("slow, seed 1", [4])]
    assert read_rows(tmp_path / "c.csv")[1]["cpu_seconds"] == ""


def test_a_picture_is_a_picture(tmp_path: Path) -> None:
    assert check_curves(tmp_path / "c.png") == tmp_path / "c.csv"
    save_curves(tmp_path / "c.png", [Curve("net", 0, [(1, 2.0, 3.0)])], "val/loss")
    assert (tmp_path / "c.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(ConfigError, match=r"must end in \.png"):
        check_curves(tmp_path / "c.jpg")
    (tmp_path / "d.csv").mkdir()
    with pytest.raises(DataError, match=r"d\.csv"):
        check_curves(tmp_path / "d.png")
