"""Generated series for pretraining, drawn at random and without any real data."""

from __future__ import annotations

import numpy as np

from longseq.timeseries.data.chaos import SYSTEMS, simulate
from longseq.timeseries.data.cumulative import cumulative
from longseq.timeseries.data.economy import economy
from longseq.timeseries.data.noise import (
    Rng,
    ar_noise,
    brown,
    innovations,
    log_uniform,
    recursive,
    unit,
)

COMMON = np.array([4, 5, 6, 7, 8, 12, 24, 30, 48, 52, 60, 96, 144, 168, 288, 336])
WEIGHTS = np.array([9, 2, 2, 10, 1, 14, 14, 2, 5, 3, 1, 4, 1, 3, 1, 1.0])


def draw_periods(rng: Rng, n: int, longest: int) -> np.ndarray:
    """Returns periods of at most ``longest`` rows (n,): usual ones, or any."""
    usual = max(longest, 4) >= COMMON
    p = rng.choice(COMMON[usual], n, p=WEIGHTS[usual] / WEIGHTS[usual].sum())
    other = np.round(log_uniform(rng, 3, max(longest, 4), n)).astype(int)
    return np.where(rng.random(n) < 0.25, other, p)


def season_shape(
    rng: Rng, n: int, length: int, periods: np.ndarray, phase: np.ndarray
) -> np.ndarray:
    """Returns seasons of unit variance (n, T): smooth, rough, block-wise or spiky."""
    t = np.arange(length)[None]
    p = periods[:, None].astype(float)
    angle = 2 * np.pi * ((t + phase[:, None]) % p) / p
    decay = rng.uniform(0.3, 2.5, n)
    out = np.zeros((n, length))
    turn = np.exp(1j * angle)
    wave = np.ones_like(turn)
    for k in range(1, 9):
        wave *= turn
        amp = rng.standard_normal((n, 2)) / k ** decay[:, None] * (k <= periods / 2)[:, None]
        out += amp[:, :1] * wave.real + amp[:, 1:] * wave.imag
    # Free values by phase, smoothed over a few rows.
    size = int(periods.max())
    free = rng.standard_normal((n, size))
    kind = rng.random(n)
    blocks = (rng.random((n, size)) < (3 / np.maximum(periods, 6))[:, None]).cumsum(1)
    level = rng.standard_normal((n, size))
    block = np.take_along_axis(level, np.minimum(blocks, size - 1), 1)
    spike = (rng.random((n, size)) < (2.0 / np.maximum(periods, 4))[:, None]) * rng.gamma(
        2.0, 1.0, (n, size)
    )
    table = np.where((kind < 0.25)[:, None], free, np.where((kind < 0.33)[:, None], block, spike))
    at = ((t + phase[:, None]) % periods[:, None]).astype(int)
    out = np.where((kind < 0.4)[:, None], np.take_along_axis(table, at, 1), out)
    # Humps: sharper peaks of the same shape.
    power = np.where(rng.random(n) < 0.25, rng.uniform(0.3, 1.2, n), 0.0)[:, None]
    out = np.where(power > 0, np.exp(np.clip(power * unit(out), -4, 4)), out)
    return unit(out)


def trend(rng: Rng, n: int, length: int) -> np.ndarray:
    """Returns trends of about unit range (n, T): none, lines, bends, curves, random walks."""
    t = np.linspace(0, 1, length)[None]
    kind = rng.integers(0, 8, n)
    slope = rng.standard_normal((n, 1))
    knots = np.sort(rng.random((n, 3)), 1)
    bend = slope * t + sum(
        rng.standard_normal((n, 1)) * 2 * np.maximum(t - knots[:, k : k + 1], 0) for k in range(3)
    )
    curve = np.sign(slope) * (np.exp(rng.uniform(0.3, 3, (n, 1)) * t) - 1)
    s_curve = slope * 2 / (1 + np.exp(-rng.uniform(4, 20, (n, 1)) * (t - rng.random((n, 1)))))
    walk = brown(rng, n, length) / np.sqrt(length) + slope * t * 0.5
    smooth = np.cumsum(
        recursive(rng.standard_normal((n, length)), rng.uniform(0.8, 0.995, (n, 1))), 1
    )
    smooth = unit(smooth)
    table = [np.zeros((n, length)), slope * t, bend, curve, s_curve, walk, walk, smooth]
    return np.choose(kind[:, None], table)


def structural(rng: Rng, n: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns trend × seasons × noise (n, T), and the first period (0 for none)."""
    longest = max(4, min(length // 3, 400))
    p1 = draw_periods(rng, n, longest)
    has = rng.random(n) < 0.85
    phase = rng.integers(0, 10_000, n)
    season = season_shape(rng, n, length, p1, phase)
    ratio = rng.choice([7, 7, 7, 5, 4, 2, 3, 12], n)
    p2 = p1 * ratio
    two = has & (rng.random(n) < 0.5) & (p2 <= length * 0.6)
    other = season_shape(rng, n, length, np.minimum(p2, length), phase // 3)
    # Days of the week: a factor or an offset a whole first period long, the last two alike.
    day = ((np.arange(length)[None] + phase[:, None]) // p1[:, None]) % ratio[:, None]
    effect = rng.standard_normal((n, 12)) * 0.3
    weekend = -rng.gamma(2.0, 0.6, (n, 1)) * np.sign(rng.random((n, 1)) - 0.15)
    effect[:, 5:7] = np.where(
        rng.random((n, 1)) < 0.7, weekend + 0.2 * effect[:, 5:7], effect[:, 5:7]
    )
    by_day = np.take_along_axis(effect, day, 1)
    style = rng.random(n)[:, None]
    a2 = log_uniform(rng, 0.1, 1.2, (n, 1))
    with_two = np.where(
        style < 0.35,
        season + a2 * other,
        np.where(
            style < 0.75,
            season + a2 * by_day,
            season * np.clip(1 + 0.5 * by_day, 0.05, 3) + 0.5 * a2 * by_day,
        ),
    )
    season = np.where(two[:, None], with_two, season) * has[:, None]
    fade = np.where(
        rng.random((n, 1)) < 0.3,
        np.exp(
            np.clip(brown(rng, n, length) / np.sqrt(length) * rng.uniform(0.2, 1.2, (n, 1)), -2, 2)
        ),
        1.0,
    )
    season = season * fade
    a_trend = log_uniform(rng, 0.05, 8, (n, 1)) * (rng.random((n, 1)) < 0.8)
    a_noise = log_uniform(rng, 0.02, 1.5, (n, 1))
    noise = ar_noise(rng, n, length)
    x = season + a_trend * trend(rng, n, length) + a_noise * noise
    shift = rng.random(n) < 0.15
    at = (rng.random((n, 1)) * length).astype(int)
    x = x + np.where(
        shift[:, None] & (np.arange(length)[None] >= at), rng.standard_normal((n, 1)) * 2, 0
    )
    # Growth: everything grows with the level.
    width = log_uniform(rng, 0.03, 0.6, (n, 1))
    growing = rng.random(n) < 0.4
    x = np.where(growing[:, None], np.exp(np.clip(width * x, -6, 6)), x)
    return x, np.where(has, p1, 0)


def exponential_smoothing(rng: Rng, n: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns paths of innovation state-space models with level, damped slope and season (n, T)."""
    longest = max(4, min(length // 3, 200))
    p = draw_periods(rng, n, longest)
    has = rng.random(n) < 0.6
    size = int(p.max())
    alpha = np.where(rng.random(n) < 0.2, 1.0, rng.uniform(0.02, 0.95, n))
    beta = np.where(rng.random(n) < 0.5, 0.0, alpha * log_uniform(rng, 0.003, 0.5, n))
    gamma = np.where(rng.random(n) < 0.4, 0.0, rng.uniform(0, 0.4, n))
    phi = np.where(rng.random(n) < 0.5, 1.0, rng.uniform(0.8, 0.99, n))
    s = (
        season_shape(rng, n, size, p, np.zeros(n, int))
        * log_uniform(rng, 0.3, 5, (n, 1))
        * has[:, None]
    )
    e = innovations(rng, n, length)
    level, slope = (
        np.zeros(n),
        rng.standard_normal(n) * log_uniform(rng, 0.003, 0.5, n) * (rng.random(n) < 0.7),
    )
    rows = np.arange(n)
    x, e, gamma = np.empty((length, n)), np.ascontiguousarray(e.T), gamma * has
    for t in range(length):  # rows of one time lie together
        at = t % p
        slope = phi * slope
        level = level + slope
        x[t] = level + s[rows, at] + e[t]
        level = level + alpha * e[t]
        slope = slope + beta * e[t]
        s[rows, at] += gamma * e[t]
    x = np.ascontiguousarray(x.T)
    drift = np.where(rng.random(n) < 0.3, rng.standard_normal(n) * 0.1, 0.0)
    x = x + drift[:, None] * np.arange(length)
    grow = rng.random(n) < 0.45
    width = log_uniform(rng, 0.01, 0.25, (n, 1))
    return np.where(grow[:, None], np.exp(np.clip(width * x, -8, 8)), x), np.where(has, p, 0)


def arima(rng: Rng, n: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns seasonal ARIMA paths (n, T): stable roots at random, up to two differences."""
    p = draw_periods(rng, n, max(4, min(length // 4, 200)))
    seasonal = rng.random(n) < 0.6
    warm = min(3 * length, 400)
    e = innovations(rng, n, length + warm)
    r, w = rng.uniform(0, 0.97, n) ** 0.7, rng.uniform(0, np.pi, n)
    pair = rng.random(n) < 0.4
    phi = np.stack(
        [
            np.where(pair, 2 * r * np.cos(w), rng.uniform(-0.5, 0.97, n)),
            np.where(pair, -(r**2), 0.0),
        ],
        1,
    )
    theta = rng.uniform(-0.8, 0.8, n)[:, None]
    e[:, 1:] = e[:, 1:] + theta * e[:, :-1]
    x = recursive(e, phi)
    big = np.where(rng.random(n) < 0.6, 1.0, rng.uniform(0.3, 0.95, n)) * seasonal
    rows = np.arange(n)
    ma = rng.uniform(-0.9, 0.2, n) * seasonal
    x = np.ascontiguousarray(x.T)
    y = x.copy()  # rows of one time lie together
    for t in range(int(p.min(initial=len(y))), len(y)):
        back = t - p
        at = np.maximum(back, 0)
        y[t] += np.where(back >= 0, big * y[at, rows] + ma * x[at, rows], 0.0)
    y = np.ascontiguousarray(y[warm:].T)
    d = rng.choice([0, 1, 2], n, p=[0.4, 0.5, 0.1])[:, None]
    once = np.cumsum(y - y.mean(1, keepdims=True) * (rng.random((n, 1)) < 0.7), 1)
    twice = np.cumsum(once, 1) / length
    return np.where(d == 0, y, np.where(d == 1, once, twice)), np.where(seasonal, p, 0)


def gaussian_process(rng: Rng, n: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns sums and products of draws of stationary kernels, by their spectra (n, T)."""
    freq = np.fft.rfftfreq(2 * length)

    def draw() -> np.ndarray:
        scale = log_uniform(rng, 2, length, (n, 1))
        kind = rng.integers(0, 3, (n, 1))
        rbf = np.exp(-0.5 * (2 * np.pi * freq * scale) ** 2)
        matern = (1 + (2 * np.pi * freq * scale) ** 2) ** -np.where(kind == 1, 1.0, 2.0)
        density = np.sqrt(np.where(kind == 0, rbf, matern) + 1e-12)
        z = rng.standard_normal((n, len(freq))) + 1j * rng.standard_normal((n, len(freq)))
        return unit(np.fft.irfft(z * density, 2 * length)[:, :length])

    p = draw_periods(rng, n, max(4, min(length // 3, 400)))
    season = season_shape(rng, n, length, p, rng.integers(0, 1000, n))
    a, b = draw(), draw()
    has = rng.random((n, 1)) < 0.6
    kind = rng.random((n, 1))
    x = np.where(
        kind < 0.3, a, np.where(kind < 0.6, a + rng.uniform(0, 1, (n, 1)) * b, a * (1 + b))
    )
    x = x * log_uniform(rng, 0.2, 2, (n, 1)) + has * np.where(
        rng.random((n, 1)) < 0.5, season, season * np.exp(0.4 * b)
    )
    x = x + log_uniform(rng, 0.005, 0.7, (n, 1)) * innovations(rng, n, length)
    return x, np.where(has[:, 0], p, 0)


def random_walk(rng: Rng, n: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns random walks, some with drift, mean reversion or in logs (n, T)."""
    e = innovations(rng, n, length)
    e = e + np.where(rng.random((n, 1)) < 0.4, rng.standard_normal((n, 1)) * 0.15, 0.0)
    pull = np.where(rng.random(n) < 0.3, 1 - log_uniform(rng, 0.002, 0.1, n), 1.0)
    x = recursive(e, pull[:, None])
    x = x + np.where(
        rng.random((n, 1)) < 0.3, rng.uniform(0, 2, (n, 1)) * rng.standard_normal((n, length)), 0.0
    )
    width = log_uniform(rng, 0.002, 0.08, (n, 1))
    return np.where(rng.random((n, 1)) < 0.5, np.exp(np.clip(width * x, -8, 8)), x), np.zeros(
        n, int
    )


def local_trend(rng: Rng, n: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns yearly kinds of series (n, T): growth with a wandering rate, and noise."""
    rate = rng.standard_normal((n, 1)) * log_uniform(rng, 0.05, 1, (n, 1))
    wander = recursive(
        rng.standard_normal((n, length)) * log_uniform(rng, 0.03, 0.9, (n, 1)),
        rng.uniform(0.2, 1.0, (n, 1)),
    )
    x = np.cumsum(rate + wander + 0.3 * innovations(rng, n, length) * (rng.random((n, 1)) < 0.8), 1)
    x = x + log_uniform(rng, 0.01, 2, (n, 1)) * innovations(rng, n, length)
    width = log_uniform(rng, 0.01, 0.3, (n, 1))
    return np.where(rng.random((n, 1)) < 0.5, np.exp(np.clip(width * x, -7, 7)), x), np.zeros(
        n, int
    )


def counts(rng: Rng, n: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns counts and intermittent demand (n, T): Poisson, negative binomial, runs of zeros."""
    p = draw_periods(rng, n, max(4, min(length // 3, 200)))
    has = rng.random((n, 1)) < 0.6
    rate = log_uniform(rng, 0.05, 60, (n, 1))
    shape = (
        has
        * season_shape(rng, n, length, p, rng.integers(0, 1000, n))
        * rng.uniform(0.1, 0.9, (n, 1))
    )
    wander = brown(rng, n, length) / np.sqrt(length) * rng.uniform(0, 1.2, (n, 1))
    lam = np.clip(rate * np.exp(np.clip(shape + wander, -4, 3)), 0, 1e5)
    size = log_uniform(rng, 0.5, 30, (n, 1))
    lam = np.where(
        rng.random((n, 1)) < 0.5, lam, lam * rng.gamma(np.broadcast_to(size, lam.shape), 1 / size)
    )
    x = rng.poisson(lam).astype(float)
    chance = rng.uniform(0.05, 0.6, (n, 1))
    sparse = rng.random((n, 1)) < 0.35
    return np.where(sparse, x * (rng.random((n, length)) < chance), x), np.where(has[:, 0], p, 0)


_BANK: dict[str, np.ndarray] = {}


def chaotic(rng: Rng, n: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns coordinates of chaotic flows and maps (n, T), at several rates of sampling."""
    if not _BANK:
        for i, name in enumerate(SYSTEMS):
            _BANK[name] = simulate(name, 12_000, 4, seed=i, every=1)
    x = np.empty((n, length))
    names = list(_BANK)
    for i in range(n):
        name = names[rng.integers(len(names))]
        bank, flow = _BANK[name], SYSTEMS[name].dt > 0
        every = int(rng.integers(1, max(2, min(12, 11_000 // length)))) if flow else 1
        start = rng.integers(0, bank.shape[1] - every * (length - 1))
        x[i] = bank[
            rng.integers(len(bank)),
            start : start + every * length : every,
            rng.integers(bank.shape[2]),
        ][:length]
    x = unit(x) + log_uniform(rng, 0.001, 0.2, (n, 1)) * rng.standard_normal((n, length))
    return x, np.zeros(n, int)


FAMILIES = {
    structural: 0.31,
    exponential_smoothing: 0.16,
    arima: 0.12,
    gaussian_process: 0.13,
    random_walk: 0.08,
    local_trend: 0.13,
    counts: 0.05,
    chaotic: 0.03,
    economy: 0.15,
    cumulative: 0.10,
}


def generate(rng: Rng, n: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns series in random order (n, T), NaN where a value is missing, and their first periods
    (n,), 0 for none.

    Args:
        rng: source of randomness.
        n: number of series.
        length: rows T.
    """
    shares = rng.multinomial(n, np.array(list(FAMILIES.values())) / sum(FAMILIES.values()))
    parts = [family(rng, int(k), length) for family, k in zip(FAMILIES, shares) if k]
    x, periods = np.concatenate([a for a, _ in parts]), np.concatenate([b for _, b in parts])
    x = np.nan_to_num(x, nan=0.0, posinf=1e6, neginf=-1e6)
    order = rng.permutation(n)
    x, periods = x[order], periods[order]
    spread = np.maximum(x.std(1, keepdims=True), 1e-9)
    # Mixtures of two.
    mixed = rng.random(n) < 0.1
    w = rng.uniform(0.2, 0.8, (n, 1))
    other = np.roll(x / spread, 1, 0)
    x = np.where(mixed[:, None], w * x / spread + (1 - w) * other, x)
    spread = np.maximum(x.std(1, keepdims=True), 1e-9)
    kind = rng.random((7, n, 1))
    outliers = (kind[0] < 0.12) & (rng.random((n, length)) < log_uniform(rng, 0.002, 0.03, (n, 1)))
    thrown = spread * rng.standard_normal((n, length)) * rng.uniform(1, 6, (n, 1))
    x = np.where(outliers, x + thrown, x)
    low = np.quantile(x, rng.uniform(0.02, 0.4), axis=1, keepdims=True)
    x = np.where(kind[1] < 0.04, np.maximum(x, low), x)
    grain = spread * log_uniform(rng, 0.02, 0.5, (n, 1))
    x = np.where(kind[2] < 0.06, np.round(x / grain) * grain, x)
    x = np.where(kind[3] < 0.25, -x, x)
    # Missing: single values, or one stretch.
    holes = (kind[4] < 0.06) & (rng.random((n, length)) < rng.uniform(0.01, 0.3, (n, 1)))
    t = np.arange(length)[None]
    start = rng.random((n, 1)) * length
    holes |= (kind[5] < 0.04) & (t >= start) & (t < start + rng.uniform(0.02, 0.2, (n, 1)) * length)
    return np.where(holes, np.nan, x), periods
