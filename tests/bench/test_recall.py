"""``longseq bench recall``: a tiny run leaves whole files; known orderings are judged from
results."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from longseq.bench.recall import Settings, measure, run
from longseq.bench.recall_report import Result, orderings
from longseq.bench.recall_tasks import get_task
from longseq.core.errors import ConfigError


def test_a_tiny_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "recall"
    arguments = [
        "--mixers",
        "attention,local_attention",
        "--tasks",
        "delay,parity",
        "--lengths",
        "48,24",
    ]
    assert run([*arguments, "--steps", "2", "--out", str(out)]) == 0
    assert sorted(path.name for path in out.iterdir()) == [
        "accuracy.png",
        "cost.png",
        "results.csv",
        "results.json",
    ]
    with (out / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["task"], row["mixer"], row["length"]) for row in rows] == [
        (task, mixer, length)
        for task in ("delay", "parity")
        for mixer in ("attention", "local_attention")
        for length in ("24", "48")
    ]
    assert all(0 <= float(row["accuracy"]) <= 1 and int(row["steps"]) == 2 for row in rows)
    content = json.loads((out / "results.json").read_text())
    assert content["settings"]["steps"] == 2
    assert content["results"][0]["parameters"] > 0
    assert (out / "accuracy.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "guessing: 12.5%" in printed
    assert "results.csv" in printed.replace("\n", "")


def test_options_of_mixers_and_sizes(tmp_path: Path) -> None:
    out, arguments = tmp_path / "recall", ["--tasks", "parity", "--lengths", "8,10000"]
    mixers = "gated_delta_net:n_heads=2:allow_neg_eigval=true,attention"
    sizes = ["--width", "16", "--depth", "1", "--tokens", "64", "--steps", "1"]
    assert run([*arguments, "--mixers", mixers, *sizes, "--out", str(out)]) == 0
    content = json.loads((out / "results.json").read_text())
    assert (content["settings"]["d_model"], content["settings"]["n_layers"]) == (16, 1)
    first, attention = content["results"]
    assert first["mixer"] == "gated_delta_net:n_heads=2:allow_neg_eigval=true"
    assert list(first["accuracy"]) == ["8", "10000"]
    assert list(attention["accuracy"]) == ["8"], "its cost grows with the square of the length"


def test_steps_make_a_run_repeat_exactly() -> None:
    settings = Settings(steps=3, tokens=256)
    first, again = (measure("attention", get_task("delay"), [32], settings) for _ in range(2))
    assert (first.loss, first.accuracy) == (again.loss, again.accuracy)


def test_the_budget_bounds_the_time() -> None:
    result = measure("attention", get_task("parity"), [32], Settings(budget=0.3, tokens=64))
    assert result.steps > 0
    assert result.seconds < 5


def test_a_short_run_learns() -> None:
    """The shortest that shows the machinery works: far above guessing."""
    result = measure("attention", get_task("delay"), [64], Settings(steps=60, tokens=512))
    assert result.accuracy[64] > 4 * get_task("delay").chance


def result(task: str, mixer: str, accuracy: dict[int, float]) -> Result:
    return Result(task, mixer, 1, 1, 1, 1.0, 1.0, 0.0, accuracy)


def test_orderings_are_judged() -> None:
    assert orderings([]) == []
    assert orderings([result("delay", "attention", {64: 1.0})]) == []
    length = get_task("selective_copying").train_lengths[-1]
    for score in (0.5, 1.0):
        (told,) = orderings([result("selective_copying", "s4d", {length: score})])
        assert told[0].startswith("s4d: selective copying not solved")
        assert told[1] is (score < 0.95)
    lengths = get_task("multi_query_recall").train_lengths
    falling = {length: 1.0 - 0.2 * place for place, length in enumerate(lengths)}
    level = dict.fromkeys(lengths, 1.0)
    both = [
        result("multi_query_recall", "attention", level),
        result("multi_query_recall", "mamba", falling),
    ]
    assert [holds for _, holds in orderings(both)] == [True]
    both[1].accuracy = level
    assert [holds for _, holds in orderings(both)] == [False]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--mixers", "atention"], "did you mean 'attention'"),
        (["--tasks", "parety"], "did you mean 'parity'"),
        (["--tasks", "delay", "--lengths", "8"], "delay needs a length"),
        (["--lengths", "x"], "whole numbers"),
        (["--budget", "0"], "above 0"),
        (["--steps", "0"], "above 0"),
        (["--width", "0"], "above 0"),
        (["--mixers", "delta_net:n_heads"], "option=value"),
        (["--mixers", "delta_net:n_head=2"], "n_head"),
        (["--device", "gpu"], "no device 'gpu'"),
        (["--mixers", "bidirectional"], "causal"),
        (["--mixers", ","], "at least one"),
    ],
)
def test_wrong_arguments_are_refused_before_training(
    arguments: list[str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        run([*arguments, "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
