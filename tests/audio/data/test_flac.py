"""FLAC streams whose header counts other samples than they have are read to their end."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from longseq.audio.data.flac import HEAD, counted_samples, declared_samples, with_samples
from longseq.audio.data.reading import AudioStream, read_audio


def written(path: Path, samples: np.ndarray, rate: int, subtype: str = "PCM_16") -> bytes:
    soundfile.write(path, samples, rate, subtype=subtype)
    return path.read_bytes()


@pytest.mark.parametrize("channels", [1, 2, 6])
@pytest.mark.parametrize("length", [1, 100, 4095, 4096, 4097, 8192, 60001])
def test_the_frames_are_counted(channels: int, length: int, tmp_path: Path) -> None:
    random = np.random.default_rng(length)
    for rate, subtype in ((44100, "PCM_16"), (12345, "PCM_24"), (192000, "PCM_S8")):
        for level in (0.0, 0.3):
            sound = level * random.uniform(-1, 1, (length, channels))
            content = written(tmp_path / "a.flac", sound, rate, subtype)
            assert declared_samples(content) == length
            for tail in (b"", b"TAG" + bytes(125), random.bytes(300)):
                whole = content + tail
                assert counted_samples(whole, 0, len(whole)) == length  # type: ignore[arg-type]


def crc(content: bytes) -> int:
    rest = int.from_bytes(content, "big") << 8
    for bit in range(rest.bit_length() - 1, 7, -1):
        if rest >> bit & 1:
            rest ^= 0x107 << bit - 8
    return rest


def number(value: int) -> bytes:
    """A number as in UTF-8."""
    if value < 0x80:
        return bytes([value])
    rest: list[int] = []
    while value >= 1 << 6 - len(rest):
        rest.insert(0, 0x80 | value & 0x3F)
        value >>= 6
    return bytes([(0xFF << 7 - len(rest)) & 0xFF | value, *rest])


def test_blocks_of_any_length_are_counted_by_their_first_samples() -> None:
    assert number(0x20AC) == "€".encode()
    head = b"fLaC\x80\0\0\x22" + bytes(34)
    random, made, at = np.random.default_rng(0), head, 0
    for samples in (4608, 1000, 200, 70, 65536, 4096, 2_000_000_000 - 4096):
        if samples > 65536:  # a stream of days, of which only the last blocks are here
            at += samples
            made, samples = head, 192
        code, extra = {4608: (5, b""), 4096: (12, b""), 192: (1, b"")}.get(
            samples, (6, bytes([samples - 1 & 0xFF])) if samples <= 256 else (7, b"")
        )
        extra = (samples - 1).to_bytes(2, "big") if code == 7 else extra
        block = b"\xff\xf9" + bytes([code << 4 | 9, 0x18]) + number(at) + extra
        made += block + bytes([crc(block)]) + random.bytes(50)
        at += samples
        last = samples
    block = b"\xff\xf9\xc9\x18" + number(at)
    made += block + bytes([crc(block)]) + random.bytes(50)
    assert last == 192 and at > 2_000_000_000
    assert counted_samples(made, 0, len(made)) == at + 4096  # type: ignore[arg-type]
    assert counted_samples(head, 0, len(head)) == 0  # type: ignore[arg-type]
    broken = made[:-56] + bytes([made[-56] ^ 1]) + made[-55:]
    assert counted_samples(broken, 0, len(broken)) == 0  # type: ignore[arg-type]


@pytest.mark.parametrize(("told", "note"), [(0, False), (1, True), (44100, True), (88199, True)])
def test_a_header_that_counts_too_few_samples_loses_none(
    told: int, note: bool, tmp_path: Path, tune
) -> None:
    samples = tune(0, 2.0, 44100)
    whole = written(tmp_path / "whole.flac", samples, 44100)
    changed = with_samples(whole[:HEAD], told) + whole[HEAD:]
    assert with_samples(changed[:HEAD], 88200) + changed[HEAD:] == whole
    (tmp_path / "a.flac").write_bytes(changed)
    stream = AudioStream(tmp_path / "a.flac", None)
    assert stream.info.seconds == 2.0
    found = np.concatenate(list(stream))
    assert np.array_equal(found, read_audio(tmp_path / "whole.flac", 44100))
    says = f"its header counts {told / 44100:.1f} s, its frames 2.0: all are read"
    assert stream.notes == ([says] if note else [])


def test_a_header_that_counts_too_many_is_damage_and_joined_streams_count_alone(
    tmp_path: Path, tune
) -> None:
    whole = written(tmp_path / "a.flac", tune(0, 2.0, 44100), 44100)
    more = with_samples(whole[:HEAD], 2 * 88200) + whole[HEAD:]
    (tmp_path / "more.flac").write_bytes(more)
    stream = AudioStream(tmp_path / "more.flac", None)
    assert sum(map(len, stream)) == 88200
    assert "is damaged: 2.0 of 4.0 s could be decoded" in stream.notes
    none = with_samples(whole[:HEAD], 0) + whole[HEAD:]
    (tmp_path / "joined.flac").write_bytes(none + whole + none)
    stream = AudioStream(tmp_path / "joined.flac", None)
    assert stream.info.seconds == 6.0 and sum(map(len, stream)) == 3 * 88200
    assert stream.notes == ["holds 3 streams joined end to end; all are read"]
