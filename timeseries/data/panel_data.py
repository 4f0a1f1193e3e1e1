"""The data module of a panel in memory."""

from __future__ import annotations

from typing import Any

from longseq.core.errors import DataError
from longseq.timeseries.data.module import ForecastData
from longseq.timeseries.data.panel import Panel
from longseq.timeseries.data.protocols import Part, Split


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
