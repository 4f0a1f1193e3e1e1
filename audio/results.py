"""Results of a scan as they come: one JSON object per file, from which the table is built; a scan
that was interrupted goes on from them."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from longseq.audio.calibration import UNREADABLE
from longseq.audio.scoring import FileScore
from longseq.core.errors import DataError
from longseq.core.files import hold_folder


class ResultLog:
    """The file ``results.jsonl`` of a scan; what stands in it of the same detector is kept.

    Its first line says what made it. Only places are held in memory, not results. A last line that
    was cut off in the writing is dropped; so are results of files that have changed since, and of
    files that could not be read (what was missing may be installed by now).

    Args:
        path: the file.
        maker: what the results depend on besides the files, for example the detector's checksum.
        restart: whether to drop what it holds.

    Raises:
        DataError: if the file is something else, or another scan holds its folder.
    """

    def __init__(self, path: str | Path, maker: dict[str, Any], restart: bool = False) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # Two scans would cut off each other's results, and mix two detectors' under one name.
        hint = "wait for it, or give another --out"
        self._held = hold_folder(self.path.parent, "another scan", hint)
        try:
            self._open(maker, restart)
        except BaseException:
            self._let_go()
            raise

    def _open(self, maker: dict[str, Any], restart: bool) -> None:
        if restart:
            self.path.unlink(missing_ok=True)
        self._places: dict[str, tuple[int, list[int], str]] = {}
        self._before: dict[str, list[int]] = {}
        self.restarted = False
        first = json.dumps({"scan": maker}, sort_keys=True).encode() + b"\n"
        end = self._read(first) if self.path.exists() else 0
        self._file = self.path.open("r+b" if end else "wb")
        self._file.truncate(end)
        self._file.seek(end)
        if not end:
            self._file.write(first)
            self._file.flush()

    def _read(self, first: bytes) -> int:
        """Notes where results stand; returns the end of the last whole line, 0 to start anew."""
        with self.path.open("rb") as file:
            head = file.readline()
            if head and not head.startswith(b'{"scan": '):
                raise DataError(
                    "is no result of a scan", path=self.path, hint="choose another folder for --out"
                )
            if head != first:
                self.restarted = bool(head)
                return 0
            place = file.tell()
            for line in file:
                if not line.endswith(b"\n"):
                    break
                try:
                    row = json.loads(line)
                    found = (place, row["stamp"], row["verdict"])
                    self._places[row["path"]] = found
                except (ValueError, KeyError, TypeError):
                    break
                place += len(line)
            return place

    @staticmethod
    def stamp(file: Path) -> list[int]:
        """Returns what shows that a file has changed, or is another of the same name.

        Archives and copies set the time of writing; that of the last change of any kind is not
        theirs to set. Where the file lies tells one folder from another with equal names.
        """
        try:
            status = file.stat()
        except OSError:
            return []
        place = zlib.crc32(os.fsencode(file.resolve()))
        return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, place]

    @staticmethod
    def key(file: Path, folder: Path) -> str:
        """Returns the name of a file that results are kept under."""
        return str(file.relative_to(folder))

    def missing(self, files: Sequence[Path], folder: Path) -> list[Path]:
        """Returns the files that have no result yet.

        Args:
            files: of the scan.
            folder: that names are relative to.
        """
        wanted = []
        for file in files:
            key, stamp = self.key(file, folder), self.stamp(file)
            known = self._places.get(key)
            if known is None or known[1] != stamp or known[2] == UNREADABLE:
                wanted.append(file)
                self._before[key] = stamp
        return wanted

    def add(self, file: Path, folder: Path, score: FileScore) -> None:
        """Writes a result; it is on its way to the disk when this returns."""
        key = self.key(file, folder)
        # That of before the scoring: a file that changed meanwhile is scored again next time.
        stamp = self._before.pop(key, None) or self.stamp(file)
        # surrogateescape names survive as \udcXX.
        row = {"path": key, "stamp": stamp, **score.to_dict()}
        self._places[row["path"]] = (self._file.tell(), stamp, score.verdict)
        self._file.write(json.dumps(row).encode() + b"\n")
        self._file.flush()

    def scores(self, files: Sequence[Path], folder: Path) -> Iterator[FileScore]:
        """Yields the results of files in their order, read back one at a time."""
        with self.path.open("rb") as file:
            for path in files:
                file.seek(self._places[self.key(path, folder)][0])
                row = json.loads(file.readline())
                yield FileScore.from_dict(
                    {key: value for key, value in row.items() if key not in ("path", "stamp")}
                )

    def close(self) -> None:
        """Closes the file, its content on the disk, and lets other scans write here."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._let_go()

    def _let_go(self) -> None:
        if self._held is not None:
            os.close(self._held)
            self._held = None
