"""Labelled folders of songs: ``real/`` and ``fake/<method>/``; a song's versions share a file
stem."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from longseq.audio.data.listing import list_audio
from longseq.audio.data.reading import audio_info
from longseq.core.errors import ConfigError, DataError, did_you_mean

PARTS = ("train", "valid", "test")


@dataclass(frozen=True)
class Recording:
    """One labelled file.

    Args:
        path: the file.
        song: the file's stem; recordings of the same song are versions of the same music.
        method: how it was synthesised; "" for a real recording.
        seconds: duration by its header, s.
    """

    path: Path
    song: str
    method: str
    seconds: float

    @property
    def fake(self) -> bool:
        """Whether it is synthetic."""
        return bool(self.method)


def list_recordings(root: str | Path) -> tuple[list[Recording], list[DataError]]:
    """Lists a labelled folder: ``real/`` beside ``fake/<method>/``, or beside one folder per
    method.

    Args:
        root: the folder.

    Returns:
        The recordings in order, and why other files cannot be used.

    Raises:
        DataError: if there is no real or no synthetic recording.
    """
    folder = Path(root)
    if not folder.is_dir():
        raise DataError("no such folder", path=folder, hint="it must hold real/ and fake/<method>/")
    real = folder / "real"
    if not real.is_dir():
        raise DataError(
            "has no folder real/", path=folder, hint="it must hold real/ and fake/<method>/"
        )
    inside = folder / "fake" if (folder / "fake").is_dir() else folder
    methods = sorted(
        path
        for path in inside.iterdir()
        if path.is_dir() and path != real and not path.name.startswith(".")
    )
    found, bad = [], []
    for where, method in [(real, ""), *((path, path.name) for path in methods)]:
        files, other = list_audio(where)
        bad += [DataError("is no audio", path=path) for path in other]
        for path in files:
            try:
                info = audio_info(path)
            except DataError as error:
                bad.append(error)
                continue
            damage = [note for note in info.notes if note.startswith("is truncated")]
            if damage or not info.seconds:
                bad.append(DataError(damage[0] if damage else "holds no samples", path=path))
                continue
            found.append(Recording(path, path.stem, method, info.seconds))
    for fake, what in (
        (False, "real recording in real/"),
        (True, "synthetic recording in fake/<method>/"),
    ):
        if not any(item.fake is fake for item in found):
            reason = f" ({len(bad)} files cannot be used, the first: {bad[0]})" if bad else ""
            raise DataError(f"has no {what}{reason}", path=folder)
    return found, bad


def split_songs(
    songs: Sequence[str], valid_fraction: float, test_fraction: float, seed: int
) -> dict[str, set[str]]:
    """Divides songs into training, validation and test: every version of a song is in one part
    only.

    Args:
        songs: their names; repetitions count once.
        valid_fraction: share for validation.
        test_fraction: share for the test.
        seed: of the draw.

    Raises:
        ConfigError: for fractions that leave nothing to train on.
        DataError: for too few songs.
    """
    if min(valid_fraction, test_fraction) < 0 or valid_fraction + test_fraction >= 1:
        raise ConfigError(
            f"valid_fraction and test_fraction must be ≥ 0 and leave songs to train on, got "
            f"{valid_fraction} and {test_fraction}"
        )
    names = sorted(set(songs))
    counts = [round(fraction * len(names)) for fraction in (valid_fraction, test_fraction)]
    counts = [max(count, int(f > 0)) for count, f in zip(counts, (valid_fraction, test_fraction))]
    if sum(counts) >= len(names):
        raise DataError(
            f"{len(names)} songs are too few for {counts[0]} of validation and {counts[1]} of test"
        )
    order = np.random.default_rng(seed).permutation(len(names))
    valid, test = order[: counts[0]], order[counts[0] : sum(counts)]
    return {
        "valid": {names[i] for i in valid},
        "test": {names[i] for i in test},
        "train": {names[i] for i in order[sum(counts) :]},
    }


def split_recordings(
    recordings: Sequence[Recording],
    valid_fraction: float,
    test_fraction: float,
    seed: int,
    holdout: Sequence[str] = (),
) -> dict[str, list[Recording]]:
    """Divides recordings by song; held-out methods are in the test part alone.

    Args:
        recordings: of a folder.
        valid_fraction: share of the songs for validation.
        test_fraction: share of the songs for the test.
        seed: of the draw.
        holdout: methods that training and validation never see.

    Raises:
        ConfigError: for an unknown method.
        DataError: if a part would lack real or synthetic recordings.
    """
    methods = {item.method for item in recordings if item.fake}
    for name in holdout:
        if name not in methods:
            raise ConfigError(
                f"no method named {name!r} to hold out; {did_you_mean(name, methods)}"
            )
    if methods and methods <= set(holdout):
        raise ConfigError(f"holding out {', '.join(sorted(methods))} leaves no method to train on")
    songs = split_songs([item.song for item in recordings], valid_fraction, test_fraction, seed)
    parts = {
        part: [
            item
            for item in recordings
            if item.song in songs[part] and (part == "test" or item.method not in holdout)
        ]
        for part in PARTS
    }
    for part, items in parts.items():
        if items and len({item.fake for item in items}) < 2:
            kind = "synthetic" if not items[0].fake else "real"
            raise DataError(
                f"the {part} songs have no {kind} version", hint="choose another data.seed"
            )
    return parts
