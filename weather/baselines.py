"""The plain baselines of climate emulation: pattern scaling with and without a memory, a Gaussian
process, a random forest, uniform warming, persistence, zero."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from longseq.core.errors import ConfigError
from longseq.core.registry import Registry
from longseq.weather.data.scenario import REGIONAL, Scenario, deviations
from longseq.weather.regression import Ridge, held_out_error, leading

BASELINES: Registry[Callable[[Known], np.ndarray]] = Registry("baseline")


class PatternScaling:
    """Linear pattern scaling: in every cell, anomaly = intercept + slopes · predictors, by least
    squares.

    With the smoothed regional mean as the only predictor this is the classical one
    (https://doi.org/10.1029/2024MS004619 shows how hard it is to beat); with forcings, one slope a
    forcing.
    """

    def fit(self, predictors: np.ndarray, fields: np.ndarray) -> PatternScaling:
        """Fits slopes and intercepts.

        Args:
            predictors: (T, K).
            fields: anomalies (T, Y, X).
        """
        flat = np.asarray(fields, dtype=np.float64).reshape(len(fields), -1)
        slopes, intercept = Ridge(0.0).fit(predictors, flat).linear()
        self.intercept = intercept.reshape(fields.shape[1:])
        self.slopes = slopes.T.reshape(-1, *fields.shape[1:])
        return self

    def predict(self, predictors: np.ndarray) -> np.ndarray:
        """Returns anomalies (T, Y, X) of predictors (T, K)."""
        return self.intercept + np.einsum("tk,kyx->tyx", predictors, self.slopes)


def exponential_filter(series: np.ndarray, years: float) -> np.ndarray:
    """Returns y_t = k y_{t-1} + (1 - k) x_t with k = exp(-1 / years), from y_0 = x_0.

    Args:
        series: (T, K).
        years: time constant.
    """
    keep, made = float(np.exp(-1 / years)), np.empty_like(series, dtype=np.float64)
    state = np.asarray(series[0], dtype=np.float64)
    for year, value in enumerate(series):
        state = keep * state + (1 - keep) * value
        made[year] = state
    return made


def with_lags(predictors: np.ndarray, scales: Sequence[float]) -> np.ndarray:
    """Returns predictors (T, K) beside their exponential filters (T, K · (1 + number of scales)).

    Args:
        predictors: of one run.
        scales: time constants in years.
    """
    lagged = [exponential_filter(predictors, scale) for scale in scales]
    return np.concatenate([predictors, *lagged], 1)


class LaggedPatternScaling:
    """Pattern scaling on the predictors and on their exponential filters, in every cell.

    A surface that lags behind the forcing, as the ocean does, follows filters of it; this is the
    baseline that a memory has to beat. The time constants are those that predict held-out training
    runs best (or held-out fifths of the years where there is one run).
    """

    scales: Sequence[float] = ()
    CANDIDATES = ((), (5.0,), (15.0,), (50.0,), (150.0,), (5.0, 50.0), (15.0, 150.0))

    def fit(
        self,
        predictors: Sequence[np.ndarray],
        fields: Sequence[np.ndarray],
        weights: np.ndarray,
        counted: Sequence[np.ndarray] | None = None,
        own: Sequence[np.ndarray] | None = None,
    ) -> LaggedPatternScaling:
        """Chooses time constants and fits slopes.

        Args:
            predictors: of every run (T, K).
            fields: anomalies of every run (T, Y, X).
            weights: areas (Y, X).
            counted: bool (T) of every run, the years that are fitted on; None for all. The filters
                see the whole history.
            own: bool (T) of every run, the years that no other has; None for all.
        """
        self.counted = counted or [np.ones(len(one), dtype=bool) for one in predictors]
        flat = [
            np.asarray(field, dtype=np.float64).reshape(len(field), -1)[mask]
            for field, mask in zip(fields, self.counted)
        ]
        alone = None if own is None else [one[mask] for one, mask in zip(own, self.counted)]
        area = np.sqrt(weights.ravel())
        short = leading(flat, area)
        errors = [
            held_out_error(self._design(predictors, scales), short, alone)
            for scales in self.CANDIDATES
        ]
        self.scales = self.CANDIDATES[int(np.argmin(errors))]
        design = self._design(predictors, self.scales)
        shape = fields[0].shape[1:]
        whole = Ridge().fit(np.concatenate(design), np.concatenate(flat))
        self.ridge, self.shape = whole, shape
        return self

    def _design(
        self, predictors: Sequence[np.ndarray], scales: Sequence[float]
    ) -> list[np.ndarray]:
        return [with_lags(one, scales)[own] for one, own in zip(predictors, self.counted)]

    def predict(self, predictors: np.ndarray) -> np.ndarray:
        """Returns anomalies (T, Y, X) of a whole history of predictors (T, K)."""
        made = self.ridge.predict(with_lags(predictors, self.scales))
        return made.reshape(-1, *self.shape)


class Regression:
    """A regression of scikit-learn from lagged predictors to the leading patterns of the fields.

    Args:
        make: returns an estimator with ``fit`` and ``predict``.
        patterns: principal components that are predicted.
        most: training years; more are thinned out evenly, because a Gaussian process costs their
            cube.
    """

    def __init__(self, make: Callable[[int], Any], patterns: int = 8, most: int = 10**9) -> None:
        self.make, self.patterns, self.most = make, patterns, most

    def run(self, given: Known, scales: Sequence[float]) -> np.ndarray:
        """Fits on the training runs and returns the test run's anomalies (T', Y, X).

        Args:
            given: runs.
            scales: time constants of the filters beside the predictors.
        """
        x = np.concatenate([with_lags(run.predictors, scales)[run.counted] for run in given.train])
        _, fields = stacked(given.train)
        area = np.sqrt(given.test.weights.ravel())
        flat = fields.reshape(len(fields), -1)
        offset = flat.mean(0)
        _, _, axes = np.linalg.svd((flat - offset) * area, full_matrices=False)
        axes = axes[: self.patterns]
        scores = ((flat - offset) * area) @ axes.T
        mean, spread = x.mean(0), deviations(x)
        spread = np.where(spread > 0, spread, 1.0)
        unit = scores.std(0).max() or 1.0
        chosen = np.unique(np.linspace(0, len(x) - 1, min(len(x), self.most)).astype(int))
        model = self.make(x.shape[1]).fit(((x - mean) / spread)[chosen], scores[chosen] / unit)
        test = with_lags(given.test.predictors, scales)[given.chosen]
        found = np.asarray(model.predict((test - mean) / spread)).reshape(len(test), -1) * unit
        # Back through patterns that were weighted by area; masked cells weigh nothing.
        inverse = np.divide(1.0, area, out=np.zeros_like(area), where=area > 0)
        return (offset + found @ axes * inverse).reshape(given.shape)


def _gaussian_process(features: int) -> Any:
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF, ConstantKernel, DotProduct, WhiteKernel

    kernel = ConstantKernel(1.0) * DotProduct(1.0) + ConstantKernel(0.3) * RBF([2.0] * features)
    return GaussianProcessRegressor(kernel + WhiteKernel(0.1), random_state=0)


def _random_forest(features: int) -> Any:
    from sklearn.ensemble import RandomForestRegressor

    _ = features
    return RandomForestRegressor(200, min_samples_leaf=3, random_state=0)


def stacked(train: Sequence[Scenario]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the predictors and anomalies of all training years of all runs, each year once.

    Args:
        train: runs.
    """
    return (
        np.concatenate([run.predictors[run.counted] for run in train]),
        np.concatenate([run.anomalies[run.counted] for run in train]).astype(np.float64),
    )


@dataclass(frozen=True)
class Known:
    """What a baseline may look at.

    Args:
        train: runs to fit on.
        test: run to predict; only its predictors and known years.
        chosen: bool (T), the years to predict.
        known: years of the test run that are known beforehand (the shared historical part).
    """

    train: Sequence[Scenario]
    test: Scenario
    chosen: np.ndarray
    known: np.ndarray

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of the prediction (T', Y, X)."""
        rows, columns = self.test.weights.shape
        return int(self.chosen.sum()), rows, columns


@BASELINES.register("lps")
def _pattern_scaling(given: Known) -> np.ndarray:
    return PatternScaling().fit(*stacked(given.train)).predict(given.test.predictors[given.chosen])


def _lagged_fit(given: Known) -> LaggedPatternScaling:
    return LaggedPatternScaling().fit(
        [run.predictors for run in given.train],
        [run.anomalies for run in given.train],
        given.test.weights,
        [run.counted for run in given.train],
        [run.own for run in given.train],
    )


@BASELINES.register("lagged")
def _lagged(given: Known) -> np.ndarray:
    """Pattern scaling on the predictors and their exponential filters."""
    return _lagged_fit(given).predict(given.test.predictors)[given.chosen]


@BASELINES.register("gp")
def _gp(given: Known) -> np.ndarray:
    """A Gaussian process on the regressors of ``lagged``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a length scale at its bound
        return Regression(_gaussian_process, most=300).run(given, _lagged_fit(given).scales)


@BASELINES.register("forest")
def _forest(given: Known) -> np.ndarray:
    """A random forest on the regressors of ``lagged``."""
    return Regression(_random_forest).run(given, _lagged_fit(given).scales)


@BASELINES.register("uniform")
def _uniform(given: Known) -> np.ndarray:
    """The regional mean everywhere."""
    predictors = given.test.predictors[given.chosen]
    if tuple(given.test.names) == (REGIONAL,):
        level = predictors[:, 0]
    else:
        own, fields = stacked(given.train)
        mean = np.einsum("tyx,yx->t", fields, given.test.weights)[:, None, None]
        level = PatternScaling().fit(own, mean).predict(predictors)[:, 0, 0]
    return np.broadcast_to(level[:, None, None], given.shape).copy()


@BASELINES.register("copy")
def _copy(given: Known) -> np.ndarray:
    """The first training run in the same years."""
    first, years = given.train[0], given.test.years[given.chosen]
    if not set(years.tolist()) <= set(first.years.tolist()):
        raise ConfigError(f"baseline copy: {first.field.path} lacks scored years")
    return first.anomalies[np.searchsorted(first.years, years)].astype(np.float64)


@BASELINES.register("persistence")
def _persistence(given: Known) -> np.ndarray:
    """The mean of the last known years, as many as are scored, but at most 30."""
    start, end = given.test.baseline
    years = given.known if len(given.known) else np.arange(start, end + 1)
    if not np.isin(years, given.test.years).any():  # anomalies, of which no year is known
        return np.zeros(given.shape)
    last = np.isin(given.test.years, years[-min(30, given.shape[0]) :])
    return np.broadcast_to(given.test.anomalies[last].mean(0, dtype=np.float64), given.shape).copy()


@BASELINES.register("zero")
def _zero(given: Known) -> np.ndarray:
    """The baseline climate."""
    return np.zeros(given.shape)


def predict_baseline(
    name: str, train: Sequence[Scenario], test: Scenario, chosen: np.ndarray, known: np.ndarray
) -> np.ndarray:
    """Returns a baseline's anomalies (T', Y, X) for the chosen years of the test run.

    Args:
        name: of ``BASELINES``.
        train: runs to fit on.
        test: run to predict; only its predictors and known years are looked at.
        chosen: bool (T), the years to predict.
        known: years of the test run that are known beforehand (the shared historical part).

    Raises:
        ConfigError: for an unknown name, or a year that ``copy`` lacks.
    """
    return BASELINES[name](Known(train, test, chosen, known))
