"""The DNA model is one of core's language models: it generates, and is written and read as one."""

from __future__ import annotations

from pathlib import Path

import torch

from longseq.core import LanguageModel
from longseq.genomics.models.language_model import DNALanguageModel


def test_the_dna_model_is_a_language_model(tmp_path: Path) -> None:
    torch.manual_seed(0)
    dna = DNALanguageModel(16, 2, "hyena", {"l_max": 40, "filter_order": 8}).eval()
    found = dna.generate([[7, 8, 9, 10], [7]], 6)
    assert [len(one.tokens) for one in found] == [6, 6]
    dna.save_pretrained(tmp_path)
    copy = LanguageModel.from_pretrained(tmp_path)
    assert [one.tokens for one in copy.generate([[7, 8, 9, 10], [7]], 6)] == [
        one.tokens for one in found
    ]
