"""Opening class folders, zips, IDX files and torchvision's data sets; stratified splits."""

import io
import os
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from longseq.core.errors import ConfigError, DataError
from longseq.vision.data.images import ArrayImages, FileImages, decode
from longseq.vision.data.parts import readable
from longseq.vision.data.pixels import Reading
from longseq.vision.data.sources import FASHION, by_part, open_source, split_indices

CIFAR = Path(
    os.environ.get("LONGSEQ_CIFAR10_SUBSET")
    or Path(__file__).parents[4] / "shared/data/vision/cifar10-subset.zip"
)


def test_folder_and_zip_give_the_same_images(make_folder, make_zip) -> None:
    folder = open_source(str(make_folder(3)), Reading(3))
    for path in (make_zip(3), make_zip(3, name="one.zip", prefix="data/")):
        packed = open_source(str(path), Reading(3))
        assert packed.train.classes == folder.train.classes == ["bright", "dark", "stripes"]
        for part in ("train", "test"):
            a, b = getattr(folder, part), getattr(packed, part)
            assert np.array_equal(a.labels, b.labels) and len(a) == 9
            assert all(torch.equal(a.image(i), b.image(i)) for i in range(9))
        assert packed.valid is None


def test_parts_go_by_many_names(make_folder) -> None:
    found = open_source(str(make_folder(2, ("training", "val", "testing"))), Reading(1))
    assert found.valid is not None and found.test is not None and len(found.valid) == 6
    assert found.train.image(0).shape == (1, 12, 12)


PARTS = [("Train", "Valid", "Test"), ("TRAINING", "Validation", "Testing")]


@pytest.mark.parametrize("parts", PARTS)
def test_parts_in_capital_letters_are_no_classes(make_folder, make_zip, parts) -> None:
    for path in (make_folder(2, parts), make_zip(2, parts, prefix="archive/")):
        found = open_source(str(path), Reading(1))
        assert found.train.classes == ["bright", "dark", "stripes"]
        assert found.valid is not None and found.test is not None
        assert len(found.train) == len(found.valid) == len(found.test) == 6


def test_parts_inside_class_folders_are_parts(make_folder) -> None:
    # They were one class each, and the images of the test were trained on.
    folder = make_folder(2, ("train", "test"))
    plain = open_source(str(folder), Reading(1))
    assert plain.test is not None
    first = plain.train.image(0), plain.test.image(0)
    for cls in ("bright", "dark", "stripes"):
        for part in ("train", "test"):
            place = folder / cls / part.capitalize()
            place.parent.mkdir(exist_ok=True)
            (folder / part / cls).rename(place)
    for part in ("train", "test"):
        (folder / part).rmdir()
    found = open_source(str(folder), Reading(1))
    assert found.train.classes == plain.train.classes and found.valid is None
    assert found.test is not None and len(found.train) == len(found.test) == 6
    assert torch.equal(found.train.image(0), first[0])
    assert torch.equal(found.test.image(0), first[1])
    (folder / "dark" / "Train").rename(folder / "dark" / "more")
    with pytest.raises(DataError, match="beside class folders with parts in them, such as bright/"):
        open_source(str(folder), Reading(1))


def test_parts_two_levels_inside_class_folders_are_parts(make_folder) -> None:
    # All of them were trained on, those of the test too.
    folder = make_folder(2, ("train", "test"))
    for cls in ("bright", "dark", "stripes"):
        for part in ("train", "test"):
            place = folder / cls / "scanner" / part
            place.parent.mkdir(parents=True, exist_ok=True)
            (folder / part / cls).rename(place)
    for part in ("train", "test"):
        (folder / part).rmdir()
    found = open_source(str(folder), Reading(1))
    assert found.train.classes == ["bright", "dark", "stripes"]
    assert found.test is not None and len(found.train) == len(found.test) == 6
    assert all("/train/" in found.train.name(i) for i in range(6))
    (folder / "dark/scanner").rename(folder / "dark/other")
    (folder / "dark/other/train").rename(folder / "dark/other/more")
    with pytest.raises(DataError, match="in them, such as bright/scanner/test"):
        open_source(str(folder), Reading(1))


@pytest.mark.parametrize(
    "folders",
    [
        ("train", "test"),
        ("images/train2017", "images/val2017"),
        ("seg_pred", "seg_test/x", "seg_train/x"),
        ("trainA", "testA"),
        ("data/training_set/cats", "data/test_set/cats"),
    ],
)
def test_parts_without_class_folders_are_no_classes(tmp_path, folders) -> None:
    # A classifier of "train" and "test" was trained in silence.
    for folder in folders:
        (tmp_path / folder).mkdir(parents=True)
        Image.new("L", (8, 8)).save(tmp_path / folder / "0.png")
    with pytest.raises(DataError, match="would be classes, but are parts of a data set by name"):
        open_source(str(tmp_path), Reading(1))


def test_a_train_may_be_a_class(tmp_path) -> None:
    for cls in ("bus", "train", "test tube"):
        (tmp_path / cls).mkdir()
        Image.new("L", (8, 8)).save(tmp_path / cls / "0.png")
    (tmp_path / "ship").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "ship/0.png")
    found = open_source(str(tmp_path), Reading(1))
    assert found.train.classes == ["bus", "ship", "test tube", "train"] and found.test is None


@pytest.mark.parametrize("nested", ["", "london/"])
def test_scenes_named_like_parts_are_for_training_unless_most_are(tmp_path, capsys, nested) -> None:
    # Two of four scenes were enough to refuse the set.
    names = [f"{nested}{one}/0.png" for one in ("park", "river", "test tube", "train station")]
    assert by_part(tmp_path, names) == {"train": names}
    assert f"{tmp_path}: test tube, train station are for training" in capsys.readouterr().err
    with pytest.raises(DataError, match="test tube, train station would be for training"):
        by_part(tmp_path, names[1:])
    beside = ["train/0.png", *names[1:]]  # left out
    assert by_part(tmp_path, beside) == {"train": beside[:1]}


def test_links_to_class_folders_are_followed(make_folder, tmp_path) -> None:
    # Subsets are often made of links: their classes were left out in silence.
    folder = make_folder(2, ("train",))
    (tmp_path / "subset").mkdir()
    (folder / "train/dark").rename(tmp_path / "subset/dark")
    for cls in ("bright", "stripes"):
        (tmp_path / "subset" / cls).symlink_to(folder / "train" / cls)
    (tmp_path / "subset/dark/again").symlink_to(tmp_path / "subset")  # no way back is taken
    (folder / "train/bright/one").symlink_to(folder / "train/stripes")
    (folder / "train/stripes/other").symlink_to(folder / "train/bright")
    found = open_source(str(tmp_path / "subset"), Reading(1))
    assert found.train.classes == ["bright", "dark", "stripes"]
    assert np.bincount(found.train.labels).tolist() == [4, 2, 4]


def test_files_that_are_no_images_by_name_are_said(make_folder, capsys) -> None:
    folder = make_folder(2, ("",))
    open_source(str(folder), Reading(1))
    assert capsys.readouterr().err == ""
    (folder / "dark/00.png").rename(folder / "dark/00.exr")
    (folder / "dark/more.exr").write_bytes(b"x")
    (folder / "README").write_text("x")
    found = open_source(str(folder), Reading(1))
    assert len(found.train) == 5
    said = capsys.readouterr().err
    assert "left out, not images by name: 2 .exr, 1 no ending, such as README" in said


def test_one_name_in_two_ways_of_unicode_is_said(tmp_path) -> None:
    # An archive of macOS has é as two characters: one class became two that look alike.
    one, two = "caf\u00e9", "cafe\u0301"

    def picture(folder: str) -> None:
        (tmp_path / folder).mkdir(parents=True)
        Image.new("L", (8, 8)).save(tmp_path / folder / "0.png")

    for folder in (f"a/{one}", f"a/{two}", f"b/train/{one}", "b/train/tea", f"b/test/{two}"):
        picture(folder)
    with pytest.raises(DataError, match="has two class folders of one name"):
        open_source(str(tmp_path / "a"), Reading(1))
    with pytest.raises(DataError, match="train has it in another way of writing it in Unicode"):
        open_source(str(tmp_path / "b"), Reading(1))


def test_a_test_part_without_training_images_is_no_class(make_folder) -> None:
    # With a folder of another name beside it, the two would be classes.
    folder = make_folder(2, ("mine", "Test"))
    with pytest.raises(DataError, match="has images in test folders and no train folder"):
        open_source(str(folder), Reading(1))


def test_class_folders_alone_are_training_images(make_folder) -> None:
    found = open_source(str(make_folder(2, ("",))), Reading(3))
    assert len(found.train) == 6 and found.test is None


def test_idx_and_the_packaged_sample(make_idx) -> None:
    found = open_source(str(make_idx()), Reading(3))
    assert found.train.image(0).shape == (3, 12, 12) and found.train.classes == ["0", "1", "2"]
    sample = open_source("fashion_mnist_sample", Reading(1))
    assert sample.test is not None and (len(sample.train), len(sample.test)) == (5000, 1000)
    assert sample.train.classes == list(FASHION)
    assert np.bincount(sample.test.labels).tolist() == [100] * 10


def test_torchvision_data_sets(tmp_path, make_idx) -> None:
    raw = make_idx(name="MNIST").rename(tmp_path / "raw")
    (tmp_path / "MNIST").mkdir()
    raw.rename(tmp_path / "MNIST/raw")
    found = open_source("torchvision:MNIST", Reading(1), str(tmp_path))
    assert found.test is not None and (len(found.train), len(found.test)) == (30, 9)
    with pytest.raises(ConfigError, match="did you mean 'CIFAR10'"):
        open_source("torchvision:CIFAR11", Reading(3))
    with pytest.raises(ConfigError, match="'UCF101' that opens with its options root and train"):
        open_source("torchvision:UCF101", Reading(3), str(tmp_path))  # it needs another file too
    with pytest.raises(DataError, match=r"data\.download"):
        open_source("torchvision:CIFAR10", Reading(3), str(tmp_path))


def test_of_torchvisions_data_sets_only_classes_are_taken(monkeypatch) -> None:
    import torchvision

    class Digits(torchvision.datasets.QMNIST):  # a row of eight numbers for each image
        def __init__(self, root, what=None, compat=True, train=True, **kwargs) -> None:
            self.data = torch.zeros(3, 4, 4, dtype=torch.uint8)
            self.targets = torch.tensor([[5, 1], [0, 1], [9, 0]])

    class Boxes(torchvision.datasets.Kitti):
        def __init__(self, root, train=True, transform=None, download=False) -> None:
            self.targets: list[int] = []

    monkeypatch.setattr(torchvision.datasets, "QMNIST", Digits)
    monkeypatch.setattr(torchvision.datasets, "Kitti", Boxes)
    assert open_source("torchvision:QMNIST", Reading(1)).train.labels.tolist() == [5, 0, 9]
    with pytest.raises(ConfigError, match="Kitti gives no class to an image"):
        open_source("torchvision:Kitti", Reading(3))


@pytest.mark.parametrize(
    ("inside", "message"),
    [
        ("raw/train-images-idx3-ubyte.gz", "give the folder of train-images-idx3-ubyte"),
        ("emnist-letters-train-images-idx3-ubyte", "IDX files under other names"),
        ("data_batch_1", "give torchvision:CIFAR10"),
    ],
)
def test_sets_of_another_kind_are_told_how_to_be_opened(tmp_path, inside, message) -> None:
    (tmp_path / inside).parent.mkdir(exist_ok=True)
    (tmp_path / inside).write_bytes(b"x")
    with pytest.raises(DataError, match=message):
        open_source(str(tmp_path), Reading(1))


def test_bad_sources_are_named(tmp_path, make_folder) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.zip").write_text("hello")
    (tmp_path / "a.txt").write_text("hello")
    folder = make_folder(1)
    (folder / "test/other").mkdir()
    (folder / "test/bright/00.png").rename(folder / "test/other/00.png")
    one = make_folder(1, ("train",), name="one")
    for cls in ("dark", "stripes"):
        (one / f"train/{cls}/00.png").unlink()
    loose = make_folder(1, ("",), name="loose")
    for i, cls in enumerate(("dark", "bright", "stripes")):
        (loose / cls / "00.png").rename(loose / f"{'xyz'[i]}.png")
    for path, message in (
        ("none", "no such folder"),
        ("empty", "holds no images"),
        ("text.zip", "is not a zip"),
        ("a.txt", "neither a folder nor a zip"),
        ("images", "test/other/00.png: is of class 'other'"),
        ("one", "holds one class only"),
        ("loose", "x.png: lies in no class folder"),
    ):
        with pytest.raises(DataError, match=message) as caught:
            open_source(str(tmp_path / path), Reading(3))
        assert path in str(caught.value)


def test_a_stray_file_is_left_out_and_named(make_folder, capsys) -> None:
    plain, parted = make_folder(2, ("",), "plain"), make_folder(2, name="parted")
    (plain / "dark/00.png").rename(plain / "cover.png")
    (parted / "test/dark/00.png").rename(parted / "train/cover.png")
    (parted / "docs").mkdir()
    (parted / "train/dark/00.png").rename(parted / "docs/figure.png")
    found = open_source(str(plain), Reading(3))
    assert len(found.train) == 5 and found.train.classes == ["bright", "dark", "stripes"]
    assert "left out, not in <class>/: cover.png" in capsys.readouterr().err
    found = open_source(str(parted), Reading(3))
    assert found.test is not None and (len(found.train), len(found.test)) == (5, 5)
    assert found.train.classes == ["bright", "dark", "stripes"]
    assert "docs/figure.png, train/cover.png" in capsys.readouterr().err


def test_undecodable_images_are_named(make_folder, tmp_path) -> None:
    folder = make_folder(1)
    good = (folder / "train/dark/00.png").read_bytes()
    for content, message in ((b"", "empty"), (b"hello", "known format"), (good[:-30], "truncated")):
        with pytest.raises(DataError, match=message) as caught:
            decode(content, Reading(3), "a.zip", "x/y.png")
        assert "a.zip: x/y.png" in str(caught.value)
    files = FileImages(folder, ["train/dark/00.png", "train/none.png"], [0, 0], ["a"], Reading(1))
    assert readable(files).tolist() == [0]


def test_colour_becomes_luminance_and_grey_is_repeated() -> None:
    colour = np.zeros((1, 2, 2, 3), np.uint8)
    colour[..., 1] = 100
    assert ArrayImages(colour, np.zeros(1), ["a"], Reading(1)).image(0).unique().tolist() == [59]
    grey = ArrayImages(colour[..., 1], np.zeros(1), ["a"], Reading(3)).image(0)
    assert grey.shape == (3, 2, 2) and (grey == 100).all()


@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.uint32])
def test_luminance_of_whole_numbers_keeps_their_type(dtype: type) -> None:
    top = np.iinfo(dtype).max
    colour = np.array([[[[top, top, top], [1000, 0, 0], [0, 0, 1000]]]], dtype)
    found, _ = ArrayImages(colour, np.zeros(1), ["a"], Reading(1)).stored(0)
    assert found.dtype == dtype  # and so their range is that of their type
    assert (
        found[0, 1:, 0].tolist() == [299, 114] and abs(int(found[0, 0, 0]) - int(top)) <= top * 1e-7
    )


@given(st.lists(st.integers(0, 3), min_size=1, max_size=200), st.floats(0, 0.4), st.floats(0, 0.4))
@settings(max_examples=50, deadline=None)
def test_splits_are_disjoint_whole_and_in_proportion(labels: list[int], a: float, b: float) -> None:
    y = np.array(labels)
    parts = split_indices(y, [a, b], 0)
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(len(y)))
    for part, share in zip(parts, (a, b)):
        for cls in np.unique(y):
            assert abs((y[part] == cls).sum() - share * (y == cls).sum()) <= 1
    again = split_indices(y, [a, b], 0)
    assert all(np.array_equal(p, q) for p, q in zip(parts, again))


def test_splits_that_leave_nothing_are_refused() -> None:
    with pytest.raises(ConfigError, match="less than 1"):
        split_indices(np.zeros(4), [0.5, 0.5], 0)
    with pytest.raises(ConfigError, match=r"data\.seed must be at least 0, got -1"):
        split_indices(np.zeros(4), [0.5], -1)


@pytest.mark.skipif(
    not CIFAR.is_file(),
    reason="no subset of CIFAR-10: set LONGSEQ_CIFAR10_SUBSET to a zip of train/<class>/*.png "
    "(10,000) and "
    "test/<class>/*.png (2,000), made from www.cs.toronto.edu/~kriz/cifar.html",
)
def test_the_cifar_subset_opens() -> None:
    found = open_source(str(CIFAR), Reading(3))
    assert found.test is not None and (len(found.train), len(found.test)) == (10_000, 2_000)
    assert found.train.image(0).shape == (3, 32, 32) and len(found.train.classes) == 10


def test_a_member_that_would_fill_the_memory(make_zip, monkeypatch) -> None:
    from longseq.vision.data import images

    path = make_zip(1)
    names = images.list_files(path)
    found = FileImages(path, names, [0] * len(names), ["a"], Reading(3))
    found.stored(0)
    monkeypatch.setattr(images, "MAX_BYTES", 20)
    with pytest.raises(DataError, match="unpacks to more than"):
        found.stored(0)

    def greedy(name: str) -> bytes:  # as LZMA of a member whose header says so
        raise MemoryError

    monkeypatch.setattr(found, "_read", greedy)
    with pytest.raises(DataError, match="asks for more memory than there is"):
        found.stored(0)


def test_a_png_cannot_claim_more_than_its_bytes_hold(tmp_path) -> None:
    stream = io.BytesIO()
    Image.new("L", (10, 12)).save(stream, "PNG")
    good = bytearray(stream.getvalue())
    assert decode(bytes(good), Reading(), tmp_path / "a.png").shape[-2:] == (12, 10)
    good[20:24] = (0x00FF000C).to_bytes(4, "big")  # rows
    good[29:33] = zlib.crc32(good[12:29]).to_bytes(4, "big")
    with pytest.raises(DataError, match=r"claims 10 × 16,711,692 pixels, which its \d+ bytes"):
        decode(bytes(good), Reading(), tmp_path / "a.png")


def test_a_zip_of_a_later_version(make_zip) -> None:
    from longseq.vision.data.images import open_zip

    path = make_zip(1)
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\x01\x02") + 6] = 0xFF
    path.write_bytes(data)
    with pytest.raises(DataError, match="is not a zip archive"):
        open_zip(path)


@pytest.mark.parametrize("name", ["/tmp/a.png", "x/../../a.png"])
def test_members_that_lead_out_of_a_zip_are_refused(make_zip, name: str) -> None:
    # Masks are written under the names of their images: outside of --out.
    path = make_zip(1)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(zipfile.ZipInfo(name), b"x")
    with pytest.raises(DataError, match="has a member whose path leads outside of it"):
        open_source(str(path), Reading(1))
