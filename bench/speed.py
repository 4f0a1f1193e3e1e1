"""The run of ``longseq bench kernels`` and ``longseq bench models``: options and progress."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from longseq.bench import peers
from longseq.bench.bounds import Bounds, measure_bounds
from longseq.bench.isolated import Isolated
from longseq.bench.measure import (
    Case,
    Cell,
)
from longseq.bench.runner import LENGTHS, QUICK_LENGTHS, WIDE_UNTIL, WIDTH, Plan, Runner, grid
from longseq.bench.speed_report import machine, show, write
from longseq.core.command_line import CommandParser
from longseq.core.errors import ConfigError, did_you_mean


def _names(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _parser(suite: str, what: str) -> argparse.ArgumentParser:
    parser = CommandParser(
        prog=f"longseq bench {suite}",
        description=f"Measures the {what} against their peers in one run: time, memory, share of "
        f"the bound.",
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="batch 1, float32, two lengths: a few minutes")
    add("--operators", type=_names, metavar="a,b", help=f"some of the {what}; see --list")
    add("--lengths", type=_names, metavar="n,m", help=f"in place of {', '.join(map(str, LENGTHS))}")
    add(
        "--threads",
        type=int,
        default=torch.get_num_threads(),
        help="for torch (all cores if not given)",
    )
    add(
        "--limit",
        type=float,
        help="seconds of one run of one side, at most; what takes longer is stopped",
    )
    add(
        "--peers",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="others' code beside ours",
    )
    add(
        "--width",
        type=int,
        default=WIDTH,
        help=f"of the model, D, up to L {WIDE_UNTIL:,} ({WIDTH})",
    )
    out = Path("outputs") / f"bench_{suite}"
    add("--out", type=Path, default=out, metavar="DIR", help=f"folder of the results ({out})")
    add("--list", action="store_true", help="show what is measured and which peers are there")
    return parser


def _plan(module: str, options: argparse.Namespace) -> Plan:
    cases: Sequence[Case] = importlib.import_module(module).CASES
    named = {case.name: case for case in cases}
    for name in options.operators or ():
        if name not in named:
            raise ConfigError(
                f"--operators: nothing is named {name!r}; {did_you_mean(name, named)}"
            )
    if options.operators == []:
        raise ConfigError("--operators needs at least one name")
    for text in options.lengths or ():
        if not text.isdigit() or int(text) < 64 or int(text) % 64:
            raise ConfigError(
                f"--lengths takes multiples of 64, which every peer can have, got {text!r}"
            )
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


def measure_all(
    plan: Plan, console: Console, save: Callable[[list[Cell], Bounds], object]
) -> list[Cell]:
    """Measures all cells, showing progress, and saves what there is after each case.

    Args:
        plan: of the run.
        console: for the progress.
        save: called with the cells so far and the bounds.
    """
    cells: list[Cell] = []
    todo = list(grid(plan))
    columns = (
        TextColumn("{task.description}"),
        BarColumn(20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    before = torch.get_num_threads()
    torch.set_num_threads(plan.threads)
    try:
        with (
            Progress(*columns, console=console, transient=True) as progress,
            Isolated() as isolated,
        ):
            bar = progress.add_task("bounds of this machine", total=len(todo))
            bounds = measure_bounds(plan.threads, 1.5 if plan.quick else 3.0)
            title = ""
            runner = Runner(
                plan, isolated, lambda text: progress.update(bar, description=f"{title} {text}")
            )
            for number, (case, mode, shape) in enumerate(todo):
                title = f"{case.name} {mode} B {shape.batch} L {shape.length:,} {shape.dtype}"
                cells.append(runner.cell(case, mode, shape))
                progress.update(bar, completed=number + 1)
                if number + 1 == len(todo) or todo[number + 1][0] is not case:
                    # A quiet moment at the end shows more than a loud start.
                    if number + 1 == len(todo):
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
        raise ConfigError(
            "nothing to measure: every length is beyond what these can have; see --list"
        )
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
