"""``longseq audio compare``: the AUC of every synthesis method, model beside baseline, with the verdict."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from longseq.audio.baselines import SpectralRegression, spectral_statistics
from longseq.audio.commands import DOMAIN
from longseq.audio.data.folder import Recording, list_recordings
from longseq.audio.data.module import EvaluationClips, SongData, SongReader, list_bad
from longseq.audio.export import load_detector
from longseq.audio.features import MelPower
from longseq.audio.metrics import auc, auc_draws
from longseq.audio.task import SongDetector
from longseq.core.errors import ConfigError, DataError
from longseq.core.results import Score, verdict
from longseq.core.tables import check_table, write_rows

BASELINE = "spectral statistics"


@dataclass(frozen=True)
class Scored:
    """Windows of recordings with the scores of the model and of the baseline.

    Args:
        songs: of every window (N,).
        methods: of every window, "" for real (N,).
        scores: a model's name → log-odds (N,).
    """

    songs: np.ndarray
    methods: np.ndarray
    scores: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Row:
    """One method on one data set.

    Args:
        data: the folder.
        method: of synthesis.
        seen: whether the detector was trained on it.
        songs: number of test songs.
        windows: number of synthetic test windows.
        auc: a model's name → area under the ROC curve.
        interval: a model's name → its 95% interval over draws of songs.
        level: whether chance in the draw of songs explains the difference.
    """

    data: str
    method: str
    seen: bool
    songs: int
    windows: int
    auc: Mapping[str, float]
    interval: Mapping[str, tuple[float, float]]
    level: bool


def fit_baseline(data: SongData, mel: MelPower) -> SpectralRegression:
    """Fits the regression on the windows of the training songs, its strength chosen on validation songs.

    Args:
        data: the songs.
        mel: as the model's, so that both see the same bands.
    """
    rows = []
    for part in ("train", "valid"):
        batches = list(data.evaluation(part))
        if not batches:
            raise DataError(f"leaves no songs to {part}", path=data.source)
        rows.append(np.concatenate([spectral_statistics(batch["audio"], mel) for batch in batches]))
        rows.append(np.concatenate([batch["target"].numpy() for batch in batches]))
    return SpectralRegression().fit(*rows)


@torch.inference_mode()
def score_windows(
    task: SongDetector, baseline: SpectralRegression, clips: EvaluationClips, name: str = "mamba"
) -> Scored:
    """Scores windows with the model and the baseline.

    Args:
        task: in evaluation mode.
        baseline: fitted.
        clips: the windows.
        name: of the model.
    """
    songs, methods, ours, theirs = [], [], [], []
    mel = task.mel
    for index in range(len(clips)):
        batch = clips[index]
        for i in batch["recording"].tolist():
            songs.append(clips.recordings[i].song)
            methods.append(clips.recordings[i].method)
        ours.append(task.model(batch["audio"]).float().numpy())
        theirs.append(baseline.score(spectral_statistics(batch["audio"], mel)))
    scores = {name: np.concatenate(ours), BASELINE: np.concatenate(theirs)}
    return Scored(np.array(songs), np.array(methods), scores)


def rows_of(scored: Scored, data: str, seen: Sequence[str]) -> list[Row]:
    """Returns one row a method.

    Args:
        scored: windows.
        data: name of the data set.
        seen: methods that the detector was trained on.
    """
    real, rows = scored.methods == "", []
    for method in sorted(set(scored.methods) - {""}):
        fake = scored.methods == method
        songs = scored.songs[real], scored.songs[fake]
        values = {name: auc(s[real], s[fake]) for name, s in scored.scores.items()}
        draws = {name: auc_draws(s[real], s[fake], *songs) for name, s in scored.scores.items()}
        interval = {}
        for name, drawn in draws.items():
            low, high = np.nanquantile(drawn, [0.025, 0.975])
            interval[name] = (float(low), float(high))
        first, second = draws.values()
        low, high = np.nanquantile(first - second, [0.025, 0.975])
        count = len(set(scored.songs[real]) | set(scored.songs[fake]))
        level = bool(low <= 0 <= high)
        rows.append(Row(data, method, method in seen, count, int(fake.sum()), values, interval, level))
    return rows


def print_rows(rows: Sequence[Row]) -> None:
    """Prints a table a data set, a line a method, and the verdict on every one.

    Args:
        rows: of ``rows_of``.
    """
    from rich.console import Console
    from rich.table import Table

    for data in dict.fromkeys(row.data for row in rows):
        mine = [row for row in rows if row.data == data]
        table = Table(title=f"{data}: AUC [95% interval over draws of songs]", title_justify="left")
        table.add_column("method")
        for name in (*mine[0].auc, "songs", "windows"):
            table.add_column(name, justify="right")
        for row in mine:
            values = [
                "{:.3f} [{:.2f}, {:.2f}]".format(row.auc[name], *row.interval[name]) for name in row.auc
            ]
            label = row.method if row.seen else f"{row.method} (never seen)"
            table.add_row(label, *values, str(row.songs), str(row.windows))
        Console(file=sys.stdout).print(table)
        for row in mine:
            print(f"{row.method}{'' if row.seen else ' (never seen)'}: {verdict_of(row)}")


def verdict_of(row: Row) -> str:
    """Returns the verdict on one row in words; differences that another draw of songs explains are level."""
    scores = [Score(name, v, "baseline" if name == BASELINE else "model") for name, v in row.auc.items()]
    return verdict(scores, "AUC", lower_is_better=False, tie=2.0 if row.level else 0.0)


def write_table(path: str | Path, rows: Sequence[Row]) -> None:
    """Writes the table: one line per data set, method and model.

    Args:
        path: the file.
        rows: of ``rows_of``.
    """
    text, number = dict.fromkeys(("data", "method", "held_out", "model", "kind"), ""), ".6f"
    columns = {**text, "auc": number, "auc_low": number, "auc_high": number, "songs": "d", "windows": "d"}
    lines = []
    for row in rows:
        for name, value in row.auc.items():
            about = [row.data, row.method, "no" if row.seen else "yes", name]
            kind = "baseline" if name == BASELINE else "model"
            lines.append([*about, kind, value, *row.interval[name], row.songs, row.windows])
    write_rows(path, columns, lines)


def train(source: str, holdout: Sequence[str], config: str, root: str, max_steps: int | None) -> Path:
    """Trains a detector as ``longseq audio fit`` does, and returns its best checkpoint.

    Args:
        source: labelled folder.
        holdout: methods that training never sees.
        config: packaged configuration or file.
        root: output folder.
        max_steps: instead of the configuration's.
    """
    from longseq.core.shell.lightning_cli import run as fit

    before = set(Path(root).glob("compare/version_*"))
    argv = ["--config", config, "--data.source", source, f"--data.holdout={list(holdout)}"]
    argv += ["--trainer.default_root_dir", root, "--name", "compare"]
    if max_steps is not None:
        argv += [f"--trainer.max_steps={max_steps}", f"--trainer.val_check_interval={max(1, max_steps // 4)}"]
    fit(DOMAIN, "fit", argv)
    (made,) = set(Path(root).glob("compare/version_*")) - before
    return made / "checkpoints" / "best.ckpt"


def check_disjoint(task: SongDetector, recordings: Sequence[Recording], where: str) -> None:
    """Checks that no test song was used to train or to calibrate the detector.

    Raises:
        DataError: naming the first that was.
    """
    used = {song for part in ("train", "valid") for song in task.songs.get(part, [])}
    shared = sorted({item.song for item in recordings} & used)
    if shared:
        raise DataError(
            f"{len(shared)} of its test songs were used to train the detector, for example {shared[0]!r}",
            path=where,
            hint="compare with the same data.seed, fractions and file names as in training",
        )


def run(argv: Sequence[str]) -> int:
    """Runs ``longseq audio compare``."""
    parser = argparse.ArgumentParser(prog="longseq audio compare", description=__doc__)
    parser.add_argument("--data", required=True, help="labelled folder: real/ and fake/METHOD/")
    parser.add_argument("--holdout", default="", help="methods that training never sees, comma-separated")
    parser.add_argument("--ckpt_path", help="a detector trained before on this folder (else one is trained)")
    parser.add_argument("--config", default="mamba", help="configuration of the training (mamba)")
    parser.add_argument("--max_steps", type=int, help="training steps, instead of the configuration's")
    parser.add_argument(
        "--test_data", nargs="*", default=[], help="further labelled folders of other songs, only tested on"
    )
    parser.add_argument("--seconds", type=float, default=10.0, help="length of a scored window, s (10)")
    parser.add_argument("--seed", type=int, default=0, help="of the split by song (0)")
    parser.add_argument("--out", required=True, help=".csv, .tsv or .parquet file to write")
    parser.add_argument("--baseline_out", help="JSON file to write the fitted baseline to")
    parser.add_argument("--root", default="outputs/audio", help="folder of the training (outputs/audio)")
    args = parser.parse_args(argv)
    check_table(args.out)
    if not args.seconds >= 1:
        raise ConfigError(f"--seconds must be at least 1, got {args.seconds}")
    holdout = [name for name in args.holdout.split(",") if name]
    data = SongData(args.data, holdout, eval_seconds=args.seconds, eval_batch_size=8, seed=args.seed)
    others = [(folder, *list_recordings(folder)) for folder in args.test_data]
    if not data.parts["test"]:
        raise DataError("leaves no test songs", path=args.data)
    if args.ckpt_path is None and args.seed:
        raise ConfigError("--seed other than 0 needs --ckpt_path of a training with the same data.seed")
    path = args.ckpt_path or train(args.data, holdout, args.config, args.root, args.max_steps)
    task = load_detector(path)
    if set(holdout) & set(task.methods):
        raise DataError(f"was trained on {', '.join(sorted(set(holdout) & set(task.methods)))}", path=path)
    check_disjoint(task, data.parts["test"], args.data)
    print(f"Fitting the baseline on the {len(data.songs['train'])} training songs.")
    baseline = fit_baseline(data, task.mel)
    if args.baseline_out:
        baseline.save(args.baseline_out)
    rows, name = [], str(task.hparams["model"])
    for where, recordings, bad in [(args.data, data.parts["test"], []), *others]:
        check_disjoint(task, recordings, where)
        list_bad(bad, len(recordings) + len(bad))
        clips = EvaluationClips(recordings, SongReader(data.sample_rate), args.seconds, 8)
        rows += rows_of(score_windows(task, baseline, clips, name), where, task.methods)
    print_rows(rows)
    write_table(args.out, rows)
    print(f"Detector: {path}\nSongs are disjoint; intervals are 95% over draws of test songs.\n{args.out}")
    return 0
