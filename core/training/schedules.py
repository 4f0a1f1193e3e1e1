"""Learning-rate schedules: factors on the peak rate, all with a linear warm-up, chosen by name."""

from __future__ import annotations

import math
from collections.abc import Callable

from longseq.core.errors import ConfigError, did_you_mean

Schedule = Callable[..., float]


def warmup_factor(step: int, warmup: int) -> float | None:
    """Returns (step + 1) / warmup while the warm-up lasts, then None."""
    return (step + 1) / warmup if step < warmup else None


def cosine_with_warmup(step: int, warmup: int, total: int, min_ratio: float = 0.0) -> float:
    """Returns the factor on the learning rate at an optimiser step.

    Rises linearly from 1/warmup to 1 over the first ``warmup`` steps, falls as half a cosine to
    ``min_ratio`` at step ``total``, and stays there.

    Args:
        step: optimiser step, from 0.
        warmup: number of warm-up steps; 0 for none.
        total: number of steps of the whole run.
        min_ratio: the factor at the end.
    """
    if step < warmup:
        return (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return min_ratio + (1.0 - min_ratio) * 0.5 * (1.0 + math.cos(math.pi * progress))


def linear_with_warmup(step: int, warmup: int, total: int, min_ratio: float = 0.0) -> float:
    """Falls linearly to ``min_ratio`` at step ``total`` after the warm-up; arguments as of the
    cosine."""
    rising = warmup_factor(step, warmup)
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return 1.0 - (1.0 - min_ratio) * progress if rising is None else rising


def constant_with_warmup(step: int, warmup: int, total: int, min_ratio: float = 0.0) -> float:
    """Stays at the peak after the warm-up; ``total`` and ``min_ratio`` do not count."""
    rising = warmup_factor(step, warmup)
    return 1.0 if rising is None else rising


def inverse_sqrt_with_warmup(step: int, warmup: int, total: int, min_ratio: float = 0.0) -> float:
    """Falls as √(warmup / step) after the warm-up, not below ``min_ratio`` (arXiv 1706.03762)."""
    rising = warmup_factor(step, warmup)
    return max(min_ratio, math.sqrt(max(1, warmup) / (step + 1))) if rising is None else rising


def wsd(step: int, warmup: int, total: int, min_ratio: float = 0.0, decay: float = 0.2) -> float:
    """Warm-up, stable, decay: at the peak until the last share of the run, then linearly to
    ``min_ratio``.

    Args:
        step: optimiser step, from 0.
        warmup: number of warm-up steps.
        total: number of steps of the whole run.
        min_ratio: the factor at the end.
        decay: share of the run that decays (arXiv 2404.06395).

    Raises:
        ConfigError: if ``decay`` is outside (0, 1].
    """
    if not 0 < decay <= 1:
        raise ConfigError(f"schedule_kwargs: decay must lie in (0, 1], got {decay}")
    rising = warmup_factor(step, warmup)
    begin = max(warmup, total - max(1, round(decay * total)))
    progress = min(1.0, max(0, step - begin) / max(1, total - begin))
    return 1.0 - (1.0 - min_ratio) * progress if rising is None else rising


SCHEDULES: dict[str, Schedule] = {
    "cosine": cosine_with_warmup,
    "linear": linear_with_warmup,
    "constant": constant_with_warmup,
    "inverse_sqrt": inverse_sqrt_with_warmup,
    "wsd": wsd,
}


def find_schedule(name: str) -> Schedule:
    """Returns a schedule by name.

    Raises:
        ConfigError: if there is none, with the nearest name.
    """
    if name not in SCHEDULES:
        near = did_you_mean(name, SCHEDULES)
        raise ConfigError(
            f"no schedule named {name!r}; {near}, or the class path of a torch scheduler"
        )
    return SCHEDULES[name]
