"""Outputs that are either whole or absent: written to a temporary name beside the target, then
renamed."""

from __future__ import annotations

import gzip
import os
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from longseq.core.errors import DataError


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path beside ``path`` and renames it to ``path`` if the block succeeds.

    Args:
        path: the final file; missing parent folders are made.

    Raises:
        DataError: if ``path`` is a folder.
    """
    target = Path(path)
    if target.is_dir():
        raise DataError("is a folder, a file name is needed", path=target)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(
        dir=target.parent, prefix=f".{target.stem}.", suffix=target.suffix
    )
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp makes the file private to the user; give it the permissions that open() would have
        # given.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


EARLY_BYTES = 1 << 24
"""A file up to this size is read whole before a training is set up, so that its faults are told at
once."""


def require_file(path: str | Path, what: str = "file") -> Path:
    """Returns ``path`` if it is a readable, non-empty file.

    Args:
        path: the file.
        what: the kind of file, for the message.

    Raises:
        DataError: if it is missing, a folder, unreadable or empty.
    """
    file = Path(path)
    if not file.exists():
        raise DataError(f"no such {what}", path=file)
    if not file.is_file():
        raise DataError(f"is not a file, a {what} is needed", path=file)
    if not os.access(file, os.R_OK):
        raise DataError(f"the {what} is not readable", path=file)
    if file.stat().st_size == 0:
        raise DataError(f"the {what} is empty", path=file)
    return file


def is_gzip(path: str | Path) -> bool:
    """Returns whether a file is compressed by gzip, by its first bytes."""
    with Path(path).open("rb") as file:
        return file.read(2) == b"\x1f\x8b"


@contextmanager
def open_unzipped(path: str | Path, what: str = "file") -> Iterator[BinaryIO]:
    """Opens a file that may be compressed by gzip, whatever its name.

    Args:
        path: the file.
        what: the kind of file, for the message.

    Yields:
        Its content, unpacked.

    Raises:
        DataError: as ``require_file``, and if the compression turns out to be damaged or cut short.
    """
    path = require_file(path, what)
    try:
        with gzip.open(path) if is_gzip(path) else path.open("rb") as file:
            yield cast(BinaryIO, file)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"truncated or damaged gzip file: {error}", path=path) from None


def cache_dir(part: str) -> Path:
    """Returns a folder for what can be made again: LONGSEQ_CACHE_DIR or ~/.cache/longseq, and
    ``part`` in it.

    Args:
        part: the folder's name, for example "genomics".

    Raises:
        DataError: if it cannot be written.
    """
    folder = Path(os.environ.get("LONGSEQ_CACHE_DIR") or Path.home() / ".cache" / "longseq") / part
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"cannot make the cache folder: {error.strerror}",
            path=folder,
            hint="set LONGSEQ_CACHE_DIR",
        ) from None
    if not os.access(folder, os.W_OK):
        raise DataError(
            "the cache folder is not writable", path=folder, hint="set LONGSEQ_CACHE_DIR"
        )
    return folder
