"""The run of ``longseq bench kernels`` and ``longseq bench models``: options, grid, cells, progress."""

from __future__ import annotations

import argparse
import gc
import importlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from longseq.bench import peers
from longseq.bench.bounds import Bounds, measure_bounds
from longseq.bench.isolated import Isolated, Job, Probe, available_memory
from longseq.bench.measure import (
    OURS,
    Case,
    Cell,
    Disagreement,
    Mode,
    Reading,
    Shape,
    Side,
    check_agreement,
    executable,
    interleave,
    summarise,
    timed,
)
from longseq.bench.speed_report import machine, show, write
from longseq.core.errors import ConfigError, did_you_mean

WIDTH, NARROW, WIDE_UNTIL = 768, 64, 1 << 16
LENGTHS = (1024, 4096, 16384, 65536, 1 << 20)
QUICK_LENGTHS = (1024, 4096)
QUICK_ALONE = (1 << 16,)  # for what takes minutes at its own length
MIDDLE = 4096  # where batch and dtype are varied, and the targets are set
_ROUNDS = 5
_NEEDS_NO_WARM_UP = (
    1.0  # seconds: pages and caches are a small part of so long a run, which has run once alone
)
_ALONE_SECONDS = 590.0  # for what is run once only


@dataclass(frozen=True)
class Plan:
    """What a run does.

    Attributes:
        module: that holds the cases.
        cases: of it.
        lengths: for all of them.
        chosen: whether the user named the lengths, for models that have one of their own too.
        quick: whether batch 1 and float32 are enough.
        threads: for torch.
        limit: seconds of one run of one side, at most.
        seconds: of timed runs of one side of a cell, roughly.
        use_peers: or ours alone.
        width: of the model, up to length 65,536.
    """

    module: str
    cases: Sequence[Case]
    lengths: Sequence[int]
    chosen: bool
    quick: bool
    threads: int
    limit: float
    seconds: float
    use_peers: bool
    width: int = WIDTH

    def settings(self) -> dict[str, Any]:
        """Returns the plan as plain values."""
        own = {k: v for k, v in self.__dict__.items() if k not in ("cases", "module")}
        return {**own, "lengths": list(self.lengths), "cases": [case.name for case in self.cases]}


def grid(plan: Plan) -> Iterator[tuple[Case, Mode, Shape]]:
    """Yields the cells: all lengths at batch 1 in float32; batch 4 up to 4,096; bfloat16 there; the steps.

    Args:
        plan: of the run.
    """
    for case in plan.cases:
        lengths: Sequence[int] = [length for length in plan.lengths if length <= case.longest]
        if case.alone and not plan.chosen:
            lengths = QUICK_ALONE if plan.quick else case.alone
        if not lengths:
            continue
        middle = MIDDLE if MIDDLE in lengths else min(lengths)
        for mode in case.modes:
            if mode == "step":
                kinds = [(1, 1, "float32"), (4, 1, "float32"), (1, 1, "bfloat16")]
            else:
                kinds = [(1, length, "float32") for length in sorted(lengths)]
                kinds += [(4, length, "float32") for length in sorted(lengths) if length <= middle]
                kinds += [(1, middle, "bfloat16")]
            for batch, length, dtype in kinds:
                varied = batch > 1 or dtype != "float32"
                if dtype in case.dtypes and not (varied and (plan.quick or case.alone)):
                    width = case.width or (plan.width if length <= WIDE_UNTIL else NARROW)
                    yield case, mode, Shape(batch, length, width, dtype)


@dataclass
class Runner:
    """Measures cells one after another and remembers what was too slow.

    Attributes:
        plan: of the run.
        isolated: where first runs happen.
        tell: told what is being done.
    """

    plan: Plan
    isolated: Isolated
    tell: Callable[[str], None] = lambda text: None
    _known: dict[tuple[object, ...], tuple[int, float, str]] = field(default_factory=dict)

    def cell(self, case: Case, mode: Mode, shape: Shape) -> Cell:
        """Measures all sides of a cell: each alone at first, then all in turn.

        Args:
            case: what.
            mode: how.
            shape: how large.
        """
        cell = Cell(case.name, case.level, mode, shape, case.work(shape, mode))
        sides = [side for side in case.sides if mode in side.modes]
        sides = [side for side in sides if side.name == OURS or self.plan.use_peers]
        expected: dict[str, float] = {}
        for side in sides:
            self.tell(f"{side.name}: memory")
            reading = self._first_run(case, side, mode, shape)
            cell.readings.append(reading)
            if reading.status == "measured" and reading.seconds is not None:
                expected[side.name] = reading.seconds
            elif side.name == OURS:
                for other in sides[1:]:
                    reason = "ours was not measured"
                    cell.readings.append(Reading(other.name, "skipped", other.same, reason))
                return cell
        if not case.alone:
            self._in_turn(case, cell, [side for side in sides if side.name in expected], expected)
        gc.collect()
        return cell

    def _first_run(self, case: Case, side: Side, mode: Mode, shape: Shape) -> Reading:
        """Runs a side once in a process of its own, if it is there and has a chance to end in time."""
        reading = Reading(side.name, "skipped", side.same)
        if side.peer is not None:
            there = peers.status(side.peer)
            if not there.available:
                reading.status, reading.reason = "absent", there.reason
                return reading
        limit = _ALONE_SECONDS if case.alone else self.plan.limit
        key = (case.name, side.name, mode, shape.batch, shape.dtype, shape.width)
        before = self._known.get(key)
        if before is not None:
            length, seconds, why = before
            expected = seconds * shape.length / length
            if why:
                reading.reason = f"{why} at L {length:,} already"
                return reading
            if expected > 1.2 * limit:
                reading.reason = f"would take at least {expected:.0f} s ({seconds:.2g} s at L {length:,})"
                return reading
        probe = self._probe(case, side, mode, shape, limit)
        reading.peak_bytes, reading.held_bytes = probe.peak_bytes, probe.held_bytes
        reading.total_bytes, reading.seconds, reading.fastest = (
            probe.total_bytes,
            probe.seconds,
            probe.seconds,
        )
        reading.reason, reading.runs = probe.reason, int(probe.status == "ok")
        reading.status = "measured" if probe.status == "ok" else probe.status
        self._known[key] = (shape.length, probe.seconds or 0.0, "" if probe.status == "ok" else probe.reason)
        return reading

    def _probe(self, case: Case, side: Side, mode: Mode, shape: Shape, limit: float) -> Probe:
        if self.isolated.available:
            memory = int(0.8 * available_memory())
            shape_fields = {k: getattr(shape, k) for k in ("batch", "length", "width", "dtype")}
            where = (self.plan.module, case.name, side.name, mode, shape_fields)
            return self.isolated.run(Job(*where, self.plan.threads, limit, memory))
        try:
            run = executable(side.make(case.inputs(shape), shape, mode), mode)
            return Probe("ok", seconds=timed(run))
        except Exception as error:  # noqa: BLE001 - a peer may raise anything; its words go into the table
            return Probe("failed", f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")

    def _in_turn(self, case: Case, cell: Cell, sides: Sequence[Side], expected: dict[str, float]) -> None:
        """Compares the sides' values and times all that agree, in turn, in this process."""
        shape, mode, runs = cell.shape, cell.mode, {}
        first: dict[str, float] = {}
        reference: list[torch.Tensor] = []
        budget = 0.8 * available_memory()
        for side in sides:
            reading = cell.reading(side.name)
            assert reading is not None
            need = (reading.peak_bytes or 0) + (reading.held_bytes or 0)
            budget -= reading.held_bytes or 0
            if need > budget:
                reading.status, reading.seconds = "skipped", None
                reading.reason = f"{need / 2**30:.1f} GiB beside the other sides are more than there is"
                continue
            self.tell(f"{side.name}: warm-up")
            run = executable(side.make(case.inputs(shape), shape, mode), mode)
            try:
                start = time.perf_counter()
                outputs = run()
                if expected[side.name] > _NEEDS_NO_WARM_UP:
                    first[side.name] = time.perf_counter() - start
                for _ in range(2 if mode == "step" else 0):  # from the third position on all state is in use
                    outputs = run()
                if side.name == OURS:
                    reference = outputs
                elif side.same:
                    reading.difference = check_agreement(reference, outputs, shape.dtype)
            except Disagreement as error:
                reading.status, reading.seconds, reading.reason = "failed", None, str(error)
                continue
            runs[side.name] = run
            del outputs
        reference.clear()
        times = interleave(
            runs,
            expected,
            _ROUNDS,
            self.plan.seconds,
            lambda name: self.tell(f"{name}: timing"),
            first,
        )
        for name, seconds in times.items():
            reading = cell.reading(name)
            assert reading is not None
            summarise(reading, seconds)


def _names(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _parser(suite: str, what: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"longseq bench {suite}",
        description=f"Measures the {what} against their peers in one run: time, memory, share of the bound.",
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="batch 1, float32, two lengths: a few minutes")
    add("--operators", type=_names, metavar="a,b", help=f"some of the {what}; see --list")
    add("--lengths", type=_names, metavar="n,m", help=f"in place of {', '.join(map(str, LENGTHS))}")
    add("--threads", type=int, default=torch.get_num_threads(), help="for torch (all cores if not given)")
    add("--limit", type=float, help="seconds of one run of one side, at most; what takes longer is stopped")
    add("--peers", action=argparse.BooleanOptionalAction, default=True, help="others' code beside ours")
    add("--width", type=int, default=WIDTH, help=f"of the model, D, up to L {WIDE_UNTIL:,} ({WIDTH})")
    out = Path("outputs") / f"bench_{suite}"
    add("--out", type=Path, default=out, metavar="DIR", help=f"folder of the results ({out})")
    add("--list", action="store_true", help="show what is measured and which peers are there")
    return parser


def _plan(module: str, options: argparse.Namespace) -> Plan:
    cases: Sequence[Case] = importlib.import_module(module).CASES
    named = {case.name: case for case in cases}
    for name in options.operators or ():
        if name not in named:
            raise ConfigError(f"--operators: nothing is named {name!r}; {did_you_mean(name, named)}")
    if options.operators == []:
        raise ConfigError("--operators needs at least one name")
    for text in options.lengths or ():
        if not text.isdigit() or int(text) < 64 or int(text) % 64:
            raise ConfigError(f"--lengths takes multiples of 64, which every peer can have, got {text!r}")
    if options.threads < 1:
        raise ConfigError(f"--threads must be at least 1, got {options.threads}")
    if options.width < 64 or options.width % 64:
        raise ConfigError(f"--width must be a multiple of 64, got {options.width}")
    limit = options.limit if options.limit is not None else (6.0 if options.quick else 8.0)
    if limit <= 0:
        raise ConfigError(f"--limit must be above 0, got {limit:g}")
    lengths = sorted({int(text) for text in options.lengths or ()})
    return Plan(
        module,
        [named[name] for name in options.operators] if options.operators else cases,
        lengths or (QUICK_LENGTHS if options.quick else LENGTHS),
        bool(lengths),
        options.quick,
        options.threads,
        limit,
        0.6 if options.quick else 0.8,
        options.peers,
        options.width,
    )


def _list(cases: Sequence[Case], console: Console) -> None:
    for case in cases:
        console.print(f"[bold]{case.name}[/]  {case.about}", highlight=False)
        for side in case.sides[1:]:
            there = peers.status(side.peer) if side.peer else peers.Status(True, torch.__version__)
            state = there.version if there.available else there.reason
            note = f", {side.note}" if side.note else ""
            console.print(f"    {side.name}{note}: {state}", highlight=False, soft_wrap=True)


def measure_all(plan: Plan, console: Console, save: Callable[[list[Cell], Bounds], object]) -> list[Cell]:
    """Measures all cells, showing progress, and saves what there is after each case.

    Args:
        plan: of the run.
        console: for the progress.
        save: called with the cells so far and the bounds.
    """
    cells: list[Cell] = []
    todo = list(grid(plan))
    columns = (TextColumn("{task.description}"), BarColumn(20), MofNCompleteColumn(), TimeElapsedColumn())
    before = torch.get_num_threads()
    torch.set_num_threads(plan.threads)
    try:
        with Progress(*columns, console=console, transient=True) as progress, Isolated() as isolated:
            bar = progress.add_task("bounds of this machine", total=len(todo))
            bounds = measure_bounds(plan.threads, 1.5 if plan.quick else 3.0)
            title = ""
            runner = Runner(plan, isolated, lambda text: progress.update(bar, description=f"{title} {text}"))
            for number, (case, mode, shape) in enumerate(todo):
                title = f"{case.name} {mode} B {shape.batch} L {shape.length:,} {shape.dtype}"
                cells.append(runner.cell(case, mode, shape))
                progress.update(bar, completed=number + 1)
                if number + 1 == len(todo) or todo[number + 1][0] is not case:
                    if number + 1 == len(todo):  # a quiet moment at the end shows more than a loud start
                        bounds = bounds.best(measure_bounds(plan.threads, 1.5))
                    save(cells, bounds)
    finally:
        torch.set_num_threads(before)
    return cells


def run(suite: str, module: str, what: str, argv: Sequence[str]) -> int:
    """Runs one of the two benchmarks and returns the exit status.

    Args:
        suite: "kernels" or "models".
        module: that holds its cases.
        what: they are, in the plural.
        argv: arguments after the suite's name.

    Raises:
        ConfigError: for a wrong option, before anything is measured.
    """
    options = _parser(suite, what).parse_args(list(argv))
    plan, console = _plan(module, options), Console(width=None if sys.stdout.isatty() else 140)
    if options.list:
        _list(plan.cases, console)
        return 0
    if not list(grid(plan)):
        raise ConfigError("nothing to measure: every length is beyond what these can have; see --list")
    if options.out.exists() and not options.out.is_dir():
        raise ConfigError(f"--out {options.out} is a file; name a folder")
    facts = machine(plan.threads)
    found: list[Bounds] = []

    def save(cells: list[Cell], bounds: Bounds) -> None:
        found[:] = [bounds]
        write(suite, cells, bounds, facts, plan.settings(), options.out, plot=False)

    cells = measure_all(plan, console, save)
    show(suite, plan.cases, cells, found[0], facts, console)
    files = write(suite, cells, found[0], facts, plan.settings(), options.out)
    console.print("written: " + ", ".join(map(str, files)), soft_wrap=True, highlight=False)
    return 0
