"""``longseq vision forge``: forged images with exact masks from photographs, to train on."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from longseq.core.checks import check_positive
from longseq.core.command_line import CommandParser
from longseq.core.errors import ConfigError, DataError
from longseq.core.files import atomic_path
from longseq.core.tables import write_rows
from longseq.vision.data.photographs import Photographs, as_bytes, image_files
from longseq.vision.manipulation.forging import as_jpeg, forge
from longseq.vision.video.moving_shapes import load_photographs, part_of

_SHARES = {"train": 0.7, "valid": 0.15, "test": 0.15}
_ENOUGH = 10


def photographs_by_part(
    pictures: Sequence[np.ndarray], seed: int
) -> tuple[dict[str, Sequence[np.ndarray]], str]:
    """Returns which photographs, or columns of them, a part is made of, and how they were split.

    Args:
        pictures: bytes (H, W, 3); ``Photographs`` are not read here if there are ten and more.
        seed: of the split.
    """
    if len(pictures) < _ENOUGH:
        parts = {part: [part_of(one, part) for one in pictures] for part in _SHARES}
        return dict(parts), "columns of the same photographs"
    order = np.random.default_rng(seed).permutation(len(pictures)).tolist()
    held = max(1, round(_SHARES["valid"] * len(pictures)))
    rows = {"valid": order[:held], "test": order[held : 2 * held], "train": order[2 * held :]}
    return {part: _Chosen(pictures, rows[part]) for part in _SHARES}, "photographs of its own"


class _Chosen(Sequence[np.ndarray]):
    """Some of the photographs, not copied.

    Args:
        pictures: all.
        rows: which of them.
    """

    def __init__(self, pictures: Sequence[np.ndarray], rows: Sequence[int]) -> None:
        self.pictures, self.rows = pictures, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        return self.pictures[self.rows[index]]


def write_forgeries(
    source: str, out: str | Path, count: int, side: int, authentic: float = 0.1, seed: int = 0
) -> str:
    """Writes ``train/``, ``valid/`` and ``test/`` with ``images/`` (JPEG) and ``masks/`` (PNG, 255
    where a pixel was replaced), and ``forgeries.csv``; returns how the parts were split.

    Args:
        source: "sklearn", or a folder or zip of photographs.
        out: folder to write to.
        count: images in all.
        side: of an image in pixels.
        authentic: share of the images in which nothing is replaced.
        seed: of every draw.

    Raises:
        DataError: if there are no photographs, or one is too small, or the folder holds a set.
    """
    from PIL import Image

    root = Path(out)
    for part in _SHARES:
        if (root / part).exists():
            raise DataError("holds a set already", path=root / part, hint="choose another --out")
    if source == "sklearn":
        photographs: Sequence[np.ndarray] = [as_bytes(one) for one in load_photographs(source)]
    else:
        photographs = Photographs(image_files(source))
    parts, how = photographs_by_part(photographs, seed)
    # All are read once, so that a bad one is told before anything is written.
    read = 0
    for pictures in parts.values():
        for one in pictures:
            read += 1
            if sys.stderr.isatty():
                print(f"\r{read} photographs", end="", file=sys.stderr)
            if min(one.shape[:2]) < side + 8:
                raise DataError(
                    f"a photograph has {one.shape[1]} × {one.shape[0]} pixels for a part, "
                    f"{side + 8} are needed on either side",
                    path=source,
                    hint="choose a smaller --size, or larger photographs",
                )
    rows: list[list[str | float | None]] = []
    for number, (part, share) in enumerate(_SHARES.items()):
        for index in range(max(2, round(share * count))):
            made = forge(np.random.default_rng((seed, number, index)), parts[part], side, authentic)
            name = f"{index:05d}"
            with atomic_path(root / part / "images" / f"{name}.jpg") as temporary:
                temporary.write_bytes(as_jpeg(made.changed, made.last))
            with atomic_path(root / part / "masks" / f"{name}.png") as temporary:
                Image.fromarray(255 * made.mask.astype(np.uint8)).save(temporary, "PNG")
            numbers = [made.first, made.donor or None, made.last, float(made.mask.mean())]
            rows.append([f"{part}/images/{name}.jpg", made.kind, *numbers])
            if sys.stderr.isatty():
                print(f"\r{len(rows)} images     ", end="", file=sys.stderr)
    if sys.stderr.isatty():
        print(file=sys.stderr)
    columns = {"file": "", "kind": "", "first_quality": "d", "donor_quality": "d"}
    columns |= {"last_quality": "d", "share": ".6f"}
    write_rows(root / "forgeries.csv", columns, rows)
    return how


def run(argv: Sequence[str]) -> int:
    """Runs ``longseq vision forge``."""
    parser = CommandParser(prog="longseq vision forge", description=__doc__)
    parser.add_argument("photographs", help="folder or zip of photographs, or sklearn for its two")
    parser.add_argument("--out", required=True, help="folder to write to")
    parser.add_argument("--count", type=int, default=600, help="images in all (600)")
    parser.add_argument("--size", type=int, default=96, help="side of an image in pixels (96)")
    text = "share of the images in which nothing is replaced (0.1)"
    parser.add_argument("--authentic", type=float, default=0.1, help=text)
    parser.add_argument("--seed", type=int, default=0, help="of every draw (0)")
    args = parser.parse_args(argv)
    check_positive("--count", args.count)
    if args.size < 16 or not 0 <= args.authentic < 1 or args.seed < 0:
        raise ConfigError("--size is at least 16, --authentic in [0, 1), --seed at least 0")
    how = write_forgeries(
        args.photographs, args.out, args.count, args.size, args.authentic, args.seed
    )
    print(f"{args.out}: train/, valid/ and test/, each of {how}; forgeries.csv")
    return 0
