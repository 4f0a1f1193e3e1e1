"""``longseq bench kernels`` and ``models``: sides agree, limits hold, nothing is left out
silently."""

from __future__ import annotations

import json
import math
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import Tensor

from longseq.bench import kernels, models, peers, runner, speed
from longseq.bench.block_cases import CASES as BLOCKS
from longseq.bench.bounds import Bounds, measure_bounds
from longseq.bench.isolated import Isolated, Job, Probe
from longseq.bench.kernel_cases import CASES as OPERATORS
from longseq.bench.measure import (
    OURS,
    Case,
    Cell,
    Disagreement,
    Mode,
    Program,
    Reading,
    Shape,
    Side,
    Work,
    check_agreement,
    difference,
    executable,
    interleave,
)
from longseq.bench.runner import Plan, Runner, grid
from longseq.bench.targets import TARGETS, Target, judge, targets_of
from longseq.core.errors import ConfigError

BOUNDS = Bounds(fma=1e11, fma_bfloat16=1e10, exp=1e9, bandwidth=1e10, exp_by="torch.exp")
needs_fork = pytest.mark.skipif(
    not Isolated.available, reason="needs fork and /proc to measure a process"
)


def side(
    name: str, call: Callable[[Tensor], Tensor], same: bool = True, peer: str | None = None
) -> Side:
    def make(x: Tensor, shape: Shape, mode: Mode) -> Program:
        leaf = x.clone().requires_grad_()
        return Program(lambda: call(leaf), [leaf])

    return Side(name, make, peer=peer, same=same)


def case(*sides: Side, name: str = "double") -> Case:
    def inputs(shape: Shape) -> Tensor:
        return torch.ones(shape.batch, shape.length, shape.width, dtype=shape.torch_dtype)

    return Case(
        name, "twice the input", "operator", inputs, sides, lambda shape, mode: Work(1e6, 0, 1e3)
    )


def plan(*cases: Case, quick: bool = True, module: str = "unused", limit: float = 5.0) -> Plan:
    return Plan(module, cases, (64,), True, quick, 1, limit, 0.01, True, 8)


class Unisolated(Isolated):
    """As on a system without fork."""

    available = False


def cell(
    ours: float | None, peer: float | None = None, status: str = "measured", **kw: object
) -> Cell:
    shape = Shape(kw.get("batch", 1), 4096, 768)  # type: ignore[arg-type]
    mine = Reading(
        OURS, "measured" if ours else "failed", seconds=ours, peak_bytes=40, reason="broken"
    )
    theirs = Reading("mambapy", status, seconds=peer, peak_bytes=100, reason="why")
    return Cell("selective_scan", "operator", "forward", shape, Work(5e9, 0, 0), [mine, theirs])


@pytest.mark.parametrize("one", [*OPERATORS, *BLOCKS], ids=lambda c: f"{c.level}-{c.name}")
def test_every_case_agrees_with_its_peers(one: Case) -> None:
    """Of those that are installed; plain torch always is."""
    for mode in one.modes:
        shape = Shape(2, 1 if mode == "step" else 64, 64)
        reference: list[Tensor] = []
        for implementation in one.sides:
            if mode not in implementation.modes:
                continue
            if implementation.peer is not None and not peers.status(implementation.peer).available:
                continue
            run = executable(implementation.make(one.inputs(shape), shape, mode), mode)
            values = run() + (run() if mode == "step" else [])
            assert all(bool(value.isfinite().all()) for value in values)
            if implementation.name == OURS:
                reference = values
            elif implementation.same:
                assert difference(reference, values) < 1e-4, (implementation.name, mode)


@pytest.mark.parametrize("one", [*OPERATORS, *BLOCKS], ids=lambda c: f"{c.level}-{c.name}")
def test_work_grows_with_length_and_mode(one: Case) -> None:
    short, long = (one.work(Shape(1, length, 128), "forward") for length in (256, 1024))
    assert 0 < short.fma < long.fma
    assert 0 < short.bytes < long.bytes
    assert one.work(Shape(1, 256, 128), "training").fma >= short.fma


def test_bounds_are_sane() -> None:
    bounds = measure_bounds(1, 0.2, copy_bytes=1 << 22, sizes=(128, 256))
    for rate in (bounds.fma, bounds.fma_bfloat16, bounds.exp, bounds.bandwidth):
        assert 1e6 < rate < 1e14  # the machine may be busy
    times = bounds.seconds(Work(bounds.fma, 2 * bounds.exp, 3 * bounds.bandwidth), "float32")
    assert times == pytest.approx({"FMA": 1.0, "exp": 2.0, "memory": 3.0})
    higher = bounds.best(Bounds(1, 2e13, 1e13, 1, "numpy.exp"))
    assert (higher.fma, higher.fma_bfloat16, higher.exp_by) == (bounds.fma, 2e13, "numpy.exp")


def test_a_wrong_result_is_refused() -> None:
    ours = [torch.ones(3)]
    assert check_agreement(ours, [torch.tensor([1.0, 1.0, 1.00001])], "float32") < 1e-3
    for wrong in (torch.tensor([1.0, 1.0, 1.1]), torch.tensor([1.0, 1.0, math.nan]), torch.ones(4)):
        with pytest.raises(Disagreement):
            check_agreement(ours, [wrong], "float32")
    found = case(
        side(OURS, lambda x: 2 * x),
        side("peer", lambda x: 3 * x),
        side("other", lambda x: 3 * x, False),
    )
    result = Runner(plan(found), Unisolated()).cell(found, "training", Shape(1, 64, 8))
    states = {r.side: r.status for r in result.readings}
    assert states == {OURS: "measured", "peer": "failed", "other": "measured"}
    wrong_one = result.reading("peer")
    assert wrong_one is not None
    assert wrong_one.seconds is None
    assert "differ from ours" in wrong_one.reason


def test_runs_take_turns() -> None:
    order: list[str] = []
    runs = {name: lambda name=name: order.append(name) for name in "ab"}
    times = interleave(runs, {"a": 1.0, "b": 1.0}, rounds=3, seconds=100)
    assert {name: len(values) for name, values in times.items()} == {"a": 75, "b": 75}
    assert [order[i] for i in (0, 25, 50, 75, 100, 125)] == ["a", "b", "b", "a", "a", "b"]
    once = interleave(runs, {"a": 1.0, "b": 1.0}, rounds=3, seconds=1e-9, first={"b": 1.0})
    assert len(once["a"]) == 1
    assert once["b"] == [1.0]


def test_an_absent_peer_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: None)
    monkeypatch.delenv(peers.SOURCE, raising=False)
    for name in peers.PEERS:
        assert not peers.status(name).available
    assert peers.status("mambapy").reason == "not installed: pip install -r bench/requirements.txt"
    assert f"set {peers.SOURCE}" in peers.status("mamba-ssm").reason
    monkeypatch.setenv(peers.SOURCE, "/nowhere")
    assert "has no mamba_ssm/ops" in peers.status("mamba-ssm").reason
    found = case(side(OURS, lambda x: 2 * x), side("mambapy", lambda x: 2 * x, peer="mambapy"))
    result = Runner(plan(found), Unisolated()).cell(found, "forward", Shape(1, 64, 8))
    assert [r.status for r in result.readings] == ["measured", "absent"]
    assert "pip install" in result.readings[1].reason


CASES_FILE = """
    import time
    import torch
    from longseq.bench.measure import Case, Program, Shape, Side, Work

    def make(call):
        def side(x, shape, mode):
            leaf = x.clone().requires_grad_()
            return Program(lambda: call(leaf), [leaf])
        return side

    def slow(x):
        while x.shape[1] > 64:  # never ends
            time.sleep(1.0)
        return 2 * x

    def large(x):
        return torch.zeros(1 << 46 if x.shape[1] > 64 else 1).sum() + 2 * x

    def broken(x):
        raise ValueError("no such thing")

    def hungry(x):
        return 2 * x + torch.ones(1 << 25).mean() - 1  # 128 MiB

    calls = {"longseq": lambda x: 2 * x, "slow": slow, "large": large}
    calls |= {"broken": broken, "hungry": hungry}
    CASES = (Case("double", "", "operator", lambda s: torch.ones(s.batch, s.length, s.width),
                  tuple(Side(n, make(c)) for n, c in calls.items()), lambda s, m: Work(1, 1, 1)),)
"""


@needs_fork
def test_limits_of_time_and_memory_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "limits_for_test.py").write_text(textwrap.dedent(CASES_FILE))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    module = __import__("limits_for_test")
    (found,) = module.CASES

    class Patient(Runner):
        """Only the side that never ends meets the limit: how long the others take is the machine's
        affair."""

        def _probe(self, case: Case, side: Side, mode: Mode, shape: Shape, limit: float) -> Probe:
            return super()._probe(case, side, mode, shape, limit if side.name == "slow" else 1e6)

    with Isolated() as isolated:
        runner = Patient(plan(found, module="limits_for_test", limit=0.5), isolated)
        result = runner.cell(found, "forward", Shape(1, 128, 8))
        readings = {r.side: r for r in result.readings}
        assert readings[OURS].status == "measured"
        assert (readings["slow"].status, readings["slow"].seconds) == ("stopped", 0.5)
        assert result.ratio("slow") == 0.5 / readings[OURS].seconds  # a lower bound
        assert readings["large"].reason.startswith("needs more than")
        assert readings["broken"].reason == "ValueError: no such thing"
        assert readings["hungry"].peak_bytes is not None
        assert readings["hungry"].peak_bytes == pytest.approx(1 << 27, rel=0.1)
        again = runner.cell(found, "forward", Shape(1, 256, 8))
        assert {r.side: (r.status, r.reason) for r in again.readings}["slow"] == (
            "skipped",
            "stopped after 0.5 s at L 128 already",
        )
    sys.modules.pop("limits_for_test", None)


@needs_fork
def test_a_job_that_is_killed_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = CASES_FILE.replace(
        "while x.shape[1] > 64:  # never ends", "import os; os._exit(9)\n        while True:"
    )
    (tmp_path / "killed_for_test.py").write_text(textwrap.dedent(text))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    shape = {"batch": 1, "length": 64, "width": 8, "dtype": "float32"}
    with Isolated() as isolated:
        probe = isolated.run(
            Job("killed_for_test", "double", "slow", "forward", shape, 1, 1e6, 1 << 30)
        )
    assert probe.status == "failed"
    assert "was killed" in probe.reason


def test_a_slow_side_is_not_tried_at_greater_lengths() -> None:
    found = case(side(OURS, lambda x: 2 * x), side("peer", lambda x: 2 * x))
    runner = Runner(plan(found, limit=5.0), Unisolated())
    runner.cell(found, "forward", Shape(1, 64, 8))
    key = next(key for key in runner._known if key[1] == "peer")
    runner._known[key] = (64, 4.0, "")
    result = runner.cell(found, "forward", Shape(1, 128, 8))
    assert result.readings[1].status == "skipped"
    assert result.readings[1].reason == "would take at least 8 s (4 s at L 64)"


def test_the_grid() -> None:
    shapes = [(c.name, mode, shape) for c, mode, shape in grid(plan(*OPERATORS, quick=False))]
    assert len(shapes) == len(set(shapes))
    assert {shape.batch for _, _, shape in shapes} == {1, 4}
    assert {shape.dtype for _, _, shape in shapes} == {"float32", "bfloat16"}
    assert ("selective_scan", "step", Shape(4, 1, 8)) in shapes
    whole = Plan("unused", BLOCKS, speed.LENGTHS, False, False, 1, 1.0, 1.0, True)
    cells = list(grid(whole))
    assert [shape for c, _, shape in cells if c.name == "hyenadna"] == [Shape(1, 1_000_000, 256)]
    operators = list(
        grid(Plan("unused", OPERATORS, speed.LENGTHS, False, False, 1, 1.0, 1.0, True))
    )
    measured = {(c.name, mode, s.length, s.batch) for c, mode, s in [*cells, *operators]}
    for target in TARGETS:  # the full run measures whatever a target needs
        for batch in target.batches:
            assert (target.case, target.mode, target.length, batch) in measured, target.text
    assert {s.width for _, _, s in operators if s.length == 1 << 20} == {runner.NARROW}


def test_targets_are_judged() -> None:
    target = Target("50 times", "selective_scan", "forward", "ratio", 50, ("mambapy",))
    for theirs, reached, words in (
        (0.6, True, "reached"),
        (0.4, False, "missed: 0.80 of what it should be"),
    ):
        verdict = judge(target, [cell(0.01, theirs)], BOUNDS)
        assert (verdict.reached, verdict.words) == (reached, words)
    both = judge(target, [cell(0.01, 0.6), cell(0.01, 0.3, batch=4)], BOUNDS)
    assert (both.reached, both.value) == (False, "30× (B 4)")
    assert judge(target, [cell(0.01, 0.6, "stopped")], BOUNDS).value == "over 60× (B 1)"
    stopped = judge(target, [cell(0.01, 0.4, "stopped")], BOUNDS)
    assert stopped.reached is None
    assert "raise --limit" in stopped.words
    assert "mambapy: why" in judge(target, [cell(0.01, None, "absent")], BOUNDS).words
    assert "ours: broken" in judge(target, [cell(None, 1.0)], BOUNDS).words
    assert "not part of this run" in judge(target, [], BOUNDS).words
    bound = Target("80%", "selective_scan", "forward", "bound", 0.8)
    assert judge(bound, [cell(0.1)], BOUNDS).value == "50% (B 1)"
    memory = Target("half", "selective_scan", "forward", "memory", 0.5, ("mambapy",))
    assert judge(memory, [cell(0.1, 0.2)], BOUNDS).reached is True


def test_a_tiny_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Has a test of its own.
    monkeypatch.setattr(speed, "measure_bounds", lambda threads, seconds: BOUNDS)
    out = tmp_path / "new" / "speed"
    arguments = [
        "--quick",
        "--operators",
        "fft_conv,causal_conv1d",
        "--lengths",
        "64",
        "--width",
        "64",
    ]
    arguments += ["--limit", "1e6"]  # a busy machine may take as long as it likes
    assert kernels.run([*arguments, "--threads", "1", "--out", str(out)]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["results.json", "speed.png"]
    content = json.loads((out / "results.json").read_text())
    assert content["format"] == 1
    assert {"cpu", "isa", "threads", "torch", "commit", "load_before", "peers"} <= set(
        content["machine"]
    )
    assert content["settings"]["lengths"] == [64]
    assert set(content["bounds"]) == {"fma", "fma_bfloat16", "exp", "bandwidth", "exp_by"}
    assert [(c["case"], c["mode"]) for c in content["cells"]] == [
        (name, mode) for name in ("fft_conv", "causal_conv1d") for mode in ("forward", "training")
    ]
    for row in content["cells"]:
        ours, peer = row["readings"]
        assert ours["side"] == OURS
        assert ours["status"] == peer["status"] == "measured"
        assert ours["runs"] >= 1
        assert ours["fastest"] <= ours["seconds"]
        assert peer["difference"] < 1e-4
        assert row["ratios"] == {peer["side"]: pytest.approx(peer["seconds"] / ours["seconds"])}
        assert set(row["bound"]) == {"FMA", "exp", "memory"}
        if Isolated.available:
            assert ours["peak_bytes"] is not None
    assert len(content["targets"]) == len(targets_of("kernels"))
    assert (out / "speed.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "textbook form" in printed
    assert "targets" in printed


def test_what_was_not_measured_has_its_reason_below_the_table() -> None:
    from longseq.bench.speed_report import show

    found = case(side(OURS, lambda x: x), side("mambapy", lambda x: x), name="selective_scan")
    console = Console(record=True, width=140)
    facts = {
        "cpu": "c",
        "isa": "i",
        "threads": 1,
        "cores": 1,
        "torch": "t",
        "longseq": "l",
        "commit": None,
        "load_before": 3.0,
    }
    cells = [cell(0.01, 2.0, "stopped"), cell(0.01, None, "absent"), cell(None)]
    show("kernels", [found], cells, BOUNDS, facts, console)
    text = console.export_text()
    assert ">200×" in text
    assert "[1] mambapy: why" in text
    assert "longseq: broken" in text
    assert "not idle" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--operators", "selective_scn"], "did you mean 'selective_scan'"),
        (["--operators", ","], "at least one"),
        (["--lengths", "100"], "multiples of 64"),
        (["--lengths", "x"], "multiples of 64"),
        (["--lengths", "131072", "--operators", "slstm"], "nothing to measure"),
        (["--threads", "0"], "at least 1"),
        (["--limit", "0"], "above 0"),
        (["--width", "100"], "multiple of 64"),
    ],
)
def test_wrong_arguments_are_refused(arguments: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        kernels.run([*arguments, "--out", str(tmp_path)])


def test_the_list_names_every_side(capsys: pytest.CaptureFixture[str]) -> None:
    for command, cases in ((kernels, OPERATORS), (models, BLOCKS)):
        assert command.run(["--list"]) == 0
        printed = capsys.readouterr().out
        assert all(c.name in printed and all(s.name in printed for s in c.sides[1:]) for c in cases)
