"""``longseq audio scan``: every file of a folder scored, to CSV, JSONL and one HTML page with
timelines."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from longseq.audio.export import load_detector
from longseq.audio.predict import list_files, summary, write_scores
from longseq.audio.scoring import UNREADABLE, FileScore, score_files
from longseq.audio.task import SongDetector
from longseq.audio.timeline import page
from longseq.core import __version__
from longseq.core.errors import DataError
from longseq.core.files import atomic_path


def write_segments(path: str | Path, scores: Sequence[FileScore]) -> None:
    """Writes one JSON object a segment: file, start_s, end_s, probability; whole or not at all.

    Args:
        path: the file.
        scores: of the files.
    """
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for item in scores:
            for segment, p in zip(item.segments, item.segment_probabilities):
                row = {
                    "file": item.file.encode("utf-8", "replace").decode(),
                    "start_s": round(segment.start, 3),
                    "end_s": round(segment.end, 3),
                    "probability": p,
                }
                file.write(json.dumps(row, ensure_ascii=False) + "\n")


def about(task: SongDetector) -> str:
    """Returns what a detector can and cannot know, in words."""
    known = ", ".join(task.methods) or "unknown methods"
    return (
        f"The probability is that of the detector, which learnt to tell recordings from "
        f"versions made by: {known}. "
        "It measures how much a file sounds like those versions and is no proof of how it was "
        "made. Other generators, neural ones above all, go unseen, and real recordings of other "
        "kinds of music may be taken for synthesis; where a recording is plainly of another kind, "
        "the verdict is uncertain."
    )


def run(argv: Sequence[str]) -> int:
    """Runs ``longseq audio scan``."""
    parser = argparse.ArgumentParser(
        prog="longseq audio scan",
        description="Writes OUT/scores.csv, OUT/segments.jsonl and OUT/index.html (open it in a "
        "browser). "
        "Files that cannot be read get a row that says why.",
    )
    parser.add_argument("folder", help="folder (searched to any depth) or file")
    parser.add_argument("--out", required=True, help="folder to write")
    parser.add_argument("--ckpt_path", help="a detector of yours (the packaged one)")
    parser.add_argument("--workers", type=int, default=2, help="files at a time (2)")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    args = parser.parse_args(argv)
    if Path(args.out).is_file():
        raise DataError("is a file, a folder is needed", path=args.out)
    task = load_detector(args.ckpt_path).to(args.device)
    folder, files = list_files(args.folder)
    scores, start = [], time.perf_counter()
    for number, item in enumerate(score_files(task, files, folder, args.workers), 1):
        scores.append(item)
        shown = "     " if item.probability is None else f"{item.probability:5.2f}"
        name = item.file.encode("utf-8", "replace").decode()
        print(f"[{number}/{len(files)}] {shown} {item.verdict:<10} {name}")
    seconds = time.perf_counter() - start
    bad = [item for item in scores if item.verdict == UNREADABLE]
    for item in bad[:10]:
        print(f"note: {item.file}: {item.reason}", file=sys.stderr)
    length = sum(item.seconds for item in scores)
    text = (
        f"{len(scores)} files: {summary(scores)}. {length / 60:.1f} minutes of audio in "
        f"{seconds:.1f} s, {length / max(seconds, 1e-9):.0f} × real time."
    )
    out = Path(args.out)
    write_scores(out / "scores.csv", scores)
    write_segments(out / "segments.jsonl", scores)
    band = task.calibration
    footer = (
        f"longseq {__version__}, detector {args.ckpt_path or 'packaged'}; uncertain from "
        f"{band.low:.2f} to {band.high:.2f} (shaded), settled on {band.windows} windows of "
        f"validation songs."
    )
    with atomic_path(out / "index.html") as temporary:
        temporary.write_text(
            page(scores, band, text, about(task), footer), encoding="utf-8", errors="replace"
        )
    print(text)
    for name in ("scores.csv", "segments.jsonl", "index.html"):
        print(f"  {out / name}")
    return 0
