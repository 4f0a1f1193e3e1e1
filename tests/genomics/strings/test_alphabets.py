"""Tests of alphabets: text comes back from its ids, and a foreign character is named."""

from itertools import pairwise

import numpy as np
import pytest

from longseq.core.errors import ConfigError, DataError
from longseq.genomics.strings.alphabets import (
    ALPHABETS,
    END,
    MIDDLE,
    PREFIX,
    SUFFIX,
    alphabet_of,
    infilled,
    whole,
)

MOLECULES = (
    "CN1C=NC2=C1C(=O)N(C(=O)N2C)C",
    "C[C@H](N)C(=O)[O-].[Na+]",
    r"F/C=C\Cl",
    "[13CH4]",
    "C%12CCCCC%12Br",
    "[se]1cccc1",
    "[Sc+3]",
    "C$C",
    "C",
)


@pytest.mark.parametrize("text", MOLECULES)
def test_molecules_come_back_letter_by_letter(text: str) -> None:
    smiles = ALPHABETS["smiles"]
    assert smiles.decode(smiles.encode(text)) == text


def test_two_letter_atoms_are_one_symbol() -> None:
    assert len(ALPHABETS["smiles"].encode("ClCBr")) == 3


def test_proteins_are_cleaned() -> None:
    protein = ALPHABETS["protein"]
    assert protein.decode(protein.encode("mkv LLa\nUO*")) == "MKVLLAUO"
    assert len({*protein.encode("ACDEFGHIKLMNPQRSTVWYXBZJUO").tolist()}) == 26


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("protein", "MK-V", "'-' at position 3"),
        ("protein", "MK*V", "a stop within"),
        ("smiles", "CC{C", "position 3"),
        ("smiles", "C é", "position 2"),
    ],
)
def test_foreign_characters_are_named(name: str, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message.replace("*", r"\*")):
        ALPHABETS[name].encode(text, path="a.fa", record="one")


def test_unknown_alphabets() -> None:
    with pytest.raises(ConfigError, match="protein"):
        alphabet_of("proteins")


def test_a_moved_part_loses_nothing() -> None:
    ids = ALPHABETS["protein"].encode("MKVLA")
    for start in range(6):
        for stop in range(start, 6):
            moved = infilled(ids, start, stop).tolist()
            marks = [moved.index(mark) for mark in (PREFIX, SUFFIX, MIDDLE, END)]
            assert marks == sorted(marks) and marks[0] == 0 and marks[-1] == len(moved) - 1
            prefix, suffix, middle = (moved[a + 1 : b] for a, b in pairwise(marks))
            assert prefix + middle + suffix == ids.tolist()
    assert whole(np.array([], np.uint8)).tolist() == [1, END]
