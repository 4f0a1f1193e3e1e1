"""Which small faults the tests would not notice: a seeded sample of mutations, each run against the
tests that execute its line.

``python -m longseq.bench.mutants --sample 200`` (``make mutants``). The sources are copied; nothing
of the working tree is changed. One mutation again, with what the tests say: ``--again 17``.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import importlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from difflib import unified_diff
from pathlib import Path
from typing import Any

from longseq.bench.forked_tests import preload, run_tests
from longseq.bench.sanitize import thin
from longseq.bench.shadow import shadow

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("core/ops", "core/training")
_FILES = ("tests/core/test_checkpoints.py", "tests/core/test_contents.py")
TESTS = ("tests/core/ops", "tests/core/training", *_FILES)
NEEDS_GPU = ("cuda", "triton", "mamba_ssm")
"""Files whose name says that they need a GPU, or a package that does, are left out."""
_NO_OPERATORS = ("VariableReplacer", "VariableInserter")  # need a list of names


@dataclass(frozen=True)
class Mutation:
    """One small fault.

    Attributes:
        file: below the root.
        line, column: where, from 1 and 0.
        operator: name in cosmic-ray.
        occurrence: number of the place among those of the operator in the file.
    """

    file: str
    line: int
    column: int
    operator: str
    occurrence: int


def _operators() -> dict[str, Any]:
    from cosmic_ray.operators.provider import OperatorProvider

    provider = OperatorProvider()
    return {name: provider[name]() for name in provider if name not in _NO_OPERATORS}


def _annotations(source: str) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Returns begin and end of everything that only says a type: it is never executed."""
    spans = []
    for node in ast.walk(ast.parse(source)):
        found = [getattr(node, "annotation", None), getattr(node, "returns", None)]
        for one in found:
            if isinstance(one, ast.expr):
                end = (one.end_lineno or one.lineno, one.end_col_offset or one.col_offset)
                spans.append(((one.lineno, one.col_offset), end))
    return spans


def mutations(source: str, file: str = "") -> list[Mutation]:
    """Returns all mutations of a source text, but for those of annotations.

    Args:
        source: of a module.
        file: what to write into ``Mutation.file``.
    """
    from cosmic_ray.ast import ast_nodes, get_ast

    spans, found = _annotations(source), list[Mutation]()
    nodes = list(ast_nodes(get_ast(source)))
    for name, operator in _operators().items():
        places = [place for node in nodes for place in operator.mutation_positions(node)]
        for occurrence, (begin, _) in enumerate(places):
            if not any(first <= tuple(begin) < last for first, last in spans):
                found.append(Mutation(file, begin[0], begin[1], name, occurrence))
    return found


def mutated(source: str, mutation: Mutation) -> str:
    """Returns the text with the fault in it."""
    from cosmic_ray.mutating import mutate_code

    text = mutate_code(source, _operators()[mutation.operator], mutation.occurrence)
    if text is None:
        raise ValueError(f"{mutation} has no place in this text")
    return str(text)


def sample(root: Path, folders: Sequence[str], size: int, seed: int) -> list[Mutation]:
    """Returns a random choice: places first, so that an operator with many exchanges is not many
    times as likely, then one mutation of each.

    Args:
        root: of the sources.
        folders: below it.
        size: how many.
        seed: of the choice.
    """
    files = sorted(path for folder in folders for path in (root / folder).rglob("*.py"))
    places: dict[tuple[str, int, int], list[Mutation]] = {}
    for path in files:
        name = path.relative_to(root).as_posix()
        if not any(word in name for word in NEEDS_GPU):
            for one in mutations(path.read_text(), name):
                places.setdefault((name, one.line, one.column), []).append(one)
    rng = random.Random(seed)
    chosen = rng.sample(sorted(places), min(size, len(places)))
    return [rng.choice(places[place]) for place in chosen]


def copy_sources(to: Path) -> None:
    """Copies the working tree, with its compiled modules, for faults to be put into."""
    skip = shutil.ignore_patterns(".git", "build", ".venv*", "__pycache__", ".*_cache", "notebooks")
    shutil.copytree(ROOT, to, symlinks=True, ignore=skip)
    for name in ("core._cpu", "genomics._experts"):
        compiled = Path(str(importlib.import_module(f"longseq.{name}").__file__))
        target = to / name.split(".")[0] / compiled.name
        target.unlink(missing_ok=True)
        target.symlink_to(compiled.resolve())
    shadow(to / "typings")


def executing(lines: dict[str, dict[str, list[str]]], one: Mutation) -> list[str]:
    """Returns the tests that execute a mutation: of a line that runs when its module is imported
    (a constant, a default, a signature), or that only other parameters of the tests reach, those
    that execute anything of the module.

    Args:
        lines: file → line → tests, as ``record`` writes it.
        one: the mutation.
    """
    of_file = lines.get(one.file, {})
    found = of_file.get(str(one.line))
    return found or sorted({test for tests in of_file.values() for test in tests})


def select(tests: Sequence[str], seconds: dict[str, float], limit: float) -> list[str]:
    """Returns the tests to run for a line, the quickest first: one of each test function, then more
    of their parameters, as many as the time allows.

    Args:
        tests: that execute the line.
        seconds: test → processor time.
        limit: seconds for all of them.
    """
    order: list[tuple[int, float, str]] = []
    seen: Counter[str] = Counter()
    for test in sorted(tests, key=lambda one: seconds[one]):
        function = test.split("[")[0]
        order.append((seen[function], seconds[test], test))
        seen[function] += 1
    chosen: list[str] = []
    total = 0.0
    for _, cost, test in sorted(order):
        if not chosen or total + cost <= limit:
            chosen.append(test)
            total += cost
    return chosen


class _Recorder:
    """A plugin of pytest: which lines each test executes, and how long it takes.

    Args:
        coverage: that is started.
        each: parameters of one test function that are run.
    """

    def __init__(self, coverage: Any, each: int) -> None:
        self.coverage, self.each, self.begin = coverage, each, 0.0
        self.seconds: dict[str, float] = {}

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        items[:] = thin(items, self.each)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.coverage.switch_context(nodeid)
        self.begin = time.process_time()

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "call" and report.passed:
            self.seconds[report.nodeid] = time.process_time() - self.begin


def record(tests: Sequence[str], folders: Sequence[str], to: Path, each: int) -> None:
    """Runs the tests here and writes {file: {line: [test]}}, times and imported modules.

    Args:
        tests: folders of tests.
        folders: of sources whose lines count.
        to: a JSON file.
        each: parameters of one test function that are run.
    """
    import coverage
    import pytest

    measured = coverage.Coverage(data_file=None, source=[str(Path(one)) for one in folders])
    measured.start()
    recorder = _Recorder(measured, each)
    status = pytest.main(["-p", "no:cacheprovider", "-p", "no:xdist", *tests], plugins=[recorder])
    measured.stop()
    if status not in (0, 1):
        raise SystemExit(f"the tests ended with status {status}")
    data, lines = measured.get_data(), {}
    for path in data.measured_files():
        name = Path(path).resolve().relative_to(Path.cwd().resolve()).as_posix()
        by_line = data.contexts_by_lineno(path)
        lines[name] = {
            str(line): sorted(set(contexts) & set(recorder.seconds))
            for line, contexts in by_line.items()
        }
    own = ("longseq", "tests", "conftest", "test_", "_pytest", "coverage", "__")
    modules = sorted(name for name in sys.modules if not name.startswith(own) and name.isascii())
    to.write_text(json.dumps({"lines": lines, "seconds": recorder.seconds, "modules": modules}))


def _digest(source: str) -> str:
    return hashlib.sha256(source.encode()).hexdigest()[:16]


def answers(root: Path, chosen: Sequence[Mutation], results: Path) -> list[dict[str, Any] | None]:
    """Returns what a file of results says of each mutation; None where it says nothing, or what it
    says is of another text of the source.

    Args:
        root: of the sources.
        chosen: the sample.
        results: lines of JSON; a last one that was cut by the end of a run is left out.
    """
    known: dict[tuple[Mutation, str], dict[str, Any]] = {}
    for line in results.read_text().splitlines() if results.exists() else []:
        with suppress(json.JSONDecodeError):
            entry = json.loads(line)
            place = Mutation(**{one.name: entry[one.name] for one in fields(Mutation)})
            known[place, entry["text"]] = entry
    texts = {name: _digest((root / name).read_text()) for name in {one.file for one in chosen}}
    return [known.get((one, texts[one.file])) for one in chosen]


def serve(root: Path, chosen: Sequence[Mutation], args: argparse.Namespace) -> None:
    """Runs every mutant without an answer in turn and appends a line of JSON for each to the file
    of results."""
    known = json.loads(Path(args.map).read_text())
    before = answers(root, chosen, Path(args.results))
    preload(known["modules"])
    for number, one in enumerate(chosen):
        if number != args.again if args.again is not None else before[number]:
            continue
        path, tests = root / one.file, executing(known["lines"], one)
        source = path.read_text()
        picked = select(tests, known["seconds"], args.seconds)
        log, begin = root / "mutant.log", time.monotonic()
        path.write_text(mutated(source, one))
        try:
            what = run_tests(picked, log) if picked else "no test"
            if what == "survived":  # with all their parameters; too slow is no answer here
                every = list(dict.fromkeys(test.split("[")[0] for test in picked))
                what = "killed" if run_tests(every, log, args.more) == "killed" else what
        finally:
            path.write_text(source)
        took = time.monotonic() - begin
        if args.again is not None:
            print(what, log.read_text() if picked else "no test executes this line", sep="\n")
            return
        entry = {"number": number, **asdict(one), "text": _digest(source), "what": what}
        entry |= {"tests": len(picked), "of": len(tests), "seconds": round(took, 1)}
        with Path(args.results).open("a") as file:
            file.write(json.dumps(entry) + "\n")


def report(root: Path, chosen: Sequence[Mutation], results: Path) -> tuple[str, float]:
    """Returns the survivors with their faults and the score of each folder as text, and the share
    that is killed: what has no answer yet is not.

    Args:
        root: of the sources.
        chosen: the sample.
        results: what ``serve`` wrote.
    """
    parts, counts = [], Counter[tuple[str, bool]]()
    for number, (one, entry) in enumerate(zip(chosen, answers(root, chosen, results))):
        killed = entry is not None and entry["what"] in ("killed", "out of time")
        counts["/".join(one.file.split("/")[:2]), killed] += 1
        if not killed:
            before = (root / one.file).read_text()
            after = mutated(before, one)
            diff = unified_diff(before.splitlines(), after.splitlines(), lineterm="", n=0)
            changed = "\n".join("  " + line for line in list(diff)[3:])
            what = (
                f"{entry['what']}, {entry['tests']} of {entry['of']} tests" if entry else "not run"
            )
            parts.append(f"{number} {one.file}:{one.line} {what}\n{changed}")
    for folder in sorted({folder for folder, _ in counts}):
        good, bad = counts[folder, True], counts[folder, False]
        parts.append(f"{folder}: {good} of {good + bad} killed ({good / (good + bad):.0%})")
    total = sum(n for (_, killed), n in counts.items() if killed)
    share = total / max(counts.total(), 1)
    parts.append(f"all: {total} of {counts.total()} killed ({share:.0%})")
    return "\n".join(parts), share


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the survivors and the score; returns 1 below the wanted share.

    Args:
        argv: arguments; of the process if None.
    """
    parser = argparse.ArgumentParser(prog="python -m longseq.bench.mutants", description=__doc__)
    parser.add_argument("--sample", type=int, default=200, help="mutations (200)")
    parser.add_argument("--seed", type=int, default=0, help="of the sample (0)")
    parser.add_argument("--seconds", type=float, default=8, help="of tests for each mutant (8)")
    parser.add_argument("--more", type=int, default=60, help="for all parameters of these (60)")
    parser.add_argument("--folders", nargs="+", default=FOLDERS, help="of sources")
    parser.add_argument("--tests", nargs="+", default=TESTS, help="folders or files of tests")
    parser.add_argument("--each", type=int, default=4, help="parameters of one test function (4)")
    parser.add_argument("--wanted", type=float, default=0.8, help="share killed (0.8)")
    parser.add_argument("--map", default="build/mutants/map.json", help="lines and their tests")
    parser.add_argument("--results", default="build/mutants/results.jsonl", help="goes on in it")
    parser.add_argument("--again", type=int, help="one mutation, with what the tests print")
    parser.add_argument("--step", choices=["record", "serve"], help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    args.map, args.results = str(Path(args.map).resolve()), str(Path(args.results).resolve())
    if args.step == "record":
        record(args.tests, args.folders, Path(args.map), args.each)
        return 0
    if args.step == "serve":
        serve(Path.cwd(), sample(Path.cwd(), args.folders, args.sample, args.seed), args)
        return 0
    Path(args.map).parent.mkdir(parents=True, exist_ok=True)
    names = ("sample", "seed", "map", "results", "seconds", "more", "each")
    given = [word for name in names for word in (f"--{name}", str(getattr(args, name)))]
    given += ["--folders", *args.folders, "--tests", *args.tests]
    if args.again is not None:
        given += ["--again", str(args.again)]
    with tempfile.TemporaryDirectory() as name:
        root = Path(name) / "sources"
        copy_sources(root)
        # A module compiled from another text of the same second and size must not be taken.
        environment = {**os.environ, "PYTHONPATH": str(root / "typings"), "OMP_NUM_THREADS": "1"}
        environment["PYTHONDONTWRITEBYTECODE"] = "1"
        command = [sys.executable, "-m", "longseq.bench.mutants", *given, "--step"]
        if not Path(args.map).exists():
            subprocess.run([*command, "record"], cwd=root, env=environment, check=True)
        subprocess.run([*command, "serve"], cwd=root, env=environment, check=True)
        if args.again is not None:
            return 0
        chosen = sample(root, args.folders, args.sample, args.seed)
        text, share = report(root, chosen, Path(args.results))
    print(text)
    return int(share < args.wanted)


if __name__ == "__main__":
    sys.exit(main())
