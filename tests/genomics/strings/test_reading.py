"""Tests of files of strings: FASTA, .smi and tables as people have them."""

import gzip
from pathlib import Path

import pytest

from longseq.core.errors import DataError
from longseq.genomics.strings.alphabets import ALPHABETS
from longseq.genomics.strings.reading import read_strings

PROTEIN, SMILES = ALPHABETS["protein"], ALPHABETS["smiles"]


def _texts(path: Path, alphabet=PROTEIN, **how: str) -> dict[str, str]:
    names, rows = read_strings(path, alphabet, **how)
    return dict(zip(names, map(alphabet.decode, rows)))


@pytest.mark.parametrize("pack", [False, True])
def test_fasta(tmp_path: Path, pack: bool) -> None:
    content = b"\xef\xbb\xbf>sp|P1 a protein\r\nMKV\r\n\r\nLLA*\r\n>second\r\nmm\r\n"
    path = tmp_path / "some.faa"
    path.write_bytes(gzip.compress(content, mtime=0) if pack else content)
    assert _texts(path) == {"sp|P1": "MKVLLA", "second": "MM"}


def test_lines_of_molecules(tmp_path: Path) -> None:
    path = tmp_path / "some.smi"
    path.write_text("SMILES name\nCCO ethanol\nc1ccccc1\tbenzene ring\n\nCl\n")
    assert _texts(path, SMILES) == {"ethanol": "CCO", "benzene ring": "c1ccccc1", "line 5": "Cl"}


def test_tables(tmp_path: Path) -> None:
    path = tmp_path / "some.csv"
    path.write_text("ID,Smiles,logp\na,CCO,1\nb,C,2\n")
    assert _texts(path, SMILES) == {"a": "CCO", "b": "C"}
    path.write_text("drug,activity\nCCO,1\n")
    assert _texts(path, SMILES, column="drug") == {"line 2": "CCO"}
    with pytest.raises(DataError, match=r"no column named smiles.*drug"):
        read_strings(path, SMILES)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.faa", "", "is empty"),
        ("a.faa", "\n", "has no protein"),
        ("a.faa", ">one\n\n>two\nMK\n", "one: is empty"),
        ("a.faa", ">one\nMK1\n", "'1' at position 3"),
        ("a.csv", "sequence\n", "has no protein"),
        ("a.csv", "name,sequence\nx,\n", "x: is empty"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, name: str, content: str, message: str) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        read_strings(path, PROTEIN)


def test_what_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "a.faa"
    path.write_bytes(b">x\n\xff\xfe\n")
    with pytest.raises(DataError, match="UTF-8"):
        read_strings(path, PROTEIN)
    path.write_text(">x\nMK\n")
    with pytest.raises(DataError, match="has no columns"):
        read_strings(path, PROTEIN, column="seq")
