"""The wheel as a stranger gets it: built, installed into an empty environment, and run outside the
repository with the packages of one extra at a time and no compiler.

``python -m longseq.bench.wheels`` (``make wheels``). The packages that longseq needs are not
downloaded again: of those that are installed here, just the ones that an extra asks for, and what
they need, are laid out as links.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterable, Sequence
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DOMAINS = ("genomics", "timeseries", "vision", "audio", "weather")
WANTED = (
    *("longseq/core/py.typed", "longseq/core/kernels/cuda", "longseq/core/_cpu."),
    *("longseq/genomics/_experts.", "longseq/genomics/samples/tiny.fa", "entry_points.txt"),
)
UNWANTED = (".cpp", ".h", "/tests/", "typings/", "notebooks/", "CMakeLists")
OPTIONAL = {"longseq.core.kernels.triton": "triton"}
"""Modules that are for machines with a further package, by it."""
_PROBE = """
import importlib, importlib.util, json, pkgutil, sys
optional = json.loads(sys.argv[2])
package = importlib.import_module(sys.argv[1])
bad, count = [], 0
for one in pkgutil.walk_packages(package.__path__, sys.argv[1] + ".", onerror=bad.append):
    if one.name.endswith("__main__") or any(
        one.name.startswith(name) and importlib.util.find_spec(needs) is None
        for name, needs in optional.items()
    ):
        continue
    try:
        importlib.import_module(one.name)
        count += 1
    except BaseException as error:
        bad.append(f"{one.name}: {type(error).__name__}: {error}")
print(json.dumps([count, bad, package.__file__]))
"""


def build(to: Path) -> Path:
    """Builds the wheel with pip, as an index of packages would serve it.

    Args:
        to: folder.
    """
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(to)]
    subprocess.run([*command, str(ROOT)], check=True)
    (wheel,) = to.glob("longseq-*.whl")
    return wheel


def contents(names: Sequence[str]) -> list[str]:
    """Returns what is wrong with the files of a wheel, a line each.

    Args:
        names: of its files.
    """
    lost = [f"{one} is not in it" for one in WANTED if not any(one in name for name in names)]
    return lost + [f"{name} is in it" for name in names if any(bad in name for bad in UNWANTED)]


def needed(whole: Distribution, extra: str = "") -> set[str]:
    """Returns the distributions that a package and one of its extras ask for, and those that these
    ask for, by their normal names.

    Args:
        whole: the package.
        extra: its name; "" for none.
    """
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    found: set[str] = set()
    done: set[tuple[str, str]] = set()
    own = canonicalize_name(whole.metadata["Name"])
    todo = [(own, extra)]
    while todo:
        name, chosen = todo.pop()
        if (name, chosen) in done:
            continue
        done.add((name, chosen))
        try:
            one = whole if name == own else distribution(name)
        except PackageNotFoundError:
            continue  # for another system, or left out here
        if name != own:
            found.add(name)
        for text in one.requires or []:
            wants = Requirement(text)
            if wants.marker is None or wants.marker.evaluate({"extra": chosen}):
                todo += [(canonicalize_name(wants.name), e) for e in ("", *wants.extras)]
    return found


def lay_out(names: Iterable[str], to: Path) -> None:
    """Links the installed files of distributions into a folder.

    Args:
        names: of the distributions.
        to: the folder.
    """
    to.mkdir(exist_ok=True)
    for name in names:
        one = distribution(name)
        for file in one.files or []:
            first = file.parts[0]
            link = to / first
            if first not in ("..", "__pycache__") and not link.exists():
                link.symlink_to(Path(str(one.locate_file(first))))


def check(python: Path, links: Path, where: Path, package: str) -> list[str]:
    """Imports every module of a package outside the repository and returns what fails.

    Args:
        python: of the empty environment.
        links: folder with the packages that it may see.
        where: to run, a folder outside.
        package: for example ``longseq.audio``.
    """
    import json

    run = _run([str(python), "-c", _PROBE, package, json.dumps(OPTIONAL)], links, where)
    if run.returncode or not run.stdout.strip():
        return [f"{package}: ended with {run.returncode}: {run.stderr[-300:]}"]
    count, bad, file = json.loads(run.stdout.splitlines()[-1])
    if str(ROOT) in str(Path(file).resolve()) and "site-packages" not in file:
        return [f"{package} is that of the repository: {file}"]
    return bad or ([] if count else [f"{package} has no modules"])


def _run(argv: Sequence[str], links: Path, where: Path) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if name in ("HOME", "LANG", "TMPDIR")}
    environment = {**kept, "PYTHONPATH": str(links), "OMP_NUM_THREADS": "1"}
    # No compiler is to be found: the folder of the interpreter is all there is.
    environment["PATH"] = str(Path(argv[0]).parent)
    return subprocess.run(
        list(argv), env=environment, cwd=where, capture_output=True, text=True, check=False
    )


def commands(extra: str, where: Path) -> list[list[str]]:
    """Returns what is run on the command line with an extra.

    Args:
        extra: its name.
        where: folder for outputs.
    """
    if extra not in DOMAINS:
        return [["--version"], ["--help"]]
    quick = ["demo", extra, "--max_steps", "2", "--out", str(where / f"demo-{extra}")]
    return [["--help"], [extra, "--help"], quick]


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a line for every extra and returns 1 if something fails.

    Args:
        argv: arguments; of the process if None.
    """
    parser = argparse.ArgumentParser(prog="python -m longseq.bench.wheels", description=__doc__)
    parser.add_argument("--wheel", type=Path, help="one that is built already")
    parser.add_argument("--extras", nargs="+", default=["", *DOMAINS], help='"" for none')
    args = parser.parse_args(argv)
    faults: list[str] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        begin = time.monotonic()
        wheel = args.wheel or build(folder)
        print(
            f"{wheel.name}: {wheel.stat().st_size / 1e6:.1f} MB, {time.monotonic() - begin:.0f} s"
        )
        faults += contents(zipfile.ZipFile(wheel).namelist())
        empty, outside = folder / "empty", folder / "outside"
        outside.mkdir()
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(empty)], check=True)
        python = empty / "bin" / "python"
        install = ["install", "--quiet", "--no-deps", "--no-index", str(wheel)]
        subprocess.run([sys.executable, "-m", "pip", "--python", str(python), *install], check=True)
        (site,) = (empty / "lib").glob("python*/site-packages")
        whole = next(iter(Distribution.discover(name="longseq", path=[str(site)])))
        for extra in args.extras:
            names = needed(whole, extra)
            links = folder / f"links-{extra}"
            lay_out(names, links)
            package = f"longseq.{extra}" if extra in DOMAINS else "longseq.core"
            found = check(python, links, outside, package)
            for one in commands(extra, outside):
                run = _run([str(empty / "bin" / "longseq"), *one], links, outside)
                if run.returncode:
                    found.append(f"longseq {' '.join(one)}: {run.returncode}: {run.stderr[-500:]}")
            print(f"{extra or 'no extra'}: {len(names)} packages, {len(found)} faults", flush=True)
            faults += found
    print("\n".join(faults))
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
