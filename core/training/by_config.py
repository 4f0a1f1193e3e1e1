"""How demos and comparisons ask for a training of a configuration; the shell trains for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from longseq.core.training.run import Run

Values = Mapping[str, Mapping[str, Any]]
"""Arguments of ``fit`` in place of a configuration's: "model", "data" or "trainer" → name →
value."""


class Train(Protocol):
    """Trains a configuration as ``longseq <domain> fit`` does; demos and comparisons are given
    one."""

    def __call__(
        self,
        config: str,
        folder: str | Path,
        name: str = "fit",
        values: Values | None = None,
        seed: int | None = None,
        options: Sequence[str] = (),
    ) -> Run:
        """Trains.

        Args:
            config: name of a packaged configuration, or a YAML file.
            folder: for checkpoints and logs.
            name: of the run, a folder in ``folder``.
            values: in place of the configuration's.
            seed: of weights, dropout and so on; None for the configuration's.
            options: further ones, as on the command line; they win.
        """


def few_steps(max_steps: int | None, parts: int = 2, most: int = 100) -> Values:
    """Returns the values of a shortened training; none for None.

    Args:
        max_steps: of the optimiser.
        parts: validations.
        most: steps between validations.
    """
    if max_steps is None:
        return {}
    interval = max(1, min(most, max_steps // parts))
    return {"trainer": {"max_steps": max_steps, "val_check_interval": interval}}
