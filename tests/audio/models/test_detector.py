"""The Mamba detector: whole songs in a stream, causality, independence of the batch; clips of
SpecTTTra."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from longseq.audio import create_model, list_models
from longseq.audio.models.detector import MambaDetector
from longseq.audio.scoring import song_logit
from longseq.audio.task import SongDetector
from longseq.core.errors import ArgumentError, ConfigError

TINY = {
    "d_model": 16,
    "n_layers": 2,
    "channels": 2,
    "n_fft": 512,
    "hop": 128,
    "n_mels": 16,
    "block": 40,
}


@pytest.fixture
def model() -> MambaDetector:
    torch.manual_seed(0)
    return create_model("mamba", **TINY).eval()


def mean_of_segments(model, audio, size):
    chunks = [audio[i : i + size] for i in range(0, len(audio), size)]
    return song_logit(list(model.segments(chunks)))


@pytest.mark.parametrize("length", [1, 200, 5000, 40 * 128, 23456])
def test_a_song_in_chunks_is_the_song_at_once(model: MambaDetector, length: int, tune) -> None:
    audio = tune(0, 2.0)[:length]
    with torch.no_grad():
        whole = float(model(torch.from_numpy(audio)[None]))
    for size in (1 << 16, 3001):
        assert mean_of_segments(model, audio, size) == pytest.approx(whole, abs=2e-5)


def test_segments_cover_the_song(model: MambaDetector, tune) -> None:
    segments = list(model.segments([tune(0, 1.5)]))
    assert segments[0].start == 0 and segments[-1].end == pytest.approx(1.5)
    assert all(a.end == b.start for a, b in pairwise(segments))
    assert segments[0].end == pytest.approx(40 * 128 / 16000)
    assert list(model.segments([])) == []


def test_what_comes_later_changes_no_earlier_segment(model: MambaDetector, tune) -> None:
    first, audio = tune(0, 2.0), tune(0, 2.0).copy()
    audio[20000:] = tune(1, 2.0)[20000:]
    before, after = (list(model.segments([x])) for x in (first, audio))
    whole = (20000 - 256) // (40 * 128)
    assert [s.logit for s in before[:whole]] == [s.logit for s in after[:whole]]
    assert before[-1].logit != after[-1].logit


def test_the_carried_state_is_that_of_the_whole(model: MambaDetector, tune) -> None:
    frames = model.features(torch.from_numpy(tune(0, 2.0))[None])
    with torch.no_grad():
        whole, _ = model.frame_logits(frames)
        left, state = model.frame_logits(frames[:, :101])
        right, _ = model.frame_logits(frames[:, 101:], state)
    assert torch.allclose(torch.cat((left, right), 1), whole, atol=1e-5)


def test_the_batch_and_gain_change_nothing(model: MambaDetector, tune) -> None:
    audio = torch.from_numpy(np.stack([tune(i, 1.0) for i in range(4)]))
    with torch.no_grad():
        together = model(audio * torch.tensor([1.0, 8.0, 0.3, 2.0**-12])[:, None])
        alone = torch.cat([model(row[None]) for row in audio])
    assert torch.allclose(together, alone, atol=1e-4)


def test_it_refuses_what_does_not_stream(model: MambaDetector) -> None:
    with pytest.raises(ConfigError, match="causal mixer"):
        create_model("mamba", **TINY, mixer="attention", mixer_kwargs={"bidirectional": True})
    with pytest.raises(ArgumentError, match="N ≥ 1"):
        model(torch.zeros(2, 0))
    with pytest.raises(ConfigError, match="did you mean 'd_model'"):
        create_model("mamba", d_modl=3)
    with pytest.raises(ConfigError, match="did you mean 'mamba'"):
        create_model("mambo")
    assert len(list_models()) == 7


def test_spectttra_pads_short_clips_and_cuts_long_songs(tune) -> None:
    torch.manual_seed(0)
    model = create_model("spectttra_gamma_5s", d_model=24, n_layers=1, n_heads=2).eval()
    audio = tune(0, 12.0)
    segments = list(model.segments([audio[:70000], audio[70000:]]))
    assert [(s.start, s.end) for s in segments] == [(0, 5), (5, 10), (10, 12)]
    with torch.no_grad():
        padded = np.pad(audio[160000:], (0, 3 * 16000))
        assert segments[2].logit == pytest.approx(
            float(model(torch.from_numpy(padded)[None])), abs=1e-6
        )
        with pytest.raises(ArgumentError, match="5 s"):
            model(torch.zeros(1, 80001))
    assert len(list(model.segments([audio[:100]]))) == 1


def test_the_metric_is_the_share_of_ordered_pairs(monkeypatch) -> None:
    """Also of log-odds beyond the ends of a float32 sigmoid, and of batches that lie in [0, 1] by
    chance."""
    task = SongDetector(model_kwargs=TINY).eval()
    logits = torch.tensor([-90.0, 40.0, 41.0, 0.1, 0.9, 0.5, 50.0, 41.0])
    target = torch.tensor([0.0, 0.0, 1.0, 0.0, 1.0, 1.0, 1.0, 0.0])
    for part in (slice(0, 3), slice(3, 6), slice(6, 8)):
        monkeypatch.setattr(task, "forward", lambda audio, part=part: logits[part])
        out = task.compute({"audio": logits[part], "target": target[part]})
        task.metrics["val"].update(preds=out["preds"], target=out["target"])
    real, fake = logits[target == 0].tolist(), logits[target == 1].tolist()
    pairs = [(f > r) + 0.5 * (f == r) for r in real for f in fake]
    found = task.metrics["val"].compute()["val/auc"]
    assert float(found) == pytest.approx(sum(pairs) / len(pairs), abs=1e-6)
