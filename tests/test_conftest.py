"""Every worker collects the same names of cases, and what was skipped is told by its reason."""

from __future__ import annotations

import gzip
from types import SimpleNamespace

import pytest

from .conftest import skipped_by_reason


@pytest.mark.parametrize("content", [gzip.compress(b"two workers, two times")])
def test_a_case_is_not_named_by_its_bytes(request: pytest.FixtureRequest, content: bytes) -> None:
    assert content
    assert request.node.name == "test_a_case_is_not_named_by_its_bytes[content]"


def test_what_was_skipped_is_told_by_its_reason_the_most_frequent_first() -> None:
    texts = ["needs a GPU", "no ffmpeg", "needs a GPU"]
    reports = [SimpleNamespace(longrepr=("file", 1, f"Skipped: {text}")) for text in texts]
    assert skipped_by_reason(reports) == ["    2  needs a GPU", "    1  no ffmpeg"]
