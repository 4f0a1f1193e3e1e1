"""Readers that a plug-in registers by suffix, in every domain: used, named when they fail."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pytest

from longseq.core.errors import ConfigError, DataError
from longseq.core.formats import Formats


@pytest.fixture
def added():
    """Adds readers for a test."""
    done = []

    def add(formats: Formats, suffix: str, reader) -> None:
        formats.add(suffix, reader)
        done.append((formats, suffix))

    yield add
    for formats, suffix in done:
        formats._things.pop(suffix)


def test_the_longest_suffix_wins_and_others_are_refused():
    formats = Formats("table")
    formats.add(".ZARR", lambda path: "zarr")
    formats.add(".ome.zarr", lambda path: "ome")
    assert (
        formats.suffix_of("a/b.ome.zarr") == ".ome.zarr" and formats.suffix_of("b.Zarr") == ".zarr"
    )
    assert formats.suffix_of("zarr") is None and formats.suffix_of("a.zarr/b") is None
    assert formats.read("x.ome.zarr", "x") == "ome" and formats.identity("x.csv") == ""
    with pytest.raises(ConfigError, match="is registered already"):
        formats.add(".zarr", len)
    for bad in ("jsonl", ".", "", "./x"):
        with pytest.raises(ConfigError, match="is no suffix"):
            formats.add(bad, len)


def test_an_error_of_the_reader_names_the_file_and_its_line():
    formats = Formats("table")

    def read(path):
        raise KeyError("speed")

    formats.add(".log", read)
    with pytest.raises(DataError, match=r"a\.log.*reader of \.log files failed: KeyError.*line"):
        formats.read("a.log", "a.log")
    formats.add(".end", lambda path: sys.exit(4))
    with pytest.raises(DataError, match=r"failed: it ends the program with sys\.exit\(4\)"):
        formats.read("a.end", "a.end")


def test_time_series(tmp_path: Path, added):
    from longseq.timeseries import FORMATS
    from longseq.timeseries.data.frames import read_frame

    file = tmp_path / "a.jsonl"
    file.write_text("\n".join(json.dumps({"ds": f"2024-01-0{1 + i}", "y": i}) for i in range(5)))
    with pytest.raises(DataError, match=r"unknown type \.jsonl"):
        read_frame(file)
    added(FORMATS, ".jsonl", lambda path: pd.read_json(path, lines=True))
    assert read_frame(file)[0]["y"].tolist() == [0, 1, 2, 3, 4]
    added(FORMATS, ".polar", lambda path: pl.DataFrame({"ds": [1, 2], "y": [3.0, 4.0]}))
    (tmp_path / "a.polar").write_text("1")
    assert read_frame(tmp_path / "a.polar")[0]["y"].tolist() == [3, 4]
    added(FORMATS, ".list", lambda path: [1, 2])
    (tmp_path / "a.list").write_text("1")
    with pytest.raises(DataError, match="returned list, not a frame of pandas or polars"):
        read_frame(tmp_path / "a.list")


def test_genomes(tmp_path: Path, added):
    from longseq.genomics import FORMATS, Genome

    file = tmp_path / "a.2col"
    file.write_text("one ACGTN\ntwo GG-GG\n")
    added(FORMATS, ".2col", lambda path: (line.split() for line in path.open()))
    with pytest.warns(UserWarning, match="1 alignment dashes"):
        genome = Genome(file)
    assert genome.records == {"one": 5, "two": 4}
    file.write_text("one ACGT\nbroken\n")
    with pytest.raises(DataError, match=r"reader of \.2col files failed"):
        Genome(file)


def test_images(tmp_path: Path, added):
    from longseq.vision import FORMATS
    from longseq.vision.data.images import decode, is_image
    from longseq.vision.data.pixels import Reading

    content = np.arange(12, dtype=np.uint8).tobytes()
    assert not is_image("a.raw")
    added(FORMATS, ".raw", lambda content: np.frombuffer(content, np.uint8).reshape(3, 4))
    assert is_image("b/a.RAW")
    reading = Reading(channels=1)
    assert decode(content, reading, "a.raw").flatten().tolist() == list(range(12))
    assert decode(content, reading, "a.zip", "x/a.raw").shape == (1, 3, 4)
    with pytest.raises(DataError, match=r"reader of \.raw files failed: ValueError"):
        decode(content[:5], reading, "a.raw")


def test_sounds(tmp_path: Path, added):
    from longseq.audio import FORMATS
    from longseq.audio.data.listing import list_audio
    from longseq.audio.data.reading import AudioStream, audio_info

    file = tmp_path / "a.f32"
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, 70_000).astype(np.float32)
    file.write_bytes(samples.tobytes())
    added(FORMATS, ".f32", lambda path: (np.fromfile(path, np.float32)[:, None], 8000))
    info = audio_info(file)
    assert (info.sample_rate, info.channels, info.seconds) == (8000, 1, 8.75) and not info.notes
    heard = np.concatenate([np.asarray(block).reshape(-1) for block in AudioStream(file, 8000)])
    np.testing.assert_array_equal(heard, samples)
    assert file in list_audio(tmp_path)[0]


def test_fields(tmp_path: Path, added):
    xr = pytest.importorskip("xarray", reason="the weather extra is not installed")
    from longseq.weather import FORMATS
    from longseq.weather.data.cf import open_dataset

    file = tmp_path / "a.field"
    file.write_text("1 2 3")

    def read(path):
        return xr.Dataset({"t": ("x", np.fromstring(path.read_text(), sep=" "))})

    with pytest.raises(DataError, match="is not a NetCDF file"), open_dataset(file):
        pass
    added(FORMATS, ".field", read)
    with open_dataset(file) as data:
        assert data["t"].values.tolist() == [1, 2, 3]
