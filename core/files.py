"""Outputs that are either whole or absent: written to a temporary name beside the target, then
renamed."""

from __future__ import annotations

import contextlib
import difflib
import errno
import gzip
import os
import platform
import re
import shutil
import struct
import tempfile
import time
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, cast

from longseq.core.errors import ConfigError, DataError, LongseqError

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None  # type: ignore[assignment]

ZIP_ERRORS = (
    *(zipfile.BadZipFile, zlib.error, struct.error, OSError, EOFError, RuntimeError),
    *(NotImplementedError, ValueError, LookupError, OverflowError),
)
"""What Python's ``zipfile`` raises of damaged archives, encrypted ones and unknown packings."""
# The empty block with which every complete bgzip file ends (SAM specification, section 4.1.2).
_BGZIP_END = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path beside the target and renames it to it if the block succeeds.

    A link is followed: what it points to is replaced. A device, a pipe or the like is never
    replaced: the temporary file is copied into it. What is renamed has reached the disk before.

    Args:
        path: the final file, "~" for the home folder; missing parent folders are made.

    Raises:
        DataError: if ``path`` is a folder, or cannot be written: no room, no right, too long a
            name.
    """
    target = _target(path)
    special = target.exists() and not target.is_file()
    folder = Path(tempfile.gettempdir()) if special else target.parent
    temporary: Path | None = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        sweep(str(folder))
        # A name that is at its limit by itself leaves no room for a longer one.
        handle, name = tempfile.mkstemp(
            dir=folder,
            prefix=f".{target.stem[:32]}.{_HOST}-{os.getpid()}-",
            suffix=target.suffix[:16],
        )
        os.close(handle)
        temporary = Path(name)
        yield temporary
        if special:
            with temporary.open("rb") as source, target.open("wb") as sink:
                shutil.copyfileobj(source, sink)
            return
        # mkstemp makes the file private to the user; give it the permissions that open() would
        # have given.
        os.chmod(temporary, 0o666 & ~_UMASK)
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, target)
    except OSError as error:
        reason = _WRITING.get(error.errno or 0)
        if reason is None or not _is_about(error, folder):
            raise
        raise DataError(f"cannot be written: {reason}", path=path) from error
    except LongseqError:
        raise
    except Exception as error:
        reason = None if temporary is None else _said(error) or _no_more(temporary)
        if reason is None:
            raise
        raise DataError(f"cannot be written: {reason}", path=path) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _said(error: Exception) -> str | None:
    """Returns why a writer in Rust or C (safetensors, HDF5) could not write, if its text says."""
    found = re.search(r"\b(?:os error|errno =) (\d{1,4})\b", str(error))
    return _WRITING.get(int(found[1])) if found else None


def _no_more(temporary: Path) -> str | None:
    """Returns why a file takes no more bytes, or None if it does. torch's archive writer ends on a
    full disk in an error that does not say so."""
    try:
        with temporary.open("ab") as file:
            file.write(bytes(1 << 16))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return _WRITING.get(error.errno or 0)
    return None


@lru_cache(maxsize=1024)  # once for a folder: a process that writes many files lists it once
def sweep(folder: str) -> None:
    """Removes the temporary files that dead processes of this machine have left in a folder, and
    those of other machines after a week.

    Args:
        folder: its path.
    """
    for name in os.listdir(folder):
        found = _TEMPORARY.fullmatch(name)
        if not found:
            continue
        file = Path(folder) / name
        with contextlib.suppress(OSError):
            if found["host"] == _HOST:
                left = not _alive(int(found["pid"]))
            else:
                left = time.time() - file.stat().st_mtime > _WEEK
            if left:
                file.unlink()


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    return True


def check_writable(path: str | Path) -> None:
    """Checks that an output can be written, before the work for it is done.

    Args:
        path: of ``atomic_path``.

    Raises:
        DataError: as there.
    """
    target = _target(path)
    if target.exists() and not target.is_file():
        reason = None if os.access(target, os.W_OK) else errno.EACCES
    else:
        folder = next(one for one in target.parents if one.exists())
        if not folder.is_dir():
            reason = errno.ENOTDIR
        elif not os.access(folder, os.W_OK | os.X_OK):
            read_only = getattr(os, "ST_RDONLY", 1) & os.statvfs(folder).f_flag
            reason = errno.EROFS if read_only else errno.EACCES
        else:
            usage = shutil.disk_usage(folder)  # of no size: /proc and the like hold no files
            reason = errno.EROFS if not usage.total else None if usage.free else errno.ENOSPC
    if reason is not None:
        raise DataError(f"cannot be written: {_WRITING[reason]}", path=path)


def hold_folder(folder: str | Path, what: str, hint: str) -> int | None:
    """Locks a folder that one process alone is to write; returns the handle whose closing, or this
    process's end, unlocks it, or None where the system or the disk has no locks.

    Args:
        folder: that exists.
        what: writes there, for the message, for example "another run".
        hint: what to do, for the message.

    Raises:
        DataError: if it is locked, by another process or by this one.
    """
    if fcntl is None:
        return None
    try:
        handle = os.open(folder, os.O_RDONLY)
    except PermissionError:  # one that can be written and not listed
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise DataError(f"{what} is writing here", path=folder, hint=hint) from None
    except OSError:
        os.close(handle)
        return None
    return handle


def full_disk(
    error: BaseException | None, where: str | Path = "a file of this command"
) -> DataError | None:
    """Returns what to tell of an error that means that a disk, or a user's share of one, is full;
    None of any other.

    Args:
        error: any, as it was raised where a file was opened or written without ``atomic_path``.
        where: what is written there, for an error that names no file.
    """
    if not isinstance(error, OSError) or error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return None
    path = where if error.filename is None else os.fsdecode(error.filename)
    return DataError(f"cannot be written: {_WRITING[error.errno]}", path=path)


def refuse_overwriting(
    out: str | Path, inputs: Iterable[str | Path | None], option: str = ""
) -> None:
    """Checks that what is written is not among what is read, before anything is read.

    Args:
        out: that ``atomic_path`` is to write.
        inputs: files, under whatever names: links, "~", other cases where the disk sees none; what
            is no file, or None, is passed over.
        option: that named the output, for the message.

    Raises:
        ConfigError: if it is.
    """
    if not (target := Path(out).expanduser()).is_file():
        return
    for one in inputs:
        for path in () if one is None else (Path(one), Path(one).expanduser()):
            if _is_file(path) and target.samefile(path):
                raise ConfigError(f"{option}{out} would overwrite the input {one}")


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a text of no path: too long, or with a zero in it
        return False


def _target(path: str | Path) -> Path:
    """Returns what is to be written: links followed, "~" the home folder; never a folder."""
    target = Path(os.path.realpath(Path(path).expanduser()))
    if any(len(os.fsencode(part)) > 255 for part in target.parts):
        raise DataError(f"cannot be written: {_WRITING[errno.ENAMETOOLONG]}", path=path)
    if target.is_dir():
        raise DataError("is a folder, a file name is needed", path=path)
    return target


def _is_about(error: OSError, folder: Path) -> bool:
    """Returns whether an error is of writing into a folder, not of a file that the block reads."""
    if not error.filename:
        return True
    file = Path(os.fsdecode(error.filename))
    return file == folder or folder in file.parents or file in folder.parents


def _umask() -> int:
    """Returns the process's mask of permissions, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _machine() -> str:
    """Returns what process numbers are of: the machine, and on Linux the container in it."""
    try:
        numbers = os.readlink("/proc/self/ns/pid")
    except OSError:
        numbers = ""
    return f"{zlib.crc32(f'{platform.node()} {numbers}'.encode()):08x}"


_HOST = _machine()
_TEMPORARY = re.compile(r"\..{0,32}\.(?P<host>[0-9a-f]{8})-(?P<pid>\d{1,9})-\w{8}(\..{0,15})?")
_WEEK = 7 * 86400
_UMASK = _umask()  # once, on import: between the two calls other threads would write without one
_WRITING = {
    errno.ENOSPC: "no space is left on the disk",
    errno.EFBIG: "the file is larger than is allowed",
    errno.EDQUOT: "the quota is used up",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.EROFS: "the file system is read-only",
    errno.ENAMETOOLONG: "the name is too long",
    errno.ENOTDIR: "a part of its path is a file",
}


EARLY_BYTES = 1 << 24
"""A file up to this size is read whole before a training is set up, so that its faults are told at
once."""


def require_file(path: str | Path, what: str = "file", samples: Iterable[str] = ()) -> Path:
    """Returns ``path`` if it is a readable, non-empty file.

    Args:
        path: the file.
        what: the kind of file, for the message.
        samples: names of packaged ones, which may be meant.

    Raises:
        DataError: if it is missing, a folder, unreadable or empty.
    """
    file = Path(path)
    if not file.exists():
        near = difflib.get_close_matches(str(path), list(samples), n=1)
        hint = f"did you mean the packaged {near[0]!r}?" if near else None
        raise DataError(f"no such {what}", path=file, hint=hint)
    if not file.is_file():
        raise DataError(f"is not a file, as the {what} has to be", path=file)
    if not os.access(file, os.R_OK):
        raise DataError(f"the {what} is not readable", path=file)
    if file.stat().st_size == 0:
        raise DataError(f"the {what} is empty", path=file)
    return file


def is_gzip(path: str | Path) -> bool:
    """Returns whether a file is compressed by gzip, by its first bytes."""
    with Path(path).open("rb") as file:
        return file.read(2) == b"\x1f\x8b"


def is_bgzip(path: str | Path) -> bool:
    """Returns whether a file is compressed by bgzip, whose blocks are gzip files of their own.

    Raises:
        DataError: if its last block is not there: cut between two blocks, it is sound gzip.
    """
    with Path(path).open("rb") as file:
        head = file.read(14)
        # A bgzip block carries its length in a gzip extra field named BC.
        found = head[:2] == b"\x1f\x8b" and head[12:] == b"BC" and head[3] & 4 > 0
        if found:
            file.seek(-min(len(_BGZIP_END), os.fstat(file.fileno()).st_size), os.SEEK_END)
            if file.read() != _BGZIP_END:
                hint = "copy it again; or, if it is whole: gzip -dc old.gz | bgzip > new.gz"
                said = "truncated bgzip file: its end marker is missing"
                raise DataError(said, path=path, hint=hint)
    return found


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
    is_bgzip(path)  # raises where blocks are missing at its end, which gzip does not see
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
