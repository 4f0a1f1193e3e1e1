"""Labelled folders: splits by song, held-out methods, batches by step, and folders that cannot be
used."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st

from longseq.audio.data.folder import list_recordings, split_recordings, split_songs
from longseq.audio.data.module import EvaluationClips, SongData, SongReader, windows
from longseq.core.errors import ConfigError, DataError


def data(source, **kwargs) -> SongData:
    defaults = {"clip_seconds": 1.0, "eval_seconds": 1.0, "batch_size": 4, "steps_per_epoch": 3}
    return SongData(str(source), **{**defaults, **kwargs})


@given(
    count=st.integers(3, 40),
    seed=st.integers(0, 99),
    valid=st.floats(0.0, 0.4),
    test=st.floats(0.0, 0.3),
)
def test_every_song_is_in_one_part(count: int, seed: int, valid: float, test: float) -> None:
    songs = [f"s{i}" for i in range(count)] * 2
    parts = split_songs(songs, valid, test, seed)
    assert sorted(name for part in parts.values() for name in part) == sorted(set(songs))
    assert (
        parts["train"] and bool(parts["valid"]) == (valid > 0) and bool(parts["test"]) == (test > 0)
    )
    assert parts == split_songs(songs[::-1], valid, test, seed)


def test_versions_of_a_song_never_leak(make_songs) -> None:
    found = data(make_songs(8), holdout=["ring"])
    songs = {part: {item.song for item in items} for part, items in found.parts.items()}
    assert not songs["train"] & songs["test"] and not songs["train"] & songs["valid"]
    assert not songs["valid"] & songs["test"]
    methods = {part: {item.method for item in items} for part, items in found.parts.items()}
    assert methods == {
        "train": {"", "noise"},
        "valid": {"", "noise"},
        "test": {"", "noise", "ring"},
    }
    assert found.methods == ["noise"]
    assert sum(map(len, found.songs.values())) == 8


def test_both_layouts_of_folders_are_the_same(make_songs) -> None:
    root = make_songs(4)
    nested, bad = list_recordings(root)
    for method in ("noise", "ring"):
        (root / "fake" / method).rename(root / method)
    (root / "fake").rmdir()
    flat, _ = list_recordings(root)
    assert [(item.song, item.method) for item in nested] == [
        (item.song, item.method) for item in flat
    ]
    assert len(flat) == 12 and not bad


def test_batches_are_a_function_of_the_step(make_songs) -> None:
    root = make_songs(6)
    first, second = (data(root, cache_mb=mb).train_dataloader().dataset for mb in (0, 100))
    for step in (0, 7):
        a, b = first[step], second[step]
        assert torch.equal(a["target"], torch.tensor([0.0, 1.0, 0.0, 1.0])) and a[
            "audio"
        ].shape == (4, 16000)
        assert torch.equal(a["audio"], b["audio"])
    assert not torch.equal(first[0]["audio"], first[1]["audio"])


def test_a_pair_is_the_same_place_of_the_same_song(make_songs) -> None:
    batch = data(make_songs(6), holdout=["ring"], batch_size=8).train_dataloader().dataset[0]
    real, fake = batch["audio"][::2], batch["audio"][1::2]
    for a, b in zip(real, fake):
        assert np.corrcoef(a, b)[0, 1] > 0.8  # noise was added to the very same samples


def test_every_window_is_evaluated_once_whatever_the_batch_size(make_songs) -> None:
    found = data(make_songs(6, seconds=2.5))
    parts = found.parts["test"]
    seen = []
    for size in (1, 5):
        clips = EvaluationClips(parts, SongReader(16000), 1.0, size)
        rows = [
            (int(i), x.sum().item())
            for k in range(len(clips))
            for i, x in zip(clips[k]["recording"], clips[k]["audio"])
        ]
        seen.append(sorted(rows))
    assert seen[0] == seen[1] and len(seen[0]) == 2 * len(parts)
    assert list(windows(parts[0], 30.0)) == [(0.0, 2.5)]


def test_two_workers_give_the_same_batches(make_songs) -> None:
    root = make_songs(4, seconds=1.5)
    batches = [list(data(root, num_workers=n).train_dataloader()) for n in (0, 2)]
    assert len(batches[0]) == 3
    assert all(torch.equal(a["audio"], b["audio"]) for a, b in zip(*batches))


def test_bad_files_are_counted_and_left_out(make_songs, capsys) -> None:
    root = make_songs(6)
    (root / "real" / "broken.flac").write_bytes(b"fLaC")
    (root / "real" / "cover.jpg").write_bytes(b"\xff\xd8 a picture")
    (root / "fake" / "noise" / "empty.wav").touch()
    found = data(root)
    assert "broken" not in {item.song for items in found.parts.values() for item in items}
    assert "3 of 21 files cannot be used" in capsys.readouterr().err


def test_unusable_folders_are_one_line(tmp_path: Path, make_songs) -> None:
    for name, message in (("none", "no such folder"), ("bare", "has no folder real/")):
        if name == "bare":
            (tmp_path / name).mkdir()
        with pytest.raises(DataError, match=message):
            _ = data(tmp_path / name).parts
    root = make_songs(3, methods=())
    with pytest.raises(DataError, match="no synthetic recording"):
        list_recordings(root)
    root = make_songs(4, name="other")
    with pytest.raises(ConfigError, match="did you mean 'noise'"):
        _ = data(root, holdout=["nois"]).parts
    with pytest.raises(ConfigError, match="leaves no method"):
        _ = data(root, holdout=["noise", "ring"]).parts
    with pytest.raises(ConfigError, match="batch_size must be even"):
        data(root, batch_size=3).train_dataloader()
    with pytest.raises(DataError, match="too few"):
        _ = data(make_songs(2, name="two")).parts
    with pytest.raises(ConfigError, match="leave songs"):
        _ = data(root, valid_fraction=0.7, test_fraction=0.3).parts
    found, _ = list_recordings(root)
    with pytest.raises(DataError, match="have no synthetic version"):
        split_recordings(
            [item for item in found if item.song == "song0" or not item.fake], 0.4, 0.3, 0
        )


def test_other_sample_rates_are_resampled(make_songs) -> None:
    root = make_songs(4, rate=22050, seconds=2.0)
    batch = data(root).train_dataloader().dataset[0]
    assert batch["audio"].shape == (4, 16000) and batch["audio"].std() > 0.01
    info = soundfile.info(str(next((root / "real").iterdir())))
    assert info.samplerate == 22050
