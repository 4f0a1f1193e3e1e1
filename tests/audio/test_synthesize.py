"""Synthesis keeps music, length and loudness; one chain writes both classes."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from longseq.audio.data.listing import outside
from longseq.audio.features import MelPower, normalise
from longseq.audio.synthesis import METHODS, griffin_lim, synthesize
from longseq.audio.synthesize import FORMATS, write_audio
from longseq.core.shell.cli import main

RATE = 16000


def melody(audio):
    """Normalised mel frames, time by band."""
    return normalise(MelPower()(torch.from_numpy(audio)[None]).transpose(1, 2))[0].numpy()


@pytest.mark.parametrize("method", sorted(METHODS))
def test_the_music_stays_and_the_samples_change(method: str, tune) -> None:
    audio = tune(0, 3.0)
    made = synthesize(audio, method, seed=1)
    assert made.dtype == np.float32 and len(made) == len(audio) and np.isfinite(made).all()
    assert np.std(made) == pytest.approx(np.std(audio), rel=0.05)
    a, b = melody(audio).ravel(), melody(made).ravel()
    assert np.corrcoef(a, b)[0, 1] > 0.75
    assert np.abs(made - audio).max() > 0.01
    assert np.array_equal(made, synthesize(audio, method, seed=1))
    assert len(synthesize(audio[:1], method, seed=1)) == 1
    assert not synthesize(np.zeros(5000, np.float32), method, seed=0).any() or method == "codec"


def test_long_songs_are_made_in_pieces_without_gaps(monkeypatch) -> None:
    monkeypatch.setattr("longseq.audio.synthesis._PIECE", 16000)
    monkeypatch.setattr("longseq.audio.synthesis._FADE", 400)
    audio = 0.2 * np.random.default_rng(0).standard_normal(60000).astype(np.float32)
    made = synthesize(audio, "phase_vocoder", seed=0)
    level = np.sqrt(np.convolve(made**2, np.ones(800) / 800, "valid"))[1000:-1000]
    assert len(made) == 60000 and level.min() > 0.5 * np.median(level) and level.max() < 0.4


def test_griffin_lim_converges(tune) -> None:
    audio = tune(0, 2.0)
    errors = []
    for steps in (1, 30):
        made = griffin_lim(audio, np.random.default_rng(3), RATE, iterations=steps)
        spectra = [
            torch.stft(
                torch.from_numpy(x), 1024, 256, window=torch.hann_window(1024), return_complex=True
            ).abs()
            for x in (audio, made)
        ]
        errors.append(float((spectra[0] - spectra[1]).norm() / spectra[0].norm()))
    assert errors[1] < 0.6 * errors[0]


@pytest.mark.parametrize("kind", sorted(FORMATS))
def test_every_format_is_written(kind: str, tmp_path: Path, tune) -> None:
    path = tmp_path / f"a{FORMATS[kind][2]}"
    write_audio(path, 3 * tune(0), RATE, kind)
    audio, rate = soundfile.read(path)
    assert rate == RATE and abs(len(audio) - 3 * RATE) < 2000 and 0.8 < np.abs(audio).max() <= 1.05


def test_the_command_writes_one_chain_of_both_classes(tmp_path: Path, tune, capsys) -> None:
    songs = tmp_path / "in"
    songs.mkdir()
    for i in range(2):
        stereo = np.stack((tune(i, 4.0, 22050), tune(i + 9, 4.0, 22050)), 1)
        soundfile.write(songs / f"song {i}.ogg", stereo, 22050)
    (songs / "bad.mp3").write_bytes(b"nothing")
    out = tmp_path / "out"
    argv = [
        "audio",
        "synthesize",
        str(songs),
        "--out",
        str(out),
        "--methods",
        "phase_vocoder,codec",
    ]
    assert main([*argv, "--seconds", "2"]) == 0
    captured = capsys.readouterr()
    assert "2 songs" in captured.out and "1 left out" in captured.out and "bad.mp3" in captured.err
    files = sorted(str(path.relative_to(out)) for path in out.rglob("*.flac"))
    names = ("song 0.flac", "song 1.flac")
    folders = ("fake/codec", "fake/phase_vocoder", "real")
    assert files == [f"{folder}/{name}" for folder in folders for name in names]
    infos = [soundfile.info(str(out / name)) for name in files]
    assert {(i.samplerate, i.channels, i.frames, i.subtype) for i in infos} == {
        (RATE, 1, 2 * RATE, "PCM_16")
    }


def test_bad_arguments_are_one_line(tmp_path: Path, make_songs, capsys) -> None:
    root, out = make_songs(1), str(tmp_path / "out")
    cases = [
        ([str(root / "real"), "--methods", "griffin"], "did you mean 'griffin_lim'"),
        ([str(root)], "has the same name as"),
        ([str(tmp_path / "none")], "no such file or folder"),
        ([str(root / "real"), "--seconds", "0.1"], "--seconds must be at least 1"),
    ]
    for argv, message in cases:
        assert main(["audio", "synthesize", *argv, "--out", out]) == 2
        error = capsys.readouterr().err.strip()
        assert error.startswith("error: ") and message in error and "\n" not in error
    assert not Path(out).exists()


def test_results_inside_the_folder_are_no_songs(tmp_path: Path, tune) -> None:
    soundfile.write(tmp_path / "song.wav", tune(0, 2.0, RATE), RATE)
    argv = ["audio", "synthesize", str(tmp_path), "--out", str(tmp_path / "made")]
    for _ in range(2):
        assert main([*argv, "--methods", "phase_vocoder"]) == 0
    assert len(list(tmp_path.rglob("*.*"))) == 3
    inside = [tmp_path / "a.wav", tmp_path / "made" / "b.wav"]
    assert outside(inside, tmp_path, tmp_path / "made") == inside[:1]
    for root, out in ((tmp_path, tmp_path), (inside[1], tmp_path / "made"), (tmp_path, None)):
        assert outside(inside, root, out) == inside


def test_names_that_are_not_utf_8(tmp_path: Path, tune, capsys) -> None:
    (tmp_path / "in").mkdir()
    soundfile.write(tmp_path / "song.wav", tune(0, 2.0, RATE), RATE)
    try:
        (tmp_path / "song.wav").rename(tmp_path / "in" / os.fsdecode(b"caf\xe9.wav"))
    except OSError:
        pytest.skip("this file system takes names in UTF-8 alone")
    argv = ["audio", "synthesize", str(tmp_path / "in"), "--out", str(tmp_path / "made")]
    assert main([*argv, "--methods", "phase_vocoder"]) == 0
    assert r"caf\xe9.wav" in capsys.readouterr().out
    made = [os.fsencode(path.name) for path in (tmp_path / "made").rglob("*.flac")]
    assert made == [b"caf\xe9.flac"] * 2
