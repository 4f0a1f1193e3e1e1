"""The pages of an Ogg file (RFC 3533): where its links begin, and which pages are missing, stand
twice or have something else between them."""

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
_CUT = 60  # seconds that no first page holds: the stream is a later piece of a longer one
_KEPT = 1 << 16  # pages whose checksums are remembered, to know them again


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
        sum: checksum of its bytes.
        before: bytes between it and the whole page before it.
        body: the first 16 bytes of its data, which tell codec and rate.
    """

    at: int
    end: int
    first: bool
    granule: int
    stream: int
    number: int
    sum: int
    before: int
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
    at = behind = start
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
            int.from_bytes(page[22:26], "little"),
            at - behind,
            page[_HEAD + count : _HEAD + count + 16],
        )
        at = behind = end


def _rate(body: bytes) -> int:
    """Returns the positions in a second of a stream that begins so; 0 if that is not known."""
    if body.startswith(b"OpusHead"):
        return 48000
    return int.from_bytes(body[12:16], "little") if body.startswith(b"\x01vorbis") else 0


@dataclass
class _Fault:
    """How often something is wrong, and where it begins, in words."""

    count: int = 0
    where: str = ""

    def text(self, one: str, many: str) -> str:
        """Returns it in words, by the words for one and for more."""
        return f"{self.count} {one if self.count == 1 else many}, from {self.where} on"


class _Damage:
    """Counts the pages that are missing between those that are there, those that stand twice, and
    the bytes between pages that are of none."""

    def __init__(self) -> None:
        self._lost, self._twice, self._between = _Fault(), _Fault(), _Fault()
        self._broken = 0
        self._passed = 0.0  # seconds of the links before this one
        self._heads = False  # whether the last page began a stream
        self._clear()

    def _clear(self) -> None:
        self._next: dict[int, int] = {}
        self._rates: dict[int, int] = {}
        self._heard: dict[int, int] = {}
        self._origin: dict[int, int] = {}
        self._seen: dict[tuple[int, int], int] = {}

    def see(self, page: Page | None) -> None:
        """Takes the next page."""
        if page is None:
            self._broken += 1
            return
        self._broken = 0  # it is missed now, or was no page
        if page.first and not self._heads:
            self._passed += self._second(*self._rates) or 0.0
            self._clear()
        self._heads = page.first
        known = self._seen.get((page.stream, page.number)) == page.sum
        lost = (page.number - self._next.get(page.stream, page.number)) & _ALL
        if known:
            self._note(self._twice, page.stream, page.at, 1)
        elif page.first:
            self._rates[page.stream], self._heard[page.stream] = _rate(page.body), 0
        elif 0 < lost < _BACK:
            self._note(self._lost, page.stream, page.at, lost)
        if page.before and not 0 < lost < _BACK:  # otherwise it is what is left of those pages
            self._note(self._between, page.stream, page.at - page.before, page.before)
        if known or lost >= _BACK:
            return
        self._next[page.stream] = (page.number + 1) & _ALL
        self._seen[page.stream, page.number] = page.sum
        if len(self._seen) > _KEPT:
            del self._seen[next(iter(self._seen))]
        if page.granule > 0:
            cut = page.granule > _CUT * self._rates.get(page.stream, 0)
            origin = self._origin.setdefault(page.stream, page.granule if cut else 0)
            self._heard[page.stream] = page.granule - origin

    def _second(self, *streams: int) -> float | None:
        """Returns how many seconds of this link were heard of the longest of some streams."""
        known = [self._heard[one] / self._rates[one] for one in streams if self._rates.get(one)]
        return max(known, default=None)

    def _note(self, fault: _Fault, stream: int, at: int, count: int) -> None:
        fault.count += count
        second = self._second(stream)
        place = f"byte {at}" if second is None else f"second {self._passed + second:.1f}"
        fault.where = fault.where or place

    def text(self, end: int) -> str:
        """Returns what is damaged, in words; empty if nothing is.

        Args:
            end: bytes of the file.
        """
        if self._broken:  # and no page follows
            self._note(self._lost, next(reversed(self._next), 0), end, self._broken)
            self._broken = 0
        said = [
            fault.text(one, many)
            for fault, one, many in (
                (self._lost, "page is lost or broken", "pages are lost or broken"),
                (self._twice, "page stands twice", "pages stand twice"),
                (
                    self._between,
                    "byte between pages belongs to none",
                    "bytes between pages belong to none",
                ),
            )
            if fault.count
        ]
        return f"is damaged: {'; '.join(said)}" if said else ""


def read_links(
    data: mmap.mmap, start: int, step: int, forget: Callable[[int], object]
) -> tuple[list[int], str]:
    """Returns where the links of a chained Ogg file begin (where a stream begins after data), and
    what of its pages is lost or stands twice and where something lies between them, in words.

    Decoders pass over all of it in silence, or conceal it.

    Args:
        data: of the file.
        start: of its first page.
        step: bytes that are looked at before their memory is given back.
        forget: gives back the memory before a byte.
    """
    starts, begun, look, damage = [start], True, start + step, _Damage()
    for page in pages(data, start):
        damage.see(page)
        if page is None:
            continue
        if page.first and not begun:
            starts.append(page.at)
        begun = page.first
        if page.end > look:
            forget(page.end)
            look = page.end + step
    return starts, damage.text(len(data))
