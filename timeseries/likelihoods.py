"""What a network's outputs mean: a value, quantiles, or the parameters of a distribution."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from longseq.core.errors import ConfigError
from longseq.core.registry import Registry
from longseq.timeseries.quantiles import at_levels, pinball

LIKELIHOODS: Registry[type[Likelihood]] = Registry("likelihood")


class Outputs(NamedTuple):
    """Outputs of a network for windows, in z-scores.

    Attributes:
        place: location (…).
        rest: further outputs (…, K - 1).
        spread: deviation of the context, a unit for widths (…).
        mean: of the training rows, what z-scores are less (…).
        unit: their deviation, what z-scores are divided by (…).
    """

    place: Tensor
    rest: Tensor
    spread: Tensor
    mean: Tensor
    unit: Tensor


class Likelihood(ABC):
    """Training loss, point forecast and quantiles of a kind of output.

    Attributes:
        outputs: numbers K per forecast value.
    """

    outputs = 1

    @abstractmethod
    def loss(self, out: Outputs, target: Tensor) -> Tensor:
        """Returns the loss (…) of targets in z-scores (…)."""

    def point(self, out: Outputs) -> Tensor:
        """Returns the point forecast in z-scores (…)."""
        return out.place

    @abstractmethod
    def quantiles(self, out: Outputs, levels: np.ndarray) -> np.ndarray:
        """Returns quantiles in z-scores (…, levels), ascending with the level."""


@LIKELIHOODS.register("quantiles")
class QuantileHead(Likelihood):
    """Nine quantiles, the median and steps outward from it that are above 0: none cross. Trained by
    the pinball loss (Koenker and Bassett 1978)."""

    known = np.linspace(0.1, 0.9, 9)
    outputs = 9

    def _nine(self, out: Outputs) -> Tensor:
        steps = F.softplus(out.rest - 1) * out.spread.unsqueeze(-1)
        down, up = steps[..., :4], steps[..., 4:]
        middle = out.place.unsqueeze(-1)
        return torch.cat([middle - down.cumsum(-1).flip(-1), middle, middle + up.cumsum(-1)], -1)

    def loss(self, out: Outputs, target: Tensor) -> Tensor:
        return pinball(self._nine(out), target, torch.as_tensor(self.known).to(target))

    def quantiles(self, out: Outputs, levels: np.ndarray) -> np.ndarray:
        return at_levels(self._nine(out).double().cpu().numpy(), self.known, levels)


@LIKELIHOODS.register("student_t")
class StudentT(Likelihood):
    """Location, scale and degrees of freedom above 2: tails as heavy as the errors have."""

    outputs = 3

    def _parts(self, out: Outputs) -> tuple[Tensor, Tensor]:
        scale = (F.softplus(out.rest[..., 0]) + 1e-4) * out.spread
        return scale, 2 + F.softplus(out.rest[..., 1] + 2)

    def loss(self, out: Outputs, target: Tensor) -> Tensor:
        scale, freedom = self._parts(out)
        return -torch.distributions.StudentT(freedom, out.place, scale).log_prob(target)

    def quantiles(self, out: Outputs, levels: np.ndarray) -> np.ndarray:
        from scipy.stats import t

        scale, freedom = (part.double().cpu().numpy()[..., None] for part in self._parts(out))
        return out.place.double().cpu().numpy()[..., None] + scale * t.ppf(levels, freedom)


class Counts(Likelihood):
    """A distribution of counts with a mean above 0: its forecasts are never negative.

    The mean is ``s · softplus(m / s)`` with the location m and the series' deviation s, both in
    counts, so that it follows the location where that is well above 0.
    """

    def mean(self, out: Outputs) -> Tensor:
        """Returns the mean in counts (…)."""
        return out.unit * F.softplus((out.place * out.unit + out.mean) / out.unit) + 1e-6

    def counts(self, out: Outputs, target: Tensor) -> Tensor:
        """Returns targets in counts (…)."""
        return (target * out.unit + out.mean).round().clamp(min=0)

    def point(self, out: Outputs) -> Tensor:
        return (self.mean(out) - out.mean) / out.unit

    @abstractmethod
    def ppf(self, out: Outputs, levels: np.ndarray) -> np.ndarray:
        """Returns quantiles in counts (…, levels)."""

    def quantiles(self, out: Outputs, levels: np.ndarray) -> np.ndarray:
        mean, unit = (part.double().cpu().numpy()[..., None] for part in (out.mean, out.unit))
        return (self.ppf(out, levels) - mean) / unit


_MANY = 1e8  # counts


@LIKELIHOODS.register("poisson")
class Poisson(Counts):
    """Counts whose variance is their mean."""

    def loss(self, out: Outputs, target: Tensor) -> Tensor:
        mean, count = self.mean(out), self.counts(out, target)
        return mean - torch.xlogy(count, mean) + torch.lgamma(count + 1)

    def ppf(self, out: Outputs, levels: np.ndarray) -> np.ndarray:
        from scipy.stats import norm, poisson

        mean = self.mean(out).double().cpu().numpy()[..., None]
        # scipy has no quantiles of large means. These are within a count of the exact ones
        # (Cornish and Fisher 1938, to the skewness 1 / sqrt(mean)).
        z = norm.ppf(levels)
        near = np.ceil(mean + np.sqrt(mean) * z + (z**2 - 1) / 6)
        return np.where(mean > _MANY, near, poisson.ppf(levels, np.minimum(mean, _MANY)))


@LIKELIHOODS.register("negative_binomial")
class NegativeBinomial(Counts):
    """Counts with the variance μ + α μ²."""

    outputs = 2

    def _alpha(self, out: Outputs) -> Tensor:
        return F.softplus(out.rest[..., 0] - 1) + 1e-4

    def loss(self, out: Outputs, target: Tensor) -> Tensor:
        mean, count = self.mean(out), self.counts(out, target)
        size = 1 / self._alpha(out)
        # log C(k + r - 1, k) + r log(r / (r + μ)) + k log(μ / (r + μ))
        ways = torch.lgamma(count + size) - torch.lgamma(size) - torch.lgamma(count + 1)
        return -(
            ways - size * torch.log1p(mean / size) + count * (mean.log() - (size + mean).log())
        )

    def ppf(self, out: Outputs, levels: np.ndarray) -> np.ndarray:
        from scipy.stats import gamma, nbinom

        size = 1 / self._alpha(out).double().cpu().numpy()[..., None]
        mean = self.mean(out).double().cpu().numpy()[..., None]
        # A Poisson variable whose mean is Gamma distributed: of a large one, that mean. Beyond
        # 10^15 scipy does not come to an end.
        few = np.minimum(mean, _MANY**1.5)
        near = np.rint(gamma.ppf(levels, size) / size * mean)
        return np.where(mean > few, near, nbinom.ppf(levels, size, size / (size + few)))


def is_count(values: np.ndarray) -> bool:
    """Returns whether all values but NaN are whole and at least 0."""
    known = values[~np.isnan(values)]
    return bool(len(known) and known.min() >= 0 and (known == np.round(known)).all())


def first_not_counts(names: Sequence[str], values: np.ndarray) -> str | None:
    """Returns the first series with a value that is no count; None if there is none.

    Args:
        names: of the series.
        values: NaN where missing (T, C).
    """
    for name, one in zip(names, values.T):
        if not is_count(one) and not np.isnan(one).all():
            return name
    return None


def refuse_no_counts(name: str | None, source: object) -> None:
    """Refuses a series that a likelihood of counts does not take.

    Raises:
        ConfigError: if there is a name.
    """
    if name is not None:
        raise ConfigError(
            f"{source}: {name} has values that are no counts, which the likelihood needs; "
            "student_t and quantiles take any"
        )
