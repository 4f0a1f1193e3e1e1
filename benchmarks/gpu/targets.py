"""The targets that were set before anything was measured, and whether timings meet them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.gpu.agreement import Result


@dataclass(frozen=True)
class Target:
    """At least ``least`` of something, in every row that it is about.

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


DELTA = ("delta rule", "gated delta rule", "kda")
FLA = ("gla", "simple gla", "retention")
TARGETS = (
    Target(
        "selective scan: 1.2 times mamba-ssm's at L ≥ 8k", 1.2,
        lambda row: row["family"] == "scan" and row["length"] >= 8192, "mamba-ssm",
    ),
    Target(
        "selective scan: 3 times mamba-ssm's at B 1, L ≥ 256k", 3.0,
        lambda row: row["family"] == "scan" and row["batch"] == 1 and row["length"] >= 262144, "mamba-ssm",
    ),
    Target("SSD: as fast as mamba-ssm's", 1.0, lambda row: row["family"] == "ssd", "mamba-ssm"),
    Target("GLA, simple GLA, retention: as fast as fla's", 1.0, lambda row: row["family"] in FLA, "fla"),
    Target("delta rule, gated, KDA: as fast as fla's", 1.0, lambda row: row["family"] in DELTA, "fla"),
    Target(
        "selective scan: 60 % of the bound at L ≥ 8k", 60.0,
        lambda row: row["family"] == "scan" and row["length"] >= 8192, None,
    ),
)  # fmt: skip


def number(row: Result, peer: str | None) -> float | str:
    """Returns what a target looks at in a timing, or in words why there is none."""
    own = row["seconds"]
    if not isinstance(own, float):
        return f"ours: {own}"
    if peer is None:
        return float(row["percent_of_bound"])
    theirs = row["peers"].get(peer, "not timed")
    return theirs / own if isinstance(theirs, float) else str(theirs)


def verdicts(rows: list[Result]) -> list[Result]:
    """Returns for each target whether it is met: "met", "missed", or "not measured" with the reason.

    Args:
        rows: timings.
    """
    found = []
    for target in TARGETS:
        numbers = [number(row, target.peer) for row in rows if target.about(row)]
        values = [n for n in numbers if isinstance(n, float)]
        reasons = list(dict.fromkeys(n for n in numbers if isinstance(n, str)))
        row: Result = {"target": target.words, "least": target.least, "worst": min(values, default=None)}
        if values:
            row["verdict"] = "met" if min(values) >= target.least else "missed"
        else:
            row["verdict"] = "not measured"
        row["why"] = "; ".join(reasons) if numbers else "none of it was timed"
        row["of"] = [len(values), len(numbers)]
        found.append(row)
    return found


def line(row: Result) -> str:
    """Returns a verdict in words."""
    if row["verdict"] == "not measured":
        return f"  not measured: {row['target']} ({row['why']})"
    done, asked = row["of"]
    missing = f"; {asked - done} of {asked} without a figure: {row['why']}" if done < asked else ""
    return f"  {row['verdict']}: {row['target']}: {row['worst']:.2f} at worst in {done} timings{missing}"
