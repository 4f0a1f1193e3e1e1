"""Genes found without annotation: a made genome whose genes are known, circles, gaps and ends."""

from itertools import pairwise

import numpy as np
import pytest

from longseq.core.errors import ConfigError, DataError
from longseq.genomics.data.annotation import Feature, own_features
from longseq.genomics.data.fasta import Genome
from longseq.genomics.data.samples import SAMPLES
from longseq.genomics.data.tokenizer import encode, reverse_complement
from longseq.genomics.gene_finder import GeneFinder, contigs
from longseq.genomics.gene_model import GAPS, GeneModel, Genes, codon, digits, smoothed, words
from longseq.genomics.gene_scores import agreement, codon_places
from longseq.genomics.open_frames import best_chain, long_frames, open_frames


def _rows(genes):
    return list(zip(genes.start.tolist(), genes.end.tolist(), genes.strand.tolist()))


@pytest.fixture(scope="module")
def made(make_genes):
    text, places = make_genes()
    finder = GeneFinder()
    finder.learn([encode(text)])
    return text, places, finder


def test_genes_of_a_made_genome_are_found_to_the_base(made) -> None:
    text, places, finder = made
    found = set(_rows(finder.find(encode(text))))
    assert len(found & set(places)) >= 0.95 * len(places)
    assert len(found) <= 1.05 * len(places)


def test_the_other_strand_has_the_same_genes(made) -> None:
    text, _, finder = made
    size = len(text)
    found = _rows(finder.find(encode(text)))
    back = _rows(finder.find(reverse_complement(encode(text))))
    assert sorted((size - high, size - low, -strand) for low, high, strand in back) == found


def test_genes_of_a_circle_do_not_depend_on_its_origin(made) -> None:
    text, places, finder = made
    size = len(text)
    whole = set(_rows(finder.find(encode(text), circular=True)))
    cut = (places[60][0] + places[60][1]) // 2  # in the middle of a gene
    found = _rows(finder.find(encode(text[cut:] + text[:cut]), circular=True))
    across = [one for one in found if one[1] > size]
    assert len(across) == 1 and all(0 <= low < size for low, _, _ in found)

    def home(low, high, strand):
        start = (low + cut) % size
        return start, start + high - low, strand

    assert {home(*one) for one in found} == whole


def test_cut_genes_keep_their_frame_and_gaps_end_them(made) -> None:
    text, places, finder = made
    low, high, _ = next(one for one in places if one[2] > 0 and one[1] - one[0] > 500)
    for cut in (100, 101, 102):
        found = finder.find(encode(text[low + cut : high + 50]))
        assert bool(found.open_start[0]) and int(found.end[0]) == high - low - cut
        assert (cut + int(found.phase[0])) % 3 == 0 and int(found.start[0]) == 0
    found = finder.find(encode(text[low - 40 : low + 310]))
    assert bool(found.open_end[0]) and int(found.end[0]) == 350 and int(found.start[0]) == 40
    gapped = text[: low + 200] + "N" * 50 + text[low + 200 :]
    found = [one for one in _rows(finder.find(encode(gapped))) if low <= one[0] < high + 50]
    assert (low, low + 200, 1) in found and not any(
        a < low + 210 and b > low + 240 for a, b, _ in found
    )
    closed = GeneFinder(closed=True)
    closed.model = finder.model
    assert not closed.find(encode(text[low + 100 : low + 400])).open_end.any()


def test_short_and_empty_sequences_have_no_genes(made) -> None:
    finder = made[2]
    for text in ("", "A", "ATG", "ACGTN" * 3, "N" * 100):
        assert len(finder.find(encode(text))) == 0
        assert len(finder.find(encode(text), circular=True)) == 0


def test_nothing_to_learn_from_is_said() -> None:
    with pytest.raises(DataError, match="no open reading frame"):
        GeneFinder().learn([encode("ACGT" * 20)])
    with pytest.raises(DataError, match="no CDS of whole codons"):
        GeneFinder().learn_annotated([(encode("ACGT" * 20), [])])
    with pytest.raises(ConfigError, match="genetic code 1:"):
        GeneFinder(code=1)


def test_few_genes_are_warned_of(made) -> None:
    text, places, _ = made
    with pytest.warns(UserWarning, match="genes only"):
        GeneFinder().learn([encode(text[: places[20][1]])])


def test_code_4_reads_through_tga(made) -> None:
    text, places, _ = made
    opal = text.replace("GCTGAA", "TGAGAA")
    features = [Feature("c", a, b, "+" if s > 0 else "-", "CDS") for a, b, s in places]
    shares = []
    for code in (4, 11):
        finder = GeneFinder(code)
        finder.learn_annotated([(encode(opal), features)])
        shares.append(len(set(_rows(finder.find(encode(opal)))) & set(places)) / len(places))
    assert shares[0] >= 0.95 and shares[1] < 0.8


def test_annotated_genes_teach_the_same(made, make_genes) -> None:
    text, places, _ = made
    features = [Feature("c", a, b, "+" if s > 0 else "-", "CDS") for a, b, s in places]
    finder = GeneFinder()
    assert finder.learn_annotated([(encode(text), features)]) == len(places)
    other, wanted = make_genes(1)
    found = set(_rows(finder.find(encode(other))))
    assert len(found & set(wanted)) >= 0.95 * len(wanted)


def test_the_best_chain_is_that_of_all_subsets() -> None:
    rng = np.random.default_rng(3)
    for _ in range(20):
        n = 8
        low = rng.integers(0, 900, n)
        high = low + 3 * rng.integers(30, 120, n)
        strand, score = rng.choice([-1, 1], n), rng.uniform(1, 20, n)
        none = np.zeros(n, bool)
        frames = Genes(low, high, strand, score, none, none, np.zeros(n, int))
        gaps = rng.uniform(0, 3, len(GAPS))
        best = 0.0
        for bits in range(1, 1 << n):
            rows = [i for i in range(n) if bits >> i & 1]
            rows.sort(key=lambda i: (high[i], low[i]))
            total = float(score[rows].sum())
            for i, j in pairwise(rows):
                shared = high[i] - low[j]
                if shared > (60 if strand[i] == strand[j] else 200):
                    break
                if not (low[i] < low[j] and high[i] < high[j]):
                    break
                each = min(score[i] / (high[i] - low[i]), score[j] / (high[j] - low[j]))
                total -= each * max(shared, 0)
                if strand[i] == strand[j] and -shared in GAPS:
                    total += gaps[-shared - GAPS.start]
            else:
                best = max(best, total)
        chain = best_chain(frames, gaps)
        value = float(chain.score.sum())
        for k in range(1, len(chain)):
            shared = int(chain.end[k - 1] - chain.start[k])
            each = (chain.score / (chain.end - chain.start))[k - 1 : k + 1].min()
            value -= each * max(shared, 0)
            if chain.strand[k] == chain.strand[k - 1] and -shared in GAPS:
                value += gaps[-shared - GAPS.start]
        assert value == pytest.approx(best)


def test_words_and_probabilities_follow_their_definition() -> None:
    assert words(digits(encode("ACNTG")), 2).tolist() == [1, -1, -1, 14, -1]
    assert codon("TGA") == 56 and contigs(digits(encode("N" * 12)))[0][0] == 0
    counts = np.random.default_rng(0).integers(0, 3, 4**6).astype(float)
    p = np.exp(smoothed(counts))
    assert p.reshape(-1, 4).sum(1) == pytest.approx(1)
    assert np.exp(smoothed(np.zeros(4**6))) == pytest.approx(0.25)
    # A context that was never seen has the probabilities of the next shorter one, AACC of CAACC.
    only = np.zeros(4**6)
    only[[codon("AAACCG"), codon("TTTTTA")]] = 1e6
    p = np.exp(smoothed(only))
    assert p[codon("CAACCG")] == pytest.approx(1, abs=1e-3)
    assert p[codon("GGGGGG")] == pytest.approx(0.5, abs=1e-3)


def test_agreement_counts_bases_in_their_frame() -> None:
    size = 300
    one = Feature("c", 30, 90, "+", "CDS", phase=0)
    for other, shared in (
        (Feature("c", 33, 90, "+", "CDS", phase=0), 57),
        (Feature("c", 31, 91, "+", "CDS", phase=0), 0),
        (Feature("c", 31, 90, "+", "CDS", phase=2), 59),
        (Feature("c", 30, 90, "-", "CDS", phase=0), 0),
        (Feature("c", 30, 90, "+", "CDS", "", ((30, 60), (61, 90)), 0), 30),
    ):
        found = agreement([other], [one], size)
        assert found.shared_bases == shared
    found = agreement([one], [Feature("c", 20, 95, "+", "CDS", pseudo=True)], size)
    assert (found.found, found.annotated, found.found_bases) == (0, 0, 0)
    across = Feature("c", 290, 320, "-", "CDS", phase=0)
    places, frame = codon_places(across, size)
    assert places[0] == 19 and places[-1] == 290 and len(set(frame.tolist())) == 1


def test_most_genes_of_chlamydia_are_among_the_frames() -> None:
    genome = Genome(SAMPLES.path("chlamydia_trachomatis"))
    name = next(iter(genome.records))
    ids = genome.fetch(name, 0, 60_000)
    finder = GeneFinder()
    finder.learn([ids])
    truth = [
        one
        for one in own_features(genome.path, genome)
        if one.kind == "CDS" and one.start > 0 and one.end < 60_000
    ]
    genes = finder.find(ids)
    found = {(e if s > 0 else b, s) for b, e, s in _rows(genes)}
    wanted = {
        (one.end if one.strand == "+" else one.start, 1 if one.strand == "+" else -1)
        for one in truth
    }
    assert len(found & wanted) >= 0.85 * len(wanted)
    assert len(long_frames(digits(ids), GeneModel())) > 20
    assert len(open_frames(digits(ids), finder.model)) > len(genes)
