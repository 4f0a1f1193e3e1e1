"""``Forecaster``: fit, predict, cross-validate, save and load, from a frame to a frame."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from longseq.core.checks import check_positive
from longseq.core.errors import ConfigError, DataError, did_you_mean
from longseq.core.files import atomic_path
from longseq.timeseries.baseline_frame import baseline_frame, before, with_naive
from longseq.timeseries.conformal import check_levels
from longseq.timeseries.data.frames import Panel, Roles, panel_of, read_panel
from longseq.timeseries.data.module import ForecastData
from longseq.timeseries.data.protocols import Part, Split
from longseq.timeseries.local import BASELINES
from longseq.timeseries.zero_shot import NAME, Quantiles, zero_shot_frame

ZERO_SHOT = "zero_shot"
_TRAINED = {
    "mixer_forecaster": "MixerForecaster",
    "spacetime": "SpaceTime",
    "informer": "Informer",
    "autoformer": "Autoformer",
}


class PanelData(ForecastData):
    """Windows of a panel in memory: all rows train but the last horizon, which validates.

    Args:
        panel: the series.
        **arguments: of ``ForecastData``.
    """

    def __init__(self, path: str, **arguments: Any) -> None:
        super().__init__(path, **arguments)

    @classmethod
    def of(cls, panel: Panel, **arguments: Any) -> PanelData:
        """Returns the data module of a panel."""
        made = cls(panel.source or "frame", **arguments)
        made._panel = panel
        return made

    def split(self) -> Split:
        """Returns the rows that train, and the last horizon, which validates."""
        rows, h = len(self.panel), self.horizon
        least = self.least + 2 * h
        if rows < least:
            raise DataError(
                f"has {rows} rows, training with a context of {self.least} and a horizon of {h} "
                f"needs {least}",
                path=self.panel.source,
                hint="give a shorter context or horizon, or take the zero-shot forecaster",
            )
        end = Part(rows - h, rows)
        return Split(Part(0, rows - h), end, end)


class Forecaster:
    """A forecaster of all series of a frame, pandas or polars; what comes out is of the same type.

        forecast = Forecaster("zero_shot").fit(df).predict(28)

    Args:
        model: "zero_shot" (nothing is trained), a local model or baseline ("theta", "auto_ets",
            "seasonal_naive", "nlinear_ridge", …), or a network that is trained on the frame:
            "mixer_forecaster", "spacetime", "informer", "autoformer".
        horizon: rows that a network is trained to forecast; longer ones are forecast in turn.
        context: known rows L of a network's or a ridge's window; as the frame allows if None.
        season: rows of a season; the calendar's usual one if None.
        levels: percentages of intervals, of the zero-shot forecaster and of statsforecast's models.
        id: column with the series' names; by the usual names if None.
        time: column with the times.
        target: column with the values.
        zone: IANA name of the clock of the times.
        resample: step to average over.
        max_steps: training steps of a network.
        seed: of training.
        **arguments: further arguments of the network's task.

    Raises:
        ConfigError: for an unknown model or wrong arguments.
    """

    def __init__(
        self,
        model: str = ZERO_SHOT,
        horizon: int | None = None,
        context: int | None = None,
        season: int | None = None,
        levels: Sequence[int] = (80,),
        id: str | None = None,
        time: str | None = None,
        target: str | None = None,
        zone: str | None = None,
        resample: str | None = None,
        max_steps: int = 300,
        seed: int = 0,
        **arguments: Any,
    ) -> None:
        known = (*BASELINES, *_TRAINED)
        if model not in known:
            raise ConfigError(f"no forecaster {model!r}; {did_you_mean(model, known)}")
        if arguments and model not in _TRAINED:
            raise ConfigError(f"{model} takes no argument {next(iter(arguments))!r}")
        check_levels(levels)
        for name, value in (("horizon", horizon), ("context", context), ("season", season)):
            if value is not None:
                check_positive(name, value)
        self.model, self.horizon, self.context, self.season = model, horizon, context, season
        self.levels, self.max_steps, self.seed = tuple(levels), max_steps, seed
        self.roles, self.arguments = Roles(id, time, target, zone, resample), arguments
        self._panel: Panel | None = None
        self._task: Any = None
        self._polars = False

    @property
    def name(self) -> str:
        """Name of the column of forecasts."""
        if self.model == ZERO_SHOT:
            return NAME
        return _TRAINED.get(self.model) or BASELINES[self.model].__name__

    def fit(self, frame: Any) -> Forecaster:
        """Reads a frame, and trains what has to be trained.

        Args:
            frame: pandas or polars, long or wide; or the path of a file.

        Returns:
            Itself.
        """
        self._panel, self._polars = self._read(frame)
        self._task = None
        if self.model in _TRAINED:
            self._train(self._panel)
        return self

    def predict(self, horizon: int | None = None, frame: Any = None) -> Any:
        """Returns forecasts after the end of every series.

        Args:
            horizon: rows h; what the forecaster was made with if None.
            frame: to forecast in place of the fitted one, with no training on it.

        Returns:
            Columns ``unique_id``, ``ds``, ``cutoff``, ``y`` (empty), the model's, its intervals
            where it has any, and ``SeasonalNaive``; pandas or polars as ``fit`` was given.
        """
        panel, polars = (self._fitted(), self._polars) if frame is None else self._read(frame)
        return _like(self._frame(panel, self._horizon(horizon), None), polars)

    def cross_validation(
        self,
        frame: Any,
        horizon: int | None = None,
        windows: int = 3,
        step: int | None = None,
        refit: bool = False,
        progress: bool = False,
    ) -> Any:
        """Returns forecasts from earlier cutoffs, beside what came (``y``).

        Args:
            frame: as in ``fit``.
            horizon: rows h.
            windows: number of cutoffs, the last one h rows before the end.
            step: rows between cutoffs; h if None.
            refit: train anew at every cutoff; else once, on what lies before the first. Local
                models and the zero-shot forecaster always see all that lies before a cutoff.
            progress: print a line a cutoff.

        Raises:
            DataError: if the frame is too short.
        """
        panel, polars = self._read(frame)
        h = self._horizon(horizon)
        hop = check_positive("step", h if step is None else step)
        check_positive("windows", windows)
        rows = [len(panel) - h - i * hop for i in reversed(range(windows))]
        if rows[0] < 1:
            raise DataError(
                f"has {len(panel)} rows, {windows} cutoffs need more than {len(panel) - rows[0]}",
                path=panel.source,
            )
        kept = self._panel, self._task, self._polars
        parts = []
        try:
            for i, row in enumerate(rows):
                if self.model in _TRAINED and (refit or i == 0):
                    self._train(before(panel, row))
                parts.append(self._frame(panel, h, row))
                if progress:
                    print(f"cutoff {i + 1} of {windows}: {panel.ds[row - 1]}", flush=True)
        finally:
            self._panel, self._task, self._polars = kept
        return _like(pd.concat(parts, ignore_index=True), polars)

    def plot(self, frame: pd.DataFrame, path: str | Path, series: str | None = None) -> None:
        """Draws the forecasts of one series over its last known rows, as PNG.

        Args:
            frame: of ``predict`` or ``cross_validation``, pandas.
            path: the file.
            series: its name; the first one if None.
        """
        from longseq.timeseries.plots import plot_forecast

        panel = self._fitted()
        level = next((n for n in self.levels if f"{self.name}-lo-{n}" in frame), None)
        chosen = panel.select([series or panel.ids[0]])
        plot_forecast(chosen, frame, self.name, path, level)

    def save(self, path: str | Path) -> None:
        """Writes the forecaster with its series and weights to a folder.

        Args:
            path: the folder; made if it is not there.
        """
        folder, panel = Path(path), self._fitted()
        folder.mkdir(parents=True, exist_ok=True)
        wide = pd.DataFrame(panel.values, columns=list(panel.ids))
        wide.insert(0, "ds", panel.ds)
        with atomic_path(folder / "series.parquet") as temporary:
            wide.to_parquet(temporary, index=False)
        if self.model in _TRAINED:
            from lightning.pytorch import Trainer

            trainer = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
            trainer.strategy.connect(self._task)
            with atomic_path(folder / "model.ckpt") as temporary:
                trainer.save_checkpoint(temporary)
        content = {
            "model": self.model,
            "horizon": self.horizon,
            "context": self.context,
            "season": self.season,
            "levels": list(self.levels),
            "max_steps": self.max_steps,
            "seed": self.seed,
            **{name: value for name, value in vars(self.roles).items() if name != "missing"},
        }
        saved = {
            "forecaster": content,
            "arguments": self.arguments,
            "polars": self._polars,
            "source": panel.source,
        }
        with atomic_path(folder / "forecaster.json") as temporary:
            temporary.write_text(json.dumps(saved, indent=1), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Forecaster:
        """Returns a forecaster that ``save`` wrote.

        Raises:
            DataError: if the folder holds none.
        """
        folder = Path(path)
        file = folder / "forecaster.json"
        if not file.is_file():
            raise DataError("holds no forecaster (no forecaster.json)", path=folder)
        try:
            saved = json.loads(file.read_text(encoding="utf-8"))
            made = cls(**saved["forecaster"], **saved["arguments"])
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"is not a saved forecaster: {error}", path=file) from error
        panel = read_panel(folder / "series.parquet", roles=Roles(time="ds"))
        made._panel = replace(panel, source=saved["source"], notes=())
        made._polars = bool(saved["polars"])
        if made.model in _TRAINED:
            from longseq.core.training.loading import load_task

            made._task = load_task(folder / "model.ckpt", "timeseries")
        return made

    def _read(self, frame: Any) -> tuple[Panel, bool]:
        if isinstance(frame, (str, Path)):
            return read_panel(frame, roles=self.roles), False
        polars = type(frame).__module__.split(".")[0] == "polars"
        table = frame.to_pandas() if polars else frame
        if not isinstance(table, pd.DataFrame):
            raise ConfigError(
                f"a pandas or polars frame or a path is needed, got {type(frame).__name__}"
            )
        return panel_of(table, 0, source="the frame", roles=self.roles), polars

    def _fitted(self) -> Panel:
        if self._panel is None:
            raise ConfigError("the forecaster has seen no series: call fit first")
        return self._panel

    def _horizon(self, horizon: int | None) -> int:
        found = self.horizon if horizon is None else horizon
        if found is None:
            raise ConfigError("say how many rows to forecast: predict(28)")
        return check_positive("horizon", found)

    def _train(self, panel: Panel) -> None:
        from longseq.core.training.run import fit
        from longseq.timeseries import task as tasks
        from longseq.timeseries.data.calendar import N_FEATURES, resolution

        h = self.horizon or min(64, max(panel.season(), 1) * 2, max(1, len(panel) // 6))
        longest = max(1, len(panel) - 2 * h)
        context = self.context or min(336, max(1, longest // 2))
        cls = getattr(tasks, _TRAINED[self.model])
        own = dict(self.arguments)
        if not cls.channel_independent:
            own |= {
                "channels": len(panel.ids),
                "features": N_FEATURES[resolution(panel.freq)],
            }
            own.setdefault("label", max(1, context // 2))
        if self.model == "mixer_forecaster":
            own.setdefault("patch", min(16, context))
            own.setdefault("stride", max(1, own["patch"] // 2))
            own.setdefault("normalise", "last")
        import torch

        least = max(1, context // 4) if cls.channel_independent else None
        data = PanelData.of(
            panel, context=context, horizon=h, batch_size=64, seed=self.seed, min_context=least
        )
        # Initial weights and dropout follow from the seed, and the caller's stream is left alone.
        with torch.random.fork_rng(), tempfile.TemporaryDirectory() as folder:
            torch.manual_seed(self.seed)
            task = cls(context=context, horizon=h, **own)
            fit(task, data, folder, max_steps=self.max_steps)
        self._task = task.cpu().eval()

    def _frame(self, panel: Panel, horizon: int, cutoff: int | None) -> pd.DataFrame:
        """Returns forecasts from one cutoff, or from the end of every series."""
        at = None if cutoff is None else [cutoff]
        if self.model == ZERO_SHOT:
            if self._task is None:
                self._task = Quantiles()
            return zero_shot_frame(
                panel, horizon, at, self.levels, season=self.season, quantiles=self._task
            )
        if self.model in _TRAINED:
            return self._network_frame(panel, horizon, cutoff)
        return baseline_frame(
            self.model, panel, horizon, cutoff, self.season, self.levels, self.context
        )

    def _network_frame(self, panel: Panel, horizon: int, cutoff: int | None) -> pd.DataFrame:
        from longseq.timeseries.forecast import forecast_frame

        if self._task is None:
            raise ConfigError("the forecaster was not trained: call fit first")
        h = self._task.horizon
        own = panel if cutoff is None else before(panel, cutoff)
        parts, known = [], own
        for _ in range(-(-horizon // h)):
            part = forecast_frame(self._task, known, season=self.season)
            parts.append(part[self.name].to_numpy().reshape(-1, h))
            known = _append(known, part, self.name)
        path = np.concatenate(parts, axis=1)[:, :horizon]
        rows = own.ends if self._task.channel_independent else np.full(len(own.ids), len(own))
        series = np.arange(len(own.ids))
        return with_naive(panel, rows, series, {self.name: path}, self.season)


def _append(panel: Panel, part: pd.DataFrame, name: str) -> Panel:
    """Returns the panel with forecasts after the end of every series."""
    horizon = len(part) // len(panel.ids)
    longer = panel.extended(horizon)
    values = longer.values.copy()
    path = part[name].to_numpy().reshape(-1, horizon)
    at = longer.ds.get_indexer(pd.Index(part["ds"])).reshape(-1, horizon)
    values[at, np.arange(len(panel.ids))[:, None]] = path
    return replace(longer, values=values)


def _like(frame: pd.DataFrame, polars: bool) -> Any:
    if not polars:
        return frame
    import polars as pl

    return pl.from_pandas(frame)
