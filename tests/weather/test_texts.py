"""Lengths of texts in variables of NetCDF-4 files are held against the file before the library
allocates them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from longseq.core.errors import DataError
from longseq.weather.data import texts
from longseq.weather.data.source import read_field

WORDS = ["a", "bb", "ccc", "dddd", "größe"]
STORED: dict[str, dict[str, Any]] = {
    "whole": {},
    "chunks": {"chunks": (5,)},
    "packed": {"chunks": (5,), "compression": "gzip", "shuffle": True},
}


@pytest.mark.parametrize("libver", ["earliest", "latest"])
@pytest.mark.parametrize("name", STORED)
def test_lengths_are_found_however_they_are_stored(name: str, libver: str, tmp_path: Path) -> None:
    path = tmp_path / "x.nc"
    with h5py.File(path, "w", libver=libver) as file:
        file.create_dataset("x", data=WORDS, dtype=h5py.string_dtype(), **STORED[name])
        made = file.create_dataset("n", (5,), dtype=h5py.vlen_dtype(np.float64), **STORED[name])
        for n in range(5):
            made[n] = np.arange(n)
        file.create_dataset("f", data=np.array(WORDS[:4], "S4"))
        file.create_group("g")
        file.create_dataset("empty", (0,), dtype=h5py.string_dtype())
    texts.check_texts(path)
    with h5py.File(path) as file, path.open("rb") as stream:
        found = {one: sum(texts._elements(file, one, stream, path.stat().st_size)) for one in file}
    assert found == {
        "x": 1 + 2 + 3 + 4 + 7,
        "n": 8 * (0 + 1 + 2 + 3 + 4),
        "f": 0,
        "g": 0,
        "empty": 0,
    }


def test_a_damaged_length_is_refused_in_chunks_too(tmp_path: Path) -> None:
    path = tmp_path / "x.nc"
    with h5py.File(path, "w") as file:
        made = file.create_dataset("x", data=WORDS, dtype=h5py.string_dtype(), chunks=(5,))
        _, chunk = made.id.read_direct_chunk((0,))
        made.id.write_direct_chunk((0,), chunk[:32] + (10**9).to_bytes(4, "little") + chunk[36:])
    with pytest.raises(DataError, match=r"x\.nc: x: .* damaged: 1,000,000,014 bytes, more than"):
        texts.check_texts(path)


@pytest.mark.parametrize("length", [10**9, 2**32 - 1])
def test_a_text_of_a_variable_is_not_allocated(length: int, write, lab) -> None:
    path = write(lab.dataset(lab.fields()).assign(label=((), "a label")), "x.nc")
    read_field(path)
    with h5py.File(path) as file:
        at = file["label"].id.get_offset()
    content = path.read_bytes()
    assert int.from_bytes(content[at : at + 4], "little") == len("a label")
    path.write_bytes(content[:at] + length.to_bytes(4, "little") + content[at + 4 :])
    with pytest.raises(DataError, match=rf"x\.nc: label: .* damaged: {length:,} bytes, more than"):
        read_field(path)
