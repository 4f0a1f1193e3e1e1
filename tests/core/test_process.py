"""The command's process: signals end it in order, closed streams end no training."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from longseq.core import process

HELPER = Path(__file__).parent / "training" / "fake_domain.py"
HEAD = """
import os, runpy, signal, sys
from longseq.core import process
from longseq.core.shell import cli
"""
RUN = "sys.exit(cli.attended() or process.flush())\n"


def start(code: str, *argv: str, to: Path, **options: object) -> subprocess.Popen[bytes]:
    """Starts a program with ``longseq``'s arguments in a folder."""
    return subprocess.Popen(  # type: ignore[call-overload]
        [sys.executable, "-c", HEAD + code, *argv],
        cwd=to,
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
    )


@pytest.mark.parametrize("signum", process.ENDING)
def test_a_command_ends_in_order(signum: int, tmp_path: Path) -> None:
    """Its temporary file is removed, and the status is that of a shell."""
    code = f"""
from longseq.core.files import atomic_path
def work(argv):
    with atomic_path("out.txt") as temporary:
        temporary.write_text("half")
        os.kill(os.getpid(), {int(signum)})
        temporary.write_text("whole")
cli._dispatch = work
"""
    ended = start(code + RUN, "demo", to=tmp_path)
    _, errors = ended.communicate()
    assert ended.returncode == 128 + signum, errors
    name = "Ctrl-C" if signum == signal.SIGINT else signal.Signals(signum).name
    assert errors.decode() == f"stopped by {name}\n"
    assert list(tmp_path.iterdir()) == []


def test_an_ignored_signal_is_left_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with process.ended_by_signals():
            os.kill(os.getpid(), signal.SIGHUP)
            assert not process.takes(signal.SIGHUP)
        with pytest.raises(process.Told, match="SIGUSR2"), process.ended_by_signals():
            os.kill(os.getpid(), signal.SIGUSR2)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert signal.getsignal(signal.SIGUSR2) == signal.SIG_DFL


def closed_pipe() -> int:
    """The writing end of a pipe that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    return writer


@pytest.mark.parametrize("both", [False, True])
def test_a_closed_output_ends_a_command_without_a_word(both: bool, tmp_path: Path) -> None:
    writer = closed_pipe()
    code = "cli._dispatch = lambda argv: print('much\\n' * 9999)\n" + RUN
    ended = start(
        code, "demo", to=tmp_path, stdout=writer, stderr=writer if both else subprocess.PIPE
    )
    os.close(writer)
    _, errors = ended.communicate()
    assert ended.returncode == process.CLOSED == 141
    assert not errors


def test_a_little_that_was_not_read_counts_too(tmp_path: Path) -> None:
    """It is written when the process ends."""
    writer = closed_pipe()
    ended = start(
        "cli._dispatch = lambda argv: print('a line')\n" + RUN, "demo", to=tmp_path, stdout=writer
    )
    os.close(writer)
    assert ended.communicate()[1] == b"" and ended.returncode == 141


@pytest.mark.parametrize("way", ["pipe", "closed"])
def test_a_training_goes_on_without_its_streams(way: str, tmp_path: Path) -> None:
    """What it keeps goes into files."""
    options: dict[str, object] = {}
    code = f'runpy.run_path({str(HELPER)!r})["install"]()\n' + RUN
    if way == "closed":
        code = "os.close(1); os.close(2)\n" + code
    else:
        writer = closed_pipe()
        options = {"stdout": writer, "stderr": writer}
    ended = start(code, "toy", "fit", "--trainer.max_steps=3", to=tmp_path, **options)
    ended.communicate()
    assert ended.returncode == 0
    assert (tmp_path / "outputs/toy/fit/version_0/checkpoints/last.ckpt").is_file()


def test_a_full_disk_under_the_output_is_one_line(tmp_path: Path) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    ended = start(
        "cli._dispatch = lambda argv: print('a line')\n" + RUN, "demo", to=tmp_path, stdout=full
    )
    os.close(full)
    _, errors = ended.communicate()
    assert errors.decode() == (
        "error: standard output: cannot be written: No space left on device\n"
    )
    assert ended.returncode == 2


def test_workers_are_told_nothing(tmp_path: Path) -> None:
    """A terminal's or a scheduler's signal goes to the whole group of processes; a step's batch
    still comes from a worker."""
    code = """
from multiprocessing import get_context
context = get_context("fork")
signal.signal(signal.SIGHUP, process._tell)
def look(pipe):
    pipe.send((os.getsid(0) == os.getpid(), signal.getsignal(signal.SIGHUP) == signal.SIG_DFL))
process.part_workers()
process.part_workers()
ours, theirs = context.Pipe()
worker = context.Process(target=look, args=(theirs,))
worker.start()
print(*ours.recv())
worker.join()
"""
    told = start(code, to=tmp_path)
    out, errors = told.communicate()
    assert out == b"True True\n", errors


def test_a_program_may_heed_what_it_ignored() -> None:
    code = """
import signal
from longseq.core import process
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGHUP, signal.SIG_IGN)
signal.signal(signal.SIGTERM, print)
process.heed()
assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL
assert signal.getsignal(signal.SIGTERM) is print
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
