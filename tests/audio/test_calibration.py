"""Calibration and metrics: monotone, cautious, and settled on what it is given; the baseline."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from longseq.audio.baselines import SpectralRegression, spectral_statistics
from longseq.audio.calibration import (
    NO_SIGN,
    SYNTHETIC,
    UNCERTAIN,
    UNSCORABLE,
    Calibration,
    calibrate,
)
from longseq.audio.features import MelPower
from longseq.audio.metrics import auc, auc_draws
from longseq.core.errors import ConfigError, DataError


def test_a_good_detector_is_calibrated_with_a_band() -> None:
    rng = np.random.default_rng(0)
    targets = np.repeat([0.0, 1.0], 200)
    logits = 30 * (targets - 0.5) + 5 * rng.standard_normal(400) + 40
    found = calibrate(logits, targets)
    p = np.array([found.probability(z) for z in logits])
    assert found.windows == 400 and found.low <= 0.35 and found.high >= 0.65
    assert p[targets > 0.5].mean() > 0.9 and p[targets < 0.5].mean() < 0.1
    assert found.verdict(found.probability(80.0)) == SYNTHETIC
    assert found.verdict(found.probability(0.0)) == NO_SIGN
    assert found.verdict(0.5) == UNCERTAIN


def test_a_useless_detector_is_uncertain_about_nearly_all() -> None:
    rng = np.random.default_rng(0)
    targets = np.repeat([0.0, 1.0], 200)
    for logits in (rng.standard_normal(400), -10 * targets + rng.standard_normal(400)):
        found = calibrate(logits, targets)
        verdicts = [found.verdict(found.probability(z)) for z in logits]
        # Each side of the band may err on 5% of the class that it wrongs.
        assert sum(verdict == UNCERTAIN for verdict in verdicts) >= 350


def test_without_validation_there_is_no_verdict() -> None:
    assert calibrate(np.array([1.0, 2.0]), np.array([1.0, 1.0])) == Calibration()
    assert Calibration().verdict(0.999) == UNCERTAIN
    # NaN is no probability at all, and never "no sign".
    assert np.isnan(Calibration().probability(np.nan))
    assert Calibration(windows=9).verdict(np.nan) == UNSCORABLE
    assert Calibration(slope=1.0).probability(-1e6) == 0.0 and Calibration().probability(1e6) == 1.0


@given(
    real=st.lists(st.integers(-3, 3), min_size=1, max_size=12),
    fake=st.lists(st.integers(-3, 3), min_size=1, max_size=12),
)
def test_auc_is_the_share_of_ordered_pairs(real: list[int], fake: list[int]) -> None:
    pairs = [(f > r) + 0.5 * (f == r) for r in real for f in fake]
    assert auc(np.array(real), np.array(fake)) == pytest.approx(np.mean(pairs))


def test_draws_are_of_songs() -> None:
    real, fake = np.array([0.0, 0.1, 0.2, 0.3]), np.array([0.05, 0.25, 0.1, 1.1])
    songs = np.array(["a", "a", "b", "b"])
    drawn = auc_draws(real, fake, songs, songs, draws=200)
    assert len(set(np.round(drawn, 6))) == 3  # aa, bb, and both orders of ab
    assert np.array_equal(drawn, auc_draws(real, fake, songs, songs, draws=200))
    assert np.isnan(auc(real, fake[:0]))


def test_the_baseline_tells_noise_from_music_and_ignores_gain(tune, tmp_path: Path) -> None:
    mel = MelPower()
    clips = torch.from_numpy(np.stack([tune(i, 1.0) for i in range(12)]))
    noisy = clips + 0.03 * torch.randn(clips.shape, generator=torch.Generator().manual_seed(0))
    x = spectral_statistics(torch.cat((clips, noisy)), mel)
    assert x.shape == (24, 3 * 128 + 10) and np.isfinite(x).all()
    assert np.allclose(x, spectral_statistics(torch.cat((clips, noisy)) * 8, mel), atol=1e-4)
    y = np.repeat([0.0, 1.0], 12)
    train, test = np.arange(24) % 12 < 6, np.arange(24) % 12 >= 9
    valid = ~train & ~test
    model = SpectralRegression().fit(x[train], y[train], x[valid], y[valid])
    scores = model.score(x[test])
    assert auc(scores[y[test] < 0.5], scores[y[test] > 0.5]) == 1.0
    model.save(tmp_path / "b.json")
    assert np.allclose(
        SpectralRegression.load(tmp_path / "b.json").score(x), model.score(x), atol=1e-5
    )
    (tmp_path / "b.json").write_text("{}")
    with pytest.raises(DataError, match="no fitted regression"):
        SpectralRegression.load(tmp_path / "b.json")
    with pytest.raises(ConfigError, match="no strength"):
        SpectralRegression(())
    assert np.isfinite(spectral_statistics(torch.zeros(1, 3), mel)).all()
