"""Damaged heaps of HDF5 files, on which the HDF5 library itself never ends, and lengths of strings
that it allocates before it looks."""

from __future__ import annotations

import mmap
import re
import struct
from collections.abc import Iterator
from pathlib import Path

from longseq.core.errors import DataError

_SCANNED = 1 << 28
"""Bytes at the beginning and at the end of a file that are looked at: metadata lie there."""
_ATTRIBUTES = 1 << 24
"""The same, for attributes, where the search is slower."""
# A type of variable length whose elements take 16 bytes (HDF5 file format 3.0, section IV.A.2.d).
_VARIABLE = re.compile(
    rb"[\x19\x29\x39\x49][\x00\x01\x10\x11\x20\x21][\x00\x01]\x00\x10\x00\x00\x00"
)
_LONGEST_NAME = 256


def check_heaps(file: Path) -> None:
    """Checks the global heaps of an HDF5 file and what attributes say of their places in them.

    An empty object in a heap is a loop without end in the library, which reads such a heap object
    by object. A text's length is allocated before its place is looked at: one that is longer than
    the file is refused.

    Args:
        file: an HDF5 file.

    Raises:
        DataError: if a heap or an attribute is damaged so.
    """
    with (
        file.open("rb") as stream,
        mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content,
    ):
        total = len(content)
        at = content.find(b"GCOL\x01")
        while at >= 0:
            if at > _SCANNED and at < total - _SCANNED:
                at = content.find(b"GCOL\x01", total - _SCANNED)
                continue
            size = struct.unpack_from("<Q", content, at + 8)[0] if at + 16 <= total else 0
            place, end = at + 16, min(at + size, total)
            while place + 16 <= end:
                index, _, _, length = struct.unpack_from("<HHIQ", content, place)
                if index == 0 and length < 16:
                    hint = "copy it again"
                    raise DataError("the NetCDF file is damaged (heap)", path=file, hint=hint)
                place += length if index == 0 else 16 + (length + 7) // 8 * 8
            at = content.find(b"GCOL\x01", at + 4)
        for name, length in _lengths(content):
            if length > total:
                text = f"the NetCDF file is damaged: {length:,} elements, more than it has bytes"
                raise DataError(text, path=file, record=name, hint="copy it again")


def _lengths(content: mmap.mmap) -> Iterator[tuple[str, int]]:
    """Yields the names of attributes of variable length and the lengths of their elements."""
    total = len(content)
    starts = [0] if total <= 2 * _ATTRIBUTES else [0, total - _ATTRIBUTES]
    for start in starts:
        end = total if len(starts) == 1 else start + _ATTRIBUTES
        for match in _VARIABLE.finditer(content, start, end):
            yield from _elements(content, match.start())


def _elements(content: mmap.mmap, kind: int) -> Iterator[tuple[str, int]]:
    """Yields what ``_lengths`` does, of the attribute whose type lies at ``kind``; nothing if it is
    not that of an attribute.

    A message has version, flags, the sizes of name, type and shape, then (from version 3) the
    name's character set, and name, type and shape themselves, in version 1 filled up to 8 bytes
    each (section IV.A.2.m).
    """
    for head in range(kind - 9, max(-1, kind - 9 - _LONGEST_NAME), -1):
        version = content[head]
        if version not in (1, 2, 3):
            continue
        sizes = struct.unpack_from("<3H", content, head + 2)
        named, typed, shaped = (((n + 7) // 8 * 8 if version == 1 else n) for n in sizes)
        name = head + (9 if version == 3 else 8)
        last = name + sizes[0] - 1
        if name + named != kind or sizes[0] < 2 or content[last] or sizes[1] < 16:
            continue
        data = kind + typed + shaped
        for n in range(_count(content, kind + typed, data)):
            if data + 16 * n + 4 > len(content):
                return
            text = content[name:last].decode("utf-8", "replace")
            yield text, struct.unpack_from("<I", content, data + 16 * n)[0]
        return


def _count(content: mmap.mmap, shape: int, end: int) -> int:
    """Returns how many elements a dataspace has, at most as many as a shape in so few bytes can say
    (section IV.A.2.b)."""
    if end > len(content) or end - shape < 4:
        return 0
    version, rank = content[shape], content[shape + 1]
    dims = shape + (8 if version == 1 else 4)
    if version not in (1, 2) or dims + 8 * rank > end:
        return 0
    count = 1
    for size in struct.unpack_from(f"<{rank}Q", content, dims):
        count *= size
    return min(count, len(content) // 16)
