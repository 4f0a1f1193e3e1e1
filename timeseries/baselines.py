"""The plain forecasters that a model must beat: repeat, seasonal naive, and two ridge
regressions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from longseq.core.checks import check_positive
from longseq.core.errors import ConfigError
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
        length, horizon = windows.context, windows.horizon
        values = windows.values.double()
        first, last, step = windows.cutoffs[0], windows.cutoffs[-1], 1
        if len(windows) > 1:
            step = windows.cutoffs[1] - first
        gram = torch.zeros(length + 1, length + 1, dtype=torch.float64)
        cross = torch.zeros(length + 1, horizon, dtype=torch.float64)
        if first < length:
            raise ConfigError(
                f"{type(self).__name__} is fitted on whole contexts: the first of these has "
                f"{first} rows of {length}"
            )
        for c, series in enumerate(values.T):
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
        # Features are linear in the context, so their normal equations follow from those of the
        # context.
        features, level = self.features(length)
        whole = torch.block_diag(features, torch.ones(1, 1, dtype=torch.float64))
        cross = whole.T @ (cross - gram[:, :length] @ level.unsqueeze(1))
        penalty = torch.full((whole.shape[1],), float(self.ridge), dtype=torch.float64)
        penalty[-1] = 0
        factor = torch.linalg.cholesky(whole.T @ gram @ whole + torch.diag(penalty))
        weight = torch.cholesky_solve(cross, factor)
        self._count = weight.numel()
        self._map = features @ weight[:-1] + level.unsqueeze(1)
        self._intercept = weight[-1]

    def forecast(self, x: Tensor) -> Tensor:
        if len(self._map) != x.shape[1]:
            raise ConfigError(
                f"{type(self).__name__} was not fitted with a context of {x.shape[1]} rows"
            )
        y = x.transpose(1, 2).double() @ self._map + self._intercept
        return y.transpose(1, 2).to(x.dtype)


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
