"""``longseq audio compare``: the AUC of every synthesis method, models beside the baseline, and a
verdict."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from longseq.audio.baselines import SpectralRegression, spectral_statistics
from longseq.audio.data.folder import Recording, list_recordings
from longseq.audio.data.module import EvaluationClips, SongData, SongReader, list_bad
from longseq.audio.export import load_detector
from longseq.audio.features import MelPower
from longseq.audio.metrics import auc, auc_draws
from longseq.audio.task import SongDetector
from longseq.core.compare import Comparison, Row
from longseq.core.errors import ConfigError, DataError, plain
from longseq.core.registry import Registry
from longseq.core.training.by_config import Values

BASELINE = "spectral statistics"
BASELINES: Registry[type[SpectralRegression]] = Registry("baseline")
BASELINES.add("spectral_statistics", SpectralRegression)
Scorer = Callable[[Tensor], np.ndarray]
"""Maps audio (B, N) to log-odds (B,)."""


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


def fit_baseline(data: SongData, mel: MelPower) -> SpectralRegression:
    """Fits the regression on the windows of the training songs, its strength chosen on validation
    songs.

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
def score_windows(scorers: Mapping[str, Scorer], clips: EvaluationClips) -> Scored:
    """Scores windows with models and baselines.

    Args:
        scorers: by name, see ``scorer_of``.
        clips: the windows.
    """
    songs, methods = [], []
    found: dict[str, list[np.ndarray]] = {name: [] for name in scorers}
    for index in range(len(clips)):
        batch = clips[index]
        for i in batch["recording"].tolist():
            songs.append(clips.recordings[i].song)
            methods.append(clips.recordings[i].method)
        for name, scorer in scorers.items():
            found[name].append(scorer(batch["audio"]))
    scores = {name: np.concatenate(parts) for name, parts in found.items()}
    return Scored(np.array(songs), np.array(methods), scores)


def scorer_of(model: SongDetector | SpectralRegression, mel: MelPower) -> Scorer:
    """Returns what scores windows.

    Args:
        model: in evaluation mode, or a fitted baseline.
        mel: that the baseline looks through.
    """
    if isinstance(model, SpectralRegression):
        return lambda audio: model.score(spectral_statistics(audio, mel))
    return lambda audio: model.model(audio).float().numpy()


def rows_of(scored: Scored, data: str, seen: Sequence[str], seed: int | None = None) -> list[Row]:
    """Returns one row per method and model.

    Args:
        scored: windows.
        data: name of the data set.
        seen: methods that the detector was trained on.
        seed: of the training.
    """
    real, rows = scored.methods == "", []
    for method in sorted(set(scored.methods) - {""}):
        fake = scored.methods == method
        songs = scored.songs[real], scored.songs[fake]
        count = len(set(scored.songs[real]) | set(scored.songs[fake]))
        for name, scores in scored.scores.items():
            draws = auc_draws(scores[real], scores[fake], *songs)
            low, high = (float(value) for value in np.nanquantile(draws, [0.025, 0.975]))
            numbers = {
                "data": data,
                "method": method,
                "held_out": "no" if method in seen else "yes",
                "auc_low": low,
                "auc_high": high,
                "songs": count,
                "windows": int(fake.sum()),
            }
            kind, value = (
                "baseline" if name == BASELINE else "model",
                auc(scores[real], scores[fake]),
            )
            rows.append(Row(name, kind, value, seed, f"{data}/{method}", numbers, draws))  # type: ignore[arg-type]
    return rows


class SongComparison(Comparison):
    """Area under the ROC curve for every method; differences that another draw of songs explains
    are none.

    Args:
        data: the labelled folder and its split by song; None for a verdict on what is scored
            already.
        holdout: methods that training never sees.
        others: further labelled folders, only tested on: name, recordings, files that cannot be
            read.
        baseline_out: JSON file for the fitted baseline.
    """

    baselines = BASELINES
    score = "auc"
    columns = {
        **dict.fromkeys(("data", "method", "held_out", "model", "kind"), ""),
        **dict.fromkeys(("auc", "auc_low", "auc_high"), ".6f"),
        **dict.fromkeys(("songs", "windows", "seed"), "d"),
        "verdict": "",
    }
    lower_is_better = False
    models_first = True
    trained = ("mamba",)

    def __init__(
        self,
        data: SongData | None = None,
        holdout: Sequence[str] = (),
        others: Sequence[tuple[str, Sequence[Recording], Sequence[str]]] = (),
        baseline_out: str | None = None,
    ) -> None:
        self.holdout, self.baseline_out = list(holdout), baseline_out
        self.mel: MelPower | None = None
        self.tested: list[tuple[str, Sequence[Recording], Sequence[str]]] = []
        if data is None:
            return
        if not data.parts["test"]:
            raise DataError("leaves no test songs", path=data.source)
        self.data = data
        self.tested += [(data.source, data.parts["test"], []), *others]
        for _, recordings, bad in self.tested:
            list_bad(bad, len(recordings) + len(bad))

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--data", required=True, help="labelled folder: real/ and fake/METHOD/")
        parser.add_argument(
            "--holdout", default="", help="methods that training never sees, comma-separated"
        )
        parser.add_argument(
            "--test_data",
            nargs="*",
            default=[],
            help="further labelled folders of other songs, only tested on",
        )
        parser.add_argument(
            "--seconds", type=float, default=10.0, help="length of a scored window, s (10)"
        )
        parser.add_argument("--split_seed", type=int, default=0, help="of the split by song (0)")
        parser.add_argument("--baseline_out", help="JSON file to write the fitted baseline to")

    @classmethod
    def of(cls, args: argparse.Namespace) -> Iterator[SongComparison]:
        if not args.seconds >= 1:
            raise ConfigError(f"--seconds must be at least 1, got {args.seconds}")
        holdout = [name for name in args.holdout.split(",") if name]
        data = SongData(
            args.data, holdout, eval_seconds=args.seconds, eval_batch_size=8, seed=args.split_seed
        )
        others = [(folder, *list_recordings(folder)) for folder in args.test_data]
        yield cls(data, holdout, others, args.baseline_out)

    @property
    def metric(self) -> str:
        return "AUC"

    def _score(
        self,
        name: str,
        model: SongDetector | SpectralRegression,
        seen: Sequence[str],
        seed: int | None = None,
    ) -> list[Row]:
        mel, seconds = self.mel or MelPower(self.data.sample_rate), self.data.eval_seconds
        rows = []
        for where, recordings, _ in self.tested:
            clips = EvaluationClips(recordings, SongReader(self.data.sample_rate), seconds, 8)
            rows += rows_of(score_windows({name: scorer_of(model, mel)}, clips), where, seen, seed)
        return rows

    def baseline(self, name: str) -> list[Row]:
        """Fits on the training songs, with the bands of the first model."""
        print(f"Fitting the baseline on the {len(self.data.songs['train'])} training songs.")
        found = fit_baseline(self.data, self.mel or MelPower(self.data.sample_rate))
        if self.baseline_out:
            found.save(self.baseline_out)
        return self._score(BASELINE, found, self.data.methods)

    def checkpoint(self, path: Path, name: str, seed: int | None) -> list[Row]:
        task = load_detector(path)
        if not isinstance(task, SongDetector):
            raise DataError(
                "scores whole files, not windows", path=path, hint="use `longseq audio scan`"
            )
        if set(self.holdout) & set(task.methods):
            known = ", ".join(sorted(set(self.holdout) & set(task.methods)))
            raise DataError(f"was trained on {known}", path=path)
        for where, recordings, _ in self.tested:
            check_disjoint(task, recordings, where)
        if self.mel is None:
            self.mel = task.mel
        print(f"Detector: {path}")
        return self._score(str(task.hparams["model"]), task, task.methods, seed)

    def values(self, config: Path, seed: int) -> Values:
        data = self.data
        return {
            "data": {"source": data.source, "holdout": self.holdout, "seed": data.hparams["seed"]}
        }

    def tie(self, row: Row, rival: Row) -> float:
        low, high = np.nanquantile(row.state - rival.state, [0.025, 0.975])
        return 2.0 if low <= 0 <= high else 0.0

    def report(self, rows: Sequence[Row]) -> None:
        """Prints one table per data set, one line per method, and the verdict on every one."""
        print_rows(self, rows)
        print("Songs are disjoint; intervals are 95% over draws of test songs.")


def print_rows(comparison: Comparison, rows: Sequence[Row]) -> None:
    """Prints one table per data set, with a column per model and a line per method, and the
    verdicts.

    Args:
        comparison: for the verdicts.
        rows: of ``rows_of``.
    """
    from rich.console import Console
    from rich.table import Table

    several = len({row.seed for row in rows if row.kind == "model"}) > 1
    names = {
        id(row): f"{row.model} {row.seed}" if several and row.seed is not None else row.model
        for row in rows
    }
    for data in dict.fromkeys(row.numbers["data"] for row in rows):
        mine = [row for row in rows if row.numbers["data"] == data]
        table = Table(
            title=plain(f"{data}: AUC [95% interval over draws of songs]"), title_justify="left"
        )
        table.add_column("method")
        for name in (*dict.fromkeys(names[id(row)] for row in mine), "songs", "windows"):
            table.add_column(name, justify="right")
        said = []
        for group in dict.fromkeys(row.group for row in mine):
            line = [row for row in mine if row.group == group]
            about = line[0].numbers
            label = (
                about["method"] if about["held_out"] == "no" else f"{about['method']} (never seen)"
            )
            texts = [
                f"{row.value:.3f} [{row.numbers['auc_low']:.2f}, {row.numbers['auc_high']:.2f}]"
                for row in line
            ]
            table.add_row(label, *texts, str(about["songs"]), str(about["windows"]))
            said += [
                f"{label}: {comparison.said(row, rows)}" for row in line if row.kind == "model"
            ]
        Console(file=sys.stdout, markup=False).print(table)
        print("\n".join(said))


def check_disjoint(task: SongDetector, recordings: Sequence[Recording], where: str) -> None:
    """Checks that no test song was used to train or to calibrate the detector.

    Raises:
        DataError: naming the first that was.
    """
    used = {song for part in ("train", "valid") for song in task.songs.get(part, [])}
    shared = sorted({item.song for item in recordings} & used)
    if shared:
        raise DataError(
            f"{len(shared)} of its test songs were used to train the detector, for example "
            f"{shared[0]!r}",
            path=where,
            hint="compare with the same data.seed, fractions and file names as in training",
        )
