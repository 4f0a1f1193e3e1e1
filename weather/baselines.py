"""The plain baselines of climate emulation: linear pattern scaling, uniform warming, persistence,
zero."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from longseq.core.errors import ConfigError
from longseq.core.registry import Registry
from longseq.weather.data.scenario import REGIONAL, Scenario

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
        design = np.concatenate([np.ones((len(predictors), 1)), predictors], 1)
        flat = np.asarray(fields, dtype=np.float64).reshape(len(fields), -1)
        solution = np.linalg.lstsq(design, flat, rcond=None)[0]
        self.intercept = solution[0].reshape(fields.shape[1:])
        self.slopes = solution[1:].reshape(-1, *fields.shape[1:])
        return self

    def predict(self, predictors: np.ndarray) -> np.ndarray:
        """Returns anomalies (T, Y, X) of predictors (T, K)."""
        return self.intercept + np.einsum("tk,kyx->tyx", predictors, self.slopes)


def stacked(train: Sequence[Scenario]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the predictors and anomalies of all training years of all runs.

    Args:
        train: runs.
    """
    return (
        np.concatenate([run.predictors for run in train]),
        np.concatenate([run.anomalies for run in train]).astype(np.float64),
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
