"""Fixtures of the audio tests: one thread, and tiny songs with versions that are easy to tell."""

import numpy as np
import pytest
import soundfile
import torch

RATE = 16000


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(1)


def make_tune(seed, seconds=3.0, rate=RATE):
    """Returns a little tune of harmonic tones, float32 (N,)."""
    rng = np.random.default_rng(seed)
    out = np.zeros(round(seconds * rate))
    for i in range(int(seconds * 4) + 1):
        pitch = 110 * 2 ** (rng.integers(0, 24) / 12)
        place = slice(i * rate // 4, i * rate // 4 + rate)
        time = np.arange(len(out[place])) / rate
        out[place] += np.exp(-6 * time) * sum(
            np.sin(2 * np.pi * pitch * k * time) / k for k in range(1, 6)
        )
    out += 1e-3 * rng.standard_normal(len(out))
    return (0.5 * out / np.abs(out).max()).astype(np.float32)


@pytest.fixture(scope="session")
def tune():
    """The function that makes a tune: (seed, seconds, rate) → samples."""
    return make_tune


@pytest.fixture
def make_songs(tmp_path):
    """Writes a labelled folder: real tunes, and versions with added noise or ring modulation."""

    def make(songs=6, seconds=3.0, methods=("noise", "ring"), name="songs", rate=RATE):
        root = tmp_path / name
        for i in range(songs):
            real = make_tune(i, seconds, rate)
            noise = 0.05 * np.random.default_rng(100 + i).standard_normal(len(real))
            versions = {
                "real": real,
                "fake/noise": real + noise,
                "fake/ring": real * np.cos(np.arange(len(real)) * 0.9),
            }
            for where, audio in versions.items():
                if where == "real" or where.removeprefix("fake/") in methods:
                    (root / where).mkdir(parents=True, exist_ok=True)
                    soundfile.write(root / where / f"song{i}.flac", audio, rate, "PCM_16")
        return root

    return make
