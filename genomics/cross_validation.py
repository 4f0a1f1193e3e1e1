"""``longseq genomics cross_validate``: labelled sequences in folds, a network beside linear
models."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from longseq.core.command_line import CommandParser
from longseq.core.errors import ConfigError
from longseq.core.results import Score, print_table, verdict
from longseq.core.tables import check_table, write_rows
from longseq.genomics.data.labelled import LabelledData, fold_of
from longseq.genomics.sequence_baselines import ORDERS, fit_predict, kmer_shares, positions

BASELINES = ("k-mer regression", "position regression")
TOGETHER = "both regressions"
ALL = "network + regressions"


@dataclass
class Outcome:
    """What every model said of every sequence, by one that was not trained on it.

    Attributes:
        data: the sequences.
        target: classes (int64) or numbers (n,).
        folds: of each sequence (n,).
        predictions: model → probabilities (n, classes) or numbers (n, 1).
    """

    data: LabelledData
    target: np.ndarray
    folds: np.ndarray
    predictions: dict[str, np.ndarray]

    @property
    def metric(self) -> str:
        """What models are ranked by."""
        return "R²" if self.data.regression else "Matthews correlation"

    def numbers(self, model: str) -> dict[str, float]:
        """Returns the figures of a model over all sequences: accuracy, macro F1, Matthews
        correlation, AUROC (of two classes: of the second; else the mean of each against all), or
        R², mean absolute error, Spearman correlation."""
        from sklearn import metrics

        said, target = self.predictions[model], self.target
        if self.data.regression:
            ranks = [np.argsort(np.argsort(one)) for one in (said[:, 0], target)]
            return {
                "r2": float(metrics.r2_score(target, said[:, 0])),
                "mae": float(metrics.mean_absolute_error(target, said[:, 0])),
                "spearman": float(np.corrcoef(*ranks)[0, 1]),
            }
        chosen = said.argmax(1)
        area = (
            metrics.roc_auc_score(target, said[:, 1])
            if said.shape[1] == 2
            else metrics.roc_auc_score(target, said, multi_class="ovr")
        )
        return {
            "accuracy": float((chosen == target).mean()),
            "f1": float(metrics.f1_score(target, chosen, average="macro")),
            "mcc": float(metrics.matthews_corrcoef(target, chosen)),
            "auroc": float(area),
        }

    def by_class(self, model: str) -> list[dict[str, Any]]:
        """Returns precision, recall, F1 and number of sequences of each class."""
        from sklearn.metrics import precision_recall_fscore_support

        chosen = self.predictions[model].argmax(1)
        labels = range(len(self.data.classes))
        parts = precision_recall_fscore_support(
            self.target, chosen, labels=list(labels), zero_division=0
        )
        return [
            {"class": name, "precision": p, "recall": r, "f1": f, "sequences": int(n)}
            for name, p, r, f, n in zip(self.data.classes, *(part.tolist() for part in parts))
        ]

    def scores(self) -> list[Score]:
        """Returns rows for the table and the verdict."""
        rows = []
        for name in self.predictions:
            numbers = self.numbers(name)
            key = "r2" if self.data.regression else "mcc"
            notes = {k: f"{v:.4f}" for k, v in numbers.items() if k != key}
            kind = "baseline" if name in (*BASELINES, TOGETHER) else "model"
            rows.append(Score(name, numbers[key], kind, notes))  # type: ignore[arg-type]
        return rows


def cross_validate(
    data: Mapping[str, Any],
    model: Mapping[str, Any] | None = None,
    folds: int = 5,
    max_steps: int = 600,
    seed: int = 0,
    baselines: bool = True,
) -> Outcome:
    """Trains a ``SequencePrediction`` on all folds but one, in turn, and predicts that one.

    Args:
        data: arguments of ``LabelledData``.
        model: arguments of ``SequencePrediction`` beside ``n_classes``; None for no network.
        folds: how many.
        max_steps: optimiser steps of each training; nothing is chosen by the fold held out.
        seed: of folds, weights and batches.
        baselines: whether linear models are fitted on the same folds.
    """
    import torch
    from lightning.pytorch import seed_everything

    from longseq.core.training import fit
    from longseq.genomics.sequence_task import SequencePrediction, predict_rows

    whole = LabelledData(**{**data, "seed": seed})
    whole.setup()
    labelled, target = whole.labelled, whole.values()
    where = fold_of(labelled, folds, seed, not whole.regression)
    predictions: dict[str, np.ndarray] = {}
    width = max(1, len(whole.classes))

    def put(name: str, rows: np.ndarray, said: np.ndarray) -> None:
        predictions.setdefault(name, np.full((len(target), width), np.nan))[rows] = said

    both = (model or {}).get("strands", "both") == "both"
    if baselines:
        kmers = [kmer_shares(labelled.sequences, k, both) for k in ORDERS]
        places = positions(labelled.sequences)
        for fold in range(folds):
            train, test = np.flatnonzero(where != fold), np.flatnonzero(where == fold)
            for name, columns in zip(BASELINES, (kmers, [] if places is None else [places])):
                if columns:
                    options = (labelled.groups, whole.regression, seed)
                    put(name, test, fit_predict(columns, target, train, test, *options)[0])
    for fold in range(folds) if model is not None else ():
        seed_everything(seed, verbose=False)
        task = SequencePrediction(n_classes=len(whole.classes), **dict(model or {}))
        part = LabelledData(
            **{**data, "seed": seed, "folds": folds, "fold": fold, "valid_fraction": 0.0}
        )
        print(f"fold {fold + 1} of {folds}")
        with tempfile.TemporaryDirectory() as folder:
            fit(
                task,
                part,
                folder,
                max_steps,
                logger=False,
                enable_checkpointing=False,
                limit_val_batches=0,
            )
        rows = np.flatnonzero(where == fold)
        with torch.inference_mode():
            said = predict_rows(task.eval(), [labelled.sequences[i] for i in rows])
        put("network", rows, said.numpy())
    plain = [name for name in BASELINES if name in predictions]
    for name, parts in ((TOGETHER, plain), (ALL, ["network", *plain])):
        if len(parts) > 1 and all(part in predictions for part in parts):
            parts = [predictions[part] for part in parts]
            predictions[name] = together(parts, whole.regression)
    return Outcome(whole, target, where, predictions)


def together(parts: Sequence[np.ndarray], regression: bool) -> np.ndarray:
    """Returns what several models say together: the mean of their numbers, or probabilities
    p ∝ (Π_i p_i)^{1/n}; nothing is chosen or weighted.

    Args:
        parts: probabilities (n, classes) or numbers (n, 1) of each model.
        regression: whether they are numbers.
    """
    if regression:
        return np.mean(parts, 0)
    mean = np.exp(np.mean([np.log(np.maximum(part, 1e-6)) for part in parts], 0))
    return mean / mean.sum(1, keepdims=True)


def write_outcome(outcome: Outcome, path: str | Path) -> None:
    """Writes what every model said of every sequence.

    Args:
        outcome: of ``cross_validate``.
        path: .csv, .tsv or .parquet: ``name``, ``label``, ``fold``, and for each model the
            probability of every class, or its number.
    """
    names = list(outcome.data.classes) or ["value"]
    columns = {"name": "", "label": "", "fold": "d"}
    columns |= {f"{model}: {name}": ".6f" for model in outcome.predictions for name in names}
    labelled = outcome.data.labelled
    values = np.concatenate(list(outcome.predictions.values()), 1).tolist()
    rows = zip(labelled.names, labelled.labels, outcome.folds.tolist(), values)
    write_rows(path, columns, ([name, label, fold, *said] for name, label, fold, said in rows))


def run(argv: Sequence[str]) -> int:
    """Runs ``longseq genomics cross_validate``."""
    parser = CommandParser(
        prog="longseq genomics cross_validate",
        description="Trains a SequencePrediction fold by fold beside linear models, and prints "
        "figures of all and of each class.",
    )
    parser.add_argument("--fasta", required=True, help="the sequences, or the reference of --bed")
    parser.add_argument("--labels", help="table with the columns name and label")
    parser.add_argument("--bed", help="regions with the label in the fourth column")
    parser.add_argument("--regression", action="store_true", help="labels are numbers")
    parser.add_argument("--folds", type=int, default=5, help="how many (5)")
    parser.add_argument("--steps", type=int, default=600, help="of each training (600)")
    parser.add_argument("--batch_size", type=int, default=32, help="sequences per step (32)")
    parser.add_argument("--seed", type=int, default=0, help="of folds, weights and batches (0)")
    parser.add_argument(
        "--model", default="{}", help='arguments of SequencePrediction: \'{"pool": "center"}\''
    )
    parser.add_argument("--out", help=".csv, .tsv or .parquet with what was said of each sequence")
    args = parser.parse_args(argv)
    if args.out:
        check_table(args.out)
    try:
        model = json.loads(args.model)
    except json.JSONDecodeError as error:
        raise ConfigError(f"--model is no JSON: {error}") from None
    if not isinstance(model, dict):
        raise ConfigError("--model is a JSON object of arguments")
    data = {
        "fasta": args.fasta,
        "labels": args.labels,
        "bed": args.bed,
        "regression": args.regression,
        "batch_size": args.batch_size,
    }
    outcome = cross_validate(data, model, args.folds, args.steps, args.seed)
    _print_classes(outcome)
    title = f"{len(outcome.target):,} sequences in {args.folds} folds"
    print_table(outcome.scores(), outcome.metric, title, lower_is_better=False)
    print(verdict(outcome.scores(), outcome.metric, lower_is_better=False))
    if args.out:
        write_outcome(outcome, args.out)
        print(args.out)
    return 0


def _print_classes(outcome: Outcome) -> None:
    from rich.console import Console
    from rich.table import Table

    if outcome.data.regression:
        return
    table = Table(title="by class")
    for heading in ("model", "class", "precision", "recall", "F1", "sequences"):
        table.add_column(heading, justify="left" if heading in ("model", "class") else "right")
    for model in outcome.predictions:
        for row in outcome.by_class(model):
            shown = [f"{row[key]:.4f}" for key in ("precision", "recall", "f1")]
            table.add_row(model, row["class"], *shown, f"{row['sequences']:,}")
    Console(markup=False).print(table)
