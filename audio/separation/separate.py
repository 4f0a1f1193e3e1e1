"""``longseq audio separate``: the voices of recordings, each to a file of its own, in constant
memory."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import permutations
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from longseq.audio.data.reading import AudioStream
from longseq.audio.export import load_separator
from longseq.audio.predict import list_files, quiet_libraries
from longseq.audio.scoring import shown_name
from longseq.audio.separation.task import VoiceSeparator
from longseq.audio.separation.voices import ordered
from longseq.core.command_line import CommandParser
from longseq.core.errors import ConfigError, DataError
from longseq.core.files import atomic_path

_OVERLAP = 1.0  # s
_NEW = 0.1  # s that a window has beyond its overlap, or a recording would take hours, or no end
_DAY = 86400.0  # s
_SILENT = "is silent, or the same value throughout"


def separate_stream(
    task: VoiceSeparator,
    chunks: Iterator[np.ndarray],
    seconds: float = 8.0,
    overlap: float = _OVERLAP,
) -> Iterator[np.ndarray]:
    """Yields the voices (S, n) of a recording that comes in chunks; Σ n is its length.

    Windows of ``seconds`` overlap; each one's voices are put into the order in which they agree
    best with the last one's where both lie, and fade over there. A voice that is silent in the
    overlap cannot be followed. A window's mean is no part of its voices.

    Args:
        task: in evaluation mode.
        chunks: mono samples (n,) at the task's rate.
        seconds: length of a window, s.
        overlap: of windows that follow each other, s.
    """
    size, shared = round(seconds * task.sample_rate), round(overlap * task.sample_rate)
    held, tail = np.zeros(0, np.float32), None  # tail: voices of the last window's overlap
    for chunk in _none_last(chunks):
        held = held if chunk is None else np.concatenate([held, chunk])
        while len(held) >= size or (chunk is None and len(held)):
            last = len(held) <= size and chunk is None
            found = _separate(task, held[:size])
            if tail is not None:
                width = tail.shape[1]
                found = found[_order(tail, found[:, :width])]
                fade = np.linspace(0, 1, width, dtype=np.float32)
                found[:, :width] = (1 - fade) * tail + fade * found[:, :width]
            if last:
                yield found
                return
            yield found[:, : size - shared]
            tail, held = found[:, size - shared :], held[size - shared :]


def _none_last(chunks: Iterator[np.ndarray]) -> Iterator[np.ndarray | None]:
    yield from chunks
    yield None


def twice(task: VoiceSeparator, audio: Tensor) -> Tensor:
    """Returns the voices (B, S, N) of recordings (B, N): the mean of two passes.

    The filters of the second lie half a step later, so that its errors are partly others.

    Args:
        task: in evaluation mode.
        audio: (B, N).
    """
    first, late = task(audio).float(), task.model.stride // 2
    second = task(F.pad(audio, (late, 0))).float()[..., late:]
    return (first + ordered(second, first)) / 2


@torch.inference_mode()
def _separate(task: VoiceSeparator, audio: np.ndarray) -> np.ndarray:
    # A constant is no voice; unlike all that was learnt from, it would spoil them all.
    audio = audio - np.float32(audio.mean(dtype=np.float64))
    peak = float(np.abs(audio).max())
    # By a power of two, which changes no digit, to where neither squares nor their sums leave the
    # range of single precision.
    level = np.float32(2.0 ** np.clip(np.ceil(np.log2(max(peak, 1e-38))), -126, 126))
    x = torch.from_numpy(audio / level)[None].to(task.device)
    return np.array(twice(task, x)[0].cpu().numpy()) * level


def _order(before: np.ndarray, now: np.ndarray) -> list[int]:
    """Returns the order of ``now`` in which its voices agree best with those before."""
    products = before.astype(np.float64) @ now.T  # squares of any level are in range
    orders = permutations(range(len(now)))
    return list(max(orders, key=lambda order: sum(products[i, j] for i, j in enumerate(order))))


def separate_file(
    task: VoiceSeparator, path: Path, targets: Sequence[Path], seconds: float = 8.0
) -> list[str]:
    """Writes every voice of a recording as float samples at the task's rate; returns what is odd
    about the recording, in words.

    Args:
        task: in evaluation mode.
        path: the recording; several channels are mixed to one.
        targets: WAV files to write, one for each voice.
        seconds: length of a window, s.

    Raises:
        DataError: if the recording cannot be read.
    """
    import soundfile

    with ExitStack() as stack:
        places = [stack.enter_context(atomic_path(target)) for target in targets]
        files = [
            stack.enter_context(
                soundfile.SoundFile(
                    os.fsencode(place), "w", task.sample_rate, 1, "FLOAT", format="WAV"
                )
            )
            for place in places
        ]
        stream, heard = AudioStream(path, task.sample_rate), False
        for part in separate_stream(task, iter(stream), seconds):
            if not np.isfinite(part).all():
                raise DataError("its voices are not finite", path=path, hint="lower its level")
            heard = heard or bool(part.any())
            for file, voice in zip(files, part):
                file.write(voice)
    return stream.notes if heard else [*stream.notes, _SILENT]


def run(argv: Sequence[str]) -> int:
    """Runs ``longseq audio separate``."""
    parser = CommandParser(
        prog="longseq audio separate",
        description="Writes every voice of every recording to a WAV file of its own, at the rate "
        "that the model was trained at.",
    )
    parser.add_argument("source", help="recording, or folder (searched to any depth)")
    parser.add_argument("--out", required=True, help="folder to write to")
    parser.add_argument(
        "--ckpt_path",
        help="checkpoint of `longseq audio fit --config separation`, or what `longseq audio "
        "export` made of it (default: the packaged separator of two voices, 8 kHz)",
    )
    parser.add_argument("--seconds", type=float, default=8.0, help="at a time (8)")
    args = parser.parse_args(argv)
    if not _OVERLAP + _NEW <= args.seconds <= _DAY:
        raise ConfigError(
            f"--seconds must be {_OVERLAP + _NEW} (an overlap of {_OVERLAP} and what is new) to "
            f"{_DAY:.0f}, got {args.seconds}"
        )
    if Path(args.out).is_file():
        raise DataError("is a file, a folder is needed", path=args.out)
    task = load_separator(args.ckpt_path)
    folder, files = list_files(args.source, args.out)
    stems = Counter([*files, *(file.with_suffix("") for file in files)])
    targets, inputs = [], {file.resolve() for file in files}
    for file in files:
        # Of two recordings that differ in the ending alone, it stays in the name.
        name = file.stem if stems[file.with_suffix("")] == 1 else file.name
        place = Path(args.out) / file.relative_to(folder).parent
        targets.append([place / f"{name}_voice{i + 1}.wav" for i in range(task.model.voices)])
        for target in targets[-1]:
            if target.resolve() in inputs:
                raise ConfigError(
                    f"{shown_name(target)} is a recording, and would be overwritten by a voice of "
                    f"{shown_name(file)}: give --out another folder"
                )
    done = 0
    for number, (file, places) in enumerate(zip(files, targets), 1):
        try:
            places[0].parent.mkdir(parents=True, exist_ok=True)
            with quiet_libraries():
                notes = separate_file(task, file, places, args.seconds)
        except DataError as error:
            print(f"note: {shown_name(str(error))}", file=sys.stderr)
            continue
        if notes:
            print(f"note: {shown_name(file)}: {'; '.join(notes)}", file=sys.stderr)
        done += 1
        names = ", ".join(shown_name(target.name) for target in places)
        print(f"[{number}/{len(files)}] {names}", flush=True)
    if not done:
        raise DataError(f"none of its {len(files)} files can be read", path=args.source)
    print(f"{done} of {len(files)} recordings → {args.out}")
    return 0
