"""Texts and lists of variable length in the variables of NetCDF-4 files, whose lengths the HDF5
library believes."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from longseq.core.errors import DataError

_ELEMENT = 16
"""Bytes of an element: its length, and its place in a heap (HDF5 file format 3.0, IV.A.2.d)."""


def check_texts(file: Path) -> None:
    """Checks that what the variables of a file say of the lengths of their elements fits into it.

    The library allocates a length before it looks for what is that long. Every element has bytes
    of its own in the file, so that together they cannot be longer.

    Args:
        file: an HDF5 file, checked by ``check_heaps``.

    Raises:
        DataError: if they are longer.
    """
    import h5py

    total = file.stat().st_size
    try:
        opened = h5py.File(file, "r")
    except Exception:  # noqa: BLE001 - whatever a damaged file ends in: opening it again tells it
        return
    with opened, file.open("rb") as stream:
        for name in _names(opened):
            length = 0
            for part in _elements(opened, name, stream, total):
                length += part
                if length > total:
                    text = f"the NetCDF file is damaged: {length:,} bytes, more than it has"
                    raise DataError(text, path=file, record=name, hint="copy it again")


def _names(opened: Any) -> list[str]:
    try:
        return list(opened)
    except Exception:  # noqa: BLE001 - as above
        return []


def _elements(opened: Any, name: str, stream: Any, total: int) -> Iterator[int]:
    """Yields the bytes of the elements of a variable, chunk by chunk; nothing if their length does
    not vary or they cannot be found, which the library then tells."""
    try:
        found = opened[name].id
        size = _item(found.get_type())
        places = _places(found) if size else []
    except Exception:  # noqa: BLE001 - as above
        return
    for place, stored, count, packed in places:
        if place is None or place > total:
            continue
        stream.seek(place)
        content = stream.read(min(stored, total))
        for kind in packed:
            content = _unpacked(content, kind, count * _ELEMENT)
        whole = np.frombuffer(content[: len(content) // _ELEMENT * _ELEMENT], np.uint8)
        lengths = whole.reshape(-1, _ELEMENT)[:count, :4].copy().view("<u4")
        yield int(lengths.sum(dtype=np.uint64)) * (size or 1)


def _item(kind: Any) -> int | None:
    """Returns the bytes of one of what an element is a list of, None if its length is fixed."""
    import h5py

    if isinstance(kind, h5py.h5t.TypeStringID) and kind.is_variable_str():
        return 1
    if isinstance(kind, h5py.h5t.TypeVlenID):
        return int(kind.get_super().get_size())
    return None


def _places(found: Any) -> list[tuple[int | None, int, int, list[int]]]:
    """Returns offset, stored bytes, elements and filters to undo of all chunks of a variable."""
    import h5py

    plan = found.get_create_plist()
    if plan.get_layout() != h5py.h5d.CHUNKED:
        count = int(np.prod(found.shape, dtype=object))
        return [(found.get_offset(), count * _ELEMENT, count, [])]
    filters = [plan.get_filter(n)[0] for n in range(plan.get_nfilters())]
    count = int(np.prod(plan.get_chunk(), dtype=object))
    places = []
    for n in range(found.get_num_chunks()):
        chunk = found.get_chunk_info(n)
        used = [one for k, one in enumerate(filters) if not chunk.filter_mask >> k & 1]
        places.append((chunk.byte_offset, chunk.size, count, used[::-1]))
    return places


def _unpacked(content: bytes, kind: int, size: int) -> bytes:
    """Undoes one filter; of one that is none of NetCDF's usual, or of damaged bytes, nothing is
    left, and the library tells it."""
    import h5py

    if kind == h5py.h5z.FILTER_DEFLATE:
        try:
            return zlib.decompressobj().decompress(content, size)
        except zlib.error:
            return b""
    if kind == h5py.h5z.FILTER_SHUFFLE:
        whole = np.frombuffer(content[: len(content) // _ELEMENT * _ELEMENT], np.uint8)
        return whole.reshape(_ELEMENT, -1).T.tobytes()
    return b""
