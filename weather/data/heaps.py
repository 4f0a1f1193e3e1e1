"""Damaged heaps of HDF5 files, on which the HDF5 library itself never ends."""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

from longseq.core.errors import DataError

_SCANNED = 1 << 28
"""Bytes at the beginning and at the end of a file that are looked at: metadata lie there."""


def check_heaps(file: Path) -> None:
    """Checks the global heaps of an HDF5 file: an empty object in one of them is a loop without end
    in the library, which reads such a heap object by object.

    Args:
        file: an HDF5 file.

    Raises:
        DataError: if a heap is damaged so.
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
