"""Pixels of every dtype, orientation, transparency, palette, bands, stacks; damaged, huge files."""

from __future__ import annotations

import dataclasses
import io
import sys
import types
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from longseq.core.errors import ConfigError, DataError
from longseq.vision.data.images import decode, is_image, read_file
from longseq.vision.data.module import ImageData
from longseq.vision.data.pixels import Reading, Where, learn_ranges, oriented
from longseq.vision.data.tiff import open_bands

tifffile = pytest.importorskip("tifffile", reason="pip install tifffile imagecodecs")
GREY = np.random.default_rng(0).integers(0, 256, (9, 14)).astype(np.uint8)
COLOUR = np.random.default_rng(1).integers(0, 256, (9, 14, 3)).astype(np.uint8)


def pillow(array, kind="PNG", mode=None, **kwargs) -> bytes:
    stream = io.BytesIO()
    image = Image.fromarray(array)
    (image if mode is None else image.convert(mode)).save(stream, kind, **kwargs)
    return stream.getvalue()


def tiff(array, **kwargs) -> bytes:
    stream = io.BytesIO()
    tifffile.imwrite(stream, array, **kwargs)
    return stream.getvalue()


def read(content: bytes, channels: int = 1, value_range="auto", **kwargs) -> np.ndarray:
    """Returns an image (H, W, C) whose range was learnt from itself."""
    reading = Reading(channels, **kwargs)
    ranges = learn_ranges([read_file(content, reading, Where("x"))], value_range)
    image = decode(content, dataclasses.replace(reading, ranges=ranges), "x")
    return image.permute(1, 2, 0).numpy()


WIDE = {
    "uint16": GREY.astype(np.uint16) * 16,
    "int16": GREY.astype(np.int16) * 9 - 1000,
    "int32": GREY.astype(np.int32) * 70_000 - 9,
    "uint32": GREY.astype(np.uint32) * 70_000,
    "float32": GREY.astype(np.float32) / 255,
    "float64": GREY.astype(np.float64) * -3.5e4,
}


@pytest.mark.parametrize("name", WIDE)
def test_every_dtype_keeps_its_values(name: str) -> None:
    array = WIDE[name]
    low, high = np.quantile(array.astype(np.float64), [0.001, 0.999])
    expected = (array.astype(np.float64) - low) / (high - low)
    contents = [tiff(array)]
    if name in ("uint16", "int32", "float32"):
        contents.append(pillow(array, "TIFF"))
    if name == "uint16":
        contents += [pillow(array), pillow(array, "PPM")]
    stream = io.BytesIO()
    np.save(stream, array)
    for content in [*contents, stream.getvalue()]:
        np.testing.assert_allclose(read(content)[..., 0], expected, atol=1e-6)
    with pytest.raises(DataError, match=f"type {array.dtype}, of which no range is known"):
        decode(contents[0], Reading(1), "x")


def test_ranges_by_type_and_by_hand() -> None:
    assert learn_ranges([(WIDE["uint16"], None)], "type") == {"uint16": (0, 65535)}
    assert learn_ranges([(WIDE["uint16"], 12)], "type") == {"uint16": (0, 4095)}
    assert learn_ranges([(GREY, None)], "type") == learn_ranges([(GREY, None)], "auto") == {}
    assert learn_ranges([(GREY, None)], (10, 20)) == {"uint8": (10, 20)}
    assert learn_ranges([(np.full((2, 2, 1), 7.0), None)], "train") == {"float": (7, 8)}
    with pytest.raises(ConfigError, match="floats, which have no range of their own"):
        learn_ranges([(WIDE["float32"], None)], "type")
    assert read(tiff(WIDE["uint16"]), value_range="type").max() < 0.07


def test_colours_of_sixteen_bits() -> None:
    imagecodecs = pytest.importorskip("imagecodecs", reason="pip install imagecodecs")
    wide = COLOUR.astype(np.uint16) * 257
    for content in (tiff(wide, photometric="rgb"), imagecodecs.png_encode(wide)):
        np.testing.assert_allclose(read(content, 3, "type"), COLOUR / 255, atol=1e-6)
    assert read(imagecodecs.png_encode(wide), 1).shape == (9, 14, 1)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_eight_orientations_are_one_image(orientation: int) -> None:
    back = {6: 8, 8: 6}.get(orientation, orientation)
    stored = np.ascontiguousarray(oriented(COLOUR, back))
    tag = Image.Exif()
    tag[0x0112] = orientation
    for kind in ("PNG", "TIFF"):
        assert np.array_equal(read(pillow(stored, kind, exif=tag), 3), COLOUR)
    photo = read(pillow(stored, "JPEG", exif=tag, quality=100, subsampling=0), 3)
    assert photo.shape == COLOUR.shape and np.abs(photo.astype(int) - COLOUR).max() < 12
    tags = [(274, "H", 1, orientation, True)]
    wide = read(tiff(stored.astype(np.uint16), photometric="rgb", extratags=tags), 3, (0, 255))
    np.testing.assert_allclose(wide * 255, COLOUR, atol=1e-4)


def test_what_is_transparent_shows_the_background() -> None:
    rgba = np.dstack([COLOUR, np.zeros((9, 14), np.uint8)])
    rgba[:4, ..., 3] = 255
    rgba[4, :, 3] = 51
    for content in (
        pillow(rgba),
        tiff(rgba, photometric="rgb", extrasamples=["unassalpha"]),
        pillow(rgba, "WEBP", lossless=True, exact=True),
    ):
        white, black = read(content, 3), read(content, 3, background=0.0)
        assert np.array_equal(white[:4], COLOUR[:4]) and (white[5:] == 255).all()
        assert (black[5:] == 0).all()
        assert np.abs(white[4] - (0.2 * COLOUR[4] + 0.8 * 255)).max() <= 0.51
        assert np.array_equal(read(content, 4), rgba)
    palette = np.zeros((4, 4), np.uint8)
    image = Image.fromarray(palette, "P")
    image.putpalette([9, 8, 7] * 256)
    stream = io.BytesIO()
    image.save(stream, "PNG", transparency=0)
    assert (read(stream.getvalue(), 3) == 255).all()


def test_a_value_that_stands_for_transparency_counts_in_sixteen_bits_too() -> None:
    imagecodecs = pytest.importorskip("imagecodecs")
    grey, colour = GREY.astype(np.uint16) * 200, COLOUR.astype(np.uint16) * 200
    clear = grey == grey[2, 3]
    content = pillow(grey, transparency=int(grey[2, 3]))
    found = read(content, 1, (0, 65535))[..., 0]
    np.testing.assert_allclose(found, np.where(clear, 1, grey / 65535), atol=1e-6)
    plain, value = imagecodecs.png_encode(colour), colour[2, 3].astype(">u2").tobytes()
    tag = b"tRNS" + value
    chunk = len(value).to_bytes(4, "big") + tag + zlib.crc32(tag).to_bytes(4, "big")
    found = read(plain[:33] + chunk + plain[33:], 3, (0, 65535), background=0.0)
    clear = (colour == colour[2, 3]).all(-1, keepdims=True)
    np.testing.assert_allclose(found, np.where(clear, 0, colour / 65535), atol=1e-6)


def test_bands_are_counted_and_chosen() -> None:
    bands = np.random.default_rng(2).integers(0, 4000, (9, 14, 4)).astype(np.uint16)
    flat = tiff(bands, photometric="minisblack", planarconfig="contig")
    planes = tiff(bands.transpose(2, 0, 1), photometric="minisblack", planarconfig="separate")
    for content in (flat, planes):
        np.testing.assert_allclose(read(content, 4, (0, 1)), bands)
        np.testing.assert_allclose(read(content, 3, (0, 1), bands=(3, 0, 1)), bands[..., [3, 0, 1]])
        with pytest.raises(DataError, match=r"has 4 bands, data.channels is 3 .*data.bands"):
            read(content, 3)
    with pytest.raises(DataError, match=r"asks for number 4 \(0 is the first\)"):
        read(flat, 1, bands=(4,))
    with pytest.raises(DataError, match="complex64, which are no brightness"):
        read(tiff(GREY.astype(np.complex64)))


def test_stacks_want_a_page() -> None:
    pages = np.stack([GREY + i for i in range(5)])
    frames = [Image.fromarray(np.full((4, 4), 40 * i, np.uint8)) for i in range(1, 4)]
    stream = io.BytesIO()
    frames[0].save(stream, "PNG", save_all=True, append_images=frames[1:])
    for content in (tiff(pages), stream.getvalue()):
        with pytest.raises(DataError, match=r"is a stack of [53] (pages|frames) .*data.page"):
            read(content)
    assert np.array_equal(read(tiff(pages), page=2)[..., 0], pages[2])
    assert np.array_equal(read(tiff(pages), 5), pages.transpose(1, 2, 0))
    assert np.array_equal(
        read(tiff(pages[:3], photometric="minisblack"), 3, page="channels"),
        pages[:3].transpose(1, 2, 0),
    )
    assert (read(stream.getvalue(), page=1) == 80).all()
    with pytest.raises(DataError, match=r"has 5 pages, data.page is 5"):
        read(tiff(pages), page=5)


def test_white_may_be_zero_and_pixels_may_be_missing() -> None:
    inverse = tiff(GREY.astype(np.uint16), photometric="miniswhite")
    np.testing.assert_allclose(read(inverse, 1, (0, 65535))[..., 0], 1 - GREY / 65535, atol=1e-6)
    holes = GREY.astype(np.float32)
    holes[:3] = np.nan
    marked = GREY.astype(np.int16)
    marked[:3] = -999
    contents = tiff(holes), tiff(marked, extratags=[(42113, "s", 5, "-999", True)])
    for content in contents:
        found = read(content, 1, (0, 1))[..., 0]
        np.testing.assert_allclose(found[3:], GREY[3:])
        mean = GREY[3:].mean()
        expected = mean if content is contents[0] else np.rint(mean)
        np.testing.assert_allclose(found[:3], expected, rtol=1e-6)
    early = Reading.of({"reading": {"channels": 1, "ranges": {"float": (0, 1)}}})
    found = decode(contents[1], early, "x").numpy()[0]  # as a version before this one read it
    np.testing.assert_allclose(found[:3], mean, rtol=1e-6)
    with pytest.raises(DataError, match="no valid pixel in band 0"):
        read(tiff(holes * np.nan))


def test_the_value_of_no_data_is_one_that_is_stored() -> None:
    stored = GREY.clip(1, 254)
    stored[0, 0], stored[1, 1] = 0, 255  # shown white, which is no data, and black, which is
    tags = [(42113, "s", 2, "0", True), (274, "H", 1, 6, True)]
    found = read(tiff(stored, photometric="miniswhite", extratags=tags))[..., 0]
    wanted = 255 - stored
    wanted[0, 0] = np.rint(np.delete(wanted.reshape(-1), 0).mean())
    assert np.array_equal(found, oriented(wanted, 6))


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16"])
def test_missing_pixels_change_no_others(dtype: str) -> None:
    whole = (GREY.astype(dtype) // 2)[..., None] + np.arange(3, dtype=dtype)
    holes = whole.copy()
    holes[2, 3] = 200
    tag = [(42113, "s", 0, "200", True)]
    contents = [
        tiff(whole, photometric="rgb"),
        tiff(holes, photometric="rgb", extratags=tag),
    ]
    ranges = learn_ranges([read_file(contents[0], Reading(3), Where("x"))], "auto")
    plain, found = (decode(c, Reading(3, ranges=ranges), "x") for c in contents)
    assert plain.dtype == found.dtype
    there = torch.ones(plain.shape, dtype=torch.bool)
    there[:, 2, 3] = False
    assert torch.equal(found[there], plain[there])


def test_a_value_that_a_type_does_not_have_is_nowhere() -> None:
    for dtype, value, tag in (
        ("uint8", 241, "-9999"),
        ("uint16", 55537, "-9999"),
        ("uint8", 0, "0.5"),
        ("int16", -1, "65535"),
        ("uint8", 255, "1e30"),
    ):
        array = GREY.astype(dtype)
        array[:4] = value
        content = tiff(array, photometric="minisblack", extratags=[(42113, "s", 0, tag, True)])
        found, _ = read_file(content, Reading(1), Where("x"))
        assert np.array_equal(found[..., 0], array), (dtype, tag)


def pages(*parts: tuple[np.ndarray, dict]) -> bytes:
    stream = io.BytesIO()
    with tifffile.TiffWriter(stream) as file:
        for array, how in parts:
            file.write(array, metadata=None, **how)
    return stream.getvalue()


@pytest.mark.parametrize("kind", ["grey", "rgb", "jpeg"])
def test_masks_and_smaller_copies_in_a_file_are_no_images_of_their_own(kind: str, tmp_path) -> None:
    array = np.kron(GREY, np.ones((16, 16), np.uint8))
    how: dict = {"photometric": "minisblack"}
    if kind != "grey":
        array, how = np.stack([array] * 3, -1), {"photometric": "rgb"}
    if kind == "jpeg":
        how = {"photometric": "rgb", "compression": "jpeg", "tile": (16, 16)}
    valid = np.ones(array.shape[:2], bool)
    valid[:40, :50] = False
    mask = (valid, {"photometric": "mask", "subfiletype": 4})
    small = (array[::2, ::2], {**how, "subfiletype": 1})
    small_mask = (valid[::2, ::2], {"photometric": "mask", "subfiletype": 5})
    channels = 1 if kind == "grey" else 3
    plain, _ = read_file(pages((array, how)), Reading(channels), Where("x"))
    assert plain.shape == (*array.shape[:2], channels)
    near = 2 if kind == "jpeg" else 0
    assert np.abs(plain.astype(int) - array.reshape(plain.shape)).max() <= near
    content = pages((array, how), mask, small, small_mask)
    found, _ = read_file(content, Reading(channels), Where("x"))
    assert found.dtype == np.uint8 and np.array_equal(found[valid], plain[valid])
    mean = np.rint(plain[valid].mean(0))
    assert (found[~valid] == mean).all() and not np.array_equal(found, plain)
    for parts in (((array, how), small), ((array, how),)):
        path = tmp_path / "a.tif"
        path.write_bytes(pages(*parts))
        assert np.array_equal(read_file(path.read_bytes(), Reading(channels), Where("x"))[0], plain)
        with open_bands(path, Reading(channels), Where(path)) as opened:
            rows, *size = opened
            assert tuple(size) == array.shape[:2]
            assert np.array_equal(np.moveaxis(rows(3, 9).numpy(), 0, -1), plain[3:9])
    path.write_bytes(content)
    with open_bands(path, Reading(channels), Where(path)) as opened:
        assert opened is None  # a mask needs the mean of the whole image
    with pytest.raises(DataError, match="stack of 2 images"):
        read_file(pages((array, how), (array[:50], how)), Reading(channels), Where("x"))


def test_damaged_and_huge_files_name_the_way_out() -> None:
    photo = pillow(np.tile(COLOUR, (9, 9, 1)), "JPEG")
    with pytest.raises(DataError, match=r"truncated or damaged .*data.truncated"):
        read(photo[:-20], 3)
    kept, whole = read(photo[:-20], 3, truncated=True), read(photo, 3)
    assert np.array_equal(kept[:40], whole[:40])
    with pytest.raises(DataError, match=r"14 × 9 pixels, more than data.max_pixels \(100\)"):
        read(pillow(GREY), max_pixels=100)
    for content in (tiff(GREY)[:200], tiff(GREY)[:20], b"II*\0", b"\x93NUMPY", b"\x1f\x8b"):
        with pytest.raises(DataError, match=r"truncated|damaged"):
            read(content)
    with pytest.raises(DataError, match="mode LAB"):
        read(pillow(COLOUR, "TIFF", "LAB"), 3)


def test_dicom_and_nifti() -> None:
    pydicom = pytest.importorskip("pydicom", reason="pip install pydicom")
    nibabel = pytest.importorskip("nibabel", reason="pip install nibabel")
    from pydicom.dataset import FileDataset, FileMetaDataset

    meta = FileMetaDataset()
    meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
    stored = GREY.astype(np.uint16) * 16
    file = FileDataset("x", {}, file_meta=meta, preamble=b"\0" * 128)
    file.Rows, file.Columns = GREY.shape
    file.SamplesPerPixel, file.PhotometricInterpretation = 1, "MONOCHROME1"
    file.BitsAllocated, file.BitsStored, file.HighBit, file.PixelRepresentation = 16, 12, 11, 0
    file.PixelData = stored.tobytes()
    stream = io.BytesIO()
    file.save_as(stream, enforce_file_format=False)
    found = read(stream.getvalue(), 1, "type")[..., 0]
    np.testing.assert_allclose(found, (4095 - stored) / 4095, atol=1e-6)
    file.PhotometricInterpretation, file.RescaleSlope, file.RescaleIntercept = "MONOCHROME2", 2, -9
    stream = io.BytesIO()
    file.save_as(stream, enforce_file_format=False)
    np.testing.assert_allclose(read(stream.getvalue(), 1, (0, 1))[..., 0], stored * 2.0 - 9)

    volume = np.random.default_rng(3).random((5, 6, 3)).astype(np.float32)
    content = nibabel.Nifti1Image(volume, np.eye(4)).to_bytes()
    with pytest.raises(DataError, match="is a stack of 3 slices"):
        read(content, 1)
    found = read(content, 1, (0, 1), page=1)[..., 0]
    np.testing.assert_allclose(found, volume[:, :, 1].T[::-1], atol=1e-6)
    assert pydicom is not None


def write_classes(folder, make, count=24):
    for cls in ("a", "b"):
        (folder / cls).mkdir(parents=True)
        for i in range(count):
            (folder / cls / f"{i:02d}.tif").write_bytes(make(cls, i))
    return str(folder)


def striped(cls, seed, bands=1):
    """Returns an image of low contrast in a wide type; class a has stripes."""
    image = 1000 + np.random.default_rng((seed, ord(cls))).integers(0, 600, (12, 12, bands))
    if cls == "a":
        image[::2] += 1500
    return image.astype(np.uint16)


@pytest.mark.parametrize("bands", [1, 4, 13])
def test_a_folder_of_sixteen_bits_is_learnt(tmp_path, bands: int) -> None:
    from lightning.pytorch import Trainer

    from longseq.vision.task import ImageClassifier

    def make(cls, seed):
        array = striped(cls, seed, bands)
        kwargs = {} if bands == 1 else {"photometric": "minisblack", "planarconfig": "contig"}
        return tiff(array[..., 0] if bands == 1 else array, **kwargs)

    data = ImageData(
        write_classes(tmp_path / "images", make),
        img_size=12,
        channels=bands,
        batch_size=8,
        test_fraction=0.5,
    )
    assert len(data.parts["train"].images.reading.ranges["uint16"]) == 2
    torch.manual_seed(0)
    task = ImageClassifier(
        "vmamba_pico", 2, bands, 12, {"dims": [8], "depths": [1]}, lr=1e-2, warmup_steps=2
    )
    trainer = Trainer(
        max_steps=60,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
        limit_val_batches=0,
        use_distributed_sampler=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(task, data)
    (found,) = trainer.test(task, data, verbose=False)
    assert found["test/accuracy"] >= 0.95
    assert task.preprocess["reading"]["ranges"] == {
        "uint16": data.parts["train"].images.reading.ranges["uint16"]
    }


def test_what_was_learnt_in_training_is_kept_for_other_images(tmp_path) -> None:
    first = ImageData(
        write_classes(tmp_path / "first", lambda cls, i: tiff(striped(cls, i)[..., 0])),
        img_size=12,
        channels=1,
    )
    brighter = lambda cls, i: tiff(striped(cls, i)[..., 0] + np.uint16(9000))  # noqa: E731
    other = ImageData(write_classes(tmp_path / "other", brighter), img_size=12, channels=1)
    known = first.preprocess
    assert other.preprocess["reading"]["ranges"] != known["reading"]["ranges"]
    other.take(known)
    assert other.preprocess == known
    assert Reading.of(known) == first.parts["train"].images.reading


@pytest.mark.parametrize("big", [False, True])
def test_a_tiff_whose_images_form_a_ring_is_refused(big: bool, tmp_path) -> None:
    content = bytearray(tiff(np.stack([GREY, GREY]), bigtiff=big, photometric="minisblack"))
    assert read(bytes(content), page=0).shape == (9, 14, 1)
    many, size, each, head = (8, 8, 20, 8) if big else (2, 4, 12, 4)
    at = int.from_bytes(content[head : head + size], "little")
    end = at + many + each * int.from_bytes(content[at : at + many], "little")
    content[end : end + size] = at.to_bytes(size, "little")
    (tmp_path / "ring.tif").write_bytes(content)
    with pytest.raises(DataError, match="truncated or damaged"):
        read(bytes(content), page=0)
    with open_bands(tmp_path / "ring.tif", Reading(1), Where("ring.tif")) as found:
        assert found is None


def heif_header(*brands: bytes) -> bytes:
    return (8 + 4 + 4 * len(brands)).to_bytes(4, "big") + b"ftyp" + b"".join(brands) + bytes(64)


def test_heic_wants_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # type: ignore[arg-type]
    content = heif_header(b"heic", bytes(4), b"mif1", b"heic")
    with pytest.raises(DataError, match=r"HEIC photograph.*pip install pillow-heif"):
        read(content, 3)
    assert is_image("IMG_0001.HEIC") and is_image("a.heif")
    avif = heif_header(b"mif1", bytes(4), b"mif1", b"avif")
    with pytest.raises(DataError, match=r"not an image|truncated or damaged"):
        read(avif, 3)


def test_heic_is_read_by_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    def register() -> None:
        made.append("registered")
        Image.register_open(
            "HEIF", lambda file, name: opened(file), lambda head: head[4:8] == b"ftyp"
        )

    def opened(file) -> Image.Image:
        file.seek(40)
        image = Image.open(io.BytesIO(file.read()))
        image.format = "HEIF"
        return image

    monkeypatch.setattr(Image, "ID", list(Image.ID))
    monkeypatch.setattr(Image, "OPEN", dict(Image.OPEN))
    module = types.SimpleNamespace(register_heif_opener=register)
    monkeypatch.setitem(sys.modules, "pillow_heif", module)  # type: ignore[arg-type]
    content = heif_header(b"heic", bytes(4))[:16].ljust(40, b"\0") + pillow(COLOUR)
    found, _ = read_file(content, Reading(3), Where("a.heic"))
    assert made == ["registered"] and np.array_equal(found, COLOUR)


def test_a_real_heic_photograph(monkeypatch: pytest.MonkeyPatch) -> None:
    heif = pytest.importorskip("pillow_heif", reason="pip install pillow-heif")
    heif.register_heif_opener()
    large = np.kron(COLOUR, np.ones((8, 8, 1), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    stream = io.BytesIO()
    Image.fromarray(np.rot90(large).copy()).save(stream, "HEIF", quality=-1, exif=exif.tobytes())
    found, _ = read_file(stream.getvalue(), Reading(3), Where("a.heic"))
    assert found.shape == large.shape and np.abs(found.astype(int) - large).mean() < 20


def test_jpeg_2000_is_read_and_its_deep_colours_are_refused(tmp_path) -> None:
    imagecodecs = pytest.importorskip("imagecodecs")
    grey = np.arange(24 * 16, dtype=np.uint16).reshape(24, 16) * 100
    content = imagecodecs.jpeg2k_encode(grey)
    found, _ = read_file(content, Reading(1), Where("a.jp2"))
    assert is_image("a.JP2") and np.array_equal(found[..., 0], grey)
    colour = imagecodecs.jpeg2k_encode(np.stack([grey] * 3, -1))
    for stream in (colour, colour[colour.index(b"\xff\x4f\xff\x51") :]):
        with pytest.raises(DataError, match="colours of 16 bits, which Pillow reads as 8"):
            read_file(stream, Reading(3), Where("a.jp2"))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\xff\x0a" + bytes(40), "is a JPEG XL image"),
        (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(40), "is a JPEG XL image"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a pointer of Git LFS"),
        (b"\n<!DOCTYPE html><title>404</title>", "is a text of HTML"),
        (b"8BPS" + bytes(40), "is not an image of a known format"),
    ],
)
def test_what_is_no_image_is_named(content: bytes, said: str) -> None:
    with pytest.raises(DataError, match=said):
        read_file(content, Reading(3), Where("a.jpg"))
