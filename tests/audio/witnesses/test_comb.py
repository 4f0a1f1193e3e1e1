"""Spectrum, comb, texture and sequence features: what stands still is found, music is left alone,
gain changes nothing."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from longseq.audio.witnesses.comb import (
    comb_scores,
    find_comb,
    moved_scores,
    spacings,
)
from longseq.audio.witnesses.model import FrequencyModel
from longseq.audio.witnesses.sequence import sequence_features
from longseq.audio.witnesses.simulation import add_lines, draw_decoder
from longseq.audio.witnesses.spectrum import (
    BIN,
    BINS,
    RATE,
    bandwidth,
    fine_spectrum,
    line_scores,
    spectra,
    surprise,
)
from longseq.audio.witnesses.texture import FEATURES, known, texture
from sounds import noise, with_tones


def test_a_tone_is_one_line_at_its_frequency_and_gain_only_shifts() -> None:
    time = np.arange(4 * RATE) / RATE
    audio = (noise(4.0) + 0.01 * np.sin(2 * np.pi * 5512.5 * time)).astype(np.float32)
    level = fine_spectrum(audio)
    z = line_scores(level)
    assert abs(z.argmax() * BIN - 5512.5) < BIN and z.max() > 2 * np.sort(z[800:])[-8]
    assert np.allclose(fine_spectrum(audio * 0.125) - level, 20 * np.log10(0.125), atol=1e-3)
    # Zeros before the music are left out, as silence is.
    padded = np.concatenate((np.zeros(1 << 15, np.float32), audio[: 1 << 16]))
    assert np.abs(fine_spectrum(padded) - fine_spectrum(audio[: 1 << 16])).mean() < 2


def test_surprise_is_exponential_where_chance_orders_the_bins() -> None:
    u = surprise(np.random.default_rng(0).standard_normal(BINS).astype(np.float32))
    assert u.mean() == pytest.approx(1.0, abs=0.1) and np.quantile(u, 0.9) == pytest.approx(
        -np.log(0.1), abs=0.2
    )


@pytest.mark.parametrize("spacing", [5512.5, 2756.25, 6000.0, 1378.125])
def test_a_comb_is_found_at_its_spacing(spacing: float) -> None:
    found = find_comb(fine_spectrum(with_tones(spacing)))
    assert found.score > 4.5, found
    assert (found.spacing / spacing) == pytest.approx(round(found.spacing / spacing), abs=1e-3) or (
        spacing / found.spacing
    ) == pytest.approx(round(spacing / found.spacing), abs=1e-3)
    heights = [height for _, height in found.lines]
    assert heights == sorted(heights, reverse=True)


def test_noise_has_none_and_a_faster_record_is_found_by_its_speed() -> None:
    scores = [find_comb(fine_spectrum(noise(6.0, seed))).score for seed in range(6)]
    assert max(scores) < 4, scores
    moved = find_comb(fine_spectrum(with_tones(1378.125 * 1.005)))
    assert moved.moved > 8 and moved.score < moved.moved - 3
    assert moved.spacing / 1378.125 == pytest.approx(1.005, abs=3e-4)


def test_scores_are_those_of_the_definition() -> None:
    from scipy.stats import gamma

    u = np.random.default_rng(0).exponential(size=BINS)
    grid = spacings()
    assert 20 < len(grid) < 100 and (np.diff(grid) > 0).all()
    for i in (0, 20, len(grid) - 1):
        n = np.arange(np.ceil(4000 / grid[i]), np.floor(20000 / grid[i]) + 1)
        true = -np.log10(gamma.sf(u[np.rint(n * grid[i] / BIN).astype(int)].sum(), len(n)))
        found = comb_scores(u, grid, 20000.0)[i]
        assert found == pytest.approx(true if len(n) >= 3 else 0.0)
    assert (comb_scores(u, grid, 4500.0) == 0).all()


def test_the_steady_level_keeps_lines_and_forgets_notes() -> None:
    background = noise(6.0)
    tones = 4 * (with_tones(2756.25, seconds=6.0) - background)
    time = np.arange(len(background)) / RATE
    notes = background + tones * (time % 3 < 1.5)
    always, often = spectra(background + tones), spectra(notes.astype(np.float32))
    for level, steady in (always, often):
        assert level.shape == steady.shape == (BINS,) and level.dtype == steady.dtype == np.float32
        assert (steady <= level + 6).all() and steady.mean() < level.mean()
    assert find_comb(*always).moved > 12 and find_comb(*often).moved < 6
    # In the mean, both are a comb.
    assert find_comb(often[0]).moved > 12
    silent = spectra(np.zeros(RATE, np.float32))
    assert not silent[0].any() and not silent[1].any() and find_comb(*silent).moved == 0
    # Rounding errors of a transform are no lines.
    sine = (0.5 * np.sin(2 * np.pi * 440 * time)).astype(np.float32)
    assert find_comb(*spectra(sine)).moved == 0


def test_the_score_of_a_moved_comb_is_its_definition() -> None:
    z = np.random.default_rng(1).standard_normal(BINS) * 4
    high = 15000.0
    found, v = moved_scores(z, high), np.clip(z, 0, 8)
    mean = v[round(4000 / BIN) : round(high / BIN)].mean()
    assert found.shape == (len(spacings()), 191)
    for row, column in ((0, 0), (7, 95), (20, 50), (len(spacings()) - 1, 190)):
        spacing = spacings()[row] * np.exp((column - 95) * 1.3e-4)
        places = np.arange(np.ceil(4000 / spacing), np.floor(high / spacing) + 1) * spacing
        heights = [v[round(place / BIN)] - mean for place in places]
        true = sum(heights) / np.sqrt(len(heights)) if len(heights) >= 3 else 0.0
        assert found[row, column] == pytest.approx(true)
    assert (moved_scores(z, 4500.0) == 0).all()


def test_the_bandwidth_is_where_music_ends() -> None:
    import soxr

    narrow = soxr.resample(soxr.resample(noise(4.0), RATE, 16000), 16000, RATE)
    assert 7500 < bandwidth(fine_spectrum(narrow)) < 8500
    assert bandwidth(fine_spectrum(noise(4.0))) > 21500
    features = sequence_features(fine_spectrum(narrow))
    assert (features[:, round(9000 / BIN) :] == 0).all() and np.isfinite(features).all()


def test_texture_tells_noise_from_tones_and_ignores_gain() -> None:
    rough = texture(noise())
    assert rough.shape == (FEATURES,) and np.isfinite(rough).all()
    time = np.arange(6 * RATE) / RATE
    tones = sum(np.sin(2 * np.pi * 311 * n * time) / n for n in range(1, 40)).astype(np.float32)
    smooth = texture(0.1 * tones + noise() * 1e-3)
    # Along frequency (the second half of every size), tones stand out of their patches.
    along = np.arange(FEATURES).reshape(4, 2, 16, 3)[3, 1, 2:8, 0]
    assert (smooth[along] < rough[along] - 0.3).all()
    assert np.abs(texture(noise() * 0.25) - rough).max() < 1e-4
    assert known(16000.0).all() and known(4000.0).sum() == FEATURES // 2 and not known(100.0).any()
    assert np.isfinite(texture(noise(0.2))).all() and np.isfinite(texture(np.zeros(9000))).all()


def test_simulated_decoders_add_lines_at_their_rates() -> None:
    rng = np.random.default_rng(3)
    rates = [draw_decoder(rng) for _ in range(50)]
    assert all(a > b >= 300 for found in rates for a, b in pairwise(found))
    level = fine_spectrum(noise())
    scores = [find_comb(add_lines(level, np.random.default_rng(seed))).score for seed in range(12)]
    assert np.median(scores) > 3 and (add_lines(level, rng) >= level - 1e-3).all()


def test_the_model_sees_the_whole_axis_and_rows_apart() -> None:
    torch.manual_seed(0)
    model = FrequencyModel(8, 1, channels=4).eval()
    x = torch.from_numpy(
        np.stack([sequence_features(fine_spectrum(noise(2.0, s))) for s in (0, 1)])
    )
    both = model(x)
    assert torch.allclose(both[0], model(x[:1])[0], atol=1e-6)
    for place in (10, 8000):
        changed = x.clone()
        changed[0, 0, place] += 5
        assert abs(float(model(changed)[0] - both[0])) > 0
