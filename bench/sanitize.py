"""The compiled kernels under sanitizers: addresses and undefined behaviour, then threads.

``python -m longseq.bench.sanitize`` (``make sanitize``) builds the kernels twice, runs the
operators' tests with each build, and first shows that a fault on purpose is reported. Python and
torch are as they are: only what the kernels do, and memory that is allocated, is watched.

Threads: no OpenMP runtime tells the sanitizer how it orders its threads, so that everything after
a parallel region would look like a race. That build hands the same units to ``std::thread`` (which
is what the kernels do where no OpenMP is loaded), each thread with units of its own, and every call
takes four threads, however small it is.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from longseq.bench.shadow import shadow

ROOT = Path(__file__).resolve().parent.parent
KINDS = ("address", "thread")
TESTS = {
    "address": ["tests/core/ops", "tests/genomics/test_experts.py"],
    "thread": ["tests/core/ops"],
}
# torch's compiler starts g++, which the preloaded library would slow down and watch.
# The sanitizers take memory of their own, which tests of memory would count. Every call takes
# several threads here, worth it or not.
LEFT_OUT = (
    "not compil and not export and not peak_memory and not memory_stays and not threads_are_taken"
)
_PRELOADED = {"address": ("libasan.so", "libstdc++.so"), "thread": ("libtsan.so",)}
_LINKED = {"address": ("libubsan.so",), "thread": ()}
_MODULES = {"core": "_cpu", "genomics": "_experts"}
_THREADS = 4
_MARKS = (b"Sanitizer", b"runtime error:")


def instruction_sets(kind: str) -> list[str]:
    """Returns what to build: the set that this machine would take and the plain one; for threads
    the plain one, as the hand-out of work is the same in all."""
    import torch

    best = {"AVX512": "avx512", "AVX2": "avx2"}.get(torch.backends.cpu.get_cpu_capability())
    return ["baseline", *([best] if best and kind == "address" else [])]


def build(kind: str, folder: Path) -> None:
    """Compiles the kernels with a sanitizer.

    Args:
        kind: "address" or "thread".
        folder: of the build; goes on where one was.
    """
    import nanobind

    command = ["cmake", "-S", str(ROOT), "-B", str(folder), f"-DLONGSEQ_SANITIZE={kind}"]
    command += ["-DCMAKE_CXX_COMPILER=g++"]  # whose libraries are loaded
    command += [f"-DLONGSEQ_ISAS={';'.join(instruction_sets(kind))}"]
    command += [f"-Dnanobind_DIR={nanobind.cmake_dir()}", f"-DPython_EXECUTABLE={sys.executable}"]
    jobs = str(min(os.cpu_count() or 1, 4))
    for one in (command, ["cmake", "--build", str(folder), "--parallel", jobs]):
        done = subprocess.run(one, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{' '.join(one)}\n{done.stdout[-4000:]}{done.stderr[-4000:]}")


def tree(folder: Path) -> Path:
    """Returns a folder for ``PYTHONPATH`` with links to the sources, beside the modules that were
    compiled there.

    Args:
        folder: of the build.
    """
    packages = folder / "packages"
    for domain in sorted(one.name for one in (ROOT / "typings" / "longseq").iterdir()):
        to = packages / "longseq" / domain
        to.mkdir(parents=True, exist_ok=True)
        for old in to.iterdir():
            old.unlink()
        for path in (ROOT / domain).iterdir():
            if path.suffix != ".so":
                (to / path.name).symlink_to(path)
        if domain in _MODULES:
            compiled = next(folder.glob(f"{_MODULES[domain]}.*so"))
            (to / compiled.name).symlink_to(compiled)
    shadow(packages)
    return packages


def libraries(names: Sequence[str]) -> list[Path]:
    """Returns where the compiler keeps libraries of its own: for one that it does not have, the
    bare name.

    Args:
        names: of files.
    """
    found = []
    for name in names:
        command = ["g++", f"-print-file-name={name}"]
        said = subprocess.run(command, capture_output=True, text=True, check=True)
        found.append(Path(said.stdout.strip()))
    return found


def missing(kind: str) -> str:
    """Returns why a sanitizer cannot be run on this machine; nothing if it can.

    Args:
        kind: "address" or "thread".
    """
    if sys.platform != "linux":
        return "the sanitizers are set up for Linux with g++ only"
    if shutil.which("g++") is None:
        return "there is no g++, whose sanitizers are used (Debian: apt install g++)"
    needed = libraries([*_PRELOADED[kind], *_LINKED[kind]])
    absent = [path.name for path in needed if not path.is_file()]
    own = {"address": "libasan and libubsan", "thread": "libtsan"}[kind]
    hint = f"{own} of g++'s own version; Debian: libgcc-$(g++ -dumpversion)-dev; Fedora: {own}"
    return f"g++ has no {', '.join(absent)} ({hint})" if absent else ""


def environment(kind: str, folder: Path) -> dict[str, str]:
    """Returns the variables of a process whose kernels are watched.

    Args:
        kind: "address" or "thread".
        folder: of the build; reports go to ``report.*`` there.
    """
    options = f"log_path={folder / 'report'}:exitcode=66"
    return {
        **os.environ,
        "PYTHONPATH": str(folder / "packages"),
        "LD_PRELOAD": ":".join(map(str, libraries(_PRELOADED[kind]))),
        # Python frees little of its own at the end, by design.
        "ASAN_OPTIONS": options + ":detect_leaks=0",
        "UBSAN_OPTIONS": options + ":print_stacktrace=1",
        # Python and torch are not compiled for it: what they do between calls is left alone.
        "TSAN_OPTIONS": options + ":ignore_noninstrumented_modules=1:report_signal_unsafe=0",
        "OMP_NUM_THREADS": "1",
        "LONGSEQ_SANITIZED": kind,
    }


def _fixed_addresses() -> None:
    """Switches off the random layout of memory for what is started next: the thread sanitizer wants
    its addresses free."""
    ctypes.CDLL(None).personality(0x0040000)


def reports(folder: Path) -> list[Path]:
    """Returns the files with reports, the oldest first."""
    found = sorted(folder.glob("report.*"), key=lambda path: path.stat().st_mtime)
    return [path for path in found if any(mark in path.read_bytes() for mark in _MARKS)]


def run(arguments: Sequence[str], kind: str, folder: Path) -> int:
    """Runs Python with watched kernels, without reports of before, and returns its status.

    Undefined behaviour is reported to the standard error whatever ``log_path`` says, so that this
    is kept as ``report.stderr``.
    """
    for old in folder.glob("report.*"):
        old.unlink()
    with (folder / "report.stderr").open("wb") as errors:
        return subprocess.run(
            [sys.executable, *arguments],
            env=environment(kind, folder),
            cwd=ROOT,
            stderr=errors,
            preexec_fn=_fixed_addresses if kind == "thread" else None,
            check=False,
        ).returncode


def fault(kind: str) -> None:
    """Does what the sanitizer must report: reads behind a tensor, or has four threads write into
    one row.

    Args:
        kind: "address" or "thread".
    """
    import torch

    from longseq.core.ops import cpu_calls
    from longseq.core.ops.backends import native

    if kind == "address":
        x, y = torch.zeros(4, 64), torch.zeros(64, 32)
        native().glu_forward(5, 32, 0, 1, x.data_ptr(), 0, y.data_ptr())
    else:
        a, b = torch.zeros(2, 4, 64, 8)
        h = torch.zeros(1, 64, 8).expand(4, 64, 8)
        rows = [cpu_calls.rows(one) for one in (a, b, h)]
        native().linear_scan_forward((4, 64, 8), False, 0, _THREADS, rows[0], rows[1], 0, rows[2])


def pytest_addoption(parser: Any) -> None:
    """As a plugin of pytest: how many parameters of one test function are run."""
    parser.addoption("--each", type=int, default=0)


def pytest_collection_modifyitems(config: Any, items: list[Any]) -> None:
    """As a plugin of pytest: keeps so many parameters of one test function."""
    if each := config.getoption("--each"):
        items[:] = thin(items, each)


def thin(items: Sequence[Any], each: int) -> list[Any]:
    """Returns tests with at most so many parameters of one function, evenly spread.

    Args:
        items: of pytest, or anything with a ``nodeid``.
        each: how many, the first among them.
    """
    functions: dict[str, list[Any]] = {}
    for item in items:
        functions.setdefault(item.nodeid.split("[")[0], []).append(item)
    found = []
    for every in functions.values():
        step = max(1, -(-(len(every) - 1) // max(1, each - 1)))
        found += every[::step][:each]
    return found


def pytest_configure(config: Any) -> None:
    """As a plugin of pytest: refuses to run without the watched modules, and gives every call its
    threads."""
    from longseq.core.ops import cpu_calls
    from longseq.core.ops.backends import native

    kind = os.environ["LONGSEQ_SANITIZED"]
    if f"sanitize/{kind}" not in Path(str(native().__file__)).as_posix():
        raise SystemExit(f"{native().__file__} is not the module that was built for {kind}")
    if kind == "thread":
        # The function is imported by name in some places, so that what it does is exchanged.
        cpu_calls.threads.__code__ = _threads.__code__


def _threads(work: int) -> int:
    return 4


def check(kind: str, folder: Path, tests: Sequence[str], each: int) -> bool:
    """Builds, shows that a fault is reported, runs the tests, and returns whether all is well.

    Args:
        kind: "address" or "thread".
        folder: of the build.
        tests: arguments of pytest.
        each: parameters of one test function that are run; 0 for all.
    """
    begin = time.monotonic()
    build(kind, folder)
    tree(folder)
    print(f"{kind}: built in {time.monotonic() - begin:.0f} s", flush=True)
    status = run(["-m", "longseq.bench.sanitize", "--fault", kind], kind, folder)
    found = [path.read_text(errors="replace") for path in reports(folder)]
    if status != 66 or not any("Sanitizer" in text for text in found):
        print(f"{kind}: the fault on purpose was not reported (status {status})")
        return False
    first = next(line for text in found for line in text.splitlines() if "Sanitizer" in line)
    print(f"{kind}: a fault on purpose is reported: {first.split(': ', 1)[-1][:60]}", flush=True)
    options = ["-p", "longseq.bench.sanitize", "-p", "no:cacheprovider", "-k", LEFT_OUT]
    options += ["--each", str(each)]
    # What a kernel writes to the standard error must not go down with the process.
    options += ["-n", "0", "--capture=sys"]
    status = run(["-m", "pytest", *options, *tests], kind, folder)
    found = [path.read_text(errors="replace") for path in reports(folder)]
    for text in found:
        print(text[:4000])
    took = time.monotonic() - begin
    print(f"{kind}: {len(found)} reports, tests ended with {status}, {took:.0f} s", flush=True)
    return not found and status == 0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs both sanitizers and returns 1 if one of them reports something; one whose libraries the
    compiler does not have is left out, and said to be.

    Args:
        argv: arguments; of the process if None.
    """
    parser = argparse.ArgumentParser(prog="python -m longseq.bench.sanitize", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--tests", nargs="+", help="in place of those of the operators")
    parser.add_argument("--each", type=int, default=2, help="parameters of one test (0: all)")
    parser.add_argument("--fault", choices=KINDS, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.fault:
        fault(args.fault)
        return 0
    folder, good = ROOT / "build" / "sanitize", []
    for kind in args.only:
        if reason := missing(kind):
            print(f"{kind}: skipped: {reason}", flush=True)
        else:
            good.append(check(kind, folder / kind, args.tests or TESTS[kind], args.each))
    return int(not all(good))


if __name__ == "__main__":
    sys.exit(main())
