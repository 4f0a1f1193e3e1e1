"""Scanning folders: containers, damaged and renamed files, gain, silence; the page; prediction
alone."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from longseq.audio.calibration import Calibration
from longseq.audio.data.reading import AudioStream
from longseq.audio.export import export, load_detector
from longseq.audio.scoring import score_file
from longseq.audio.task import SongDetector
from longseq.core.errors import DataError
from longseq.core.shell.cli import main

RATE = 16000
TINY = {"d_model": 16, "n_layers": 1, "channels": 2}


@pytest.fixture
def detector(tmp_path: Path) -> Path:
    """A tiny untrained detector with a calibration."""
    torch.manual_seed(0)
    task = SongDetector(model_kwargs=TINY)
    task.calibration, task.methods = Calibration(1.0, 0.0, 0.3, 0.7, 10), ["griffin_lim"]
    export(task, tmp_path / "tiny.safetensors")
    return tmp_path / "tiny.safetensors"


def pcm(audio):
    return np.round(audio * 30000).astype(np.int16)


def scan(folder: Path, out: Path, detector: Path) -> dict[str, dict[str, str]]:
    assert (
        main(["audio", "scan", str(folder), "--out", str(out), "--ckpt_path", str(detector)]) == 0
    )
    with (out / "scores.csv").open(encoding="utf-8") as file:
        rows = {row["file"]: row for row in csv.DictReader(file)}
    assert list(next(iter(rows.values()))) == [
        "file",
        "duration_s",
        "probability",
        "verdict",
        "reason",
    ]
    return rows


def test_a_scan_of_good_and_bad_files(tmp_path: Path, detector: Path, tune, capsys) -> None:
    folder, out = tmp_path / "music", tmp_path / "out"
    (folder / "album").mkdir(parents=True)
    audio = tune(0, 7.0, 44100)
    soundfile.write(folder / "a.wav", pcm(audio), 44100, "PCM_16")
    soundfile.write(folder / "album" / "a.flac", pcm(audio), 44100, "PCM_16")
    soundfile.write(folder / "renamed.txt", pcm(audio), 44100, "PCM_16", format="FLAC")
    soundfile.write(folder / "wrong.mp3", pcm(audio), 44100, "PCM_16", format="WAV")
    (folder / "empty.wav").touch()
    soundfile.write(folder / "one.wav", pcm(audio[:1]), 44100, "PCM_16")
    soundfile.write(folder / "short.wav", pcm(audio[: 2 * 44100]), 44100, "PCM_16")
    soundfile.write(folder / "silent.wav", np.zeros(6 * 44100, np.int16), 44100, "PCM_16")
    (folder / "text.mp3").write_bytes(b"no music at all, but a text")
    (folder / "cover.jpg").write_bytes(b"\xff\xd8\xff picture")
    content = (folder / "a.wav").read_bytes()
    (folder / "cut.wav").write_bytes(content[: len(content) * 6 // 7])
    (folder / "<script>alert(1)<script>.flac").write_bytes(b"fLaC nonsense")

    rows = scan(folder, out, detector)
    captured = capsys.readouterr()
    assert "1 files are no audio" in captured.err and "real time" in captured.out
    assert len(rows) == 11
    # The same PCM, whatever the container and name: bit-equal.
    same = {
        rows[name]["probability"] for name in ("a.wav", "album/a.flac", "renamed.txt", "wrong.mp3")
    }
    assert len(same) == 1 and 0 < float(same.pop()) < 1
    assert "though named .txt" in rows["renamed.txt"]["reason"]
    assert "though named .mp3" in rows["wrong.mp3"]["reason"]
    for name, reason in (
        ("empty.wav", "empty"),
        ("text.mp3", "is not WAV, FLAC, OGG, MP3 or Opus"),
    ):
        assert rows[name]["verdict"] == "unreadable" and reason in rows[name]["reason"]
        assert rows[name]["probability"] == ""
    assert "1 sample (" in rows["one.wav"]["reason"] and rows["one.wav"]["verdict"] == "uncertain"
    assert (
        rows["short.wav"]["verdict"] == "uncertain" and "too short" in rows["short.wav"]["reason"]
    )
    assert "silent" in rows["silent.wav"]["reason"] and rows["silent.wav"]["probability"] == ""
    assert "truncated" in rows["cut.wav"]["reason"] and rows["cut.wav"]["probability"]

    segments = [json.loads(line) for line in (out / "segments.jsonl").read_text().splitlines()]
    mine = [row for row in segments if row["file"] == "a.wav"]
    assert [row["start_s"] for row in mine] == [0.0, 5.12] and mine[-1]["end_s"] == pytest.approx(
        7.0, abs=0.01
    )
    page = (out / "index.html").read_text(encoding="utf-8")
    assert "<script" not in page and "&lt;script&gt;alert(1)" in page
    assert "http" not in page.replace("http-equiv", "") and page.count("<svg") == 6


def test_gain_changes_nothing(tmp_path: Path, detector: Path, tune) -> None:
    task, audio = load_detector(detector), tune(3, 6.0)
    found = []
    for number, gain in enumerate((1.0, 0.25, 2.0**-10, 0.3, 1.9)):
        soundfile.write(tmp_path / f"{number}.wav", audio * np.float32(gain), RATE, "FLOAT")
        found.append(score_file(task, tmp_path / f"{number}.wav").probability)
    assert found[0] == found[1] == found[2]
    assert found[3:] == pytest.approx([found[0]] * 2, abs=1e-5)


def test_the_score_does_not_depend_on_the_reader_s_blocks(
    tmp_path, detector, tune, monkeypatch
) -> None:
    soundfile.write(tmp_path / "a.wav", pcm(tune(0, 12.0)), RATE, "PCM_16")
    task = load_detector(detector)
    whole = score_file(task, tmp_path / "a.wav")
    monkeypatch.setattr("longseq.audio.data.reading._BLOCK", 5000)
    assert len(list(AudioStream(tmp_path / "a.wav", RATE))) == 39
    assert score_file(task, tmp_path / "a.wav").probability == pytest.approx(
        whole.probability, abs=1e-6
    )


def test_the_packaged_detector_works_at_once(tmp_path: Path, tune) -> None:
    task = load_detector()
    assert (
        task.calibration.windows and task.methods and set(task.songs) == {"train", "valid", "test"}
    )
    soundfile.write(tmp_path / "a.wav", pcm(tune(0, 6.0)), RATE, "PCM_16")
    assert main(["audio", "scan", str(tmp_path / "a.wav"), "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "index.html").stat().st_size > 1000


def test_predict_writes_a_table_and_keeps_earlier_output(
    tmp_path: Path, detector: Path, tune, capsys
) -> None:
    folder, out = tmp_path / "in", tmp_path / "p.csv"
    folder.mkdir()
    soundfile.write(folder / "a.wav", pcm(tune(0, 6.0)), RATE, "PCM_16")
    (folder / "b.wav").touch()
    base = ["audio", "predict", str(folder), "--ckpt_path", str(detector), "--out"]
    assert main([*base, str(out)]) == 0
    assert "2 files" in capsys.readouterr().out
    before = out.read_text()
    (folder / "a.wav").unlink()
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(b"nothing")
    cases = [
        ([*base, str(out)], "none of its 1 files can be read"),
        ([*base, str(tmp_path / "p.txt")], "a table must end in .csv"),
        ([*base[:4], str(bad), "--out", str(out)], "is not a safetensors file"),
        ([*base[:2], str(tmp_path / "none"), *base[3:], str(out)], "no such file or folder"),
    ]
    for argv, message in cases:
        assert main(argv) == 2
        errors = [
            line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")
        ]
        assert len(errors) == 1 and message in errors[0], errors
    assert out.read_text() == before


def test_files_of_other_things_are_no_detector(tmp_path: Path) -> None:
    from longseq.core.checkpoints.safe import save_weights

    save_weights(
        tmp_path / "x.safetensors", torch.nn.Linear(2, 2), {"_class_path": "longseq.other.Task"}
    )
    with pytest.raises(DataError, match="holds no detector"):
        load_detector(tmp_path / "x.safetensors")
    task = SongDetector(model_kwargs=TINY)
    hyper = {**dict(task.hparams), "extra": task.facts}
    save_weights(tmp_path / "x.safetensors", torch.nn.Linear(2, 2), hyper)
    with pytest.raises(DataError, match="missing"):
        load_detector(tmp_path / "x.safetensors")
