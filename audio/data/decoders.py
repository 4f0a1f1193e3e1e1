"""Decoders of one stream in a file: libsndfile first; PyAV, where installed, for the rest."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from longseq.audio.data.containers import FOREIGN, Layout, Part, Window
from longseq.core.errors import DataError
from longseq.core.formats import Formats

_BLOCK = 1 << 16  # frames read at a time: the same for every container, so that equal PCM is equal
# Hz. Of a block at a lower rate, as a damaged header may say, resampling makes gigabytes, and soxr
# counts what it makes in 32 bits: from 1 Hz to 44.1 kHz it ends the process.
_SLOWEST = 100


FORMATS: Formats[Callable[[Path], tuple[np.ndarray, int]]] = Formats("sound")
"""Sound of other formats: a reader takes the path and returns floats (N, channels), -1 to 1, and
the sample rate, Hz."""


def has_pyav() -> bool:
    """Returns whether PyAV can be imported."""
    return importlib.util.find_spec("av") is not None


class SoundDecoder:
    """A stream that libsndfile decodes.

    Args:
        path: the file.
        part: where the stream lies.
        size: of the file, bytes.

    Raises:
        soundfile.LibsndfileError: if it cannot be opened.
    """

    def __init__(self, path: Path, part: Part, size: int) -> None:
        import soundfile

        if part == Part(0, size):
            # As bytes: a name need not be UTF-8.
            self._sound = soundfile.SoundFile(os.fsencode(path))
        else:
            self._sound = soundfile.SoundFile(Window(path.open("rb"), part))
        self.sample_rate, self.channels = self._sound.samplerate, self._sound.channels
        self.frames = max(0, self._sound.frames)
        self.broken = ""

    @property
    def tags(self) -> dict[str, str]:
        """Artist and title, where the file names them."""
        found = {name: getattr(self._sound, name) for name in ("artist", "title")}
        return {name: text.strip() for name, text in found.items() if text and text.strip()}

    def seek(self, frame: int) -> None:
        """Goes to a frame, at most the last."""
        self._sound.seek(min(frame, self.frames))

    def blocks(self) -> Iterator[np.ndarray]:
        """Yields float32 (N, channels), N = 65,536 but at the end; sets ``broken`` on an error."""
        import soundfile

        while True:
            try:
                block = self._sound.read(_BLOCK, dtype="float32", always_2d=True)
            except soundfile.LibsndfileError as error:
                self.broken = str(error.error_string).rstrip(".")
                return
            if not len(block):
                return
            yield block

    def close(self) -> None:
        """Closes the file."""
        self._sound.close()


class AvDecoder:
    """A stream that FFmpeg's libraries decode through PyAV; the encoder's priming is trimmed.

    Args:
        path: the file.
        part: where the stream lies.
        kind: of container, for messages.

    Raises:
        DataError: if it holds no audio that can be decoded.
    """

    def __init__(self, path: Path, part: Part, kind: str) -> None:
        import av

        av.logging.set_level(None)
        self._file = Window(path.open("rb"), part)
        try:
            self._container = av.open(self._file, metadata_errors="replace")
        except (av.error.FFmpegError, ValueError) as error:
            self._file.close()
            raise _undecodable(path, kind, error) from None
        if not self._container.streams.audio:
            self.close()
            raise DataError("holds no audio stream", path=path)
        self._stream = self._container.streams.audio[0]
        context = self._stream.codec_context
        if context is None or context.sample_rate < 1 or context.channels < 1:
            self.close()
            raise DataError("its header has no sample rate or channels", path=path)
        self.sample_rate, self.channels = context.sample_rate, context.channels
        length = self._stream.duration
        base = self._stream.time_base
        self.frames = round(float(length * base) * self.sample_rate) if length and base else 0
        self.broken = ""

    @property
    def tags(self) -> dict[str, str]:
        """Artist and title, where the file names them."""
        known = {**self._stream.metadata, **self._container.metadata}
        return {name: known[name].strip() for name in ("artist", "title") if known.get(name)}

    def blocks(self) -> Iterator[np.ndarray]:
        """Yields float32 (N, channels), N = 65,536 but at the end; damaged packets are left out."""
        waiting: list[np.ndarray] = []
        count = 0
        for samples in self._samples():
            waiting.append(samples)
            count += len(samples)
            if count >= _BLOCK:
                whole = np.concatenate(waiting)
                while len(whole) >= _BLOCK:
                    yield whole[:_BLOCK]
                    whole = whole[_BLOCK:]
                waiting, count = [whole], len(whole)
        if count:
            yield np.concatenate(waiting)

    def _samples(self) -> Iterator[np.ndarray]:
        import av

        resampler = av.AudioResampler(format="fltp")
        for packet in self._packets():
            try:
                frames = packet.decode()
                changed = [out for frame in frames for out in resampler.resample(frame)]
            except (av.error.FFmpegError, ValueError) as error:
                # A ValueError where the layout changes within a stream.
                self.broken = getattr(error, "strerror", None) or str(error)
                continue
            for frame in changed:
                samples = frame.to_ndarray().T
                if samples.shape[1] == self.channels:
                    yield np.ascontiguousarray(samples, dtype=np.float32)

    def _packets(self) -> Iterator[Any]:
        import av

        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets, None)
            except av.error.FFmpegError as error:
                self.broken = error.strerror or str(error)
                return
            if packet is None:
                return
            yield packet

    def close(self) -> None:
        """Closes the file."""
        if (container := getattr(self, "_container", None)) is not None:
            container.close()
        self._file.close()


class ArrayDecoder:
    """Sound that a reader of ``FORMATS`` has read whole.

    Args:
        path: the file.

    Raises:
        DataError: if the reader fails, or returns anything but (N, channels) and a rate.
    """

    def __init__(self, path: Path) -> None:
        made = FORMATS.read(path, path)
        if not (isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], np.ndarray)):
            raise DataError("its reader returned no (samples, sample rate)", path=path)
        samples, rate = made
        if samples.ndim != 2 or samples.shape[1] < 1 or samples.dtype.kind != "f" or rate < 1:
            given = f"{samples.dtype} of shape {samples.shape} at {rate} Hz"
            raise DataError(
                f"its reader returned {given}, not floats (N, channels) and a rate", path=path
            )
        self._samples, self._at = samples.astype(np.float32, copy=False), 0
        self.sample_rate, self.channels, self.frames = int(rate), samples.shape[1], len(samples)
        self.broken, self.tags = "", dict[str, str]()

    def seek(self, frame: int) -> None:
        """Goes to a frame, at most the last."""
        self._at = min(frame, self.frames)

    def blocks(self) -> Iterator[np.ndarray]:
        """Yields float32 (N, channels), N = 65,536 but at the end."""
        for low in range(self._at, self.frames, _BLOCK):
            yield self._samples[low : low + _BLOCK]

    def close(self) -> None:
        """Lets the samples go."""
        self._samples = self._samples[:0]


Decoder = SoundDecoder | AvDecoder | ArrayDecoder


def _undecodable(path: Path, kind: str, error: Exception) -> DataError:
    reason = getattr(error, "error_string", None) or getattr(error, "strerror", None) or str(error)
    return DataError(
        f"cannot be decoded as {kind}: {str(reason).rstrip('.')}",
        path=path,
        hint="convert or copy the file again",
    )


def open_part(path: Path, layout: Layout, part: Part) -> Decoder:
    """Opens one stream of a file.

    Args:
        path: the file.
        layout: of the file.
        part: of the layout.

    Raises:
        DataError: if nothing here can decode it, with what to install or do, or its rate is none
            of sound.
    """
    decoder = _opened(path, layout, part)
    if decoder.sample_rate < _SLOWEST:
        decoder.close()
        raise DataError(
            f"its header says {decoder.sample_rate} Hz; from {_SLOWEST} Hz on it is read as sound",
            path=path,
            hint="correct the rate in its header, or copy the file again",
        )
    return decoder


def _opened(path: Path, layout: Layout, part: Part) -> Decoder:
    import soundfile

    if FORMATS.suffix_of(path):
        return ArrayDecoder(path)
    kind = layout.kind or "audio"
    if kind in FOREIGN:
        if not has_pyav():
            raise DataError(
                f"{kind} needs PyAV",
                path=path,
                hint='pip install "longseq[audio-formats]", or convert it: ffmpeg -i file out.flac',
            )
        return AvDecoder(path, part, kind)
    try:
        sound = SoundDecoder(path, part, path.stat().st_size)
    except (soundfile.LibsndfileError, soundfile.SoundFileRuntimeError) as error:
        if has_pyav():
            return AvDecoder(path, part, kind)
        raise _undecodable(path, kind, error) from None
    if sound.sample_rate < 1 or sound.channels < 1:
        sound.close()
        raise DataError("its header has no sample rate or channels", path=path)
    return sound
