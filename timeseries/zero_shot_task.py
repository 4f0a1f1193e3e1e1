"""Training of the zero-shot forecaster: on generated series, or on one's own from the packaged
weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from longseq.core.checkpoints.safe import load_weights
from longseq.core.checks import check_positive
from longseq.core.errors import ConfigError
from longseq.timeseries.models.zero_shot import BLOCK, QUANTILES
from longseq.timeseries.models.zero_shot import ZeroShot as ZeroShotModel
from longseq.timeseries.quantiles import pinball
from longseq.timeseries.task import ForecastTask
from longseq.timeseries.zero_shot import PACKAGED

_MEDIAN = QUANTILES.index(0.5)


class ZeroShot(ForecastTask):
    """A forecaster of any series: pretrained on generated ones, and fine-tuned on yours by ``fit``.

    Args:
        context: known rows L of a window, in fine-tuning.
        horizon: predicted rows h of a window, at most 64 in fine-tuning.
        season: rows of a season that the calendar suggests; 0 for none: it is found in the series.
        pretrained: begin with the packaged weights.
        d_model: width D.
        n_layers: number of layers; 0 for no backbone.
        mixer: a mixer's name or a pattern of names.
        mixer_kwargs: the mixer's hyper-parameters.
        mlp_ratio: hidden width of the MLPs as a multiple of D.
        patch: rows of a patch.
        hidden: width of the network that weighs plain forecasts.
        average: decay of the average of the weights, with which forecasts are made.
        **recipe: optimiser, schedule, loss and further metrics, see ``BaseTask``.
    """

    copies = ("average",)
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
        season: int = 0,
        pretrained: bool = True,
        d_model: int = 128,
        n_layers: int = 3,
        mixer: str | list[Any] = "slstm",
        mixer_kwargs: dict[str, Any] | None = None,
        mlp_ratio: float = 2.0,
        patch: int = 16,
        hidden: int = 256,
        average: float = 0.998,
        **recipe: Any,
    ) -> None:
        super().__init__(**recipe)
        check_positive("context", context)
        if not 1 <= horizon <= BLOCK:
            raise ConfigError(f"horizon must lie between 1 and {BLOCK} in training, got {horizon}")
        if season < 0 or not 0 <= average < 1:
            raise ConfigError(
                f"season must be at least 0 and average in [0, 1), got {season} and {average}"
            )
        self.context, self.horizon, self.season, self.decay = context, horizon, season, average
        self.model = ZeroShotModel(d_model, n_layers, mixer, mixer_kwargs, mlp_ratio, patch, hidden)
        if pretrained:
            load_weights(PACKAGED, self.model)
        self.average = copy.deepcopy(self.model).requires_grad_(False)
        self.register_buffer("levels", torch.tensor(QUANTILES), persistent=False)

    def forward(self, x: Tensor, x_mark: Tensor, y_mark: Tensor) -> Tensor:
        """Returns the medians (B, h, C) after contexts (B, L, C) that are known throughout."""
        return self._medians(x, torch.ones_like(x, dtype=torch.bool))

    def predict_windows(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Returns the medians (B, h, C) of windows; what was not observed is not read, as in
        training. Of a context without any value the one carried forward is."""
        known = batch["x_mask"]
        return self._medians(batch["x"], known | ~known.any(1, keepdim=True))

    def _medians(self, x: Tensor, known: Tensor) -> Tensor:
        rows, seen = (one.transpose(1, 2).flatten(0, 1) for one in (x, known))
        medians = self._quantiles(self.average, rows, seen)[:, : self.horizon, _MEDIAN]
        return medians.unflatten(0, (len(x), x.shape[2])).transpose(1, 2)

    def _quantiles(self, model: nn.Module, rows: Tensor, known: Tensor) -> Tensor:
        """Returns quantiles (N, 64, 9) after rows (N, L), in their units."""
        pad = -rows.shape[1] % self.model.patch
        rows = nn.functional.pad(rows, (pad, 0))
        known = nn.functional.pad(known, (pad, 0))
        hint = rows.new_full((len(rows),), self.season, dtype=torch.int64)
        out = model(rows, known, hint)
        return out.quantiles[-1] * out.spread.unsqueeze(-1) + out.level.unsqueeze(-1)

    def training_loss(self, batch: Mapping[str, Tensor], mask: Tensor | None) -> Tensor:
        """Returns the pinball loss over nine quantiles of windows of single series."""
        rows, known = (batch[name].transpose(1, 2).flatten(0, 1) for name in ("x", "x_mask"))
        target, seen = (batch[name].transpose(1, 2).flatten(0, 1) for name in ("y", "y_mask"))
        found = self._quantiles(self.model, rows, known)[:, : self.horizon]
        loss = pinball(found, target, self.levels)
        return (loss * seen).sum() / seen.sum().clamp(min=1)

    def compute(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the loss of windows, or of generated series (``data.pretraining``)."""
        if "cutoffs" not in batch:
            return super().compute(batch)
        model = self.model if self.training else self.average
        loss, forecast, target, mask = generated_loss(model, batch, self.levels)
        found = {"loss": loss, "count": len(batch["x"]), "forecast": forecast, "target": target}
        return found | {"mask": mask, "pair": (forecast[mask], target[mask])}

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_end(outputs, batch, batch_idx)
        step = self.global_step
        decay = min(self.decay, (1 + step) / (10 + step))
        with torch.no_grad():
            for mean, now in zip(self.average.parameters(), self.model.parameters()):
                mean.lerp_(now, 1 - decay)


def generated_loss(
    model: nn.Module, batch: Mapping[str, Any], levels: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns the pinball loss after several cutoffs of generated series, in units of what a plain
    forecast misses inside the context; what exceeds four of these counts by its logarithm.

    Args:
        model: a ``models.zero_shot.ZeroShot``.
        batch: of ``data.pretraining``.
        levels: of the quantiles (9,).

    Returns:
        The loss, and after the last cutoff the medians (N, 64) in units of the context's deviation,
        what came, and where it counts.
    """
    x, hint, reach, cutoffs = batch["x"], batch["hint"], batch["reach"], batch["cutoffs"]
    known, x = ~x.isnan(), torch.nan_to_num(x)
    out = model(x[:, : cutoffs[-1]], known[:, : cutoffs[-1]], hint, cutoffs)
    scaled = ((x - out.level) / out.spread).clamp(-1e4, 1e4)
    ahead = torch.arange(BLOCK, device=x.device)
    total, count = x.new_zeros(()), x.new_zeros(())
    for quantiles, error, end in zip(out.quantiles, out.error, cutoffs):
        seen = known[:, :end].sum(1, keepdim=True)
        rows = torch.minimum(reach.unsqueeze(1), (2 * seen).clamp(min=6))
        mask = known[:, end : end + BLOCK] & (ahead < rows) & (seen >= 5)
        counted, target = mask.to(x.dtype), scaled[:, end : end + BLOCK]
        loss = pinball(quantiles, target, levels)
        loss = (loss * counted).sum(1) / counted.sum(1).clamp(min=1) / error
        loss = torch.where(loss < 4, loss, 4 + 2 * ((loss - 2).clamp(min=1e-3) / 2).log())
        total, count = total + loss.sum(), count + (counted.sum(1) > 0).sum()
    return total / count.clamp(min=1), quantiles[..., _MEDIAN], target, mask
