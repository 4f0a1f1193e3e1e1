"""WAV, W64, CAF and AU files that are shorter than their header says are named; pipes are read."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import soundfile

from longseq.audio.data.reading import AudioStream, audio_info
from longseq.audio.data.riff import is_cut
from longseq.core.errors import DataError


def wave(samples: np.ndarray, endian: str = "FILE", subtype: str = "PCM_16") -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, samples, 8000, format="WAV", subtype=subtype, endian=endian)
    return stream.getvalue()


def lengths(content: bytes, whole: int | None, data: int) -> bytes:
    """Returns a WAV with other lengths in its header."""
    at = content.find(b"data") + 4
    content = content[:at] + data.to_bytes(4, "little") + content[at + 4 :]
    return content if whole is None else content[:4] + whole.to_bytes(4, "little") + content[8:]


def longer(content: bytes, behind: bytes) -> bytes:
    """Returns a WAV with more in it behind its samples."""
    return (
        content[:4] + (len(content) - 8 + len(behind)).to_bytes(4, "little") + content[8:] + behind
    )


def read(path: Path, content: bytes) -> tuple[int, list[str]]:
    path.write_bytes(content)
    stream = AudioStream(path, None)
    return sum(map(len, stream)), stream.notes


def test_lengths_that_are_wrong_are_named(tmp_path: Path, tune) -> None:
    good, cut = wave(tune(0, 2.0, 8000)), "is truncated: its end is missing"
    half = "holds 16000 bytes behind its audio that are of no chunk, not read"
    noise = np.random.default_rng(0).integers(1, 256, 70000, np.uint8).tobytes()
    behind = "holds 70000 bytes behind its end that are not read"
    chunk = b"LIST\x0a\0\0\0INFOIARTab"
    odd = wave(tune(0, 2.0, 8000)[:15999], subtype="PCM_U8")
    odd = odd[:-1] if len(odd) % 2 == 0 else odd
    for name, content, count, note in [
        ("good", good, 16000, None),
        ("big", wave(tune(0, 2.0, 8000), "BIG"), 16000, None),
        ("cut", good[:-16000], 8000, cut),
        ("more", lengths(good, None, 64000), 16000, cut),
        ("half", lengths(good, None, 16000), 8000, half),
        ("pipe", lengths(good, 0xFFFFFFFF, 0xFFFFFFFF), 16000, None),
        ("zeros", lengths(good, 0, 0), 16000, None),
        ("zeros and a length", lengths(good, None, 0), 16000, None),
        ("chunk", longer(good, chunk), 16000, None),
        ("odd and a chunk", longer(odd + b"\0", chunk), 15999, None),
        ("odd, not padded", longer(odd, chunk), 15999, None),
        ("tag", good + b"TAG" + bytes(125), 16000, None),
        ("id3", good + b"ID3" + noise, 16000, None),
        ("padded", good + bytes(70000), 16000, None),
        ("behind", good + noise, 16000, behind),
        ("twice", good + good, 16000, "holds another WAV behind its end that is not read"),
    ]:
        found, notes = read(tmp_path / "a.wav", content)
        assert (found, notes) == (count, [note] if note else []), name


def test_the_samples_of_a_pipe_are_those_of_a_file(tmp_path: Path, tune) -> None:
    good = wave(tune(0, 2.0, 8000))
    for name, content in (("a.wav", good), ("b.wav", lengths(good, 0, 0))):
        (tmp_path / name).write_bytes(content)
    one, two = (np.concatenate(list(AudioStream(tmp_path / n, None))) for n in ("a.wav", "b.wav"))
    assert np.array_equal(one, two)
    empty = lengths(good[: good.find(b"data") + 8], 36, 0)
    (tmp_path / "c.wav").write_bytes(empty)
    with pytest.raises(DataError, match="holds no samples"):
        list(AudioStream(tmp_path / "c.wav", None))


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT"])
@pytest.mark.parametrize(
    ("kind", "unknown"),
    [("AU", 0xFFFFFFFF), ("CAF", 2**64 - 1), ("W64", 2**63 - 1), ("RF64", 0)],
)
def test_a_cut_w64_caf_au_or_rf64_is_named(
    kind: str, unknown: int, subtype: str, tmp_path: Path, tune
) -> None:
    file = tmp_path / f"a.{kind.lower()}"
    soundfile.write(file, tune(0, 1.0)[:15001], 16000, subtype, format=kind)
    whole = file.read_bytes()
    assert audio_info(file).notes == ()
    file.write_bytes(whole[:-4000])
    assert audio_info(file).notes == ("is truncated: its end is missing",)
    # Where a program wrote to a pipe its header does not know, and nothing is missing.
    order = "little" if kind in ("W64", "RF64") else "big"
    at = 8 if kind == "AU" else 28 if kind == "RF64" else whole.find(b"data")
    at += {"W64": 16, "CAF": 4}.get(kind, 0)
    size = 4 if kind == "AU" else 8
    assert int.from_bytes(whole[at : at + size], order) >= 30002
    file.write_bytes(whole[:at] + unknown.to_bytes(size, order) + whole[at + size : -4000])
    known = "WAV" if kind == "RF64" else kind
    assert not is_cut(io.BytesIO(file.read_bytes()), known, 0, file.stat().st_size)
