"""What internal variability alone does to scores: noise floors and margins from one run."""

from __future__ import annotations

import numpy as np

from longseq.weather.metrics import area_mean

# Years between the knots of the spline that stands for the forced response.
_KNOT_YEARS = 30
_LEAST_DEGREES = 10


class Noise:
    """Internal variability of a run as a first-order autoregression in every cell.

    The forced part of every cell is a least-squares fit on a cubic spline in time (a knot every 30
    years) and on forcings, if they are the predictors. A predictor that is made of the run itself,
    as its regional mean is, is no regressor: it holds the variability too. What is left, r = M x
    with the residual projection M, is short of the variability that the fit took, most of all the
    slow one; so the autocorrelation φ and the variances are not those of r but solve

        E Σ_t r_t r_{t+1} / E Σ_t r_t² = tr(L M R(φ) M) / tr(M R(φ) M),   σ² = r'r / tr(M R(φ) M),

    with R(φ) the correlation matrix of a first-order autoregression and L the shift by a year; φ is
    pooled over the area. A model that knew the forced response exactly would still score about

        spatial √(⟨σ²⟩ v(φ)),  v(φ) = 1'R(φ)1 / n² over n scored years,  and  global σ_{⟨x⟩}.

    Args:
        fields: yearly fields of one run (T, Y, X), consecutive.
        predictors: forcings of the same years (T, K); None if there are none but the run itself.
        weights: (Y, X), summing to one.
        length: years of the scored period.
    """

    def __init__(
        self,
        fields: np.ndarray,
        predictors: np.ndarray | None,
        weights: np.ndarray,
        length: int,
    ) -> None:
        self.weights, self.length = weights, length
        self.phi = self.spatial = self.whole = self.degrees = self.trace = float("nan")
        self.rest = np.zeros((0, *weights.shape))
        basis = _basis(len(fields), predictors)
        if len(fields) - basis.shape[1] < _LEAST_DEGREES:
            return  # too few years to tell variability from the forced part
        flat = np.asarray(fields, dtype=np.float64).reshape(len(fields), -1)
        q, _ = np.linalg.qr(basis)
        self._q = q
        self.rest = (flat - q @ (q.T @ flat)).reshape(fields.shape)
        square = area_mean(self.rest**2, weights).sum()
        if not square > 1e-20 * area_mean(np.asarray(fields, dtype=np.float64) ** 2, weights).sum():
            self.phi, self.spatial, self.whole, self.degrees = 0.0, 0.0, 0.0, float("inf")
            return
        lagged = area_mean(self.rest[1:] * self.rest[:-1], weights).sum()
        self.phi = _solve_phi(q, lagged / square)
        trace, self.degrees = _traces(q, self.phi)
        self.trace = trace
        self.spatial = float(np.sqrt(square / trace * _mean_variance(self.phi, length)))
        means = area_mean(self.rest, weights)
        self.whole = float(np.sqrt(means @ means / trace))

    def margin(self, one: np.ndarray, other: np.ndarray, scores: tuple[float, float]) -> float:
        """Returns the difference of two spatial scores that variability explains in 19 of 20 cases.

        With the period's mean noise r̄ in the truth, score² differs by ⟨(x - y)(x + y - 2 truth)⟩,
        in which r̄ enters as -2 ⟨(x - y) r̄⟩; its deviation, divided by the sum of the scores, is
        that of the difference. The deviation is estimated from few years that depend on each other,
        so it is multiplied by the t quantile of their effective degrees of freedom,
        tr(MR)² / tr((MR)²).

        Args:
            one: a model's mean over the period (Y, X).
            other: another's.
            scores: their spatial scores.
        """
        from scipy.stats import t as student

        if not len(self.rest) or sum(scores) <= 0 or not np.isfinite(self.degrees):
            return 0.0
        effect = 2 * area_mean((one - other) * self.rest, self.weights)
        variance = effect @ effect / self.trace * _mean_variance(self.phi, self.length)
        quantile = float(student.ppf(0.975, self.degrees))
        return float(quantile * np.sqrt(variance) / sum(scores))


def _basis(years: int, predictors: np.ndarray | None) -> np.ndarray:
    """Returns regressors (T, P): a cubic B-spline in time, and scaled forcings."""
    from scipy.interpolate import BSpline

    pieces = max(1, round(years / _KNOT_YEARS))
    inner = np.linspace(0, years - 1, pieces + 1)
    knots = np.concatenate([[inner[0]] * 3, inner, [inner[-1]] * 3])
    times = np.clip(np.arange(years, dtype=np.float64), 0, inner[-1] - 1e-9)
    basis = BSpline.design_matrix(times, knots, 3).toarray() if years > 1 else np.ones((years, 1))
    if predictors is None or not predictors.shape[1]:
        return basis
    spread = predictors.std(0)
    scaled = (predictors - predictors.mean(0)) / np.where(spread > 0, spread, 1.0)
    both = np.concatenate([basis, scaled], 1)
    # Forcings that are smooth in time lie in the spline's span.
    u, size, _ = np.linalg.svd(both, full_matrices=False)
    return u[:, size > 1e-8 * size[0]]


def _correlation(phi: float, years: int) -> np.ndarray:
    from scipy.linalg import toeplitz

    return toeplitz(phi ** np.arange(years, dtype=np.float64))


def _project(q: np.ndarray, phi: float) -> np.ndarray:
    """Returns M R(φ) M with M = 1 - QQ'."""
    made = _correlation(phi, len(q))
    made = made - q @ (q.T @ made)
    return made - (made @ q) @ q.T


def _solve_phi(q: np.ndarray, ratio: float) -> float:
    """Returns φ whose expected lag-one ratio of residuals is the observed one."""
    from scipy.optimize import brentq

    def gap(phi: float) -> float:
        made = _project(q, phi)
        return float(np.trace(made, offset=1) / np.trace(made)) - ratio

    low, high = -0.9, 0.97
    if gap(low) > 0:
        return low
    if gap(high) < 0:
        return high
    return float(brentq(gap, low, high, xtol=1e-4))


def _traces(q: np.ndarray, phi: float) -> tuple[float, float]:
    """Returns tr(MR) and the effective degrees of freedom tr(MR)² / tr((MR)²)."""
    made = _project(q, phi)
    trace = float(np.trace(made))
    return trace, trace**2 / float((made * made.T).sum())


def _mean_variance(phi: float, length: int) -> float:
    """Returns the variance of a mean over ``length`` years of unit variance."""
    return float(_correlation(phi, length).sum()) / length**2
