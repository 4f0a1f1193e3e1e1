"""Split conformal intervals: half-widths from the errors at earlier cutoffs of the same series."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real

import numpy as np

from longseq.core.errors import ConfigError


def check_levels(levels: Sequence[int]) -> None:
    """Checks percentages of intervals.

    Raises:
        ConfigError: for one outside 1 to 99.
    """
    for level in levels:
        if not isinstance(level, Real) or isinstance(level, bool) or not 1 <= level < 100:
            raise ConfigError(f"a level is a percentage between 1 and 99, got {level!r}")


def needed(levels: Sequence[int]) -> int:
    """Returns how many errors the widest interval needs."""
    return math.ceil(100 / (100 - max(levels)) - 1e-9) - 1


def radii(errors: np.ndarray, levels: Sequence[int]) -> np.ndarray:
    """Returns half-widths (levels, …): the ⌈(n + 1) · level⌉-th smallest of n absolute errors.

    Args:
        errors: absolute errors (n, …), NaN where the target was not observed; a column with fewer
            than the level needs has an infinite half-width.
        levels: percentages.
    """
    ordered = np.sort(errors, axis=0)  # NaN last
    count = (~np.isnan(errors)).sum(0)
    found = []
    for level in levels:
        rank = np.ceil((count + 1) * level / 100 - 1e-9).astype(int)
        at = np.clip(rank - 1, 0, max(len(ordered) - 1, 0))
        value = np.take_along_axis(ordered, at[None], axis=0)[0] if len(ordered) else np.nan
        found.append(np.where((rank <= count) & (rank > 0), value, np.inf))
    return np.stack(found)
