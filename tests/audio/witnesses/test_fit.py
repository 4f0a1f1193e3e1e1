"""`longseq audio witnesses`: a detector of one's own from a labelled folder, and what is too
little."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile

from longseq.audio.export import load_detector
from longseq.audio.witnesses.detector import WitnessDetector
from longseq.audio.witnesses.fit import for_calibration
from longseq.core.shell.cli import main

RATE = 44100


def folders(wanted: int) -> list[str]:
    """Names of folders of which so many are kept for the calibration, and as many are not."""
    kept, rest = [], []
    for i in range(1000):
        (kept if for_calibration(f"p{i}") else rest).append(f"p{i}")
    return kept[:wanted] + rest[:wanted]


@pytest.fixture
def labelled(tmp_path, tune):
    root = tmp_path / "labelled"
    for folder in folders(1):
        for song in range(21):
            audio = tune(song, 1.1, RATE)
            comb = audio + 2e-3 * np.cos(2 * np.pi * RATE / 16 * np.arange(len(audio)) / RATE)
            for place, sound in ((f"real/{folder}", audio), (f"fake/comb/{folder}", comb)):
                (root / place).mkdir(parents=True, exist_ok=True)
                soundfile.write(root / place / f"{folder}-{song}.wav", sound, RATE)
    return root


def test_a_detector_of_ones_own(labelled, tmp_path, capsys):
    out = tmp_path / "mine.safetensors"
    soundfile.write(labelled / "real" / "short.wav", np.zeros(1000), RATE)
    command = ["audio", "witnesses", str(labelled), "--out", str(out), "--steps", "2"]
    assert main(command) == 0
    shown = capsys.readouterr()
    assert "is shorter than a second" in shown.err and "uncertain from" in shown.out
    detector = load_detector(out)
    assert isinstance(detector, WitnessDetector) and detector.methods == ["comb"]
    assert not set(detector.songs["train"]) & set(detector.songs["valid"])
    assert detector.calibration.windows == 42
    assert main(command) == 0
    again = load_detector(out)
    assert again.tails == detector.tails and again.calibration == detector.calibration
    for name, value in detector.weights.items():
        assert np.array_equal(again.weights[name], value)


def test_too_few_songs_are_refused_by_number(labelled, tmp_path, capsys):
    for file in sorted((labelled / "real").rglob("*.wav"))[5:]:
        file.unlink()
    command = ["audio", "witnesses", str(labelled), "--out", str(tmp_path / "x.safetensors")]
    assert main([*command, "--steps", "1"]) == 2
    assert "at least 20 are needed" in capsys.readouterr().err
    assert not (tmp_path / "x.safetensors").exists()
    assert main([*command, "--steps", "0"]) == 2
