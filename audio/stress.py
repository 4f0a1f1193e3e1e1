"""``longseq audio stress``: does a verdict survive what happens to files? Re-encoded, resampled,
sped up, transposed, louder, cropped and noisy versions scored beside the originals."""

from __future__ import annotations

import math
import os
import sys
import tempfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from longseq.audio.calibration import NO_SIGN, SYNTHETIC, UNCERTAIN
from longseq.audio.data.reading import read_audio
from longseq.audio.export import load_detector
from longseq.audio.predict import list_files, quiet_libraries
from longseq.audio.scoring import Detector, FileScore, score_file, shown_name
from longseq.audio.synthesis import stretch
from longseq.core.command_line import CommandParser
from longseq.core.errors import ConfigError, DataError
from longseq.core.tables import check_table, write_rows

RATE = 44100
COLUMNS = {
    "change": "",
    "files": "d",
    "drift": ".4f",
    "largest_drift": ".4f",
    "still_synthetic": "d",
    "of_synthetic": "d",
    "newly_synthetic": "d",
    "verdicts_changed": "d",
}
_LOWEST, _HIGHEST = 32, 320  # kbit/s that libsndfile's levels 1 and 0 stand for


def _mp3(rate: int) -> tuple[str, str, int, dict[str, object]]:
    level = (_HIGHEST - rate) / (_HIGHEST - _LOWEST)
    how: dict[str, object] = {"bitrate_mode": "CONSTANT", "compression_level": level}
    return "MP3", "MPEG_LAYER_III", RATE, how


# Name → (container, subtype, sample rate, arguments of the writer).
_CODECS: dict[str, tuple[str, str, int, dict[str, object]]] = {
    "mp3 320": _mp3(320),
    "mp3 128": _mp3(128),
    "mp3 64": _mp3(64),
    "vorbis": ("OGG", "VORBIS", RATE, {"compression_level": 0.6}),
    "opus": ("OGG", "OPUS", 48000, {"compression_level": 0.7}),
}


def write_version(path: Path, audio: np.ndarray, rate: int, codec: str | None = None) -> None:
    """Writes mono samples, as 32-bit floats or through a codec.

    Args:
        path: the file.
        audio: float32 (N,).
        rate: Hz.
        codec: one of the codecs' names.
    """
    import soundfile
    import soxr

    container, subtype, to, how = _CODECS[codec] if codec else ("WAV", "FLOAT", rate, {})
    if to != rate:
        audio = soxr.resample(audio, rate, to)
    if codec:
        audio = audio / max(1.0, float(np.abs(audio).max()) / 0.99)
    with soundfile.SoundFile(
        os.fsencode(path), "w", to, 1, subtype, format=container, **how
    ) as file:
        for start in range(0, len(audio), 1 << 16):
            file.write(audio[start : start + (1 << 16)])


def _resampled(rate: int) -> Callable[[np.ndarray, np.random.Generator], np.ndarray]:
    def change(audio: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        import soxr

        return soxr.resample(soxr.resample(audio, RATE, rate), rate, RATE)

    return change


def _faster(factor: float) -> Callable[[np.ndarray, np.random.Generator], np.ndarray]:
    def change(audio: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        import soxr

        return soxr.resample(audio, RATE * factor, RATE)

    return change


def _transposed(semitones: float) -> Callable[[np.ndarray, np.random.Generator], np.ndarray]:
    def change(audio: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        import soxr

        factor = 2 ** (semitones / 12)
        return soxr.resample(stretch(audio, 1 / factor, 2048), RATE * factor, RATE)

    return change


def _noisy(decibels: float) -> Callable[[np.ndarray, np.random.Generator], np.ndarray]:
    def change(audio: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        level = float(np.sqrt(np.square(audio, dtype=np.float64).mean()))
        noise = rng.standard_normal(len(audio)) * level * 10 ** (-decibels / 20)
        return audio + noise.astype(np.float32)

    return change


CHANGES: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "resampled 32 kHz": _resampled(32000),
    "resampled 22.05 kHz": _resampled(22050),
    "speed +0.5%": _faster(1.005),
    "speed -0.5%": _faster(0.995),
    "speed +1%": _faster(1.01),
    "speed -1%": _faster(0.99),
    "pitch +1 semitone": _transposed(1.0),
    "gain -12 dB": lambda audio, rng: audio * np.float32(0.25),
    "gain +6 dB, clipped": lambda audio, rng: np.clip(2 * audio, -1, 1),
    "middle half": lambda audio, rng: audio[len(audio) // 4 : -(len(audio) // 4)],
    "noise 40 dB below": _noisy(40),
    "noise 20 dB below": _noisy(20),
}
NAMES = [*_CODECS, *CHANGES]


def stress_file(
    detector: Detector, path: Path, folder: Path, seconds: float = 30.0, seed: int = 0
) -> dict[str, FileScore]:
    """Returns the scores of a file's versions by name; "" is the file itself, decoded.

    Args:
        detector: in evaluation mode.
        path: the file.
        folder: for the versions, one at a time.
        seconds: at most so many, from the middle.
        seed: of the noise.

    Raises:
        DataError: if the file cannot be decoded, or has no score.
    """
    audio = read_audio(path, RATE)
    if len(audio) > seconds * RATE:
        first = (len(audio) - round(seconds * RATE)) // 2
        audio = audio[first : first + round(seconds * RATE)]
    rng = np.random.default_rng((seed, zlib.crc32(path.name.encode("utf-8", "surrogateescape"))))
    found = {}
    for name in ("", *NAMES):
        version = folder / "version.wav"  # where its name is remarked on, it is not the file's
        if name in _CODECS:
            write_version(version, audio, RATE, name)
        else:
            made = CHANGES[name](audio, rng) if name else audio
            write_version(version, np.asarray(made, dtype=np.float32), RATE)
        found[name] = score_file(detector, version)
        if not name and found[name].probability is None:
            raise DataError(found[name].reason, path=path)
    return found


def rows_of(scores: Sequence[dict[str, FileScore]]) -> list[list[object]]:
    """Returns one row a change: drift of the probability, and what became of the verdicts.

    Args:
        scores: of every file, from ``stress_file``.
    """
    rows: list[list[object]] = []
    for name in NAMES:
        pairs = [(mine[""], mine[name]) for mine in scores]
        drift = [
            abs(a.probability - b.probability)
            for a, b in pairs
            if a.probability is not None and b.probability is not None
        ]
        before = [b.verdict for a, b in pairs if a.verdict == SYNTHETIC]
        new = sum(a.verdict != SYNTHETIC and b.verdict == SYNTHETIC for a, b in pairs)
        rows.append(
            [
                name,
                len(pairs),
                float(np.mean(drift)) if drift else None,
                float(np.max(drift)) if drift else None,
                before.count(SYNTHETIC),
                len(before),
                new,
                sum(a.verdict != b.verdict for a, b in pairs),
            ]
        )
    return rows


def run(argv: Sequence[str]) -> int:
    """Runs ``longseq audio stress``."""
    parser = CommandParser(
        prog="longseq audio stress",
        description="Changes every file in the ways that files are changed, scores it again, and "
        "writes a row a change: drift of the probability, verdicts that changed.",
    )
    parser.add_argument("folder", help="folder (searched to any depth) or file")
    parser.add_argument("--out", required=True, help=".csv, .tsv or .parquet file to write")
    parser.add_argument("--ckpt_path", help="a detector of yours (the packaged one)")
    parser.add_argument("--seconds", type=float, default=30.0, help="of a file, its middle (30)")
    parser.add_argument("--seed", type=int, default=0, help="of the noise (0)")
    args = parser.parse_args(argv)
    if not 1 <= args.seconds < math.inf:
        raise ConfigError(f"--seconds must be at least 1 and finite, got {args.seconds}")
    check_table(args.out)
    detector = load_detector(args.ckpt_path)
    _, files = list_files(args.folder)
    scores: list[dict[str, FileScore]] = []
    with tempfile.TemporaryDirectory() as place, quiet_libraries():
        for number, file in enumerate(files, 1):
            try:
                mine = stress_file(detector, file, Path(place), args.seconds, args.seed)
            except DataError as error:
                print(f"note: {shown_name(str(error))}", file=sys.stderr)
                continue
            scores.append(mine)
            print(f"[{number}/{len(files)}] {mine[''].verdict:<10} {shown_name(file.name)}")
    if not scores:
        raise DataError(f"none of its {len(files)} files can be scored", path=args.folder)
    rows = rows_of(scores)
    write_rows(args.out, COLUMNS, rows)
    counts = {
        v: sum(mine[""].verdict == v for mine in scores) for v in (SYNTHETIC, UNCERTAIN, NO_SIGN)
    }
    print("As they are: " + ", ".join(f"{count} {verdict}" for verdict, count in counts.items()))
    print(f"{'change':<22}{'drift':>8}{'largest':>9}{'found':>9}{'new':>6}{'changed':>9}")
    for name, _, drift, largest, kept, before, new, changed in rows:
        shown = ["–" if x is None else f"{x:.2f}" for x in (drift, largest)]
        print(f"{name:<22}{shown[0]:>8}{shown[1]:>9}{f'{kept}/{before}':>9}{new:>6}{changed:>9}")
    print(f"found: still synthetic, of those that were; new: synthetic only now. {args.out}")
    return 0
