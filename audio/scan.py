"""``longseq audio scan``: every file of a folder scored, to CSV, JSONL and one HTML page; a scan
that was interrupted goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from longseq.audio.calibration import UNREADABLE
from longseq.audio.export import PACKAGED, load_detector
from longseq.audio.page import write_page
from longseq.audio.predict import list_files, quiet_libraries, summary, write_scores
from longseq.audio.results import ResultLog
from longseq.audio.scoring import Detector, FileScore, score_files
from longseq.core import __version__
from longseq.core.command_line import CommandParser, add_device
from longseq.core.errors import DataError, plain
from longseq.core.files import atomic_path

_ORDER = {"synthetic": 0, "uncertain": 1, "unscorable": 2, "unreadable": 3, "no sign": 4}


def write_segments(path: str | Path, scores: Iterable[FileScore]) -> None:
    """Writes one JSON object per segment: file, start_s, end_s, probability; whole or not at all.

    Args:
        path: the file.
        scores: of the files.
    """
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for item in scores:
            for start, end, p in item.segments:
                row = {
                    "file": item.file,
                    "start_s": round(start, 3),
                    "end_s": round(end, 3),
                    "probability": p,
                }
                file.write(json.dumps(row, ensure_ascii=False) + "\n")


def about(detector: Detector) -> str:
    """Returns what a detector can and cannot know, in words."""
    known = ", ".join(detector.methods) or "unknown methods"
    return (
        f"The probability is that of the detector, which learnt to tell recordings from "
        f"versions made by: {known}. "
        "It measures how much a file sounds like those versions and is no proof of how it was "
        "made. Other generators may go unseen, and real recordings may be taken for synthesis; "
        "where a recording is plainly unlike what the detector knows, the verdict is uncertain."
    )


def checksum(path: str | Path | None) -> str:
    """Returns what tells one detector from another: the start of a SHA-256 of its weights.

    Args:
        path: as for ``load_detector``.
    """
    file = PACKAGED if path is None else Path(path)
    if file.is_dir():
        file = file / "pytorch_model.bin"
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()[:16]


def worst_first(
    log: ResultLog, files: Sequence[Path], folder: Path
) -> tuple[list[Path], list[str], float]:
    """Returns the files in the order of the page, their verdicts, and their length in all, s."""
    keys, verdicts, length = [], [], 0.0
    for number, item in enumerate(log.scores(files, folder)):
        p = -1.0 if item.probability is None else item.probability
        keys.append((_ORDER[item.verdict], -p, number))
        verdicts.append(item.verdict)
        length += item.seconds
    return [files[number] for _, _, number in sorted(keys)], verdicts, length


def run(argv: Sequence[str]) -> int:
    """Runs ``longseq audio scan``."""
    parser = CommandParser(
        prog="longseq audio scan",
        description="Writes OUT/scores.csv, OUT/segments.jsonl and OUT/index.html (open it in a "
        "browser). Files that cannot be read get a row that says why. Results are kept in "
        "OUT/results.jsonl as they come: run the same command again to go on after an "
        "interruption, or to scan what is new.",
    )
    parser.add_argument("folder", help="folder (searched to any depth) or file")
    parser.add_argument("--out", required=True, help="folder to write")
    parser.add_argument(
        "--ckpt_path",
        help="a detector of yours, or a folder of published SONICS weights (the packaged one)",
    )
    parser.add_argument("--workers", type=int, default=2, help="files at a time (2)")
    add_device(parser)
    parser.add_argument("--restart", action="store_true", help="score every file anew")
    args = parser.parse_args(argv)
    out = Path(args.out)
    if out.is_file():
        raise DataError("is a file, a folder is needed", path=args.out)
    detector = load_detector(args.ckpt_path).to(args.device)
    folder, files = list_files(args.folder, out)
    maker = {"longseq": __version__, "detector": checksum(args.ckpt_path)}
    log = ResultLog(out / "results.jsonl", maker, args.restart)
    try:
        _score(log, detector, files, folder, args.workers)
        _report(log, detector, files, folder, out, args.ckpt_path)
        _, verdicts, _ = worst_first(log, files, folder)
    finally:
        log.close()
    return 1 if all(verdict == UNREADABLE for verdict in verdicts) else 0


def _score(
    log: ResultLog, detector: Detector, files: Sequence[Path], folder: Path, workers: int
) -> None:
    """Scores what has no result yet, and says how it goes."""
    missing = log.missing(files, folder)
    if log.restarted:
        print(
            "note: earlier results were of another detector: all files are scored", file=sys.stderr
        )
    elif len(missing) < len(files):
        print(f"{len(files) - len(missing)} of {len(files)} files have a result already")
    start, length, done, bad = time.perf_counter(), 0.0, 0, 0
    try:
        with quiet_libraries():
            for file, item in zip(missing, score_files(detector, missing, folder, workers)):
                log.add(file, folder, item)
                done, length = done + 1, length + item.seconds
                shown = "     " if item.probability is None else f"{item.probability:5.2f}"
                line = f"[{done}/{len(missing)}] {shown} {item.verdict:<10} {item.file}"
                print(
                    plain(line)
                    .encode(sys.stdout.encoding or "utf-8", "backslashreplace")
                    .decode(sys.stdout.encoding or "utf-8")
                )
                bad += item.verdict == UNREADABLE
                if item.verdict == UNREADABLE and bad <= 10:
                    print(plain(f"note: {item.file}: {item.reason}"), file=sys.stderr)
    except KeyboardInterrupt:
        kept = len(files) - len(missing) + done
        print(
            f"\n{kept} of {len(files)} results are kept in {log.path}; the same command goes on",
            file=sys.stderr,
        )
        raise
    seconds = time.perf_counter() - start
    if missing:
        print(
            f"{length / 60:.1f} minutes of audio in {seconds:.1f} s, "
            f"{length / max(seconds, 1e-9):.0f} × real time"
        )


def _report(
    log: ResultLog,
    detector: Detector,
    files: Sequence[Path],
    folder: Path,
    out: Path,
    ckpt_path: str | None,
) -> None:
    """Writes table, segments and page, read back from the results one at a time."""
    write_scores(out / "scores.csv", log.scores(files, folder))
    write_segments(out / "segments.jsonl", log.scores(files, folder))
    order, verdicts, length = worst_first(log, files, folder)
    band = detector.calibration
    text = f"{len(files)} files, {length / 60:.1f} minutes: {summary(verdicts)}."
    footer = (
        f"longseq {__version__}, detector {ckpt_path or 'packaged'}; uncertain from "
        f"{band.low:.2f} to {band.high:.2f} (shaded), settled on {band.windows} windows."
    )
    pairs = zip(order, log.scores(order, folder))
    write_page(out / "index.html", pairs, band, text, about(detector), footer)
    print(text)
    for name in ("scores.csv", "segments.jsonl", "index.html"):
        print(f"  {out / name}")
