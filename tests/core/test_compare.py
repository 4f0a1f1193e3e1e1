"""The one comparison: order, seeds, verdicts, names that are taken, options that would change the
data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from longseq.core.compare import Comparison, Row, compare, whole_numbers, write_table
from longseq.core.compare_entries import check_models, split_entry
from longseq.core.errors import ConfigError
from longseq.core.tables import read_rows
from longseq.core.training.by_config import few_steps
from longseq.core.training.run import Run


class Toys(Comparison):
    """Lengths of names as scores."""

    baselines = {"mean": None, "zero": None}
    score = "error"
    columns = {"model": "", "kind": "", "seed": "d", "error": ".3f", "size": "d", "verdict": ""}

    def __init__(self) -> None:
        self.asked: list[str] = []

    @classmethod
    def add_arguments(cls, parser) -> None: ...

    @classmethod
    def of(cls, args):
        yield cls()

    def baseline(self, name):
        self.asked.append(name)
        return [Row(name, "baseline", {"mean": 1.0, "zero": 2.0}[name], numbers={"size": 1})]

    def checkpoint(self, path, name, seed):
        self.asked.append(path.name)
        return [Row(name, "model", 0.9 + 0.2 * (seed or 0), seed, numbers={"size": 7})]

    def values(self, config, seed):
        return {"data": {"path": "x"}, "trainer": {"max_steps": 3}}

    def tie(self, row, rival):
        return 0.15

    def notes(self, rows):
        return {"size": str(rows[0].numbers["size"])}


def run(comparison: Comparison, models, options=(), seeds=(0, 1)):
    calls = []

    def train(config, folder, name="fit", values=None, seed=None, options=()):
        calls.append((config, name, values, seed, list(options)))
        return Run(Path(folder), None, Path(folder) / f"{name}.ckpt", 1.0, {})

    saved: list[int] = []
    noted: list[tuple[str, int, str]] = []
    configs = {"net": Path("configs/net.yaml")}
    rows = compare(
        *(comparison, models, seeds, "out", train, configs, options),
        lambda r: saved.append(len(r)),
        lambda name, seed, run: noted.append((name, seed, run.checkpoint.name)),
    )
    assert noted == [(one[0], one[1], f"{call[1]}.ckpt") for one, call in zip(noted, calls)]
    assert len(noted) == len(calls) and {seed for _, seed, _ in noted} <= set(seeds)
    return rows, calls, saved


def test_models_and_baselines_in_the_order_that_was_asked_for(tmp_path: Path) -> None:
    toys = Toys()
    rows, calls, saved = run(toys, ["net", "zero", "given.ckpt", "mean"], ["--model.width=3"])
    assert [row.model for row in rows] == ["net", "net", "zero", "given", "mean"]
    assert toys.asked == ["zero", "mean", "net_seed0.ckpt", "net_seed1.ckpt", "given.ckpt"]
    assert [(name, seed) for _, name, _, seed, _ in calls] == [("net_seed0", 0), ("net_seed1", 1)]
    assert calls[0][4] == ["--model.width=3"] and saved == [3, 4]
    toys.models_first = True  # type: ignore[misc]
    toys.asked.clear()
    run(toys, ["zero", "net"], seeds=[0])
    assert toys.asked == ["net_seed0.ckpt", "zero"]
    assert write_table(tmp_path / "t.csv", [(toys, rows), (toys, rows[:1])]) == 6
    table = read_rows(tmp_path / "t.csv")
    assert [row["seed"] for row in table] == ["0", "1", "", "", "", "0"] and table[0]["size"] == "7"
    assert (
        "net is level with the best baseline, mean" in table[0]["verdict"]
        and table[2]["verdict"] == ""
    )
    assert table[-1]["verdict"] == ""  # the second table has no baseline


def test_seeds_are_averaged_and_the_median_is_judged(capsys) -> None:
    toys = Toys()
    rows, *_ = run(toys, ["mean", "zero", "net"], seeds=[0, 1, 2])
    net = next(score for score in toys.scores(rows) if score.model == "net")
    assert net.value == pytest.approx(1.1) and net.kind == "model"
    assert net.notes == {"± (seeds)": f"{np.std([0.9, 1.1, 1.3], ddof=1):.4f} (3)", "size": "7"}
    (said,) = toys.verdicts(rows)
    assert "net is level with" in said and "1.1000 against 1.0000 error" in said
    assert said.endswith("(median of 3 seeds)")
    alone, *_ = run(toys, ["mean"])
    assert toys.verdicts(alone) == [
        "the best is mean with 1.0000 error; nothing to compare it with."
    ]
    toys.report(rows)
    assert "1.1000" in capsys.readouterr().out


def test_two_entries_of_one_name_are_told_apart() -> None:
    rows, *_ = run(Toys(), ["a/best.ckpt", "b/best.ckpt"])
    assert [row.model for row in rows] == ["best", "best (b/best.ckpt)"]


def test_a_variant_of_a_configuration_is_trained_with_its_arguments(tmp_path: Path) -> None:
    rows, calls, _ = run(Toys(), ["net", "net:width=3:name=a/b"], seeds=[0])
    assert [row.model for row in rows] == ["net", "net width=3 name=a/b"]
    assert [name for _, name, *_ in calls] == ["net_seed0", "net_width_3_name_a_b_seed0"]
    assert calls[1][0] == "net" and calls[1][2]["model"] == {"width": "3", "name": "a/b"}
    assert "model" not in calls[0][2]
    names = check_models("net:width=3", Toys.baselines, {"net": Path("net.yaml")})
    assert names == ["net:width=3"]
    with pytest.raises(ConfigError, match="did you mean 'net'"):
        check_models("nett:width=3", Toys.baselines, {"net": Path("net.yaml")})
    assert split_entry("net:kwargs.mixer=s4d:w=1") == ("net", {"kwargs.mixer": "s4d", "w": "1"})
    with pytest.raises(ConfigError, match="arguments: net:linear=lagged"):
        split_entry("net:model.linear=lagged")
    odd = tmp_path / "a:b=c.yaml"  # a file's name is never taken apart
    odd.write_text("")
    assert split_entry(str(odd)) == (str(odd), {})


def test_options_that_would_train_on_other_data_are_refused() -> None:
    run(Toys(), ["net"], ["--trainer.max_steps=9"])
    with pytest.raises(ConfigError, match=r"--data\.path: follows from the data"):
        run(Toys(), ["net"], ["--data.path=y"])


def test_options_of_trainings_are_refused_where_nothing_is_trained() -> None:
    run(Toys(), ["net", "a/best.ckpt", "mean"], ["--model.width=3"])
    with pytest.raises(ConfigError, match=r"--model\.width: nothing is trained"):
        run(Toys(), ["a/best.ckpt", "mean"], ["--model.width=3"])


def test_names_and_numbers(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("")
    names = check_models(f"mean, net,{file},mean", Toys.baselines, {"net": file})
    assert names == ["mean", "net", str(file)]
    for text, message in (("meen", "did you mean 'mean'"), (" ,", "at least one name")):
        with pytest.raises(ConfigError, match=message):
            check_models(text, Toys.baselines, {"net": file})
    assert whole_numbers("--seeds", "3,0") == [3, 0]
    for text in ("a", "1,1", "-1", ""):
        with pytest.raises(ConfigError, match="--seeds"):
            whole_numbers("--seeds", text)
    assert few_steps(None) == {}
    assert few_steps(1000) == {"trainer": {"max_steps": 1000, "val_check_interval": 100}}
    assert few_steps(1) == {"trainer": {"max_steps": 1, "val_check_interval": 1}}
