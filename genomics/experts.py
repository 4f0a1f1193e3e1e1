"""Experts that learn as they read, and their mixture: counts, copies, a gene model, and networks.

Every base is predicted first and learnt from afterwards, as a compressor does. The experts, all
compiled (``genomics/native``):

- direct counts of order 1 to 12 on both strands, those from 9 on also through a learnt map from
  sorted counts to probabilities;
- copies of up to 24 earlier places, on either strand, that equal at least 22 of the last 32 bases
  or all of the last 16, left after more than 8 differences in 16; what a copy is worth follows from
  how often, how lately and in which codon position it failed;
- a hidden Markov model of genes (between genes, three codon positions on each strand) that begins
  with long open reading frames and goes on by smoothing its own states, with emissions of order up
  to 8 on both strands, and emissions of the recent past on this strand alone.

The mixture is p ∝ Π_i p_i^{w_i}, its weights learnt by gradient descent, in five sets chosen by
small contexts, and a second such mixture of the five: the logistic mixing of PAQ (Mahoney 2005) for
four symbols. GeCo3 (Silva et al. 2020) and XM (Cao et al. 2007) are of the same kind.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from longseq.core.errors import ConfigError
from longseq.genomics.baselines import BASELINES, row
from longseq.genomics.data.tokenizer import A, T, is_base

ORDERS = (1, 2, 3, 4, 6, 8, 9, 10, 11, 12)
_PIECE = 1 << 18  # bases read at once


class Experts:
    """Experts and their mixture over one stream of sequences; memory grows by 5 bytes per base.

    Args:
        orders: of the direct counts, 1 … 12; order 12 takes 134 MB.
        copies: whether earlier places are copied.
        genes: whether there is a gene model.
        networks: how many distributions are given from outside with every base.

    Attributes:
        names: of the mixture's inputs.

    Raises:
        ConfigError: for an order outside 1 … 12, or nothing to mix.
    """

    def __init__(
        self,
        orders: Sequence[int] = ORDERS,
        copies: bool = True,
        genes: bool = True,
        networks: int = 0,
    ) -> None:
        if any(not 1 <= order <= 12 for order in orders):
            raise ConfigError(f"orders {tuple(orders)} must lie in 1 … 12")
        if networks < 0 or not (orders or copies or genes or networks):
            raise ConfigError("the mixture needs at least one expert")
        try:
            from longseq.genomics._experts import Mixture
        except ImportError as error:
            raise ConfigError(f"the compiled experts are missing, reinstall: {error}") from None
        self.networks = networks
        self._mixture = Mixture(list(orders), copies, genes, networks)
        self.names: list[str] = list(self._mixture.names())

    def read(
        self, ids: np.ndarray, networks: np.ndarray | None = None, each: bool = False
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Predicts and learns consecutive bases; the next call goes on behind them.

        Args:
            ids: token ids (n,); what is not A, C, G or T ends every context.
            networks: ln p of A, C, G and T under each network, float32 (n, networks, 4).
            each: whether the inputs' own costs are wanted.

        Returns:
            Bits of each base under the mixture, float64 (n,), NaN where it is none; and under each
            input, float32 (n, inputs), or None.

        Raises:
            ConfigError: if the networks' probabilities are missing or of another shape.
        """
        ids = np.asarray(ids)
        shape = (len(ids), self.networks, 4)
        if (networks is None) != (self.networks == 0) or (
            networks is not None and networks.shape != shape
        ):
            found = None if networks is None else networks.shape
            raise ConfigError(f"the networks' probabilities must have shape {shape}, got {found}")
        known = is_base(ids)
        symbols = np.where(known, ids.astype(np.int64) - A, 4).astype(np.uint8)
        given = None if networks is None else np.ascontiguousarray(networks, np.float32)
        bits = np.empty(len(ids), np.float32)
        costs = np.empty((len(ids), len(self.names)), np.float32) if each else None
        self._mixture.run(symbols, given, bits, costs)
        return np.where(known, bits.astype(np.float64), np.nan), costs

    def skip(self) -> None:
        """Ends every context: another sequence begins."""
        blank = np.full((1, self.networks, 4), np.log(0.25), np.float32)
        self.read(np.zeros(1, np.uint8), blank if self.networks else None)


def pieces(sequences: Sequence[np.ndarray]) -> Iterator[tuple[int, int, np.ndarray]]:
    """Yields sequences in pieces: index of the sequence, position in it, token ids."""
    for index, ids in enumerate(sequences):
        for low in range(0, len(ids), _PIECE):
            yield index, low, ids[low : low + _PIECE]


def mixture_bits(
    experts: Experts,
    before: Sequence[np.ndarray],
    test: Sequence[np.ndarray],
    networks: Sequence[np.ndarray] | None = None,
) -> tuple[float, dict[str, float], int]:
    """Reads what comes before, then the test sequences, and returns the cost of these.

    Args:
        experts: that have read nothing yet.
        before: token ids of each sequence to learn from, in order.
        test: token ids of each test sequence; its first base is not counted, as for all models.
        networks: ln p under the networks for the last of ``before`` and all of ``test``, each
            float32 (n, networks, 4): what networks say of their own training sequences would teach
            the mixture to trust them too much.

    Returns:
        Bits per base of the mixture; of every input; and the number of bases.

    Raises:
        ConfigError: if there is no base to predict.
    """
    total, count = 0.0, 0
    inputs = np.zeros(len(experts.names))
    first = len(before) - (0 if networks is None else len(networks) - len(test))
    for index, low, ids in pieces([*before, *test]):
        if low == 0:
            experts.skip()
        given = None
        if networks is not None:
            given = np.full((len(ids), experts.networks, 4), np.log(0.25), np.float32)
            if index >= first:
                given = networks[index - first][low : low + len(ids)]
        scored = index >= len(before)
        bits, each = experts.read(ids, given, each=scored)
        if not scored or each is None:
            continue
        counted = ~np.isnan(bits)
        counted[0] &= low > 0
        total += float(bits[counted].sum())
        inputs += each[counted].sum(axis=0, dtype=np.float64)
        count += int(counted.sum())
    if not count:
        raise ConfigError("the test sequences have no base to predict")
    return total / count, dict(zip(experts.names, (inputs / count).tolist())), count


def network_logs(log_probs: Tensor) -> np.ndarray:
    """Returns a model's ln p over its tokens (n, V) as ``Experts`` takes them: float32 (n, 1, 4).

    They are those of A, C, G and T alone; a base that nothing precedes is as likely as any other.
    """
    four = torch.log_softmax(log_probs[:, A : T + 1].float(), -1)
    return torch.nan_to_num(four, nan=float(np.log(0.25))).cpu().numpy()[:, None]


@BASELINES.register("experts")
def evaluate(
    train: Sequence[np.ndarray], valid: Sequence[np.ndarray], test: Sequence[np.ndarray]
) -> list[dict[str, Any]]:
    """Scores the experts alone and together; they learn from train, valid, and the test as it goes.

    Args:
        train: token ids of each interval, each of shape (n,).
        valid: the same.
        test: the same.

    Returns:
        Rows as of ``baselines.evaluate``.
    """
    before = [*train, *valid]
    rows = []
    for name, parts in (
        ("counts", {"copies": False, "genes": False}),
        ("counts + copies", {"genes": False}),
        ("gene HMM", {"orders": (), "copies": False}),
        ("experts", {}),
    ):
        bits, inputs, count = mixture_bits(Experts(**parts), before, test)
        rows.append(row(name, bits, 0, count))
        if name == "experts":
            rows.append(row("copies", inputs["copies"], 0, count))
    return rows
