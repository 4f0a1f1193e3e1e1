"""Genomics: DNA language models on FASTA, BED and GenBank files, beside a Markov-model baseline."""

from __future__ import annotations

from typing import TYPE_CHECKING

from longseq.core.exports import lazy

if TYPE_CHECKING:
    from longseq.genomics.data.fasta import Genome
    from longseq.genomics.data.formats import FORMATS
    from longseq.genomics.data.module import GenomeData
    from longseq.genomics.models.language_model import DNALanguageModel
    from longseq.genomics.task import CausalLanguageModel

# Packages of the `genomics` extra that the domain needs; the command line checks them before it
# starts.
REQUIRES = ("pyfaidx", "Bio", "pyarrow")

_EXPORTS = {
    "FORMATS": "longseq.genomics.data.formats",
    "CausalLanguageModel": "longseq.genomics.task",
    "DNALanguageModel": "longseq.genomics.models.language_model",
    "Genome": "longseq.genomics.data.fasta",
    "GenomeData": "longseq.genomics.data.module",
}
__all__ = ["FORMATS", "REQUIRES", "CausalLanguageModel", "DNALanguageModel", "Genome", "GenomeData"]
__getattr__ = lazy(__name__, _EXPORTS)
