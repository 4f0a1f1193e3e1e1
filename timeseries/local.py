"""Local models: each series is fitted on its own context, at the moment of the forecast."""

from __future__ import annotations

import importlib
from abc import abstractmethod

import numpy as np
import torch
from torch import Tensor

from longseq.core.checks import check_positive
from longseq.core.errors import ConfigError
from longseq.timeseries.ar_net import continue_series, sparse_weights
from longseq.timeseries.baselines import BASELINES, Baseline
from longseq.timeseries.closed_form import ClosedForm
from longseq.timeseries.theta import theta_paths
from longseq.timeseries.zero_shot import LEVELS, Quantiles

__all__ = ["BASELINES", "ClosedForm", "LocalModel", "StatsForecast"]
_ALPHAS = np.linspace(0.02, 0.98, 25)


def smooth(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Simple exponential smoothing, the constant by least squares of one-step errors over a grid.

    Args:
        x: series (N, L).

    Returns:
        Level after the last row (N,), and its constant (N,).
    """
    level = np.repeat(x[:, :1], len(_ALPHAS), axis=1)
    squares = np.zeros_like(level)
    for t in range(1, x.shape[1]):
        error = x[:, t : t + 1] - level
        squares += error**2
        level = level + _ALPHAS * error
    best = squares.argmin(1)
    rows = np.arange(len(x))
    return level[rows, best], _ALPHAS[best]


def is_seasonal(x: np.ndarray, season: int) -> np.ndarray:
    """Returns whether the autocorrelation at the season is significant at 10% (N,), as in the Theta
    method of the M3 competition."""
    if season < 2 or x.shape[1] < 2 * season + 1:
        return np.zeros(len(x), bool)
    centred = x - x.mean(1, keepdims=True)
    variance = np.maximum((centred**2).sum(1), 1e-300)
    r = np.stack(
        [(centred[:, k:] * centred[:, :-k]).sum(1) / variance for k in range(1, season + 1)], 1
    )
    limit = 1.645 * np.sqrt((1 + 2 * (r[:, :-1] ** 2).sum(1)) / x.shape[1])
    return np.abs(r[:, -1]) > limit


def seasonal_indices(x: np.ndarray, season: int) -> tuple[np.ndarray, np.ndarray]:
    """Classical decomposition (N, L) → an index of every phase (N, m), the last row's phase last,
    and whether it multiplies (N,): where all values are positive."""
    times = (x > 0).all(1)
    half = season // 2
    kernel = np.ones(season) / season
    if season % 2 == 0:
        kernel = np.convolve(kernel, [0.5, 0.5])
    windows = np.lib.stride_tricks.sliding_window_view(x, len(kernel), axis=1)
    trend = windows @ kernel
    inner = x[:, half : half + trend.shape[1]]
    safe = np.where(np.abs(trend) > 1e-12, trend, 1.0)
    rest = np.where(times[:, None], inner / safe, inner - trend)
    phase = (np.arange(half, half + trend.shape[1]) - x.shape[1]) % season
    index = np.stack([rest[:, phase == k].mean(1) for k in range(season)], 1)
    mean = index.mean(1, keepdims=True)
    index = np.where(times[:, None], index / np.where(mean == 0, 1, mean), index - mean)
    return np.where(times[:, None], np.maximum(index, 1e-6), index), times


class LocalModel(Baseline):
    """A model of one series, fitted on the context itself.

    Args:
        horizon: predicted rows h.
        season: rows of a season.
    """

    def __init__(self, horizon: int, season: int = 1) -> None:
        super().__init__(horizon)
        self.season = check_positive("season", season)

    def forecast(self, x: Tensor) -> Tensor:
        rows = x.transpose(1, 2).flatten(0, 1).double().cpu().numpy()
        y = torch.from_numpy(self.paths(rows)).to(x)
        return y.unflatten(0, (len(x), x.shape[2])).transpose(1, 2)

    @abstractmethod
    def paths(self, x: np.ndarray) -> np.ndarray:
        """Returns the forecasts (N, h) after series (N, L), float64."""


@BASELINES.register("ses")
class SimpleSmoothing(LocalModel):
    """Simple exponential smoothing: one level, repeated."""

    def paths(self, x: np.ndarray) -> np.ndarray:
        return np.repeat(smooth(x)[0][:, None], self.horizon, axis=1)


@BASELINES.register("theta")
class Theta(LocalModel):
    """The optimised Theta method (Fiorucci, Pellegrini, Louzada and Petropoulos, 2016), static or
    dynamic, on deseasonalised values.

    A Theta line is exponential smoothing with a share ω = 1 - 1/θ of a line of least squares added;
    ω = ½ is the standard method of Assimakopoulos and Nikolopoulos (2000). For every smoothing
    constant of a grid the first level and ω follow by least squares of one-step errors, ω within
    [0, 1]. The line is that of the whole series, or (dynamic) of what was known at each step; of
    both, with ω free or ½, the least squared error is taken, as statsforecast's AutoTheta does.
    """

    def paths(self, x: np.ndarray) -> np.ndarray:
        n, length = x.shape
        season, ahead = self.season, np.arange(self.horizon)
        seasonal = is_seasonal(x, season)
        index, times = np.zeros((n, season)), np.zeros(n, bool)
        if seasonal.any():
            index[seasonal], times[seasonal] = seasonal_indices(x[seasonal], season)
        phase = (np.arange(length) - length) % season
        past = index[:, phase]
        level = np.where(times[:, None], x / np.where(times[:, None], past, 1.0), x - past)
        y = theta_paths(level, self.horizon)
        coming = index[:, ahead % season]
        return np.where(times[:, None], y * coming, y + coming)


@BASELINES.register("croston")
class Croston(LocalModel):
    """Croston's method for intermittent demand (1972): smoothed size over smoothed interval, both
    with the constant 0.1."""

    alpha = 0.1

    def paths(self, x: np.ndarray) -> np.ndarray:
        found = np.zeros(len(x))
        for i, row in enumerate(x):
            at = np.flatnonzero(row != 0)
            if len(at) == 0:
                continue
            size, gap = row[at[0]], float(at[0] + 1)
            for k in range(1, len(at)):
                size += self.alpha * (row[at[k]] - size)
                gap += self.alpha * (at[k] - at[k - 1] - gap)
            found[i] = size / gap
        return np.repeat(found[:, None], self.horizon, axis=1)


@BASELINES.register("tsb")
class TSB(LocalModel):
    """Teunter, Syntetos and Babai (2011): smoothed size times smoothed chance of a demand, so that
    an item that is no longer asked for fades."""

    alpha = 0.1

    def paths(self, x: np.ndarray) -> np.ndarray:
        demand = x != 0
        chance = demand[:, : max(1, min(10, x.shape[1]))].mean(1)
        size = np.where(demand.any(1), x[np.arange(len(x)), demand.argmax(1)], 0.0)
        for t in range(x.shape[1]):
            chance = chance + self.alpha * (demand[:, t] - chance)
            size = np.where(demand[:, t], size + self.alpha * (x[:, t] - size), size)
        return np.repeat((chance * size)[:, None], self.horizon, axis=1)


@BASELINES.register("ar")
class AutoRegression(LocalModel):
    """An autoregression by least squares on the context, its order by Akaike's criterion.

    Orders are 1 to 3, the season and the season plus one, as far as a third of the context allows;
    a ridge of 10⁻⁶ of the variance keeps a constant series from being singular.
    """

    def paths(self, x: np.ndarray) -> np.ndarray:
        return np.stack([self._path(row) for row in x])

    def _path(self, row: np.ndarray) -> np.ndarray:
        mean = row.mean()
        u = row - mean
        longest = len(row) // 3
        orders = sorted({p for p in (1, 2, 3, self.season, self.season + 1) if 1 <= p <= longest})
        top = orders[-1] if orders else 0
        best: tuple[float, np.ndarray] | None = None
        for p in orders:
            lags = np.lib.stride_tricks.sliding_window_view(u, p)[top - p : len(u) - p]
            target = u[top:]
            gram = lags.T @ lags + 1e-6 * max(u.var(), 1e-300) * len(target) * np.eye(p)
            weight = np.linalg.solve(gram, lags.T @ target)
            error = ((target - lags @ weight) ** 2).mean()
            score = len(target) * np.log(max(error, 1e-300)) + 2 * p
            if best is None or score < best[0]:
                best = score, weight
        if best is None:
            return np.full(self.horizon, row[-1])
        weight, found = best[1], list(u)
        for _ in range(self.horizon):
            found.append(float(weight @ found[-len(weight) :]))
        bound = 10 * np.abs(u).max()
        return mean + np.clip(found[len(u) :], -bound, bound)


@BASELINES.register("ar_net")
class ARNet(LocalModel):
    """AR-Net: a long autoregression with sparse weights; see ``ar_net.sparse_weights``.

    Its order is two seasons and one row more, at least 24, as far as a third of the context allows.
    """

    def paths(self, x: np.ndarray) -> np.ndarray:
        return np.stack([self._path(row) for row in x])

    def _path(self, row: np.ndarray) -> np.ndarray:
        order = min(max(2 * self.season + 1, 24), (len(row) - 1) // 3)
        if order < 1:
            return np.full(self.horizon, row[-1])
        mean = row.mean()
        u = row - mean
        weights = sparse_weights(u, order, steps=400)
        bound = 10 * np.abs(u).max()
        return mean + np.clip(continue_series(u, weights, self.horizon), -bound, bound)


@BASELINES.register("zero_shot")
class PackagedZeroShot(LocalModel):
    """The packaged zero-shot forecaster: its medians, with no training on these series."""

    kind = "model"

    def __init__(self, horizon: int, season: int = 1) -> None:
        super().__init__(horizon, season)
        self.network = Quantiles()

    @property
    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.network.model.parameters())

    def paths(self, x: np.ndarray) -> np.ndarray:
        found = self.network.forecast(list(x), self.horizon, self.season)
        return found[..., list(LEVELS).index(0.5)]


class StatsForecast(LocalModel):
    """A model of the package statsforecast, which chooses its own form by information criteria.

    Args:
        horizon: predicted rows h.
        season: rows of a season.
    """

    model = ""

    def paths(self, x: np.ndarray) -> np.ndarray:
        return np.stack([self.quantiles(row, ())[0] for row in x])

    def quantiles(self, row: np.ndarray, levels: tuple[int, ...]) -> tuple[np.ndarray, ...]:
        """Returns the mean (h,), and the lower and upper ends (h,) of an interval a level."""
        try:
            models = importlib.import_module("statsforecast.models")
        except ImportError as error:
            raise ConfigError(
                f"{self.model} needs the package statsforecast: pip install statsforecast"
            ) from error
        made = getattr(models, self.model)(season_length=self.season)
        found = made.forecast(row.astype(np.float64), h=self.horizon, level=list(levels) or None)
        ends = [found[f"{side}-{level}"] for level in levels for side in ("lo", "hi")]
        return tuple(np.asarray(one, np.float64) for one in (found["mean"], *ends))


@BASELINES.register("auto_theta")
class AutoTheta(StatsForecast):
    """statsforecast's AutoTheta."""

    model = "AutoTheta"


@BASELINES.register("auto_ets")
class AutoETS(StatsForecast):
    """statsforecast's AutoETS."""

    model = "AutoETS"


@BASELINES.register("auto_arima")
class AutoARIMA(StatsForecast):
    """statsforecast's AutoARIMA."""

    model = "AutoARIMA"
