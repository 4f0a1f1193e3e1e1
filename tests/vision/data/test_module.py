"""Batches as a function of the step; disjoint parts; evaluation in order; mixing."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longseq.core.errors import ConfigError
from longseq.vision.data.module import ImageData, TrainingBatches
from longseq.vision.data.transforms import (
    evaluation_transform,
    mixing_transform,
    training_transform,
)


@pytest.fixture
def data(make_zip) -> ImageData:
    return ImageData(str(make_zip(20)), img_size=12, batch_size=7, valid_fraction=0.2)


def batches(data: ImageData, **kwargs) -> TrainingBatches:
    return TrainingBatches(data.parts["train"], 7, data.train_transform, None, 3, **kwargs)


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
    expected = (data.parts["test"].image(0).float() / 255 - 0.5) / 0.5
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
    assert evaluation_transform(size, (0.5,), (0.5,), 0.9)(image).shape == (3, size, size)
    for augment in ("none", "flip", "shift", "shift_flip", "crop_flip", "trivial"):
        assert training_transform(size, (0.5,), (0.5,), augment)(image).shape == (3, size, size)


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
        ({"channels": 2}, "channels"),
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
