"""Tests of order-k models of strings against the definition, a symbol at a time."""

import math
from collections import Counter, defaultdict

import numpy as np
import pytest

from longseq.genomics.strings.alphabets import ALPHABETS, BEGIN, END
from longseq.genomics.strings.markov import StringMarkov

PROTEIN = ALPHABETS["protein"]


def _slow(train: list[np.ndarray], test: list[np.ndarray], order: int, symbols: int) -> list[float]:
    counts: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)

    def pairs(row: np.ndarray):
        text = [BEGIN] * max(order, 1) + row.tolist() + [END]
        for at in range(max(order, 1), len(text)):
            yield text[at], [tuple(text[at - k : at]) for k in range(order + 1)]

    for row in train:
        for after, contexts in pairs(row):
            for context in contexts:
                counts[context][after] += 1
    cost, n = [0.0] * (order + 1), 0
    for row in test:
        for after, contexts in pairs(row):
            p, n = 1 / symbols, n + 1
            for k, context in enumerate(contexts):
                seen = counts.get(context)
                if seen:
                    p = (seen[after] + len(seen) * p) / (sum(seen.values()) + len(seen))
                cost[k] -= math.log2(p)
    return [one / n for one in cost]


@pytest.mark.parametrize("order", [0, 1, 3])
def test_equals_the_definition(order: int) -> None:
    rng = np.random.default_rng(0)
    letters = list("ACDE")
    rows = [PROTEIN.encode("".join(rng.choice(letters, rng.integers(1, 9)))) for _ in range(40)] + [
        PROTEIN.encode("W")
    ]
    train, test = rows[:25], rows[25:]
    found = StringMarkov(train, order, PROTEIN.size, 27).bits(test)
    assert found == pytest.approx(_slow(train, test, order, 27), rel=1e-12)
