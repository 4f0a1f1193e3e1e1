"""Files that training and evaluation share: scores on them say nothing of new images."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping

from longseq.core.errors import DataError
from longseq.vision.data.images import FileImages
from longseq.vision.data.parts import CHECKED, Part


def say_doubles(parts: Mapping[str, Part], source: str) -> None:
    """Says on stderr how many images for validation and test are files, to the byte, that training
    has too; of sets of up to ``CHECKED`` images.

    Args:
        parts: "train", and perhaps "valid" and "test".
        source: their set, for the message.
    """
    if sum(map(len, parts.values())) > CHECKED:
        return
    known = _prints(parts["train"])
    for name, part in parts.items():
        mine = {} if name == "train" else _prints(part)
        shared = [one for one in mine if one in known]
        if shared:
            count = sum(len(mine[one]) for one in shared)
            first = part.name(mine[shared[0]][0]), parts["train"].name(known[shared[0]][0])
            print(
                f"note: {source}: {count} of {len(part)} images of the {name} part are files of "
                f"training too, such as {first[0]} and {first[1]}",
                file=sys.stderr,
            )


def _prints(part: Part) -> dict[bytes, list[int]]:
    """Returns what contents a part's files have → their numbers in it."""
    found: dict[bytes, list[int]] = {}
    if isinstance(part.images, FileImages):
        for number, index in enumerate(part.indices):
            try:
                content = part.images.content(int(index))
            except (DataError, OSError):
                continue  # it is left out, and said, elsewhere
            found.setdefault(hashlib.blake2b(content, digest_size=16).digest(), []).append(number)
    return found
