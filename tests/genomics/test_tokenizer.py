"""The DNA tokenizer: HyenaDNA's ids, ambiguity letters, reverse complement, errors."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longseq.core.errors import ConfigError, DataError
from longseq.genomics.data.tokenizer import (
    TOKENS,
    decode,
    encode,
    is_base,
    reverse_complement,
    soft_mask,
)


def test_ids_are_those_of_hyenadna():
    assert encode("ACGTN").tolist() == [7, 8, 9, 10, 11]
    assert TOKENS.index("[MASK]") == 3 and TOKENS.index("[PAD]") == 4 and TOKENS.index("[UNK]") == 6


def test_case_uracil_and_ambiguity():
    assert decode(encode(b"acgtuU")) == "ACGTTT"
    assert set(encode("RYSWKMBDHVryswkmbdhvnN").tolist()) == {11}
    assert soft_mask("AcgT").tolist() == [False, True, True, False]
    assert encode("").shape == (0,)


@pytest.mark.parametrize(
    ("text", "position", "char"), [("ACX", 3, "X"), (b"-ACG", 1, "-"), ("ACé", 3, "é")]
)
def test_other_characters_are_named(text, position, char):
    with pytest.raises(
        DataError, match=rf"g\.fa: chr1: character '{char}' at position {position + 10} "
    ):
        encode(text, path="g.fa", record="chr1", offset=10)


@given(st.text("ACGTN"))
def test_reverse_complement(text):
    ids = encode(text)
    expected = text[::-1].translate(str.maketrans("ACGT", "TGCA"))
    assert decode(reverse_complement(ids)) == expected
    assert decode(ids) == text
    assert np.array_equal(reverse_complement(reverse_complement(ids)), ids)


def test_reverse_complement_keeps_dtype_and_special_tokens():
    ids = np.array([[0, 4, 7, 11], [7, 7, 9, 10]])
    out = reverse_complement(ids)
    assert out.dtype == ids.dtype and out.flags.c_contiguous
    assert out.tolist() == [[11, 10, 4, 0], [7, 8, 10, 10]]


def test_decode_special_and_bad_ids():
    ids = np.array([0, 7, 4])
    assert decode(ids) == "A" and decode(ids, skip_special=False) == "[CLS]A[PAD]"
    assert is_base(ids).tolist() == [False, True, False]
    with pytest.raises(ConfigError, match="12 is outside"):
        decode(np.array([7, 12]))


def test_package_does_not_import_torch():
    code = "import sys, longseq.genomics as g; assert 'torch' not in sys.modules and g.REQUIRES"
    subprocess.run([sys.executable, "-c", code], check=True)
