"""Tests of the program's end: what a command wrote is whole, and its exit status is kept."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

_START = """
import sys
from longseq.core.shell import cli, program
"""


def _program(code: str, *args: str, **how: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", _START + code + "\nprogram.run()", *args]
    return subprocess.run(command, text=True, timeout=120, **{"capture_output": True, **how})  # type: ignore[call-overload]


def test_output_threads_and_exit_functions_are_whole(tmp_path: Path) -> None:
    code = """
import atexit, threading, time
from concurrent.futures import ThreadPoolExecutor

def main():
    atexit.register(print, "exit function")
    threading.Thread(target=lambda: (time.sleep(0.2), print("thread"))).start()
    ThreadPoolExecutor().submit(print, "never shut down").result()
    print("x" * 100_000)
    sys.stderr.write("no end of line")
    return 143

program.attended = main
"""
    done = _program(code)
    assert done.returncode == 143
    lines = ["never shut down", "x" * 100_000, "thread", "exit function"]
    assert done.stdout.splitlines() == lines
    assert done.stderr == "no end of line"


@pytest.mark.parametrize(("args", "status"), [(["--version"], 0), (["no_such_domain"], 2)])
def test_exit_status_is_that_of_the_command(args: list[str], status: int) -> None:
    done = _program("", *args)
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr


def test_output_that_cannot_be_written_is_no_success() -> None:
    with open("/dev/full", "w") as full:
        done = _program("", "--version", capture_output=False, stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 2
    assert done.stderr.startswith("error: standard output: cannot be written: ")


@pytest.mark.parametrize("outside", ["run", "--import"])
def test_code_from_outside_has_the_interpreters_own_end(tmp_path: Path, outside: str) -> None:
    (tmp_path / "mine.py").write_text("file = open('never_closed.txt', 'w')\nfile.write('kept')\n")
    args = ["run", "mine.py"] if outside == "run" else ["--import", "mine", "--help"]
    done = _program("", *args, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "never_closed.txt").read_text() == "kept"


_WARNS = """
import warnings

def main():
    with warnings.catch_warnings():  # as a library of ours does
        warnings.warn("two\\n  lines", stacklevel=1)
        warnings.warn("later", FutureWarning, stacklevel=1)
    return 0

program.attended = main
"""


def test_warnings_are_notes_of_one_line_without_places_in_the_source(monkeypatch) -> None:
    monkeypatch.delenv("PYTHONWARNINGS", raising=False)
    assert _program(_WARNS).stderr == "note: two lines\n"
    said = _program(_WARNS, "run").stderr
    assert "UserWarning: two\n  lines" in said and "FutureWarning: later" in said
    monkeypatch.setenv("PYTHONWARNINGS", "default")
    assert "UserWarning: two\n  lines" in _program(_WARNS).stderr


_SHOWS = """
import os

def main():
    assert "torch" not in sys.modules  # which would have read the setting by now
    print(os.environ.get("GOMP_SPINCOUNT"))
    return 0

program.attended = main
"""


@pytest.mark.parametrize(
    ("command", "given", "expected"),
    [
        ("genomics", {}, "10000"),
        ("genomics", {"GOMP_SPINCOUNT": "7"}, "7"),
        ("genomics", {"OMP_WAIT_POLICY": "active"}, "None"),
        ("bench", {}, "None"),
        ("run", {}, "None"),
    ],
)
def test_waiting_threads_sleep_soon_but_where_the_user_says_otherwise(
    command: str, given: dict[str, str], expected: str
) -> None:
    kept = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = _program(_SHOWS, command, env={**kept, **given})
    assert done.stdout.split() == [expected], done.stderr
