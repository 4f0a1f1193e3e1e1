"""Images that carry any number of labels: from a table, or from several class folders each."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from longseq.core.checks import check_positive
from longseq.core.errors import ConfigError, DataError
from longseq.core.tables import SUFFIXES, read_rows
from longseq.vision.data.images import FileImages, list_images
from longseq.vision.data.module import ImageData
from longseq.vision.data.pixels import Reading
from longseq.vision.data.sources import PART_NAMES, Source, part_of, say_stray, split_names

_FILE, _PART, _LABELS = ("file", "filename", "image", "path"), ("part", "split"), "labels"
_TRUE, _FALSE = ("1", "1.0", "true", "yes"), ("0", "0.0", "false", "no", "")


class LabelledImages(FileImages):
    """Image files with a row of labels each.

    Args:
        root: their folder or zip.
        names: paths inside it.
        targets: whether an image has a label, (N, K) of 0 and 1.
        classes: names of the K labels.
        reading: how files become channels.
    """

    def __init__(
        self,
        root: Path,
        names: Sequence[str],
        targets: np.ndarray,
        classes: Sequence[str],
        reading: Reading,
    ) -> None:
        # Splits keep no proportions: most combinations of labels may be there once.
        super().__init__(root, names, [0] * len(names), classes, reading)
        self.targets = targets.astype(np.float32)


def open_labelled(source: str | Path, reading: Reading) -> Source:
    """Opens images with labels.

    - A table (.csv, .tsv, .parquet) with a column ``file`` (paths from the table's folder), perhaps
      ``part`` (train, valid, test), and either ``labels`` (names with ; between them) or a column
      of 0 and 1 for every label.
    - A folder or zip of class folders, alone or in ``train/``, ``valid/`` and ``test/``: an image
      that lies in several of them under one name has all their labels, one beside them has none.

    Args:
        source: path.
        reading: how files become channels.

    Raises:
        DataError: naming file and row, if something is missing or no label.
    """
    root = Path(source)
    if not root.exists():
        raise DataError("no such file or folder", path=root, hint="give a table, folder or zip")
    if root.suffix.lower() in SUFFIXES and root.is_file():
        folder, rows = root.parent, _from_table(root)
    elif root.is_dir() or root.suffix.lower() == ".zip":
        folder, rows = root, _from_folders(root)
    else:
        raise DataError("is no table (.csv, .tsv, .parquet), folder or zip", path=root)
    if not rows.get("train"):
        raise DataError("has no images for training", path=root)
    classes = sorted({name for labels in rows["train"].values() for name in labels})
    if len(classes) < 2:
        raise DataError(f"has {len(classes)} labels in training, at least 2 are needed", path=root)
    parts = {}
    for part, items in rows.items():
        targets = np.zeros((len(items), len(classes)), np.uint8)
        for row, (name, labels) in enumerate(items.items()):
            for label in labels:
                if label not in classes:
                    raise DataError(
                        f"has the label {label!r}, which training does not have",
                        path=root,
                        record=name,
                    )
                targets[row, classes.index(label)] = 1
        parts[part] = LabelledImages(folder, list(items), targets, classes, reading)
    return Source(parts["train"], parts.get("valid"), parts.get("test"))


Rows = dict[str, dict[str, list[str]]]
"""Part → file → its labels."""


def _from_table(path: Path) -> Rows:
    rows, found = read_rows(path), Rows()
    if not rows:
        raise DataError("has no rows", path=path)
    columns = list(rows[0])
    file = next((name for name in columns if name.lower() in _FILE), None)
    if file is None:
        raise DataError(f"has no column {_FILE[0]}; it has {', '.join(columns[:8])}", path=path)
    part = next((name for name in columns if name.lower() in _PART), None)
    named_by = next((name for name in columns if name.lower() == _LABELS), None)
    classes = [name for name in columns if name not in (file, part)]
    seen = set[str]()
    for row in rows:
        name, record = row[file] or "", f"line {row.line}"
        pure = PurePosixPath(name)
        if not name or pure.is_absolute() or ".." in pure.parts:
            raise DataError(f"{name!r} is no path inside its folder", path=path, record=record)
        if not (path.parent / name).is_file():
            raise DataError(f"{name}: no such file", path=path, record=record)
        name = str(pure)  # ./a.png is a.png
        if name in seen:
            raise DataError(f"{name} stands there twice", path=path, record=record)
        seen.add(name)
        named = "train" if part is None else (row[part] or "").lower()
        if named not in PART_NAMES:
            raise DataError(
                f"{part} is {row[part or '']!r}: train, valid or test", path=path, record=record
            )
        if named_by is not None:
            text = (row[named_by] or "").strip()
            if text[:1] + text[-1:] in ("[]", "{}"):
                said = f"{named_by} is {text[:40]!r}: names with ; between them are needed"
                raise DataError(said, path=path, record=record)
            labels = [one.strip() for one in text.split(";") if one.strip()]
        else:
            labels = [name for name in classes if _is_true(row, name, path, record)]
        found.setdefault(PART_NAMES[named], {})[name] = labels
    _check_separators(found, path)
    return found


def _check_separators(rows: Rows, path: Path) -> None:
    """Checks that no label is several others with something else than ; between them."""
    items = [(name, labels) for part in rows.values() for name, labels in part.items()]
    known = {label for _, labels in items for label in labels}
    for sign in ",|":
        parts = {label: [one.strip() for one in label.split(sign)] for label in sorted(known)}
        count = Counter(one for few in parts.values() for one in set(few))
        for label, few in parts.items():
            # Every part stands somewhere else, by itself or beside others.
            if len(few) > 1 and all(count[one] > 1 for one in few):
                raise DataError(
                    f"{label!r} would be a label beside {few[0]!r} and {few[1]!r}",
                    path=path,
                    record=next(name for name, labels in items if label in labels),
                    hint="put ; between the labels of an image, or give each a column of 0 and 1",
                )


def _is_true(row: Mapping[str, str], name: str, path: Path, record: str) -> bool:
    text = (row[name] or "").strip().lower()
    if text not in (*_TRUE, *_FALSE):
        hint = f"a column {_LABELS} holds names, with ; between them; take out what is no label"
        said = f"{name} is {row[name]!r}: 0 or 1 is needed"
        raise DataError(said, path=path, record=record, hint=hint)
    return text in _TRUE


def _from_folders(root: Path) -> Rows:
    names = list_images(root)
    folders, parted = split_names(root, names)
    split = dict(zip(names, folders))
    places: dict[tuple[str, str], list[str]] = {}
    stray = []
    for name, parts in split.items():
        part = part_of(parts[0]) if parted else "train"
        if part is None:
            stray.append(name)
            continue
        places.setdefault((part, parts[-1]), []).append(name)
    if stray:
        say_stray(root, stray, "train/, valid/ or test/")
    found: Rows = {}
    depth = 1 + parted
    content = FileImages(root, names, [0] * len(names), [], Reading())
    number = {name: i for i, name in enumerate(names)}
    for (part, _), same in places.items():
        if len(same) > 1:
            prints = {hashlib.sha256(content.content(number[name])).digest() for name in same}
            if len(prints) > 1:
                raise DataError(
                    f"has another content than {same[1]}, but its name", path=root, record=same[0]
                )
        labels = [split[name][depth - 1] for name in same if len(split[name]) > depth]
        found.setdefault(part, {})[same[0]] = labels
    return found


class MultiLabelData(ImageData):
    __doc__ = (ImageData.__doc__ or "").replace(
        "Classified images from folders, a zip, IDX files or torchvision.",
        "Images with any number of labels each, from a table or from class folders.",
    )

    def _source(self) -> Source:
        check_positive("img_size", self.img_size)
        for name in ("mixup", "cutmix", "balanced"):
            if getattr(self, name):
                raise ConfigError(f"data.{name}: is for images of one class each")
        return open_labelled(self.source, self.reading)
