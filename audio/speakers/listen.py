"""``longseq audio speakers``: who of the enrolled speaks when in recordings, to RTTM, in constant
memory."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from longseq.audio.data.listing import list_audio
from longseq.audio.data.reading import AudioStream, read_audio
from longseq.audio.predict import list_files, quiet_libraries
from longseq.audio.scoring import shown_name
from longseq.audio.separation.voices import OFFSET, centred
from longseq.audio.speakers.task import ActiveSpeakers
from longseq.core.command_line import CommandParser
from longseq.core.errors import ConfigError, DataError
from longseq.core.files import atomic_path
from longseq.core.training.loading import load_task

_MARGIN = 4.0  # s that a window sees to either side of what it decides
_LONGEST = 30.0  # s of a voice that it is known by
_DAY = 86400.0  # s
_KNOWN = 1.0  # s of a voice below which it is as good as unknown
_GAP, _SHORTEST = 0.2, 0.1  # s: pauses that are filled, turns that are dropped
Turn = tuple[float, float, str]


def enrolled(folder: str | Path, rate: int) -> dict[str, np.ndarray]:
    """Returns a piece of every speaker's voice, all of equal length and level, float32 (M,).

    Args:
        folder: holds ``<name>.wav``, or a folder ``<name>`` of recordings, for each speaker.
        rate: Hz.

    Raises:
        DataError: if there are none, or one is silent.
    """
    root = Path(folder)
    files, _ = list_audio(root)
    found: dict[str, list[np.ndarray]] = {}
    for file in files:
        parts = file.relative_to(root).parts if root.is_dir() else ()
        name = parts[0] if len(parts) > 1 else file.stem
        held = found.setdefault(name, [])
        if sum(map(len, held)) < _LONGEST * rate:
            held.append(read_audio(file, rate))
    if not found:
        raise DataError(
            "holds no recordings of speakers", path=root, hint="expected <name>.wav for each"
        )
    whole = {name: np.concatenate(parts) for name, parts in found.items()}
    length = min(min(len(one) for one in whole.values()), round(_LONGEST * rate))
    if length < _KNOWN * rate:
        shortest = min(whole, key=lambda name: len(whole[name]))
        print(
            f"note: {shown_name(folder)}: every speaker is known by {length / rate:.2f} s alone, "
            f"as no more is there of {shown_name(shortest)!r}; give a few seconds",
            file=sys.stderr,
        )
    voices = {}
    for name, audio in whole.items():
        piece, power = centred(audio[:length])
        if not np.isfinite(power) or power == 0:
            where = f"the first {length / rate:.2f} s of " if len(audio) > length else ""
            raise DataError(
                f"{where}the recordings of {name!r} are silent or not finite", path=root
            )
        voices[name] = (0.1 * piece / power).astype(np.float32)
    return voices


def probabilities(
    task: ActiveSpeakers,
    chunks: Iterable[np.ndarray],
    voices: np.ndarray,
    power: float,
    seconds: float = 30.0,
) -> Iterator[np.ndarray]:
    """Yields the probabilities (S, t) that each speaker talks, frame by frame; Σ t is the
    recording's number of frames.

    Windows of ``seconds`` see four seconds more to either side, so that what they decide hardly
    depends on where they begin.

    Args:
        task: in evaluation mode.
        chunks: mono samples (n,) at the task's rate.
        voices: pieces of the speakers' voices (S, M).
        power: mean square of the whole recording, so that a window of silence stays quiet.
        seconds: that a window decides, s.
    """
    hop = task.model.hop
    known = torch.from_numpy(voices)[None].to(task.device)
    level = torch.tensor([power], device=task.device)
    margin, own = (round(s * task.sample_rate / hop) for s in (_MARGIN, seconds))
    held, past, source = np.zeros(0, np.float32), 0, iter(chunks)
    ended = False
    while not ended or len(held) // hop > past:
        while not ended and len(held) < (past + own + margin) * hop:
            chunk = next(source, None)
            ended = chunk is None
            held = held if chunk is None else np.concatenate([held, chunk])
        frames = len(held) // hop
        if frames <= past:
            return
        until = frames if ended and frames <= past + own + margin else past + own
        window = torch.from_numpy(held[: min(frames, until + margin) * hop])[None]
        with torch.inference_mode():
            score = task(window.to(task.device), known, level)[0].sigmoid().float().cpu().numpy()
        yield score[:, past:until]
        cut = max(0, until - margin)
        held, past = held[cut * hop :], until - cut


def _through(
    task: ActiveSpeakers, file: Path, voices: np.ndarray, seconds: float
) -> tuple[list[np.ndarray], list[str]]:
    """Goes through a file twice, for its mean power, and for the speakers; returns their
    probabilities, and what is odd about the file in words."""
    # Chan's update of mean and squares about it, which loses no digits to a constant offset.
    total, count, mean = 0.0, 0, 0.0
    for chunk in AudioStream(file, task.sample_rate):
        own, step = float(chunk.mean(dtype=np.float64)), len(chunk) / (count + len(chunk))
        total += float(np.square(chunk - np.float64(own)).sum())
        total += (own - mean) ** 2 * count * step
        mean, count = mean + (own - mean) * step, count + len(chunk)
    if not np.isfinite(total):
        raise DataError("has samples that are not finite", path=file)
    power = total / max(1, count)
    if abs(mean) > OFFSET * math.sqrt(power + mean**2):
        power = power if power > 1e-14 * mean**2 else 0.0  # what rounding leaves of a constant
    else:
        power, mean = power + mean**2, 0.0
    stream = AudioStream(file, task.sample_rate)
    chunks = (chunk - np.float32(mean) for chunk in stream)
    parts = list(probabilities(task, chunks, voices, power, seconds))
    return parts, stream.notes if power else [*stream.notes, "is silent"]


def turns(probability: np.ndarray, names: Sequence[str], frame: float) -> list[Turn]:
    """Returns (start in s, end in s, name) of every turn, by start.

    Pauses below 0.2 s are filled, then turns below 0.1 s dropped.

    Args:
        probability: (S, T).
        names: of the speakers.
        frame: length of a frame, s.
    """
    found: list[Turn] = []
    for name, row in zip(names, probability > 0.5):
        edges = np.flatnonzero(np.diff(np.pad(row.astype(np.int8), 1)))
        runs: list[list[float]] = []
        for start, end in edges.reshape(-1, 2) * frame:
            if runs and start - runs[-1][1] < _GAP - 1e-9:
                runs[-1][1] = end
            else:
                runs.append([start, end])
        found += [(a, b, name) for a, b in runs if b - a > _SHORTEST - 1e-9]
    return sorted(found)


def write_rttm(path: str | Path, name: str, found: Iterable[Turn]) -> None:
    """Writes turns as NIST's RTTM, whole or not at all; blanks in names become ``_``.

    Args:
        path: the file.
        name: of the recording.
        found: its turns.
    """
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for start, end, speaker in found:
            words = (_word(name), "1", f"{start:.2f}", f"{end - start:.2f}", "<NA>", "<NA>")
            print("SPEAKER", *words, _word(speaker), "<NA>", "<NA>", file=file)


def _word(name: str) -> str:
    return re.sub(r"\s", "_", shown_name(name))


def run(argv: Sequence[str]) -> int:
    """Runs ``longseq audio speakers``."""
    parser = CommandParser(
        prog="longseq audio speakers",
        description="Writes who speaks when: an .rttm file for every recording. Speakers are "
        "those of --voices; anybody else is nobody.",
    )
    parser.add_argument("source", help="recording, or folder (searched to any depth)")
    parser.add_argument("--voices", required=True, help="folder with <name>.wav for each speaker")
    parser.add_argument("--out", required=True, help="folder to write to")
    parser.add_argument("--ckpt_path", required=True, help="checkpoint of ActiveSpeakers")
    parser.add_argument("--seconds", type=float, default=30.0, help="at a time (30)")
    args = parser.parse_args(argv)
    if not 1 <= args.seconds <= _DAY:
        raise ConfigError(f"--seconds must be 1 to {_DAY:.0f}, got {args.seconds}")
    if Path(args.out).is_file():
        raise DataError("is a file, a folder is needed", path=args.out)
    task = load_task(args.ckpt_path, ActiveSpeakers)
    assert isinstance(task, ActiveSpeakers)
    task.eval()
    voices = enrolled(args.voices, task.sample_rate)
    if len({_word(name) for name in voices}) < len(voices):
        raise DataError("two speakers have names that differ in blanks alone", path=args.voices)
    folder, files = list_files(args.source, args.out)
    frame, done = task.model.hop / task.sample_rate, 0
    for number, file in enumerate(files, 1):
        try:
            known = np.stack(list(voices.values()))
            with quiet_libraries():
                parts, notes = _through(task, file, known, args.seconds)
        except DataError as error:
            print(f"note: {shown_name(str(error))}", file=sys.stderr)
            continue
        if notes:
            print(f"note: {shown_name(file)}: {'; '.join(notes)}", file=sys.stderr)
        whole = np.concatenate([np.zeros((len(voices), 0), np.float32), *parts], 1)
        found = turns(whole, list(voices), frame)
        inside = file.relative_to(folder)
        target = Path(args.out) / inside.with_name(f"{inside.name}.rttm")
        target.parent.mkdir(parents=True, exist_ok=True)
        write_rttm(target, shown_name(file.stem), found)
        spoken = {name: sum(b - a for a, b, who in found if who == name) for name in voices}
        shares = ", ".join(
            f"{shown_name(name)} {seconds:.1f} s" for name, seconds in spoken.items()
        )
        print(f"[{number}/{len(files)}] {shown_name(target.name)}: {shares}", flush=True)
        done += 1
    if not done:
        raise DataError(f"none of its {len(files)} files can be read", path=args.source)
    return 0
