"""Chaos: Lyapunov exponents, valid prediction time, attractor distance, reservoirs."""

from __future__ import annotations

import numpy as np

from longseq.core.checks import check_positive
from longseq.core.errors import ConfigError
from longseq.timeseries.data.chaos import SYSTEMS, simulate, step

THRESHOLD = 0.4


def lyapunov_exponent(
    name: str, steps: int = 20000, batch: int = 16, seed: int = 0, distance: float = 1e-7
) -> float:
    """Returns the largest Lyapunov exponent of a system, per unit of time (per iteration of a map).

    The mean rate at which neighbours part, brought back to their distance after every ten steps
    (Benettin, Galgani, Giorgilli and Strelcyn 1980).

    Args:
        name: one of ``SYSTEMS``.
        steps: steps that are averaged over, after a thousand that turn the distance to where it
            grows fastest.
        batch: trajectories.
        seed: of their starts.
        distance: of neighbours.
    """
    system = SYSTEMS[name]
    start = simulate(name, 1, batch, seed)[:, 0]
    rng = np.random.default_rng(seed)
    away = rng.standard_normal(start.shape)
    if name == "duffing":
        away[:, 2:] = 0  # the forcing is given, not disturbed
    other = start + distance * away / np.linalg.norm(away, axis=1, keepdims=True)
    total, count, hop = np.zeros(batch), 0, 10 if system.dt else 1
    for i in range((steps + 1000) // hop):
        for _ in range(hop):
            start, other = step(system, start), step(system, other)
        gap = other - start
        size = np.maximum(np.linalg.norm(gap, axis=1, keepdims=True), 1e-300)
        other = start + gap * (distance / size)
        if i * hop >= 1000:
            total += np.log(size[:, 0] / distance)
            count += hop
    return float(total.mean() / (count * (system.dt or 1.0)))


def valid_prediction_time(
    forecast: np.ndarray, truth: np.ndarray, scale: np.ndarray, threshold: float = THRESHOLD
) -> np.ndarray:
    """Returns the steps (N,) before the error first exceeds a threshold (Vlachas et al. 2020).

    Args:
        forecast: (N, h, D).
        truth: (N, h, D).
        scale: deviation of each variable on the attractor (D,).
        threshold: of the root mean square over variables, in deviations.
    """
    error = np.sqrt((((forecast - truth) / scale) ** 2).mean(-1))
    wrong = ~(error <= threshold)  # what is not a number is wrong
    return np.where(wrong.any(1), wrong.argmax(1), error.shape[1])


def attractor_distance(forecast: np.ndarray, truth: np.ndarray, bins: int = 30) -> float:
    """Returns the mean Hellinger distance of all variables' power spectra, 0 to 1: how far the
    forecast's climate is from the truth's (Mikhaeil, Monfared and Durstewitz 2022).

    Args:
        forecast: (N, h, D).
        truth: (N, h, D).
        bins: bands of frequency that are compared.
    """
    found = []
    for d in range(truth.shape[-1]):
        shares = []
        for one in (forecast[..., d], truth[..., d]):
            one = np.nan_to_num(np.clip(one, -1e6, 1e6))
            power = np.abs(np.fft.rfft(one - one.mean(1, keepdims=True))) ** 2
            bands = np.array_split(power.mean(0)[1:], min(bins, power.shape[1] - 1))
            sums = np.array([band.sum() for band in bands])
            total = sums.sum()
            shares.append(sums / total if total > 0 else np.full(len(sums), 1 / len(sums)))
        found.append(np.sqrt(max(0.0, 1 - float(np.sqrt(shares[0] * shares[1]).sum()))))
    return float(np.mean(found))


class NextGenerationReservoir:
    """A ridge regression of the next increment on products of lagged values (Gauthier, Bollt,
    Griffith and Barbosa 2021).

    x_{t+1} = x_t + W · (1, l, l ⊗ l, …) with l the last ``lags`` values, ``stride`` rows apart.

    Args:
        lags: values of each variable, k.
        stride: rows between them, s.
        degree: of the products, 1 to 3.
        ridge: penalty, relative to the mean square of the features.
    """

    def __init__(
        self, lags: int = 2, stride: int = 1, degree: int = 2, ridge: float = 1e-8
    ) -> None:
        self.lags, self.stride = check_positive("lags", lags), check_positive("stride", stride)
        if degree not in (1, 2, 3):
            raise ConfigError(f"degree is 1, 2 or 3, got {degree}")
        self.degree, self.ridge = degree, ridge
        self._weight = np.zeros((0, 0))

    @property
    def rows(self) -> int:
        """Known rows that a forecast needs."""
        return (self.lags - 1) * self.stride + 1

    def _features(self, past: np.ndarray) -> np.ndarray:
        """Returns the features (N, F) of the last rows (N, ≥ rows, D)."""
        lagged = past[:, past.shape[1] - self.rows :: self.stride].reshape(len(past), -1)
        parts, latest = [np.ones((len(past), 1)), lagged], lagged
        first = np.arange(lagged.shape[1])
        for _ in range(self.degree - 1):
            # Products in order of their factors, each once.
            pairs = [(i, j) for i in range(latest.shape[1]) for j in range(first[i], len(lagged.T))]
            latest = np.stack([latest[:, i] * lagged[:, j] for i, j in pairs], 1)
            first = np.array([j for _, j in pairs])
            parts.append(latest)
        return np.concatenate(parts, 1)

    def fit(self, series: np.ndarray) -> NextGenerationReservoir:
        """Fits on a trajectory (T, D).

        Raises:
            ConfigError: if it is too short.
        """
        if len(series) <= self.rows + 1:
            raise ConfigError(f"a trajectory of more than {self.rows + 1} rows is needed")
        self._mean, self._scale = series.mean(0), np.maximum(series.std(0), 1e-12)
        z = (series - self._mean) / self._scale
        windows = np.lib.stride_tricks.sliding_window_view(z[:-1], self.rows, axis=0)
        features = self._features(windows.transpose(0, 2, 1))
        target = np.diff(z, axis=0)[self.rows - 1 :]
        gram = features.T @ features
        penalty = self.ridge * np.trace(gram) / len(gram)
        self._weight = np.linalg.solve(gram + penalty * np.eye(len(gram)), features.T @ target)
        return self

    def forecast(self, past: np.ndarray, horizon: int) -> np.ndarray:
        """Returns forecasts (N, h, D) after known rows (N, ≥ rows, D); one that leaves the
        attractor by fifty deviations stays there."""
        if not len(self._weight):
            raise ConfigError("the reservoir was not fitted: call fit first")
        z = (past[:, past.shape[1] - self.rows :] - self._mean) / self._scale
        out = np.empty((len(z), horizon, z.shape[2]))
        for k in range(horizon):
            following = z[:, -1] + self._features(z) @ self._weight
            out[:, k] = np.clip(np.nan_to_num(following), -50, 50)
            z = np.concatenate([z[:, 1:], out[:, k : k + 1]], 1)
        return out * self._scale + self._mean
