"""Theta lines of many series at once: every constant of a grid, the rest by least squares."""

from __future__ import annotations

import numpy as np

_ALPHAS = np.linspace(0.1, 0.99, 24)
_BURN_IN = 3  # first errors that are not counted where there are enough others


def theta_paths(y: np.ndarray, horizon: int) -> np.ndarray:
    """Returns forecasts (N, h) by the best of four Theta models of each series.

    The one-step forecast is μ_t = l_{t-1} + ω g_t with the level l_t = α y_t + (1 - α) l_{t-1} and
    g_t = (1 - α)^{t-1} A + (1 - (1 - α)^t) / α · B, A + B t the line (Fiorucci et al. 2016,
    equations 8 to 12): linear in the first level and in ω once α is fixed.

    Args:
        y: series without season (N, L).
        horizon: rows h.
    """
    count, length = y.shape
    found = np.repeat(y[:, -1:], horizon, axis=1)
    if length < 3:
        return found
    best = np.full(count, np.inf)
    # Every series with every constant is a row.
    each, alpha = np.repeat(np.arange(count), len(_ALPHAS)), np.tile(_ALPHAS, count)
    for dynamic in (False, True):
        a, b = _lines(y, dynamic)
        for free in (False, True):
            level, omega, error = _fit(y[each], a[each], b[each], alpha[:, None], free)
            grid = error.reshape(count, -1)
            place = np.arange(count) * len(_ALPHAS) + grid.argmin(1)
            better = grid.min(1) < best * (1 - 1e-12)
            at = place[better]
            best[better] = error[at]
            found[better] = _path(
                y[better], a[better], b[better], alpha[at], level[at], omega[at], horizon, dynamic
            )
    return found


def _lines(y: np.ndarray, dynamic: bool) -> tuple[np.ndarray, np.ndarray]:
    """Returns intercepts A and slopes B (N, L + 1): those known before each row, and after all."""
    length = y.shape[1]
    n = np.arange(1, length + 1)
    sums, moments = np.cumsum(y, 1), np.cumsum(y * n, 1)
    mean = sums / n
    centred = moments - mean * n * (n + 1) / 2
    slope = np.where(n > 1, 12 * centred / np.maximum(n * (n * n - 1.0), 1), 0.0)
    start = mean - slope * (n + 1) / 2
    if not dynamic:
        return tuple(np.repeat(one[:, -1:], length + 1, 1) for one in (start, slope))  # type: ignore
    first = np.zeros((len(y), 1))
    return np.concatenate([y[:, :1], start], 1), np.concatenate([first, slope], 1)


def _gain(a: np.ndarray, b: np.ndarray, t: np.ndarray, alpha: float | np.ndarray) -> np.ndarray:
    """Returns g_t for rows t, counted from 1; α is one number, or one per series."""
    fade = (1 - alpha) ** (t - 1)
    return fade * a + (1 - fade * (1 - alpha)) / alpha * b


def _fit(
    y: np.ndarray, a: np.ndarray, b: np.ndarray, alpha: float | np.ndarray, free: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the last level, ω, and the sum of squared one-step errors, (N,) each."""
    count, length = y.shape
    t = np.arange(1, length + 1)
    alpha = np.full((count, 1), alpha) if np.ndim(alpha) == 0 else np.asarray(alpha)
    constant = alpha[:, 0]
    gain = _gain(a[:, :length], b[:, :length], t, alpha)
    fade = (1 - alpha) ** (t - 1)
    level, base = np.zeros(count), np.empty_like(y)
    for i in range(length):
        base[:, i] = level  # of a first level of 0
        level = constant * y[:, i] + (1 - constant) * level
    skip = _BURN_IN if length > 3 * _BURN_IN else 0
    rest, g, f = (y - base)[:, skip:], gain[:, skip:], fade[:, skip:]
    # rest ≈ f · l_0 + ω g
    ff, fg, gg = (f * f).sum(1), (g * f).sum(1), (g * g).sum(1)
    fr, gr = (rest * f).sum(1), (g * rest).sum(1)
    if free:
        determinant = ff * gg - fg * fg
        sound = determinant > 1e-9 * ff * np.maximum(gg, 1e-300)
        omega = np.where(sound, (ff * gr - fg * fr) / np.where(sound, determinant, 1), 0.5)
        omega = np.clip(omega, 0.0, 1.0)
    else:
        omega = np.full(count, 0.5)
    first = (fr - omega * fg) / ff
    error = ((rest - first[:, None] * f - omega[:, None] * g) ** 2).sum(1)
    return level + (1 - constant) ** length * first, omega, error


def _path(
    y: np.ndarray,
    a: np.ndarray,
    b: np.ndarray,
    alpha: np.ndarray,
    level: np.ndarray,
    omega: np.ndarray,
    horizon: int,
    dynamic: bool,
) -> np.ndarray:
    """Returns forecasts (N, h): each is taken for the value, in the level and in a dynamic line."""
    n = y.shape[1]
    out = np.empty((len(y), horizon))
    intercept, slope = a[:, n].copy(), b[:, n].copy()
    mean = y.mean(1)
    for k in range(horizon):
        t = n + k + 1
        value = level + omega * _gain(intercept, slope, np.array(t), alpha)
        out[:, k] = value
        level = alpha * value + (1 - alpha) * level
        if dynamic:
            slope = ((t - 2) * slope + 6 * (value - mean) / t) / (t + 1)
            mean = ((t - 1) * mean + value) / t
            intercept = mean - (t + 1) / 2 * slope
    return out
