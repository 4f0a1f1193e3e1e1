"""Fixtures of the genomics tests: a cache folder of their own and small genomes."""

import numpy as np
import pytest
import torch

from longseq.genomics.data.fasta import Genome
from longseq.genomics.data.samples import SAMPLES

# Codons of a made organism, and what is never in a gene.
_CODONS = ("GCT", "GAA", "AAA", "CTG", "GGT", "ATC", "GTT", "CGT", "ACC", "GAT", "TTC", "CAG")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("LONGSEQ_CACHE_DIR", str(folder))
    return folder


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def tiny():
    return Genome(SAMPLES.path("tiny"))


@pytest.fixture
def write_fasta(tmp_path):
    """Writes records {name: sequence} and returns the path."""

    def write(records, name="g.fa", width=60, newline="\n"):
        text = ""
        for record, sequence in records.items():
            lines = [sequence[i : i + width] for i in range(0, len(sequence), width)]
            text += newline.join([f">{record}", *lines, ""])
        path = tmp_path / name
        path.write_bytes(text.encode())
        return path

    return write


@pytest.fixture
def random_bases():
    def draw(n, seed=0, letters="ACGT"):
        return "".join(np.random.default_rng(seed).choice(list(letters), n))

    return draw


@pytest.fixture(scope="session")
def make_genes():
    def make(seed=0, genes=120):
        """Returns the text of a genome and its genes (start, end, strand)."""
        rng = np.random.default_rng(seed)
        text, places = [], []
        size = 0
        for _ in range(genes):
            between = "".join(rng.choice(list("ACGT"), rng.integers(30, 200)))
            body = "".join(rng.choice(_CODONS, rng.integers(60, 300)))
            gene = "ATG" + body + "TAA"
            strand = 1 if rng.random() < 0.5 else -1
            site = "AGGAGG" + "".join(rng.choice(list("ACGT"), 7))
            piece = site + gene
            low = size + len(between) + len(site)
            if strand < 0:
                piece = piece[::-1].translate(str.maketrans("ACGT", "TGCA"))
                low = size + len(between)
            places.append((low, low + len(gene), strand))
            text += [between, piece]
            size += len(between) + len(piece)
        return "".join(text), places

    return make
