"""Damage behind checksums and lengths: what is packed is unpacked, damaged and packed again, so
that a reader gets further than to the sum that does not agree."""

from __future__ import annotations

import gzip
import io
import random
import zipfile
import zlib
from collections.abc import Callable
from functools import lru_cache

Mutate = Callable[[bytes], bytes]
_PNG = b"\x89PNG\r\n\x1a\n"
_MOST = 1 << 22  # bytes that are unpacked


def inside(content: bytes, rng: random.Random, mutate: Mutate) -> bytes | None:
    """Returns a packed file with a fault inside; None for one that is not packed, or not readable.

    Args:
        content: of a good file: gzip, zip (images, ``.ckpt``), PNG, Ogg, FLAC, HDF5 (NetCDF-4) or
            safetensors.
        rng: that chooses the part.
        mutate: puts faults into a part.
    """
    try:
        if content.startswith(b"\x1f\x8b"):
            return gzip.compress(mutate(gzip.decompress(content)[:_MOST]), mtime=0)
        if content.startswith(b"PK\x03\x04"):
            return _zip(content, rng, mutate)
        if content.startswith(_PNG):
            return _png(content, rng, mutate)
        if content.startswith(b"OggS"):
            return _ogg(content, rng, mutate)
        for begin, blocks, write in (
            (b"fLaC", flac_frames, _flac_sum),
            (b"\x89HDF", hdf5_blocks, _hdf5_sum),
        ):
            if content.startswith(begin) and (found := blocks(content)):
                return _summed(content, rng.choice(found), write, mutate)
        size = int.from_bytes(content[:8], "little")
        if content[8:9] == b"{" and 8 + size <= len(content):  # safetensors
            header = mutate(content[8 : 8 + size])
            return len(header).to_bytes(8, "little") + header + content[8 + size :]
    except (ValueError, OSError, EOFError, zlib.error, zipfile.BadZipFile):
        return None
    return None


def _zip(content: bytes, rng: random.Random, mutate: Mutate) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(stream, "w") as new:
        members = [one for one in old.infolist() if one.file_size <= _MOST]
        chosen = rng.choice(members).filename
        for one in members:
            data = old.read(one)
            new.writestr(one, mutate(data) if one.filename == chosen else data)
    return stream.getvalue()


def _png(content: bytes, rng: random.Random, mutate: Mutate) -> bytes:
    chunks, at = [], len(_PNG)
    while at + 8 <= len(content):
        size = int.from_bytes(content[at : at + 4], "big")
        chunks.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + size]))
        at += 12 + size
    chosen = rng.randrange(len(chunks))
    out = [_PNG]
    for number, (kind, data) in enumerate(chunks):
        if number == chosen:
            packed = kind == b"IDAT" and rng.random() < 0.7
            data = zlib.compress(mutate(zlib.decompress(data))) if packed else mutate(data)
        crc = zlib.crc32(kind + data).to_bytes(4, "big")
        out.append(len(data).to_bytes(4, "big") + kind + data + crc)
    return b"".join(out)


def _ogg(content: bytes, rng: random.Random, mutate: Mutate) -> bytes:
    """Damages one page's packets, of the same length, and writes the page's sum anew."""
    starts, at = [], 0
    while content[at : at + 4] == b"OggS":
        table = content[at + 27 : at + 27 + content[at + 26]]
        starts.append((at, 27 + len(table), sum(table)))
        at += 27 + len(table) + sum(table)
    begin, head, size = rng.choice(starts)
    data = mutate(content[begin + head : begin + head + size])[:size].ljust(size, b"\0")
    page = bytearray(content[begin : begin + head] + data)
    page[22:26] = bytes(4)
    page[22:26] = ogg_sum(bytes(page)).to_bytes(4, "little")
    return content[:begin] + bytes(page) + content[begin + head + size :]


def ogg_sum(page: bytes) -> int:
    """Returns the checksum of RFC 3533: CRC-32 of polynomial 04c11db7, not reflected, from 0."""
    crc = 0
    for byte in page:
        crc ^= byte << 24
        for _ in range(8):
            crc = (crc << 1 ^ (0x04C11DB7 if crc & 0x80000000 else 0)) & 0xFFFFFFFF
    return crc


def _summed(
    content: bytes, block: tuple[int, int], write: Callable[[bytes], bytes], mutate: Mutate
) -> bytes:
    """Damages a block that ends in its sum, keeping its first four bytes and its size."""
    begin, end = block
    size = len(write(b""))
    inner = content[begin + 4 : end - size]
    body = content[begin : begin + 4] + mutate(inner)[: len(inner)].ljust(len(inner), b"\0")
    return content[:begin] + body + write(body) + content[end:]


@lru_cache
def flac_frames(content: bytes) -> list[tuple[int, int]]:
    """Returns begin and end of a FLAC file's frames: from a sync code to one, or to the end, behind
    a sum that agrees."""
    places = [n for n in range(len(content)) if content[n : n + 2] == b"\xff\xf8"]
    found = []
    for begin in places:
        for end in [one for one in [*places, len(content)] if one > begin + 6]:
            if _flac_sum(content[begin : end - 2]) == content[end - 2 : end]:
                found.append((begin, end))  # the next ones would hold this and more
                break
    return found


def _flac_sum(frame: bytes) -> bytes:
    """Returns the checksum of RFC 9639, 9.3: CRC-16 of polynomial 8005, not reflected, from 0."""
    crc = 0
    for byte in frame:
        crc ^= byte << 8
        for _ in range(8):
            crc = (crc << 1 ^ (0x8005 if crc & 0x8000 else 0)) & 0xFFFF
    return crc.to_bytes(2, "big")


@lru_cache
def hdf5_blocks(content: bytes) -> list[tuple[int, int]]:
    """Returns begin and end of the object headers of an HDF5 file and of their continuations, which
    end in a sum that agrees."""
    found = []
    for name in (b"OHDR", b"OCHK"):
        begin = content.find(name)
        while begin >= 0:
            for end in range(begin + 8, min(begin + 1024, len(content)) + 1):
                if _hdf5_sum(content[begin : end - 4]) == content[end - 4 : end]:
                    found.append((begin, end))
                    break
            begin = content.find(name, begin + 1)
    return found


def _hdf5_sum(block: bytes) -> bytes:
    """Returns the checksum of HDF5 metadata: lookup3 of Bob Jenkins (hashlittle), from 0."""

    def turned(x: int, by: int) -> int:
        return (x << by | x >> 32 - by) & 0xFFFFFFFF

    a = b = c = (0xDEADBEEF + len(block)) & 0xFFFFFFFF
    at = 0
    while True:
        words = block[at : at + 12].ljust(12, b"\0")
        last = len(block) - at <= 12
        if last and len(block) == at:
            return c.to_bytes(4, "little")
        a, b, c = (
            (x + int.from_bytes(words[4 * i : 4 * i + 4], "little")) & 0xFFFFFFFF
            for i, x in enumerate((a, b, c))
        )
        if last:
            break
        for by in (4, 6, 8, 16, 19, 4):
            # Each turn exchanges the roles: what was (a, b, c) is (b, c, a) in the next.
            a = (a - c) & 0xFFFFFFFF ^ turned(c, by)
            c = (c + b) & 0xFFFFFFFF
            a, b, c = b, c, a
        at += 12
    for by in (14, 11, 25, 16, 4, 14, 24):
        # Likewise; the last one to change is then called b.
        c = ((c ^ b) - turned(b, by)) & 0xFFFFFFFF
        a, b, c = b, c, a
    return b.to_bytes(4, "little")
