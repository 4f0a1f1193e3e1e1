"""Least squares with a slight penalty, what of fields decides between regressors, and the error of
held-out runs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from longseq.weather.data.scenario import deviations

# Per year and in the regressors' own deviations.
RIDGE = 1e-4
_LEADING, _CELLS = 10, 4096


def leading(fields: Sequence[np.ndarray], area: np.ndarray) -> list[np.ndarray]:
    """Returns what runs have of their ten leading patterns, which decide where regressors are
    compared: the rest is noise and costs time.

    Args:
        fields: of every run (T, C).
        area: square roots of the cells' areas (C).

    Returns:
        (T, 10) of every run, or as many patterns as there are; signs and order are arbitrary.
    """
    cells, years = len(area), sum(map(len, fields))
    if cells <= years:
        _, _, axes = np.linalg.svd(np.concatenate(fields) * area, full_matrices=False)
        return [one * area @ axes[:_LEADING].T for one in fields]
    # From the products of the years, cell by cell: fine grids are never held twice.
    products = np.zeros((years, years))
    for start in range(0, cells, _CELLS):
        own = slice(start, start + _CELLS)
        block = np.concatenate([one[:, own] for one in fields]).astype(np.float64) * area[own]
        products += block @ block.T
    squares, vectors = np.linalg.eigh(products)
    made = vectors[:, -_LEADING:] * np.sqrt(squares[-_LEADING:].clip(0))
    return np.split(made, np.cumsum([len(one) for one in fields])[:-1])


def held_out_error(
    design: Sequence[np.ndarray],
    fields: Sequence[np.ndarray],
    own: Sequence[np.ndarray] | None = None,
    penalty: float = RIDGE,
) -> float:
    """Returns the mean over years of the squared error of least squares in runs that were held out
    of the fit in turn, or in fifths of the years where only one run has years of its own.

    Args:
        design: regressors of every run (T, K).
        fields: what they are to explain (T, C).
        own: bool (T) of every run, the years that no other has; None for all. The others, a common
            history, stay in the fit: whoever predicts a further scenario knows them.
        penalty: see ``Ridge``.
    """
    x, y = np.concatenate(design), np.concatenate(fields)
    part = np.concatenate([np.full(len(one), index) for index, one in enumerate(design)])
    if own is not None:
        part[~np.concatenate(own)] = -1
    if len(np.unique(part[part >= 0])) < 2:
        part = np.arange(len(x)) * 5 // len(x)
    error = 0.0
    for index in np.unique(part[part >= 0]):
        out = part == index
        fit = Ridge(penalty).fit(x[~out], y[~out])
        error += float(((fit.predict(x[out]) - y[out]) ** 2).sum())
    return error / int((part >= 0).sum())


class Ridge:
    """Least squares with a slight penalty on slopes of scaled regressors, because filters of one
    series are nearly collinear. What single precision cannot tell apart, in which networks see the
    regressors, shares one slope.

    Args:
        penalty: per year; 0 for least squares.
    """

    def __init__(self, penalty: float = RIDGE) -> None:
        self.penalty = penalty

    def fit(self, x: np.ndarray, y: np.ndarray) -> Ridge:
        """Fits values (N, C) on regressors (N, K)."""
        self.mean, spread = x.mean(0), deviations(x)
        self.spread = np.where(spread > 0, spread, 1.0)
        z = (x - self.mean) / self.spread
        self.offset = y.mean(0)
        rows = np.sqrt(self.penalty * len(z)) * np.eye(z.shape[1])
        zeros = np.zeros((z.shape[1], y.shape[1]))
        both = np.concatenate([z, rows]), np.concatenate([y - self.offset, zeros])
        self.slopes = np.linalg.lstsq(*both, rcond=len(z) * float(np.finfo(np.float32).eps))[0]
        return self

    def predict(self, x: np.ndarray) -> np.ndarray:
        """Returns values (N, C) of regressors (N, K)."""
        return self.offset + (x - self.mean) / self.spread @ self.slopes

    def linear(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns slopes (C, K) and intercepts (C) of unscaled regressors."""
        slopes = (self.slopes / self.spread[:, None]).T
        return slopes, self.offset - slopes @ self.mean
