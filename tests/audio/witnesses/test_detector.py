"""The detector of witnesses: tails, evidence, verdicts, files; what it does not know is
uncertain."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from longseq.audio.calibration import Calibration
from longseq.audio.export import load_detector
from longseq.audio.scoring import score_file
from longseq.audio.witnesses.comb import find_comb
from longseq.audio.witnesses.detector import (
    AGREEMENT,
    NAMES,
    Shape,
    Tail,
    WitnessDetector,
    agreement,
    shape_profile,
)
from longseq.audio.witnesses.model import FrequencyModel, run_trained
from longseq.audio.witnesses.pieces import Averages, cut
from longseq.audio.witnesses.sequence import frequency_model
from longseq.audio.witnesses.spectrum import RATE, fine_spectrum, spectra
from longseq.audio.witnesses.texture import FEATURES
from longseq.core.errors import ConfigError, DataError
from sounds import noise, with_tones


@pytest.fixture
def detector() -> WitnessDetector:
    """A detector whose model is untrained, calibrated so that only combs speak."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    tails = {name: Tail.fit(rng.exponential(size=200)) for name in (*NAMES, "griffin_lim")}
    far = Tail([0, 1e6, 2e6, 3e6, 4e6], [1.0, 0.75, 0.5, 0.25, 0.1], 1e6)
    tails |= {"sequence": far, "griffin_lim": far}
    profiles = np.stack([shape_profile(fine_spectrum(noise(1.0, seed))) for seed in range(40)])
    shape = Shape.fit(profiles, 1.0)
    shape = Shape(shape.mean, shape.basis, 20 * shape.limit)  # of noise, for tones in noise
    calibration = Calibration(np.log(10), 0.0, 0.5, 0.9, 200)
    sizes = {"d_model": 8, "n_layers": 1, "channels": 4}
    weights = {
        f"sequence.{name}": value.numpy()
        for name, value in FrequencyModel(**sizes).state_dict().items()
    }
    weights |= {f"texture_{part}": np.zeros((1, FEATURES)) for part in ("mean", "weight")}
    weights["texture_bias"] = np.zeros(1)
    return WitnessDetector(
        sizes, ["griffin_lim"], tails, shape, calibration, ["lines"], {"train": ["a"]}, weights
    )


def test_tails_are_the_share_of_real_music_above() -> None:
    scores = np.random.default_rng(0).exponential(size=4000)
    tail = Tail.fit(scores)
    for share in (0.5, 0.1, 0.01, 0.001):
        assert tail.rarity(-np.log(share)) == pytest.approx(-np.log10(share), abs=0.25)
    rarities = [tail.rarity(x) for x in np.linspace(-5, 50, 300)]
    assert rarities == sorted(rarities) and rarities[0] == 0
    assert np.isnan(tail.rarity(float("nan")))
    often_zero = Tail.fit(np.maximum(scores - 3, 0))
    assert often_zero.rarity(0.0) < 1 < often_zero.rarity(9.0)


def test_lines_are_found_in_a_file_and_told(detector: WitnessDetector, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "lines.wav", with_tones(2756.25, seconds=25.0), RATE, "FLOAT")
    soundfile.write(tmp_path / "noise.wav", noise(25.0), RATE, "FLOAT")
    found, clean = (score_file(detector, tmp_path / f"{name}.wav") for name in ("lines", "noise"))
    assert found.verdict == "synthetic" and found.probability > 0.9 > clean.probability
    assert "lines at equal distances" in found.reason and "every " in found.reason
    assert found.evidence["witness"] in ("comb", "moved comb") and len(found.evidence["lines"]) > 3
    assert clean.verdict != "synthetic"
    # 25 s are one segment of 20 s and the rest.
    assert [(a, b) for a, b, _ in found.segments] == [(0.0, 20.0), (20.0, 25.0)]
    quiet = with_tones(2756.25, seconds=25.0) * np.float32(2.0**-6)
    soundfile.write(tmp_path / "quiet.wav", quiet, RATE, "FLOAT")
    again = score_file(detector, tmp_path / "quiet.wav")
    assert again.probability == pytest.approx(found.probability, abs=1e-4)


def test_a_moved_comb_of_a_long_file_is_that_of_its_pieces(
    detector: WitnessDetector, tmp_path: Path
) -> None:
    # About that of the packaged detector; here the verdict is synthetic from a score of 4.9.
    music = Tail([0.0, 2.05, 2.49, 3.09, 3.9], [1.0, 0.75, 0.5, 0.25, 0.1], 0.78)
    detector.tails |= {"moved comb": music, "comb": detector.tails["sequence"]}
    found = {}
    for name, level in (("faint", 0.0013), ("clear", 0.003)):
        audio = with_tones(1378.125 * 1.005, level, 80.0)
        parts = [spectra(piece) for piece in cut([audio])]
        average = find_comb(*(np.mean(part, axis=0, dtype=np.float64) for part in zip(*parts)))
        assert len(parts) == 4 and average.moved > 7  # over the whole file, both would speak
        soundfile.write(tmp_path / f"{name}.wav", audio, RATE, "FLOAT")
        found[name] = score_file(detector, tmp_path / f"{name}.wav")
    assert found["faint"].verdict != "synthetic" and found["clear"].verdict == "synthetic"
    assert "4 of 4 segments alone say so" in found["clear"].reason
    assert "that stand still" in found["clear"].reason and "every 1385." in found["clear"].reason
    high = detector.calibration.high
    assert all(probability < high for _, _, probability in found["faint"].segments)


def test_no_recording_scores_above_its_clearest_piece() -> None:
    # Two pieces hold combs, but not the same one; two hold none.
    combs = [with_tones(spacing, 0.004) for spacing in (1378.125 * 1.005, 1600 * 0.996)]
    songs = [noise(6.0, 1), *combs, noise(6.0, 2)]
    averages = Averages()
    alone = [averages.add(song)[1] for song in songs]
    found = averages.comb()
    assert min(alone[1:3]) > 8 > 4 > max(alone[0], alone[3])
    # The clearest of them is in a quarter of the recording.
    assert max(alone) / 4 <= found.moved < max(alone) / 4 + 2
    one = Averages()
    assert one.level is None
    level, score = one.add(songs[1])
    assert one.comb() == find_comb(*(part.astype(np.float64) for part in spectra(songs[1])))
    assert score == one.comb().moved and np.array_equal(level, one.level)
    assert np.isnan(one.add(songs[0] * np.float32(1e30))[1]) and one.level is None


def test_pieces_are_every_sample_once_and_short_rests_join_the_last() -> None:
    audio = np.arange(1050)
    for size, lengths in ((100, [100] * 10 + [50]), (260, [260] * 3 + [270]), (2000, [1050])):
        for chunk in (1, 7, 100, 333, 5000):
            pieces = list(cut((audio[i : i + chunk] for i in range(0, 1050, chunk)), size))
            assert [len(piece) for piece in pieces] == lengths
            assert np.array_equal(np.concatenate(pieces), audio)
    assert list(cut([])) == []


def test_what_is_unlike_the_music_is_uncertain(detector: WitnessDetector, tmp_path: Path) -> None:
    time = np.arange(8 * RATE) / RATE
    sine = (0.5 * np.sin(2 * np.pi * 440 * time)).astype(np.float32)
    soundfile.write(tmp_path / "sine.wav", sine, RATE, "FLOAT")
    found = score_file(detector, tmp_path / "sine.wav")
    assert found.verdict == "uncertain" and "unlike the music" in found.reason


def test_odd_files_end_in_a_verdict_of_their_own(detector: WitnessDetector, tmp_path: Path) -> None:
    loud = noise(6.0)
    loud[RATE] = 1e30
    cases = {
        "loud": (loud, "unscorable"),
        "silent": (np.zeros(6 * RATE, np.float32), "unscorable"),
        "one": (noise(1.0)[:1], "unscorable"),
        "short": (noise(2.0), "uncertain"),
    }
    for name, (audio, verdict) in cases.items():
        soundfile.write(tmp_path / f"{name}.wav", audio, RATE, "FLOAT")
        found = score_file(detector, tmp_path / f"{name}.wav")
        assert found.verdict == verdict, found
        assert (found.probability is None) == (verdict == "unscorable")
        assert ("silent: nothing to judge" in found.reason) == (name == "silent")
    half = np.concatenate((np.zeros(21 * RATE, np.float32), noise(6.0)))
    soundfile.write(tmp_path / "half.wav", half, RATE, "FLOAT")
    assert score_file(detector, tmp_path / "half.wav").probability is not None


def test_a_detector_is_its_file(detector: WitnessDetector, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", noise(6.0), RATE, "FLOAT")
    detector.save(tmp_path / "d.safetensors")
    again = load_detector(tmp_path / "d.safetensors")
    assert score_file(again, tmp_path / "a.wav") == score_file(detector, tmp_path / "a.wav")
    assert again.methods == ["lines"] and again.songs == {"train": ["a"]}
    with pytest.raises(ConfigError, match="a tail of every witness"):
        WitnessDetector({}, [], {}, detector.shape, Calibration(), [], {}, {})
    detector.hyper["d_model"] = 16
    detector.save(tmp_path / "d.safetensors")
    with pytest.raises(DataError, match=r"d\.safetensors"):
        load_detector(tmp_path / "d.safetensors")
    rows = detector.window_scores(np.stack((noise(2.0), noise(2.0, 1))), RATE)
    assert rows.shape == (2,) and np.isfinite(rows).all()


@pytest.mark.parametrize(
    "sizes", [{}, {"d_model": 24, "n_layers": 3, "channels": 5}, {"mixer": "mamba", "d_model": 8}]
)
def test_the_model_is_the_same_with_numpy_and_with_torch(sizes: dict[str, Any]) -> None:
    torch.manual_seed(1)
    model = FrequencyModel(**sizes)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    weights = {name: value.numpy() for name, value in model.state_dict().items()}
    features = np.random.default_rng(0).normal(size=(3, 8193)).astype(np.float32)
    found = frequency_model(sizes, weights)(features)
    with torch.inference_mode():
        wanted = float(model(torch.from_numpy(features)[None])[0])
    assert found == pytest.approx(wanted, rel=1e-4, abs=1e-4)
    assert run_trained(sizes, weights)(features) == pytest.approx(wanted, rel=1e-6)
    weights["head.bias"] = np.zeros(2)
    with pytest.raises(DataError, match=r"another shape: head\.bias \(2,\) instead of \(1,\)"):
        frequency_model(sizes, weights)


def test_a_scan_needs_no_torch(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.flac", noise(6.0) * 0.3, RATE)
    code = (
        "import sys; from longseq.audio.scan import run; "
        f"code = run([{str(tmp_path)!r}, '--out', {str(tmp_path / 'out')!r}]); "
        "heavy = {'torch', 'lightning', 'pandas', 'sklearn'}; "
        "print(sorted(heavy & set(sys.modules))); "
        "sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_packaged_detector_leaves_other_sounds_alone(tmp_path: Path) -> None:
    packaged = load_detector()
    time = np.arange(8 * RATE) / RATE
    sounds = {
        "noise": noise(8.0),
        "sine": (0.5 * np.sin(2 * np.pi * 440 * time)).astype(np.float32),
        "clicks": (np.arange(8 * RATE) % 11025 == 0).astype(np.float32),
    }
    for name, audio in sounds.items():
        soundfile.write(tmp_path / f"{name}.wav", audio, RATE, "FLOAT")
        assert score_file(packaged, tmp_path / f"{name}.wav").verdict != "synthetic", name


def test_what_three_hear_together_is_rarer_than_each(detector: WitnessDetector) -> None:
    tails = {name: detector.tails[name] for name in NAMES}  # each scores as 3% of music does
    scores = {name: t.values[-1] + t.scale * np.log(10) / 2 for name, t in tails.items()}
    scores["griffin_lim"] = 0.0
    alone, name = detector.evidence(scores)
    assert AGREEMENT not in detector.rarities(scores) and name in NAMES
    sums = np.random.default_rng(0).gamma(3, 1 / np.log(10), 400)  # as of independent witnesses
    detector.tails[AGREEMENT] = Tail.fit(sums)
    found = detector.rarities(scores)
    assert agreement(found) == pytest.approx(sum(found[name] for name in NAMES))
    together, name = detector.evidence(scores)
    assert name == AGREEMENT and found[AGREEMENT] > max(found[name] for name in NAMES)
    assert together == pytest.approx(found[AGREEMENT] - np.log10(5)) and together > alone
    # Without all three there is none, and what cannot be scored stays so.
    assert AGREEMENT not in detector.rarities({"comb": 1.0, "griffin_lim": 0.0})
    assert np.isnan(detector.evidence({**scores, "sequence": np.nan})[0])


def _sounds(seconds: float) -> dict[str, np.ndarray]:
    """Sounds that are no music, each with what a decoder would leave or more."""
    time = np.arange(round(seconds * RATE)) / RATE
    beat = np.arange(len(time)) % (RATE // 2) == 0
    return {
        "square": 0.3 * np.sign(np.sin(2 * np.pi * 500 * time)),
        "tone": 0.5 * np.sin(2 * np.pi * 1000 * time),
        "constant": np.full(len(time), 0.5),
        "step": 0.5 * np.sign(time - seconds / 2),
        "metronome": 0.9 * beat,
        "one sample": 0.9 * (np.arange(len(time)) == len(time) // 2),
    }


@pytest.mark.parametrize("sound", list(_sounds(0.1)))
def test_test_tones_and_clicks_are_not_called_synthetic(sound: str, tmp_path: Path) -> None:
    """Their lines and phases are like a decoder's; that they are no music is said."""
    soundfile.write(tmp_path / "a.wav", _sounds(12.0)[sound], RATE, "PCM_16")
    found = score_file(load_detector(), tmp_path / "a.wav")
    assert found.verdict == "uncertain" and found.probability is not None
    assert found.probability > 0.99  # by its witnesses alone it would be
    assert (
        "unlike the music" in found.reason or "no music" in found.reason or "clicks" in found.reason
    )


@pytest.mark.parametrize("level", [1e-20, 1e-38])
def test_what_rounding_leaves_is_silence(level: float, tmp_path: Path) -> None:
    quiet = (level * noise(6.0, 0)).astype(np.float32)
    assert quiet.any()
    soundfile.write(tmp_path / "a.wav", quiet, RATE, "FLOAT")
    found = score_file(load_detector(), tmp_path / "a.wav")
    assert (found.verdict, found.probability) == ("unscorable", None)
    assert found.reason.startswith("silent")
