"""What can be said of a training's files before torch is imported."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from longseq.core.files import EARLY_BYTES, require_file
from longseq.timeseries.data.frames import Roles, read_panel
from longseq.timeseries.data.samples import SAMPLES


def check(arguments: Mapping[str, Any]) -> None:
    """Checks the files of a training, and reads them where that is quick.

    Args:
        arguments: of ``ForecastData``, as they were typed.

    Raises:
        DataError: if one cannot be used.
    """
    path = arguments.get("path")
    if not isinstance(path, str) or (path in SAMPLES.names() and not Path(path).exists()):
        return
    file = require_file(path, "time-series file", SAMPLES.names())
    fields = ("id", "time", "target", "zone", "resample", "missing", "date_order")
    told = {name: arguments.get(name) for name in fields if arguments.get(name) is not None}
    if file.stat().st_size <= EARLY_BYTES and told.get("missing", "ffill") in ("error", "ffill"):
        read_panel(file, roles=Roles(**told))
