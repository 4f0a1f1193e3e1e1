"""Genomics: DNA language models on FASTA, BED and GenBank files, beside a Markov-model baseline."""

from __future__ import annotations

# Packages of the `genomics` extra that the domain needs; the command line checks them before it starts.
REQUIRES = ("pyfaidx", "Bio", "pyarrow")

__all__ = ["REQUIRES"]
