"""Generated series of the kind of populations and totals: what flows in and out is much less than
what is there, so that they are smooth, and much of what comes next can be known."""

from __future__ import annotations

import numpy as np

from longseq.timeseries.data.noise import Rng, ar_noise, brown, log_uniform, recursive, unit

# Rows a year and how often: none, quarters, months, weekdays, hours.
_ROWS, _OFTEN = (1, 4, 12, 7, 24), (0.45, 0.2, 0.2, 0.1, 0.05)


def rates(rng: Rng, n: int, length: int) -> np.ndarray:
    """Returns smooth processes of unit variance (n, T): an autoregression of an autoregression,
    with memories of 1 to 30 and of 3 to 300 rows, and now and then a bend or a jump.

    Args:
        rng: source of randomness.
        n: number of series.
        length: rows T.
    """
    short, long = (np.exp(-1 / log_uniform(rng, *ends, n)) for ends in ((1, 30), (3, 300)))
    warm = min(length, 300)
    noise = rng.standard_normal((n, length + warm))
    x = unit(recursive(noise, np.stack([short + long, -short * long], 1))[:, warm:])
    t = np.arange(length)
    at = rng.random((n, 1)) * length
    bend = np.maximum(t - at, 0) / length * rng.normal(0, 4, (n, 1)) * (rng.random((n, 1)) < 0.15)
    return x + bend + (t >= at) * rng.normal(0, 1.5, (n, 1)) * (rng.random((n, 1)) < 0.1)


def populations(rng: Rng, n: int, length: int, year: np.ndarray) -> np.ndarray:
    """Returns logarithms (n, T) that grow by a smooth rate, with a season, and hardly by chance.

    Args:
        rng: source of randomness.
        n: number of series.
        length: rows T.
        year: rows a season (n,), 1 for none.
    """
    mean = rng.normal(0.4, 1.0, (n, 1))
    rate = mean + rates(rng, n, length) * log_uniform(rng, 0.02, 2, (n, 1))
    season = _seasons(rng, n, length, year) * log_uniform(rng, 0.02, 3, (n, 1))
    x = np.cumsum(rate + season, 1) * log_uniform(rng, 1e-4, 0.02, (n, 1))
    step = np.abs(np.diff(x, axis=1)).sum(1, keepdims=True) / max(length - 1, 1)
    return x + step * log_uniform(rng, 1e-4, 0.5, (n, 1)) * rng.standard_normal((n, length))


def totals(rng: Rng, n: int, length: int, year: np.ndarray) -> np.ndarray:
    """Returns sums (n, T) of what is never negative: a flow that wanders, with a season, or counts.

    Args:
        rng: source of randomness.
        n: number of series.
        length: rows T.
        year: rows a season (n,), 1 for none.
    """
    wander = np.where(
        rng.random((n, 1)) < 0.5,
        brown(rng, n, length) / np.sqrt(length) * rng.uniform(0, 2, (n, 1)),
        rates(rng, n, length) * rng.uniform(0, 1, (n, 1)),
    )
    flow = wander + _seasons(rng, n, length, year) * rng.uniform(0, 0.8, (n, 1))
    flow += ar_noise(rng, n, length) * log_uniform(rng, 0.005, 1, (n, 1))
    flow = np.exp(np.clip(flow, -6, 6))
    mean = log_uniform(rng, 0.3, 300, (n, 1))
    counted = rng.poisson(np.minimum(flow * mean, 1e6)).astype(float)
    flow = np.where(rng.random((n, 1)) < 0.3, counted, flow)
    new = rng.random((n, 1)) < 0.5  # the others had a total before
    return flow.cumsum(1) + np.where(new, 0, flow.sum(1, keepdims=True)) * rng.gamma(1, 1, (n, 1))


def cumulative(rng: Rng, n: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns populations and totals (n, T), and their seasons (n,), 0 for none."""
    year = rng.choice(_ROWS, n, p=_OFTEN)
    logs = populations(rng, n, length, year)
    logs *= np.minimum(1, 5 / np.maximum(np.ptp(logs, axis=1, keepdims=True), 1e-9))
    grown = np.where(rng.random((n, 1)) < 0.7, np.exp(logs - logs.mean(1, keepdims=True)), logs)
    x = np.where(rng.random((n, 1)) < 0.6, grown, totals(rng, n, length, year))
    return x, np.where(year > 1, year, 0)


def _seasons(rng: Rng, n: int, length: int, year: np.ndarray) -> np.ndarray:
    """Returns seasons of unit variance (n, T), 0 of series without one and of three in ten more."""
    rows = int(year.max(initial=1))
    at = np.arange(length) % year[:, None]
    free = rng.standard_normal((n, rows))
    wave = np.cos(2 * np.pi * (np.arange(rows) / year[:, None] - rng.random((n, 1)))) + 0.3 * free
    table = np.where(rng.random((n, 1)) < 0.5, free, wave)
    found = unit(np.take_along_axis(table, at, 1))
    return found * (year > 1)[:, None] * (rng.random((n, 1)) < 0.7)
