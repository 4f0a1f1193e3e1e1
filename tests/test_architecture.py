"""Every file and folder that docs/architecture.md names is there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
MADE = {"config.yaml"}
"""Files that a run writes."""


def test_the_tree_is_that_of_the_page() -> None:
    tree, top, named = PAGE.split("```")[1], "", 0
    for line in tree.splitlines():
        if start := re.match(r"(\w+)/", line):
            top = start[1]
            assert (ROOT / top).is_dir(), top
            line = line.removeprefix(start[0])
        for name in re.findall(r"(?<![\w./])\w+(?:/|\.py)", line):
            assert any((ROOT / top).rglob(name.rstrip("/"))), f"{top}/…/{name}"
            named += 1
    assert named > 60


def test_paths_in_the_text_are_there() -> None:
    text = "".join(PAGE.split("```")[::2])
    paths = set(re.findall(r"`([\w./*-]+(?:/|\.(?:py|h|cu|cuh|cpp|md|yaml)))`", text)) - MADE
    assert len(paths) > 20
    for path in sorted(paths):
        assert any(ROOT.glob(path)) or any(
            any((ROOT / top).rglob(path.rstrip("/"))) for top in ("core", "bench", "tests", "docs")
        ), path
