"""Zarr stores: which folders are, which codecs may run, and what zeros mean in them."""

from __future__ import annotations

import json
from pathlib import Path
from traceback import walk_tb
from typing import Any

from longseq.core.errors import DataError


def is_zarr(path: Path) -> bool:
    """Returns whether a folder is a Zarr store."""
    return path.is_dir() and any(
        (path / name).exists() for name in ("zarr.json", ".zgroup", ".zmetadata")
    )


_CODECS = {
    *("blosc", "bz2", "gzip", "lz4", "lzma", "zlib", "zstd", "shuffle", "delta", "bitround"),
    *("fixedscaleoffset", "quantize", "astype", "crc32", "crc32c", "adler32", "fletcher32"),
    *("vlen-utf8", "vlen-bytes", "vlen-array", "bytes", "transpose", "sharding_indexed", "base64"),
    *("packbits", "zfpy", "pcodec", "endian"),
}
"""Codecs that only unpack numbers and text. "pickle" runs code; what is not known may."""


def check_codecs(store: Path) -> None:
    """Checks that a Zarr store names no codec but those of ``_CODECS``, before anything is decoded.

    Args:
        store: the folder.

    Raises:
        DataError: naming the array and the codec, or the metadata that cannot be read.
    """
    names = (".zarray", "zarr.json", ".zmetadata")
    for file in sorted(file for name in names for file in store.rglob(name)):
        try:
            if file.stat().st_size > _METADATA_BYTES:
                raise ValueError
            found = _codecs(json.loads(file.read_bytes()))
        except (ValueError, OSError, RecursionError) as error:
            record = str(file.relative_to(store))
            raise DataError("is no Zarr metadata", path=store, record=record) from error
        for codec in sorted(found):
            if codec.removeprefix("numcodecs.").lower() not in _CODECS:
                record = str(file.relative_to(store).parent)
                hint = "write it again with blosc, zstd or gzip"
                message = f"is packed with the codec {codec!r}, which longseq does not run"
                raise DataError(message, path=store, record=record, hint=hint)


def _codecs(metadata: Any) -> set[str]:
    """Returns the names of the codecs in a Zarr array's metadata, wherever they stand."""
    found: set[str] = set()
    rest = [metadata]
    while rest:
        part = rest.pop()
        if isinstance(part, dict):
            for key, value in part.items():
                if key in ("compressor", "filters", "codecs", "index_codecs"):
                    for one in value if isinstance(value, list) else [value]:
                        name = one.get("id", one.get("name")) if isinstance(one, dict) else one
                        found |= set() if name is None else {str(name)}
            rest += part.values()
        elif isinstance(part, list):
            rest += part
    return found


_METADATA_BYTES = 1 << 26


def is_damage(error: ValueError) -> bool:
    """Returns whether a chunk's own bytes are at fault: an error that was raised in the midst of
    Zarr, such as for a chunk of another size than its store says, and not by who asked it.

    Args:
        error: as it was caught.
    """
    names = [frame.f_globals.get("__name__", "") for frame, _ in walk_tb(error.__traceback__)]
    return bool(names) and names[-1].split(".")[0] in ("zarr", "numcodecs")


def zeros_are_values(data: Any, store: Path, how: dict[str, Any]) -> Any:
    """Returns a data set in which zeros are values.

    Zarr's own fill value, with which it fills blocks that nobody wrote, is 0. In format 2 xarray
    takes every fill value for a mark of missing values, and so loses the equator, Greenwich and all
    dry days of stores that others wrote.

    Args:
        data: as xarray opens it.
        store: the folder.
        how: how it was opened.
    """
    import xarray as xr

    coded = {
        name
        for name, own in data.variables.items()
        if own.dtype.kind == "f"
        and own.encoding.get("_FillValue") == 0
        and not {"scale_factor", "add_offset", "missing_value"} & own.encoding.keys()
    }
    if not coded:
        return data
    # They have no scale and no other mark, so what is stored is the value.
    plain = xr.open_dataset(
        store, decode_times=False, chunks=None, cache=False, mask_and_scale=False, **how
    )
    found = {}
    for name in coded:
        found[name] = plain[name].drop_vars(plain[name].coords)
        found[name].attrs.pop("_FillValue", None)
    fields = {name: own for name, own in found.items() if name not in data.coords}
    coords = {name: own.variable for name, own in found.items() if name in data.coords}
    return data.assign(fields).assign_coords(coords)
