"""Fixtures of the genomics tests: a cache folder of their own and small genomes."""

import numpy as np
import pytest
import torch

from longseq.genomics.data.fasta import Genome
from longseq.genomics.data.samples import SAMPLES


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
