"""Reading DICOM through pydicom and NIfTI through nibabel, in the values that they stand for."""

from __future__ import annotations

import gzip
import io

import numpy as np

from longseq.core.errors import DataError
from longseq.vision.data.pillow import check_size
from longseq.vision.data.pixels import Pixels, Reading, Where, pick_page


def is_dicom(content: bytes) -> bool:
    """Returns whether a file begins as DICOM files do."""
    return content[128:132] == b"DICM"


def read_dicom(content: bytes, reading: Reading, where: Where) -> Pixels:
    """Reads a DICOM file: rescaled by its slope and intercept, black where the tag says white is 0.

    Args:
        content: the file's bytes.
        reading: what is asked for.
        where: the file.

    Raises:
        DataError: if pydicom is missing, or the file holds no pixels that it can read.
    """
    try:
        import pydicom
        from pydicom.pixels import apply_modality_lut, pixel_array
    except ImportError as error:
        raise where.error("is a DICOM file", "pip install pydicom") from error
    try:
        data = pydicom.dcmread(io.BytesIO(content))
        check_size(int(data.Columns), int(data.Rows), reading, where)
        kind = str(data.PhotometricInterpretation)
        array = pixel_array(data)  # YBR becomes RGB
    except DataError:
        raise
    except Exception as error:  # of damaged bytes pydicom and its decoders may raise anything
        reason = " ".join(str(error).split())[:120]
        raise where.error(f"holds no pixels that can be read: {reason}") from error
    if kind == "PALETTE COLOR":
        raise where.error("is a DICOM file of palette colours", "save it as PNG or TIFF")
    samples = int(data.get("SamplesPerPixel", 1))
    array = array if samples > 1 else array[..., None]
    array = array if array.ndim == 4 else array[None]
    array = array[pick_page(len(array), reading, where, "frames")]
    if samples > 1:
        return Pixels(array, "rgb")
    bits = int(data.get("BitsStored", 8 * array.dtype.itemsize))
    if "RescaleSlope" in data or "ModalityLUTSequence" in data:
        array = apply_modality_lut(array, data).astype(np.float32)
    if kind == "MONOCHROME1":
        array = -array.astype(np.float32) if array.dtype.kind != "u" else 2**bits - 1 - array
    if array.dtype == np.uint8 and bits < 8:
        array = (array.astype(np.uint16) * 255 // (2**bits - 1)).astype(np.uint8)
    used = bits if array.dtype.kind == "u" and 8 < bits < 8 * array.dtype.itemsize else None
    return Pixels(array, "grey", bits=used)


def read_nifti(content: bytes, reading: Reading, where: Where) -> Pixels:
    """Reads a NIfTI volume, plain or gzipped, as a stack of slices along its last spatial axis.

    Axes are brought to right, anterior, superior; a slice has anterior on top and left on the left.

    Args:
        content: the file's bytes.
        reading: what is asked for.
        where: the file.

    Raises:
        DataError: if nibabel is missing, or the file is damaged.
    """
    try:
        import nibabel
    except ImportError as error:
        raise where.error("is a NIfTI file", "pip install nibabel") from error
    try:
        raw = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
        volume = nibabel.as_closest_canonical(nibabel.Nifti1Image.from_bytes(raw))
        shape = volume.shape
        check_size(int(shape[0]), int(shape[1]), reading, where)
        array = np.asarray(volume.get_fdata(dtype=np.float32))
    except DataError:
        raise
    except Exception as error:  # likewise
        raise where.error("is not a NIfTI file, or is truncated") from error
    array = array.reshape(*shape[:2], -1)
    chosen = pick_page(array.shape[2], reading, where, "slices")
    array = array[:, :, chosen].transpose(2, 1, 0)[:, ::-1, :, None]
    missing = ~np.isfinite(array)
    return Pixels(array, "grey", missing=missing if missing.any() else None)
