"""The pages of an Ogg file (RFC 3533): where its links begin, and which pages are missing."""

from __future__ import annotations

import mmap
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

_MAGIC, _HEAD = b"OggS", 27  # bytes of a page's head, less its table
# Ogg sums its bits from the other end than zlib does.
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
_ALL = 0xFFFFFFFF
_BACK = 1 << 31  # a page that is so much later is an earlier one


@dataclass(frozen=True)
class Page:
    """A page that is whole.

    Args:
        at: its first byte.
        end: the byte after its last.
        first: whether a stream begins with it.
        granule: position of the last packet that ends in it, -1 if none does.
        stream: number of its stream.
        number: counts the stream's pages.
        body: the first 16 bytes of its data, which tell codec and rate.
    """

    at: int
    end: int
    first: bool
    granule: int
    stream: int
    number: int
    body: bytes


def checksum(page: bytes) -> int:
    """Returns the checksum of a page: the polynomial 0x04C11DB7, from zero, no bits reversed.

    Args:
        page: whole; the four bytes of its own checksum count as zeros.
    """
    blank = page[:22] + bytes(4) + page[26:]
    found = zlib.crc32(blank.translate(_REVERSED), _ALL) ^ _ALL
    return int(f"{found:032b}"[::-1], 2)


def pages(data: mmap.mmap, start: int) -> Iterator[Page | None]:
    """Yields the pages of a file in their order, None for one that is broken. A last one that is
    cut off is left out.

    Args:
        data: of the file.
        start: of its first page.
    """
    at = start
    while (at := data.find(_MAGIC, at)) >= 0 and at + _HEAD <= len(data):
        count = data[at + 26]
        end = at + _HEAD + count + sum(data[at + _HEAD : at + _HEAD + count])
        if end > len(data) and data.find(_MAGIC, at + 4) < 0:
            return
        page = data[at:end]
        if end > len(data) or checksum(page) != int.from_bytes(page[22:26], "little"):
            yield None
            # Its length may be what is broken.
            at = end if data[end : end + 4] == _MAGIC else at + 4
            continue
        yield Page(
            at,
            end,
            bool(page[5] & 2),
            int.from_bytes(page[6:14], "little", signed=True),
            int.from_bytes(page[14:18], "little"),
            int.from_bytes(page[18:22], "little"),
            page[_HEAD + count : _HEAD + count + 16],
        )
        at = end


def _rate(body: bytes) -> int:
    """Returns the positions in a second of a stream that begins so; 0 if that is not known."""
    if body.startswith(b"OpusHead"):
        return 48000
    return int.from_bytes(body[12:16], "little") if body.startswith(b"\x01vorbis") else 0


class _Losses:
    """Counts the pages that are missing between those that are there."""

    def __init__(self) -> None:
        self.count, self.broken, self._where = 0, 0, ""
        self._next: dict[int, int] = {}
        self._rates: dict[int, int] = {}
        self._heard: dict[int, int] = {}

    def see(self, page: Page | None) -> None:
        """Takes the next page."""
        if page is None:
            self.broken += 1
            return
        self.broken = 0  # it is missed now, or was no page
        lost = (page.number - self._next.get(page.stream, page.number)) & _ALL
        if page.first:
            self._rates[page.stream], self._heard[page.stream] = _rate(page.body), 0
        elif lost >= _BACK:
            return
        elif lost:
            self._note(page.stream, page.at, lost)
        self._next[page.stream] = (page.number + 1) & _ALL
        if page.granule >= 0:
            self._heard[page.stream] = page.granule

    def _note(self, stream: int, at: int, lost: int) -> None:
        self.count += lost
        if rate := self._rates.get(stream, 0):
            self._where = self._where or f"second {self._heard[stream] / rate:.1f}"
        self._where = self._where or f"byte {at}"

    def text(self, end: int) -> str:
        """Returns what is lost, in words; empty if nothing is.

        Args:
            end: bytes of the file.
        """
        if self.broken:  # and no page follows
            self._note(next(reversed(self._next), 0), end, self.broken)
        if not self.count:
            return ""
        pages = "1 page is" if self.count == 1 else f"{self.count} pages are"
        return f"is damaged: {pages} lost or broken, from {self._where} on"


def read_links(
    data: mmap.mmap, start: int, step: int, forget: Callable[[int], object]
) -> tuple[list[int], str]:
    """Returns where the links of a chained Ogg file begin (where a stream begins after data), and
    what of its pages is lost, in words.

    Decoders pass over a lost page in silence, or conceal it.

    Args:
        data: of the file.
        start: of its first page.
        step: bytes that are looked at before their memory is given back.
        forget: gives back the memory before a byte.
    """
    starts, begun, look, losses = [start], True, start + step, _Losses()
    for page in pages(data, start):
        losses.see(page)
        if page is None:
            continue
        if page.first and not begun:
            starts.append(page.at)
        begun = page.first
        if page.end > look:
            forget(page.end)
            look = page.end + step
    return starts, losses.text(len(data))
