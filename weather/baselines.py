"""The plain baselines of climate emulation: linear pattern scaling, uniform warming, persistence, zero."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from longseq.core.errors import ConfigError, did_you_mean
from longseq.weather.data.scenario import REGIONAL, Scenario

BASELINES = ("lps", "uniform", "copy", "persistence", "zero")


class PatternScaling:
    """Linear pattern scaling: in every cell, anomaly = intercept + slopes · predictors, by least squares.

    With the smoothed regional mean as the only predictor this is the classical one
    (https://doi.org/10.1029/2024MS004619 shows how hard it is to beat); with forcings, one slope a forcing.
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


def predict_baseline(
    name: str, train: Sequence[Scenario], test: Scenario, chosen: np.ndarray, known: np.ndarray
) -> np.ndarray:
    """Returns a baseline's anomalies (T', Y, X) for the chosen years of the test run.

    - ``lps``: see ``PatternScaling``;
    - ``uniform``: the regional mean everywhere;
    - ``copy``: the first training run in the same years;
    - ``persistence``: the mean of the last known years, as many as are scored, but at most 30;
    - ``zero``: the baseline climate.

    Args:
        name: of ``BASELINES``.
        train: runs to fit on.
        test: run to predict; only its predictors and known years are looked at.
        chosen: bool (T), the years to predict.
        known: years of the test run that are known beforehand (the shared historical part).

    Raises:
        ConfigError: for an unknown name, or a year that ``copy`` lacks.
    """
    count, shape = int(chosen.sum()), test.weights.shape
    predictors, fields = stacked(train)
    if name == "zero":
        return np.zeros((count, *shape))
    if name == "lps":
        return PatternScaling().fit(predictors, fields).predict(test.predictors[chosen])
    if name == "uniform":
        if tuple(test.names) == (REGIONAL,):
            level = test.predictors[chosen, 0]
        else:
            mean = np.einsum("tyx,yx->t", fields, test.weights)[:, None, None]
            level = PatternScaling().fit(predictors, mean).predict(test.predictors[chosen])[:, 0, 0]
        return np.broadcast_to(level[:, None, None], (count, *shape)).copy()
    if name == "copy":
        first, years = train[0], test.years[chosen]
        if not set(years.tolist()) <= set(first.years.tolist()):
            raise ConfigError(f"baseline copy: {first.field.path} lacks scored years")
        return first.anomalies[np.searchsorted(first.years, years)].astype(np.float64)
    if name == "persistence":
        years = known if len(known) else np.arange(test.baseline[0], test.baseline[1] + 1)
        last = years[-min(30, count) :]
        mean = test.anomalies[np.isin(test.years, last)].mean(0, dtype=np.float64)
        return np.broadcast_to(mean, (count, *shape)).copy()
    raise ConfigError(f"no baseline named {name!r}; {did_you_mean(name, BASELINES)}")
