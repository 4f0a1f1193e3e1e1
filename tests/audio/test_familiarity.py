"""Recordings unlike the training songs get no verdict, and the measure travels with the
detector."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from longseq.audio.calibration import Calibration
from longseq.audio.data.module import SongData
from longseq.audio.export import export, load_detector
from longseq.audio.familiarity import fit_familiarity, profile
from longseq.audio.scoring import score_file
from longseq.audio.task import SongDetector


@pytest.fixture
def task(make_songs) -> SongDetector:
    """An untrained detector that is always sure, with the measure of some tunes."""
    torch.manual_seed(0)
    made = SongDetector(model_kwargs={"d_model": 16, "n_layers": 1, "channels": 2}).eval()
    data = SongData(str(make_songs(10, seconds=6.0)), eval_seconds=6.0)
    made.calibration = Calibration(0.0, 5.0, 0.3, 0.7, 10)
    made.familiarity = fit_familiarity(data, made.mel)
    return made


def test_other_sounds_are_uncertain(task: SongDetector, tune, tmp_path: Path) -> None:
    assert task.familiarity is not None
    noise = np.random.default_rng(0).standard_normal(6 * 16000).astype(np.float32)
    clips = torch.from_numpy(np.stack((tune(77, 6.0), noise / 10)))
    near, far = task.familiarity.distance(profile(clips, task.mel))
    assert near < 0.5 * far and far > 2 * task.familiarity.limit
    soundfile.write(tmp_path / "noise.wav", noise / 10, 16000, "FLOAT")
    found = score_file(task, tmp_path / "noise.wav")
    assert found.verdict == "uncertain" and "unlike the music" in found.reason
    export(task, tmp_path / "d.safetensors")
    again = score_file(load_detector(tmp_path / "d.safetensors"), tmp_path / "noise.wav")
    assert again == found
    task.familiarity = None
    assert score_file(task, tmp_path / "noise.wav").verdict == "synthetic"


def test_the_distance_is_one_on_average_over_the_training_songs(
    task: SongDetector, make_songs
) -> None:
    data = SongData(str(make_songs(10, seconds=6.0)), eval_seconds=6.0)
    batches = [profile(batch["audio"], task.mel) for batch in data.evaluation("train")]
    squares = task.familiarity.distance(np.concatenate(batches)) ** 2
    assert squares.mean() == pytest.approx(1.0, abs=0.02)
