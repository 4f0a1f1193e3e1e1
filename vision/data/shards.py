"""Images in tar shards (WebDataset's layout), read at random places without unpacking."""

from __future__ import annotations

import json
import os
import re
import sys
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from longseq.core.errors import DataError
from longseq.vision.data.images import MAX_BYTES, FileImages, ImageSet, is_image
from longseq.vision.data.pixels import Reading, Where

SUFFIX = ".tar"
_PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_NAMED = ("label", "cls", "class")
_MAX_LABEL = 1 << 20


@dataclass
class _Sample:
    """What a shard holds of one image: where it lies, and what says its class."""

    name: str
    shard: int
    offset: int
    size: int
    label: str | None = None


class ShardImages(FileImages):
    """Images at places in tar files; every process opens the files for itself.

    Args:
        shards: the files.
        places: of every image: shard, first byte and number of bytes, (N, 3).
        names: of the members.
        labels: (N,).
        classes: names.
        reading: how files become channels.
    """

    def __init__(
        self,
        shards: Sequence[Path],
        places: np.ndarray,
        names: Sequence[str],
        labels: Sequence[int],
        classes: Sequence[str],
        reading: Reading,
    ) -> None:
        super().__init__(shards[0].parent, names, labels, classes, reading)
        self.shards, self.places = list(shards), places
        self._open: dict[int, int] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_open": {}}

    def __del__(self) -> None:
        for descriptor in self.__dict__.get("_open", {}).values():
            os.close(descriptor)

    def where(self, index: int) -> Where:
        return Where(self.shards[int(self.places[index, 0])], self.names[index])

    def content(self, index: int) -> bytes:
        """Returns the bytes of image ``index``.

        Raises:
            DataError: naming shard and member, if it cannot be read.
        """
        shard, offset, size = (int(one) for one in self.places[index])
        if size > MAX_BYTES:
            raise self.where(index).error(f"is larger than {MAX_BYTES >> 20} MiB")
        try:
            if shard not in self._open:
                self._open[shard] = os.open(self.shards[shard], os.O_RDONLY)
            # At a place of its own: descriptors that a forked worker shares have no position.
            found = os.pread(self._open[shard], size, offset)
        except OSError as error:
            raise self.where(index).error("cannot be read") from error
        if len(found) < size:
            raise self.where(index).error("the shard is truncated")
        return found


def find_shards(source: str, part_names: Mapping[str, str]) -> dict[str, list[Path]] | None:
    """Returns the shards of every part; None if a source is none of shards.

    Args:
        source: a tar file, ``train-{000..009}.tar``, or a folder with tar files, perhaps in
            ``train/``, ``valid/`` and ``test/``.
        part_names: words in a file's or folder's name → its part.

    Raises:
        DataError: for missing or compressed shards, and for one of no part beside training ones.
    """
    path = Path(source)
    if source.lower().endswith(_PACKED):
        raise _packed(path)
    if source.lower().endswith(SUFFIX):
        files = [Path(name) for name in _expanded(source)]
        if missing := [one for one in files if not one.is_file()]:
            raise DataError("no such shard", path=missing[0])
    elif path.is_dir():
        within = sorted(one for one in path.glob("*") if one.name.lower() in part_names)
        inside = [one for folder in (path, *within) for one in sorted(folder.glob("*"))]
        files = [one for one in inside if one.name.lower().endswith(SUFFIX)]
        packed = [one for one in inside if one.name.lower().endswith(_PACKED)]
        if files and packed:
            raise _packed(packed[0])
        if not files:
            return None
    else:
        return None
    found: dict[str, list[Path]] = {}
    for file in files:
        inside = file.relative_to(path) if path.is_dir() else Path(file.name)
        words = re.split(r"[^a-z]+", str(inside).lower())
        part = next((part_names[word] for word in words if word in part_names), "")
        found.setdefault(part, []).append(file)
    rest = found.pop("", [])
    if rest and "train" in found:
        raise DataError(
            f"is of no part by its name, as {found['train'][0].name} is: train, valid or test",
            path=rest[0],
            hint="give it the name of its part, or put it into another folder",
        )
    if rest:
        found["train"] = rest
    if "train" not in found:
        raise DataError("has no shards for training", path=path)
    return found


def _packed(path: Path) -> DataError:
    return DataError(
        "is a compressed shard, in which no image can be reached by itself",
        path=path,
        hint="unpack it to .tar: images are compressed already",
    )


def _expanded(text: str) -> Iterator[str]:
    """Yields the names that numbers in braces stand for."""
    match = _RANGE.search(text)
    if match is None:
        yield text
        return
    for number in range(int(match[1]), int(match[2]) + 1):
        middle = str(number).zfill(len(match[1]))
        yield from _expanded(text[: match.start()] + middle + text[match.end() :])


def open_shards(parts: Mapping[str, Sequence[Path]], reading: Reading) -> dict[str, ImageSet]:
    """Opens the shards of every part; of the images only their places are read.

    The class of an image is its ``.cls`` file (a number or name), ``label``, ``cls`` or ``class``
    in its ``.json``, or the folder that it lies in.

    Args:
        parts: shards by part, see ``find_shards``.
        reading: how files become channels.

    Raises:
        DataError: if a shard is damaged, or an image has no class or one that training lacks.
    """
    samples = {
        part: [one for i, shard in enumerate(shards) for one in _scan(shard, i)]
        for part, shards in parts.items()
    }
    if not samples["train"]:
        raise DataError("holds no images", path=parts["train"][0])
    known = {_class(one, parts["train"]) for one in samples["train"]}
    whole = all(name.isdecimal() for name in known)
    classes = sorted(known, key=int) if whole else sorted(known)
    if len(classes) < 2:
        raise DataError(f"holds one class only, {classes[0]!r}", path=parts["train"][0])
    number = {name: i for i, name in enumerate(classes)}
    found: dict[str, ImageSet] = {}
    for part, items in samples.items():
        for one in items:
            if _class(one, parts[part]) not in number:
                raise DataError(
                    f"is of class {one.label!r}, which training does not have",
                    path=parts[part][one.shard],
                    record=one.name,
                )
        found[part] = ShardImages(
            parts[part],
            np.array([(one.shard, one.offset, one.size) for one in items], np.int64).reshape(-1, 3),
            [one.name for one in items],
            [number[_class(one, parts[part])] for one in items],
            classes,
            reading,
        )
    return found


def _class(one: _Sample, shards: Sequence[Path]) -> str:
    if one.label is None:
        raise DataError(
            "has no class",
            path=shards[one.shard],
            record=one.name,
            hint="a .cls or .json file of its name, or a folder",
        )
    return one.label


_Member = tuple[str, int, int]
"""Name, first byte and number of bytes."""


def _members(shard: Path) -> Iterator[_Member]:
    """Yields the files of a shard; by tarfile where a header is of another than the plain kind.

    tarfile takes 25 µs for a member, half of the time until the first step of a large set.

    Raises:
        tarfile.TarError: for what is no tar archive, or damaged.
    """
    found: list[_Member] = []
    with shard.open("rb") as file:
        total = os.fstat(file.fileno()).st_size
        while True:
            # Behind the end nothing is read, as it is behind an archive that is whole.
            if file.tell() > total:
                raise tarfile.ReadError("unexpected end of data")
            head = file.read(512)
            if not head.strip(b"\0"):
                yield from found
                return
            plain = len(head) == 512 and head[156:157] in (b"0", b"\0", b"5")
            if not plain or not _sums(head):
                break
            size = int(head[124:136].strip(b"\0 ") or b"0", 8)
            if head[156:157] != b"5":
                prefix = head[345:500] if head[257:263] == b"ustar\0" else b""
                parts = [one.partition(b"\0")[0] for one in (prefix, head[:100])]
                name = b"/".join(filter(None, parts)).decode("utf-8", "surrogateescape")
                found.append((name, file.tell(), size))
            file.seek(-(-size // 512) * 512, os.SEEK_CUR)
    with tarfile.open(shard, "r:") as archive:
        for member in archive:
            if is_image(member.name) and (member.issym() or member.islnk()):
                raise DataError(
                    f"is a link to {member.linkname}, not an image",
                    path=shard,
                    record=member.name,
                    hint="write the shard again with tar --dereference --hard-dereference",
                )
            if member.isreg():
                yield member.name, member.offset_data, member.size
        # tarfile ends in silence at a header that is damaged or cut off.
        end = archive.offset
    with shard.open("rb") as file:
        file.seek(end)
        if file.read(512).strip(b"\0"):
            raise tarfile.ReadError("bad header")


def _sums(head: bytes) -> bool:
    """Returns whether a header's sum is right, and its numbers are octal ones."""
    texts = [head[148:156].strip(b"\0 "), head[124:136].strip(b"\0 ")]
    if not texts[0] or any(text.strip(b"01234567") for text in texts):
        return False
    return sum(head[:148]) + sum(head[156:]) + 256 == int(texts[0], 8)


def _scan(shard: Path, number: int) -> list[_Sample]:
    """Returns the images of a shard in order; reads headers and what says their classes."""
    samples: dict[str, _Sample] = {}
    labels: dict[str, str] = {}
    try:
        with shard.open("rb") as file:
            for name, offset, size in _members(shard):
                folder, _, base = name.rpartition("/")
                stem, _, ending = base.partition(".")
                key = f"{folder}/{stem}"
                ending = ending.lower()  # as WebDataset does
                if not stem:  # hidden
                    continue
                if ending in ("cls", "json"):
                    file.seek(offset)
                    content = file.read(min(size, _MAX_LABEL))
                    label = _label(content, ending, Where(shard, name))
                    if label is not None and (ending == "cls" or key not in labels):
                        labels[key] = label  # the .cls file's, whichever comes first
                elif is_image(name):
                    if key in samples:
                        raise DataError(
                            f"{samples[key].name} has the same key", path=shard, record=name
                        )
                    parent = folder.rpartition("/")[2]
                    samples[key] = _Sample(name, number, offset, size, parent or None)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DataError(
            "is not a tar archive, or is damaged or cut off",
            path=shard,
            hint="write or copy it again",
        ) from error
    if alone := sorted(set(labels) - set(samples)):
        print(
            f"note: {shard}: {len(alone)} of its classes have no image of a known ending, such as "
            f"{alone[0].lstrip('/')}",
            file=sys.stderr,
        )
    for key, one in samples.items():
        one.label = labels.get(key, one.label)
    return list(samples.values())


def _label(content: bytes, ending: str, where: Where) -> str | None:
    try:
        text = content.decode("utf-8").strip()
        if ending == "cls":
            return text or None
        value = json.loads(text)
    except (UnicodeDecodeError, ValueError) as error:
        raise where.error(f"is no {ending} file in UTF-8") from error
    named = value if isinstance(value, dict) else {}
    found = next((named[name] for name in _NAMED if name in named), None)
    if found is not None and (isinstance(found, bool) or not isinstance(found, (int, str))):
        raise where.error(f"its class is {found!r}: a number or a name is needed")
    return None if found is None else str(found).strip()
