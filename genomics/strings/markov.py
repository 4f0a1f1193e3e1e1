"""Order-k models of strings, the plain baseline of a language model: counts, interpolated."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from longseq.genomics.strings.alphabets import BEGIN, whole


class StringMarkov:
    """Interpolated counts of the symbol after the last k, by Witten and Bell (1991,
    https://doi.org/10.1109/18.87000, method C).

    p_k(s | c) = (n(c, s) + t(c) p_{k-1}(s | c')) / (n(c) + t(c)), where c' lacks the first symbol
    of c, n counts, t(c) is the number of distinct symbols seen after c, and p_{-1} = 1 / symbols.
    Where c was never seen, p_k = p_{k-1}. A string's end is a symbol, its beginning a context.

    Args:
        strings: token ids of ``Alphabet.encode``, uint8 (n,) each.
        order: k.
        size: ids of the alphabet, special ones included.
        symbols: that can follow: the alphabet's and the end.
    """

    def __init__(self, strings: Sequence[np.ndarray], order: int, size: int, symbols: int) -> None:
        self.order, self.size, self.symbols = order, size, symbols
        self._pairs: list[tuple[np.ndarray, np.ndarray]] = []
        self._contexts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        after, codes = self._codes(strings)
        for code in codes:
            pairs, counts = np.unique(code * size + after, return_counts=True)
            contexts, first = np.unique(pairs // size, return_index=True)
            distinct = np.diff(np.append(first, len(pairs)))
            self._pairs.append((pairs, counts))
            self._contexts.append((contexts, np.add.reduceat(counts, first), distinct))

    def _codes(self, strings: Sequence[np.ndarray]) -> tuple[np.ndarray, list[np.ndarray]]:
        """Returns every symbol to predict (n,), and for each order the number of what is before it
        (n,)."""
        starts = [np.full(max(self.order, 1), BEGIN, np.int64)]
        rows = [np.concatenate([*starts, whole(one)[1:]]) for one in strings]
        after, codes = [], [list[np.ndarray]() for _ in range(self.order + 1)]
        skip = max(self.order, 1)
        for row in rows:
            after.append(row[skip:])
            code = np.zeros(len(row) - skip, np.int64)
            codes[0].append(code)
            for k in range(1, self.order + 1):
                code = code + row[skip - k : len(row) - k] * self.size ** (k - 1)
                codes[k].append(code)
        return np.concatenate(after), [np.concatenate(one) for one in codes]

    def bits(self, strings: Sequence[np.ndarray]) -> np.ndarray:
        """Returns the mean cost of a symbol in bits for orders 0 … k, (k + 1,).

        Args:
            strings: as those of the constructor.
        """
        after, codes = self._codes(strings)
        p = np.full(len(after), 1.0 / self.symbols)
        found = []
        for code, (pairs, counts), (contexts, totals, distinct) in zip(
            codes, self._pairs, self._contexts
        ):
            seen, at = _find(contexts, code)
            n = np.where(seen, totals[at], 0)
            t = np.where(seen, distinct[at], 1)
            known, pair = _find(pairs, code * self.size + after)
            hits = np.where(known, counts[pair], 0)
            p = (hits + t * p) / (n + t)
            found.append(float(-np.log2(p).mean()))
        return np.array(found)


def _find(table: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns which values are in a sorted table, and where."""
    at = np.minimum(np.searchsorted(table, values), len(table) - 1)
    return table[at] == values, at
