"""What a file's bytes say: its kind, tags and junk before the audio, streams joined end to end."""

from __future__ import annotations

import io
import mmap
import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

from longseq.audio.data.flac import right_head
from longseq.audio.data.ogg import read_links
from longseq.audio.data.riff import read_wave

# Magic bytes at the start of a container → its kind.
_MAGIC = (
    (b"fLaC", "FLAC"),
    (b"OggS", "OGG"),
    (b"riff\x2e\x91\xcf\x11", "W64"),
    (b"caff", "CAF"),
    (b".snd", "AU"),
    (b"dns.", "AU"),
    (b"Creative Voice File", "VOC"),
    (b"NIST_1A", "NIST"),
    (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "WMA"),
    (b"\x1aE\xdf\xa3", "Matroska"),
    (b"MAC ", "APE"),
    (b"wvpk", "WavPack"),
    (b"MPCK", "Musepack"),
)
# Kinds that libsndfile cannot decode.
FOREIGN = ("M4A/AAC", "AAC", "WMA", "Matroska", "APE", "WavPack", "Musepack")
_STEP = 1 << 24  # bytes of a file that are looked at before their memory is given back
_JUNK = 1 << 20  # bytes before the audio that are looked through
_TAG = 1 << 16  # bytes behind a file's end that may be a tag
_BIT_RATES = {
    # kbit/s of layer 3 by index: MPEG 1, and MPEG 2 and 2.5
    True: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    False: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_LONGEST_FRAME = 1441  # bytes, of an MP3
_RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}


@dataclass(frozen=True)
class Part:
    """One stream of samples in a file.

    Args:
        start: its first byte.
        end: the byte after its last.
        prefix: bytes to be read before it: the count of frames that an MP3 lacks, or a header
            that counts right.
    """

    start: int
    end: int
    prefix: bytes = b""


@dataclass(frozen=True)
class Layout:
    """Where a file's audio lies.

    Args:
        kind: container, for example "FLAC"; None if the bytes announce no audio.
        parts: the streams in order; more than one where files were joined end to end.
        counted: whether the header's number of samples is a fact and not a guess.
        notes: what is odd, in words.
    """

    kind: str | None
    parts: tuple[Part, ...]
    counted: bool = True
    notes: tuple[str, ...] = ()


class Window(io.RawIOBase):
    """A read-only view of part of an open file, as a file of its own.

    Args:
        file: open for reading; closed with the view.
        part: the bytes that are seen, its prefix first.
    """

    def __init__(self, file: BinaryIO, part: Part) -> None:
        super().__init__()
        self._file, self._part, self._prefix, self._at = file, part, part.prefix, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Moves to an offset from the part's start, from here or from its end."""
        size = len(self._prefix) + self._part.end - self._part.start
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Fills a buffer as far as the part goes."""
        view = memoryview(buffer)
        before = self._prefix[self._at : self._at + len(view)]
        view[: len(before)] = before
        place = self._at + len(before) - len(self._prefix)
        wanted = min(len(view) - len(before), self._part.end - self._part.start - place)
        count = len(before)
        if wanted > 0:
            self._file.seek(self._part.start + place)
            count += self._file.readinto(view[count : count + wanted])  # type: ignore[attr-defined]
        self._at += count
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


def id3_size(head: bytes) -> int:
    """Returns the length of an ID3v2 tag at the start of some bytes, 0 if there is none."""
    if len(head) < 10 or head[:3] != b"ID3" or max(head[6:10]) > 127:
        return 0
    size = 0
    for byte in head[6:10]:
        size = size << 7 | byte
    return size + (20 if head[5] & 0x10 else 10)


def mp3_frame(head: bytes) -> tuple[int, tuple[int, int, int]] | None:
    """Returns a layer-3 frame's length in bytes, and what all frames of its stream share, or None.

    Args:
        head: at least 4 bytes.
    """
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0 or head[1] & 0x06 != 0x02:
        return None
    version, bits, rate = head[1] >> 3 & 3, head[2] >> 4, head[2] >> 2 & 3
    if version == 1 or bits in (0, 15) or rate == 3:
        return None
    hertz = _RATES[version][rate]
    samples = 1152 if version == 3 else 576
    length = samples // 8 * 1000 * _BIT_RATES[version == 3][bits] // hertz + (head[2] >> 1 & 1)
    return length, (version, hertz, samples)


def _is_mp3_at(data: bytes | mmap.mmap, at: int, frames: int = 3) -> bool:
    """Returns whether so many frames of one stream follow each other, or as many as there is."""
    first = None
    for number in range(frames):
        found = mp3_frame(data[at : at + 4])
        if found is None:
            return number > 1 and at >= len(data) - 4
        length, shared = found
        if first is not None and shared != first:
            return False
        first, at = shared, at + length
        if at >= len(data) - 4:  # the file's last frame may be cut
            return True
    return True


def _kind_at(data: bytes | mmap.mmap, at: int = 0) -> str | None:
    """Returns the kind of container whose magic bytes stand at a place."""
    head = bytes(data[at : at + 20])
    if head[:4] in (b"RIFF", b"RF64", b"RIFX") and head[8:12] == b"WAVE":
        return "WAV"
    if head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"):
        return "AIFF"
    if head[:4] == b"FORM" and head[8:12] in (b"8SVX", b"16SV"):
        return "8SVX"
    if head[4:8] == b"ftyp":
        return "M4A/AAC"
    if len(head) > 6 and head[0] == 0xFF and head[1] & 0xF6 == 0xF0 and head[2] >> 2 & 15 < 13:
        length = (head[3] & 3) << 11 | head[4] << 3 | head[5] >> 5
        after = bytes(data[at + length : at + length + 2])
        if length > 7 and len(after) == 2 and after[0] == 0xFF and after[1] & 0xF6 == 0xF0:
            return "AAC"
    for magic, kind in _MAGIC:
        if head.startswith(magic):
            return kind
    return None


def _after_junk(data: mmap.mmap) -> tuple[str | None, int]:
    """Looks for audio that does not begin where the file does: its kind and place."""
    limit = min(len(data), _JUNK)
    places = []
    for magic, size in ((b"fLaC", 4), (b"OggS\0\2", 6), (b"RIFF", 4), (b"FORM", 4)):
        at = data.find(magic, 0, limit)
        if at >= 0 and (kind := _kind_at(data, at)) and len(data) > at + size:
            places.append((at, kind))
    at = data.find(b"\xff", 0, limit)
    while at >= 0 and (not places or at < min(places)[0]):
        if _is_mp3_at(data, at):
            places.append((at, "MP3"))
            break
        at = data.find(b"\xff", at + 1, limit)
    if not places:
        return None, 0
    at, kind = min(places)
    return kind, at


def _forget(data: mmap.mmap, before: int) -> int:
    """Gives back the memory of what has been looked at, and returns the place of the next time."""
    data.madvise(mmap.MADV_DONTNEED, 0, before // mmap.PAGESIZE * mmap.PAGESIZE or mmap.PAGESIZE)
    return before + _STEP


def _find_all(data: mmap.mmap, magic: bytes, start: int) -> list[int]:
    """Returns every place of some bytes, in constant memory."""
    found, at = [], start
    while at < len(data):
        place = data.find(magic, at, at + _STEP + len(magic) - 1)
        if place >= 0:
            found.append(place)
            at = place + len(magic)
            continue
        at += _STEP
        _forget(data, min(at, len(data)))
    return found


def _ogg_parts(data: mmap.mmap, start: int) -> tuple[list[Part], str]:
    """Returns the links of a chained Ogg file, and what of its pages is lost, in words."""
    starts, lost = read_links(data, start, _STEP, lambda end: _forget(data, min(end, len(data))))
    return [Part(a, b) for a, b in zip(starts, [*starts[1:], len(data)])], lost


def _flac_parts(data: mmap.mmap, start: int) -> tuple[list[Part], list[str]]:
    """Returns the streams of FLAC files that were joined end to end, and what is odd about them.

    Decoders stop after as many samples as the header counts.
    """
    starts = [start]
    # The marker, and a STREAMINFO block of 34 bytes that is or is not the last: audio does not
    # hold these 8 bytes.
    for magic in (b"fLaC\0\0\0\x22", b"fLaC\x80\0\0\x22"):
        starts += _find_all(data, magic, start + 8)
    starts.sort()
    parts, notes = [], []
    # An ID3 tag between two of them belongs to the second.
    for begin, end in zip(starts, [*starts[1:], len(data)]):
        prefix, note = right_head(data, begin, end)
        parts.append(Part(begin + len(prefix), end, prefix))
        notes += [note] if note else []
    return parts, notes


def _mp3_parts(data: mmap.mmap, start: int, at: int) -> list[Part]:
    """Returns the streams of MP3 files that were joined end to end, by the lengths in their heads.

    Decoders stop where the first head says that its own file ended.

    Args:
        data: of the file.
        start: of the first part: its first frame, or the tag before that.
        at: the first frame.
    """
    starts = [start]
    while True:
        head = bytes(data[at : at + 200])
        place = max(head.find(b"Xing"), head.find(b"Info"))
        if place < 0 or head[place + 4 : place + 7] != bytes(3) or head[place + 7] & 3 != 3:
            break
        length = int.from_bytes(head[place + 12 : place + 16], "big")
        at += max(length, _LONGEST_FRAME)
        if data[at : at + 3] == b"TAG":
            at += 128
        begin = at
        while size := id3_size(data[at : at + 10]):
            at += size
        # Some heads leave themselves out of their length.
        if len(data) - at < 4 * _LONGEST_FRAME or not _is_mp3_at(data, at):
            break
        starts.append(begin)
    return [Part(a, b) for a, b in zip(starts, [*starts[1:], len(data)])]


def _count_frames(data: mmap.mmap, at: int) -> bytes:
    """Walks over an MP3 and returns a frame that says how many frames it has; empty if it says so.

    Decoders guess the length from the first frame's bit rate otherwise, and stop there.
    """
    head = bytes(data[at : at + 200])
    if any(tag in head for tag in (b"Xing", b"Info", b"VBRI")):
        return b""
    found = mp3_frame(head)
    assert found is not None
    shared, frames, look = found[1], 0, at + _STEP
    while at >= 0 and at + 4 <= len(data):
        found = mp3_frame(data[at : at + 4])
        if found is not None and found[1] == shared:
            frames, at = frames + 1, at + found[0]
            if at > look:
                look = _forget(data, min(at, len(data)))
            continue
        at = data.find(b"\xff", at + 1)
    # A silent frame of the same stream at 64 kbit/s: header, side information, then the tag.
    version, hertz, samples = shared
    made = bytearray(head[:4])
    made[1] |= 1
    made[2] = (5 if version == 3 else 8) << 4 | made[2] & 0x0C
    mono = made[3] >> 6 == 3
    side = (17 if mono else 32) if version == 3 else (9 if mono else 17)
    frame = bytes(made) + bytes(side) + b"Xing\0\0\0\1" + frames.to_bytes(4, "big")
    return frame + bytes(samples // 8 * 64000 // hertz - len(frame))


def _behind(data: mmap.mmap, at: int, kind: str) -> str:
    """Returns what follows a file that names its length, in words; empty if nothing does."""
    if kind == "M4A/AAC":
        size, begun = 0, at
        # Boxes follow each other; a second file begins with a box of its kind.
        while at + 16 <= len(data):
            size = int.from_bytes(data[at : at + 4], "big")
            size = int.from_bytes(data[at + 8 : at + 16], "big") if size == 1 else size
            if size < 8:
                return ""
            at += size
            if data[at + 4 : at + 8] == b"ftyp" and at > begun:
                return "another M4A/AAC behind its end that is not read"
        return ""
    order: Literal["little", "big"] = "big"
    if data[at : at + 4] in (b"RIFF", b"RF64"):
        order = "little"
    end = at + 8 + int.from_bytes(data[at + 4 : at + 8], order)
    if not 0 < end - at - 8 < 0xFFFFFFFF or end >= len(data):
        return ""
    if found := _kind_at(data, end):
        return f"another {found} behind its end that is not read"
    # Less than this is a tag.
    much = len(data) - end > _TAG and data[end : end + 3] != b"ID3" and any(data[end : end + _TAG])
    return f"{len(data) - end} bytes behind its end that are not read" if much else ""


def read_layout(path: str | Path) -> Layout:
    """Looks at a file's bytes, whatever its name says.

    Args:
        path: a readable file.
    """
    with Path(path).open("rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            return Layout(None, ())
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _layout(data)


def _layout(data: mmap.mmap) -> Layout:
    at, notes = 0, []
    while size := id3_size(data[at : at + 10]):
        at += size
    tagged = at
    kind = _kind_at(data, at) if at < len(data) else None
    if kind is None and at < len(data) and _is_mp3_at(data, at):
        kind = "MP3"
    if kind is None:
        # Padding behind a tag is usual; before the first byte of audio, anything else is junk.
        kind, place = _after_junk(data)
        if kind is not None:
            if place > tagged and bytes(data[tagged:place]).strip(b"\0"):
                notes.append(f"has {place - tagged} bytes of something else before the audio")
            at = place
    if kind is None:
        return Layout("MP3" if tagged else None, (Part(0, len(data)),), counted=False)
    if kind == "MP3":
        # libsndfile skips an ID3 tag itself, and reads its own length out of it.
        start = 0 if at == tagged else at
        prefix = _count_frames(data, at)
        parts = [Part(at, len(data), prefix)] if prefix else _mp3_parts(data, start, at)
    elif kind == "OGG":
        parts, lost = _ogg_parts(data, at)
        notes += [lost] if lost else []
    elif kind == "FLAC":
        parts, odd = _flac_parts(data, at)
        notes += odd
    elif kind == "WAV":
        wave = read_wave(data, at)
        parts = [Part(wave.data or at, len(data), wave.prefix)]
        notes += wave.notes
    else:
        parts = [Part(at, len(data))]
    if len(parts) > 1:
        notes.append(f"holds {len(parts)} streams joined end to end; all are read")
    elif kind in ("WAV", "AIFF", "M4A/AAC") and (more := _behind(data, at, kind)):
        notes.append(f"holds {more}")
    # A bare AAC stream counts nothing.
    return Layout(kind, tuple(parts), kind != "AAC", tuple(notes))
