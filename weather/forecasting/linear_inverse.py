"""The best linear forecasts: from one state to the next, and from several to each lead."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class LinearInverse:
    """x(t + τ) = G x(t) of principal components, G = C(τ) C(0)⁻¹; forecasts are powers of G
    (Penland and Magorian 1993, https://doi.org/10.1175/1520-0442(1993)006<1067:PONSST>2.0.CO;2).

    Args:
        patterns: principal components that are kept.
    """

    def __init__(self, patterns: int) -> None:
        self.patterns = patterns

    def fit(self, runs: np.ndarray) -> LinearInverse:
        """Fits on runs.

        Args:
            runs: (M, T, C).
        """
        self.mean = runs.mean((0, 1))
        departures = runs - self.mean
        flat = departures.reshape(-1, runs.shape[-1]).astype(np.float64)
        _, axes = np.linalg.eigh(flat.T @ flat)
        self.axes = axes[:, ::-1][:, : self.patterns]
        scores = departures @ self.axes
        before = scores[:, :-1].reshape(-1, self.axes.shape[1])
        after = scores[:, 1:].reshape(-1, self.axes.shape[1])
        ridge = 1e-6 * float((before**2).mean()) * len(before) * np.eye(before.shape[1])
        self.step = np.linalg.solve(before.T @ before + ridge, before.T @ after)
        return self

    def forecast(self, start: np.ndarray, leads: int) -> np.ndarray:
        """Returns the states (B, L, C) that follow states (B, C)."""
        score, found = (start - self.mean) @ self.axes, []
        for _ in range(leads):
            score = score @ self.step
            found.append(self.mean + score @ self.axes.T)
        return np.stack(found, 1)


class BestLinearInverse:
    """At every lead the linear inverse model whose number of patterns forecasts validation runs
    best there.

    Args:
        counts: of patterns to choose from.
    """

    def __init__(self, counts: Sequence[int] = (20, 50, 100, 200, 400)) -> None:
        self.counts = counts

    def fit(self, train: np.ndarray, valid: np.ndarray, leads: int) -> BestLinearInverse:
        """Fits and chooses.

        Args:
            train: (M, T, C).
            valid: likewise.
            leads: number of leads L.
        """
        most = min(train.shape[-1], train.shape[0] * (train.shape[1] - 1))
        counts = sorted({min(count, most) for count in self.counts})
        self.models = [LinearInverse(count).fit(train) for count in counts]
        starts = valid[:, : valid.shape[1] - leads : 4]
        flat = starts.reshape(-1, valid.shape[-1])
        errors = np.zeros((len(counts), leads))
        for row, model in enumerate(self.models):
            made = model.forecast(flat, leads)
            for lead in range(leads):
                after = valid[:, lead + 1 : lead + 1 + valid.shape[1] - leads : 4]
                gap = made[:, lead] - after.reshape(flat.shape)
                errors[row, lead] = (gap**2).mean()
        self.best = errors.argmin(0)
        return self

    def forecast(self, start: np.ndarray, leads: int) -> np.ndarray:
        """Returns the states (B, L, C) that follow states (B, C)."""
        made = [model.forecast(start, leads) for model in self.models]
        return np.stack([made[self.best[lead]][:, lead] for lead in range(leads)], 1)


class BestRidge:
    """Ridge regression from all frames of a context to each lead, a direct vector autoregression.

    The penalty, and whether it shrinks forecasts to the mean or to the last frame, are those that
    forecast validation runs best at that lead.

    Args:
        penalties: to choose from, in mean squares of the regressors.
    """

    def __init__(
        self, penalties: Sequence[float] = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
    ) -> None:
        self.penalties = penalties

    def fit(self, train: np.ndarray, valid: np.ndarray, context: int, leads: int) -> BestRidge:
        """Fits and chooses.

        Args:
            train: (M, T, C).
            valid: likewise.
            context: frames that are given.
            leads: number of leads L.
        """
        count = train.shape[-1]
        self.mean = train.mean((0, 1))
        x, y = _windows(train - self.mean, context, leads)
        held_x, held_y = _windows(valid - self.mean, context, leads)
        values, axes = np.linalg.eigh(x.T @ x)
        scale, best = float(values.mean()), np.full(leads, np.inf)
        self.weights = np.zeros((leads, context * count, count))
        last = np.tile(np.eye(context * count)[:, -count:], leads)
        for kept in (np.zeros_like(last), last):
            along = axes.T @ (x.T @ (y - x @ kept))
            for penalty in self.penalties:
                weights = kept + axes @ (along / (values + penalty * scale)[:, None])
                errors = ((held_x @ weights - held_y) ** 2).reshape(len(held_x), leads, count)
                error = errors.mean((0, 2))
                better, best = error < best, np.minimum(best, error)
                own = weights.reshape(context * count, leads, count).swapaxes(0, 1)
                self.weights[better] = own[better]
        return self

    def forecast(self, context: np.ndarray) -> np.ndarray:
        """Returns the states (B, L, C) that follow contexts (B, context, C)."""
        flat = (context - self.mean).reshape(len(context), -1).astype(np.float64)
        return np.einsum("bi,lic->blc", flat, self.weights) + self.mean


def _windows(runs: np.ndarray, context: int, leads: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns contexts (N, context · C) and what follows them (N, leads · C) of runs (M, T, C)."""
    last = runs.shape[1] - context - leads + 1
    found = []
    for first, count in ((0, context), (context, leads)):
        frames = [runs[:, first + n : first + n + last] for n in range(count)]
        found.append(np.stack(frames, 2).reshape(runs.shape[0] * last, -1).astype(np.float64))
    return found[0], found[1]
