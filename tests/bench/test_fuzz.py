"""Every reader against damaged files: a small run of ``make fuzz``, and the harness itself."""

from __future__ import annotations

import gzip
import io
import os
import random
import signal
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import xarray as xr
from PIL import Image
from safetensors.torch import save

from longseq.bench import fuzz
from longseq.bench.fuzz_inside import _hdf5_sum, flac_frames, hdf5_blocks, inside
from longseq.bench.fuzz_targets import TARGETS, Target
from longseq.core.errors import DataError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits by Linux's rules")


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_a_reader_answers_with_content_or_one_line(name: str) -> None:
    outcome = fuzz.run(TARGETS[name], 25)
    assert outcome.counts["read"] + outcome.counts["refused"] == 25, (outcome.counts, outcome.first)


def _behave(path: Path) -> object:
    match path.read_bytes()[:1]:
        case b"a":
            raise DataError("a line", path=path)
        case b"b":
            raise KeyError("foreign")
        case b"c":
            os.kill(os.getpid(), signal.SIGSEGV)
        case b"d":
            return bytearray(2 << 30)
        case b"e":
            while True:
                pass
    return path


def test_faults_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    target = Target("x", ".bin", lambda _folder: [b"z"], _behave)
    monkeypatch.setattr(fuzz, "content_of", lambda _target, _seeds, number: b"zabcde"[number:])
    monkeypatch.setattr(fuzz, "SECONDS", 0.2)
    outcome = fuzz.run(target, 6)
    assert outcome.counts["read"] == outcome.counts["refused"] == 1 and outcome.faults == 4
    found = {name.partition(" at ")[0]: number for name, number in outcome.first.items()}
    assert found == {
        "read": 0,
        "refused": 1,
        "KeyError": 2,
        f"crash by signal {int(signal.SIGSEGV)}": 3,
        "out of memory": 4,
        "hang": 5,
    }


def test_inputs_are_the_same_each_time() -> None:
    target, seeds = TARGETS["bed"], [b"a\t0\t5\n"]
    first = [fuzz.content_of(target, seeds, number) for number in range(50)]
    assert first == [fuzz.content_of(target, seeds, number) for number in range(50)]
    assert len(set(first)) > 40


def _packed(kind: str, tmp_path: Path) -> bytes:
    stream = io.BytesIO()
    if kind == "gzip":
        return gzip.compress(b"ACGT" * 50)
    if kind == "zip":
        with zipfile.ZipFile(stream, "w") as file:
            file.writestr("a.txt", b"ACGT" * 50)
            file.writestr("b.txt", b"TTTT" * 50)
        return stream.getvalue()
    if kind == "png":
        Image.fromarray(np.arange(300, dtype=np.uint8).reshape(10, 10, 3)).save(stream, "PNG")
        return stream.getvalue()
    if kind == "ogg":
        soundfile.write(stream, np.zeros(800, np.float32), 8000, format="OGG")
        return stream.getvalue()
    return save({"a": torch.zeros(3)})


@pytest.mark.parametrize("kind", ["gzip", "zip", "png", "ogg", "safetensors"])
def test_damage_behind_a_checksum(kind: str, tmp_path: Path) -> None:
    good = _packed(kind, tmp_path)
    # Packed again without a fault it is the good file: sums and lengths are written right.
    for number in range(6):
        same = inside(good, random.Random(number), lambda part: part)
        assert same is not None
        if kind in ("ogg", "safetensors"):
            assert same == good
        elif kind == "png":
            assert np.array_equal(Image.open(io.BytesIO(same)), Image.open(io.BytesIO(good)))
        elif kind == "zip":
            assert zipfile.ZipFile(io.BytesIO(same)).testzip() is None
    changed = [inside(good, random.Random(n), lambda part: part[:-1] + b"!") for n in range(6)]
    if kind == "zip":
        files = [zipfile.ZipFile(io.BytesIO(one)) for one in changed if one]
        assert all(file.testzip() is None for file in files)
        assert {any(file.read(n).endswith(b"!") for n in file.namelist()) for file in files} == {
            True
        }
    elif kind == "gzip":
        assert gzip.decompress(changed[0] or b"").endswith(b"!")
    else:
        assert all(one is not None and one != good for one in changed)


def test_what_is_not_packed_has_no_inside() -> None:
    for content in (b"", b">a\nACGT", b"\x1f\x8b broken", b"PK\x03\x04 broken"):
        assert inside(content, random.Random(0), lambda part: part) is None


def test_sums_of_hdf5_and_flac() -> None:
    # The first line of lookup3.c's own self-test.
    assert _hdf5_sum(b"Four score and seven years ago")[::-1].hex() == "17770551"
    assert _hdf5_sum(b"")[::-1].hex() == "deadbeef"


@pytest.mark.parametrize("kind", ["flac", "hdf5"])
def test_damage_in_blocks_with_sums(kind: str, tmp_path: Path) -> None:
    if kind == "flac":
        soundfile.write(tmp_path / "a.flac", np.sin(np.arange(9000) / 9), 8000)
        good, blocks = (tmp_path / "a.flac").read_bytes(), flac_frames
    else:
        data = xr.Dataset({"x": ("t", np.arange(5.0), {f"a{n}": n for n in range(6)})})
        data.to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
        good, blocks = (tmp_path / "a.nc").read_bytes(), hdf5_blocks
    found = blocks(good)
    assert len(found) >= 3
    for number in range(4):
        assert inside(good, random.Random(number), lambda part: part) == good
        changed = inside(good, random.Random(number), lambda part: b"!!" + part[2:])
        assert changed is not None and changed != good and blocks(changed) == found
