"""The mutation sample: what is mutated, and that a fault is noticed, missed or out of time."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from longseq.bench import mutants

SOURCE = """
def twice(x: int | None = 3) -> float | None:
    if x is None or x < 0:
        return None
    return 2 * x
"""


def test_only_what_is_executed_is_mutated() -> None:
    found = mutants.mutations(SOURCE, "a.py")
    texts = {mutants.mutated(SOURCE, one) for one in found}
    assert len(texts) == len(found) and SOURCE not in texts
    assert all("(x: int | None = " in text and ") -> float | None:" in text for text in texts)
    assert any("return 2 / x" in text for text in texts)
    assert any("x is None and x < 0" in text for text in texts)


def test_the_sample_is_the_same_for_one_seed(tmp_path: Path) -> None:
    (tmp_path / "ops").mkdir()
    (tmp_path / "ops" / "a.py").write_text(SOURCE)
    (tmp_path / "ops" / "cuda.py").write_text(SOURCE)
    first = mutants.sample(tmp_path, ["ops"], 4, 1)
    assert (
        first == mutants.sample(tmp_path, ["ops"], 4, 1) != mutants.sample(tmp_path, ["ops"], 4, 2)
    )
    assert {one.file for one in first} == {"ops/a.py"}
    assert len({(one.line, one.column) for one in first}) == 4


def test_quick_tests_of_many_functions_come_first() -> None:
    seconds = {"t.py::a[1]": 1.0, "t.py::a[2]": 1.5, "t.py::b": 2.0, "t.py::c": 9.0}
    assert mutants.select(list(seconds), seconds, 4.6) == ["t.py::a[1]", "t.py::b", "t.py::a[2]"]
    assert mutants.select(["t.py::c"], seconds, 1) == ["t.py::c"]


@pytest.mark.parametrize(
    ("body", "what"),
    [
        ("assert 1 == 1", "survived"),
        ("assert 1 == 2", "killed"),
        ("import os; os._exit(3)", "killed"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGXCPU)", "out of time"),
    ],
)
def test_what_becomes_of_a_mutant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, what: str
) -> None:
    (tmp_path / "test_it.py").write_text(f"def test_it():\n    {body}\n")
    monkeypatch.chdir(tmp_path)
    assert mutants.run_tests(["test_it.py"], tmp_path / "log") == what


def test_a_line_that_no_test_was_seen_to_execute_is_left_to_all_of_its_module() -> None:
    lines = {"a.py": {"1": [], "3": ["t::b", "t::a"], "4": ["t::a"]}}
    found = {
        line: mutants.executing(lines, mutants.Mutation("a.py", line, 0, "x", 0))
        for line in (1, 2, 4)
    }
    assert found == {1: ["t::a", "t::b"], 2: ["t::a", "t::b"], 4: ["t::a"]}
    assert mutants.executing(lines, mutants.Mutation("b.py", 1, 0, "x", 0)) == []


def test_an_answer_holds_for_one_text_and_one_place(tmp_path: Path) -> None:
    """A run that was cut is gone on with, whatever has been changed meanwhile."""
    (tmp_path / "core" / "ops").mkdir(parents=True)
    path, results = tmp_path / "core" / "ops" / "a.py", tmp_path / "results.jsonl"
    path.write_text(SOURCE)
    chosen = mutants.sample(tmp_path, ["core"], 3, 1)
    assert mutants.answers(tmp_path, chosen, results) == [None] * 3
    lines = []
    for one, what in zip(chosen, ("killed", "survived")):
        entry = {"number": 9, **asdict(one), "text": mutants._digest(SOURCE), "what": what}
        lines.append(json.dumps({**entry, "tests": 1, "of": 2}))
    results.write_text("\n".join([*lines, lines[0][:40]]))  # the last one was cut
    found = mutants.answers(tmp_path, chosen, results)
    assert [one and one["what"] for one in found] == ["killed", "survived", None]
    text, share = mutants.report(tmp_path, chosen, results)
    assert share == 1 / 3 and "core/ops: 1 of 3 killed (33%)" in text
    assert "survived, 1 of 2 tests" in text and "not run" in text
    path.write_text(SOURCE + "\nMORE = 1\n")
    assert mutants.answers(tmp_path, chosen, results) == [None] * 3


def test_only_a_process_that_does_nothing_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sleeps = "def test_it():\n    import time\n    time.sleep(600)\n"
    (tmp_path / "test_it.py").write_text(sleeps)
    monkeypatch.chdir(tmp_path)
    assert mutants.run_tests(["test_it.py"], tmp_path / "log", idle=2.0) == "out of time"
