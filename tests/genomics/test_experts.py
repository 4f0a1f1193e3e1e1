"""The experts: predict then learn, in pieces or whole; copies on both strands; genes without
annotation."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from longseq.core.errors import ConfigError
from longseq.genomics.baselines import BASELINES
from longseq.genomics.data.fasta import Genome
from longseq.genomics.data.samples import SAMPLES
from longseq.genomics.data.tokenizer import A, N, T, reverse_complement
from longseq.genomics.experts import Experts, mixture_bits


def random_bases(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(A, T + 1, n).astype(np.uint8)


def bits(ids: np.ndarray, **options: object) -> np.ndarray:
    return Experts(**options).read(ids)[0]


@pytest.fixture(scope="module")
def bacterium() -> np.ndarray:
    genome = Genome(SAMPLES.path("chlamydia_trachomatis"))
    return genome.fetch(next(iter(genome.records)), 0, 200_000)


def test_random_bases_cost_two_bits() -> None:
    """Less would be a base that was seen before it was predicted."""
    cost = bits(random_bases(100_000))
    # The mean of so many independent costs: its standard error is below 0.002 bits.
    assert 1.995 < cost[20_000:].mean() < 2.02


def test_pieces_give_what_the_whole_gives(bacterium: np.ndarray) -> None:
    ids = bacterium[:30_000].copy()
    ids[7000:7100] = N
    whole = bits(ids)
    experts = Experts()
    cuts = [0, 1, 2, 6999, 7050, 16_384, 20_001, len(ids)]
    parts = [experts.read(ids[low:high])[0] for low, high in pairwise(cuts)]
    assert np.array_equal(np.concatenate(parts), whole, equal_nan=True)
    assert np.array_equal(np.isnan(whole), ids == N)


def test_nothing_depends_on_later_bases(bacterium: np.ndarray) -> None:
    ids = bacterium[:25_000]
    other = ids.copy()
    other[20_000:] = random_bases(5000)
    assert np.array_equal(bits(ids)[:20_000], bits(other)[:20_000])


def test_the_four_bases_share_one_probability(bacterium: np.ndarray) -> None:
    ids = bacterium[:20_001].copy()
    total = 0.0
    for base in range(A, T + 1):
        ids[-1] = base
        total += 2.0 ** -bits(ids)[-1]
    assert total == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("inverted", [False, True])
def test_copies_follow_either_strand_and_forgive(inverted: bool) -> None:
    first = random_bases(20_000)
    rng = np.random.default_rng(1)
    second = np.where(rng.random(20_000) < 0.05, random_bases(20_000, 2), first).astype(np.uint8)
    second = np.delete(second, 10_000)  # and a deletion
    ids = np.concatenate([first, reverse_complement(second) if inverted else second])
    cost = bits(ids)[20_100:].mean()
    # 3.75% of the bases differ: entropy 0.23 bits for where, 0.06 for which.
    assert cost < 0.4
    assert bits(ids, copies=False)[20_100:].mean() > cost + 0.2


def test_genes_are_learnt_without_annotation(bacterium: np.ndarray) -> None:
    half = len(bacterium) // 2
    parts = {"copies": False, "orders": (2, 5)}
    with_genes, inputs, count = mixture_bits(
        Experts(**parts), [bacterium[:half]], [bacterium[half:]]
    )
    without = mixture_bits(Experts(**parts, genes=False), [bacterium[:half]], [bacterium[half:]])[0]
    assert count == len(bacterium) - half - 1
    assert with_genes < without - 0.03
    assert inputs["genes order-5"] < without - 0.02


def test_a_network_that_knows_is_believed() -> None:
    ids = random_bases(4000)
    logs = np.full((len(ids), 1, 4), np.log(0.02), np.float32)
    logs[np.arange(len(ids)), 0, ids - A] = np.log(0.94)
    experts = Experts(orders=(2,), copies=False, genes=False, networks=1)
    cost, each = experts.read(ids, logs, each=True)
    assert cost[2000:].mean() < 0.12
    assert each is not None
    assert each[:, experts.names.index("network 1")] == pytest.approx(-np.log2(0.94), abs=1e-4)


def test_the_baseline_has_a_row_for_each_expert(bacterium: np.ndarray) -> None:
    train, valid, test = bacterium[:30_000], bacterium[30_000:32_000], bacterium[32_000:36_000]
    rows = BASELINES["experts"]([train], [valid], [test])
    names = [row["model"] for row in rows]
    assert names == ["counts", "counts + copies", "gene HMM", "experts", "copies"]
    assert {row["n_bases"] for row in rows} == {3999}
    by_name = {row["model"]: row["bits_per_base"] for row in rows}
    assert by_name["experts"] < by_name["counts"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"orders": (13,)}, "1 … 12"),
        ({"orders": (), "copies": False, "genes": False}, "at least one expert"),
    ],
)
def test_options_are_checked(options: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Experts(**options)


def test_networks_must_fit_the_bases() -> None:
    with pytest.raises(ConfigError, match=r"shape \(3, 1, 4\)"):
        Experts(networks=1).read(random_bases(3))
    with pytest.raises(ConfigError, match="no base to predict"):
        mixture_bits(Experts(), [], [random_bases(1)])
