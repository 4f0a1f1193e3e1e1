"""A forecaster that starts from the closed form: a frozen ridge regression, and a network that may
change the shape of a season and never the level; all choices inside the training rows."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from longseq.core.checks import check_positive
from longseq.core.errors import ConfigError
from longseq.timeseries.baselines import BASELINES, Baseline, NLinearGCV, normal_sums
from longseq.timeseries.data.windows import Windows
from longseq.timeseries.models.seasonal_residual import SeasonalResidual

_ORIGINS = (0.6, 0.8)  # shares of the training rows that are fitted; the fifth after each scores
_DECAY = 0.95
_MARGIN = 0.01


@BASELINES.register("closed_form")
class ClosedForm(Baseline):
    """Ridge regression about the context's mean, without intercept, plus the mean of a few
    ``SeasonalResidual`` networks.

    λ is that of generalised cross-validation, and the number of the networks' steps (none among
    them) the least that comes within 1% of the lowest squared error at rolling origins, both inside
    the training rows.
    Validation rows choose nothing: where a series
    turns after its training, what gains on the months in between loses on those that follow.

    Args:
        horizon: predicted rows h.
        season: rows of a season.
        seeds: networks whose mean is taken.
        steps: numbers of training steps to choose from.
        seed: of the first network.
        lr: learning rate.

    Attributes:
        chosen: λ ("ridge") and steps, after ``fit``.
        scores: squared error at the rolling origins by steps.
    """

    kind = "model"

    def __init__(
        self,
        horizon: int,
        season: int = 1,
        seeds: int = 2,
        steps: tuple[int, ...] = (0, 25, 50, 100),
        seed: int = 0,
        lr: float = 1e-3,
    ) -> None:
        super().__init__(horizon)
        self.season, self.seeds = check_positive("season", season), check_positive("seeds", seeds)
        self.steps, self.seed, self.lr = steps, seed, lr
        self.linear = NLinearGCV(horizon)
        self.networks: list[SeasonalResidual] = []
        self.chosen: dict[str, float] = {}
        self.scores: dict[int, float] = {}

    @property
    def parameters(self) -> int:
        own = sum(p.numel() for network in self.networks for p in network.parameters())
        return self.linear.parameters + own

    def fit(self, windows: Windows) -> None:
        self.linear.fit(windows)
        ridge = self.linear.ridge
        parts, tests = _origins(windows)
        scores = np.zeros(len(self.steps))
        if self.season > 1 and max(self.steps) > 0:
            for i, test in enumerate(tests):
                train = windows.at(parts[i])
                linear = NLinearGCV(self.horizon)
                linear.solve(normal_sums(train), ridge * len(train) / len(windows))
                found = self._train(linear, train, self.seed, max(self.steps))
                scores += [_error(linear, found.get(n), windows.at(test)) for n in self.steps]
        # A network must earn its place: the fewest steps that come within a hundredth of the best.
        near = scores <= scores.min() * (1 + _MARGIN)
        count = min(n for n, close in zip(self.steps, near) if close)
        self.scores = dict(zip(self.steps, scores.tolist()))
        self.chosen = {"ridge": ridge, "steps": count}
        self.networks = []
        if count > 0:
            for k in range(self.seeds):
                found = self._train(self.linear, windows, self.seed + k, count)
                self.networks.append(found[count])

    def _train(
        self, linear: NLinearGCV, windows: Windows, seed: int, steps: int
    ) -> dict[int, SeasonalResidual]:
        """Returns networks of averaged weights after every number of steps that is a choice."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            network = SeasonalResidual(windows.context, self.horizon, self.season).train()
            mean = copy.deepcopy(network).requires_grad_(False)
            optimizer = torch.optim.AdamW(network.parameters(), self.lr, weight_decay=0.05)
            rng, pairs = np.random.default_rng(seed), windows.pairs
            found = {}
            for step in range(1, steps + 1):
                batch = windows.batch_of_pairs(rng.choice(pairs, min(256, len(pairs))))
                x, y, mask = (batch[key][..., 0] for key in ("x", "y", "y_mask"))
                start = linear.forecast(batch["x"])[..., 0]
                # In units of the context's deviation, so that no series outweighs the others.
                spread = (x.var(1, keepdim=True, correction=0) + 1e-5).sqrt()
                error = (start + network(x) - y) / spread
                loss = F.huber_loss(error * mask, torch.zeros_like(error), reduction="sum")
                optimizer.zero_grad()
                (loss / mask.sum().clamp(min=1)).backward()
                torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
                optimizer.step()
                for average, now in zip(mean.parameters(), network.parameters()):
                    average.lerp_(now.detach(), 1 - min(_DECAY, step / (step + 9)))
                if step in self.steps:
                    found[step] = copy.deepcopy(mean).eval()
        return found

    def forecast(self, x: Tensor) -> Tensor:
        y = self.linear.forecast(x)
        if not self.networks:
            return y
        rows = x.transpose(1, 2).flatten(0, 1).float()
        with torch.inference_mode():
            more = torch.stack([network(rows) for network in self.networks]).mean(0)
        return y + more.unflatten(0, (len(x), x.shape[2])).transpose(1, 2).to(y)


def _hop(windows: Windows) -> int:
    return windows.cutoffs[1] - windows.cutoffs[0] if len(windows) > 1 else 1


def _origins(windows: Windows) -> tuple[list[range], list[range]]:
    """Returns cutoffs of training parts and of the tests after them.

    No training target lies behind a test's first target.

    Raises:
        ConfigError: if the training rows are too few.
    """
    first, last, hop = windows.cutoffs[0], windows.cutoffs[-1], _hop(windows)
    rows, h = last + windows.horizon, windows.horizon
    parts, tests = [], []
    for share in _ORIGINS:
        end = int(share * rows)
        stop = end + max(int(0.2 * rows), h)
        parts.append(range(first, end - h + 1, hop))
        every = max(1, (min(stop, rows) - h + 1 - end) // 200)
        tests.append(range(end, min(stop, rows) - h + 1, every))
    if not all(map(len, (*parts, *tests))):
        raise ConfigError(
            f"the training rows ({rows}) are too few to choose at rolling origins with a context "
            f"of {windows.context} and a horizon of {h}; give a shorter one of them"
        )
    return parts, tests


def _error(linear: NLinearGCV, network: SeasonalResidual | None, windows: Windows) -> float:
    """Returns the mean squared error over all observed targets."""
    total, count = 0.0, 0
    pairs = windows.pairs
    for start in range(0, len(pairs), 512):
        batch = windows.batch_of_pairs(pairs[start : start + 512])
        y = linear.forecast(batch["x"])[..., 0]
        if network is not None:
            with torch.inference_mode():
                y = y + network(batch["x"][..., 0])
        mask = batch["y_mask"][..., 0]
        total += float(((y - batch["y"][..., 0])[mask] ** 2).double().sum())
        count += int(mask.sum())
    return total / max(count, 1)
