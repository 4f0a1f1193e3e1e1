"""The readers that are fuzzed, each with small good files to begin with."""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Target:
    """A reader.

    Args:
        name: of the target.
        suffix: of its files.
        make: returns the content of good files, given a folder to make them in.
        load: reads a file, all of it.
    """

    name: str
    suffix: str
    make: Callable[[Path], list[bytes]]
    load: Callable[[Path], object]

    def warm(self) -> None:
        """Reads nothing, so that a process does not count imports as the first input's work."""
        import tempfile

        with tempfile.TemporaryDirectory() as name:
            for content in self.seeds(Path(name)):
                self.read(self.place(Path(name), content))

    def seeds(self, folder: Path) -> list[bytes]:
        """Returns the good files."""
        return self.make(folder)

    def place(self, folder: Path, content: bytes) -> Path:
        """Writes one input and returns its path."""
        path = folder / f"input{self.suffix}"
        path.write_bytes(content)
        return path

    def read(self, path: Path) -> object:
        """Reads it."""
        os.environ["LONGSEQ_CACHE_DIR"] = str(path.parent / "cache")
        try:
            return self.load(path)
        finally:
            shutil.rmtree(path.parent / "cache", ignore_errors=True)


def _texts(*texts: str) -> Callable[[Path], list[bytes]]:
    def make(_folder: Path) -> list[bytes]:
        return [text.encode() for text in texts] + [gzip.compress(texts[0].encode(), mtime=0)]

    return make


def _genome(path: Path) -> object:
    from longseq.genomics.data.fasta import Genome

    genome = Genome(path)
    for name, length in genome.records.items():
        genome.fetch(name, 0, min(length, 100))
    genome.validate()
    return genome.records


def _bed(path: Path) -> object:
    from longseq.genomics.data.bed import read_bed

    return read_bed(path)


def _vcf(path: Path) -> object:
    from longseq.genomics.data.vcf import read_variants

    return list(read_variants(path))


def _genbank(path: Path) -> object:
    from longseq.genomics.data.genbank import read_genbank

    return read_genbank(path)


def _panel(path: Path) -> object:
    from longseq.timeseries.data.frames import read_panel

    return read_panel(path)


def _parquet(_folder: Path) -> list[bytes]:
    import pandas as pd

    found = []
    for index in (pd.date_range("2020-01-01", periods=40, freq="D"), range(40)):
        frame = pd.DataFrame({"unique_id": ["a"] * 20 + ["b"] * 20, "ds": list(index)})
        stream = io.BytesIO()
        frame.assign(y=[float(i) for i in range(40)]).to_parquet(stream)
        found.append(stream.getvalue())
    return found


def _images(_folder: Path) -> list[bytes]:
    import numpy as np
    from PIL import Image

    found, pixels = [], np.arange(12 * 10 * 3, dtype=np.uint8).reshape(12, 10, 3)
    for kind in ("PNG", "JPEG", "BMP", "GIF", "WEBP", "PPM", "TIFF"):
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, kind)
        found.append(stream.getvalue())
    stream = io.BytesIO()
    np.save(stream, pixels)
    return [*found, stream.getvalue()]


def _image(path: Path) -> object:
    from longseq.vision.data.images import decode
    from longseq.vision.data.pixels import Reading

    return decode(path.read_bytes(), Reading(), path)


def _idx_files(folder: Path) -> list[bytes]:
    import numpy as np

    from longseq.vision.data.idx import write_idx

    found = []
    for shape in ((5, 4, 3), (7,)):
        array = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
        write_idx(folder / "seed.idx", array)
        found.append((folder / "seed.idx").read_bytes())
    return [*found, gzip.compress(found[0], mtime=0)]


def _idx(path: Path) -> object:
    from longseq.vision.data.idx import read_idx

    return read_idx(path)


def _zips(folder: Path) -> list[bytes]:
    image = _images(folder)[0]
    found = []
    for kind in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w", kind) as archive:
            for name in ("a/1.png", "a/2.png", "b/1.png"):
                archive.writestr(zipfile.ZipInfo(name), image, kind)
        found.append(stream.getvalue())
    return found


def _zip(path: Path) -> object:
    from longseq.vision.data.images import FileImages, is_image, list_files
    from longseq.vision.data.pixels import Reading

    names = [name for name in list_files(path) if is_image(name)]
    images = FileImages(path, names, [0] * len(names), ["a"], Reading())
    return [images.stored(index) for index in range(len(names))]


def _sounds(folder: Path) -> list[bytes]:
    import numpy as np
    import soundfile

    wave, found = np.sin(np.arange(2000) / 9).astype(np.float32), []
    for kind in ("wav", "flac", "ogg", "mp3", "aiff"):
        soundfile.write(folder / f"seed.{kind}", wave, 16000)
        found.append((folder / f"seed.{kind}").read_bytes())
    return found


def _audio(path: Path) -> object:
    from longseq.audio.data.reading import audio_info, read_audio

    audio_info(path)
    return read_audio(path, max_seconds=5)


def _field(path: Path) -> object:
    from longseq.weather.data.source import read_field

    return read_field(path)


def _data_set() -> Any:
    import numpy as np
    import xarray as xr

    times = (
        "time",
        np.arange(14) * 365.0,
        {"units": "days since 2000-01-01", "calendar": "noleap"},
    )
    return xr.Dataset(
        {"tas": (("time", "lat", "lon"), np.ones((14, 3, 4), np.float32) + 280, {"units": "K"})},
        {
            "time": times,
            "lat": ("lat", [-30.0, 0.0, 30.0], {"units": "degrees_north"}),
            "lon": ("lon", [0.0, 90.0, 180.0, 270.0], {"units": "degrees_east"}),
        },
    )


def _netcdf_files(folder: Path) -> list[bytes]:
    found = []
    for engine in ("h5netcdf", "scipy"):
        _data_set().to_netcdf(folder / "seed.nc", engine=engine)
        found.append((folder / "seed.nc").read_bytes())
    return found


def _grib_files(folder: Path) -> list[bytes]:
    """Two months of a small grid in each edition."""
    import eccodes
    import numpy as np

    grid = {
        "Ni": 6,
        "Nj": 3,
        "latitudeOfFirstGridPointInDegrees": 30.0,
        "latitudeOfLastGridPointInDegrees": -30.0,
        "longitudeOfFirstGridPointInDegrees": 0.0,
        "longitudeOfLastGridPointInDegrees": 300.0,
        "iDirectionIncrementInDegrees": 60.0,
        "jDirectionIncrementInDegrees": 30.0,
    }
    found = []
    for edition in (1, 2):
        messages = []
        for month in (1, 2):
            handle = eccodes.codes_grib_new_from_samples(f"regular_ll_sfc_grib{edition}")
            for key, value in {**grid, "dataDate": 20000001 + 100 * month}.items():
                eccodes.codes_set(handle, key, value)
            eccodes.codes_set(handle, "shortName", "2t")
            eccodes.codes_set_values(handle, np.linspace(270.0, 290.0, 18))
            messages.append(eccodes.codes_get_message(handle))
            eccodes.codes_release(handle)
        found.append(b"".join(messages))
    return found


_FILE, _TEXT = b"\x1e\x1e\x1e", b"\x1f\x1f\x1f"


def _zarr_stores(folder: Path) -> list[bytes]:
    found = []
    for version in (2, 3):
        store = folder / f"seed{version}.zarr"
        _data_set().to_zarr(store, zarr_format=version, consolidated=False)
        files = {
            str(file.relative_to(store)): file.read_bytes()
            for file in sorted(store.rglob("*"))
            if file.is_file()
        }
        found.append(_FILE.join(name.encode() + _TEXT + text for name, text in files.items()))
    return found


def _zarr(path: Path) -> object:
    """A store is one input: names and contents of its files, one after the other."""
    store = path.parent / "store.zarr"
    shutil.rmtree(store, ignore_errors=True)
    store.mkdir()
    for part in path.read_bytes().split(_FILE):
        name, _, content = part.partition(_TEXT)
        text = "".join(c for c in name.decode("ascii", "replace") if c.isalnum() or c in "._/")
        file = store / text.replace("..", "").lstrip("/")[:80]
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        except OSError:
            continue  # two names that exclude each other
    return _field(store)


def _module() -> Any:
    from torch import nn

    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))


def _weights_files(folder: Path) -> list[bytes]:
    from longseq.core.checkpoints.safe import save_weights

    save_weights(folder / "seed.safetensors", _module(), {"d_model": 4, "names": ["a"]})
    return [(folder / "seed.safetensors").read_bytes()]


def _weights(path: Path) -> object:
    from longseq.core.checkpoints.safe import load_weights

    return load_weights(path, _module())


def _task() -> Any:
    from longseq.genomics.task import CausalLanguageModel

    return CausalLanguageModel(d_model=4, n_layers=1, mixer="s4d")


def _checkpoint_files(folder: Path) -> list[bytes]:
    import torch

    task = _task()
    content = {
        "state_dict": task.state_dict(),
        "hyper_parameters": dict(task.hparams),
        "facts": {},
        "global_step": 3,
        "epoch": 0,
    }
    torch.save(content, folder / "seed.ckpt")
    return [(folder / "seed.ckpt").read_bytes()]


def _checkpoint(path: Path) -> object:
    from longseq.core.training.loading import load_task

    return load_task(path)


def _yaml(path: Path) -> object:
    from longseq.core.shell.arguments import (
        configured,
        find_checkpoint,
        named_sections,
        output_folder,
    )

    files = [str(path)]
    found = [find_checkpoint([], files), output_folder([], files), named_sections([], files)]
    return json.dumps([str(one) for one in [*found, configured(files, "model")]])


_FASTA = ">a first\nACGTNacgtACGT\nACGT\n>b\nGGGCCC\n"
_GFF = "##gff-version 3\na\t.\tgene\t1\t9\t.\t+\t.\tID=x\n##FASTA\n>a\nACGTACGTACGT\n"
_GENBANK = (
    "LOCUS       X                 20 bp    DNA     circular BCT 01-JAN-2000\n"
    "DEFINITION  test.\nACCESSION   X\nVERSION     X.1\nFEATURES             Location/Qualifiers\n"
    "     source          1..20\n"
    '     CDS             complement(join(3..8,12..17))\n                     /gene="g"\n'
    "                     /codon_start=2\nORIGIN\n        1 acgtacgtac gtacgtacgt\n//\n"
)
_LONG = "unique_id,ds,y\n" + "".join(
    f"{name},2020-01-{day:02},{day}.5\n" for name in "ab" for day in range(1, 9)
)
_WIDE = "date;p;q\n" + "".join(f"{day:02}.01.2020 10:00;{day},5;{day}\n" for day in range(1, 9))
_STEPS = "ds,p,q\n" + "".join(f"{1_600_000_000 + 3600 * i},{i},{i * 2}\n" for i in range(8))
_VCF = "##fileformat=VCFv4.2\n"
_VCF += "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\na\t3\t.\tG\tT,C\t.\t.\tA=1\n"
_YAML = "model:\n  class_path: x.Y\n  init_args: {d: &a [1, 2], e: *a}\ntrainer:\n  max_steps: 3\n"
_BED = "track name=x\na\t0\t5\tname\t0\t-\nb\t2\t6\n"
TARGETS = {
    target.name: target
    for target in (
        Target("fasta", ".fa", _texts(_FASTA, "@r\nACGT\n+\nIIII\n"), _genome),
        Target("gff", ".gff", _texts(_GFF), _genome),
        Target("bed", ".bed", _texts(_BED), _bed),
        Target("vcf", ".vcf", _texts(_VCF), _vcf),
        Target("genbank", ".gb", _texts(_GENBANK), _genbank),
        Target("csv", ".csv", lambda _folder: _texts(_LONG, _WIDE, _STEPS)(_folder)[:3], _panel),
        Target("parquet", ".parquet", _parquet, _panel),
        Target("image", ".bin", _images, _image),
        Target("idx", ".idx", _idx_files, _idx),
        Target("zip", ".zip", _zips, _zip),
        Target("audio", ".bin", _sounds, _audio),
        Target("netcdf", ".nc", _netcdf_files, _field),
        Target("grib", ".grib", _grib_files, _field),
        Target("zarr", ".bin", _zarr_stores, _zarr),
        Target("safetensors", ".safetensors", _weights_files, _weights),
        Target("checkpoint", ".ckpt", _checkpoint_files, _checkpoint),
        Target("yaml", ".yaml", lambda _folder: [_YAML.encode()], _yaml),
    )
}
