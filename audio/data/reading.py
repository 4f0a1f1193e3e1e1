"""Decoding audio files, whole, in part, or as a stream in constant memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from longseq.audio.data.containers import FOREIGN, Layout, Part, read_layout
from longseq.audio.data.decoders import (
    FORMATS,
    AvDecoder,
    Decoder,
    SoundDecoder,
    has_pyav,
    open_part,
)
from longseq.audio.data.riff import CUT, is_cut
from longseq.core.errors import DataError
from longseq.core.files import require_file

# Kinds of audio → the endings that promise them.
_ENDINGS = {
    "WAV": ".wav .rf64",
    "FLAC": ".flac",
    "OGG": ".ogg .oga .opus",
    "MP3": ".mp3",
    "AIFF": ".aif .aiff .aifc",
    "W64": ".w64",
    "CAF": ".caf",
    "AU": ".au .snd",
    "VOC": ".voc",
    "NIST": ".sph",
    "M4A/AAC": ".m4a .m4b .mp4 .alac",
    "AAC": ".aac",
    "WMA": ".wma",
    "Matroska": ".mka .webm",
    "APE": ".ape",
    "WavPack": ".wv",
    "Musepack": ".mpc",
}
# Endings of audio that is not read here: such a file has a row that says so.
_OTHERS = ".mp1 .mp2 .mpa .ac3 .eac3 .dts .thd .mlp .tta .tak .ofr .shn .dsf .dff .amr .ra .spx"
_KINDS = {suffix: kind for kind, endings in _ENDINGS.items() for suffix in endings.split()}
SUFFIXES = tuple(suffix for suffix, kind in _KINDS.items() if kind not in FOREIGN)
# Channels whose mean has less than this share of their power cancel each other.
_CANCELLED = 0.01
CANCELLED_NOTE = "its channels cancel each other (out of phase): where they do, one is taken"


class UnscorableError(DataError):
    """A file that decodes, but to samples that say nothing: values that are not finite."""


@dataclass(frozen=True)
class AudioInfo:
    """What a file's header and its bytes say.

    Args:
        path: the file.
        kind: container, for example "FLAC".
        sample_rate: of its first stream, Hz.
        channels: number, of its first stream.
        seconds: duration that the header promises, s; 0 if it does not say.
        counted: whether that is a fact; an MP3 without a table of contents has its length guessed.
        tags: artist and title, where the file names them.
        notes: what is odd about the file, in words; empty if nothing is.
    """

    path: Path
    kind: str
    sample_rate: int
    channels: int
    seconds: float
    counted: bool = True
    tags: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def sniff(path: str | Path) -> str | None:
    """Returns the kind of audio that a file's bytes announce, whatever its name; None if none.

    Args:
        path: a readable file.
    """
    return read_layout(path).kind


def is_audio_name(path: str | Path) -> bool:
    """Returns whether a file's name ends like that of audio, readable here or not."""
    suffix = Path(path).suffix.lower()
    known = suffix in _KINDS or suffix in _OTHERS.split()
    return known or FORMATS.suffix_of(path) is not None


def _layout(path: str | Path) -> tuple[Path, Layout]:
    file = require_file(path, "audio file")
    if suffix := FORMATS.suffix_of(file):
        return file, Layout(suffix[1:].upper(), (Part(0, file.stat().st_size),))
    layout = read_layout(file)
    if layout.kind is None:
        kinds = "WAV, FLAC, OGG, MP3, Opus, AIFF, W64, CAF, AU or M4A"
        raise DataError(f"is not {kinds}", path=file, hint="convert it to FLAC or WAV")
    return file, layout


def _is_cut(file: Path, layout: Layout) -> bool:
    """Returns whether the container shows that the file's end is missing."""
    last = layout.parts[-1]
    with file.open("rb") as stream:
        if layout.kind == "AIFF":
            stream.seek(last.start)
            promised = int.from_bytes(stream.read(8)[4:8], "big")
            # 0 and 2³²-1 stand for "unknown" in files that were written to a pipe.
            return promised not in (0, 0xFFFFFFFF) and promised + 8 > last.end - last.start + 1
        if layout.kind == "OGG":
            stream.seek(max(last.start, last.end - (1 << 17)))
            tail = stream.read(last.end - stream.tell())
            page = tail.rfind(b"OggS")
            return page < 0 or page + 5 >= len(tail) or not tail[page + 5] & 0x04
        if layout.kind in ("WAV", "W64", "CAF", "AU"):
            return is_cut(stream, layout.kind, last.start, last.end)
    return False


def audio_info(path: str | Path) -> AudioInfo:
    """Reads a file's header.

    Args:
        path: the file.

    Raises:
        DataError: if it is missing, empty or not decodable audio.
    """
    return _info(*_layout(path))


def _info(file: Path, layout: Layout) -> AudioInfo:
    seconds, first = 0.0, None
    for part in layout.parts:
        decoder = open_part(file, layout, part)
        seconds += decoder.frames / decoder.sample_rate
        first = first or (decoder.sample_rate, decoder.channels, decoder.tags)
        decoder.close()
    assert first is not None and layout.kind is not None
    notes = list(layout.notes)
    if not FORMATS.suffix_of(file) and _KINDS.get(file.suffix.lower()) != layout.kind:
        named = file.suffix or "without an ending"
        notes.append(f"is {layout.kind} by its content, though named {named}")
    if _is_cut(file, layout):
        notes.append(CUT)
    return AudioInfo(file, layout.kind, *first[:2], seconds, layout.counted, first[2], tuple(notes))


class AudioStream:
    """A file's samples in chunks, in constant memory; iterate over it, or over ``blocks``, once.

    Reading is by fixed blocks of frames, so the output is a function of the samples alone: the same
    PCM in another container gives the same values, bit for bit. Streams that were joined end to end
    follow each other.

    Args:
        path: the file.
        sample_rate: of the output, Hz; None for each stream's own.

    Attributes:
        info: the header.
        seconds: decoded so far, s.

    Raises:
        DataError: if the file cannot be opened; while iterating, if it ends in a decoding error
            before its first sample; ``UnscorableError`` if it holds values that are not finite.
    """

    def __init__(self, path: str | Path, sample_rate: int | None = 16000) -> None:
        self._file, self._known = _layout(path)
        self.info = _info(self._file, self._known)
        self.sample_rate = sample_rate
        self.seconds, self.frames_read = 0.0, 0
        self._broken, self._odd = "", ""

    def blocks(self) -> Iterator[tuple[np.ndarray, int]]:
        """Yields float32 arrays (N, channels), N > 0, and their rate in Hz."""
        import soxr

        for part in self._known.parts:
            decoder = open_part(self._file, self._known, part)
            rate, channels = decoder.sample_rate, decoder.channels
            target = self.sample_rate or rate
            resampler = None if rate == target else soxr.ResampleStream(rate, target, channels)
            for block in self._whole(decoder):
                out = block if resampler is None else resampler.resample_chunk(block)
                if len(out):
                    yield out, target
            if resampler is not None and self.frames_read:
                rest = resampler.resample_chunk(np.zeros((0, channels), np.float32), last=True)
                if len(rest):
                    yield rest, target
        if not self.frames_read:
            why = f": {self._broken}" if self._broken else ""
            raise DataError(
                f"holds no samples{why}", path=self._file, hint="copy or convert the file again"
            )

    def _whole(self, decoder: Decoder) -> Iterator[np.ndarray]:
        """Yields the blocks of a decoder, checked; where one gives up, PyAV goes on."""
        read = 0
        try:
            for block in decoder.blocks():
                read += len(block)
                yield self._checked(block, decoder.sample_rate)
            broken = decoder.broken
            if not broken and self._known.counted and self.info.kind == "MP3":
                # mpg123 gives up on a damaged frame without an error.
                missing = decoder.frames - read > 0.1 * decoder.sample_rate
                broken = "it stops early" if missing else ""
        finally:
            decoder.close()
        if broken and isinstance(decoder, SoundDecoder) and has_pyav():
            again = self._reopened(decoder)
            skip = read
            if again is not None:
                try:
                    for block in again.blocks():
                        rest = block[skip:]
                        skip = max(0, skip - len(block))
                        if len(rest):
                            yield self._checked(rest, decoder.sample_rate)
                finally:
                    again.close()
                self._odd = f"is damaged ({broken}): the damaged spots are left out"
                return
        self._broken = self._broken or broken

    def _reopened(self, decoder: SoundDecoder) -> AvDecoder | None:
        try:
            again = AvDecoder(self._file, self._known.parts[0], self.info.kind)
        except DataError:
            return None
        alike = (again.sample_rate, again.channels) == (decoder.sample_rate, decoder.channels)
        if alike and len(self._known.parts) == 1:
            return again
        again.close()
        return None

    def _checked(self, block: np.ndarray, rate: int) -> np.ndarray:
        self.frames_read += len(block)
        self.seconds += len(block) / rate
        finite = np.isfinite(block)
        if not finite.all():
            first = self.seconds - (len(block) - int(finite.all(1).argmin())) / rate
            raise UnscorableError(
                "holds values that are not finite",
                path=self._file,
                record=f"from second {first:.3f}",
            )
        return block

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yields float32 arrays (N,) of mono samples, N > 0: the channels' mean.

        Where the channels cancel each other, the loudest so far stands for them all.
        """
        mixed, powers = 0.0, np.zeros(1)
        for block, _ in self.blocks():
            mono = _mean(block)
            if (channels := block.shape[1]) > 1:
                now, here = float(np.vdot(mono, mono)), _powers(block)
                powers = powers + here if len(powers) == channels else here
                mixed += now
                # A passage too, unless it is so faint that it may be what a codec leaves.
                passage = here.sum() > _CANCELLED * mixed and now < _CANCELLED * here.mean()
                if passage or mixed < _CANCELLED * powers.mean():
                    mono = np.ascontiguousarray(block[:, powers.argmax()])
                    self._odd = self._odd or CANCELLED_NOTE
            yield mono

    @property
    def notes(self) -> list[str]:
        """What is odd about the file, complete once it was read to its end."""
        found = list(self.info.notes)
        # MP3 headers may count the encoder's padding: a tenth of a second is no truncation.
        missing = self.info.counted and self.info.seconds - self.seconds > 0.1
        if self._broken or missing:
            why = f" ({self._broken})" if self._broken else ""
            promised = f" of {self.info.seconds:.1f}" if missing else ""
            found.append(f"is damaged: {self.seconds:.1f}{promised} s could be decoded{why}")
        if self._odd:
            found.append(self._odd)
        return found


def _powers(block: np.ndarray) -> np.ndarray:
    """Returns the power (C,) of every channel of a block (N, C)."""
    return np.array([float(np.vdot(channel, channel)) for channel in block.T])


def _mean(block: np.ndarray) -> np.ndarray:
    """Returns the mean (N,) of channels (N, C): one after the other, as numpy's own mean over so
    short an axis takes five times as long."""
    if block.shape[1] == 1:
        return block[:, 0]
    total = block[:, 0] + block[:, 1]
    for channel in range(2, block.shape[1]):
        total += block[:, channel]
    return total / np.float32(block.shape[1])


def read_audio(
    path: str | Path, sample_rate: int = 16000, max_seconds: float | None = None
) -> np.ndarray:
    """Returns a file's mono samples, float32 (N,).

    Args:
        path: a file of any kind that is read here, recognised by content.
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

    file, layout = _layout(path)
    decoder: Any = open_part(file, layout, layout.parts[0])
    if len(layout.parts) > 1 or not isinstance(decoder, SoundDecoder):
        # Not seekable to a sample: read from the start.
        decoder.close()
        whole = read_audio(file, sample_rate, start + seconds)
        return whole[round(start * sample_rate) :]
    rate, wanted, pieces = decoder.sample_rate, round(seconds * decoder.sample_rate), []
    try:
        decoder.seek(round(start * rate))
        for block in decoder.blocks():
            pieces.append(block[:wanted])
            wanted -= len(pieces[-1])
            if not wanted:
                break
    except soundfile.LibsndfileError as error:
        decoder.broken = str(error.error_string).rstrip(".")
    finally:
        decoder.close()
    if decoder.broken:
        record = f"second {start:.1f}"
        raise DataError(f"cannot be decoded: {decoder.broken}", path=file, record=record)
    block = np.concatenate(pieces) if pieces else np.zeros((0, decoder.channels), np.float32)
    mono = _mean(block)
    if np.square(mono).sum() < _CANCELLED * np.square(block).sum() / block.shape[1]:
        mono = np.ascontiguousarray(block[:, _powers(block).argmax()])
    if not np.isfinite(mono).all():
        record = f"from second {start:.1f}"
        raise UnscorableError("holds values that are not finite", path=file, record=record)
    return mono if rate == sample_rate or not len(mono) else soxr.resample(mono, rate, sample_rate)
