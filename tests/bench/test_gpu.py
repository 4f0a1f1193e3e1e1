"""``make test-gpu`` as far as a machine without a GPU can run it: parts on a CPU, words, exit
status."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from longseq.bench import peers
from longseq.bench.gpu import __main__ as script
from longseq.bench.gpu import agreement, cases, checks, delta, lengths, timing, training, walks
from longseq.core.mixers import list_mixers
from longseq.core.ops import delta_rule, linear_attention, selective_scan
from longseq.core.ops.selective_scan import cuda as cuda_scan

ROOT = Path(__file__).parents[2]

CPU = torch.device("cpu")
RATES = timing.Rates(exponentials=4e12, memory=2e12, products=1e15)
Case, Timed, Work = agreement.Case, timing.Timed, timing.Work


def good(tolerance: float = 1e-5, **rest: Any) -> agreement.Case:
    double = {"fast": lambda x: (2 * x,), "exact": lambda x: (2 * x,)} | rest
    return Case("double", tensors={"x": torch.randn(5)}, tolerance=tolerance, **double)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_one_line_says_so() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "longseq.bench.gpu"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 2 and run.stdout == ""
    assert run.stderr.count("\n") == 1 and "torch finds no CUDA device" in run.stderr


def test_options(capsys: pytest.CaptureFixture[str]) -> None:
    options = script.options_of(["--json", "out.json", "--no-times", "--seconds", "60"])
    assert options.json == Path("out.json") and options.no_times and options.seconds == 60
    assert script.options_of([]).seconds < 8 * 60 and not script.options_of([]).no_training
    with pytest.raises(SystemExit) as error:
        script.options_of(["--seconds", "0"])
    assert error.value.code == 2 and "must be above 0" in capsys.readouterr().err


SMALL: list[walks.Shape] = [
    (2, 30, 6, 4, 2, torch.float32, False, True),
    (1, 20, 4, 4, 1, torch.float32, True, False),
    (1, 40, 4, 4, 1, torch.bfloat16, False, True),
    (1, 40, 4, 4, 1, torch.float16, False, False),
]


def test_walks_agree_where_the_kernels_are_those_of_the_cpu() -> None:
    """The cases of the CUDA kernels, on the CPU's: the same arguments, references, tolerances and
    repeats."""
    walked = [*walks.scan_cases(SMALL, "cpu"), walks.backward_in_pieces(SMALL[0], "cpu")]
    walked += [*walks.conv_cases("cpu"), next(walks.slstm_cases())]
    before = cuda_scan.PARTIAL_BYTES
    for case in walked:
        row = agreement.compare(case, CPU)
        assert row["ok"] and row["same"], row
    assert before == cuda_scan.PARTIAL_BYTES
    assert {c.name.split()[0] for c in walks.linear_cases("cpu")} == {"linear_scan"}


def test_a_wrong_kernel_is_found(capsys: pytest.CaptureFixture[str]) -> None:
    off = good(fast=lambda x: (2.001 * x,))
    unfilled = good(fast=lambda x: (2 * x, torch.nan * x[:3]), exact=lambda x: (2 * x, 0 * x[:3]))
    noisy = good(1.0, fast=lambda x: (2 * x + 0.01 * torch.randn_like(x),))
    late = time.perf_counter() - 1
    found = checks.check_all([good(), off, unfilled, noisy], CPU, late + 1e6)
    assert [row["ok"] for row in found] == [True, False, False, False]
    assert found[2]["error"] == float("inf") and not found[3]["same"]
    assert agreement.compare(good(1.0, fast=noisy.fast, repeatable=False), CPU)["ok"]
    (unreached,) = checks.check_all([good()], CPU, late)
    out = capsys.readouterr().out
    assert (
        out.count("BAD") == 3
        and "repeated runs differ" in out
        and "not run: double (out of time)" in out
    )
    assert (
        script.summary([*found, unreached], [], 1.0) == 1
        and script.summary(found[:1], [], 1.0) == 0
    )


PROGRAM = """
import torch
from longseq.bench.gpu import agreement, cases, chunked, delta
torch.manual_seed(0)
agreement.RUNS, cpu = 1, torch.device("cpu")
for at, case in enumerate(chunked.cases(18, ((16, 16),))):
    if at in (1, 3, 4, 11):  # one of every operator in float32, one in bfloat16
        print(agreement.line(agreement.compare(case, cpu)))
for at, case in enumerate(delta.checks(18, ((16, 16),))):
    if at in (1, 8):  # one in float32, one in bfloat16
        print(agreement.line(agreement.compare(case, cpu)))
_, *attention = cases.attention_cases(1, 9, 2, cpu)  # GLA takes the interpreter long
timed = [cases.ssd_case(1, 9, 2, cpu), *attention, cases.mlstm_case(1, 9, 2, cpu)]
timed += delta.timings(1, 9, 1, 16, cpu)
for case in timed:
    y = case.ours(**case.leaves)
    print("timed", case.family, tuple(y.shape), bool(y.isfinite().all()))
"""


def test_chunked_cases_by_the_interpreter() -> None:
    pytest.importorskip("triton", reason="triton is not installed (it is not made for this system)")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stdout.count("  ok  ") == 6 and "BAD" not in run.stdout, run.stdout
    assert run.stdout.count("timed ") == 7 and run.stdout.count(" True") == 7, run.stdout


def test_lengths_reach_a_million() -> None:
    """Every operator at each length; what is short runs on the CPU's kernels against float64 by the
    same."""
    torch.manual_seed(0)
    for length in (1, 66):
        for case in lengths.scans(length):
            assert agreement.compare(dataclasses.replace(case, fast=case.exact), CPU)["ok"], (
                case.name
            )
        for case in lengths.chunks(length, torch.float32):
            assert agreement.compare(dataclasses.replace(case, fast=case.exact), CPU)["ok"], (
                case.name
            )
    names = [case.name for case in lengths.cases()]
    assert len(names) == len(set(names)) and sum("L 1048576 " in f"{name} " for name in names) == 10
    assert max(lengths.LENGTHS) == 1 << 20 and min(lengths.LENGTHS) == 1


def test_shares_end_with_their_results(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Processes that write lines; one that dies counts as a check that has not passed."""
    program = """
import json, sys
from pathlib import Path
shard, file = sys.argv[3].removeprefix("--shard="), sys.argv[4].removeprefix("--lines=")
with Path(file).open("a") as out:
    out.write(json.dumps({"kind": "check", "check": shard, "ok": True}) + chr(10))
sys.exit(0 if shard == "0/2" else 9)
"""
    fake = tmp_path / "python"
    (tmp_path / "share.py").write_text(program)
    fake.write_text(f'#!/bin/sh\nexec {sys.executable} {tmp_path / "share.py"} "$@"\n')
    fake.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(fake))
    found, trained = checks.share_out(2, ["--seconds", "9"], tmp_path / "lines")
    assert sorted(row["check"] for row in found) == ["0/2", "1/2", "share 1 of 2"] and trained == []
    assert [row["ok"] for row in found if row["check"].startswith("share")] == [False]


def test_training_reaches_every_mixer(capsys: pytest.CaptureFixture[str]) -> None:
    rows = training.train_all(CPU, time.perf_counter() + 1e6, steps=2, width=16, length=12)
    assert [row["mixer"] for row in rows] == list_mixers() and all(row["ok"] for row in rows), rows
    assert capsys.readouterr().out.count("ok  finite") == len(rows)
    assert training.STEPS == 200
    late = training.train_all(CPU, time.perf_counter() - 1, steps=2)
    assert not any(row["ok"] for row in late) and "out of time" in capsys.readouterr().out


def test_training_notices_what_is_not_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    real = torch.optim.AdamW
    monkeypatch.setattr(torch.optim, "AdamW", lambda parameters, lr: real(parameters, lr=1e30))
    row = training.train("gla", CPU, 4, 16, 8)
    assert not row["ok"] and "BAD not finite" in training.line(row)


def stand_in(
    name: str, function: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    parts = module.split(".")
    for count in range(1, len(parts) + 1):
        monkeypatch.setitem(
            sys.modules, ".".join(parts[:count]), ModuleType(".".join(parts[:count]))
        )
    setattr(sys.modules[module], name, function)


def attend(q: Tensor, k: Tensor, v: Tensor, g: Tensor | None = None) -> tuple[Tensor, None]:
    """fla's signature, on our reference."""
    return linear_attention.linear_attention(q, k, v, g, backend="reference")[0], None


def test_peers_are_given_their_own_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    """fla and mamba-ssm replaced by functions of their signatures on our references: layouts and
    names."""

    def scan(
        u: Tensor,
        delta: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor,
        z: Tensor,
        delta_bias: Tensor,
        delta_softplus: bool,
    ) -> Tensor:
        u, delta, z, B, C = (t.transpose(1, 2) for t in (u, delta, z, B, C))
        y, _ = selective_scan.selective_scan_reference(
            u, delta, A, B, C, D, z, delta_bias, delta_softplus=delta_softplus
        )
        return y.transpose(1, 2)

    stand_in("chunk_gla", attend, monkeypatch, "fla.ops.gla")
    stand_in("selective_scan_fn", scan, monkeypatch, "mamba_ssm.ops.selective_scan_interface")
    gla = next(cases.attention_cases(1, 20, 2, CPU))
    fla = gla.peers["fla"]
    assert not isinstance(fla, str)
    expected, _ = linear_attention.linear_attention(**gla.leaves, backend="reference")
    torch.testing.assert_close(fla[0](**fla[1]), expected)
    case = cases.scan_case(2, 9, 6, torch.float32, CPU)
    published = case.peers["mamba-ssm"]
    assert not isinstance(published, str)
    expected, _ = selective_scan.selective_scan(**case.leaves, delta_softplus=True, backend="cpu")
    out = published[0](**published[1]).transpose(1, 2)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    assert (
        case.forward.exponentials == 16 * 2 * 9 * 6
        and case.both.exponentials == 2 * case.forward.exponentials
    )
    softmax = gla.peers["SDPA"]
    assert not isinstance(softmax, str) and softmax[0](**softmax[1]).shape == (1, 2, 20, 64)


def test_flas_delta_rules_are_given_their_own_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    def gated(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor) -> tuple[Tensor, None]:
        return delta_rule.delta_rule(q, k, v, beta, g, backend="reference")[0], None

    def plain(q: Tensor, k: Tensor, v: Tensor, beta: Tensor) -> tuple[Tensor, None]:
        return delta_rule.delta_rule(q, k, v, beta, backend="reference")[0], None

    for (module, name), function in zip(delta.PEERS.values(), (plain, gated, gated)):
        stand_in(name, function, monkeypatch, module)
    for case in delta.timings(1, 20, 2, 8, CPU):
        fla = case.peers["fla"]
        assert not isinstance(fla, str)
        expected, _ = delta_rule.delta_rule(**case.leaves, backend="reference")
        torch.testing.assert_close(fla[0](**fla[1]), expected)
        assert case.both.flops == 3 * case.forward.flops > 0


def test_absent_and_broken_peers_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("mamba_ssm", "fla", "mlstm_kernels"):
        monkeypatch.setitem(sys.modules, module, None)
    assert (
        peers.load_function("fla.ops.gla", "chunk_gla")
        == "not installed (pip install flash-linear-attention)"
    )
    assert "not installed" in str(cases.scan_case(1, 4, 2, torch.float32, CPU).peers["mamba-ssm"])
    stand_in("another", attend, monkeypatch, "fla.ops.gla")
    assert str(peers.load_function("fla.ops.gla", "chunk_gla")).startswith(
        "does not load: module 'fla.ops.gla' has no"
    )
