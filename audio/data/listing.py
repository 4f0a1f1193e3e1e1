"""Listing the audio files of a folder."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from longseq.audio.data.reading import is_audio_name, sniff
from longseq.core.errors import DataError


def _walk(folder: Path, seen: set[tuple[int, int]], links: list[Path]) -> Iterator[Path]:
    """Yields the files of a folder, hidden ones left out; collects links to folders."""
    for where, folders, names in os.walk(folder):
        try:
            status = os.stat(where)
        except OSError:  # removed meanwhile
            continue
        seen.add((status.st_dev, status.st_ino))
        shown = sorted(name for name in folders if not name.startswith("."))
        folders[:] = [name for name in shown if not os.path.islink(os.path.join(where, name))]
        links += [Path(where) / name for name in shown if name not in folders]
        for name in sorted(names):
            if not name.startswith("."):
                yield Path(where) / name


def list_audio(root: str | Path) -> tuple[list[Path], list[Path]]:
    """Lists the files of a folder, searched to any depth, in order; links to folders are followed.

    A folder that is reached in several ways is read once, under its own name if it has one here.

    Args:
        root: a folder, or one file.

    Returns:
        Files that are audio by name or by content, and the other files; hidden ones are left out.

    Raises:
        DataError: if there is no such folder or file.
    """
    folder = Path(root)
    if not folder.exists():
        raise DataError("no such file or folder", path=folder)
    if folder.is_file():
        return [folder], []
    audio, other = [], []
    seen: set[tuple[int, int]] = set()
    links: list[Path] = []
    found = list(_walk(folder, seen, links))
    while links:
        link = links.pop(0)
        status = link.stat()
        if (status.st_dev, status.st_ino) not in seen:
            found += _walk(link, seen, links)
    for path in sorted(found, key=lambda path: os.fsencode(path.relative_to(folder))):
        (audio if is_audio_name(path) or _is_audio(path) else other).append(path)
    return audio, other


def _is_audio(path: Path) -> bool:
    try:
        return path.is_file() and os.access(path, os.R_OK) and sniff(path) is not None
    except OSError:
        return False


def outside(files: Sequence[Path], root: str | Path, out: str | Path | None) -> list[Path]:
    """Returns the files of a folder without those that an earlier run wrote to a folder in it.

    Args:
        files: inside ``root``.
        root: the folder, or one file.
        out: folder that results go to; only if it lies inside ``root`` is anything left out.
    """
    place = Path(out or root).resolve()
    if Path(root).resolve() not in place.parents:
        return list(files)
    return [file for file in files if place not in file.resolve().parents]
