"""`longseq audio stress`: versions as they are named, the table, and files that cannot be read."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import soundfile

from longseq.audio import stress
from longseq.audio.calibration import NO_SIGN, SYNTHETIC, UNCERTAIN
from longseq.audio.scoring import FileScore
from longseq.core.shell.cli import main

RATE = stress.RATE


def score(probability: float | None, verdict: str) -> FileScore:
    return FileScore("f", 10.0, probability, verdict, "")


def test_changes_do_what_they_say(tune):
    audio, rng = tune(0, 2.0, RATE), np.random.default_rng(0)
    made = {name: change(audio, rng) for name, change in stress.CHANGES.items()}
    assert abs(len(made["speed +1%"]) - len(audio) / 1.01) <= 2
    assert abs(len(made["speed -0.5%"]) - len(audio) / 0.995) <= 2
    assert len(made["middle half"]) == len(audio) // 2
    assert np.array_equal(made["gain -12 dB"], audio * np.float32(0.25))
    assert np.abs(made["gain +6 dB, clipped"]).max() <= 1
    for decibels in (20, 40):
        noise = made[f"noise {decibels} dB below"] - audio
        ratio = 10 * np.log10(np.mean(np.square(audio)) / np.mean(np.square(noise)))
        assert abs(ratio - decibels) < 0.2
    low = np.abs(np.fft.rfft(made["resampled 22.05 kHz"]))
    hertz = np.fft.rfftfreq(len(made["resampled 22.05 kHz"]), 1 / RATE)
    assert low[hertz > 12000].max() < 1e-3 * low.max()
    # A tone moves by a semitone, and lasts as long.
    tone = np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE).astype(np.float32)
    moved = stress.CHANGES["pitch +1 semitone"](tone, rng)
    peak = np.argmax(np.abs(np.fft.rfft(moved * np.hanning(len(moved))))) * RATE / len(moved)
    assert abs(peak - 440 * 2 ** (1 / 12)) < 2 and abs(len(moved) - len(tone)) < 0.06 * len(tone)


@pytest.mark.parametrize("codec", list(stress._CODECS))
def test_codecs_keep_length_and_sound(codec, tune, tmp_path):
    audio = tune(1, 1.0, RATE)
    stress.write_version(tmp_path / "v", audio, RATE, codec)
    info = soundfile.info(tmp_path / "v")
    assert info.format == stress._CODECS[codec][0]
    assert abs(info.frames / info.samplerate - 1.0) < 0.1


def test_rows_count_what_became_of_the_verdicts():
    first = {"": score(0.9, SYNTHETIC), **dict.fromkeys(stress.NAMES, score(0.9, SYNTHETIC))}
    second = {"": score(0.1, NO_SIGN), **dict.fromkeys(stress.NAMES, score(0.1, NO_SIGN))}
    first["mp3 64"], second["mp3 64"] = score(0.5, UNCERTAIN), score(0.8, SYNTHETIC)
    second["vorbis"] = score(None, "unscorable")
    rows = {str(row[0]): row[1:] for row in stress.rows_of([first, second])}
    assert rows["mp3 64"][0] == 2 and rows["mp3 64"][3:] == [0, 1, 1, 2]
    assert rows["mp3 64"][1:3] == pytest.approx([0.55, 0.7])
    assert rows["vorbis"] == [2, 0.0, 0.0, 1, 1, 0, 1]
    assert rows["opus"] == [2, 0.0, 0.0, 1, 1, 0, 0]


def test_the_command_writes_a_row_for_each_change(tune, tmp_path, capsys, monkeypatch):
    kept = {name: stress.CHANGES[name] for name in ("speed +1%", "noise 20 dB below")}
    monkeypatch.setattr(stress, "CHANGES", kept)
    monkeypatch.setattr(stress, "NAMES", ["mp3 64", *kept])
    songs = tmp_path / "songs"
    songs.mkdir()
    soundfile.write(songs / "a.flac", tune(2, 6.0, RATE), RATE)
    (songs / "bad.wav").write_bytes(b"RIFFxxxxWAVE")
    soundfile.write(songs / "short.wav", tune(2, 0.02, RATE), RATE)
    soundfile.write(songs / "silent.wav", np.zeros(6 * RATE), RATE)
    out = tmp_path / "stress.csv"
    command = ["audio", "stress", str(songs), "--out", str(out), "--seconds", "5"]
    assert main(command) == 0
    shown = capsys.readouterr()
    assert "bad.wav" in shown.err and "As they are:" in shown.out
    for name, why in (("short", "too short for a score"), ("silent", "silent: nothing to judge")):
        (line,) = (line for line in shown.err.splitlines() if f"{name}.wav" in line)
        # Nothing of the version that was scored in its place.
        assert line.startswith("note: ") and line.endswith(why)
    rows = list(csv.DictReader(out.open()))
    assert [row["change"] for row in rows] == ["mp3 64", "speed +1%", "noise 20 dB below"]
    assert all(row["files"] == "1" and row["drift"] for row in rows)
    first = out.read_bytes()
    assert main(command) == 0 and out.read_bytes() == first
    (songs / "a.flac").unlink()
    assert main(command) == 2 and "none of its 3 files can be scored" in capsys.readouterr().err
    assert main([*command[:4], "x.docx"]) == 2 and not Path("x.docx").exists()
