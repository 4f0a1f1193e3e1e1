"""``Forecaster``: fit, predict, cross-validate, save and load, from a frame to a frame."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from longseq.core.checks import check_positive
from longseq.core.errors import ConfigError, DataError, did_you_mean
from longseq.core.files import refuse_overwriting
from longseq.core.registry import keywords
from longseq.core.tables import check_table, write_frame
from longseq.timeseries.baseline_frame import baseline_frame
from longseq.timeseries.calibrated import conformal_frame
from longseq.timeseries.conformal import check_levels
from longseq.timeseries.data.covariates import Covariates
from longseq.timeseries.data.frames import Panel, Roles, panel_of, read_panel
from longseq.timeseries.data.future import known_future
from longseq.timeseries.data.roles import names_of
from longseq.timeseries.data.text import give_back
from longseq.timeseries.frame_types import same_type, to_pandas
from longseq.timeseries.local import BASELINES
from longseq.timeseries.models.plain_forecasts import BLOCK
from longseq.timeseries.network_frame import network_frame
from longseq.timeseries.predict_pieces import path_forecasts, path_in_pieces
from longseq.timeseries.regression import covariate_effects, regression_frame
from longseq.timeseries.scores import score_frame
from longseq.timeseries.zero_shot import NAME, Quantiles, zero_shot_frame

ZERO_SHOT, TUNED = "zero_shot", "tuned_zero_shot"
_TRAINED = {
    "mixer_forecaster": "MixerForecaster",
    "spacetime": "SpaceTime",
    "informer": "Informer",
    "autoformer": "Autoformer",
    "tpgn": "TPGN",
    "inverted_forecaster": "InvertedForecaster",
    TUNED: "ZeroShot",
}
_NATIVE = ("mixer_forecaster",)  # networks that read covariates themselves


class Forecaster:
    """A forecaster of all series of a frame, pandas or polars; what comes out is of the same type.

        forecast = Forecaster("zero_shot").fit(df).predict(28)

    Args:
        model: "zero_shot" (nothing is trained), a local model or baseline ("theta", "auto_ets",
            "nlinear_ridge", …), or a network that is trained on the frame ("mixer_forecaster", …).
        horizon: rows that a network is trained to forecast; longer ones in turn.
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
        future: columns that are known for the future too: promotions, prices, forecast weather.
        past: columns that are known up to the cutoff only; for ``mixer_forecaster``.
        static: columns with one value a series; for ``mixer_forecaster``.
        holidays: country whose public holidays are a future covariate: "DE", or "DE-BY".
        conformal: back-tests on which the intervals of ``levels`` are calibrated, for models that
            see each series anew at every cutoff; 0 for a model's own intervals; None likewise, but
            for zero-shot ones of 50 series and more: see ``calibrated.panel_intervals``.
        date_order: of dates like 01/02/24: "dmy", "mdy" or "ymd"; of whole numbers: see ``Roles``.
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
        levels: int | Sequence[int] = (80,),
        id: str | None = None,
        time: str | None = None,
        target: str | None = None,
        zone: str | None = None,
        resample: str | None = None,
        max_steps: int = 300,
        seed: int = 0,
        future: str | Sequence[str] = (),
        past: str | Sequence[str] = (),
        static: str | Sequence[str] = (),
        holidays: str | None = None,
        conformal: int | None = None,
        date_order: str | None = None,
        **arguments: Any,
    ) -> None:
        known = (*BASELINES, *_TRAINED)
        if model not in known:
            raise ConfigError(f"no forecaster {model!r}; {did_you_mean(str(model), known)}")
        if arguments and model not in _TRAINED:
            raise ConfigError(f"{model} takes no argument {next(iter(arguments))!r}")
        if (past or static) and model not in _NATIVE:
            raise ConfigError(
                f"{model} uses future covariates and holidays; past and static ones are for "
                f"{', '.join(_NATIVE)}"
            )
        if conformal and model in _TRAINED:
            own = "give it a likelihood, or " if model == "mixer_forecaster" else ""
            raise ConfigError(
                f"{model} was trained on the rows that would calibrate its intervals: {own}"
                "hold rows back in longseq timeseries fit and take predict --ckpt_path --level"
            )
        self.conformal = conformal
        many: Any = levels if np.ndim(levels) else (levels,)
        levels = tuple(many)
        future, past, static = map(names_of, (future, past, static))
        check_levels(levels)
        for name, value in (("horizon", horizon), ("context", context), ("season", season)):
            if value is not None:
                check_positive(name, value)
        self.model, self.horizon, self.context, self.season = model, horizon, context, season
        self.levels, self.seed, self.arguments = levels, seed, arguments
        self.max_steps = check_positive("max_steps", max_steps)
        self.roles = Roles(
            *(id, time, target, zone, resample, "ffill"),
            *(future, past, static, holidays, date_order),
        )
        self._panel: Panel | None = None
        self._task: Any = None
        self._polars = False

    @property
    def trained(self) -> bool:
        """Whether the model is a network that ``fit`` trains."""
        return self.model in _TRAINED

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

    def predict(
        self,
        horizon: int | None = None,
        frame: Any = None,
        future: Any = None,
        out: str | Path | None = None,
    ) -> Any:
        """Returns forecasts after the end of every series.

        Args:
            horizon: rows h; what the forecaster was made with if None.
            frame: to forecast in place of the fitted one, with no training on it; a long Parquet
                file that is large, or whose forecasts go to ``out``, is read in pieces (then None
                is as conformal=0).
            future: frame, or path, of the future covariates after the end of every series, in the
                columns of the fitted one; not needed where that goes on with an empty target.
            out: file to write the forecasts to, .csv, .tsv or .parquet.

        Returns:
            Columns ``unique_id``, ``ds``, ``cutoff``, ``y`` (empty), the model's, its intervals
            where it has any, and ``SeasonalNaive``; pandas or polars as ``fit`` was given. The path
            ``out`` where it is given, which is no file that was read.
        """
        if out is not None:
            self._check_out(out, frame, future)
        if future is None and path_in_pieces(self, frame, out):
            return path_forecasts(self, frame, self._horizon(horizon), out)
        panel, polars = (self._fitted(), self._polars) if frame is None else self._read(frame)
        h = self._horizon(horizon)
        if future is not None:
            panel = known_future(panel, future, h, self.roles)
        found = self._frame(panel, h, None)
        if out is None:
            return same_type(found, polars)
        write_frame(found, out)
        return Path(out)

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
                models and the zero-shot forecaster always see all that lies before a cutoff. A
                series that has not begun at a cutoff, is shorter there than any that a network was
                trained on, or ends within the horizon with its future covariates, has no rows
                there.
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
                    self._train(panel.before(row))
                gone = panel.covariates.ended(panel, row, h)
                there = [name for name, out in zip(panel.ids, gone) if not out]
                parts.append(self._frame(panel.select(there) if gone.any() else panel, h, row))
                if progress:
                    print(f"cutoff {i + 1} of {windows}: {panel.ds[row - 1]}", flush=True)
        finally:
            self._panel, self._task, self._polars = kept
        return same_type(pd.concat(parts, ignore_index=True), polars)

    def scores(self, frame: Any, history: Any = None) -> Any:
        """Returns MAE, RMSE, MASE, sMAPE, pinball loss and coverage of a back-test.

        Args:
            frame: of ``cross_validation``.
            history: the series it forecast; the fitted ones if None.
        """
        panel = self._fitted() if history is None else self._read(history)[0]
        table, polars = to_pandas(frame)
        return same_type(score_frame(table, panel, self.season), polars)

    def plot(self, frame: Any, path: str | Path, series: str | None = None) -> None:
        """Draws the forecasts of one series over its last known rows, as PNG.

        Args:
            frame: of ``predict`` or ``cross_validation``, pandas or polars.
            path: the file.
            series: its name; the first one if None.
        """
        from longseq.timeseries.plots import plot_forecast

        panel = self._fitted()
        self._check_out(path, table=False)
        level = next((n for n in self.levels if f"{self.name}-lo-{n}" in frame), None)
        chosen = panel.select([series or panel.ids[0]])
        plot_forecast(chosen, frame, self.name, path, level)

    def save(self, path: str | Path) -> None:
        """Writes the forecaster with its series and weights to a folder.

        Args:
            path: the folder; made if it is not there.
        """
        from longseq.timeseries.forecaster_folder import save

        save(self, Path(path), self._fitted())

    @classmethod
    def load(cls, path: str | Path) -> Forecaster:
        """Returns a forecaster that ``save`` wrote.

        Raises:
            DataError: if the folder holds none.
        """
        from longseq.timeseries.forecaster_folder import load

        return load(cls, Path(path))

    def _check_out(self, out: str | Path, *frames: Any, table: bool = True) -> None:
        """Refuses an output that cannot be written, or was read: the fitted file or ``frames``."""
        if table:
            check_table(out)
        read = [None if self._panel is None else self._panel.source]
        refuse_overwriting(out, [*read, *(one for one in frames if isinstance(one, (str, Path)))])

    def _read(self, frame: Any) -> tuple[Panel, bool]:
        if isinstance(frame, (str, Path)):
            return read_panel(frame, roles=self.roles), False
        table, polars = to_pandas(frame)
        panel = panel_of(table, 0, source="the frame", roles=self.roles)
        give_back()
        return panel, polars

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
        from longseq.timeseries.data.panel_data import PanelData
        from longseq.timeseries.zero_shot_task import ZeroShot

        h = self.horizon or min(64, max(panel.season(), 1) * 2, max(1, len(panel) // 6))
        if self.model not in _NATIVE and panel.covariates.future:
            rows = np.full(len(panel.ids), len(panel))
            effects, _ = covariate_effects(panel, rows, 0, self.season or panel.season())
            panel = replace(panel, values=panel.values - effects, covariates=Covariates())
        longest = max(1, len(panel) - 2 * h)
        context = self.context or min(336, max(1, longest // 2))
        cls = ZeroShot if self.model == TUNED else getattr(tasks, _TRAINED[self.model])
        own = dict(self.arguments)
        if self.model == TUNED:
            h = min(h, BLOCK)
            own.setdefault("season", self.season)
        own |= tasks.sizes_of(cls, panel)
        if "label" in keywords(cls):
            own.setdefault("label", max(1, context // 2))
        if "period" in keywords(cls):
            own.setdefault("period", min(self.season or panel.season(), max(1, context - 1)))
        if self.model == "mixer_forecaster":
            own.setdefault("patch", min(16, context))
            own.setdefault("stride", max(1, own["patch"] // 2))
            own.setdefault("normalise", "last")
            names = panel.covariates.names.items()
            own["covariates"] = sorted(f"{kind}:{name}" for kind, many in names for name in many)
        import torch

        # The shortest series must be forecast too: its context is padded, in training as here.
        spans = panel.ends - panel.starts
        shortest = int(spans[spans > 0].min()) if (spans > 0).any() else 1
        least = min(max(1, context // 4), shortest) if cls.channel_independent else None
        data = PanelData.of(
            panel, context=context, horizon=h, batch_size=64, seed=self.seed, min_context=least
        )
        # Initial weights and dropout follow from the seed, and the caller's stream is left alone.
        with torch.random.fork_rng(), tempfile.TemporaryDirectory() as folder:
            torch.manual_seed(self.seed)
            task = cls(context=context, horizon=h, **own)
            # Nothing of the run is kept: no files, and no commands that would read them.
            silent: dict[str, Any] = {"logger": False, "enable_checkpointing": False}
            fit(task, data, folder, max_steps=self.max_steps, **silent)
        self._task = task.cpu().eval()

    def _frame(self, panel: Panel, horizon: int, cutoff: int | None) -> pd.DataFrame:
        """Returns forecasts from one cutoff, or from the end of every series."""
        if not self.conformal:
            return self._covariate_frame(panel, horizon, cutoff)
        return conformal_frame(
            self._covariate_frame, panel, horizon, cutoff, self.levels, self.conformal, self.name
        )

    def _covariate_frame(self, panel: Panel, horizon: int, cutoff: int | None) -> pd.DataFrame:
        if self.model in _NATIVE or not panel.covariates.future:
            return self._plain_frame(panel, horizon, cutoff)
        lag = self.season or panel.season()
        return regression_frame(self._plain_frame, panel, horizon, cutoff, lag)

    def _plain_frame(self, panel: Panel, horizon: int, cutoff: int | None) -> pd.DataFrame:
        at = None if cutoff is None else [cutoff]
        if self.model == ZERO_SHOT:
            if self._task is None:
                self._task = Quantiles()
            given = (panel, horizon, at, self.levels, 64, self.season, self._task)
            return zero_shot_frame(*given, calibrate=None if self.conformal is None else False)
        if self.model in _TRAINED:
            return network_frame(self, panel, horizon, cutoff)
        return baseline_frame(
            self.model, panel, horizon, cutoff, self.season, self.levels, self.context
        )
