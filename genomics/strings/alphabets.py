"""Alphabets of proteins and molecules: text as token ids and back, without loss."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from string import ascii_lowercase, ascii_uppercase, digits

import numpy as np

from longseq.core.errors import ConfigError, DataError, did_you_mean

PAD, BEGIN, END, PREFIX, SUFFIX, MIDDLE = range(6)
SPECIALS = ("[PAD]", "[BEGIN]", "[END]", "[PREFIX]", "[SUFFIX]", "[MIDDLE]")


@dataclass(frozen=True)
class Alphabet:
    """Symbols, of one or several characters each; their ids follow those of ``SPECIALS``.

    Attributes:
        name: by which it is chosen.
        symbols: in the order of their ids.
        what: what a string of them is, for messages.
    """

    name: str
    symbols: tuple[str, ...]
    what: str

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {symbol: i for i, symbol in enumerate(self.symbols, len(SPECIALS))}

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        longest = sorted(self.symbols, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest)))

    @property
    def size(self) -> int:
        """Ids, those of ``SPECIALS`` included."""
        return len(SPECIALS) + len(self.symbols)

    def clean(self, text: str) -> str:
        """Returns text as it is encoded: proteins in capitals, without spaces and a last "*"."""
        if self.name != "protein":
            return text.strip()
        return "".join(text.split()).upper().removesuffix("*")

    def encode(
        self, text: str, *, path: str | Path | None = None, record: str | None = None
    ) -> np.ndarray:
        """Returns token ids, uint8 (n,).

        Args:
            text: of the alphabet's symbols.
            path: the file it comes from, for the error.
            record: the record it comes from, for the error.

        Raises:
            DataError: for a character that is no symbol; names it and its place from 1.
        """
        text = self.clean(text)
        found, at = [], 0
        while at < len(text):
            match = self._pattern.match(text, at)
            if match is None:
                raise DataError(
                    f"{text[at]!r} at position {at + 1:,} is no symbol of a {self.what}",
                    path=path,
                    record=record,
                    hint=self._hint(text[at]),
                )
            found.append(self._ids[match.group()])
            at = match.end()
        return np.array(found, np.uint8)

    def _hint(self, character: str) -> str | None:
        if self.name == "protein" and character == "-":
            return "remove the gaps of the alignment"
        if self.name == "protein" and character == "*":
            return "a stop within: cut the protein there"
        return None

    def decode(self, ids: np.ndarray) -> str:
        """Returns the text of token ids; special ones are left out.

        Args:
            ids: (n,).
        """
        first = len(SPECIALS)
        return "".join(self.symbols[int(i) - first] for i in ids if int(i) >= first)


_AMINO_ACIDS = "ACDEFGHIKLMNPQRSTVWY" + "XBZJUO"
# OpenSMILES: two letters only where they are one atom outside brackets; inside, an element's
# letters follow each other, so that every text can be written.
_SMILES = ("Cl", "Br", *ascii_uppercase, *ascii_lowercase, *digits)
ALPHABETS = {
    one.name: one
    for one in (
        Alphabet("protein", tuple(_AMINO_ACIDS), "protein"),
        Alphabet("smiles", (*_SMILES, *"[]()+-=#$:/\\.%@*"), "SMILES string"),
    )
}


def alphabet_of(name: str) -> Alphabet:
    """Returns an alphabet.

    Args:
        name: "protein" or "smiles".

    Raises:
        ConfigError: for another name.
    """
    if name not in ALPHABETS:
        raise ConfigError(f"alphabet {name!r} is unknown; {did_you_mean(name, ALPHABETS)}")
    return ALPHABETS[name]


def whole(ids: np.ndarray) -> np.ndarray:
    """Returns a string between its marks: [BEGIN] ids [END], uint8 (n + 2,).

    Args:
        ids: token ids (n,).
    """
    return np.concatenate([[BEGIN], ids, [END]]).astype(np.uint8)


def infilled(ids: np.ndarray, start: int, stop: int) -> np.ndarray:
    """Returns a string with a part of it moved to the end, so that a causal model learns to fill
    it in (Bavarian et al. 2022, https://arxiv.org/abs/2207.14255, prefix-suffix-middle):
    [PREFIX] before [SUFFIX] after [MIDDLE] part [END], uint8 (n + 4,).

    Args:
        ids: token ids (n,).
        start: first of the part.
        stop: after its last.
    """
    parts = [PREFIX], ids[:start], [SUFFIX], ids[stop:], [MIDDLE], ids[start:stop], [END]
    return np.concatenate(parts).astype(np.uint8)
