"""One run in a process of its own: its peak memory, and a hard limit on its time and memory.

A server process imports torch once and never computes; for each job it forks a child, in which
nothing has been allocated or warmed yet. The child builds the program (after a tiny one, so that
what a library allocates at its first call is not counted), resets the kernel's high-water mark of
resident memory, and runs once. Resident memory is what a user runs out of; torch's profiler would
see tensors only, not what FFT and matrix libraries allocate. A child over its time is killed, and
an allocation beyond its memory fails.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

_BUILD_SECONDS = 120.0
_STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Job:
    """What to run.

    Attributes:
        module: that holds ``CASES``.
        case: its name.
        side: its name.
        mode: what to run.
        shape: fields of ``Shape``.
        threads: for torch.
        seconds: limit of the run; building has its own.
        memory: limit in bytes on what is allocated beyond the imported libraries.
    """

    module: str
    case: str
    side: str
    mode: str
    shape: dict[str, Any]
    threads: int
    seconds: float
    memory: int


@dataclass(frozen=True)
class Probe:
    """What a job found.

    Attributes:
        status: "ok", "stopped" (over its time) or "failed".
        reason: in words.
        seconds: of the run, the first in its process; the limit if it was stopped.
        peak_bytes: most resident memory beyond what was there before the run; None where it is not
            known.
        held_bytes: of the inputs and weights that take gradients, or that were there before the
            run.
        total_bytes: most resident memory of the process, libraries included.
    """

    status: str
    reason: str = ""
    seconds: float | None = None
    peak_bytes: int | None = None
    held_bytes: int | None = None
    total_bytes: int | None = None


class Isolated:
    """The server, started at the first job; a context manager.

    Attributes:
        available: whether this system can fork and tells resident memory (Linux).
    """

    available = hasattr(os, "fork") and _STATUS.exists()

    def __init__(self) -> None:
        self._server: subprocess.Popen[str] | None = None

    def __enter__(self) -> Isolated:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the server."""
        if self._server is not None:
            assert self._server.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                self._server.stdin.close()
            self._server.wait(timeout=30)
            self._server = None

    def run(self, job: Job) -> Probe:
        """Runs a job and waits for it.

        Args:
            job: what to run.
        """
        if self._server is None:
            environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
            self._server = subprocess.Popen(
                [sys.executable, "-m", "longseq.bench.isolated"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=environment,
            )
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(asdict(job)) + "\n")
        self._server.stdin.flush()
        line = self._server.stdout.readline()
        if not line:
            self._server = None
            raise RuntimeError("the process that measures memory has ended; its message is above")
        return Probe(**json.loads(line))


def resident(field: str = "VmRSS") -> int | None:
    """Returns a memory figure of this process in bytes, None where the system does not tell.

    Args:
        field: "VmRSS" for now, "VmHWM" for the most so far, "VmSize" for address space.
    """
    if not _STATUS.exists():
        return None
    lines = _STATUS.read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))


def available_memory() -> int:
    """Returns how many bytes can be allocated without swapping."""
    info = Path("/proc/meminfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def _reset_peak() -> None:
    """Gives freed memory back to the system and sets the high-water mark to what is resident
    now."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    # A container may forbid it: the mark is then that of the whole child.
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _limit_memory(size: int) -> None:
    import resource

    used = resident("VmSize") or 0
    slack = 1 << 30  # thread stacks and arenas take address space that is never touched
    resource.setrlimit(resource.RLIMIT_AS, (used + size + slack, resource.RLIM_INFINITY))


def _measure(job: Job, ready: Callable[[], None]) -> Probe:
    """Runs a job in this process; ``ready`` is called when all is built."""
    import torch

    from longseq.bench.measure import Mode, Shape, executable

    torch.set_num_threads(job.threads)
    case = next(c for c in importlib.import_module(job.module).CASES if c.name == job.case)
    side = next(s for s in case.sides if s.name == job.side)
    shape, mode = Shape(**job.shape), job.mode
    kind: Mode = mode  # type: ignore[assignment]
    tiny = Shape(1, min(64, shape.length), shape.width, shape.dtype)
    executable(side.make(case.inputs(tiny), tiny, kind), kind)()
    _limit_memory(job.memory)
    program = side.make(case.inputs(shape), shape, kind)
    run = executable(program, kind)
    _reset_peak()
    before = resident() or 0
    ready()
    start = time.perf_counter()
    out = run()
    seconds = time.perf_counter() - start
    del out
    total = resident("VmHWM") or 0
    held = sum(leaf.numel() * leaf.element_size() for leaf in program.leaves)
    return Probe(
        "ok", seconds=seconds, peak_bytes=total - before, held_bytes=held, total_bytes=total
    )


def _child(job: Job, out: int) -> None:
    """Runs a job and writes what it found to a pipe."""

    def ready() -> None:
        os.write(out, b"ready\n")

    try:
        probe = _measure(job, ready)
    except Exception as error:  # noqa: BLE001 - a peer may raise anything; its words go into the table
        words = " ".join(str(error).split())[:200]
        if isinstance(error, MemoryError) or "alloc" in words.lower():
            words = f"needs more than the {job.memory / 2**30:.1f} GiB of memory allowed"
        else:
            words = f"{type(error).__name__}: {words}"
        probe = Probe("failed", words)
    os.write(out, json.dumps(asdict(probe)).encode() + b"\n")


def _read_line(pipe: int, seconds: float) -> bytes | None:
    """Returns a line from a pipe, empty if it was closed, None if none came in time."""
    line, end = b"", time.monotonic() + seconds
    while not line.endswith(b"\n"):
        if not select.select([pipe], [], [], max(0.0, end - time.monotonic()))[0]:
            return None
        byte = os.read(pipe, 1)
        if not byte:
            return b""
        line += byte
    return line


def _supervise(job: Job) -> Probe:
    """Forks a child for a job and watches over it."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            _child(job, writing)
        finally:
            os._exit(0)
    os.close(writing)
    try:
        line = _read_line(reading, _BUILD_SECONDS)
        if line is None:
            return Probe("failed", f"building it took more than {_BUILD_SECONDS:.0f} s")
        if line == b"ready\n":
            line = _read_line(reading, job.seconds)
        if line is None:
            return Probe("stopped", f"stopped after {job.seconds:g} s", seconds=job.seconds)
        if not line:
            return Probe("failed", "its process was killed, most likely for want of memory")
        return Probe(**json.loads(line))
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(reading)


def main() -> None:
    """Answers one line of JSON for each on the standard input."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not mix with the answers
    from longseq.bench import peers

    for line in sys.stdin:
        job = Job(**json.loads(line))
        case = next(c for c in importlib.import_module(job.module).CASES if c.name == job.case)
        peer = next(s for s in case.sides if s.name == job.side).peer
        if peer is not None:
            peers.load_all(peer)  # here, once, and not in every child
        answers.write(json.dumps(asdict(_supervise(job))) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
