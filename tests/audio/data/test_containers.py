"""Where audio lies in a file: tags and junk before it, streams joined end to end, kinds by
content."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import soundfile

from longseq.audio.data.containers import Part, Window, id3_size, mp3_frame, read_layout
from longseq.audio.data.listing import list_audio
from longseq.audio.data.ogg import checksum
from longseq.audio.data.reading import (
    CANCELLED_NOTE,
    AudioStream,
    UnscorableError,
    audio_info,
    read_audio,
    read_excerpt,
)
from longseq.bench.fuzz_inside import ogg_sum
from longseq.core.errors import DataError

RATE = 44100
ID3 = b"ID3\x04\0\0\0\0\x10\0" + bytes(2048)


def encoded(tmp_path: Path, audio, kind: str, subtype: str, rate=RATE, **how) -> bytes:
    soundfile.write(tmp_path / "part", audio, rate, subtype, format=kind, **how)
    return (tmp_path / "part").read_bytes()


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def heard(path: Path) -> tuple[float, list[str]]:
    stream = AudioStream(path, None)
    assert sum(len(block) / rate for block, rate in stream.blocks()) == pytest.approx(
        stream.seconds
    )
    return stream.seconds, stream.notes


@pytest.mark.parametrize("mode", ["CONSTANT", "VARIABLE"])
def test_an_mp3_without_a_count_of_frames_is_whole(mode: str, tmp_path: Path, tune) -> None:
    audio = np.concatenate((tune(0, 4.0, RATE), 0.001 * tune(1, 4.0, RATE)))
    content = encoded(tmp_path, audio, "MP3", "MPEG_LAYER_III", bitrate_mode=mode)
    place = max(content.find(b"Xing"), content.find(b"Info"))
    assert place > 0
    bare = written(tmp_path / "bare.mp3", content[:place] + bytes(4) + content[place + 4 :])
    seconds, notes = heard(bare)
    # The frame that held the count is one of silence now.
    assert notes == [] and 8.0 <= seconds < 8.0 + 3 * 1152 / RATE
    first, second = read_audio(bare, RATE), audio
    lag = len(first) - len(second)
    assert 0 <= lag <= 3 * 1152
    after = [np.dot(first[i : i + RATE], second[:RATE]) for i in range(2 * 1152)]
    assert max(after) > 0.95 * np.dot(second[:RATE], second[:RATE])


def test_tags_padding_and_junk_before_the_audio(tmp_path: Path, tune) -> None:
    audio = tune(0, 3.0, RATE)
    kinds = {
        "MP3": encoded(tmp_path, audio, "MP3", "MPEG_LAYER_III"),
        "FLAC": encoded(tmp_path, audio, "FLAC", "PCM_16"),
        "OGG": encoded(tmp_path, audio, "OGG", "VORBIS"),
    }
    junk = np.random.default_rng(1).bytes(3000)
    for kind, content in kinds.items():
        for name, before in (("tag", ID3), ("padded", ID3 + bytes(5000)), ("junk", junk)):
            file = written(tmp_path / f"{name}.{kind.lower()}", before + content)
            info = audio_info(file)
            assert info.kind == kind, (kind, name)
            seconds, notes = heard(file)
            assert seconds == pytest.approx(3.0, abs=0.06), (kind, name)
            said = [note for note in notes if "3000 bytes of something else" in note]
            assert len(notes) == len(said) == (name == "junk"), notes
    assert "though named" in audio_info(written(tmp_path / "f.mp3", ID3 + kinds["FLAC"])).notes[0]


def test_streams_joined_end_to_end_are_all_read(tmp_path: Path, tune) -> None:
    audio = tune(0, 3.0, RATE)
    flac = encoded(tmp_path, audio, "FLAC", "PCM_16")
    vorbis = encoded(tmp_path, audio, "OGG", "VORBIS")
    opus = encoded(tmp_path, tune(1, 2.0, 48000), "OGG", "OPUS", 48000)
    single = read_audio(written(tmp_path / "one.flac", flac), RATE)
    cases = [
        ("twice.flac", flac + flac, 6.0),
        ("tagged.flac", flac + ID3 + flac, 6.0),
        ("twice.ogg", vorbis + vorbis, 6.0),
        ("twice.opus", opus + opus, 4.0),
        ("rates.ogg", vorbis + opus + vorbis, 8.0),
    ]
    for name, content, seconds in cases:
        file = written(tmp_path / name, content)
        found, notes = heard(file)
        assert found == pytest.approx(seconds, abs=0.01), name
        assert [note for note in notes if "joined end to end; all are read" in note], name
        assert audio_info(file).seconds == pytest.approx(seconds, abs=0.01)
        assert len(read_audio(file, RATE)) == pytest.approx(seconds * RATE, abs=500)
    twice = read_audio(tmp_path / "twice.flac", RATE)
    assert np.array_equal(twice, np.concatenate((single, single)))
    part = read_excerpt(tmp_path / "twice.flac", 3.5, 1.0, RATE)
    assert np.array_equal(part, single[RATE // 2 : RATE // 2 + RATE])


def test_joined_mp3_files_that_count_their_frames(tmp_path: Path, tune) -> None:
    parts = [encoded(tmp_path, tune(i, 3.0, RATE), "MP3", "MPEG_LAYER_III") for i in range(3)]
    assert all(b"Xing" in part[:200] or b"Info" in part[:200] for part in parts)
    singles = [read_audio(written(tmp_path / f"{i}.mp3", parts[i]), RATE) for i in range(3)]
    last = b"TAG" + bytes(125)  # ID3v1 behind the first, ID3v2 before the third
    file = written(tmp_path / "all.mp3", parts[0] + last + parts[1] + ID3 + parts[2])
    assert heard(file) == (pytest.approx(9.0), ["holds 3 streams joined end to end; all are read"])
    np.testing.assert_allclose(read_audio(file, RATE), np.concatenate(singles), atol=1e-6)
    tagged = written(tmp_path / "tagged.mp3", ID3 + parts[0] + last)
    assert heard(tagged) == (pytest.approx(3.0), [])
    # A head that claims no length at all, again and again.
    at = max(parts[0].find(b"Xing"), parts[0].find(b"Info")) + 12
    none = parts[0][:at] + bytes(4) + parts[0][at + 4 :]
    assert len(read_layout(written(tmp_path / "none.mp3", none + none)).parts) < 4


def test_a_file_behind_another_is_named(tmp_path: Path, tune) -> None:
    audio = tune(0, 2.0, RATE)
    for kind in ("WAV", "AIFF"):
        first = encoded(tmp_path, audio, kind, "PCM_16")
        file = written(tmp_path / f"{kind}.{kind.lower()}", first + first)
        assert heard(file) == (2.0, [f"holds another {kind} behind its end that is not read"])
        tail = written(
            tmp_path / f"tail.{kind.lower()}", first + b"ID3\4\0\0\0\0\0\x0a" + bytes(10)
        )
        assert heard(tail) == (2.0, [])
    made = av_file(tmp_path / "l.m4a", (30000 * audio).astype(np.int16), "alac", "ipod", "s16p")
    assert heard(made) == (2.0, [])
    twice = written(tmp_path / "twice.m4a", 2 * made.read_bytes())
    assert heard(twice)[1] == ["holds another M4A/AAC behind its end that is not read"]


@pytest.mark.parametrize("kind", ["W64", "CAF", "AU", "RF64", "VOC"])
def test_other_containers_of_libsndfile(kind: str, tmp_path: Path, tune) -> None:
    audio = np.round(30000 * tune(0, 2.0, RATE)).astype(np.int16)
    soundfile.write(tmp_path / f"a.{kind.lower()}", audio, RATE, "PCM_16", format=kind)
    soundfile.write(tmp_path / "a.flac", audio, RATE, "PCM_16")
    assert list_audio(tmp_path)[1] == [] and audio_info(tmp_path / f"a.{kind.lower()}").notes == ()
    found = [read_audio(path, RATE) for path in list_audio(tmp_path)[0]]
    assert len(found) == 2 and np.array_equal(*found)


def av_file(path: Path, audio: np.ndarray, codec: str, container: str, sample: str) -> Path:
    av = pytest.importorskip("av", reason="PyAV is not installed: pip install av")
    with av.open(str(path), "w", format=container) as made:
        stream = made.add_stream(codec, rate=RATE, layout="mono")
        stream.bit_rate = 128000
        size = stream.codec_context.frame_size or 1024
        change = av.AudioResampler(format=sample, layout="mono", rate=RATE, frame_size=size)
        frame = av.AudioFrame.from_ndarray(audio[None], format="s16", layout="mono")
        frame.sample_rate, frame.pts = RATE, 0
        for piece in [*change.resample(frame), *change.resample(None), None]:
            made.mux(stream.encode(piece))
    return path


def test_m4a_aac_alac_and_wma_through_pyav(tmp_path: Path, tune) -> None:
    audio = np.round(30000 * tune(0, 3.0, RATE)).astype(np.int16)
    soundfile.write(tmp_path / "a.wav", audio, RATE, "PCM_16")
    true = read_audio(tmp_path / "a.wav", RATE)
    alac = av_file(tmp_path / "l.m4a", audio, "alac", "ipod", "s16p")
    assert np.array_equal(read_audio(alac, RATE), true) and audio_info(alac).notes == ()
    aac = read_audio(av_file(tmp_path / "a.m4a", audio, "aac", "ipod", "fltp"), RATE)
    # The priming of 1,024 samples is trimmed: no lag fits better than none.
    fits = [np.dot(aac[2000 + lag : 40000 + lag], true[2000:40000]) for lag in range(-600, 1100, 4)]
    assert np.argmax(fits) == 150 and abs(len(aac) - len(true)) < 1024
    for name, codec, container in (("a.aac", "aac", "adts"), ("a.wma", "wmav2", "asf")):
        seconds, notes = heard(av_file(tmp_path / name, audio, codec, container, "fltp"))
        assert seconds == pytest.approx(3.0, abs=0.1) and notes == [], name
    part = read_excerpt(alac, 1.0, 1.0, RATE)
    assert np.array_equal(part, true[RATE : 2 * RATE])
    (tmp_path / "cut.m4a").write_bytes((tmp_path / "a.m4a").read_bytes()[:9000])
    with pytest.raises(DataError, match="cannot be decoded as M4A/AAC"):
        read_audio(tmp_path / "cut.m4a")


def test_without_pyav_the_way_out_is_said(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("longseq.audio.data.decoders.has_pyav", lambda: False)
    file = written(tmp_path / "a.m4a", b"\0\0\0\x20ftypM4A " + bytes(100))
    with pytest.raises(DataError, match=r"needs PyAV.*longseq\[audio-formats\]"):
        audio_info(file)


def test_a_damaged_mp3_is_read_around_its_spots(tmp_path: Path, tune) -> None:
    pytest.importorskip("av", reason="PyAV is not installed: pip install av")
    content = bytearray(encoded(tmp_path, tune(0, 12.0, RATE), "MP3", "MPEG_LAYER_III"))
    rng = np.random.default_rng(3)
    for place in rng.integers(5000, len(content) - 500, 12):
        content[place : place + 120] = rng.bytes(120)
    seconds, notes = heard(written(tmp_path / "a.mp3", bytes(content)))
    assert seconds > 10 and any("damaged" in note for note in notes), (seconds, notes)


def test_channels_that_cancel_are_heard(tmp_path: Path, tune) -> None:
    audio = np.round(30000 * tune(0, 3.0, RATE)).astype(np.int16)
    for name, pair in (("out", (audio, -audio)), ("in", (audio, audio)), ("mono", (audio,))):
        soundfile.write(tmp_path / f"{name}.wav", np.stack(pair, 1), RATE, "PCM_16")
    first, *others = [read_audio(tmp_path / f"{name}.wav", RATE) for name in ("out", "in", "mono")]
    assert all(np.array_equal(first, other) for other in others)
    assert heard_mono(tmp_path / "out.wav") == [CANCELLED_NOTE]
    assert heard_mono(tmp_path / "in.wav") == []
    assert np.abs(read_excerpt(tmp_path / "out.wav", 1.0, 1.0, RATE)).max() > 0.1


def test_channels_that_cancel_in_part(tmp_path: Path, tune) -> None:
    """The loudest channel is taken, and only where the others cancel it."""
    audio = np.round(15000 * tune(0, 9.0, RATE)).astype(np.int16)
    soundfile.write(tmp_path / "mono.wav", audio, RATE, "PCM_16")
    true, half = read_audio(tmp_path / "mono.wav", RATE), len(audio) // 2
    faint = audio.copy()
    faint[half:] //= 5000  # what a codec leaves in a pause
    late = np.concatenate((audio[:half], -audio[half:]))
    for name, channels, notes in (
        ("silent first", (0 * audio, audio, -audio), [CANCELLED_NOTE]),
        ("late", (audio, late), [CANCELLED_NOTE]),
        ("faint", (faint, np.concatenate((faint[:half], -faint[half:]))), []),
    ):
        file = tmp_path / f"{name}.wav"
        soundfile.write(file, np.stack(channels, 1), RATE, "PCM_16")
        assert heard_mono(file) == notes, name
        found = read_audio(file, RATE)
        if name == "late":  # but for the block of 65,536 that the change lies in
            found, true_part = (
                np.delete(x, slice(half - 65536, half + 65536)) for x in (found, true)
            )
            assert np.array_equal(found, true_part)
        elif name == "silent first":
            assert np.array_equal(found, true)
    part = read_excerpt(tmp_path / "silent first.wav", 1.0, 1.0, RATE)
    assert np.array_equal(part, true[RATE : 2 * RATE])


def heard_mono(path: Path) -> list[str]:
    stream = AudioStream(path, RATE)
    for _ in stream:
        pass
    return stream.notes


def test_values_that_are_not_finite_are_their_own_error(tmp_path: Path, tune) -> None:
    audio = tune(0, 3.0, RATE)
    audio[RATE] = np.nan
    soundfile.write(tmp_path / "a.wav", audio, RATE, "FLOAT")
    with pytest.raises(UnscorableError, match=r"from second 1\.000: holds values"):
        read_audio(tmp_path / "a.wav")


def test_names_that_are_not_utf8(tmp_path: Path, tune) -> None:
    audio = np.round(30000 * tune(0, 1.0, RATE)).astype(np.int16)
    for content, kind in ((b"caf\xe9.wav", "WAV"), (b"\xff.flac", "FLAC")):
        name = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + content))
        soundfile.write(os.fsencode(name), audio, RATE, "PCM_16", format=kind)
    files, other = list_audio(tmp_path)
    assert len(files) == 2 and not other
    assert np.array_equal(*[read_audio(file, RATE) for file in files])


def test_linked_folders_are_followed_once(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "b").mkdir(parents=True)
    (tmp_path / "far").mkdir()
    for place in (root / "b" / "x.wav", tmp_path / "far" / "y.wav"):
        place.write_bytes(b"?")
    (root / "a").symlink_to(root / "b")  # before its target in order, and yet the target's name
    (root / "far").symlink_to(tmp_path / "far")
    (root / "b" / "loop").symlink_to(root)
    (root / "broken").symlink_to(tmp_path / "none")
    files, other = list_audio(root)
    assert [str(path.relative_to(root)) for path in files] == ["b/x.wav", "far/y.wav"]
    assert [path.name for path in other] == ["broken"]


def test_headers_are_parsed() -> None:
    assert (
        id3_size(ID3) == len(ID3) and id3_size(b"ID3") == 0 and id3_size(b"ID3\4\0\0\xff000") == 0
    )
    assert mp3_frame(b"\xff\xfb\x90\x00") == (417, (3, 44100, 1152))
    assert mp3_frame(b"\xff\xfb\x92\x00") == (418, (3, 44100, 1152))
    assert mp3_frame(b"\xff\xf3\x80\x00") == (208, (2, 22050, 576))
    for bad in (b"\xff\xd8\xff\xe0", b"\xff\xfb\xf0\x00", b"\xff\xfb\x9c\x00", b"\xff\xfb"):
        assert mp3_frame(bad) is None


def test_a_window_is_a_file_of_its_own(tmp_path: Path) -> None:
    file = written(tmp_path / "x", bytes(range(100)))
    with Window(file.open("rb"), Part(10, 20, b"ab")) as window:
        assert window.read() == b"ab" + bytes(range(10, 20))
        assert window.seek(-3, os.SEEK_END) == 9 and window.read(99) == bytes([17, 18, 19])
        window.seek(1)
        assert window.read(3) == b"b" + bytes([10, 11]) and window.tell() == 4


def test_no_audio_has_no_kind(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name, content in (
        ("empty", b""),
        ("text", b"hello " * 1000),
        ("zeros", bytes(10000)),
        ("noise", rng.bytes(200000)),
        ("picture", b"\xff\xd8\xff\xe0" + rng.bytes(5000)),
        ("tag", b"ID3"),
    ):
        assert read_layout(written(tmp_path / name, content)).kind is None, name


def test_a_rate_below_nothing_is_refused(tmp_path: Path, tune) -> None:
    pytest.importorskip("av", reason='pip install "longseq[audio-formats]"')
    content = bytearray(encoded(tmp_path, tune(0, 1.0, RATE), "OGG", "VORBIS"))
    assert content[29:35] == b"vorbis" and int.from_bytes(content[40:44], "little") == RATE
    content[40:44], content[22:26] = (0x98D73880).to_bytes(4, "little"), bytes(4)
    content[22:26] = ogg_sum(bytes(content[:58])).to_bytes(4, "little")  # the first page
    file = written(tmp_path / "odd.ogg", bytes(content))
    for read in (audio_info, read_audio):
        with pytest.raises(DataError, match="no sample rate or channels"):
            read(file)


@pytest.mark.parametrize(("subtype", "rate"), [("VORBIS", 44100), ("OPUS", 48000)])
def test_lost_and_broken_pages_are_named(subtype: str, rate: int, tmp_path: Path, tune) -> None:
    whole = encoded(tmp_path, tune(0, 20.0, rate), "OGG", subtype, rate)
    starts = [i for i in range(len(whole)) if whole[i : i + 5] == b"OggS\0"]
    assert len(starts) > 8
    middle, after = starts[6], starts[7]
    for name, content, said in [
        ("whole", whole, None),
        ("tagged", whole + b"TAG" + bytes(125), None),
        ("lost", whole[:middle] + whole[after:], "1 page is"),
        ("two", whole[: starts[5]] + whole[after:], "2 pages are"),
        ("flipped", whole[: after - 9] + bytes([whole[after - 9] ^ 4]) + whole[after - 8 :], "1"),
        ("head", whole[: middle + 26] + b"\xff" + whole[middle + 27 :], "1 page is"),
        ("zeros", whole[:middle] + bytes(after - middle) + whole[after:], "1 page is"),
        ("last", whole[:-9] + bytes([whole[-9] ^ 4]) + whole[-8:], "1 page is"),
        ("joined", whole[:middle] + whole[after:] + whole, "1 page is"),
    ]:
        file = written(tmp_path / f"{name}.ogg", content)
        notes = [note for note in audio_info(file).notes if "lost or broken" in note]
        assert len(notes) == (said is not None), (name, notes)
        if said:
            place = float(notes[0].split("from second ")[1].split()[0])
            assert f"is damaged: {said}" in notes[0]
            assert 0 < place <= 20, (name, notes)
        assert len(read_layout(file).parts) == (2 if name == "joined" else 1)
    cut = written(tmp_path / "cut.ogg", whole[: middle + 40])
    assert audio_info(cut).notes == ("is truncated: its end is missing",)


def test_lost_pages_of_an_unknown_codec_are_told_by_their_place(tmp_path: Path) -> None:
    def page(number: int) -> bytes:
        made = b"OggS\0" + bytes([2 * (number == 0)]) + bytes(8) + b"\7\0\0\0"
        made += number.to_bytes(4, "little") + bytes(4) + b"\1\5hello"
        return made[:22] + ogg_sum(made).to_bytes(4, "little") + made[26:]

    pages = [page(number) for number in range(6)]
    assert checksum(pages[5]) == int.from_bytes(pages[5][22:26], "little")
    assert read_layout(written(tmp_path / "all.ogg", b"".join(pages))).notes == ()
    again = b"".join([*pages[:4], pages[2], *pages[4:]])
    twice = f"is damaged: 1 page stands twice, from byte {4 * len(pages[0])} on"
    assert read_layout(written(tmp_path / "again.ogg", again)).notes == (twice,)
    some = b"".join([pages[0], pages[1], pages[4], pages[5]])
    lost = f"is damaged: 2 pages are lost or broken, from byte {2 * len(pages[0])} on"
    assert read_layout(written(tmp_path / "some.ogg", some)).notes == (lost,)


@pytest.mark.parametrize(("subtype", "rate"), [("VORBIS", 44100), ("OPUS", 48000)])
def test_pages_that_stand_twice_and_bytes_between_pages_are_named(
    subtype: str, rate: int, tmp_path: Path, tune
) -> None:
    whole = encoded(tmp_path, tune(0, 20.0, rate), "OGG", subtype, rate)
    starts = [i for i in range(len(whole)) if whole[i : i + 5] == b"OggS\0"]
    middle, after = starts[6], starts[7]
    page, junk = whole[middle:after], b"OggS junk" * 50
    one, again = "1 page stands twice", "3 pages stand twice"
    between = "450 bytes between pages belong to none"
    at = second_of(whole[: starts[5]], rate), second_of(whole[:after], rate)
    for name, content, said in [
        ("twice", whole[:after] + page + whole[after:], ((one, at[1]),)),
        ("head twice", whole[: starts[1]] + whole, ((one, 0.0),)),
        # A download that went on too early.
        (
            "early",
            whole[: starts[9]] + whole[middle:],
            ((again, second_of(whole[: starts[9]], rate)),),
        ),
        ("junk", whole[:after] + junk + whole[after:], ((between, at[1]),)),
        (
            "both",
            whole[:after] + junk + page + whole[after:],
            ((one, at[1]), (between, at[1])),
        ),
        ("lost", whole[:middle] + junk + whole[after:], (("1 page is lost or broken", None),)),
        ("tagged", whole + b"TAG" + bytes(125), ()),
        ("chain", whole + whole, ()),
        ("moved", moved(whole[:after] + page, 36000 * rate), ((one, None),)),
        ("later", whole + whole[:after] + junk + whole[after:], ((between, 20 + at[1]),)),
    ]:
        notes = read_layout(written(tmp_path / f"{name}.ogg", content)).notes
        found = [note for note in notes if note.startswith("is damaged: ")]
        parts = found[0].removeprefix("is damaged: ").split("; ") if found else []
        assert [part.split(",")[0] for part in parts] == [what for what, _ in said], (name, notes)
        for part, (_, second) in zip(parts, said):
            place = float(part.split("from second ")[1].split()[0])
            assert place <= 40 and (second is None or place == pytest.approx(second, abs=0.06))


def second_of(pages: bytes, rate: int) -> float:
    """Returns where the last packet that ends in some pages ends, by their positions."""
    places = [i for i in range(len(pages)) if pages[i : i + 5] == b"OggS\0"]
    heard = (int.from_bytes(pages[i + 6 : i + 14], "little", signed=True) for i in places)
    return max(heard) / rate


def moved(content: bytes, samples: int) -> bytes:
    """Returns pages whose positions, but for those of heads, are so much later."""
    places = [i for i in range(len(content)) if content[i : i + 5] == b"OggS\0"]
    made = b""
    for start, end in zip(places, [*places[1:], len(content)]):
        page = content[start:end]
        position = int.from_bytes(page[6:14], "little", signed=True)
        if position > 0:
            page = page[:6] + (position + samples).to_bytes(8, "little") + page[14:]
            page = page[:22] + bytes(4) + page[26:]
            page = page[:22] + ogg_sum(page).to_bytes(4, "little") + page[26:]
        made += page
    return made
