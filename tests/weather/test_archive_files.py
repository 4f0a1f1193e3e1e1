"""104 NetCDF files of Debian's ferret-datasets and libncarg-data: each is read or refused in words.

``archive_files.tsv`` is the list: what was read (name, shape, unit), or the words of the refusal.
"""

from __future__ import annotations

import csv
import os
from pathlib import Path

import pytest

from longseq.core.errors import LongseqError
from longseq.weather.data.source import read_field

SHEET = Path(__file__).with_name("archive_files.tsv")
ROOT = Path(os.environ.get("LONGSEQ_DEBIAN_DATA", "/usr/share"))


def rows() -> list[dict[str, str]]:
    with SHEET.open(newline="") as stream:
        return list(csv.DictReader(stream, delimiter="\t"))


def answer(path: Path) -> tuple[str, str]:
    """Returns "read" with what was read, or "refused" with the reason."""
    try:
        field = read_field(path)
    except LongseqError as error:
        return "refused", str(error).split(path.name, 1)[-1].lstrip(": ").strip()
    shape = "x".join(map(str, field.values.shape))
    return "read", f"{field.name} {shape} {field.units}"


def test_the_sheet_is_whole() -> None:
    found = rows()
    assert len(found) == len({row["file"] for row in found}) == 104
    answers = [row["answer"] for row in found]
    assert answers.count("read") == 26 and answers.count("refused") == 78
    assert all(row["what"] for row in found)
    # A refusal says what is there or what to do, not that reading failed.
    assert not any("damaged" in row["what"] for row in found)


@pytest.mark.skipif(
    not all((ROOT / row["file"]).exists() for row in rows()),
    reason=f"ferret-datasets and libncarg-data are not below {ROOT} (LONGSEQ_DEBIAN_DATA)",
)
@pytest.mark.filterwarnings("ignore")
def test_every_file_is_read_or_refused_as_the_sheet_says() -> None:
    found = [(row["file"], *answer(ROOT / row["file"])) for row in rows()]
    assert found == [(row["file"], row["answer"], row["what"]) for row in rows()]
