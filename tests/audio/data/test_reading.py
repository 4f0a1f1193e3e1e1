"""Reading audio: containers, resampling, streams, and files that are not what they should be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

from longseq.audio.data.listing import list_audio
from longseq.audio.data.reading import (
    AudioStream,
    audio_info,
    read_audio,
    read_excerpt,
    sniff,
)
from longseq.core.errors import DataError

RATE = 16000
KINDS = {
    "a.wav": ("WAV", "PCM_16"),
    "a.flac": ("FLAC", "PCM_16"),
    "a.ogg": ("OGG", "VORBIS"),
    "a.opus": ("OGG", "OPUS"),
    "a.mp3": ("MP3", "MPEG_LAYER_III"),
}


@pytest.mark.parametrize("name", sorted(KINDS))
def test_every_container_gives_the_samples(name: str, tmp_path: Path, tune) -> None:
    kind, subtype = KINDS[name]
    audio = tune(0)
    soundfile.write(tmp_path / name, audio, RATE, subtype, format=kind)
    info = audio_info(tmp_path / name)
    assert (info.kind, info.sample_rate, info.channels, info.notes) == (kind, RATE, 1, ())
    found = read_audio(tmp_path / name, RATE)
    assert found.dtype == np.float32 and abs(len(found) - len(audio)) < 0.1 * RATE
    if subtype == "PCM_16":
        assert np.abs(found - audio).max() <= 2**-15
    else:
        assert np.corrcoef(found[: len(audio)], audio[: len(found)])[0, 1] > 0.9


def test_equal_pcm_is_equal_in_every_lossless_container(tmp_path: Path, tune) -> None:
    # As integers: from floats, libsndfile's FLAC encoder rounds otherwise than its WAV writer does.
    stereo = np.round(32000 * np.stack((tune(1, 8.0, 44100), tune(2, 8.0, 44100)), 1)).astype(
        np.int16
    )
    for name, kind in (("a.wav", "WAV"), ("a.flac", "FLAC"), ("a.aiff", "AIFF")):
        soundfile.write(tmp_path / name, stereo, 44100, "PCM_16", format=kind)
    first, *others = [read_audio(tmp_path / name) for name in ("a.wav", "a.flac", "a.aiff")]
    assert len(first) == pytest.approx(8 * RATE, abs=2)
    assert all(np.array_equal(first, other) for other in others)


def test_resampling_is_soxr_of_the_channels_mean(tmp_path: Path, tune) -> None:
    stereo = np.stack((tune(1, 5.0, 44100), tune(2, 5.0, 44100)), 1)
    soundfile.write(tmp_path / "a.wav", stereo, 44100, "FLOAT")
    whole = soxr.resample(stereo.mean(1, dtype=np.float32), 44100, RATE)
    streamed = read_audio(tmp_path / "a.wav", RATE)
    assert len(whole) == len(streamed) and np.abs(whole - streamed).max() < 1e-5
    part = read_excerpt(tmp_path / "a.wav", 1.0, 2.0, RATE)
    # The resampler's edges see no neighbours; inside, an excerpt is the whole's.
    assert np.abs(part[800:-800] - whole[RATE:][: 2 * RATE][800:-800]).max() < 1e-3


def test_the_stream_counts_what_it_read(tmp_path: Path, tune) -> None:
    soundfile.write(tmp_path / "a.wav", tune(0, 10.0), RATE, "PCM_16")
    stream = AudioStream(tmp_path / "a.wav", RATE)
    sizes = [len(chunk) for chunk in stream]
    assert (
        sum(sizes) == 10 * RATE and len(sizes) > 1 and stream.seconds == 10.0 and not stream.notes
    )
    assert len(read_audio(tmp_path / "a.wav", RATE, max_seconds=2.5)) == 2.5 * RATE


def test_bad_files_say_what_is_wrong(tmp_path: Path) -> None:
    cases = {
        "none.wav": (None, "no such audio file"),
        "empty.wav": (b"", "the audio file is empty"),
        "text.mp3": (b"hello, this is no music at all", "is not WAV, FLAC, OGG, MP3, Opus"),
        "song.m4a": (b"\0\0\0\x20ftypM4A ", "M4A/AAC"),
        "head.flac": (b"fLaC" + b"\0" * 50, "cannot be decoded as FLAC"),
        "id3.mp3": (b"ID3\x03\0\0\0\0\0\x0a" + b"\0" * 40, "cannot be decoded as MP3"),
    }
    for name, (content, message) in cases.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=name) as caught:
            read_audio(tmp_path / name)
        assert message in str(caught.value) and "\n" not in str(caught.value)
    soundfile.write(tmp_path / "nan.wav", np.full(100, np.nan, np.float32), RATE, "FLOAT")
    with pytest.raises(DataError, match="not finite"):
        read_audio(tmp_path / "nan.wav")
    soundfile.write(tmp_path / "zero.wav", np.zeros(0, np.float32), RATE, "PCM_16")
    with pytest.raises(DataError, match="holds no samples"):
        read_audio(tmp_path / "zero.wav")


@pytest.mark.parametrize("name", sorted(KINDS))
def test_truncated_files_are_noticed(name: str, tmp_path: Path, tune) -> None:
    kind, subtype = KINDS[name]
    soundfile.write(tmp_path / name, tune(0, 20.0), RATE, subtype, format=kind)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) // 2])
    stream = AudioStream(tmp_path / name, RATE)
    assert 5 < sum(len(chunk) for chunk in stream) / RATE < 15
    assert any("truncated" in note or "damaged" in note for note in stream.notes), stream.notes


def test_a_rate_that_is_none_of_sound_is_refused(tmp_path: Path, tune) -> None:
    """From 1 Hz to 44.1 kHz soxr would end the process with a segmentation fault."""
    soundfile.write(tmp_path / "a.wav", tune(0, 1.0), RATE, "PCM_16")
    whole = (tmp_path / "a.wav").read_bytes()
    for rate in (1, 99):
        (tmp_path / "b.wav").write_bytes(whole[:24] + rate.to_bytes(4, "little") + whole[28:])
        for read in (audio_info, read_audio):
            with pytest.raises(DataError, match=f"b.wav: its header says {rate} Hz") as caught:
                read(tmp_path / "b.wav")
            assert "correct the rate" in str(caught.value)
    (tmp_path / "b.wav").write_bytes(whole[:24] + (100).to_bytes(4, "little") + whole[28:])
    assert len(read_audio(tmp_path / "b.wav", 1000)) == 10 * RATE


def test_renamed_files_are_read_by_content(tmp_path: Path, tune) -> None:
    for name, (kind, subtype) in KINDS.items():
        renamed = tmp_path / f"{name}.txt"
        soundfile.write(renamed, tune(0), RATE, subtype, format=kind)
        assert sniff(renamed) == kind and "though named .txt" in audio_info(renamed).notes[0]
    soundfile.write(tmp_path / "flac_inside.mp3", tune(0), RATE, "PCM_16", format="FLAC")
    assert audio_info(tmp_path / "flac_inside.mp3").notes == (
        "is FLAC by its content, though named .mp3",
    )
    assert len(read_audio(tmp_path / "flac_inside.mp3")) == 3 * RATE


def test_folders_are_listed_to_any_depth(tmp_path: Path, tune) -> None:
    (tmp_path / "b" / ".hidden").mkdir(parents=True)
    for name in ("b/x.wav", "a.mp3", "cover.jpg", ".a.wav", "b/.hidden/y.wav"):
        (tmp_path / name).write_bytes(b"?")
    soundfile.write(tmp_path / "renamed", tune(0, 0.1), RATE, "PCM_16", format="WAV")
    audio, other = list_audio(tmp_path)
    assert [str(path.relative_to(tmp_path)) for path in audio] == ["a.mp3", "b/x.wav", "renamed"]
    assert [path.name for path in other] == ["cover.jpg"]
    with pytest.raises(DataError, match="no such file or folder"):
        list_audio(tmp_path / "none")
