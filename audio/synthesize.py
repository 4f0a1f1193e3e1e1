"""``longseq audio synthesize``: songs and their synthetic versions, through one identical chain."""

from __future__ import annotations

import math
import os
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from longseq.audio.data.listing import list_audio, outside
from longseq.audio.data.reading import read_audio
from longseq.audio.predict import quiet_libraries
from longseq.audio.scoring import shown_name
from longseq.audio.synthesis import METHODS, synthesize
from longseq.core.checks import check_positive
from longseq.core.command_line import CommandParser
from longseq.core.errors import ConfigError, DataError, did_you_mean
from longseq.core.files import atomic_path

# Name → (format, subtype, ending) of the last step of the chain.
FORMATS = {
    "flac": ("FLAC", "PCM_16", ".flac"),
    "wav": ("WAV", "PCM_16", ".wav"),
    "ogg": ("OGG", "VORBIS", ".ogg"),
    "opus": ("OGG", "OPUS", ".opus"),
    "mp3": ("MP3", "MPEG_LAYER_III", ".mp3"),
}


def write_audio(path: str | Path, audio: np.ndarray, sample_rate: int, kind: str = "flac") -> None:
    """Writes mono samples, whole or not at all; samples beyond ±1 are scaled down with all others.

    Args:
        path: the file.
        audio: float32 (N,).
        sample_rate: Hz.
        kind: one of ``FORMATS``.
    """
    import soundfile

    container, subtype, _ = FORMATS[kind]
    peak = float(np.abs(audio).max(initial=0.0))
    if peak > 0.999:
        audio = audio * np.float32(0.999 / peak)
    # Rounded here, because libsndfile rounds otherwise in FLAC than in WAV.
    if subtype == "PCM_16":
        audio = np.round(audio * np.float32(32767)).astype(np.int16)
    with (
        atomic_path(path) as temporary,
        soundfile.SoundFile(
            os.fsencode(temporary), "w", sample_rate, 1, subtype, format=container
        ) as file,
    ):
        # By pieces: libsndfile's Vorbis encoder overflows the stack on a whole song.
        for start in range(0, len(audio), 1 << 16):
            file.write(audio[start : start + (1 << 16)])


def make_versions(
    path: str | Path,
    out: Path,
    methods: Sequence[str],
    sample_rate: int = 16000,
    kind: str = "flac",
    seconds: float | None = None,
    seed: int = 0,
) -> list[Path]:
    """Writes ``real/<song>`` and ``fake/<method>/<song>`` of one song.

    All go through decode → mono → resample → (synthesis) → scale → encode; only the synthesis
    differs.

    Args:
        path: the song.
        out: folder.
        methods: of ``METHODS``.
        sample_rate: Hz.
        kind: one of ``FORMATS``.
        seconds: at most so many, from the middle of the song; None for all.
        seed: with the song's name, of the settings.

    Returns:
        The files written, the real one first.

    Raises:
        DataError: if the song cannot be decoded.
    """
    audio = read_audio(path, sample_rate)
    if len(audio) < sample_rate:
        raise DataError("is shorter than a second", path=path)
    if seconds is not None and len(audio) > seconds * sample_rate:
        first = (len(audio) - round(seconds * sample_rate)) // 2
        audio = audio[first : first + round(seconds * sample_rate)]
    name = Path(path).stem
    written = []
    for method in ("", *methods):
        own_seed = zlib.crc32(os.fsencode(f"{seed}/{method}/{name}"))
        made = synthesize(audio, method, own_seed, sample_rate) if method else audio
        folder = out / "fake" / method if method else out / "real"
        file = folder / (name + FORMATS[kind][2])
        write_audio(file, made, sample_rate, kind)
        written.append(file)
    return written


def run(argv: Sequence[str]) -> int:
    """Runs ``longseq audio synthesize``."""
    parser = CommandParser(
        prog="longseq audio synthesize",
        description="Writes OUT/real/ and OUT/fake/METHOD/ with one file per song: a labelled "
        "folder for "
        "fit and compare in which only the synthesis tells the classes apart.",
    )
    parser.add_argument(
        "songs", nargs="+", help="folders (searched to any depth) or files of real music"
    )
    parser.add_argument("--out", required=True, help="folder to write")
    parser.add_argument(
        "--methods",
        default=",".join(METHODS),
        help=f"comma-separated, of {', '.join(METHODS)} (all)",
    )
    parser.add_argument(
        "--sample_rate", type=int, default=16000, help="of all files written, Hz (16000)"
    )
    parser.add_argument(
        "--format", default="flac", choices=sorted(FORMATS), help="of all files (flac)"
    )
    parser.add_argument(
        "--seconds", type=float, help="at most so many, from the middle of a song (all)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the settings (0)")
    args = parser.parse_args(argv)
    methods = [name for name in args.methods.split(",") if name]
    for name in methods:
        if name not in METHODS:
            raise ConfigError(f"no synthesis method named {name!r}; {did_you_mean(name, METHODS)}")
    check_positive("--sample_rate", args.sample_rate)
    if args.seconds is not None and not 1 <= args.seconds < math.inf:
        raise ConfigError(f"--seconds must be at least 1 and finite, got {args.seconds}")
    files = [file for root in args.songs for file in outside(list_audio(root)[0], root, args.out)]
    if not files:
        raise DataError("holds no audio", path=args.songs[0])
    seen: dict[str, Path] = {}
    for file in files:
        if file.stem in seen:
            raise DataError(f"has the same name as {seen[file.stem]}: rename one", path=file)
        seen[file.stem] = file
    made, bad = 0, []
    for number, file in enumerate(files, 1):
        try:
            with quiet_libraries():
                make_versions(
                    file,
                    Path(args.out),
                    methods,
                    args.sample_rate,
                    args.format,
                    args.seconds,
                    args.seed,
                )
        except DataError as error:
            bad.append(error)
            print(f"note: {shown_name(str(error))}", file=sys.stderr)
            continue
        made += 1
        print(f"[{number}/{len(files)}] {shown_name(file.name)}")
    if not made:
        raise DataError(
            f"none of {len(files)} files can be used; the first: {bad[0]}", path=args.songs[0]
        )
    print(
        f"{args.out}: {made} songs, each real and in {len(methods)} synthetic versions; "
        f"{len(bad)} left out"
    )
    return 0
