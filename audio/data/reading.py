"""Decoding audio files to mono at one sample rate, whole, in part, or as a stream in constant
memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from longseq.core.errors import DataError
from longseq.core.files import require_file

SUFFIXES = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff")
# Files of these kinds are audio that libsndfile cannot decode.
_FOREIGN = {".m4a": "M4A/AAC", ".aac": "AAC", ".wma": "WMA", ".mp4": "MP4"}
# Frames read at a time: the same for every container, so that equal PCM gives equal output.
_BLOCK = 1 << 16
_KINDS = {
    ".wav": "WAV",
    ".flac": "FLAC",
    ".ogg": "OGG",
    ".oga": "OGG",
    ".opus": "OGG",
    ".mp3": "MP3",
}


@dataclass(frozen=True)
class AudioInfo:
    """What a file's header and its decoding say.

    Args:
        path: the file.
        kind: container, for example "FLAC".
        sample_rate: of the file, Hz.
        channels: number.
        frames: samples a channel that the header promises.
        notes: what is odd about the file, in words; empty if nothing is.
    """

    path: Path
    kind: str
    sample_rate: int
    channels: int
    frames: int
    notes: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        """Duration that the header promises, s."""
        return self.frames / self.sample_rate


def sniff(path: str | Path) -> str | None:
    """Returns the kind of audio that a file's first bytes announce, whatever its name; None if
    none.

    Args:
        path: a readable file.
    """
    with Path(path).open("rb") as file:
        head = file.read(12)
    if head[:4] in (b"RIFF", b"RF64") and head[8:12] == b"WAVE":
        return "WAV"
    if head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"):
        return "AIFF"
    for magic, kind in ((b"fLaC", "FLAC"), (b"OggS", "OGG"), (b"ID3", "MP3")):
        if head.startswith(magic):
            return kind
    frame_sync = len(head) > 2 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0
    # Layer 3 of MPEG 1, 2 or 2.5 with a valid bit rate and sample rate.
    if frame_sync and head[1] & 0x06 == 0x02 and head[2] & 0xF0 != 0xF0 and head[2] & 0x0C != 0x0C:
        return "MP3"
    return None


def is_audio_name(path: str | Path) -> bool:
    """Returns whether a file's name ends like that of audio, readable here or not."""
    return Path(path).suffix.lower() in (*SUFFIXES, *_FOREIGN)


def _open(path: str | Path) -> tuple[Any, Path]:
    """Opens a file by its content.

    Raises:
        DataError: if it is missing, empty or nothing that can be decoded.
    """
    import soundfile

    file = require_file(path, "audio file")
    kind = sniff(file)
    if kind is None:
        foreign = _FOREIGN.get(file.suffix.lower())
        if foreign:
            raise DataError(
                f"{foreign} is not decoded here",
                path=file,
                hint="convert it: ffmpeg -i file out.flac",
            )
        raise DataError(
            "is not WAV, FLAC, OGG, MP3 or Opus", path=file, hint="convert it to FLAC or WAV"
        )
    try:
        sound = soundfile.SoundFile(str(file))
    except soundfile.LibsndfileError as error:
        reason = str(error.error_string).rstrip(".")
        raise DataError(
            f"cannot be decoded as {kind}: {reason}",
            path=file,
            hint="convert or copy the file again",
        ) from None
    if sound.samplerate < 1 or sound.channels < 1:
        sound.close()
        raise DataError("its header has no sample rate or channels", path=file)
    return sound, file


def _is_cut(file: Path, kind: str) -> bool:
    """Returns whether the container itself shows that the file's end is missing (WAV, AIFF,
    OGG)."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        if kind in ("WAV", "AIFF"):
            head = stream.read(8)
            promised = int.from_bytes(head[4:8], "little" if kind == "WAV" else "big")
            # 0 and 2³²-1 stand for "unknown" in files that were written to a pipe.
            return (
                promised not in (0, 0xFFFFFFFF) and promised + 8 > size + 1 and head[:4] != b"RF64"
            )
        if kind == "OGG":
            stream.seek(max(0, size - (1 << 17)))
            tail = stream.read()
            page = tail.rfind(b"OggS")
            return page < 0 or page + 5 >= len(tail) or not tail[page + 5] & 0x04
    return False


def audio_info(path: str | Path) -> AudioInfo:
    """Reads a file's header.

    Args:
        path: the file.

    Raises:
        DataError: if it is missing, empty or not decodable audio.
    """
    sound, file = _open(path)
    with sound:
        return _info(sound, file)


def _info(sound: Any, file: Path) -> AudioInfo:
    kind = sniff(file) or "?"
    suffix, notes = file.suffix.lower(), []
    if _KINDS.get(suffix, kind) != kind or suffix not in SUFFIXES:
        notes.append(f"is {kind} by its content, though named {file.suffix or 'without an ending'}")
    if _is_cut(file, kind):
        notes.append("is truncated: its end is missing")
    return AudioInfo(
        file, kind, sound.samplerate, sound.channels, max(0, sound.frames), tuple(notes)
    )


class AudioStream:
    """Mono samples of a file at one rate, in chunks; iterate over it once.

    Channels are averaged. Reading is by fixed blocks of frames, so the output is a function of the
    samples alone: the same PCM in another container gives the same values, bit for bit.

    Args:
        path: the file.
        sample_rate: of the output, Hz.

    Attributes:
        info: the header.
        frames_read: frames decoded so far, at the file's rate.

    Raises:
        DataError: if the file cannot be opened; while iterating, if it ends in a decoding error
            before its first sample, or holds values that are not finite.
    """

    def __init__(self, path: str | Path, sample_rate: int = 16000) -> None:
        sound, file = _open(path)
        with sound:
            self.info = _info(sound, file)
        self.sample_rate = sample_rate
        self.frames_read = 0
        self._broken = ""

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yields float32 arrays (N,) of mono samples, N > 0."""
        import soundfile
        import soxr

        rate = self.info.sample_rate
        resampler = (
            None if rate == self.sample_rate else soxr.ResampleStream(rate, self.sample_rate, 1)
        )
        self.frames_read = 0
        sound, file = _open(self.info.path)
        with sound:
            while True:
                try:
                    block = sound.read(_BLOCK, dtype="float32", always_2d=True)
                except soundfile.LibsndfileError as error:
                    self._broken = str(error.error_string).rstrip(".")
                    break
                if not len(block):
                    break
                self.frames_read += len(block)
                mono = block.mean(1, dtype=np.float32) if block.shape[1] > 1 else block[:, 0]
                if not np.isfinite(mono).all():
                    second = self.frames_read / rate
                    raise DataError(
                        "holds values that are not finite",
                        path=file,
                        record=f"before second {second:.1f}",
                    )
                if resampler is not None:
                    mono = resampler.resample_chunk(mono)
                if len(mono):
                    yield mono
        if not self.frames_read:
            why = f": {self._broken}" if self._broken else ""
            raise DataError(
                f"holds no samples{why}", path=file, hint="copy or convert the file again"
            )
        if resampler is not None:
            rest = resampler.resample_chunk(np.zeros(0, np.float32), last=True)
            if len(rest):
                yield rest

    @property
    def seconds(self) -> float:
        """Duration decoded so far, s."""
        return self.frames_read / self.info.sample_rate

    @property
    def notes(self) -> list[str]:
        """What is odd about the file, complete once it was read to its end."""
        found = list(self.info.notes)
        missing = self.info.frames - self.frames_read
        # MP3 headers may count the encoder's padding: a tenth of a second is no truncation.
        if self._broken or missing > 0.1 * self.info.sample_rate:
            why = f" ({self._broken})" if self._broken else ""
            promised = f" of {self.info.seconds:.1f}" if missing > 0 else ""
            found.append(f"is damaged: {self.seconds:.1f}{promised} s could be decoded{why}")
        return found


def read_audio(
    path: str | Path, sample_rate: int = 16000, max_seconds: float | None = None
) -> np.ndarray:
    """Returns a file's mono samples, float32 (N,).

    Args:
        path: WAV, FLAC, OGG (Vorbis, Opus), MP3 or AIFF, recognised by content.
        sample_rate: of the output, Hz.
        max_seconds: stop after so many seconds; None for all.

    Raises:
        DataError: if it cannot be decoded.
    """
    pieces, count = [], 0
    limit = None if max_seconds is None else round(max_seconds * sample_rate)
    for chunk in AudioStream(path, sample_rate):
        pieces.append(chunk)
        count += len(chunk)
        if limit is not None and count >= limit:
            break
    return np.concatenate(pieces)[:limit] if pieces else np.zeros(0, np.float32)


def read_excerpt(
    path: str | Path, start: float, seconds: float, sample_rate: int = 16000
) -> np.ndarray:
    """Returns part of a file, mono, float32 (N,); shorter where the file ends.

    Args:
        path: the file.
        start: s.
        seconds: length, s.
        sample_rate: of the output, Hz.

    Raises:
        DataError: if it cannot be decoded there.
    """
    import soundfile
    import soxr

    sound, file = _open(path)
    with sound:
        rate = sound.samplerate
        try:
            sound.seek(min(round(start * rate), max(0, sound.frames)))
            block = sound.read(round(seconds * rate), dtype="float32", always_2d=True)
        except soundfile.LibsndfileError as error:
            reason = str(error.error_string).rstrip(".")
            raise DataError(
                f"cannot be decoded: {reason}", path=file, record=f"second {start:.1f}"
            ) from None
    mono = block.mean(1, dtype=np.float32)
    if not np.isfinite(mono).all():
        raise DataError(
            "holds values that are not finite", path=file, record=f"from second {start:.1f}"
        )
    return mono if rate == sample_rate or not len(mono) else soxr.resample(mono, rate, sample_rate)


def list_audio(root: str | Path) -> tuple[list[Path], list[Path]]:
    """Lists the files of a folder, searched to any depth, in order.

    Args:
        root: a folder, or one file.

    Returns:
        Files that are audio by name or by content, and the other files; hidden ones are left out.

    Raises:
        DataError: if there is no such folder or file.
    """
    folder = Path(root)
    if not folder.exists():
        raise DataError("no such file or folder", path=folder)
    if folder.is_file():
        return [folder], []
    audio, other = [], []
    for where, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if name.startswith("."):
                continue
            path = Path(where) / name
            known = is_audio_name(path) or (os.access(path, os.R_OK) and sniff(path) is not None)
            (audio if known else other).append(path)
    return audio, other
