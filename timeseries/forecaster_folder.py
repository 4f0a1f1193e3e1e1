"""A forecaster as a folder: what it was made with, its series, its weights."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from longseq.core.errors import ConfigError, DataError
from longseq.core.files import atomic_path, refuse_overwriting, require_file
from longseq.timeseries.data.covariates import Covariates
from longseq.timeseries.data.frames import Roles, panel_of, read_frame
from longseq.timeseries.data.panel import Panel

if TYPE_CHECKING:
    from longseq.timeseries.forecaster import Forecaster

_KINDS = ("future", "past", "static")


def save(forecaster: Forecaster, folder: Path, panel: Panel) -> None:
    """Writes a forecaster and its series; see ``Forecaster.save``."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file, a forecaster is saved to a folder")
    refuse_overwriting(folder / "series.parquet", [panel.source])
    folder.mkdir(parents=True, exist_ok=True)
    # Names of series may be those of roles: columns are numbered. Rows that only covariates reach
    # are written too, as the step was told with them.
    rows = max([len(panel), *map(len, panel.covariates.future.values())])
    longer = panel.extended(rows - len(panel)) if rows > len(panel) else panel
    wide = pd.DataFrame(longer.values, columns=[str(i) for i in range(len(panel.ids))])
    wide.insert(0, "ds", longer.ds)
    with atomic_path(folder / "series.parquet") as temporary:
        wide.to_parquet(temporary, index=False)
    known = {
        f"{kind}/{name}": value
        for kind in _KINDS
        for name, value in getattr(panel.covariates, kind).items()
    }
    if known:
        with atomic_path(folder / "covariates.npz") as temporary, temporary.open("wb") as stream:
            np.savez(stream, **known)
    if forecaster.trained:
        from longseq.timeseries.published import write_task

        write_task(forecaster._task, folder / "model.ckpt")
    content = {
        **{name: getattr(forecaster, name) for name in ("model", "horizon", "context", "season")},
        "levels": list(forecaster.levels),
        **{name: getattr(forecaster, name) for name in ("max_steps", "seed", "conformal")},
        **{name: value for name, value in vars(forecaster.roles).items() if name != "missing"},
    }
    saved = {
        "forecaster": content,
        "arguments": forecaster.arguments,
        "polars": forecaster._polars,
        "source": panel.source,
        "ids": list(panel.ids),
        "rows": len(panel),
    }
    with atomic_path(folder / "forecaster.json") as temporary:
        temporary.write_text(json.dumps(saved, indent=1), encoding="utf-8")


def load(cls: type[Forecaster], folder: Path) -> Forecaster:
    """Returns a forecaster that ``save`` wrote; see ``Forecaster.load``."""
    file = folder / "forecaster.json"
    if not file.is_file():
        raise DataError("holds no forecaster (no forecaster.json)", path=folder)
    try:
        saved = json.loads(file.read_text(encoding="utf-8"))
        made = cls(**saved["forecaster"], **saved["arguments"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"is not a saved forecaster: {error}", path=file) from error
    series = folder / "series.parquet"
    table, _ = read_frame(require_file(series, "saved series"))
    ids = saved.get("ids", list(table.columns[1:]))  # earlier versions named the columns
    table.columns = pd.Index(["ds", *map(str, range(len(ids)))])
    dated = pd.api.types.is_datetime64_any_dtype(table["ds"])
    roles = Roles(time="ds", date_order=None if dated else "number")
    panel = panel_of(table, 0, source=series, roles=roles).before(saved.get("rows", len(table)))
    kinds: dict[str, Any] = {kind: {} for kind in _KINDS}
    if (folder / "covariates.npz").is_file():
        with np.load(folder / "covariates.npz", allow_pickle=False) as stored:
            for key in stored.files:
                kind, _, name = key.partition("/")
                kinds[kind][name] = stored[key]
    covariates = Covariates(**kinds, holidays=made.roles.holidays)
    known = {"source": saved["source"], "notes": (), "covariates": covariates}
    made._panel = replace(panel, ids=tuple(map(str, ids)), **known)
    made._polars = bool(saved["polars"])
    if made.trained:
        from longseq.core.training.loading import load_task

        made._task = load_task(folder / "model.ckpt", "timeseries")
    return made
