"""Timings of ``make test-gpu``: their words, targets and verdicts, and the whole run."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from longseq.bench import targets
from longseq.bench.gpu import __main__ as script
from longseq.bench.gpu import agreement, checks, timing, training

CPU = torch.device("cpu")
RATES = timing.Rates(exponentials=4e12, memory=2e12, products=1e15)
Case, Timed, Work = agreement.Case, timing.Timed, timing.Work


def good(tolerance: float = 1e-5, **rest: Any) -> agreement.Case:
    double = {"fast": lambda x: (2 * x,), "exact": lambda x: (2 * x,)} | rest
    return Case("double", tensors={"x": torch.randn(5)}, tolerance=tolerance, **double)


def timed(family: str, batch: int, length: int, beside: Any) -> timing.Timed:
    leaves = {"x": torch.ones(3)}
    return Timed(
        family,
        batch,
        length,
        "small",
        lambda x: 2 * x,
        {"mamba-ssm": beside, "fla": beside},
        leaves,
        Work(exponentials=4e9),
        Work(bytes=4e9, flops=4e12),
    )


def test_timings_and_their_words(capsys: pytest.CaptureFixture[str]) -> None:
    times = iter([2e-3, 3e-3, 8e-3, 4e-3])

    def clock(call: Callable[[], Any]) -> float:
        call()
        return next(times)

    case = timed("scan", 1, 262144, (lambda x: 3 * x, {"x": torch.ones(3)}))
    rows = timing.time_case(
        Timed(**{**vars(case), "peers": {"mamba-ssm": case.peers["mamba-ssm"]}}), RATES, clock
    )
    forward, both = rows
    assert forward["percent_of_bound"] == pytest.approx(50.0)  # 1 ms of exponentials in 2 ms
    # 4 ms of products in 8 ms, 2 ms of bytes beside
    assert both["percent_of_bound"] == pytest.approx(50.0)
    assert both["bytes_per_second"] == pytest.approx(5e11)
    out = capsys.readouterr().out
    assert "2.000 Texp/s" in out and "50.0 % of bound; mamba-ssm 3.000 ms, 1.50 times ours" in out
    assert (
        "0.500 TB/s" in out
        and "500.000 TFLOP/s" in out
        and "mamba-ssm 4.000 ms, 0.50 times ours" in out
    )

    def fail(x: Tensor) -> Tensor:
        raise ValueError("stride must be a multiple of 8\nmore")

    def full(x: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("no")

    x = {"x": torch.ones(1)}
    run = lambda call: (call(), 1.0)[1]  # noqa: E731
    assert timing.seconds_of_peer((fail, x), False, run) == "fails: stride must be a multiple of 8"
    assert timing.seconds_of_call(full, x, True, run) == "out of memory"
    with pytest.raises(ValueError, match="stride"):  # ours may not fail in silence
        timing.seconds_of_call(fail, x, False, run)
    (row, _) = timing.time_case(
        Timed(**{**vars(case), "ours": full, "peers": {"fla": "absent"}}), RATES, run
    )
    assert (
        row["seconds"] == "out of memory"
        and "out of memory; fla: absent" in capsys.readouterr().out
    )


def row(
    family: str, batch: int, length: int, own: Any, theirs: Any, bound: float = 70.0
) -> dict[str, Any]:
    return {
        "family": family,
        "batch": batch,
        "length": length,
        "seconds": own,
        "percent_of_bound": bound,
        "peers": {"mamba-ssm": theirs, "fla": theirs},
    }


def test_targets() -> None:
    rows = [
        row("scan", 8, 2048, 1.0, 0.1, 10.0),  # too short to be aimed at
        row("scan", 8, 8192, 1.0, 1.3),
        row("scan", 1, 262144, 1.0, 2.0, 55.0),
        row("scan", 1, 1 << 20, 1.0, "out of memory"),
        row("ssd", 8, 2048, 1.0, "not installed"),
        row("gla", 8, 2048, 1.0, 1.5),
        row("retention", 8, 2048, 1.0, 1.01),
        row("kda", 8, 2048, 1.0, 0.9),
    ]
    found = targets.gpu_verdicts(rows)
    assert [one["verdict"] for one in found] == [
        "met",
        "missed",
        "not measured",
        "met",
        "missed",
        "missed",
    ]
    words = [targets.gpu_line(one) for one in found]
    assert words[0].endswith("1.30 at worst in 2 timings; 1 of 3 without a figure: out of memory")
    assert "missed: selective scan: 3 times mamba-ssm's" in words[1] and "2.00 at worst" in words[1]
    assert words[2] == "  not measured: SSD: as fast as mamba-ssm's (not installed)"
    assert (
        "1.01 at worst in 2 timings" in words[3]
        and "0.90 at worst" in words[4]
        and "55.00 at worst" in words[5]
    )
    assert all("none of it was timed" in targets.gpu_line(one) for one in targets.gpu_verdicts([]))


def test_the_whole_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From options to the written file, with small parts in place of those that need a GPU."""
    lines = tmp_path / "lines.jsonl"
    monkeypatch.setattr(checks, "cases", lambda: iter([good(), good()]))
    monkeypatch.setattr(checks, "list_mixers", lambda: ["mamba"])
    monkeypatch.setattr(training.train_all, "__defaults__", (1, 16, 8, None))
    monkeypatch.setattr(script.timing, "measure_rates", lambda clock: RATES)
    monkeypatch.setattr(script.timing.time_case, "__defaults__", (lambda call: (call(), 1e-3)[1],))
    monkeypatch.setattr(
        script.cases, "cases", lambda device: iter([timed("ssd", 1, 9, "not installed")])
    )
    monkeypatch.setattr(
        script.delta, "cases", lambda device: iter([timed("kda", 1, 9, "not installed")])
    )
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a CPU")
    file = tmp_path / "out" / "gpu.json"
    # A process's share: the first of two, with every second check and mixer.
    share = ["--shard", "0/2", "--lines", str(lines), "--seconds", "1e9"]
    assert script.run(script.options_of(share), CPU, time.perf_counter(), 7) == 0
    assert [json.loads(x)["kind"] for x in lines.read_text().splitlines()] == ["check", "training"]
    # The whole, with the shares' processes replaced by one in this process.

    def share_out(jobs: int, options: list[str], lines: Path) -> tuple[list[Any], list[Any]]:
        train = "--no-training" not in options
        return checks.share(
            0, 1, checks.cases, CPU, time.perf_counter() + 1e6, train, checks.Lines(lines)
        )

    monkeypatch.setattr(checks, "share_out", share_out)
    options = script.options_of(["--json", str(file), "--seconds", "1e9"])
    assert script.run(options, CPU, time.perf_counter(), 7) == 0
    content = json.loads(file.read_text())
    assert content["device"] == "a CPU" and content["seed"] == 7 and len(content["checks"]) == 2
    assert (
        len(content["training"]) == 1
        and len(content["times"]) == 4
        and len(content["targets"]) == 6
    )
    out = capsys.readouterr().out
    assert "2 of 2 checks passed, 1 of 1 mixers" in out and out.count("not measured") == 6
    # No time left for anything: said, and not passed.
    options = script.options_of(["--seconds", "0.001", "--no-training", "--shard", "0/1"])
    assert script.run(options, CPU, time.perf_counter() - 1, 7) == 1
    options = script.options_of(["--seconds", "0.001", "--no-training"])
    # Shares have clocks of their own.
    assert script.run(options, CPU, time.perf_counter() - 1, 7) == 0
    assert "out of time: ssd B 1 L 9 and what follows" in capsys.readouterr().out
