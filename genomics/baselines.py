"""The plain baseline of every DNA language model: Markov models of order 0 to 12 and their
mixtures.

All counts come from the training region and stay as they are: nothing of the test region enters
them. Only the weights of the adaptive mixture follow the sequence, and they use no base before it
has been predicted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from longseq.core.errors import ConfigError
from longseq.core.registry import Registry
from longseq.genomics.data.tokenizer import A, is_base, reverse_complement
from longseq.genomics.metrics import perplexity

# Smoothing and strength of back-off, in pseudo-counts, and forgetting: chosen on the validation
# region.
ALPHAS = (16.0, 4.0, 1.0, 1 / 2, 1 / 4, 1 / 16, 1 / 64, 1 / 256)
STRENGTHS = tuple(4.0**i for i in range(-1, 8))
GAMMAS = (0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999)
_PIECE = 1 << 22  # positions that are worked on at a time, to bound the memory
_BLOCK = 128


def _codes(ids: np.ndarray, max_order: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields, for k = 0 … max_order, the (k+1)-mers that end at each position.

    Args:
        ids: token ids, shape (n,).
        max_order: the longest context.

    Yields:
        codes, int64, shape (n,), with the last base in the lowest two bits; and whether all k + 1
        are bases.
    """
    base = is_base(ids)
    symbols = np.where(base, ids.astype(np.int64) - A, 0)
    code, valid = symbols.copy(), base.copy()
    for k in range(max_order + 1):
        if k:
            code[k:] += symbols[:-k] << (2 * k)
            valid[k:] &= base[:-k]
            valid[:k] = False
        yield code, valid


def _pieces(ids: np.ndarray, overlap: int) -> Iterator[tuple[np.ndarray, int]]:
    """Yields pieces of a sequence with the bases before them, and how many those are."""
    for low in range(0, len(ids), _PIECE):
        before = min(low, overlap)
        yield ids[low - before : low + _PIECE], before


class MarkovModel:
    """Markov models p(x_t | previous k bases) with inverted repeats, k = 0 … max_order, and three
    mixtures.

    Both strands are counted, for DNA has no preferred one. Where fewer than k bases precede (the
    begin of a sequence, after an N), the model of order k uses the longest context there is. Models
    by name:

    - an integer k: p_k = (c + α_k) / (C + 4 α_k);
    - ``"fixed"``: Σ_k w_k p_k with weights by expectation-maximisation on the validation region;
    - ``"adaptive"``: ∝ Σ_k w_k v_{t-1,k} p_k with v_{t,k} ∝ v_{t-1,k}^γ p_k(x_t), v_0 uniform and
      the prior w that of the fixed mixture: the weights of GeCo and XM, with a prior;
    - ``"backoff"``: p_k = (c + β_k p_{k-1}) / (C + β_k), each context smoothed by the next shorter
      one.

    Attributes:
        max_order: the longest context.
        counts: for each k, how often each base follows each context, uint32, shape (4^k, 4).
        alphas: α_k, pseudo-counts.
        strengths: β_k, pseudo-counts.
        weights: of the fixed mixture, shape (max_order + 1,).
        gamma: forgetting of the adaptive mixture.
    """

    def __init__(self, counts: list[np.ndarray]) -> None:
        self.counts = counts
        self.max_order = len(counts) - 1
        self.alphas = [1.0] * len(counts)
        self.strengths = [16.0] * len(counts)
        self.weights = np.full(len(counts), 1 / len(counts))
        self.gamma = 0.95

    @classmethod
    def fit(cls, ids_list: Sequence[np.ndarray], max_order: int = 12) -> MarkovModel:
        """Counts the training sequences and their reverse complements.

        Args:
            ids_list: token ids of each training interval, each of shape (n,).
            max_order: the longest context; order 12 takes 268 MB.

        Raises:
            ConfigError: if the order is outside 0 … 12 or the sequences have no base.
        """
        if not 0 <= max_order <= 12:
            raise ConfigError(f"max_order={max_order} must be 0 … 12")
        counts = [np.zeros(4 ** (k + 1), np.uint32) for k in range(max_order + 1)]
        for ids in ids_list:
            for strand in (ids, reverse_complement(ids)):
                for piece, before in _pieces(strand, max_order):
                    for k, (code, valid) in enumerate(_codes(piece, max_order)):
                        np.add.at(counts[k], code[before:][valid[before:]], np.uint32(1))
        if not counts[0].any():
            raise ConfigError("the training sequences have no A, C, G or T")
        return cls([table.reshape(-1, 4) for table in counts])

    def contexts(self, order: int) -> int:
        """Returns how many different contexts of an order the training sequences have."""
        return int(np.count_nonzero(self.counts[order].any(axis=1)))

    def tune(self, ids_list: Sequence[np.ndarray]) -> None:
        """Chooses α, β, the fixed weights and γ on the validation region (its first 4 million
        bases).

        Args:
            ids_list: token ids of each validation interval, each of shape (n,).

        Raises:
            ConfigError: if there is no base to predict.
        """
        scored, budget = [], _PIECE
        for ids in ids_list:
            seen = self._lookup(ids[:budget])
            budget -= min(len(ids), budget)
            # The first base of an interval has nothing before it, and a neural model does not score
            # it.
            keep = seen[2] >= 1
            scored.append((seen[0][:, keep], seen[1][:, keep]))
            if not budget:
                break
        if not any(h.shape[1] for h, _ in scored):
            raise ConfigError("the validation sequences have no base to predict")
        hits = np.concatenate([h for h, _ in scored], axis=1)
        totals = np.concatenate([t for _, t in scored], axis=1)
        for k in range(self.max_order + 1):
            smoothed = {a: np.log((hits[k] + a) / (totals[k] + 4 * a)).sum() for a in ALPHAS}
            self.alphas[k] = max(smoothed, key=smoothed.__getitem__)
        lower = np.full(hits.shape[1], 0.25)
        for k in range(self.max_order + 1):
            blended = {b: np.log((hits[k] + b * lower) / (totals[k] + b)).sum() for b in STRENGTHS}
            self.strengths[k] = max(blended, key=blended.__getitem__)
            lower = (hits[k] + self.strengths[k] * lower) / (totals[k] + self.strengths[k])
        probs = [self._smoothed(h, t) for h, t in scored]
        self.weights = _expectation_maximisation(np.concatenate(probs, axis=1))
        gains = {g: sum(_adaptive(p, g, self.weights)[0].sum() for p in probs) for g in GAMMAS}
        self.gamma = max(gains, key=gains.__getitem__)

    def log2_likelihood(self, ids: np.ndarray, model: int | str = "adaptive") -> np.ndarray:
        """Returns log2 p(x_t | the bases before it).

        Args:
            ids: token ids of a contiguous sequence, shape (n,).
            model: an order, ``"fixed"``, ``"adaptive"`` or ``"backoff"``.

        Returns:
            float64, shape (n,); NaN where x_t is not A, C, G or T.

        Raises:
            ConfigError: if there is no such model.
        """
        if model not in self.models():
            raise ConfigError(f"no model {model!r} (known: {', '.join(map(str, self.models()))})")
        parts = [scores[model] for scores in self._scores(ids, [model])]
        return np.concatenate(parts) if parts else np.zeros(0)

    def models(self) -> list[int | str]:
        """Returns the names of all models."""
        return [*range(self.max_order + 1), "fixed", "adaptive", "backoff"]

    def _scores(
        self, ids: np.ndarray, models: Sequence[int | str]
    ) -> Iterator[dict[int | str, np.ndarray]]:
        """Yields log2 p of each model, piece by piece."""
        state = None
        for piece, before in _pieces(ids, self.max_order):
            hits, totals, position = self._lookup(piece)
            new = position >= before
            hits, totals, position = hits[:, new], totals[:, new], position[new]
            probs = self._smoothed(hits, totals)
            out = {}
            for model in models:
                if model == "fixed":
                    logs = np.log(self.weights @ probs)
                elif model == "adaptive":
                    logs, state = _adaptive(probs, self.gamma, self.weights, state)
                elif model == "backoff":
                    logs = self._backoff(hits, totals)
                else:
                    logs = np.log(probs[model])
                full = np.full(len(piece) - before, np.nan)
                full[position - before] = logs / math.log(2)
                out[model] = full
            yield out

    def _lookup(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns the counts that bear on each base.

        Returns:
            c and C, float32, shape (orders, m): how often x_t, and anything, followed its context
                in
            training; and the m positions in ``ids`` that are bases.
        """
        position = np.flatnonzero(is_base(ids))
        hits = np.empty((self.max_order + 1, len(position)), np.float32)
        totals = np.empty_like(hits)
        for k, (code, valid) in enumerate(_codes(ids, self.max_order)):
            code, valid = code[position], valid[position]
            hits[k] = self.counts[k].reshape(-1)[code]
            totals[k] = self.counts[k][code >> 2].sum(axis=1)
            if k:  # too few bases precede: the next shorter context
                hits[k, ~valid], totals[k, ~valid] = hits[k - 1, ~valid], totals[k - 1, ~valid]
        return hits, totals, position

    def _smoothed(self, hits: np.ndarray, totals: np.ndarray) -> np.ndarray:
        alphas = np.array(self.alphas)[:, None]
        return (hits + alphas) / (totals + 4 * alphas)

    def _backoff(self, hits: np.ndarray, totals: np.ndarray) -> np.ndarray:
        p = np.full(hits.shape[1], 0.25)
        for k, strength in enumerate(self.strengths):
            p = (hits[k] + strength * p) / (totals[k] + strength)
        return np.log(p)


def _expectation_maximisation(probs: np.ndarray, iterations: int = 200) -> np.ndarray:
    """Returns the mixture weights of greatest likelihood, shape (orders,).

    Args:
        probs: probability that each order gave to the base that came, shape (orders, m).
        iterations: at most.
    """
    weights = np.full(len(probs), 1 / len(probs))
    for _ in range(iterations):
        updated = weights * (probs @ (1 / (weights @ probs))) / probs.shape[1]
        if np.abs(updated - weights).max() < 1e-5:
            break
        weights = updated
    return weights / weights.sum()


def _adaptive(
    probs: np.ndarray, gamma: float, prior: np.ndarray, state: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Scores the mixture whose weights follow the sequence: v_{t,k} ∝ v_{t-1,k}^γ p_k(x_t).

    The recurrence of log v is linear, so a block of positions is one product with a triangular
    matrix.

    Args:
        probs: probability that each order gave to the base that came, shape (orders, m).
        gamma: forgetting, in (0, 1).
        prior: weights that multiply v, shape (orders,).
        state: log v before the first base, up to a constant, shape (orders,); uniform if None.

    Returns:
        ln of the mixture's probability, shape (m,), and log v after the last base.
    """
    logs = np.log(probs).T
    log_prior = np.log(np.maximum(prior, 1e-9))
    state = np.zeros(logs.shape[1]) if state is None else state
    power = np.arange(_BLOCK)[:, None] - np.arange(_BLOCK)
    # Row i: the log v with which position i is predicted, from positions before it only.
    past = np.where(power > 0, gamma ** np.maximum(power - 1, 0), 0.0)
    carry = gamma ** np.arange(_BLOCK)[:, None]
    out = np.empty(len(logs))
    for low in range(0, len(logs), _BLOCK):
        block = logs[low : low + _BLOCK]
        n = len(block)
        weights = past[:n, :n] @ block + carry[:n] * state
        state = gamma * weights[-1] + block[-1]
        state = state - state.max()
        weights += log_prior
        weights = np.exp(weights - weights.max(axis=1, keepdims=True))
        mixed = (weights * probs[:, low : low + n].T).sum(axis=1) / weights.sum(axis=1)
        out[low : low + n] = np.log(mixed)
    return out, state


BASELINES: Registry[Callable[..., list[dict[str, Any]]]] = Registry("baseline")


@BASELINES.register("markov")
def evaluate(
    train: Sequence[np.ndarray],
    valid: Sequence[np.ndarray],
    test: Sequence[np.ndarray],
    max_order: int = 12,
) -> list[dict[str, Any]]:
    """Fits all models on ``train``, tunes them on ``valid`` and scores them on ``test``.

    The positions that count are the targets of
    :class:`longseq.genomics.data.windows.EvaluationDataset`: every A, C, G and T but an interval's
    first base.

    Args:
        train: token ids of each interval, each of shape (n,).
        valid: the same.
        test: the same.
        max_order: the longest context.

    Returns:
        Rows with ``model``, ``bits_per_base``, ``perplexity``, ``contexts`` (distinct ones in
        training) and
        ``n_bases``: the uniform model, each order, the three mixtures.

    Raises:
        ConfigError: if a split has no base to count or score.
    """
    model = MarkovModel.fit(train, max_order)
    model.tune(valid)
    sums = dict.fromkeys(model.models(), 0.0)
    n_bases = 0
    for ids in test:
        first = True
        for scores in model._scores(ids, model.models()):
            for name, values in scores.items():
                sums[name] -= float(np.nansum(values[1:] if first else values))
            n_bases += int(np.count_nonzero(~np.isnan(values[1:] if first else values)))
            first = False
    if n_bases == 0:
        raise ConfigError("the test sequences have no base to predict")
    rows: list[dict[str, Any]] = [row("uniform", 2.0, 0, n_bases)]
    contexts = [model.contexts(k) for k in range(max_order + 1)]
    for name, total in sums.items():
        title = f"order-{name}" if isinstance(name, int) else f"{name} mixture"
        seen = contexts[name] if isinstance(name, int) else sum(contexts)
        rows.append(row(title, total / n_bases, seen, n_bases))
    return rows


def row(model: str, bits: float, contexts: int, n_bases: int) -> dict[str, Any]:
    return {
        "model": model,
        "bits_per_base": bits,
        "perplexity": perplexity(bits),
        "contexts": contexts,
        "n_bases": n_bases,
    }
