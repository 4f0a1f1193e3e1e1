"""A forecaster of one's own: the last value, and what the mixer makes of the steps before it."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from longseq.core import Backbone
from longseq.timeseries import ForecastTask


class LevelForecaster(ForecastTask):
    """Forecasts every series on its own, as its last value plus a map of the backbone's last
    position.

    Args:
        context: known rows L.
        horizon: predicted rows h.
        d_model: width D.
        n_layers: number of layers.
        mixer: a mixer's name.
        **recipe: optimiser, schedule, loss and further metrics, see ``BaseTask``.
    """

    defaults = {"lr": 2e-3, "weight_decay": 0.01}

    def __init__(
        self,
        context: int = 336,
        horizon: int = 48,
        d_model: int = 16,
        n_layers: int = 1,
        mixer: str = "leaky_average",
        **recipe: Any,
    ) -> None:
        super().__init__(**recipe)
        self.context, self.horizon = context, horizon
        self.embed = nn.Linear(1, d_model)
        self.backbone = Backbone(d_model, n_layers, mixer, mlp_ratio=2.0)
        self.head = nn.Linear(d_model, horizon)

    def forward(self, x: Tensor, x_mark: Tensor, y_mark: Tensor) -> Tensor:
        """Returns the forecast (B, h, C) of z-scores x (B, L, C)."""
        batch, length, series = x.shape
        last = x[:, -1:]
        alone = (x - last).transpose(1, 2).reshape(batch * series, length, 1)
        y, _ = self.backbone(self.embed(alone), keep_states=False)
        return last + self.head(y[:, -1]).view(batch, series, -1).transpose(1, 2)
