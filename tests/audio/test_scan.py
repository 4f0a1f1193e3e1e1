"""Scanning folders: containers, damaged and renamed files, gain, silence; the page; prediction
alone."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from longseq.audio.calibration import Calibration, Segment
from longseq.audio.data.reading import AudioStream, read_audio
from longseq.audio.export import export, load_detector
from longseq.audio.results import ResultLog
from longseq.audio.scoring import Heard, score_file
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
    (folder / "film.ac3").write_bytes(b"\x0b\x77 sound of a kind that is not read")
    (folder / "cover.jpg").write_bytes(b"\xff\xd8\xff picture")
    content = (folder / "a.wav").read_bytes()
    (folder / "cut.wav").write_bytes(content[: len(content) * 6 // 7])
    (folder / "<script>alert(1)<script>.flac").write_bytes(b"fLaC nonsense")

    rows = scan(folder, out, detector)
    captured = capsys.readouterr()
    assert "1 files are no audio" in captured.err and "real time" in captured.out
    assert len(rows) == 12
    # The same PCM, whatever the container and name: bit-equal.
    same = {
        rows[name]["probability"] for name in ("a.wav", "album/a.flac", "renamed.txt", "wrong.mp3")
    }
    assert len(same) == 1 and 0 < float(same.pop()) < 1
    assert "though named .txt" in rows["renamed.txt"]["reason"]
    assert "though named .mp3" in rows["wrong.mp3"]["reason"]
    for name, reason in (
        ("empty.wav", "empty"),
        ("text.mp3", "is not WAV, FLAC, OGG, MP3, Opus"),
        ("film.ac3", "is not WAV, FLAC, OGG, MP3, Opus"),
    ):
        assert rows[name]["verdict"] == "unreadable" and reason in rows[name]["reason"]
        assert rows[name]["probability"] == ""
    assert "1 sample (" in rows["one.wav"]["reason"] and rows["one.wav"]["verdict"] == "unscorable"
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
    # One script, ours, which the policy names by its checksum.
    assert page.count("<script") == 1 and "&lt;script&gt;alert(1)" in page
    assert "http" not in page.replace("http-equiv", "") and page.count("<svg") >= 6


def interrupted_at(number: int, monkeypatch) -> None:
    """Makes the scan's ``number``-th file raise what SIGINT raises."""
    from longseq.audio import scan as module

    whole = module.score_files

    def some(*args):
        for count, item in enumerate(whole(*args), 1):
            if count == number:
                raise KeyboardInterrupt
            yield item

    monkeypatch.setattr(module, "score_files", some)


def test_an_interrupted_scan_goes_on_to_the_same_bytes(
    tmp_path: Path, detector: Path, tune, monkeypatch, capsys
) -> None:
    folder = tmp_path / "music"
    folder.mkdir()
    for i in range(6):
        soundfile.write(folder / f"{i}.wav", pcm(tune(i, 5.5)), RATE, "PCM_16")
    bad = Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.wav"))
    bad.write_bytes((folder / "0.wav").read_bytes())
    (folder / "=1+1.txt").write_bytes((folder / "1.wav").read_bytes())
    scan(folder, tmp_path / "whole", detector)
    argv = ["audio", "scan", str(folder), "--out", str(tmp_path / "part")]
    argv += ["--ckpt_path", str(detector)]
    with monkeypatch.context() as patch:
        interrupted_at(4, patch)
        assert main(argv) == 130
    assert "3 of 8 results are kept" in capsys.readouterr().err
    log = tmp_path / "part" / "results.jsonl"
    assert (
        len(log.read_bytes().splitlines()) == 4 and not (tmp_path / "part" / "scores.csv").exists()
    )
    # A line that was cut off in the writing, as by a power failure, is dropped.
    log.write_bytes(log.read_bytes()[:-20])
    capsys.readouterr()
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert "2 of 8 files have a result already" in out and "[6/6]" in out
    for name in ("scores.csv", "segments.jsonl", "index.html"):
        whole, part = ((tmp_path / where / name).read_bytes() for where in ("whole", "part"))
        assert whole == part, name
    names = [row["file"] for row in csv.DictReader((tmp_path / "part" / "scores.csv").open())]
    assert names[-2:] == ["'=1+1.txt", "caf\\xe9.wav"] or "'=1+1.txt" in names
    assert "caf\\xe9.wav" in names
    # What has changed is scored again, what is new is added; another detector starts anew.
    (folder / "0.wav").write_bytes((folder / "1.wav").read_bytes() + b"\0\0")
    assert main(argv) == 0 and "7 of 8 files have a result" in capsys.readouterr().out
    torch.manual_seed(1)
    export(SongDetector(model_kwargs=TINY), tmp_path / "other.safetensors")
    assert main([*argv[:-1], str(tmp_path / "other.safetensors")]) == 0
    assert "earlier results were of another detector" in capsys.readouterr().err


def test_results_are_of_the_file_that_was_scored(
    tmp_path: Path, detector: Path, tune, monkeypatch, capsys
) -> None:
    """Equal names, lengths and times in two folders; a file that is replaced during the scan."""
    from longseq.audio import scoring

    for number, name in enumerate(("one", "two")):
        (tmp_path / name).mkdir()
        for i in range(3):
            file = tmp_path / name / f"{i}.wav"
            soundfile.write(file, pcm(tune(3 * number + i, 5.5)), RATE, "PCM_16")
            os.utime(file, (0, 0))
    one, two = (scan(tmp_path / name, tmp_path / f"of {name}", detector) for name in ("one", "two"))
    scan(tmp_path / "one", tmp_path / "both", detector)
    assert one != two and scan(tmp_path / "two", tmp_path / "both", detector) == two
    whole = scoring.score_file

    def replaced(detector, path, name=None):
        score = whole(detector, path, name)
        if path.name == "0.wav":
            path.write_bytes((tmp_path / "two" / "0.wav").read_bytes())
            os.utime(path, (0, 0))
        return score

    with monkeypatch.context() as patch:
        patch.setattr(scoring, "score_file", replaced)
        assert scan(tmp_path / "one", tmp_path / "changing", detector) == one
    capsys.readouterr()
    again = scan(tmp_path / "one", tmp_path / "changing", detector)
    assert again == {**one, "0.wav": two["0.wav"]}
    assert "2 of 3 files have a result already" in capsys.readouterr().out


def test_two_scans_do_not_write_to_one_folder(tmp_path: Path, detector: Path, tune, capsys) -> None:
    folder, out = tmp_path / "music", tmp_path / "out"
    folder.mkdir()
    soundfile.write(folder / "a.wav", tune(0, 6.0, RATE), RATE)
    scan(folder, out, detector)
    before = (out / "results.jsonl").read_bytes()
    log = ResultLog(out / "results.jsonl", json.loads(before.splitlines()[0])["scan"])
    capsys.readouterr()
    for more in ([], ["--restart"]):
        command = ["audio", "scan", str(folder), "--out", str(out), "--ckpt_path", str(detector)]
        assert main([*command, *more]) == 2
        said = capsys.readouterr().err
        assert "another scan is writing here" in said and "give another --out" in said
        assert str(out) in said and (out / "results.jsonl").read_bytes() == before
    log.close()
    scan(folder, out, detector)
    with pytest.raises(DataError, match="no result of a scan"):
        (out / "results.jsonl").write_text("mine\n")
        ResultLog(out / "results.jsonl", {})
    ResultLog(out / "results.jsonl", {}, restart=True).close()  # what failed had let go


def test_nothing_that_one_file_does_ends_the_scan(
    tmp_path: Path, detector: Path, tune, monkeypatch
) -> None:
    from longseq.audio import scoring

    folder = tmp_path / "music"
    folder.mkdir()
    audio = tune(0, 6.0)
    for name in ("a", "b", "c"):
        soundfile.write(folder / f"{name}.wav", audio, RATE, "FLOAT")
    loud = audio.copy()
    loud[3 * RATE] = 1e30
    soundfile.write(folder / "loud.wav", loud, RATE, "FLOAT")
    loud[3 * RATE] = np.nan
    soundfile.write(folder / "nan.wav", loud, RATE, "FLOAT")
    whole = scoring.score_file

    def fails(detector, path, name):
        if path.name == "b.wav":
            raise RuntimeError("an accident\x1b[31m")
        return whole(detector, path, name)

    monkeypatch.setattr(scoring, "score_file", fails)
    rows = scan(folder, tmp_path / "out", detector)
    assert len(rows) == 5 and rows["a.wav"]["probability"] == rows["c.wav"]["probability"] != ""
    assert rows["b.wav"]["verdict"] == "unreadable"
    assert rows["b.wav"]["reason"] == "RuntimeError: an accident\\x1b[31m"
    for name, reason in (("loud", "no finite score"), ("nan", "not finite")):
        assert rows[f"{name}.wav"]["verdict"] == "unscorable", name
        assert rows[f"{name}.wav"]["probability"] == "" and reason in rows[f"{name}.wav"]["reason"]


def test_one_unreadable_file_alone_is_a_row_and_status_1(tmp_path: Path, detector: Path) -> None:
    (tmp_path / "a.mp3").write_bytes(b"no music at all")
    argv = ["audio", "scan", str(tmp_path / "a.mp3"), "--out", str(tmp_path / "out")]
    assert main([*argv, "--ckpt_path", str(detector)]) == 1
    rows = list(csv.DictReader((tmp_path / "out" / "scores.csv").open()))
    assert (
        len(rows) == 1 and rows[0]["verdict"] == "unreadable" and "is not WAV" in rows[0]["reason"]
    )


def test_published_sonics_weights_are_scanned(tmp_path: Path, tune) -> None:
    from longseq.audio import create_model

    torch.manual_seed(0)
    small = {"d_model": 128, "n_layers": 2, "n_heads": 2}
    model = create_model("spectttra_gamma_5s", **small).eval()
    folder = tmp_path / "sonics-spectttra-gamma-5s"
    folder.mkdir()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    soundfile.write(tmp_path / "a.wav", pcm(tune(0, 5.0)), RATE, "PCM_16")
    logit = float(model(torch.from_numpy(read_audio(tmp_path / "a.wav"))[None]))
    for where in (folder, folder / "pytorch_model.bin"):
        argv = ["audio", "scan", str(tmp_path / "a.wav"), "--out", str(tmp_path / "out")]
        assert main([*argv, "--ckpt_path", str(where)]) == 0
        row = next(csv.DictReader((tmp_path / "out" / "scores.csv").open()))
        p = float(row["probability"])
        assert np.log(p / (1 - p)) == pytest.approx(logit, abs=1e-5)
        assert row["verdict"] == "uncertain" and "not calibrated" in row["reason"]
    state = model.state_dict()
    del state["classifier.bias"]
    torch.save(state, folder / "pytorch_model.bin")
    with pytest.raises(DataError, match=r"classifier\.bias"):
        load_detector(folder)
    torch.save({"weight": torch.zeros(2)}, folder / "pytorch_model.bin")
    with pytest.raises(DataError, match="holds no SpecTTTra"):
        load_detector(folder)


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
    monkeypatch.setattr("longseq.audio.data.decoders._BLOCK", 5000)
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


@pytest.mark.parametrize(("logit", "told"), [(-4.0, False), (0.0, True), (4.0, True)])
def test_a_short_file_has_the_words_that_its_score_bears_out(
    tmp_path: Path, tune, logit: float, told: bool
) -> None:
    class Hears:
        calibration, methods, rate = Calibration(1.0, 0.0, 0.3, 0.7, 10), ["griffin_lim"], None

        def listen(self, stream: AudioStream) -> Heard:
            list(stream)
            return Heard([Segment(0.0, 3.0, logit, 3.0)], 0.5, evidence={"words": "lines at 5 Hz"})

    soundfile.write(tmp_path / "a.wav", tune(0, 3.0), RATE)
    found = score_file(Hears(), tmp_path / "a.wav")
    assert found.verdict == "uncertain" and "3.0 s are too short for a verdict" in found.reason
    assert ("lines at 5 Hz" in found.reason) == told


@pytest.mark.parametrize(
    ("logit", "told"),
    [(0.85, "0.701 > 0.700; "), (2.0, "0.88 > 0.70; "), (-0.85, "0.299 < 0.300: ")],
)
def test_a_reason_has_the_digits_that_tell_a_score_from_its_limit(
    tmp_path: Path, tune, logit: float, told: str
) -> None:
    class Hears:
        calibration, methods, rate = Calibration(1.0, 0.0, 0.3, 0.7, 10), ["griffin_lim"], None

        def listen(self, stream: AudioStream) -> Heard:
            list(stream)
            return Heard([Segment(0.0, 6.0, logit, 6.0)], 0.5)

    soundfile.write(tmp_path / "a.wav", tune(0, 6.0), RATE)
    assert score_file(Hears(), tmp_path / "a.wav").reason.startswith(told)
