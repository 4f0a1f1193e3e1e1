"""What longseq's kernels promise, on the CPU and on the GPU: reached, or missed by how much."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from longseq.bench.bounds import Bounds
from longseq.bench.gpu.agreement import Result
from longseq.bench.measure import OURS, Cell, Mode

_GIB = 1 << 30


@dataclass(frozen=True)
class Target:
    """One promise, in float32.

    Attributes:
        text: in words.
        case: whose cells decide.
        mode: of them.
        kind: "ratio" of speeds, "bound" as the share of the multiply-add bound, "memory" as the
            share of the peer's peak, "fits" as GiB of the whole process.
        limit: at least (speeds, bounds) or at most (memory) this.
        sides: the peers; the fastest of them decides.
        length: of the cells.
        batches: of the cells; the worst decides.
        width: of the cells.
    """

    text: str
    case: str
    mode: Mode
    kind: Literal["ratio", "bound", "memory", "fits"]
    limit: float
    sides: tuple[str, ...] = ()
    length: int = 4096
    batches: tuple[int, ...] = (1, 4)
    width: int = 768


@dataclass(frozen=True)
class Verdict:
    """How a target fared.

    Attributes:
        text: the target's.
        limit: what was promised, with its unit.
        value: what was measured, with its unit; "over" where the peer was stopped; empty if not
            measured.
        reached: or not; None if not measured.
        words: reached, missed by how much, or why it was not measured.
    """

    text: str
    limit: str
    value: str
    reached: bool | None
    words: str


def _ratios(
    case: str, name: str, mode: Mode, least: float, *sides: str, length: int = 4096
) -> Target:
    text = f"{name}: at least {least:.3g} times as fast as {' and '.join(sides)}"
    return Target(text, case, mode, "ratio", least, sides, length)


def _convolutions() -> list[Target]:
    targets = []
    for case, name in (("s4d", "S4D"), ("hyena", "Hyena"), ("long_conv", "long convolution")):
        targets.append(_ratios(case, f"{name} block, training step", "training", 2, "torch.fft"))
        text = f"{name} block, training step: at most half the peak memory of torch.fft"
        targets.append(Target(text, case, "training", "memory", 0.5, ("torch.fft",)))
    return targets


_SCAN = "selective scan forward"
_BOTH = "selective scan forward + backward"
TARGETS: tuple[Target, ...] = (
    Target(f"{_SCAN}: at least 80% of the FMA bound", "selective_scan", "forward", "bound", 0.8),
    _ratios("selective_scan", _SCAN, "forward", 50, "mambapy"),
    _ratios("selective_scan", _SCAN, "forward", 40, "mamba-ssm ref"),
    Target(f"{_BOTH}: at least 60% of the FMA bound", "selective_scan", "training", "bound", 0.6),
    _ratios("selective_scan", _BOTH, "training", 50, "mambapy"),
    _ratios("delta_rule", "delta rule forward", "forward", 3, "fla"),
    _ratios("delta_rule", "delta rule forward", "forward", 20, "sequential"),
    _ratios("delta_rule", "delta rule forward + backward", "training", 3, "fla"),
    _ratios("delta_rule", "delta rule forward + backward", "training", 20, "sequential"),
    _ratios(
        "mamba", "Mamba block, training step, L 1024", "training", 50, "transformers", length=1024
    ),
    _ratios("mamba", "Mamba block, training step", "training", 8, "mambapy"),
    _ratios("mamba2", "Mamba-2 block, training step", "training", 3, "transformers"),
    _ratios(
        "gated_delta_net", "Gated DeltaNet block, training step", "training", 1 / 1.5, "mamba2"
    ),
    _ratios(
        "mlstm",
        "mLSTM block, training step",
        "training",
        2,
        "xlstm",
        "xlstm chunkwise",
        "xlstm custbw",
    ),
    _ratios("slstm", "sLSTM block, training step", "training", 5, "xlstm"),
    _ratios("slstm", "sLSTM block, training step", "training", 0.7, "nn.LSTM"),
    *_convolutions(),
    Target(
        "Mamba block, one-step decode, batch 1: at least 5 times as fast as transformers",
        "mamba",
        "step",
        "ratio",
        5,
        ("transformers",),
        length=1,
        batches=(1,),
    ),
    *(
        Target(
            f"{what}, one forward at L 1,000,000: within {limit} GiB",
            case,
            "forward",
            "fits",
            limit,
            length=1_000_000,
            batches=(1,),
            width=256,
        )
        for case, what, limit in (
            ("hyenadna", "HyenaDNA-shaped model", 8),
            ("hyenadna_mamba", "HyenaDNA-shaped model with Mamba", 4),
        )
    ),
)
"""What the two benchmarks are held to; a name in ``case`` is an operator's or a block's."""
_OPERATORS = ("selective_scan", "delta_rule")


def targets_of(level: str) -> list[Target]:
    """Returns the targets of one benchmark.

    Args:
        level: "kernels" or "models".
    """
    return [target for target in TARGETS if (target.case in _OPERATORS) == (level == "kernels")]


@dataclass(frozen=True)
class _Value:
    value: float
    lower_bound: bool
    words: str


def _ratio(target: Target, cell: Cell) -> _Value | str:
    """Returns the ratio to the fastest side, or why there is none."""
    found: list[_Value] = []
    reason = "no peer was measured"
    for name in target.sides:
        reading, ratio = cell.reading(name), cell.ratio(name)
        if ratio is None:
            reason = (
                f"{name}: {reading.reason or reading.status}" if reading is not None else reason
            )
            continue
        stopped = reading is not None and reading.status == "stopped"
        found.append(_Value(ratio, stopped, f"B {cell.shape.batch}"))
    return min(found, key=lambda value: value.value) if found else reason


def _value(target: Target, cell: Cell, bounds: Bounds) -> _Value | str:
    """Returns what a cell says of a target, or why it says nothing."""
    ours = cell.reading(OURS)
    if ours is None or ours.seconds is None or ours.status != "measured":
        return f"ours: {ours.reason or ours.status}" if ours is not None else "not run"
    where = f"B {cell.shape.batch}"
    if target.kind == "ratio":
        return _ratio(target, cell)
    if target.kind == "bound":
        return _Value(
            bounds.seconds(cell.work, cell.shape.dtype)["FMA"] / ours.seconds, False, where
        )
    if target.kind == "fits":
        if ours.total_bytes is None:
            return "this system does not tell a process's peak memory"
        return _Value(ours.total_bytes / _GIB, False, f"{ours.seconds:.0f} s")
    other = cell.reading(target.sides[0])
    if other is None or other.peak_bytes is None or ours.peak_bytes is None:
        why = (other.reason or other.status) if other else "absent"
        return f"no peak memory of {target.sides[0]}: {why}"
    return _Value(ours.peak_bytes / max(1, other.peak_bytes), False, where)


def _written(kind: str, value: float) -> str:
    if kind == "ratio":
        return f"{value:.3g}×"
    return f"{value:.1f} GiB" if kind == "fits" else f"{100 * value:.0f}%"


def judge(target: Target, cells: Sequence[Cell], bounds: Bounds) -> Verdict:
    """Returns how a target fared in a run, by the worst of its cells.

    Args:
        target: what was promised.
        cells: of the run.
        bounds: of the machine.
    """
    at_most = target.kind in ("memory", "fits")
    limit = f"{'≤' if at_most else '≥'} {_written(target.kind, target.limit)}"
    fitting = [
        cell
        for cell in cells
        if (cell.case, cell.mode, cell.shape.length) == (target.case, target.mode, target.length)
        and cell.shape.batch in target.batches
        and (cell.shape.dtype, cell.shape.width) == ("float32", target.width)
    ]
    values = [_value(target, cell, bounds) for cell in fitting]
    known = [value for value in values if isinstance(value, _Value)]
    if not known:
        reasons = [value for value in values if isinstance(value, str)]
        words = reasons[0] if reasons else "its shape is not part of this run"
        return Verdict(target.text, limit, "", None, f"not measured: {words}")
    worst = (max if at_most else min)(known, key=lambda value: value.value)
    reached = worst.value <= target.limit if at_most else worst.value >= target.limit
    share = worst.value / target.limit
    over = "over " if worst.lower_bound else ""
    text = f"{over}{_written(target.kind, worst.value)} ({worst.words})"
    if reached:
        words = "reached"
    elif worst.lower_bound:
        return Verdict(
            target.text, limit, text, None, "not decided: the peer was stopped; raise --limit"
        )
    else:
        words = (
            f"missed: {share:.2f} of what it should be"
            if not at_most
            else f"missed: {share:.2f} times it"
        )
    return Verdict(target.text, limit, text, reached, words)


@dataclass(frozen=True)
class GpuTarget:
    """A promise of the GPU kernels: at least ``least`` of something, in every row that it is about.

    Attributes:
        words: what is aimed at.
        least: of the number.
        about: whether a timing counts.
        peer: whose time over ours is the number; None for the percentage of the bound.
    """

    words: str
    least: float
    about: Callable[[Result], bool]
    peer: str | None


_FLA = ("gla", "simple gla", "retention")
_DELTA = ("delta rule", "gated delta rule", "kda")
GPU_TARGETS = (
    GpuTarget(
        "selective scan: 1.2 times mamba-ssm's at L ≥ 8k",
        1.2,
        lambda row: row["family"] == "scan" and row["length"] >= 8192,
        "mamba-ssm",
    ),
    GpuTarget(
        "selective scan: 3 times mamba-ssm's at B 1, L ≥ 256k",
        3.0,
        lambda row: row["family"] == "scan" and row["batch"] == 1 and row["length"] >= 262144,
        "mamba-ssm",
    ),
    GpuTarget("SSD: as fast as mamba-ssm's", 1.0, lambda row: row["family"] == "ssd", "mamba-ssm"),
    GpuTarget(
        "GLA, simple GLA, retention: as fast as fla's",
        1.0,
        lambda row: row["family"] in _FLA,
        "fla",
    ),
    GpuTarget(
        "delta rule, gated, KDA: as fast as fla's", 1.0, lambda row: row["family"] in _DELTA, "fla"
    ),
    GpuTarget(
        "selective scan: 60 % of the bound at L ≥ 8k",
        60.0,
        lambda row: row["family"] == "scan" and row["length"] >= 8192,
        None,
    ),
)


def _number(row: Result, peer: str | None) -> float | str:
    """Returns what a target looks at in a timing, or in words why there is none."""
    own = row["seconds"]
    if not isinstance(own, float):
        return f"ours: {own}"
    if peer is None:
        return float(row["percent_of_bound"])
    theirs = row["peers"].get(peer, "not timed")
    return theirs / own if isinstance(theirs, float) else str(theirs)


def gpu_verdicts(rows: list[Result]) -> list[Result]:
    """Returns for each target whether it is met: "met", "missed", or "not measured" with the
    reason.

    Args:
        rows: timings.
    """
    found = []
    for target in GPU_TARGETS:
        numbers = [_number(row, target.peer) for row in rows if target.about(row)]
        values = [n for n in numbers if isinstance(n, float)]
        reasons = list(dict.fromkeys(n for n in numbers if isinstance(n, str)))
        row: Result = {
            "target": target.words,
            "least": target.least,
            "worst": min(values, default=None),
        }
        if values:
            row["verdict"] = "met" if min(values) >= target.least else "missed"
        else:
            row["verdict"] = "not measured"
        row["why"] = "; ".join(reasons) if numbers else "none of it was timed"
        row["of"] = [len(values), len(numbers)]
        found.append(row)
    return found


def gpu_line(row: Result) -> str:
    """Returns a verdict in words."""
    if row["verdict"] == "not measured":
        return f"  not measured: {row['target']} ({row['why']})"
    done, asked = row["of"]
    missing = f"; {asked - done} of {asked} without a figure: {row['why']}" if done < asked else ""
    worst = f"{row['worst']:.2f} at worst in {done} timings{missing}"
    return f"  {row['verdict']}: {row['target']}: {worst}"
