"""Embeddings of words: whole, in chunks, step by step, packed."""

import pytest
import torch

from longseq.core.errors import ConfigError
from longseq.genomics.data.tokenizer import A, N, T
from longseq.genomics.models.kmers import KmerEmbedding
from longseq.genomics.models.language_model import DNALanguageModel


def tokens(*shape: int) -> torch.Tensor:
    return torch.randint(A, N + 1, shape, generator=torch.Generator().manual_seed(0))


def test_words_are_those_of_the_text() -> None:
    kmers = KmerEmbedding(3, 2)
    ids = torch.tensor([[A, A + 1, A + 2, T, N, A, A, A]])
    rows = [64, 64, 0 * 16 + 1 * 4 + 2, 1 * 16 + 2 * 4 + 3, 64, 64, 64, 0]
    assert torch.equal(kmers(ids)[0][0], kmers.table.weight[rows])


@pytest.mark.parametrize("kmer", [1, 6])
def test_chunks_steps_and_packs_give_the_whole(kmer: int) -> None:
    torch.manual_seed(0)
    pattern = [["strided", {"mixer_kwargs": {"d_state": 4}}], "mamba"]
    model = DNALanguageModel(8, 2, pattern, kmer=kmer).double().eval()
    ids = tokens(2, 41)
    with torch.no_grad():
        whole, _ = model(ids)
        for cut in (1, 2, 5, 20, 40):
            first, states = model(ids[:, :cut])
            both = torch.cat([first, model(ids[:, cut:], states)[0]], 1)
            torch.testing.assert_close(both, whole)
        states, steps = model.init_states(2), []
        for one in ids.unbind(1):
            logits, states = model.step(one, states)
            steps.append(logits)
        torch.testing.assert_close(torch.stack(steps, 1), whole)
        # two sequences of one id with a shorter one than a word between
        sizes = [10, 2, 1, 28]
        segments = torch.tensor([0, 1, 0, 1]).repeat_interleave(torch.tensor(sizes)).expand(2, -1)
        packed, _ = model(ids, None, segments)
        alone = torch.cat([model(part)[0] for part in ids.split(sizes, 1)], 1)
        torch.testing.assert_close(packed, alone)
        _, states = model(ids[:, :12], None, segments[:, :12])
        rest, _ = model(ids[:, 12:], states, segments.new_zeros(2, 29))
        torch.testing.assert_close(rest, model(ids[:, 10:])[0][:, 2:])


def test_only_bases_are_predicted() -> None:
    torch.manual_seed(0)
    model = DNALanguageModel(8, 1, only_bases=True)
    logits, _ = model(tokens(2, 5))
    chances = logits.softmax(-1)
    torch.testing.assert_close(chances[..., A : T + 1].sum(-1), torch.ones(2, 5))
    logits.logsumexp(-1).sum().backward()
    assert all(torch.isfinite(one.grad).all() for one in model.parameters() if one.grad is not None)


@pytest.mark.parametrize("k", [0, 9])
def test_word_lengths_are_checked(k: int) -> None:
    with pytest.raises(ConfigError, match="kmer"):
        KmerEmbedding(k, 8)
