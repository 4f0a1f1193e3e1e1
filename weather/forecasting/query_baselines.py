"""Plain answers to continuous queries: inverse distances and a Gaussian process."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from longseq.core.errors import ArgumentError

Question = Mapping[str, Tensor]
"""values (N, C), where (N, 3), ask (Q, 3), target (Q, C), see ``QueryData.question``."""


def _gap(of: np.ndarray, to: np.ndarray, duration: float, drift: float = 0.0) -> np.ndarray:
    """Returns differences (…, 3) round the domain, the times in ``duration``, along a drift."""
    gap = to[None] - of[:, None]
    gap[..., 1] -= drift * gap[..., 2]
    gap[..., :2] -= np.round(gap[..., :2])
    gap[..., 2] /= duration
    return gap


def _as_numpy(one: Question) -> tuple[np.ndarray, ...]:
    names = ("values", "where", "ask", "target")
    found = tuple(one[name].numpy().astype(np.float64) for name in names)
    if not len(found[0]):
        raise ArgumentError("no observations: there must be one at least")
    return found


class InverseDistance:
    """The mean of the observations, weighed by d^-p (Shepard 1968,
    https://doi.org/10.1145/800186.810616), d² = Δy² + Δx² + s² Δt²; p and s are those that answer
    validation questions best.

    Args:
        duration: time in frames that is 1 in Δt.
    """

    def __init__(self, duration: float = 8.0) -> None:
        self.duration, self.power, self.stretch = duration, 3.0, 0.3

    def fit(self, valid: Sequence[Question]) -> InverseDistance:
        """Chooses p and s."""
        best = np.inf
        for power, stretch in itertools.product((2.0, 3.0, 4.0, 6.0), (0.0, 0.1, 0.2, 0.4, 0.8)):
            errors = [
                np.mean(
                    (self._answer(*_as_numpy(one)[:3], power, stretch) - one["target"].numpy()) ** 2
                )
                for one in valid
            ]
            if np.mean(errors) < best:
                best, self.power, self.stretch = float(np.mean(errors)), power, stretch
        return self

    def _answer(
        self, values: np.ndarray, where: np.ndarray, ask: np.ndarray, power: float, stretch: float
    ) -> np.ndarray:
        gap = _gap(ask, where, self.duration)
        square = (gap[..., :2] ** 2).sum(-1) + (stretch * gap[..., 2]) ** 2
        # An observation at the very place is the answer, to rounding.
        weight = (square + 1e-12) ** (-power / 2)
        return np.asarray(weight @ values / weight.sum(1, keepdims=True))

    def __call__(self, one: Question) -> np.ndarray:
        """Returns answers (Q, C)."""
        values, where, ask, _ = _as_numpy(one)
        return self._answer(values, where, ask, self.power, self.stretch)


class GaussianProcess:
    """A Gaussian process (scikit-learn) of every channel in a frame that moves to the east with it.

    The coordinates are cos and sin of 2π y and 2π (x - c t), and t; length scales in y, x and t,
    the drift c, variance and noise maximise the log marginal likelihoods of some training
    windows; of a squared-exponential and a Matérn 5/2 kernel the one is taken that answers
    validation questions better.

    Args:
        duration: time in frames that is 1 in the kernel.
        windows: of training that the likelihood is a sum over.
        evaluations: of the likelihood at most, in a Nelder-Mead search.
    """

    def __init__(self, duration: float = 8.0, windows: int = 4, evaluations: int = 150) -> None:
        self.duration, self.windows, self.evaluations = duration, windows, evaluations

    def _kernel(self, name: str, setting: np.ndarray) -> Any:
        from sklearn.gaussian_process.kernels import RBF, ConstantKernel, Matern, WhiteKernel

        y, x, t, size, noise = np.exp(np.clip(setting[:5], -12, 6))
        scales = [y, y, x, x, t]
        smooth = RBF(scales) if name == "rbf" else Matern(scales, nu=2.5)
        return ConstantKernel(size) * smooth + WhiteKernel(noise)

    def _features(self, where: np.ndarray, drift: float) -> np.ndarray:
        y, x = (2 * np.pi * one for one in (where[:, 0], where[:, 1] - drift * where[:, 2]))
        return np.stack(
            [np.cos(y), np.sin(y), np.cos(x), np.sin(x), where[:, 2] / self.duration], 1
        )

    def _process(
        self, name: str, setting: np.ndarray, where: np.ndarray, values: np.ndarray
    ) -> Any:
        from sklearn.gaussian_process import GaussianProcessRegressor

        made = GaussianProcessRegressor(self._kernel(name, setting), optimizer=None, alpha=1e-8)
        return made.fit(self._features(where, setting[5]), values)

    def fit(self, train: Sequence[Question], valid: Sequence[Question]) -> GaussianProcess:
        """Finds the hyper-parameters of every channel.

        Args:
            train: windows; some, evenly spaced, are used.
            valid: likewise, to choose the kernel.
        """
        from scipy.optimize import minimize

        chosen = [train[i] for i in np.linspace(0, len(train) - 1, self.windows).astype(int)]
        windows = [_as_numpy(one)[:2] for one in chosen]
        start = np.array([*np.log([0.7, 0.7, 1.0, 1.0, 1e-3]), 0.0])
        simplex = start + np.vstack([np.zeros(6), np.diag([-0.7, -0.7, -0.7, 0.5, 2.0, 0.01])])
        self.chosen: list[tuple[str, np.ndarray]] = []
        for channel in range(windows[0][0].shape[1]):

            def cost(setting: np.ndarray, name: str, channel: int = channel) -> float:
                fits = [
                    self._process(name, setting, where, values[:, channel])
                    for values, where in windows
                ]
                return -float(sum(one.log_marginal_likelihood_value_ for one in fits))

            options = {"initial_simplex": simplex, "maxfev": self.evaluations}
            tried = []
            for name in ("rbf", "matern"):
                found = minimize(cost, start, (name,), "Nelder-Mead", options=options).x
                errors = [
                    np.mean(
                        (self._one(one, channel, name, found) - one["target"].numpy()[:, channel])
                        ** 2
                    )
                    for one in valid
                ]
                tried.append((float(np.mean(errors)), name, found))
            self.chosen.append(min(tried, key=lambda one: one[0])[1:])
        return self

    def _one(self, one: Question, channel: int, name: str, setting: np.ndarray) -> np.ndarray:
        values, where, ask, _ = _as_numpy(one)
        process = self._process(name, setting, where, values[:, channel])
        return np.asarray(process.predict(self._features(ask, setting[5])))

    def __call__(self, one: Question) -> np.ndarray:
        """Returns answers (Q, C)."""
        made = [self._one(one, channel, *how) for channel, how in enumerate(self.chosen)]
        return np.stack(made, 1)
