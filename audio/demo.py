"""The demo: packaged clips are resynthesised in three ways; a small Mamba looks for the traces."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from longseq.audio.baselines import SpectralRegression
from longseq.audio.calibration import UNCERTAIN
from longseq.audio.compare import (
    BASELINE,
    SongComparison,
    print_rows,
    rows_of,
    score_windows,
    scorer_of,
)
from longseq.audio.data.folder import list_recordings
from longseq.audio.data.listing import list_audio
from longseq.audio.data.module import EvaluationClips, SongReader
from longseq.audio.data.reading import read_audio
from longseq.audio.export import EXAMPLE, load_detector
from longseq.audio.plots import plot_versions
from longseq.audio.scan import run as scan
from longseq.audio.scoring import score_file
from longseq.audio.synthesis import METHODS
from longseq.audio.synthesize import make_versions
from longseq.core.compare import write_table
from longseq.core.report.section import Picture, Section
from longseq.core.results import Score
from longseq.core.samples import Samples
from longseq.core.training.by_config import Train

SAMPLES = Samples("audio", {"songs": "songs"})
PACKAGED_BASELINE = EXAMPLE.with_name("spectral_regression.json")


def demo(out: Path, train: Train, max_steps: int | None = None) -> Section:
    """Resynthesises the packaged clips, scans them with the packaged Mamba, compares with the
    baseline.

    The clips are of songs that neither the detector nor the baseline saw in training.

    Args:
        out: folder for the results.
        train: not needed, the detector is packaged.
        max_steps: at most so many clips; None for all.
    """
    start = time.perf_counter()
    clips, _ = list_audio(SAMPLES.path("songs"))
    clips = clips[: max(1, max_steps)] if max_steps is not None else clips
    print(
        f"1. Resynthesising {len(clips)} packaged clips in {len(METHODS)} ways, through one chain"
    )
    labelled = out / "songs"
    versions = [make_versions(clip, labelled, list(METHODS)) for clip in clips]
    for clip in clips:
        print(f"   {clip.stem}")

    print("2. Scoring windows of 5 s with the packaged Mamba and the packaged baseline")
    task, baseline = load_detector(EXAMPLE), SpectralRegression.load(PACKAGED_BASELINE)
    recordings, _ = list_recordings(labelled)
    windows = EvaluationClips(recordings, SongReader(16000), 5.0, 8)
    scorers = {"mamba": scorer_of(task, task.mel), BASELINE: scorer_of(baseline, task.mel)}
    scored = score_windows(scorers, windows)
    rows = rows_of(scored, "packaged clips", task.methods)
    comparison = SongComparison()
    print_rows(comparison, rows)
    table = out / "scores_by_method.csv"
    write_table(table, [(comparison, rows)])

    print("3. Scanning the files as `longseq audio scan` does")
    begin = time.perf_counter()
    scan([str(labelled), "--out", str(out / "scan"), "--ckpt_path", str(EXAMPLE)])
    length, seconds = sum(item.seconds for item in recordings), time.perf_counter() - begin
    rate = length / seconds
    image = out / "versions.png"
    names = ["real", *METHODS]
    results = [score_file(task, file) for file in versions[0]]
    notes = [
        f"p = {item.probability:.2f}, {item.verdict}" if item.probability is not None else UNCERTAIN
        for item in results
    ]
    audio = {name: read_audio(file) for name, file in zip(names, versions[0])}
    plot_versions(audio, notes, scored, image)

    scores = []
    for name in scored.scores:
        mine = [row for row in rows if row.model == name]
        columns = {}
        for row in mine:
            held_out = " (held out)" if row.numbers["held_out"] == "yes" else ""
            columns[f"{row.numbers['method']}{held_out}"] = f"{row.value:.3f}"
        scores.append(
            Score(name, float(np.mean([row.value for row in mine])), mine[0].kind, columns)
        )
    return Section(
        domain="audio",
        question="Can one hear in a recording that a machine resynthesised it?",
        data=f"{len(clips)} clips of music from Debian's hyperrogue-music and singularity-music "
        f"(CC BY-SA "
        "3.0), of songs that training never saw, each real and resynthesised in three ways.",
        scores=scores,
        metric="AUC, mean of the methods, windows of 5 s",
        speed=f"The scan read, decoded and scored {length / 60:.1f} minutes of audio in "
        f"{seconds:.1f} s, "
        f"{rate:.0f} times real time.",
        seconds=time.perf_counter() - start,
        pictures=[
            Picture(
                image,
                "The same music, real and resynthesised, and the scores of all windows by method.",
            )
        ],
        files=[table, out / "scan" / "index.html", out / "scan" / "scores.csv"],
        lower_is_better=False,
        tie=max((row.numbers["auc_high"] - row.numbers["auc_low"]) / 2 for row in rows),
    )
