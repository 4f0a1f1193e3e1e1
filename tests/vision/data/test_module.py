"""Batches as a function of the step; disjoint parts; evaluation in order; mixing."""

from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longseq.core.errors import ConfigError, DataError
from longseq.vision.data.batches import TrainingBatches
from longseq.vision.data.module import ImageData
from longseq.vision.data.parts import Prepared
from longseq.vision.data.transforms import (
    Augment,
    flip,
    mixing_transform,
    resize,
    shift,
    training_transform,
)


@pytest.fixture
def data(make_zip) -> ImageData:
    return ImageData(str(make_zip(20)), img_size=12, batch_size=7, valid_fraction=0.2)


def batches(data: ImageData, **kwargs) -> TrainingBatches:
    part, transform = data.parts["train"], data.train_transform
    prepared = Prepared(part, transform.fixed, (3, 12, 12))
    return TrainingBatches(part, 7, transform, data.normalise, prepared, seed=3, **kwargs)


def test_parts_are_disjoint_and_in_proportion(data: ImageData) -> None:
    train, valid, test = (data.parts[name] for name in ("train", "valid", "test"))
    assert (len(train), len(valid), len(test)) == (48, 12, 60)
    assert not set(train.indices) & set(valid.indices)
    assert np.bincount(valid.labels).tolist() == [4, 4, 4]
    assert test.images is not train.images


def test_a_batch_is_a_function_of_the_step(data: ImageData) -> None:
    first, second = batches(data), batches(data)
    for step in (0, 5, 6, 13):
        a, b = first[step], second[step]
        assert all(torch.equal(a[key], b[key]) for key in a)
    assert not torch.equal(first[0]["image"], first[1]["image"])


def test_an_epoch_shows_every_image_at_most_once(data: ImageData) -> None:
    one = batches(data)
    assert one.per_epoch == 6
    epochs = [torch.cat([one[step]["index"] for step in range(6 * e, 6 * e + 6)]) for e in (0, 1)]
    assert all(len(epoch.unique()) == 42 for epoch in epochs) and not torch.equal(*epochs)
    assert set(epochs[0].tolist()) <= set(data.parts["train"].indices)


def test_ranks_share_an_epoch(data: ImageData) -> None:
    shares = [batches(data, rank=rank, world=3) for rank in range(3)]
    seen = torch.cat([share[step]["index"] for share in shares for step in range(2)])
    assert len(seen.unique()) == 42


@pytest.mark.parametrize("balanced", [False, True])
def test_the_order_of_images_is_one_for_any_number_of_ranks(
    data: ImageData, balanced: bool
) -> None:
    part, transform = data.parts["train"], data.train_transform

    def make(world: int, rank: int) -> TrainingBatches:
        return TrainingBatches(
            part, 8 // world, transform, data.normalise, balanced=balanced, rank=rank, world=world
        )

    for step in range(14):  # over two epochs
        one = make(1, 0)[step]["index"]
        for world in (2, 4):
            shares = [make(world, rank)[step]["index"] for rank in range(world)]
            assert torch.equal(torch.cat(shares), one)


def test_drawing_a_batch_leaves_the_random_stream_alone(data: ImageData) -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    _ = batches(data)[4]
    assert torch.equal(torch.rand(3), expected)


def test_evaluation_is_in_order_and_untouched_by_augmentation(data: ImageData) -> None:
    found = list(data.evaluation("test"))
    index = torch.cat([batch["index"] for batch in found])
    assert index.tolist() == list(range(60))
    mean, std = (torch.tensor(data.preprocess[name]).view(3, 1, 1) for name in ("mean", "std"))
    expected = (data.parts["test"].image(0).float() / 255 - mean) / std
    torch.testing.assert_close(found[0]["image"][0], expected)


def test_fewer_training_images_on_request(make_zip) -> None:
    path = str(make_zip(20))
    few = ImageData(path, img_size=12, max_train=9, batch_size=4)
    assert np.bincount(few.parts["train"].labels).tolist() == [3, 3, 3]
    whole = ImageData(path, img_size=12, batch_size=4)
    assert np.array_equal(few.parts["valid"].indices, whole.parts["valid"].indices)


def test_bad_images_are_listed_and_left_out(make_folder, capsys) -> None:
    folder = make_folder(10)
    (folder / "train/dark/03.png").write_bytes(b"")
    (folder / "test/dark/05.png").write_bytes(b"hello")
    parts = ImageData(str(folder), img_size=12).parts
    assert len(parts["train"]) + len(parts["valid"]) == 29 and len(parts["test"]) == 29
    error = capsys.readouterr().err
    assert (
        "1 of 30 images cannot be read" in error
        and "train/dark/03.png" in error
        and "05.png" in error
    )


@given(st.integers(5, 40), st.integers(5, 40), st.integers(2, 24))
@settings(max_examples=25, deadline=None)
def test_every_size_becomes_the_size_asked_for(height: int, width: int, size: int) -> None:
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    assert resize(size, 0.9)(image).shape == (3, size, size)
    for augment in get_args(Augment):
        steps = training_transform(size, augment, erasing=0.5)
        one = image if steps.fixed is None else steps.fixed(image)
        one = one if steps.single is None else steps.single(one)
        batch = one[None] if steps.batch is None else steps.batch(one[None])
        assert batch.shape == (1, 3, size, size) and batch.dtype == torch.uint8


def test_mixing_gives_soft_labels_that_sum_to_one() -> None:
    torch.manual_seed(0)
    images, labels = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 0])
    for kwargs in (
        {"mixup": 0.8, "cutmix": 0.0},
        {"mixup": 0.0, "cutmix": 1.0},
        {"mixup": 1.0, "cutmix": 1.0},
    ):
        mixed, soft = mixing_transform(**kwargs, num_classes=3)(images, labels)
        assert mixed.shape == images.shape and soft.shape == (4, 3)
        torch.testing.assert_close(soft.sum(1), torch.ones(4))
    assert mixing_transform(0.0, 0.0, 3) is None


def test_bad_values_are_named(make_zip) -> None:
    path = str(make_zip(2))
    for kwargs, message in (
        ({"channels": 0}, "channels"),
        ({"channels": 1, "mean": (0.5, 0.5, 0.5)}, "data.mean has 3 values, data.channels is 1"),
        ({"channels": 4, "augment": "trivial"}, "1 or 3 channels"),
        ({"bands": (0, 1)}, "bands must be 3 numbers"),
        ({"page": "all"}, "page must be"),
        ({"value_range": "full"}, "value_range 'full' is unknown"),
        ({"value_range": (1, 1)}, "low < high"),
        ({"background": 2.0}, "background"),
        ({"erasing": 2.0}, "erasing"),
        ({"interpolation": "cubic"}, "interpolation"),
        ({"augment": "flop"}, "augment"),
        ({"std": (0.0,)}, "std"),
        ({"crop_ratio": 1.5}, "crop_ratio"),
        ({"batch_size": 0}, "batch_size"),
    ):
        with pytest.raises(ConfigError, match=message):
            ImageData(path, **kwargs)
    with pytest.raises(ConfigError, match="fewer than batch_size"):
        ImageData(path, batch_size=64).setup("fit")
    with pytest.raises(ConfigError, match="mixup"):
        mixing_transform(-1, 0, 3)


def test_shifts_and_flips_are_of_every_image_alone() -> None:
    torch.manual_seed(0)
    images = torch.arange(1, 26, dtype=torch.uint8).view(1, 1, 5, 5).repeat(64, 1, 1, 1)
    moved = shift(images, 2)
    corners = {(int(image[0, 2, 2]) - 1) for image in moved}
    assert len(corners) > 9 and moved.shape == images.shape
    padded = torch.nn.functional.pad(images[:1], (2,) * 4)
    windows = [padded[0, :, i : i + 5, j : j + 5] for i in range(5) for j in range(5)]
    assert all(any(torch.equal(image, window) for window in windows) for image in moved)
    turned = flip(images)
    mirrored = [torch.equal(image, images[0].flip(2)) for image in turned]
    assert 16 < sum(mirrored) < 48
    assert all(m or torch.equal(i, images[0]) for m, i in zip(mirrored, turned))


def test_a_kept_image_is_the_made_one(make_folder) -> None:
    data = ImageData(str(make_folder(4)), img_size=8, batch_size=4)
    part, fixed = data.parts["train"], data.train_transform.fixed
    prepared = Prepared(part, fixed, (3, 8, 8))
    first = [prepared.image(i) for i in range(len(part))]
    part.images.names = []  # nothing can be read any more
    assert all(torch.equal(prepared.image(i), image) for i, image in enumerate(first))


def test_what_turns_out_damaged_is_replaced_and_left_out(make_folder, capsys, monkeypatch) -> None:
    monkeypatch.setattr("longseq.vision.data.parts.CHECKED", 0)
    monkeypatch.setattr("longseq.vision.data.parts.SAMPLE", 4)
    folder = make_folder(10)
    data = ImageData(str(folder), img_size=12, batch_size=27, valid_fraction=0.1)
    assert len(data.parts["train"]) == 27
    for index in (2, 5):
        (folder / data.parts["train"].name(index)).write_bytes(b"")
    (folder / data.parts["test"].name(3)).write_bytes(b"")
    batch = batches(data)[0]
    whole = data.train_dataloader().dataset[0]
    gone = set(data.parts["train"].indices[[2, 5]].tolist())
    assert len(whole["index"]) == 27 and not gone & set(whole["index"].tolist())
    assert torch.equal(batch["image"], batches(data)[0]["image"])
    tested = torch.cat([one["index"] for one in data.evaluation("test")])
    assert tested.tolist() == [i for i in range(30) if i != 3]
    assert capsys.readouterr().err.count("the image is empty") == 3  # once each


def test_balanced_batches_draw_classes_equally(tmp_path, make_folder) -> None:
    folder = make_folder(40, ("",))
    for cls, kept in (("dark", 4), ("stripes", 2)):
        for i in range(kept, 40):
            (folder / cls / f"{i:02d}.png").unlink()
    data = ImageData(
        str(folder), img_size=12, batch_size=8, balanced=True, valid_fraction=0, test_fraction=0
    )
    loader = data.train_dataloader().dataset
    seen = torch.cat([loader[step]["target"] for step in range(50)])
    assert torch.bincount(seen).float().div(len(seen)).sub(1 / 3).abs().max() < 0.08


def test_an_image_of_its_size_is_left_alone_by_the_square() -> None:
    square, image = resize(12), torch.randint(0, 256, (3, 12, 12), dtype=torch.uint8)
    assert square(image) is image and torch.equal(square.steps(image), image)
    assert square(image[:, :9]).shape == square(image[:, :, :9]).shape == (3, 12, 12)
    assert resize(12, 0.5)(image).shape == (3, 12, 12)
    assert not torch.equal(resize(12, 0.5)(image), image)


def test_a_class_of_which_nothing_can_be_read_is_named(make_folder) -> None:
    # It was a class that no training image had.
    folder = make_folder(3, ("train",))
    for file in sorted((folder / "train/dark").glob("*.png"))[1:]:
        file.write_bytes(b"\xff\x0a")
    assert len(ImageData(str(folder), valid_fraction=0, test_fraction=0).parts["train"]) == 7
    next((folder / "train/dark").glob("00.png")).write_bytes(b"\xff\x0a")
    with pytest.raises(DataError, match="none of the images of the class 'dark' can be read"):
        _ = ImageData(str(folder), valid_fraction=0, test_fraction=0).parts
