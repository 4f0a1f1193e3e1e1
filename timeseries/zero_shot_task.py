"""Training of the zero-shot forecaster: on generated series, or on one's own from the packaged
weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics import Metric

from longseq.core.checks import check_positive
from longseq.core.errors import ConfigError
from longseq.timeseries.added_layers import adopt, silence
from longseq.timeseries.metrics import Coverage, PinballLoss
from longseq.timeseries.models.plain_forecasts import BLOCK
from longseq.timeseries.models.zero_shot import MAX_CONTEXT, QUANTILES, MeanOfNetworks, Scaled
from longseq.timeseries.models.zero_shot import ZeroShot as ZeroShotModel
from longseq.timeseries.packaged import mean_of_networks, packaged_network
from longseq.timeseries.quantiles import at_levels, pinball
from longseq.timeseries.task import ForecastTask
from longseq.timeseries.two_copies import mean_of_copies
from longseq.timeseries.zero_shot import LEVELS, Quantiles

_MEDIAN = QUANTILES.index(0.5)
# The unit of losses goes this share of the way, in logarithms, to the width that local models
# expect, which counts down to so much of what plain forecasts miss: else a smooth series counts for
# nothing, however far off a forecast is in view of what can be known.
_SMOOTH, _LEAST = 0.6, 0.01
# Single networks that were packaged, by their names.
_EARLIER_SIZES: dict[str, dict[str, Any]] = {
    "plain": {"n_layers": 0},
    "local": {"n_layers": 0, "local": True},
    "slstm": {"n_layers": 1, "local": True, "reads": 64},
}
# A value that is nearer to 0 than so many units of float32 z-scores is 0.
_ROUNDING = 4 * torch.finfo(torch.float32).eps


class ZeroShot(ForecastTask):
    """A forecaster of any series: pretrained on generated ones, and fine-tuned on yours by ``fit``.

    It forecasts as the packaged one does, with which it begins, by the weights' average: see
    ``zero_shot.Quantiles``. Fine-tuning lowers the quantile loss of the mean of both copies.

    Args:
        context: known rows L of a window, in fine-tuning.
        horizon: predicted rows h of a window, at most 64 in fine-tuning.
        season: rows of a season; the calendar's usual one if None, 0 for none: it is found in the
            series.
        pretrained: begin with the packaged weights.
        networks: names of the networks whose mean an earlier version packaged, such as
            "plain+slstm", for its checkpoints; empty for one network.
        d_model: width D.
        n_layers: number of layers; 0 for no backbone.
        mixer: a mixer's name or a pattern of names.
        mixer_kwargs: the mixer's hyper-parameters.
        mlp_ratio: hidden width of the MLPs as a multiple of D.
        patch: rows of a patch.
        hidden: width of the network that weighs plain forecasts.
        local: it sees and weighs local models' forecasts too.
        reads: last rows before a cutoff that the layers read, at most 2,048.
        added_layers: so many of the last layers change nothing at first, and may be missing in the
            weights of ``init_from``; of sLSTM.
        both_copies: in pretraining, lower the loss of the mean of both copies' forecasts and
            not of each alone: intervals of the mean then have the right width.
        average: decay of the average of the weights, with which forecasts are made.
        **recipe: optimiser, schedule, loss and further metrics, see ``BaseTask``.
    """

    copies = ("average",)
    probabilistic = True
    median = True
    any_horizon = True
    defaults = {
        "lr": 3e-4,
        "weight_decay": 0.01,
        "betas": (0.9, 0.98),
        "warmup_steps": 20,
        "min_lr_ratio": 0.02,
    }

    def __init__(
        self,
        context: int = 512,
        horizon: int = 64,
        season: int | None = None,
        pretrained: bool = True,
        networks: str = "",
        d_model: int = 128,
        n_layers: int = 3,
        mixer: str | list[Any] = "slstm",
        mixer_kwargs: dict[str, Any] | None = None,
        mlp_ratio: float = 2.0,
        patch: int = 16,
        hidden: int = 256,
        local: bool = False,
        reads: int = MAX_CONTEXT,
        added_layers: int = 0,
        both_copies: bool = False,
        average: float = 0.998,
        **recipe: Any,
    ) -> None:
        super().__init__(**recipe)
        if self.own_loss is not None:
            raise ConfigError("ZeroShot has its own loss: give no --model.loss")
        check_positive("context", context)
        if not 1 <= horizon <= BLOCK:
            raise ConfigError(f"horizon must lie between 1 and {BLOCK} in training, got {horizon}")
        if (season or 0) < 0 or not 0 <= average < 1:
            raise ConfigError(
                f"season must be at least 0 and average in [0, 1), got {season} and {average}"
            )
        sizes = (d_model, n_layers, mixer, mixer_kwargs, mlp_ratio, patch, hidden)
        self.context, self.horizon, self.season, self.decay = context, horizon, season, average
        self.both_copies, self.added_layers = both_copies, added_layers
        self.model: ZeroShotModel | MeanOfNetworks
        if pretrained:
            rest = (local, reads, added_layers, networks)
            if (*sizes, *rest) != (128, 3, "slstm", None, 2.0, 16, 256, False, MAX_CONTEXT, 0, ""):
                raise ConfigError(
                    "the packaged network has sizes of its own: others (n_layers, hidden, …) "
                    "need --model.pretrained false"
                )
            self.model = packaged_network()
        else:
            self.model = ZeroShotModel(*sizes, reads=reads, local=local)
            silence(self.model, added_layers)
            if networks:
                self.model = mean_of_networks(networks, self.model)
        self.average = copy.deepcopy(self.model).requires_grad_(False)
        self.register_buffer("levels", torch.tensor(QUANTILES), persistent=False)

    @classmethod
    def upgrade(cls, content: dict[str, Any]) -> None:
        """There was one network at first, then two, or ``second`` was false, then so many of three,
        then two that had names: weights that are not packaged now are in the checkpoint alone."""
        super().upgrade(content)
        hyper = content.get("hyper_parameters") or {}
        names = hyper.get("networks", 2 if hyper.pop("second", False) else 1)
        pretrained = hyper.get("pretrained", True)
        if names == "":
            return
        hyper |= {"networks": "", "pretrained": False}
        if isinstance(names, int):
            means = dict(zip((2, 3), ("recurrent+plain", "recurrent+plain+local")))
            hyper["networks"] = means.get(names, "") if pretrained else ""
        elif any(key.startswith("average.networks.") for key in content["state_dict"]):
            # Without pretrained weights the default name stood beside a single network too.
            hyper["networks"] = names
        elif pretrained:
            hyper |= _EARLIER_SIZES.get(names, {})

    def adopt(self, state: Mapping[str, Any], module: nn.Module) -> Mapping[str, Any]:
        """Returns weights that a training begins with: what forecasts, the average, in the place of
        what was trained; and the layers that are added to them.

        Args:
            state: the weights.
            module: that takes them: this task, or its ``model``.
        """
        averages = {k: v for k, v in state.items() if k.startswith("average.")}
        trained = {f"model.{key.removeprefix('average.')}": v for key, v in averages.items()}
        return adopt({**state, **trained}, module, self.added_layers)

    def make_metrics(self) -> Mapping[str, Metric]:
        return super().make_metrics() | {"pinball": PinballLoss(), "coverage80": Coverage()}

    def forward(self, x: Tensor, x_mark: Tensor, y_mark: Tensor) -> Tensor:
        """Returns the network's own medians (B, h, C) after contexts (B, L, C) that are known
        throughout."""
        rows = x.transpose(1, 2).flatten(0, 1)
        out = self.average(*self._padded(rows, torch.ones_like(rows, dtype=torch.bool), 0))
        return _windows(_values(out)[:, : self.horizon, _MEDIAN], x)

    def predict_windows(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Returns the medians (B, h, C) of windows; what was not observed is not read, as in
        training. Of a context without any value the one carried forward is."""
        return self._forecasts(batch)[..., _MEDIAN].to(batch["x"])

    def quantile_windows(self, batch: Mapping[str, Tensor], levels: np.ndarray) -> np.ndarray:
        return at_levels(self._forecasts(batch).numpy(), LEVELS, levels)

    def calendar_season(self) -> int:
        """Returns the season that the networks are told, in rows; 0 for none."""
        if self.season is not None:
            return self.season
        return int((self.facts or {}).get("season", 0))

    def _forecasts(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Returns quantiles (B, h, C, 9) of windows in z-scores, float64."""
        x, known = batch["x"], batch["x_mask"]
        rows, seen, zero = _series(x, known | ~known.any(1, keepdim=True), batch)
        values = torch.where(seen, rows.double() - zero.double(), torch.nan)
        values[values.abs() <= _ROUNDING * zero.abs().clamp(min=1)] = 0.0
        # What lies before a series is no part of it, as in the packaged one's contexts.
        contexts = [row[int(np.isfinite(row).argmax()) :] for row in values.cpu().numpy()]
        network = Quantiles(self.average, calibrated=True)
        found = network.forecast(contexts, self.horizon, self.calendar_season())
        return _windows(torch.from_numpy(found) + zero.cpu().double().unsqueeze(-1), x)

    def _copies(self, rows: Tensor, known: Tensor, zero: Tensor) -> Tensor:
        """Returns the mean of both copies' quantiles (N, h, 9) in the units of rows (N, L)."""
        rows, known, hint = self._padded(rows, known, self.calendar_season())
        out = mean_of_copies(self.model, rows, known, zero, hint)
        return _values(out)[:, : self.horizon]

    def _padded(self, rows: Tensor, known: Tensor, season: int) -> tuple[Tensor, Tensor, Tensor]:
        """Returns whole patches of rows (N, L), what of them is known, and a hint (N,)."""
        pad = -rows.shape[1] % self.model.patch
        hint = rows.new_full((len(rows),), season if season > 1 else 0, dtype=torch.int64)
        return nn.functional.pad(rows, (pad, 0)), nn.functional.pad(known, (pad, 0)), hint

    def training_loss(self, batch: Mapping[str, Tensor], mask: Tensor | None) -> Tensor:
        """Returns the pinball loss over nine quantiles of windows of single series."""
        found = self._copies(*_series(batch["x"], batch["x_mask"], batch))
        return self._pinball(_windows(found, batch["x"]), batch["y"], batch["y_mask"])

    def _pinball(self, quantiles: Tensor, target: Tensor, seen: Tensor) -> Tensor:
        loss = pinball(quantiles, target, self.levels)
        return (loss * seen).sum() / seen.sum().clamp(min=1)

    def compute(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the loss of windows, or of generated series (``data.pretraining``); of
        evaluation, in which own losses stand beside, the quantiles too."""
        if "cutoffs" in batch:
            model = self.model if self.training else self.average
            loss, nine, target, mask = generated_loss(model, batch, self.levels, self.both_copies)
            found: dict[str, Any] = {"loss": loss, "count": len(batch["x"])}
        elif self.training:
            return super().compute(batch)
        else:
            nine, target, mask = self._forecasts(batch).to(batch["y"]), batch["y"], batch["y_mask"]
            found = {"loss": self._pinball(nine, target, mask), "count": len(target)}
            found["weight"] = mask.sum()
        forecast = nine[..., _MEDIAN]
        found |= {"forecast": forecast, "target": target, "mask": mask, "quantiles": nine}
        return found | {"pair": (forecast[mask], target[mask])}

    def stepped(self, step: int) -> None:
        """Averages the weights, see ``BaseTask``."""
        decay = min(self.decay, (1 + step) / (10 + step))
        with torch.no_grad():
            for mean, now in zip(self.average.parameters(), self.model.parameters()):
                mean.lerp_(now, 1 - decay)


def generated_loss(
    model: nn.Module, batch: Mapping[str, Any], levels: Tensor, both: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns the pinball loss after several cutoffs of generated series, in units of what a plain
    forecast misses inside the context, and less where local models, of a network that has them,
    expect to miss much less; what exceeds four of these counts by its logarithm.

    Args:
        model: a ``models.zero_shot.ZeroShot``.
        batch: of ``data.pretraining``.
        levels: of the quantiles (9,).
        both: of the mean of both copies' forecasts, as forecasts are made.

    Returns:
        The loss, and after the last cutoff the quantiles (N, 64, 9) in units of the context's
        deviation, what came, and where it counts.
    """
    x, hint, reach, cutoffs = batch["x"], batch["hint"], batch["reach"], batch["cutoffs"]
    known, x = ~x.isnan(), torch.nan_to_num(x)
    seen = known[:, : cutoffs[-1]]
    if both:
        mean, deviation = _normal(x[:, : cutoffs[-1]], seen)
        x = (x - mean) / deviation
        out = mean_of_copies(model, x[:, : cutoffs[-1]], seen, -mean / deviation, hint, cutoffs)
    else:
        out = model(x[:, : cutoffs[-1]], seen, hint, cutoffs)
    scaled = ((x - out.level) / out.spread).clamp(-1e4, 1e4)
    ahead = torch.arange(BLOCK, device=x.device)
    total, count = x.new_zeros(()), x.new_zeros(())
    for k, (quantiles, error, end) in enumerate(zip(out.quantiles, out.error, cutoffs)):
        seen = known[:, :end].sum(1, keepdim=True)
        rows = torch.minimum(reach.unsqueeze(1), (2 * seen).clamp(min=6))
        mask = known[:, end : end + BLOCK] & (ahead < rows) & (seen >= 5)
        counted, target = mask.to(x.dtype), scaled[:, end : end + BLOCK]
        steps = counted.sum(1).clamp(min=1)
        if out.expected:
            width = (out.expected[k] * counted).sum(1) / steps
            error = error * (width / error).clamp(_LEAST, 1.0) ** _SMOOTH
        loss = pinball(quantiles, target, levels)
        loss = (loss * counted).sum(1) / steps / error
        loss = torch.where(loss < 4, loss, 4 + 2 * ((loss - 2).clamp(min=1e-3) / 2).log())
        total, count = total + loss.sum(), count + (counted.sum(1) > 0).sum()
    return total / count.clamp(min=1), quantiles, target, mask


def _normal(x: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the mean and the deviation (N, 1) of what is known of series (N, L)."""
    count = known.sum(1, keepdim=True).clamp(min=1)
    mean = (x * known).sum(1, keepdim=True) / count
    deviation = (((x - mean) * known).square().sum(1, keepdim=True) / count).sqrt()
    return mean, torch.where(deviation > 1e-6 * mean.abs() + 1e-30, deviation, 1.0 + mean.abs())


def _values(out: Scaled) -> Tensor:
    """Returns the quantiles after the last cutoff (N, 64, 9) in the units of what was read."""
    return out.quantiles[-1] * out.spread.unsqueeze(-1) + out.level.unsqueeze(-1)


def _series(x: Tensor, known: Tensor, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Returns every series of windows (B, L, C) in z-scores (B · C, L), what of it is known, and
    where 0 lies (B · C, 1); of windows without a scaler nowhere."""
    rows, seen = (one.transpose(1, 2).flatten(0, 1) for one in (x, known))
    if "zero" not in batch:
        return rows, seen, rows.new_zeros(len(rows), 1)
    return rows, seen, batch["zero"].reshape(-1, 1)


def _windows(found: Tensor, x: Tensor) -> Tensor:
    """Returns what was found of every series (B · C, h, …) of windows x (B, L, C): (B, h, C, …)."""
    return found.unflatten(0, (len(x), x.shape[2])).transpose(1, 2)
