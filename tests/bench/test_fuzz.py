"""Every reader against damaged files: a small run of ``make fuzz``, and the harness itself."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from longseq.bench import fuzz
from longseq.bench.fuzz_targets import TARGETS, Target
from longseq.core.errors import DataError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits by Linux's rules")


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_a_reader_answers_with_content_or_one_line(name: str) -> None:
    outcome = fuzz.run(TARGETS[name], 25)
    assert outcome.counts["read"] + outcome.counts["refused"] == 25, (outcome.counts, outcome.first)


def _behave(path: Path) -> object:
    match path.read_bytes()[:1]:
        case b"a":
            raise DataError("a line", path=path)
        case b"b":
            raise KeyError("foreign")
        case b"c":
            os.kill(os.getpid(), signal.SIGSEGV)
        case b"d":
            return bytearray(2 << 30)
        case b"e":
            while True:
                pass
    return path


def test_faults_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    target = Target("x", ".bin", lambda _folder: [b"z"], _behave)
    monkeypatch.setattr(fuzz, "content_of", lambda _target, _seeds, number: b"zabcde"[number:])
    monkeypatch.setattr(fuzz, "SECONDS", 0.2)
    outcome = fuzz.run(target, 6)
    assert outcome.counts["read"] == outcome.counts["refused"] == 1 and outcome.faults == 4
    found = {name.partition(" at ")[0]: number for name, number in outcome.first.items()}
    assert found == {
        "read": 0,
        "refused": 1,
        "KeyError": 2,
        f"crash by signal {int(signal.SIGSEGV)}": 3,
        "out of memory": 4,
        "hang": 5,
    }


def test_inputs_are_the_same_each_time() -> None:
    target, seeds = TARGETS["bed"], [b"a\t0\t5\n"]
    first = [fuzz.content_of(target, seeds, number) for number in range(50)]
    assert first == [fuzz.content_of(target, seeds, number) for number in range(50)]
    assert len(set(first)) > 40
