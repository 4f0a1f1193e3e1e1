"""``longseq vision score``: checkpoints of video, point clouds and manipulations beside plain
baselines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from longseq.core.command_line import CommandParser
from longseq.core.errors import ConfigError, with_article
from longseq.core.results import Score, print_table, verdict
from longseq.core.tables import check_table, write_rows
from longseq.core.training.hyper import BaseData
from longseq.core.training.loading import load_data, load_task
from longseq.core.training.task import BaseTask

_ELSEWHERE = {"ImageClassifier": "longseq vision compare scores it beside plain baselines"}


def score_task(task: BaseTask, loader: Any) -> dict[str, float]:
    """Returns the metrics of a task on the batches of a loader, by name.

    Args:
        task: in evaluation mode.
        loader: of test batches.
    """
    metrics: Any = task.metrics["test"]
    metrics.reset()
    with torch.inference_mode():
        for batch in loader:
            out = task.compute(batch)
            metrics.update(**{key: out[key] for key in out if key not in ("loss", "count")})
    return {name.partition("/")[2]: float(value) for name, value in metrics.compute().items()}


def run(argv: Sequence[str]) -> int:
    """Runs ``longseq vision score``."""
    parser = CommandParser(prog="longseq vision score", description=__doc__)
    parser.add_argument(
        "--ckpt_path", required=True, nargs="+", help="checkpoints that saw the same data"
    )
    parser.add_argument("--source", help="data to test on, if not those of the training")
    parser.add_argument("--out", help=".csv, .tsv or .parquet table to write")
    args = parser.parse_args(argv)
    if args.out:
        check_table(args.out)
    changes = {"source": args.source} if args.source else {}
    scores: list[Score] = []
    known: tuple[type[BaseTask], dict[str, Any]] | None = None
    for path in args.ckpt_path:
        task = load_task(path, "vision")
        if not hasattr(task, "baselines"):
            kind = type(task).__name__
            hint = _ELSEWHERE.get(kind, "longseq vision test --ckpt_path scores it")
            raise ConfigError(f"{path}: is {with_article(kind)}: {hint}")
        data = load_data(path, BaseData, **changes)
        if known is not None and known != (type(task), dict(data.hparams)):
            raise ConfigError(f"{path} and {args.ckpt_path[0]} were not trained on the same data")
        known = type(task), dict(data.hparams)
        task.look_at(data)
        metric, less = task.headline
        found = score_task(task, data.test_dataloader())
        name, kind = task.shown
        size = sum(one.numel() for one in task.model.parameters())
        notes = {"parameters": f"{size:,}"}
        notes |= {key: f"{value:.4f}" for key, value in found.items() if key != metric}
        taken = {one.model for one in scores}
        name = name if name not in taken else f"{name} ({len(scores) + 1})"
        scores.append(Score(name, found[metric], kind, notes))
    assert known is not None
    scores += task.baselines(data)
    print_table(scores, metric, "test data", lower_is_better=less)
    if any(one.kind == "model" for one in scores):
        print(verdict(scores, metric, lower_is_better=less))
    if args.out:
        columns = {"model": "", "kind": "", metric: ".6f"}
        write_rows(args.out, columns, [[one.model, one.kind, one.value] for one in scores])
        print(args.out)
    return 0
