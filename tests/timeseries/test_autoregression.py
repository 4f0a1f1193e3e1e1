"""Autoregressions of many series at once."""

import numpy as np

from longseq.timeseries.autoregression import _burg, autoregressive_paths


def returning(n: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    x = np.zeros(n + 50)
    for i in range(2, n + 50):
        x[i] = 1.2 * x[i - 1] - 0.5 * x[i - 2] + rng.standard_normal()
    return x[50:]


def test_weights_of_a_known_process_forecast_it():
    x = np.stack([returning(380, seed) for seed in range(8)])
    found, variance = _burg(x, np.ones_like(x, dtype=bool), 3)
    expected = np.zeros((8, 3))
    past = [x[:, -2], x[:, -1]]
    for k in range(3):
        expected[:, k] = 1.2 * past[-1] - 0.5 * past[-2]
        past.append(expected[:, k])
    assert np.abs(found - expected).mean() < 0.25 and np.abs(variance - 1).max() < 0.3


def test_rows_are_what_each_is_alone_and_the_padding_is_not_read():
    lengths = (5, 8, 20, 90, 300)
    rows = np.full((len(lengths), 300), np.nan)
    for i, n in enumerate(lengths):
        rows[i, -n:] = returning(n, i) + 5
    together = autoregressive_paths(rows, 12)
    for i, n in enumerate(lengths):
        alone = autoregressive_paths(rows[i : i + 1, -n:], 12)
        np.testing.assert_allclose(together[i], alone[0], rtol=1e-9)


def test_scale_level_and_sign_go_through():
    x = returning(80, 1)[None]
    base = autoregressive_paths(x, 9)
    for factor, shift in ((1e9, 0.0), (1e-9, 0.0), (-3.0, 7.0)):
        found = autoregressive_paths(factor * x + shift, 9)
        np.testing.assert_allclose(found, factor * base + shift, rtol=1e-6)


def test_a_line_goes_on_and_nothing_leaves_the_range_far():
    t = np.arange(30.0)
    found = autoregressive_paths(np.stack([t, 5 - 2 * t]), 6)
    np.testing.assert_allclose(found[0], 30 + np.arange(6.0), rtol=1e-6)
    np.testing.assert_allclose(found[1], 5 - 2 * (30 + np.arange(6.0)), rtol=1e-6)
    grown = autoregressive_paths(1.5 ** t[None], 400)
    assert grown.max() <= 2 * 1.5**29 and np.isfinite(grown).all()
