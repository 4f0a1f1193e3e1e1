"""``longseq audio predict``: probabilities of the files in a folder, from a checkpoint alone, to a
table."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from longseq.audio.calibration import UNREADABLE
from longseq.audio.data.listing import list_audio, outside
from longseq.audio.export import load_detector
from longseq.audio.scoring import FileScore, score_files, shown_name
from longseq.core.command_line import CommandParser, add_device
from longseq.core.errors import DataError, plain
from longseq.core.tables import DELIMITERS, check_table, write_rows

COLUMNS = {"file": "", "duration_s": ".3f", "probability": ".9g", "verdict": "", "reason": ""}


def list_files(root: str | Path, out: str | Path | None = None) -> tuple[Path, list[Path]]:
    """Returns the folder that names are relative to, and the audio files in it; says what is left
    out.

    Args:
        root: a folder, or one file.
        out: folder that results go to: what an earlier run wrote there is no input.

    Raises:
        DataError: if it holds no files.
    """
    files, other = (outside(found, root, out) for found in list_audio(root))
    if other:
        names = ", ".join(shown_name(path.name) for path in other[:3]) + (
            ", …" if len(other) > 3 else ""
        )
        print(
            plain(f"note: {len(other)} files are no audio by name or content: {names}"),
            file=sys.stderr,
        )
    if not files:
        raise DataError("holds no audio files", path=root)
    return (Path(root) if Path(root).is_dir() else Path(root).parent), files


def safe_cell(text: str) -> str:
    """Returns text that a spreadsheet does not take for a formula: with an apostrophe before it.

    Args:
        text: of a cell.
    """
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def write_scores(path: str | Path, scores: Iterable[FileScore]) -> None:
    """Writes ``file, duration_s, probability, verdict, reason`` whole or not at all.

    Args:
        path: the file; in .csv and .tsv, cells that begin like a formula are escaped.
        scores: rows.
    """
    escape = safe_cell if Path(path).suffix.lower() in DELIMITERS else str
    rows = (
        [escape(item.file), item.seconds, item.probability, item.verdict, escape(item.reason)]
        for item in scores
    )
    write_rows(path, COLUMNS, rows)


def summary(verdicts: Iterable[str]) -> str:
    """Returns the counts of verdicts in words."""
    return ", ".join(f"{count} {verdict}" for verdict, count in Counter(verdicts).most_common())


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keeps what C libraries print (mpg123 on every damaged frame) off the terminal.

    Python's own messages still reach it. Nothing happens where stderr has been redirected already.
    """
    try:
        ours = sys.stderr.fileno() == 2
    except (AttributeError, OSError, ValueError):
        ours = False
    if not ours:
        yield
        return
    sys.stderr.flush()
    before, copy = sys.stderr, os.dup(2)
    nothing = os.open(os.devnull, os.O_WRONLY)
    with os.fdopen(
        copy, "w", encoding=before.encoding, errors=before.errors, buffering=1
    ) as stderr:
        os.dup2(nothing, 2)
        os.close(nothing)
        sys.stderr = stderr
        try:
            yield
        finally:
            stderr.flush()
            os.dup2(copy, 2)
            sys.stderr = before


def run(argv: Sequence[str]) -> int:
    """Runs ``longseq audio predict``."""
    parser = CommandParser(
        prog="longseq audio predict",
        description="Writes file, duration_s, probability, verdict, reason.",
    )
    parser.add_argument("audio", help="folder (searched to any depth) or file")
    parser.add_argument(
        "--ckpt_path", required=True, help="checkpoint of fit, or safetensors of export"
    )
    parser.add_argument("--out", required=True, help=".csv, .tsv or .parquet file to write")
    parser.add_argument("--workers", type=int, default=2, help="files at a time (2)")
    add_device(parser)
    args = parser.parse_args(argv)
    check_table(args.out)
    task = load_detector(args.ckpt_path).to(args.device)
    folder, files = list_files(args.audio)
    with quiet_libraries():
        scores = list(score_files(task, files, folder, args.workers))
    bad = [item for item in scores if item.verdict == UNREADABLE]
    for item in bad[:10]:
        print(plain(f"note: {item.file}: {item.reason}"), file=sys.stderr)
    if len(bad) == len(scores):
        raise DataError(f"none of its {len(files)} files can be read", path=args.audio)
    write_scores(args.out, scores)
    print(f"{args.out}: {len(scores)} files: {summary(item.verdict for item in scores)}")
    return 0
