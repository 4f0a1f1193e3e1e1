"""Generated sequences: only bases, by seed and number alone, cut where they end; the report."""

import shutil

import numpy as np
import pandas as pd
import pytest
import torch

from longseq.core.errors import ConfigError
from longseq.core.shell.cli import main
from longseq.genomics.baselines import MarkovModel
from longseq.genomics.data.fasta import Genome
from longseq.genomics.data.tokenizer import decode, encode, is_base
from longseq.genomics.generate import _cut, generate
from longseq.genomics.models.language_model import DNALanguageModel
from longseq.genomics.sample_report import divergence, reading_frames, sample_markov, word_shares


@pytest.fixture(scope="module")
def model() -> DNALanguageModel:
    torch.manual_seed(0)
    made = DNALanguageModel(16, 2, "mamba", {"d_state": 4}, kmer=3, tie_embeddings=False).eval()
    with torch.no_grad():  # an untrained head says N as often as A
        made.lm_head.weight.mul_(5)
    return made


def test_only_bases_come_out_and_batches_leave_no_trace(model) -> None:
    prompts = [encode("ACGTTA"), encode("G")]
    found = generate(model, prompts, 5, 80)
    assert [len(ids) for ids in found] == [86, 81, 86, 81, 86]
    assert all(is_base(ids).all() for ids in found)
    assert not np.array_equal(found[0], found[2])
    assert all(np.array_equal(ids[:6], prompts[0]) for ids in found[::2])
    again = generate(model, prompts, 5, 80, batch=2)
    for one, other in zip(found, again):
        assert np.array_equal(one, other)
    assert not np.array_equal(generate(model, prompts, 1, 80, seed=1)[0], found[0])
    assert model.mask is None


def test_without_a_prompt_a_sequence_is_as_long_as_was_said(model) -> None:
    found = generate(model, None, 3, 20)
    assert [len(ids) for ids in found] == [20] * 3
    assert [decode(ids) for ids in generate(model, None, 3, 1)] == [decode(i[:1]) for i in found]


def test_a_carried_state_is_a_plain_pass(model) -> None:
    """Greedy: every base is the likeliest after all before it."""
    ids = generate(model, [encode("ACGT")], 1, 30, temperature=0)[0].astype(np.int64)
    with torch.no_grad():
        logits = model(torch.from_numpy(ids)[None])[0][0, 3:-1, 7:11]
    assert np.array_equal(logits.argmax(-1).numpy() + 7, ids[4:])


def test_sequences_are_cut_where_they_end(model) -> None:
    ids = encode("TAAACGTAAGTTGACACC")
    assert decode(_cut(ids, 3, encode("TTGACA"), False)) == "TAAACGTAAGTTGACA"
    assert decode(_cut(ids, 3, None, True)) == "TAAACGTAA"
    assert decode(_cut(ids, 9, None, True)) == decode(ids)
    assert decode(_cut(ids, 1, encode("TAA"), True)) == "TAA"
    with pytest.raises(ConfigError, match="only A, C, G"):
        generate(model, None, 1, 5, until="ANA")
    with pytest.raises(ConfigError, match="at least 1"):
        generate(model, None, 0, 5)


def test_figures_of_samples() -> None:
    assert divergence(np.array([1.0, 0]), np.array([0, 1.0])) == 1.0
    assert divergence(np.array([0.5, 0.5]), np.array([0.5, 0.5])) == 0.0
    # ATG AAA|TAA|CCC, |TGA|AAT AAC, GAA ATA ACC; GGG TTA TTT CAT, GGT TAT TTC, GTT ATT TCA
    frames = reading_frames(encode("ATGAAATAACCC"))
    assert sorted(frames) == [3, 6, 6, 9, 9, 9, 12]
    genome = encode("".join(np.random.default_rng(0).choice(list("AACGT"), 20_000)))
    for order in (0, 2):
        drawn = sample_markov(MarkovModel.fit([genome], order), order, 50, 400, 0)
        assert len(drawn) == 50 and all(len(ids) == 400 for ids in drawn)
        k = order + 1
        assert divergence(word_shares(drawn, k), word_shares([genome], k)) < 1e-3


def test_an_order_two_sampler_has_the_words_of_its_source() -> None:
    """A source with strong words: an order-0 sampler is far from it, an order-2 one near."""
    genome = encode("ACGTTGCA" * 500)
    words = word_shares([genome], 3)
    far, near = (
        divergence(word_shares(sample_markov(MarkovModel.fit([genome], k), k, 9, 900, 1), 3), words)
        for k in (0, 2)
    )
    assert near < 0.05 < far


def test_the_command(workdir, capsys) -> None:
    argv = ["genomics", "generate", "--out", "s.fa", "--count", "3", "--length", "60"]
    assert main([*argv, "--genome", "tiny", "--report", "r.csv", "--top_p", "0.9"]) == 0
    assert "nearer to the genome" in capsys.readouterr().out
    table = pd.read_csv("r.csv")
    assert list(table["sequences"]) == ["genome", "model", "order-2 Markov"]
    assert table["jsd_3"][0] < table["jsd_3"][2]
    made = Genome("s.fa")
    shutil.copy("s.fa", "prompts.fa")
    assert list(made.records.values()) == [60] * 3
    for wrong, message in (
        (["--prompt", "ACNT"], "position 3"),
        (["--prompt", "A", "--prompts", "prompts.fa"], "not both"),
        (["--report", "r.csv"], "--report needs --genome"),
        (["--top_k", "2", "--temperature", "0"], "need a temperature"),
    ):
        assert main([*argv, *wrong]) == 2
        assert message in capsys.readouterr().err
