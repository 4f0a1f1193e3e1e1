"""What a recall run found: the known orderings, tables, files and a plot."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from longseq.bench.recall_tasks import get_task
from longseq.core.figures import new_figure, save_png
from longseq.core.files import atomic_path
from longseq.core.mixers.base import mixer_class
from longseq.core.tables import write_rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SOLVED = 0.95
_DELTA = ("delta_net", "gated_delta_net", "gated_delta_product", "kda", "rwkv7")


@dataclass
class Result:
    """One mixer on one task.

    Attributes:
        task: name.
        mixer: name.
        parameters: number of trainable values in the backbone.
        state: values that the mixers carry for one row after the longest training length.
        steps: steps trained.
        seconds: of training, from the second step on: the first loads and compiles.
        tokens_per_second: in that time, forward, backward and update.
        loss: mean over the last steps, in nats.
        accuracy: by length, over all questions of the test sequences.
    """

    task: str
    mixer: str
    parameters: int
    state: int
    steps: int
    seconds: float
    tokens_per_second: float
    loss: float
    accuracy: dict[int, float] = field(default_factory=dict)


def orderings(results: Sequence[Result]) -> list[tuple[str, bool]]:
    """Returns what is known from the literature of the measured mixers and tasks, and whether it
    was seen.

    Args:
        results: of a run; an ordering whose mixers or task are missing is left out.
    """
    found = {(r.task, r.mixer): r for r in results}
    seen: list[tuple[str, bool]] = []

    def trained(task: str, mixer: str) -> float | None:
        """Accuracy at the longest training length."""
        result = found.get((task, mixer))
        return None if result is None else result.accuracy.get(max(get_task(task).train_lengths))

    solvers = [m for m in ("attention", "mamba", "h3") if trained("induction_heads", m) is not None]
    if solvers:
        holds = all((trained("induction_heads", m) or 0) >= SOLVED for m in solvers)
        seen.append(
            (f"{', '.join(solvers)}: induction heads solved (2212.14052, 2312.00752)", holds)
        )
    for mixer, solves in (("mamba", True), ("s4d", False)):
        score = trained("selective_copying", mixer)
        if score is not None:
            text = "solved: selective" if solves else "not solved: time-invariant"
            seen.append(
                (f"{mixer}: selective copying {text} (2312.00752)", (score >= SOLVED) == solves)
            )
    attention = found.get(("multi_query_recall", "attention"))
    for (task, mixer), result in found.items():
        if (
            task == "multi_query_recall"
            and mixer_class(mixer.split(":")[0]).finite_state
            and attention is not None
        ):
            few, many = result.accuracy[min(result.accuracy)], result.accuracy[max(result.accuracy)]
            lost = many < min(few, attention.accuracy[max(attention.accuracy)]) - 0.05
            seen.append(
                (f"{mixer}: multi-query recall lost as the keys multiply (2312.04927)", lost)
            )
    for (task, mixer), result in found.items():
        if task == "multi_query_recall_64" and mixer.split(":")[0] in _DELTA:
            longest = max(get_task(task).train_lengths)
            mamba, own = trained(task, "mamba"), result.accuracy.get(longest)
            if mamba is not None and own is not None:
                text = "64 keys recalled, by mamba not (2406.06484, 2412.06464)"
                seen.append((f"{mixer}: {text}", own >= 0.9 > 0.5 >= mamba))
    parity = trained("parity", "slstm")
    if parity is not None:
        longest = max(found["parity", "slstm"].accuracy)
        others = [
            r.accuracy.get(longest, 0.0)
            for r in results
            if r.task == "parity" and r.mixer.split(":")[0] not in ("slstm", "mamba3", *_DELTA)
        ]
        holds = found["parity", "slstm"].accuracy[longest] > max(others, default=0.0) + 0.05
        seen.append(
            (f"slstm: parity carried to length {longest}, by no decay alone (2405.04517)", holds)
        )
    return seen


def show(results: Sequence[Result], console: Console) -> None:
    """Prints one table for each task, and the known orderings."""
    for name in dict.fromkeys(r.task for r in results):
        task, rows = get_task(name), [r for r in results if r.task == name]
        table = Table(
            title=f"{name}: {task.about} (guessing: {task.chance:.1%})",
            title_justify="left",
            caption="accuracy in %; * longer than any seen in training",
            caption_justify="left",
            box=SIMPLE_HEAD,
            padding=(0, 1, 0, 0),
        )
        table.add_column("mixer", no_wrap=True)
        lengths = sorted({length for r in rows for length in r.accuracy})
        for length in lengths:
            longer = length > max(task.train_lengths)
            table.add_column(f"{length}{'*' if longer else ''}", justify="right", no_wrap=True)
        for head in ("steps", "tok/s", "params", "state"):
            table.add_column(head, justify="right", no_wrap=True)
        for r in rows:
            cells = [_percent(r.accuracy.get(length)) for length in lengths]
            numbers = (
                f"{r.steps:,}",
                f"{r.tokens_per_second:,.0f}",
                f"{r.parameters:,}",
                f"{r.state:,}",
            )
            table.add_row(r.mixer, *cells, *numbers)
        console.print(table)
    for text, holds in orderings(results):
        console.print(
            f"[green]seen[/]      {text}" if holds else f"[red]not seen[/]  {text}", highlight=False
        )


def _percent(share: float | None) -> str:
    if share is None:
        return "–"
    return f"[bold]{100 * share:.1f}[/]" if share >= SOLVED else f"{100 * share:.1f}"


def write(results: Sequence[Result], settings: Mapping[str, Any], folder: Path) -> list[Path]:
    """Writes results.csv (a row for each length), results.json, accuracy.png and cost.png, each
    whole or not at all.

    Args:
        results: what was measured.
        settings: how.
        folder: where; made if missing.

    Returns:
        The files.
    """
    table, record = folder / "results.csv", folder / "results.json"
    plot, costs = folder / "accuracy.png", folder / "cost.png"
    kinds = {"str": "", "int": "d", "float": "r"}
    own = {f.name: kinds[str(f.type)] for f in dataclasses.fields(Result) if f.name != "accuracy"}
    further = {"length": "d", "trained_length": "", "accuracy": "r", "chance": "r"}
    rows: list[list[Any]] = []
    for r in results:
        task = get_task(r.task)
        for length, value in r.accuracy.items():
            trained = str(length <= max(task.train_lengths))
            rows.append([*(getattr(r, name) for name in own), length, trained, value, task.chance])
    write_rows(table, own | further, rows)
    with atomic_path(record) as path:
        content = {
            "settings": dict(settings),
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "results": [dataclasses.asdict(r) for r in results],
            "orderings": [{"statement": text, "seen": holds} for text, holds in orderings(results)],
        }
        path.write_text(json.dumps(content, indent=1))
    save_png(_figure(results), plot)
    save_png(_costs(results), costs)
    return [table, record, plot, costs]


def _costs(results: Sequence[Result]) -> Figure:
    """Accuracy at the longest training length against the size of the state and the speed."""
    names = list(dict.fromkeys(r.task for r in results))
    mixers = list(dict.fromkeys(r.mixer for r in results))
    figure = new_figure(9, 3.4 * len(names))
    sides = ("state", "values carried for a row"), ("tokens_per_second", "tokens/s of training")
    for row, name in enumerate(names):
        longest = max(get_task(name).train_lengths)
        for column, (field_name, label) in enumerate(sides):
            axis = figure.add_subplot(len(names), 2, 2 * row + column + 1)
            for r in (r for r in results if r.task == name):
                tested = [length for length in r.accuracy if length <= longest]
                if not tested:
                    continue
                at = (max(1, getattr(r, field_name)), r.accuracy[max(tested)])
                axis.plot(*at, "o", color=f"C{mixers.index(r.mixer) % 10}", ms=5)
                axis.annotate(r.mixer, at, (3, 3), textcoords="offset points", fontsize=6)
            axis.axhline(get_task(name).chance, color="grey", ls=":", lw=1)
            axis.set(title=name, xlabel=label, ylim=(-0.03, 1.09), xscale="log")
        figure.axes[2 * row].set_ylabel("accuracy")
    return figure


def _figure(results: Sequence[Result]) -> Figure:
    names = list(dict.fromkeys(r.task for r in results))
    mixers = list(dict.fromkeys(r.mixer for r in results))
    columns = min(len(names), 4)
    rows = -(-len(names) // columns)
    figure = new_figure(4 * columns, 3.4 * rows)
    for place, name in enumerate(names):
        axis, task = figure.add_subplot(rows, columns, place + 1), get_task(name)
        for r in (r for r in results if r.task == name):
            lengths, values = list(r.accuracy), list(r.accuracy.values())
            axis.plot(
                lengths, values, "o-", label=r.mixer, color=f"C{mixers.index(r.mixer) % 10}", ms=4
            )
        axis.axhline(task.chance, color="grey", ls=":", lw=1)
        axis.axvline(max(task.train_lengths), color="grey", ls="--", lw=1)
        axis.set(title=name, xlabel="length", ylim=(-0.03, 1.03), xscale="log")
        axis.set_xticks(list(r.accuracy), [str(length) for length in r.accuracy], minor=False)
        axis.minorticks_off()
    figure.axes[0].set_ylabel("accuracy")
    figure.legend(
        *figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(mixers)
    )
    return figure
