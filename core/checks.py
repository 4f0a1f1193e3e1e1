"""Checks of hyper-parameters: each returns what is right and refuses the rest by name."""

from __future__ import annotations

import math
from numbers import Integral
from typing import get_args

from longseq.core.errors import ConfigError, did_you_mean


def check_positive(name: str, value: int) -> int:
    """Returns ``value`` if it is an integer of at least 1.

    Raises:
        ConfigError: otherwise.
    """
    # numpy's integers too: lengths and horizons come out of arrays.
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise ConfigError(f"{name} must be an integer of at least 1, got {value!r}")
    return int(value)


def check_number(name: str, value: object) -> float:
    """Returns ``value`` if it is a finite number.

    Raises:
        ConfigError: otherwise.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ConfigError(f"{name} must be a finite number, got {value!r}")
    return value


def check_divisible(name: str, value: int, by_name: str, by: int) -> int:
    """Returns ``value // by``.

    Raises:
        ConfigError: if ``by`` does not divide ``value``.
    """
    if value % check_positive(by_name, by) != 0:
        raise ConfigError(f"{name} ({value}) must be divisible by {by_name} ({by})")
    return value // by


def check_choice(name: str, value: str, choices: object) -> str:
    """Returns ``value`` if it is one of a Literal's choices.

    Args:
        name: of the hyper-parameter.
        value: what was asked for.
        choices: a ``Literal`` type.

    Raises:
        ConfigError: otherwise, with the nearest choice.
    """
    known = get_args(choices)
    if value not in known:
        raise ConfigError(f"{name} {value!r} is unknown; {did_you_mean(str(value), known)}")
    return value


def check_even(name: str, value: int, why: str = " (states come in conjugate pairs)") -> int:
    """Returns ``value // 2``.

    Args:
        name: of the hyper-parameter.
        value: a positive integer.
        why: it must be even, for the message.

    Raises:
        ConfigError: if it is odd, not an integer, or below 2.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 2 or value % 2:
        raise ConfigError(f"{name} must be an even integer of at least 2{why}, got {value!r}")
    return value // 2
