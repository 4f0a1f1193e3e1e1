"""The packaged separator and the command: polarity, odd recordings, names and levels."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from longseq.audio.export import (
    PACKAGED_SEPARATOR,
    load_separator,
)
from longseq.audio.separation.separate import twice
from longseq.audio.separation.task import (
    Improvement,
)
from longseq.core.shell.cli import main

RATE = 8000


def test_the_packaged_separator(tmp_path, monkeypatch, tune):
    """Without a checkpoint: two files of the recording's length, as Python has them."""
    monkeypatch.chdir(tmp_path)
    assert PACKAGED_SEPARATOR.stat().st_size < 4_000_000
    assert PACKAGED_SEPARATOR.with_name("SEPARATOR.md").read_text().startswith("# separator")
    audio = 0.3 * tune(3, 1.0, RATE) + 0.3 * tune(8, 1.0, RATE)
    soundfile.write("a.wav", audio, RATE)
    assert main(["audio", "separate", "a.wav", "--out", "out"]) == 0
    voices = np.stack([soundfile.read(f"out/a_voice{i}.wav")[0] for i in (1, 2)])
    assert voices.shape == (2, RATE) and np.isfinite(voices).all() and voices.any(1).all()
    # Neither turned over nor at another level: their sum is the recording, as near as it gets.
    assert 0.9 < np.vdot(voices.sum(0), audio) / np.vdot(audio, audio) <= 1.0
    task = load_separator()
    assert (task.sample_rate, task.model.voices, task.training) == (RATE, 2, False)
    heard = torch.from_numpy(soundfile.read("a.wav", dtype="float32")[0])[None]
    found = twice(task, heard - heard.mean())
    np.testing.assert_allclose(found[0].detach().numpy(), voices, atol=1e-5)


def pulsed(seed, pitch):
    """2 s like a voice: pulses of one sign through three resonances that change by syllable."""
    rng, parts = np.random.default_rng(seed), []
    time = np.arange(400) / RATE
    while sum(map(len, parts)) < 2 * RATE:
        length = int(rng.integers(RATE // 8, RATE // 3))
        glide = pitch * rng.uniform(0.8, 1.25) * np.linspace(1, rng.uniform(0.8, 1.2), length)
        sound = np.diff(np.floor(np.cumsum(glide) / RATE), prepend=0) - 0.01
        for low, high, width in ((300, 800, 80), (900, 2200, 120), (2300, 3300, 180)):
            tone = np.sin(2 * np.pi * rng.uniform(low, high) * time)
            sound = np.convolve(sound, tone * np.exp(-np.pi * width * time))[:length]
        parts.append(sound * np.hanning(length) / sound.std())
    voice = np.concatenate(parts)[: 2 * RATE]
    return (0.1 * voice / voice.std()).astype(np.float32)


def test_the_packaged_separator_takes_either_polarity():
    voices = np.stack([[pulsed(2 * i, 110), pulsed(2 * i + 1, 190)] for i in range(2)])
    gains = []
    for sign in (1, -1):
        true = torch.from_numpy(sign * voices)
        gained = Improvement()
        gained.update(twice(load_separator(), true.sum(1)).detach(), true, true.sum(1))
        gains.append(gained.compute().item())
    assert min(gains) > 5 and abs(gains[0] - gains[1]) < 1.8, gains


def test_what_is_odd_about_a_recording_is_said(tmp_path, monkeypatch, tune, capsys):
    """A cut file and silence end in voices and a note; a second run does no more."""
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()
    soundfile.write("in/cut.wav", 0.3 * tune(3, 2.0, RATE), RATE)
    content = Path("in/cut.wav").read_bytes()
    Path("in/cut.wav").write_bytes(content[: len(content) // 2])
    soundfile.write("in/silent.wav", np.zeros(RATE), RATE)
    soundfile.write("in/good.wav", 0.3 * tune(4, 1.0, RATE), RATE)
    for _ in range(2):
        assert main(["audio", "separate", "in", "--out", "in/voices"]) == 0
        shown = capsys.readouterr()
        assert "3 of 3 recordings" in shown.out and "good.wav" not in shown.err
        notes = {Path(line.split(": ")[1]).name: line for line in shown.err.splitlines()}
        assert "is truncated: its end is missing" in notes["cut.wav"]
        assert notes["silent.wav"].endswith("silent.wav: is silent, or the same value throughout")
    assert len(list(Path("in/voices").iterdir())) == 6
    assert soundfile.info("in/voices/cut_voice1.wav").frames < RATE + 100


def test_a_constant_is_no_voice(tmp_path, monkeypatch, tune, capsys):
    """An offset as of a sound card changes no voice, and the voices have none."""
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()
    audio = (0.2 * tune(3, 1.0, RATE) + 0.2 * tune(8, 1.0, RATE)).astype(np.float32)
    for name, offset in (("plain", 0.0), ("offset", 0.5)):
        soundfile.write(f"in/{name}.wav", audio + np.float32(offset), RATE, "FLOAT")
    soundfile.write("in/constant.wav", np.full(RATE, 0.3), RATE, "FLOAT")
    assert main(["audio", "separate", "in", "--out", "out"]) == 0
    note = "constant.wav: is silent, or the same value throughout"
    assert capsys.readouterr().err.strip().endswith(note)
    for voice in (1, 2):
        plain, shifted, constant = (
            soundfile.read(f"out/{name}_voice{voice}.wav")[0]
            for name in ("plain", "offset", "constant")
        )
        assert plain.any() and not constant.any()
        np.testing.assert_allclose(shifted, plain, atol=1e-5)


def test_no_two_recordings_write_the_same_voices(tmp_path, monkeypatch, tune):
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()
    for number, name in enumerate(("a.wav", "a.flac", "a.wav.flac")):
        soundfile.write(f"in/{name}", 0.3 * tune(number, 0.5, RATE), RATE, "PCM_16")
    assert main(["audio", "separate", "in", "--out", "out"]) == 0
    assert len(list(Path("out").iterdir())) == 6


def test_no_recording_is_overwritten(tmp_path, monkeypatch, tune, capsys):
    """A recording among the inputs that is named as another's voice is."""
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()
    for number, name in enumerate(("a.wav", "a_voice1.wav")):
        soundfile.write(f"in/{name}", 0.3 * tune(number, 0.5, RATE), RATE)
    before = Path("in/a_voice1.wav").read_bytes()
    assert main(["audio", "separate", "in", "--out", "in"]) != 0
    assert "a_voice1.wav is a recording, and would be overwritten" in capsys.readouterr().err
    assert Path("in/a_voice1.wav").read_bytes() == before and len(list(Path("in").iterdir())) == 2


@pytest.mark.parametrize("level", [1.0, 2.0**-90, 2.0**90])
def test_names_and_levels_of_any_kind(level, tmp_path, monkeypatch, tune, capsys):
    """A name that is not UTF-8, samples whose squares leave the range of single precision."""
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()
    audio = (0.3 * tune(3, 1.0, RATE) + 0.3 * tune(8, 1.0, RATE)).astype(np.float32)
    soundfile.write("plain.wav", audio * np.float32(level), RATE, "FLOAT")
    odd = os.fsdecode(b"in/caf\xe9.wav")
    try:
        Path("plain.wav").rename(odd)
    except OSError:
        pytest.skip("this file system takes names in UTF-8 alone")
    assert main(["audio", "separate", "in", "--out", "out"]) == 0
    shown = capsys.readouterr()
    assert r"caf\xe9_voice1.wav" in shown.out and not shown.err
    voices = [soundfile.read(os.fsencode(path))[0] for path in sorted(Path("out").iterdir())]
    heard = torch.from_numpy(audio - audio.mean())[None]
    found = twice(load_separator(), heard)[0].detach().numpy()
    np.testing.assert_allclose(np.stack(voices) / level, found, atol=1e-5)
