"""Damage behind checksums and lengths: what is packed is unpacked, damaged and packed again, so
that a reader gets further than to the sum that does not agree."""

from __future__ import annotations

import gzip
import io
import random
import zipfile
import zlib
from collections.abc import Callable

Mutate = Callable[[bytes], bytes]
_PNG = b"\x89PNG\r\n\x1a\n"
_MOST = 1 << 22  # bytes that are unpacked


def inside(content: bytes, rng: random.Random, mutate: Mutate) -> bytes | None:
    """Returns a packed file with a fault inside; None for one that is not packed, or not readable.

    Args:
        content: of a good file: gzip, zip (images, ``.ckpt``), PNG, Ogg or safetensors.
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
    page[22:26] = _ogg_sum(bytes(page)).to_bytes(4, "little")
    return content[:begin] + bytes(page) + content[begin + head + size :]


def _ogg_sum(page: bytes) -> int:
    """Returns the checksum of RFC 3533: CRC-32 of polynomial 04c11db7, not reflected, from 0."""
    crc = 0
    for byte in page:
        crc ^= byte << 24
        for _ in range(8):
            crc = (crc << 1 ^ (0x04C11DB7 if crc & 0x80000000 else 0)) & 0xFFFFFFFF
    return crc
