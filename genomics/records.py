"""What each record costs under a model: collected while it is read, printed as a table."""

from __future__ import annotations

import math
import sys

import numpy as np

SHOWN = 20


class RecordCosts:
    """Sums of -ln p and counts of bases by record."""

    def __init__(self) -> None:
        self.sums: dict[str, tuple[float, int]] = {}

    def add(self, name: str, log_likelihood: np.ndarray) -> None:
        """Adds bases of a record.

        Args:
            name: the record.
            log_likelihood: ln p of each, any shape; NaN where there is none.
        """
        known = np.isfinite(log_likelihood)
        nats, bases = self.sums.get(name, (0.0, 0))
        nats -= float(log_likelihood[known].sum(dtype=np.float64))
        self.sums[name] = nats, bases + int(known.sum())

    def bits(self) -> dict[str, float]:
        """Returns bits per base of every record that has a base, in the order of reading."""
        return {
            name: nats / bases / math.log(2) for name, (nats, bases) in self.sums.items() if bases
        }

    def print(self) -> None:
        """Prints bits per base of each record, the longest first, and of all."""
        from rich.console import Console
        from rich.table import Table

        bits = self.bits()
        if not bits:
            return
        table = Table(title="bits per base by record (2 under a uniform model)")
        for heading in ("record", "bases", "bits per base"):
            table.add_column(heading, justify="left" if heading == "record" else "right")
        order = sorted(bits, key=lambda name: -self.sums[name][1])
        for name in order[:SHOWN]:
            table.add_row(name, f"{self.sums[name][1]:,}", f"{bits[name]:.4f}")
        if len(order) > SHOWN:
            table.add_row(f"… and {len(order) - SHOWN:,} shorter ones", "", "")
        nats, bases = (sum(part) for part in zip(*self.sums.values()))
        table.add_row("all", f"{bases:,}", f"{nats / bases / math.log(2):.4f}", style="bold")
        Console(file=sys.stdout, markup=False).print(table)
