"""Opens whatever holds a classified set of images, and splits it: folders, zips, IDX files,
torchvision."""

from __future__ import annotations

import inspect
import re
import sys
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np

from longseq.core.errors import ConfigError, DataError, did_you_mean
from longseq.core.samples import Samples
from longseq.vision.data.canvas import canvas_parts
from longseq.vision.data.idx import PARTS, find_idx, read_idx_pair
from longseq.vision.data.images import ArrayImages, FileImages, ImageSet, list_files, list_images
from longseq.vision.data.pixels import Reading
from longseq.vision.data.shards import find_shards, open_shards

FASHION = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
SAMPLES = Samples("vision", {"fashion_mnist_sample": "fashion_mnist_sample"})
PART_NAMES = {
    "train": "train",
    "training": "train",
    "val": "valid",
    "valid": "valid",
    "validation": "valid",
    "test": "test",
    "testing": "test",
}


def part_of(folder: str) -> str | None:
    """Returns the part that a folder's name stands for, "train", "valid" or "test"; None for none.

    Args:
        folder: its name, in small or capital letters.
    """
    return PART_NAMES.get(folder.lower())


def _like_part(folder: str) -> str | None:
    """Returns the part that a word of a folder's name stands for, as in "seg_train", "val2017" or
    "testA"; None for none."""
    words = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", folder)
    return next(filter(None, map(part_of, words)), None)


def check_no_parts(root: Path, folders: Collection[str], would_be: str) -> None:
    """Refuses folders most of which are parts of a set by name, though not exactly; says fewer.

    Args:
        root: folder or zip, for messages.
        folders: names of the folders that lie in one.
        would_be: what they would be taken for.

    Raises:
        DataError: naming them.
    """
    like = sorted(filter(_like_part, folders))
    found = set(map(_like_part, like))
    flat = len(like) == len(folders) == 1 and part_of(like[0])
    if not flat and ("train" not in found or len(found) < 2):
        return
    shown = ", ".join(like[:4])
    if 2 * len(like) > len(folders):
        said = f"{shown} would be {would_be}, but are parts of a data set by name"
        hint = "name them train/, valid/ and test/ (classes are folders in these); of one part "
        raise DataError(said, path=root, hint=f"{hint}alone give its own folder")
    print(f"note: {root}: {shown} are {would_be}, and no parts of the set", file=sys.stderr)


def split_names(root: Path, names: Sequence[str]) -> tuple[list[list[str]], bool]:
    """Returns paths as folders and name, less a folder in which all lie, and whether the first
    folder of each is a part. Paths <class>/…/<part>/… are returned as <part>/<class>/….

    Args:
        root: folder or zip, for messages.
        names: paths inside it, with "/".

    Raises:
        DataError: for an image of a class that lies in no part, where others do, and for folders
            that would be classes and are parts by name.
    """
    split = [name.split("/") for name in names]
    while len({parts[0] for parts in split}) == 1 and len(split[0]) > 1 and _is_cover(split):
        split = [parts[1:] for parts in split]  # a zip of one folder
    if any(part_of(parts[0]) is not None and len(parts) > 2 for parts in split):
        return split, True
    if any(_inner_part(parts) for parts in split):
        return _parts_outside(root, names, split), True
    check_no_parts(root, {parts[0] for parts in split if len(parts) > 1}, "classes")
    return split, False


def _inner_part(parts: Sequence[str]) -> int:
    """Returns which folder of a path, below the class, is a part; 0 for none."""
    return next((i for i in range(1, len(parts) - 1) if part_of(parts[i]) is not None), 0)


def _parts_outside(root: Path, names: Sequence[str], split: Sequence[list[str]]) -> list[list[str]]:
    """Returns paths <class>/…/<part>/… as <part>/<class>/…: images of a test are none to train on.

    Raises:
        DataError: for an image of a class that lies in no part, where others do.
    """
    for name, parts in zip(names, split):
        if len(parts) > 1 and not _inner_part(parts):
            other = next(filter(_inner_part, split))
            raise DataError(
                "lies beside class folders with parts in them, such as "
                f"{'/'.join(other[: _inner_part(other) + 1])}",
                path=root,
                record=name,
                hint="sort all images into train/<class>/, valid/<class>/, test/<class>/",
            )
    found = []
    for parts in split:
        at = _inner_part(parts)
        found.append([parts[at], *parts[:at], *parts[at + 1 :]] if at else parts)
    return found


def say_stray(root: Path, names: Sequence[str], where: str) -> None:
    """Says on stderr which images are left out because of where they lie.

    Args:
        root: folder or zip.
        names: of the images.
        where: images are expected.
    """
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    print(f"note: {root}: left out, not in {where}: {shown}", file=sys.stderr)


def by_part(root: Path, names: Sequence[str]) -> dict[str, list[str]]:
    """Returns which files lie in a folder named "train", "valid" or "test", at any depth; without
    one for training, what lies in none is for training, otherwise it is left out and said.

    Args:
        root: folder or zip, for messages.
        names: paths inside it, with "/".

    Raises:
        DataError: for folders that are parts by name, though not exactly.
    """
    found: dict[str, list[str]] = {}
    folders: dict[str, set[str]] = {}  # in each folder, of what is of no part
    for name in names:
        inside = name.split("/")[:-1]
        part = next(filter(None, map(part_of, inside)), "")
        found.setdefault(part, []).append(name)
        for depth, one in enumerate([] if part else inside):
            folders.setdefault("/".join(inside[:depth]), set()).add(one)
    rest = found.pop("", [])
    if rest and "train" in found:
        say_stray(root, rest, "train/, valid/ or test/")
    elif rest:
        for beside in folders.values():
            check_no_parts(root, beside, "for training")
        found["train"] = rest
    return found


@dataclass
class Source:
    """The parts of a data set; a part that it does not bring is None.

    Args:
        train: training images.
        valid: validation images.
        test: test images.
    """

    train: ImageSet
    valid: ImageSet | None = None
    test: ImageSet | None = None


def open_source(
    source: str, reading: Reading, root: str | None = None, download: bool = False
) -> Source:
    """Opens a data set by what it is.

    - the name of a packaged sample, ``fashion_mnist_sample``;
    - a folder or zip with ``train/``, and perhaps ``valid/`` and ``test/``, of a folder for each
      class;
    - a folder or zip with a folder for each class, which may have ``train/`` and ``test/`` inside;
    - a folder with IDX files (``train-images-idx3-ubyte.gz``, …);
    - ``torchvision:<Name>``, a data set of ``torchvision.datasets`` with train and test parts;
    - tar shards (WebDataset's layout): a folder of them, or ``train-{000..009}.tar``;
    - ``canvas:<IDX files>``, their pictures far apart on large canvases, see ``canvas``.

    Args:
        source: path, ``torchvision:<Name>`` or ``canvas:<path>``.
        reading: how files become channels.
        root: folder of torchvision's data sets.
        download: whether torchvision may download.

    Raises:
        DataError: if there is no such data or it has no images.
    """
    if source.startswith("torchvision:"):
        return _torchvision(source.removeprefix("torchvision:"), reading, root, download)
    if source.startswith("canvas:"):
        return _canvas(source.removeprefix("canvas:"), reading)
    if (shards := find_shards(source, PART_NAMES)) is not None:
        found = open_shards(shards, reading)
        return Source(found["train"], found.get("valid"), found.get("test"))
    path = SAMPLES.path(source) if source in SAMPLES.names() else Path(source)
    if not path.exists():
        near = get_close_matches(source, SAMPLES.names(), n=1)
        packaged = f"did you mean the packaged {near[0]!r}? Else " if near else ""
        hint = f"{packaged}give a folder, a zip, or torchvision:<Name>"
        raise DataError("no such folder or file", path=path, hint=hint)
    if path.is_dir() and any(
        find_idx(path, part, kind) for part in PARTS for kind in ("images", "labels")
    ):
        return _idx(path, reading)
    if path.is_file() and path.suffix.lower() != ".zip":
        raise DataError("is neither a folder nor a zip", path=path)
    return _class_folders(path, reading)


def _idx(folder: Path, reading: Reading) -> Source:
    pairs = {part: read_idx_pair(folder, part) for part in PARTS}
    if pairs["train"] is None:
        raise DataError("has IDX files but none of the training part", path=folder)
    count = 1 + max(int(pair[1].max()) for pair in pairs.values() if pair is not None)
    fashion = count == len(FASHION) and "fashion" in str(folder.resolve()).lower()
    classes = list(FASHION) if fashion else [str(i) for i in range(count)]
    sets = {part: pair and ArrayImages(*pair, classes, reading) for part, pair in pairs.items()}
    assert sets["train"]
    return Source(sets["train"], None, sets["test"] or None)


def _canvas(source: str, reading: Reading) -> Source:
    found = open_source(source, Reading(channels=1))
    if not isinstance(found.train, ArrayImages) or not isinstance(found.test, ArrayImages):
        raise DataError("canvases need IDX files with a training and a test part", path=source)
    pairs = [(part.images[..., 0], part.labels) for part in (found.train, found.test)]
    return Source(*canvas_parts(pairs[0], pairs[1], found.train.classes, reading))


def _class_folders(root: Path, reading: Reading) -> Source:
    names = list_images(root)
    if not names:
        raise _no_images(root)
    split, parted = split_names(root, names)
    found: dict[str, list[tuple[str, str]]] = {}
    stray = []
    for name, parts in zip(names, split):
        part = part_of(parts[0]) if parted else "train"
        if part is None or len(parts) < 2 + parted:
            stray.append(name)
            continue
        found.setdefault(part, []).append((name, parts[parted]))
    if stray:
        where = "train/<class>/, valid/<class>/ or test/<class>/" if parted else "<class>/"
        if not found:
            raise DataError(
                "lies in no class folder", path=root, record=stray[0], hint=f"expected {where}"
            )
        say_stray(root, stray, where)
    if "train" not in found:
        others = " and ".join(sorted(found))
        raise DataError(f"has images in {others} folders and no train folder", path=root)
    classes = sorted({cls for _, cls in found["train"]})
    if len(classes) < 2:
        raise DataError(f"holds one class only, {classes[0]!r}", path=root)
    number = {cls: i for i, cls in enumerate(classes)}
    # Archives of macOS have é as e and an accent (NFD), most others as one letter (NFC).
    spelt = {unicodedata.normalize("NFC", cls): cls for cls in classes}
    if len(spelt) < len(classes):
        twice = next(cls for cls in classes if cls not in spelt.values())
        said = f"has two class folders of one name, {twice!r}, in two ways of writing it in Unicode"
        raise DataError(said, path=root, hint="rename them (NFC), or put their images into one")
    sets: dict[str, ImageSet] = {}
    for part, items in found.items():
        for name, cls in items:
            if cls not in number:
                alike = unicodedata.normalize("NFC", cls) in spelt
                hint = "train has it in another way of writing it in Unicode (NFC, NFD)"
                raise DataError(
                    f"is of class {cls!r}, which train does not have",
                    path=root,
                    record=name,
                    hint=hint if alike else None,
                )
        labels = [number[cls] for _, cls in items]
        sets[part] = FileImages(root, [name for name, _ in items], labels, classes, reading)
    return Source(sets["train"], sets.get("valid"), sets.get("test"))


def _no_images(root: Path) -> DataError:
    """Returns the error for a source without image files, which may be a set of another kind."""
    hint = "expected train/<class>/*.jpg or <class>/*.jpg"
    for name in list_files(root):
        if re.search(r"-idx\d-ubyte", name):
            said = "holds IDX files under other names, or in a folder inside it"
            hint = "give the folder of train-images-idx3-ubyte and train-labels-idx1-ubyte"
            return DataError(said, path=root, record=name, hint=hint)
        if re.search(r"(^|/)(data_batch_1|batches\.meta|meta)$", name) and root.is_dir():
            said = "looks like the files of CIFAR"
            hint = f"give torchvision:CIFAR10 (or CIFAR100), with data.root {root.parent}"
            return DataError(said, path=root, record=name, hint=hint)
    return DataError("holds no images", path=root, hint=hint)


def _is_cover(split: Sequence[Sequence[str]]) -> bool:
    """Returns whether the one top folder only holds the data set, and is none of its parts."""
    return part_of(split[0][0]) is None and any(len(parts) > 2 for parts in split)


def _needs_no_more(parameters: Mapping[str, inspect.Parameter]) -> bool:
    """Returns whether a data set opens with ``root`` and ``train`` alone."""
    rest = [one for name, one in parameters.items() if name not in ("root", "train")]
    free = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return "train" in parameters and all(
        one.default is not inspect.Parameter.empty or one.kind in free for one in rest
    )


def _torchvision(name: str, reading: Reading, root: str | None, download: bool) -> Source:
    import torchvision

    known = [
        key
        for key, cls in vars(torchvision.datasets).items()
        if inspect.isclass(cls) and _needs_no_more(inspect.signature(cls).parameters)
    ]
    if name not in known:
        raise ConfigError(
            f"torchvision has no data set {name!r} that opens with its options root and train "
            f"alone; {did_you_mean(name, known)}"
        )
    cls = getattr(torchvision.datasets, name)
    sets = []
    for train in (True, False):
        try:
            data: Any = cls(root or "data", train=train, download=download)
        except (RuntimeError, OSError) as error:
            hint = "set data.root to its folder, or data.download to true"
            raise DataError(
                f"torchvision cannot open {name}: {error}", path=root or "data", hint=hint
            ) from error
        if not hasattr(data, "data") or not hasattr(data, "targets"):
            raise ConfigError(f"torchvision's {name} gives no class to an image")
        images, labels = np.asarray(data.data), np.asarray(data.targets, np.int64)
        labels = labels[:, 0] if labels.ndim == 2 else labels  # QMNIST: the digit, and who wrote it
        classes = [str(text) for text in getattr(data, "classes", range(int(labels.max()) + 1))]
        sets.append(ArrayImages(images, labels, classes, reading))
    return Source(sets[0], None, sets[1])


def split_indices(labels: np.ndarray, fractions: Sequence[float], seed: int) -> list[np.ndarray]:
    """Returns disjoint parts of a labelled set, each with the classes in proportion; the rest comes
    last.

    Args:
        labels: class of every item (N,).
        fractions: share of every part but the last.
        seed: of the draw.

    Raises:
        ConfigError: unless the fractions are not negative and leave something, and for a negative
            seed.
    """
    if seed < 0:
        raise ConfigError(f"data.seed must be at least 0, got {seed}")
    if min(fractions, default=0) < 0 or sum(fractions) >= 1:
        raise ConfigError(
            f"fractions must be at least 0 and sum to less than 1, got {list(fractions)}"
        )
    generator = np.random.default_rng(seed)
    parts: list[list[np.ndarray]] = [[] for _ in range(len(fractions) + 1)]
    for cls in np.unique(labels):
        mine = generator.permutation(np.flatnonzero(labels == cls))
        cuts = np.rint(np.cumsum(fractions) * len(mine)).astype(int)
        for part, piece in zip(parts, np.split(mine, cuts)):
            part.append(piece)
    return [np.sort(np.concatenate(part)) if part else np.zeros(0, int) for part in parts]
