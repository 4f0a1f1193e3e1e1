"""Character tokenizer for DNA with HyenaDNA's token ids, as numpy look-up tables over bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from longseq.core.errors import ConfigError, DataError

CLS, SEP, BOS, MASK, PAD, RESERVED, UNK, A, C, G, T, N = range(12)
TOKENS = (
    "[CLS]",
    "[SEP]",
    "[BOS]",
    "[MASK]",
    "[PAD]",
    "[RESERVED]",
    "[UNK]",
    "A",
    "C",
    "G",
    "T",
    "N",
)
VOCAB_SIZE = 12
PADDED_VOCAB_SIZE = 16
BASES = (A, C, G, T)
IGNORE_INDEX = -100
# IUPAC letters for "one of several bases": the models have one token for all of them.
_AMBIGUITY = "RYSWKMBDHVN"
_INVALID = 255


def _encode_table() -> np.ndarray:
    table = np.full(256, _INVALID, np.uint8)
    letters = {"A": A, "C": C, "G": G, "T": T, "U": T} | dict.fromkeys(_AMBIGUITY, N)
    for letter, token in letters.items():
        table[ord(letter)] = table[ord(letter.lower())] = token
    return table


def _complement_table() -> np.ndarray:
    table = np.arange(256, dtype=np.uint8)
    table[[A, C, G, T]] = [T, G, C, A]
    return table


_ENCODE = _encode_table()
_COMPLEMENT = _complement_table()
_DECODE = np.array([ord(t) if len(t) == 1 else 0 for t in TOKENS], np.uint8)
_IS_BASE = np.isin(np.arange(256), BASES)
# Every byte that may stand in a sequence line; what remains after deleting them is an error.
NUCLEOTIDE_LETTERS = bytes(np.flatnonzero(_ENCODE != _INVALID).astype(np.uint8))


def encode(
    sequence: bytes | str,
    *,
    path: str | Path | None = None,
    record: str | None = None,
    offset: int = 0,
) -> np.ndarray:
    """Returns the token ids of a DNA or RNA sequence.

    Lower case (soft-masked) letters are read as upper case, U as T, and the IUPAC ambiguity letters
    as N.

    Args:
        sequence: n letters.
        path: the file they come from, for the error.
        record: the record they come from, for the error.
        offset: 0-based position of the first letter in the record, for the error.

    Returns:
        uint8 token ids, shape (n,).

    Raises:
        DataError: if a character is not an IUPAC nucleotide letter; names it and its 1-based
            position.
    """
    try:
        raw = sequence.encode("ascii") if isinstance(sequence, str) else bytes(sequence)
    except UnicodeEncodeError as error:
        raise _bad_character(
            str(sequence)[error.start], offset + error.start, path, record
        ) from None
    ids = _ENCODE[np.frombuffer(raw, np.uint8)]
    bad = ids == _INVALID
    if bad.any():
        first = int(bad.argmax())
        raise _bad_character(chr(raw[first]), offset + first, path, record)
    return ids


def _bad_character(
    char: str, position: int, path: str | Path | None, record: str | None
) -> DataError:
    return DataError(
        f"character {char!r} at position {position + 1:,} is not an IUPAC nucleotide letter",
        path=path,
        record=record,
        hint="DNA letters are ACGT, U, N and RYSWKMBDHV in either case",
    )


def soft_mask(sequence: bytes | str) -> np.ndarray:
    """Returns where a sequence is soft-masked (lower case: a repeat), bool, shape (n,).

    Args:
        sequence: n letters.
    """
    raw = sequence.encode("latin-1", "replace") if isinstance(sequence, str) else sequence
    return np.frombuffer(raw, np.uint8) >= ord("a")


def decode(ids: np.ndarray, *, skip_special: bool = True) -> str:
    """Returns the letters of token ids.

    Args:
        ids: token ids of any integer dtype, shape (n,).
        skip_special: leave out [CLS], [PAD] and the like; otherwise they appear by name.

    Raises:
        ConfigError: if an id is outside the vocabulary.
    """
    ids = np.asarray(ids)
    if ids.size and (ids.min() < 0 or ids.max() >= VOCAB_SIZE):
        bad = ids[(ids < 0) | (ids >= VOCAB_SIZE)][0]
        raise ConfigError(f"token id {bad} is outside the vocabulary of {VOCAB_SIZE}")
    letters = ids >= A
    if skip_special or letters.all():
        return _DECODE[ids[letters]].tobytes().decode("ascii")
    return "".join(TOKENS[i] for i in ids)


def reverse_complement(ids: np.ndarray) -> np.ndarray:
    """Returns the opposite strand: reversed along the last axis, A with T and C with G exchanged.

    N and the special tokens keep their ids.

    Args:
        ids: token ids of any integer dtype, shape (..., n).

    Returns:
        A contiguous array of the same shape and dtype.
    """
    ids = np.asarray(ids)
    # Contiguous, because torch.from_numpy refuses the negative stride of a reversed view.
    return np.ascontiguousarray(_COMPLEMENT[ids][..., ::-1]).astype(ids.dtype, copy=False)


def is_base(ids: np.ndarray) -> np.ndarray:
    """Returns where token ids (..., n) are A, C, G or T, bool of the same shape."""
    return _IS_BASE[ids]
