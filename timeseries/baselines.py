"""The plain forecasters that a model must beat: repeat, seasonal naive, and two ridge
regressions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from longseq.core.checks import check_positive
from longseq.core.errors import ConfigError, DataError
from longseq.core.registry import Registry, keywords
from longseq.timeseries.data.windows import Windows

RIDGE = 10.0
MOVING_AVERAGE = 25


BASELINES: Registry[Callable[..., Baseline]] = Registry("baseline")


class Baseline(ABC):
    """A forecaster that is fitted in one go, or not at all.

    Args:
        horizon: predicted rows h.

    Attributes:
        kind: what tables call it: "baseline", or "model" for one that has to beat baselines.
    """

    kind = "baseline"

    def __init__(self, horizon: int) -> None:
        self.horizon = check_positive("horizon", horizon)

    def fit(self, windows: Windows) -> None:
        """Fits on training windows; nothing by default."""
        _ = windows

    @property
    def parameters(self) -> int:
        """Number of fitted numbers."""
        return 0

    @abstractmethod
    def forecast(self, x: Tensor) -> Tensor:
        """Returns the forecast (B, h, C) after the context x (B, L, C)."""


@BASELINES.register("repeat")
class Repeat(Baseline):
    """The last value, for ever: ŷ_{t+k} = y_t."""

    def forecast(self, x: Tensor) -> Tensor:
        return x[:, -1:].expand(-1, self.horizon, -1)


@BASELINES.register("seasonal_naive")
class SeasonalNaive(Baseline):
    """The value one season ago: ŷ_{t+k} = y_{t+k-m·s} with the smallest m that lies in the context.

    Args:
        horizon: predicted rows h.
        season: s in rows, at least 1; 1 is ``Repeat``.
    """

    def __init__(self, horizon: int, season: int) -> None:
        super().__init__(horizon)
        self.season = check_positive("season", season)

    def forecast(self, x: Tensor) -> Tensor:
        length = x.shape[1]
        if length < self.season:
            raise ConfigError(
                f"a context of {length} rows does not hold one season of {self.season}"
            )
        rows = length - self.season + torch.arange(self.horizon) % self.season
        return x[:, rows]


class Sums(NamedTuple):
    """Sums over windows, from which a linear map follows.

    Attributes:
        gram: of contexts with a one at their end (L + 1, L + 1).
        cross: of these with targets (L + 1, h).
        squares: of targets (h,).
        count: windows.
    """

    gram: Tensor
    cross: Tensor
    squares: Tensor
    count: int

    def plus(self, other: Sums) -> Sums:
        """Returns the sums over both."""
        return Sums(
            self.gram + other.gram,
            self.cross + other.cross,
            self.squares + other.squares,
            self.count + other.count,
        )


def normal_sums(windows: Windows) -> Sums:
    """Returns sums over all whole windows of training, float64; no window is kept.

    Raises:
        DataError: if there are none.
    """
    length, horizon = windows.context, windows.horizon
    values = windows.values.double()
    first, last, step = windows.cutoffs[0], windows.cutoffs[-1], 1
    if len(windows) > 1:
        step = windows.cutoffs[1] - first
    if first < length:  # windows with a padded context are not fitted on
        first += -(-(length - first) // step) * step
    gram = torch.zeros(length + 1, length + 1, dtype=torch.float64)
    cross = torch.zeros(length + 1, horizon, dtype=torch.float64)
    squares, count = torch.zeros(horizon, dtype=torch.float64), 0
    for c, series in enumerate(values.T if first <= last else []):
        span = slice(first - length, last + horizon)
        rows = series[span].unfold(0, length + horizon, step)
        # Only windows inside the series and whose targets were all observed.
        seen = windows.observed[span, c].unfold(0, length + horizon, step)
        begins = torch.arange(first - length, last - length + 1, step)
        whole = seen[:, length:].all(1) & (begins >= int(windows.starts[c]))
        for chunk in rows[whole].split(4096):
            context = torch.cat([chunk[:, :length], chunk.new_ones(len(chunk), 1)], dim=1)
            gram.addmm_(context.T, context)
            cross.addmm_(context.T, chunk[:, length:])
            squares += chunk[:, length:].square().sum(0)
            count += len(chunk)
    if count == 0:
        raise DataError(
            f"no training window has its whole context of {length} rows and all of its {horizon} "
            "targets observed, which a ridge regression is fitted on",
            hint="shorten --context and --horizons, take a longer --resample, or --models without "
            "the linear ones",
        )
    return Sums(gram, cross, squares, count)


class LinearRidge(Baseline):
    """A linear map from context to horizon, the same for every series, by ridge regression in
    closed form.

    With the features Φ (one row per window and series) and targets Y: W = (ΦᵀΦ + λP)⁻¹ ΦᵀY, P the
    identity but for the intercept, which is not penalised. Sums run over windows in float64, so no
    window is kept.

    Args:
        horizon: predicted rows h.
        ridge: λ, in units of squared z-scores summed over the windows.
    """

    intercept = True

    def __init__(self, horizon: int, ridge: float = RIDGE) -> None:
        super().__init__(horizon)
        if not ridge > 0:
            raise ConfigError(f"ridge must be above 0, got {ridge}")
        self.ridge = ridge
        self._map, self._intercept, self._count = torch.zeros(0, 0), torch.zeros(0), 0

    @property
    def parameters(self) -> int:
        return self._count

    @abstractmethod
    def features(self, length: int) -> tuple[Tensor, Tensor]:
        """Returns the maps from a context to features (L, F) and to the level of the forecast
        (L,)."""

    def fit(self, windows: Windows) -> None:
        """Solves the normal equations of all training windows."""
        self.solve(normal_sums(windows))

    def solve(self, sums: Sums, ridge: float | None = None) -> None:
        """Fits from sums over windows.

        Args:
            sums: of ``normal_sums``; those of several parts may be added.
            ridge: λ; the model's own if None.
        """
        gram, cross, factor = self._equations(sums)
        penalty = torch.full((len(gram),), float(ridge or self.ridge), dtype=torch.float64)
        if self.intercept:
            penalty[-1] = 0
        factor = torch.linalg.cholesky(gram + torch.diag(penalty))
        self._keep(torch.cholesky_solve(cross, factor), len(sums.gram) - 1)

    def _equations(self, sums: Sums) -> tuple[Tensor, Tensor, Tensor]:
        """Returns ΦᵀΦ, ΦᵀY and YᵀY's diagonal for what the level leaves of Y.

        Features are linear in the context, so their normal equations follow from those of the
        context.
        """
        length = len(sums.gram) - 1
        features, level = self.features(length)
        whole = torch.block_diag(features, torch.ones(1, 1, dtype=torch.float64))
        rest = sums.cross - sums.gram[:, :length] @ level.unsqueeze(1)
        # |y - l|² = |y|² - 2 yᵀl + |l|²
        squares = sums.squares - 2 * level @ sums.cross[:length]
        squares = squares + level @ sums.gram[:length, :length] @ level
        if not self.intercept:
            whole = whole[:, :-1]
        return whole.T @ sums.gram @ whole, whole.T @ rest, squares

    def _keep(self, weight: Tensor, length: int) -> None:
        features, level = self.features(length)
        self._count = weight.numel()
        self._map = features @ weight[: features.shape[1]] + level.unsqueeze(1)
        self._intercept = weight[-1] if self.intercept else torch.zeros_like(weight[0])

    def forecast(self, x: Tensor) -> Tensor:
        if len(self._map) != x.shape[1]:
            raise ConfigError(
                f"{type(self).__name__} was not fitted with a context of {x.shape[1]} rows"
            )
        y = x.transpose(1, 2).double() @ self._map + self._intercept
        return y.transpose(1, 2).to(x.dtype)


class GeneralisedRidge(LinearRidge):
    """A linear map without intercept whose λ minimises the generalised cross-validation score
    n · RSS(λ) / (n - df(λ))² (Golub, Heath and Wahba 1979), the same for all steps ahead.

    The intercept is what a series drifted by in training; where it turns, that is an error at every
    step.

    Args:
        horizon: predicted rows h.
    """

    intercept = False
    grid = tuple(10.0**k for k in range(-1, 7))

    def solve(self, sums: Sums, ridge: float | None = None) -> None:
        if ridge is None:
            ridge = self._best(sums)
        self.ridge = ridge
        super().solve(sums, ridge)

    def _best(self, sums: Sums) -> float:
        gram, cross, squares = self._equations(sums)
        values, vectors = torch.linalg.eigh(gram)
        values, turned = values.clamp(min=0), (vectors.T @ cross).square().sum(1)
        scores = []
        for ridge in self.grid:
            shrunk = 1 / (values + ridge)
            rss = squares.sum() - (turned * shrunk * (2 - values * shrunk)).sum()
            left = max(1 - float((values * shrunk).sum()) / max(sums.count, 1), 1e-3)
            scores.append(float(rss) / left**2)
        return self.grid[int(torch.tensor(scores).argmin())]


@BASELINES.register("nlinear_ridge")
class NLinearRidge(LinearRidge):
    """NLinear (https://arxiv.org/abs/2205.13504): the map acts on the context less its last
    value."""

    def features(self, length: int) -> tuple[Tensor, Tensor]:
        level = torch.zeros(length, dtype=torch.float64)
        level[-1] = 1
        return torch.eye(length, dtype=torch.float64) - level.unsqueeze(1), level


@BASELINES.register("dlinear_ridge")
class DLinearRidge(LinearRidge):
    """DLinear (https://arxiv.org/abs/2205.13504): two maps, of the moving average and of what it
    leaves.

    The moving average covers 25 rows, with the first and last value repeated at the ends.
    """

    def features(self, length: int) -> tuple[Tensor, Tensor]:
        half = (MOVING_AVERAGE - 1) // 2
        unit = torch.eye(length, dtype=torch.float64)
        padded = torch.cat(
            [unit[:, :1].expand(-1, half), unit, unit[:, -1:].expand(-1, half)], dim=1
        )
        trend = torch.nn.functional.avg_pool1d(padded.unsqueeze(1), MOVING_AVERAGE, 1).squeeze(1)
        return torch.cat([unit - trend, trend], dim=1), torch.zeros(length, dtype=torch.float64)


@BASELINES.register("nlinear_gcv")
class NLinearGCV(GeneralisedRidge):
    """NLinear about the mean of the context, λ by generalised cross-validation, no intercept."""

    def features(self, length: int) -> tuple[Tensor, Tensor]:
        level = torch.full((length,), 1.0 / length, dtype=torch.float64)
        return torch.eye(length, dtype=torch.float64) - level.unsqueeze(1), level


@BASELINES.register("dlinear_gcv")
class DLinearGCV(GeneralisedRidge):
    """DLinear, λ by generalised cross-validation, no intercept."""

    def features(self, length: int) -> tuple[Tensor, Tensor]:
        return DLinearRidge.features(self, length)  # type: ignore[arg-type]


def make_baseline(name: str, horizon: int, season: int = 1, ridge: float = RIDGE) -> Baseline:
    """Returns a baseline, not yet fitted.

    Args:
        name: one of ``BASELINES``.
        horizon: predicted rows h.
        season: of the seasonal naive forecast, in rows.
        ridge: λ of the linear ones.

    Raises:
        ConfigError: for an unknown name, with the nearest one.
    """
    made, own = BASELINES[name], {"season": season, "ridge": ridge}
    return made(horizon, **{key: value for key, value in own.items() if key in keywords(made)})
