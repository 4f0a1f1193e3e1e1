"""Markov baselines against an obvious dictionary implementation and known entropies."""

import math
from collections import Counter, defaultdict

import numpy as np
import pytest

from longseq.core.errors import ConfigError
from longseq.genomics import baselines
from longseq.genomics.baselines import MarkovModel, evaluate
from longseq.genomics.data.fasta import Genome
from longseq.genomics.data.samples import SAMPLES
from longseq.genomics.data.splits import Interval, split_by_fraction
from longseq.genomics.data.tokenizer import decode, encode
from longseq.genomics.data.windows import EvaluationDataset

SWAP = str.maketrans("ACGT", "TGCA")


def slow_counts(texts, order):
    counts = defaultdict(Counter)
    for text in texts:
        for strand in (text, text[::-1].translate(SWAP)):
            for t in range(order, len(strand)):
                word = strand[t - order : t + 1]
                if "N" not in word:
                    counts[word[:-1]][word[-1]] += 1
    return counts


@pytest.mark.parametrize("order", [0, 1, 3, 12])
def test_against_dictionaries(order, random_bases):
    texts = [random_bases(1500, 1), random_bases(500, 2, "ACGTN")]
    test = random_bases(200, 3, "AACGT") + "N" + random_bases(30, 4) + "NN" + texts[0][100:140]
    model = MarkovModel.fit([encode(text) for text in texts], max_order=order)
    model.alphas = [0.25] * (order + 1)
    got = model.log2_likelihood(encode(test), order)
    assert got.shape == (len(test),)
    tables = [slow_counts(texts, k) for k in range(order + 1)]
    for t, letter in enumerate(test):
        if letter == "N":
            assert np.isnan(got[t])
            continue
        context = test[max(0, t - order) : t].rsplit("N", 1)[-1]
        seen = tables[len(context)].get(context, Counter())
        assert 2 ** got[t] == pytest.approx(
            (seen[letter] + 0.25) / (sum(seen.values()) + 1), rel=1e-6
        )
    assert model.contexts(order) == len(tables[order])


@pytest.mark.parametrize("name", [0, 2, 5, "fixed", "adaptive", "backoff"])
def test_probabilities_sum_to_one(name, random_bases):
    model = MarkovModel.fit([encode(random_bases(2000))], 5)
    model.tune([encode(random_bases(500, 1))])
    context = random_bases(300, 2)
    # The weights must not see the base that they help to predict.
    assert sum(
        2 ** model.log2_likelihood(encode(context + x), name)[-1] for x in "ACGT"
    ) == pytest.approx(1)


def test_adaptive_mixture_against_a_loop(random_bases):
    rng = np.random.default_rng(0)
    probs, prior, gamma = rng.uniform(0.05, 0.9, (4, 700)), np.array([0.1, 0.2, 0.3, 0.4]), 0.97
    v, expected = np.ones(4), []
    for p in probs.T:
        w = prior * v
        expected.append(math.log((w / w.sum()) @ p))
        v = v**gamma * p
        v /= v.sum()
    got, state = baselines._adaptive(probs, gamma, prior)
    assert np.allclose(got, expected)
    half, carried = baselines._adaptive(probs[:, :301], gamma, prior)
    rest, last = baselines._adaptive(probs[:, 301:], gamma, prior, carried)
    assert np.allclose(np.concatenate([half, rest]), got) and np.allclose(last, state)


def test_pieces_do_not_matter(random_bases, monkeypatch):
    train, test = encode(random_bases(3000, 1, "ACGTN")), encode(random_bases(700, 2, "AACGTN"))
    model = MarkovModel.fit([train], 4)
    scores = {name: model.log2_likelihood(test, name) for name in model.models()}
    monkeypatch.setattr(baselines, "_PIECE", 97)
    pieced = MarkovModel.fit([train], 4)
    assert all(np.array_equal(a, b) for a, b in zip(model.counts, pieced.counts))
    for name, values in scores.items():
        np.testing.assert_allclose(pieced.log2_likelihood(test, name), values, rtol=1e-9)


def test_order_zero_reaches_the_entropy():
    p = np.array([0.35, 0.15, 0.15, 0.35])  # the same on both strands
    ids = np.random.default_rng(0).choice([7, 8, 9, 10], 60_000, p=p).astype(np.uint8)
    rows = evaluate([ids[:40_000]], [ids[40_000:45_000]], [ids[45_000:]], max_order=3)
    entropy = -(p * np.log2(p)).sum()
    assert rows[0]["bits_per_base"] == 2.0 and rows[0]["perplexity"] == 4.0
    assert rows[1]["bits_per_base"] == pytest.approx(entropy, abs=0.01)
    assert rows[-1]["bits_per_base"] == pytest.approx(entropy, abs=0.01)


def test_sample_genome():
    genome = Genome(SAMPLES.path("chlamydia_trachomatis"))
    splits = split_by_fraction(genome.records)

    def read(items):
        return [genome.fetch(i.chrom, i.start, i.end) for i in items]

    rows = evaluate(*map(read, splits), max_order=9)
    bits = {row["model"]: row["bits_per_base"] for row in rows}
    best = min(value for name, value in bits.items() if name.startswith("order"))
    assert best < 1.945
    for name in ("fixed mixture", "adaptive mixture", "backoff mixture"):
        assert bits[name] < best + 0.01
    assert {row["n_bases"] for row in rows} == {len(splits.test[0]) - 1}
    assert rows[5]["model"] == "order-4" and rows[5]["contexts"] == 256


def test_scores_the_targets_of_the_evaluation_windows(tiny):
    intervals = [Interval("tiny2", 900, 1200), Interval("tiny1", 50, 90)]
    data = EvaluationDataset(tiny, intervals, 64)
    targets = sum(int((data[i]["targets"] != -100).sum()) for i in range(len(data)))
    ids = [tiny.fetch(i.chrom, i.start, i.end) for i in intervals]
    assert decode(ids[0]).count("N") == 50
    assert (
        evaluate([tiny.fetch("tiny1", 100, 3000)], ids, ids, 2)[0]["n_bases"] == targets == 338 - 50
    )


def test_wrong_arguments(random_bases):
    with pytest.raises(ConfigError, match="max_order=13"):
        MarkovModel.fit([], 13)
    with pytest.raises(ConfigError, match="no A, C, G or T"):
        MarkovModel.fit([encode("NNN")], 2)
    model = MarkovModel.fit([encode("ACGT")], 1)
    with pytest.raises(ConfigError, match=r"no model 2 \(known: 0, 1, fixed"):
        model.log2_likelihood(encode("A"), 2)
    for bad in ([], [encode("A")]):
        with pytest.raises(ConfigError, match="validation sequences"):
            evaluate([encode("ACGT")], bad, [encode("ACGT")], 1)
        with pytest.raises(ConfigError, match="test sequences"):
            evaluate([encode("ACGT")], [encode("ACGT")], bad, 1)
    assert model.log2_likelihood(encode("")).shape == (0,)
