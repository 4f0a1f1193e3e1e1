"""Generated series of the kind of economic statistics: growth, business cycles, seasons that change
from year to year, and what the calendar's months hold."""

from __future__ import annotations

import functools

import numpy as np

from longseq.timeseries.data.noise import Rng, innovations, log_uniform, recursive, unit

# Rows a year, and how often: yearly, quarterly, monthly.
_ROWS, _OFTEN = (1, 4, 12), (0.2, 0.3, 0.5)


@functools.cache
def weekdays() -> np.ndarray:
    """Returns how many of each weekday, Monday first, the months of 200 years hold (2400, 7)."""
    months = np.arange("1900-01", "2100-02", dtype="datetime64[M]").astype("datetime64[D]")
    names = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
    return np.stack([np.busday_count(months[:-1], months[1:], weekmask=day) for day in names], 1)


def business_cycle(rng: Rng, n: int, length: int, year: int) -> np.ndarray:
    """Returns second-order autoregressions of unit variance with cycles of 4 to 10 years (n, T).

    Args:
        rng: source of randomness.
        n: number of series.
        length: rows T.
        year: rows a year.
    """
    turn = 2 * np.pi / (year * rng.uniform(4, 10, n))
    r = np.exp(-rng.uniform(0.05, 0.5, n) / year)
    phi = np.stack([2 * r * np.cos(turn), -(r**2)], 1)
    warm = 10 * year
    return unit(recursive(rng.standard_normal((n, length + warm)), phi)[:, warm:])


def airline(rng: Rng, n: int, length: int, year: int) -> np.ndarray:
    """Returns logarithms (n, T) whose seasonal differences of differences are moving averages,
    (1 - B)(1 - B^s) y = (1 - a B)(1 - b B^s) e: the airline model (Box and Jenkins, 1970), with a
    growth and a season at the beginning.

    Args:
        rng: source of randomness.
        n: number of series.
        length: rows T.
        year: rows a year s, more than one.
    """
    e = innovations(rng, n, length) * log_uniform(rng, 0.002, 0.06, (n, 1))
    a, b = rng.uniform(0, 0.95, (n, 1)), rng.uniform(0.45, 0.98, (n, 1))
    e[:, 1:] = e[:, 1:] - a * e[:, :-1]
    e[:, year:] = e[:, year:] - b * e[:, :-year]
    season = unit(_season(rng, n, year)) * log_uniform(rng, 0.005, 0.4, (n, 1))
    growth = rng.normal(0.02, 0.04, (n, 1)) / year
    # Differences of the first year, from which those of each next one wander.
    e[:, :year] += season - np.roll(season, 1, 1) + growth
    full = -(-length // year) * year
    steps = np.pad(e, ((0, 0), (0, full - length))).reshape(n, -1, year).cumsum(1)
    return steps.reshape(n, full)[:, :length].cumsum(1)


def components(rng: Rng, n: int, length: int, year: int) -> np.ndarray:
    """Returns logarithms (n, T): wandering growth, a business cycle, a season each of whose rows
    walks from year to year, and noise.

    Args:
        rng: source of randomness.
        n: number of series.
        length: rows T.
        year: rows a year.
    """
    growth = rng.normal(0.025, 0.04, (n, 1)) / year
    wander = rng.standard_normal((n, length)) * log_uniform(rng, 1e-4, 5e-3, (n, 1)) / year
    walk = innovations(rng, n, length) * log_uniform(rng, 1e-3, 0.1, (n, 1)) / np.sqrt(year)
    x = np.cumsum(growth + wander.cumsum(1) + walk * (rng.random((n, 1)) < 0.6), 1)
    x += business_cycle(rng, n, length, year) * log_uniform(rng, 0.003, 0.2, (n, 1))
    x += innovations(rng, n, length) * log_uniform(rng, 0.001, 0.06, (n, 1))
    if year > 1:
        size = log_uniform(rng, 0.005, 0.5, (n, 1))
        moves = rng.standard_normal((n, -(-length // year), year))
        moves *= log_uniform(rng, 0.005, 0.3, (n, 1, 1)) * (rng.random((n, 1, 1)) < 0.8)
        moves[:, 0] = unit(_season(rng, n, year))
        x += size * moves.cumsum(1).reshape(n, -1)[:, :length]
    return x


def calendar(rng: Rng, months: np.ndarray) -> np.ndarray:
    """Returns what the days of months add to logarithms (n, T), and a feast in March or April.

    Args:
        rng: source of randomness.
        months: of every series and row, counted from January 1900 (n, T), at most 2,399.
    """
    n, length = months.shape
    counts = weekdays()
    effect = rng.standard_normal((n, 7)) * log_uniform(rng, 0.001, 0.015, (n, 1))
    effect += log_uniform(rng, 1e-3, 1 / 30, (n, 1)) * (rng.random((n, 1)) < 0.5)
    days = np.einsum("ntd,nd->nt", counts[months] - counts.mean(0), effect)
    march = rng.random((n, length)) < 0.25  # the feast of this year, read at its March
    early = np.where(months % 12 == 2, march, np.roll(march, 1, 1))
    here = np.where(months % 12 == 2, early, np.where(months % 12 == 3, ~early, False))
    return days + here * rng.normal(0, 0.05, (n, 1)) * (rng.random((n, 1)) < 0.3)


def economy(rng: Rng, n: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns yearly, quarterly and monthly kinds of series (n, T), and rows a year (0 for one)."""
    out, periods = np.empty((n, length)), np.zeros(n, int)
    years = rng.choice(_ROWS, n, p=_OFTEN)
    for year in _ROWS:
        rows = np.flatnonzero(years == year)
        if not len(rows):
            continue
        k = len(rows)
        x = components(rng, k, length, year)
        if year > 1:
            models = airline(rng, k, length, year)
            x = np.where(rng.random((k, 1)) < 0.5, models, x)
            periods[rows] = year
        if year == 12:
            first = rng.integers(0, len(weekdays()), (k, 1))
            months = (first + np.arange(length)) % len(weekdays())
            x += calendar(rng, months) * (rng.random((k, 1)) < 0.6)
        # A fall or a rise of the level within a few rows, as of a crisis or a new definition.
        at = (rng.random((k, 1)) * length).astype(int)
        fall = np.clip((np.arange(length) - at) / rng.integers(1, 7, (k, 1)), 0, 1)
        x += fall * rng.normal(0, 0.12, (k, 1)) * (rng.random((k, 1)) < 0.2)
        # Long histories of wandering growth stay within what a float can hold, and a reader see.
        reach = np.ptp(x, axis=1, keepdims=True)
        x *= np.minimum(1, 5 / np.maximum(reach, 1e-9))
        x -= x.mean(1, keepdims=True)
        out[rows] = np.where(rng.random((k, 1)) < 0.75, np.exp(x), x)
    return out, periods


def _season(rng: Rng, n: int, year: int) -> np.ndarray:
    """Returns a year's pattern (n, s): free values, a wave, or a few rows apart from the rest."""
    kind, rows = rng.random((n, 1)), np.arange(year)
    free = rng.standard_normal((n, year))
    wave = np.cos(2 * np.pi * (rows / year - rng.random((n, 1)))) + 0.4 * free
    few = 0.15 * free + (rng.random((n, year)) < 2 / year) * rng.normal(0, 2, (n, year))
    return np.where(kind < 0.4, free, np.where(kind < 0.7, wave, few))
