"""How many samples a FLAC stream (RFC 9639) has: by its header, and by its last frames."""

from __future__ import annotations

import mmap
import re
from typing import NamedTuple

HEAD = 42
"""Bytes of the marker and the STREAMINFO block."""
_SYNC = re.compile(rb"\xff[\xf8\xf9]")
_LEAST_TAIL, _MOST_TAIL = 1 << 16, 1 << 22


class _Frame(NamedTuple):
    """What a frame's head says: its number (of its first sample where blocks vary), samples, and
    the byte that holds its rate."""

    number: int
    samples: int
    varies: bool
    rate: int


def declared_samples(head: bytes) -> int:
    """Returns the samples that a stream's header counts, 0 if it does not say.

    Args:
        head: its first ``HEAD`` bytes.
    """
    return int.from_bytes(head[18:26], "big") & ((1 << 36) - 1)


def with_samples(head: bytes, samples: int) -> bytes:
    """Returns a stream's first ``HEAD`` bytes with another number of samples.

    Args:
        head: as they are.
        samples: below 2³⁶.
    """
    known = int.from_bytes(head[18:26], "big") >> 36 << 36
    return head[:18] + (known | samples).to_bytes(8, "big") + head[26:HEAD]


def right_head(data: mmap.mmap, start: int, end: int) -> tuple[bytes, str]:
    """Returns the first ``HEAD`` bytes of a stream that has more samples than its header counts,
    with the right number, and what is to be said of it; both are empty otherwise.

    Args:
        data: of the file.
        start: of the stream's marker.
        end: the byte after the stream.
    """
    head = bytes(data[start : start + HEAD])
    told = declared_samples(head)
    count = counted_samples(data, start, end) if len(head) == HEAD else 0
    if count <= told:
        return b"", ""
    rate = int.from_bytes(head[18:21], "big") >> 4 or 1
    says = f"its header counts {told / rate:.1f} s, its frames {count / rate:.1f}: all are read"
    # 0 stands for "unknown" in files that were written to a pipe.
    return with_samples(head, count), says if told else ""


def counted_samples(data: mmap.mmap, start: int, end: int) -> int:
    """Returns the samples of a stream by the heads of its last two frames, or of its only one; 0 if
    there are none to be found.

    Args:
        data: of the file.
        start: of the stream's marker.
        end: the byte after the stream.
    """
    first = start + 4
    while first + 4 <= end:  # over the blocks of metadata
        kind = data[first]
        first += 4 + int.from_bytes(data[first + 1 : first + 4], "big")
        if kind & 0x80:
            break
    largest = int.from_bytes(data[start + 15 : start + 18], "big")
    tail = min(max(3 * largest, _LEAST_TAIL), _MOST_TAIL) if largest else _MOST_TAIL >> 2
    look = max(first, end - tail)
    content = bytes(data[look:end])
    found = 0
    before: _Frame | None = None
    for place in _SYNC.finditer(content):
        frame = _frame(content[place.start() : place.start() + 20])
        if frame is None:
            continue
        if before is not None and frame.rate == before.rate and frame.varies == before.varies:
            step = before.samples if frame.varies else 1
            if frame.number == before.number + step:
                begun = frame.number if frame.varies else frame.number * before.samples
                found = begun + frame.samples
        elif before is None and look + place.start() == first and frame.number == 0:
            found = frame.samples
        before = frame
    return found


def _frame(head: bytes) -> _Frame | None:
    """Reads a frame's head, None where there is none: its checksum must be right."""
    if len(head) < 6 or head[3] & 1 or head[3] >> 4 > 10:
        return None
    size, rate = head[2] >> 4, head[2] & 15
    ones = 8 - (head[4] ^ 0xFF).bit_length()  # of a number that is written as in UTF-8
    more = max(0, ones - 1)
    extra = (1 if size == 6 else 2 if size == 7 else 0, 1 if rate == 12 else 2 if rate > 12 else 0)
    end = 5 + more + sum(extra)
    if (
        size == 0
        or rate == 15
        or ones in (1, 8)
        or len(head) <= end
        or _crc8(head[:end]) != head[end]
    ):
        return None
    number = head[4] & (0x7F >> ones) if ones else head[4]
    for byte in head[5 : 5 + more]:
        number = number << 6 | byte & 0x3F
    if extra[0]:
        samples = int.from_bytes(head[5 + more : 5 + more + extra[0]], "big") + 1
    else:
        samples = 192 if size == 1 else 576 << size - 2 if size < 6 else 256 << size - 8
    return _Frame(number, samples, bool(head[1] & 1), rate)


def _crc8(content: bytes) -> int:
    """Returns the checksum of a head: the polynomial x⁸ + x² + x + 1, from zero."""
    found = 0
    for byte in content:
        found ^= byte
        for _ in range(8):
            found = (found << 1 ^ 7) & 0xFF if found & 0x80 else found << 1
    return found
