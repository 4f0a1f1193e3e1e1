"""Checks of hyper-parameters: what they return, and how they name what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import pytest

from longseq.core.checks import check_choice, check_divisible, check_even, check_positive
from longseq.core.errors import ConfigError


def test_what_is_right_is_returned() -> None:
    assert check_positive("n", 3) == 3
    taken = check_positive("n", np.int64(3))
    assert taken == 3 and type(taken) is int
    assert check_divisible("width", 12, "heads", 4) == 3
    assert check_choice("form", "glu", Literal["glu", "none"]) == "glu"
    assert check_even("states", 8) == 4


@pytest.mark.parametrize(
    ("check", "words"),
    [
        (lambda: check_positive("n", 0), "n must be an integer of at least 1, got 0"),
        (lambda: check_positive("n", True), "n must be an integer of at least 1, got True"),
        (lambda: check_positive("n", 2.0), "n must be an integer of at least 1, got 2.0"),  # type: ignore[arg-type]
        (
            lambda: check_divisible("width", 10, "heads", 4),
            r"width \(10\) must be divisible by heads \(4\)",
        ),
        (
            lambda: check_divisible("width", 10, "heads", 0),
            "heads must be an integer of at least 1, got 0",
        ),
        (
            lambda: check_choice("form", "gul", Literal["glu", "none"]),
            "form 'gul' is unknown; did you mean 'glu'?",
        ),
        (lambda: check_even("states", 7), "states must be an even integer of at least 2 .*, got 7"),
    ],
)
def test_what_is_wrong_is_named(check: Callable[[], Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words.replace("?", r"\?")):
        check()
