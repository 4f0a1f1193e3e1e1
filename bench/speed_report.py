"""What a speed benchmark found: tables of ratios and bounds, the verdict on the targets, JSON and a
plot."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy
import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from longseq.bench import peers
from longseq.bench.bounds import Bounds
from longseq.bench.isolated import Isolated, available_memory
from longseq.bench.measure import OURS, Case, Cell, Reading
from longseq.bench.targets import Verdict, judge, targets_of
from longseq.core import __version__
from longseq.core.figures import new_figure, save_png
from longseq.core.files import atomic_path
from longseq.core.shell.doctor import cpu_kernels, cpu_model

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMAT = 1


def _commit() -> str | None:
    """Returns the commit of the checkout that this package is in, with a mark if files differ from
    it."""
    here = Path(__file__).resolve().parent

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", *words], cwd=here, capture_output=True, text=True, timeout=20
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "--short=10", "HEAD")
    # An installed copy may lie in somebody else's checkout.
    if commit is None or not git("ls-files", "."):
        return None
    return commit + (
        " with changes" if git("status", "--porcelain", "--untracked-files=no") else ""
    )


def machine(threads: int) -> dict[str, Any]:
    """Returns where a run takes place: hardware, versions, commit, load, and which peers are there.

    Args:
        threads: of the run.
    """
    isa, reason = cpu_kernels()
    return {
        "longseq": __version__,
        "commit": _commit(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": cpu_model(),
        "isa": isa or f"none: {reason}",
        "cores": os.cpu_count(),
        "threads": threads,
        "load_before": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "memory_available_bytes": available_memory(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "blas": "mkl" if torch.backends.mkl.is_available() else "not mkl",
        "peers": {name: dataclasses.asdict(peers.status(name)) for name in peers.PEERS},
    }


def record(
    suite: str,
    cells: Sequence[Cell],
    bounds: Bounds,
    facts: Mapping[str, Any],
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """Returns everything as plain values.

    Args:
        suite: "kernels" or "models".
        cells: of the run.
        bounds: of the machine.
        facts: from ``machine``.
        settings: of the run.
    """
    rows = []
    for cell in cells:
        seconds = bounds.seconds(cell.work, cell.shape.dtype)
        ours = cell.reading(OURS)
        shares = {}
        if ours is not None and ours.status == "measured" and ours.seconds:
            shares = {resource: least / ours.seconds for resource, least in seconds.items()}
        ratios = {r.side: cell.ratio(r.side) for r in cell.readings if r.side != OURS}
        rows.append(
            {
                **dataclasses.asdict(cell),
                "ratios": ratios,
                "bound_seconds": seconds,
                "bound": shares,
            }
        )
    return {
        "format": FORMAT,
        "suite": suite,
        "machine": dict(facts),
        "settings": dict(settings),
        "bounds": dataclasses.asdict(bounds),
        "cells": rows,
        "targets": [dataclasses.asdict(verdict) for verdict in verdicts(suite, cells, bounds)],
    }


def verdicts(suite: str, cells: Sequence[Cell], bounds: Bounds) -> list[Verdict]:
    """Returns how each target of a suite fared.

    Args:
        suite: "kernels" or "models".
        cells: of the run.
        bounds: of the machine.
    """
    return [judge(target, cells, bounds) for target in targets_of(suite)]


def _seconds(value: float) -> str:
    if value >= 10:
        return f"{value:.0f} s"
    if value >= 0.9995:
        return f"{value:.2f} s"
    return f"{1e3 * value:.3g} ms" if value >= 1e-3 else f"{1e6 * value:.0f} µs"


def _memory(value: int | None) -> str:
    if value is None:
        return "?"
    return f"{value / 1e9:.2f} GB" if value >= 1e9 else f"{value / 1e6:.0f} MB"


def _bound(cell: Cell, ours: Reading, bounds: Bounds) -> str:
    """Returns the share of the resource that binds, and which."""
    resource, least = max(
        bounds.seconds(cell.work, cell.shape.dtype).items(), key=lambda item: item[1]
    )
    assert ours.seconds is not None
    return f"{100 * least / ours.seconds:.0f}% {resource}"


def _peer(cell: Cell, name: str, notes: list[str]) -> str:
    """Returns how many times slower a peer is and its memory over ours, or the number of the
    reason."""
    reading = cell.reading(name)
    if reading is None:
        return ""
    ratio, ours = cell.ratio(name), cell.reading(OURS)
    text = ""
    if ratio is not None:
        stopped = reading.status == "stopped"
        text = f"{'>' if stopped else ''}{ratio:.3g}×"
        if ours is not None and ours.peak_bytes and reading.peak_bytes and not stopped:
            text += f" ({reading.peak_bytes / ours.peak_bytes:.2g}×)"
        if not stopped:
            return text
    reason = f"{name}: {reading.reason or reading.status}"
    if reason not in notes:
        notes.append(reason)
    return f"{text} [dim]\\[{notes.index(reason) + 1}][/]".strip()


def _table(case: Case, cells: Sequence[Cell], bounds: Bounds) -> tuple[Table, list[str]]:
    """Returns one case's table, and the notes that its cells point to."""
    table = Table(
        title=f"[bold]{case.name}[/] – {case.about}; D {max(c.shape.width for c in cells)}",
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for head in ("", "shape", OURS, "peak", "of bound"):
        table.add_column(head, justify="left" if head in ("", "shape") else "right", no_wrap=True)
    names = list(dict.fromkeys(r.side for cell in cells for r in cell.readings if r.side != OURS))
    for name in names:
        table.add_column(name, justify="right", overflow="fold")
    notes: list[str] = []
    widest = max(cell.shape.width for cell in cells)
    for cell in cells:
        shape, ours = cell.shape, cell.reading(OURS)
        size = f"B {shape.batch}" + ("" if cell.mode == "step" else f" L {shape.length:,}")
        size += f" D {shape.width}" if shape.width != widest else ""
        size += "" if shape.dtype == "float32" else " bf16"
        row = [cell.mode, size]
        if ours is not None and ours.status == "measured" and ours.seconds is not None:
            row += [_seconds(ours.seconds), _memory(ours.peak_bytes), _bound(cell, ours, bounds)]
        else:
            notes.append(
                f"{OURS}: {ours.reason or ours.status}" if ours is not None else f"{OURS}: not run"
            )
            row += [f"[red]\\[{len(notes)}][/]", "", ""]
        table.add_row(*row, *(_peer(cell, name, notes) for name in names))
    lines = [f"[{number + 1}] {note}" for number, note in enumerate(notes)]
    lines += [
        f"{side.name}: {side.note}" for side in case.sides if side.note and side.name in names
    ]
    return table, lines


def show(
    suite: str,
    cases: Sequence[Case],
    cells: Sequence[Cell],
    bounds: Bounds,
    facts: Mapping[str, Any],
    console: Console,
) -> None:
    """Prints the machine, a table for each case, and the targets.

    Args:
        suite: "kernels" or "models".
        cases: in their order.
        cells: of the run.
        bounds: of the machine.
        facts: from ``machine``.
        console: where.
    """

    def line(text: str) -> None:
        console.print(text, highlight=False, soft_wrap=True, markup=False)

    line(
        f"{facts['cpu']}, {facts['isa']}, {facts['threads']} of {facts['cores']} cores, "
        f"torch {facts['torch']}, longseq {facts['longseq']} ({facts['commit'] or 'no checkout'})"
    )
    line(
        f"bounds, measured: {bounds.fma / 1e9:.0f} G float32 multiply-adds/s (matrix product; "
        f"bfloat16 {bounds.fma_bfloat16 / 1e9:.0f}), {bounds.exp / 1e9:.2f} G exponentials/s "
        f"({bounds.exp_by}), {bounds.bandwidth / 1e9:.1f} GB/s (copy)"
    )
    load = facts["load_before"]
    if load is not None and load > 0.3:
        line(
            f"The machine was not idle: load {load} before the start. Times are too high, ratios "
            f"less so."
        )
    if not Isolated.available:
        line(
            "This system cannot tell a run's peak memory: it is not in the tables, and no run is "
            "stopped."
        )
    line(
        "Peers: how many times the time of ours (how many times the peak memory), in the same run. "
        "Peak: beyond inputs and weights."
    )
    for case in cases:
        own = [cell for cell in cells if cell.case == case.name]
        if own:
            table, notes = _table(case, own, bounds)
            console.print(table)
            for note in notes:
                line("  " + note)
    targets = Table(
        title="[bold]targets[/]", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )
    for head in ("", "promised", "measured", ""):
        targets.add_column(head, overflow="fold")
    for verdict in verdicts(suite, cells, bounds):
        colour = {True: "green", False: "red", None: "yellow"}[verdict.reached]
        targets.add_row(verdict.text, verdict.limit, verdict.value, f"[{colour}]{verdict.words}[/]")
    console.print(targets)


def write(
    suite: str,
    cells: Sequence[Cell],
    bounds: Bounds,
    facts: Mapping[str, Any],
    settings: Mapping[str, Any],
    folder: Path,
    plot: bool = True,
) -> list[Path]:
    """Writes results.json and speed.png, each whole or not at all.

    Args:
        suite: "kernels" or "models".
        cells: of the run.
        bounds: of the machine.
        facts: from ``machine``.
        settings: of the run.
        folder: where; made if missing.
        plot: whether to draw, too.

    Returns:
        The files.
    """
    values, picture = folder / "results.json", folder / "speed.png"
    with atomic_path(values) as path:
        path.write_text(json.dumps(record(suite, cells, bounds, facts, settings), indent=1) + "\n")
    if not plot:
        return [values]
    save_png(_figure(cells, bounds, facts), picture)
    return [values, picture]


def _figure(cells: Sequence[Cell], bounds: Bounds, facts: Mapping[str, Any]) -> Figure:
    """Plots seconds over length at batch 1 in float32; a step is a point at length 1."""
    names = list(dict.fromkeys((cell.case, cell.mode) for cell in cells))
    columns = min(len(names), 4)
    rows = -(-len(names) // columns)
    figure = new_figure(4 * columns, 3 * rows)
    sides = list(dict.fromkeys(r.side for cell in cells for r in cell.readings))
    for place, (case, mode) in enumerate(names):
        axis = figure.add_subplot(rows, columns, place + 1)
        own = [c for c in cells if (c.case, c.mode, c.shape.batch) == (case, mode, 1)]
        own = sorted((c for c in own if c.shape.dtype == "float32"), key=lambda c: c.shape.length)
        for side in sides:
            points = [(c.shape.length, c.reading(side)) for c in own]
            known = [
                (x, r.seconds)
                for x, r in points
                if r is not None and r.status == "measured" and r.seconds
            ]
            if known:
                colour = f"C{sides.index(side) % 10}"
                axis.plot(
                    *zip(*known), "o-", color=colour, ms=3, lw=2 if side == OURS else 1, label=side
                )
        least = [(c.shape.length, max(bounds.seconds(c.work, "float32").values())) for c in own]
        axis.plot(*zip(*least), ":", color="grey", label="bound")
        axis.set(title=f"{case}, {mode}", xscale="log", yscale="log", xlabel="L", ylabel="s")
        axis.grid(alpha=0.3)
    handles = {label: h for a in figure.axes for h, label in zip(*a.get_legend_handles_labels())}
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=min(8, len(handles))
    )
    figure.suptitle(f"{facts['cpu']}, {facts['threads']} threads, float32, B 1", fontsize=10)
    return figure
