"""The chunks of WAV, W64, CAF and AU files: whether the audio ends where the header says."""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from typing import BinaryIO, Literal

_UNKNOWN = 0xFFFFFFFF
"""Stands for a length that a program could not know, as 0 does: it wrote to a pipe."""
CUT = "is truncated: its end is missing"


@dataclass(frozen=True)
class Wave:
    """What is to be said of a WAV file.

    Args:
        prefix: its header with lengths that say "unknown"; empty where it needs none.
        data: place of the first sample, where there is such a header.
        notes: what is odd, in words.
    """

    prefix: bytes = b""
    data: int = 0
    notes: tuple[str, ...] = ()


def read_wave(data: mmap.mmap, at: int) -> Wave:
    """Walks over the chunks of a WAV file.

    Args:
        data: of the file.
        at: of its RIFF header.
    """
    order: Literal["little", "big"] = "big" if data[at : at + 4] == b"RIFX" else "little"
    if data[at : at + 4] == b"RF64":
        return Wave()

    def size(place: int) -> int:
        return int.from_bytes(data[place + 4 : place + 8], order)

    whole, place = size(at), at + 12
    known = whole not in (0, _UNKNOWN)
    end = min(at + 8 + whole, len(data)) if known else len(data)
    while place + 8 <= len(data) and data[place : place + 4] != b"data":
        place += 8 + size(place) + (size(place) & 1)
    if place + 8 > len(data):
        return Wave(notes=(CUT,) if known and at + 8 + whole > len(data) + 1 else ())
    begun, length = place + 8, size(place)
    behind = begun + length
    if length == 0 and not _is_chunk(data, behind, end, order) and behind < len(data):
        head = bytearray(data[at:begun])
        head[4:8] = head[-4:] = _UNKNOWN.to_bytes(4, order)
        return Wave(bytes(head), begun)
    if length != _UNKNOWN and known and max(behind, at + 8 + whole) > len(data) + 1:
        return Wave(notes=(CUT,))
    if length == _UNKNOWN or not known:
        return Wave()
    lost = end - behind
    if lost > 1 and not any(_is_chunk(data, behind + pad, end, order) for pad in (0, 1)):
        return Wave(notes=(f"holds {lost} bytes behind its audio that are of no chunk, not read",))
    return Wave()


def _is_chunk(data: mmap.mmap, at: int, end: int, order: Literal["little", "big"]) -> bool:
    """Returns whether a chunk begins at a place and ends before another one."""
    name, size = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], order)
    printed = len(name) == 4 and all(32 <= byte < 127 for byte in name)
    return printed and at + 8 + size <= end + 1


def is_cut(stream: BinaryIO, kind: str, start: int, end: int) -> bool:
    """Returns whether a header promises samples behind a file's end; never where it does not know.

    Args:
        stream: of the file.
        kind: "WAV" for RF64, "W64", "CAF" or "AU".
        start: of the header.
        end: of the file.
    """

    def read(place: int, size: int) -> bytes:
        stream.seek(start + place)
        return stream.read(size)

    head = read(0, 4)
    if kind == "AU":
        order: Literal["little", "big"] = "big" if head == b".snd" else "little"
        first, size = (int.from_bytes(read(place, 4), order) for place in (4, 8))
        return size != _UNKNOWN and start + first + size > end
    if kind == "WAV" and head != b"RF64":
        return False  # ``read_wave`` has looked
    # Where the first chunk begins; lengths of name and size; what the size counts of them.
    begin, name, width, own = {"WAV": (12, 4, 4, 0), "W64": (40, 16, 8, 24), "CAF": (8, 4, 8, 0)}[
        kind
    ]
    order, place, long = "big" if kind == "CAF" else "little", begin, 0
    while len(head := read(place, name + width)) == name + width:
        size = int.from_bytes(head[name:], order) - own
        inside = place + name + width
        if head[:4] == b"ds64":
            long = int.from_bytes(read(inside + 8, 8), order)
        if head[:4] == b"data":
            size = long if kind == "WAV" and size == _UNKNOWN else size
            return size < 1 << 62 and start + inside + size > end + 1
        size = max(size, 0)
        place = inside + size + (-size % {"WAV": 2, "W64": 8, "CAF": 1}[kind])
    return False
