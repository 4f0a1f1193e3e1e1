"""Images with any number of labels: tables, several class folders, bad rows, splits."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from longseq.core.errors import ConfigError, DataError
from longseq.vision.data.labels import MultiLabelData, open_labelled
from longseq.vision.data.pixels import Reading


def draw(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((9, 9, 3), value, np.uint8)).save(path)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    for i in range(4):
        draw(tmp_path / "all" / f"{i}.png", 20 * i)
    path = tmp_path / "labels.csv"
    path.write_text(
        "file,part,labels\nall/0.png,train,cat;dog\nall/1.png,train,\n"
        "all/2.png,train,dog\nall/3.png,test,cat\n"
    )
    return path


def test_a_table_of_names_and_one_of_columns_say_the_same(table: Path) -> None:
    found = open_labelled(table, Reading())
    assert found.train.classes == ["cat", "dog"] and found.valid is None
    np.testing.assert_array_equal(found.train.targets, [[1, 1], [0, 0], [0, 1]])
    assert found.test is not None
    np.testing.assert_array_equal(found.test.targets, [[1, 0]])
    other = table.with_name("columns.tsv")
    other.write_text(
        "cat\tImage\tdog\tsplit\n1\tall/0.png\ttrue\ttrain\n0\tall/1.png\t\ttrain\n"
        "False\tall/2.png\t1.0\ttrain\n1\tall/3.png\t0\tVAL\n"
    )
    second = open_labelled(other, Reading())
    np.testing.assert_array_equal(second.train.targets, found.train.targets)
    assert second.valid is not None and second.test is None


@pytest.mark.parametrize("sign", [",", "|"])
def test_another_sign_between_labels_is_named(table: Path, sign: str) -> None:
    text = table.read_text().replace("cat;dog", f'"cat{sign} dog"')
    table.write_text(text)
    with pytest.raises(DataError, match=r"all/0\.png: 'cat. dog' would be a label beside 'cat'"):
        open_labelled(table, Reading())
    table.write_text(
        text.replace("train,dog", "train,bird").replace("test,cat", "test,")
    )  # then it may be a name
    assert len(open_labelled(table, Reading()).train.classes) == 2


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("prefix", ["", "train/", "archive/Train/"])
def test_an_image_in_two_folders_has_both_labels(tmp_path: Path, packed, prefix) -> None:
    root = tmp_path / "set"
    for name, value in (("cat/a.png", 1), ("dog/a.png", 1), ("dog/b.png", 2), ("c.png", 3)):
        draw(root / f"{prefix}{name}", value)
    if packed:
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as archive:
            for path in root.rglob("*.png"):
                archive.write(path, path.relative_to(root))
        root = tmp_path / "set.zip"
        root.write_bytes(stream.getvalue())
    train = open_labelled(root, Reading()).train
    rows = {train.name(i)[-5:]: train.targets[i].tolist() for i in range(len(train))}
    assert rows == {"a.png": [1, 1], "b.png": [0, 1], "c.png": [0, 0]}
    assert int(train.image(0).float().mean()) in (1, 2, 3)


def test_one_name_of_two_contents_is_refused(tmp_path: Path) -> None:
    draw(tmp_path / "cat/a.png", 1)
    draw(tmp_path / "dog/a.png", 2)
    with pytest.raises(DataError, match="another content"):
        open_labelled(tmp_path, Reading())


BAD = {
    "no column file": ("name,labels\nall/0.png,a\n", "no column file"),
    "no such file": ("file,labels\nall/9.png,a\n", "line 2.*all/9.png: no such file"),
    "outside": ("file,labels\n../all/0.png,a\n", "line 2.*no path inside"),
    "absolute": ("file,labels\n/etc/passwd,a\n", "no path inside"),
    "twice": ("file,labels\nall/0.png,a\nall/0.png,b\n", "line 3.*twice"),
    "no number": ("file,a,b\nall/0.png,1,2\n", "line 2.*b is '2'"),
    "part": ("file,part,labels\nall/0.png,dev,a;b\n", "part is 'dev'"),
    "one label": ("file,labels\nall/0.png,a\n", "1 labels in training"),
    "new label": ("file,part,labels\nall/0.png,train,a;b\nall/1.png,test,c\n", "label 'c'"),
    "empty": ("file,labels\n", "no rows"),
    "no training": ("file,part,labels\nall/0.png,test,a;b\n", "no images for training"),
}


@pytest.mark.parametrize("case", sorted(BAD))
def test_bad_tables_are_named(case: str, table: Path) -> None:
    text, message = BAD[case]
    table.write_text(text)
    with pytest.raises(DataError, match=message):
        open_labelled(table, Reading())


def test_batches_carry_rows_of_labels(table: Path) -> None:
    data = MultiLabelData(str(table), img_size=8, batch_size=2, valid_fraction=0.34)
    assert len(data.parts["valid"]) == 1 and len(data.parts["train"]) == 2
    batch = data.train_dataloader().dataset[0]
    assert batch["target"].shape == (2, 2) and batch["target"].dtype == torch.float32
    rows = data.parts["train"].images.targets[batch["index"].numpy()]
    np.testing.assert_array_equal(batch["target"].numpy(), rows)
    (tested,) = list(data.test_dataloader())
    assert tested["target"].tolist() == [[1.0, 0.0]]
    for name in ("mixup", "cutmix", "balanced"):
        with pytest.raises(ConfigError, match=f"data.{name}: is for images of one class"):
            MultiLabelData(str(table), **{name: True if name == "balanced" else 0.5}).setup()
    with pytest.raises(DataError, match="no such file or folder"):
        MultiLabelData("none.csv").setup()


def test_labels_that_never_stand_alone_are_seen_to_be_joined(table: Path) -> None:
    # Every combination was a label of its own.
    head, *rows = table.read_text().splitlines()
    joined = ["cat|dog", "dog|owl", "cat|owl", "owl"]
    lines = [",".join([*row.split(",")[:2], name]) for row, name in zip(rows, joined)]
    table.write_text("\n".join([head, *lines]))
    with pytest.raises(DataError, match=r"'cat\|dog' would be a label beside 'cat' and 'dog'"):
        open_labelled(table, Reading())
    table.write_text(
        "file,labels\nall/0.png,Rome | IT\nall/1.png,Pisa | IT\nall/2.png,Rome | IT;Pisa | IT\n"
    )
    assert open_labelled(table, Reading()).train.classes == ["Pisa | IT", "Rome | IT"]


def test_lists_and_second_names_of_a_file_are_no_labels(table: Path) -> None:
    text = table.read_text()
    table.write_text(text.replace("cat;dog", "\"['cat', 'dog']\""))
    with pytest.raises(DataError, match=r"line 2: labels is .*names with ; between them"):
        open_labelled(table, Reading())
    table.write_text(text.replace("labels", "Labels"))
    assert open_labelled(table, Reading()).train.classes == ["cat", "dog"]
    table.write_text(text.replace("labels", "tags"))
    with pytest.raises(DataError, match="a column labels holds names"):
        open_labelled(table, Reading())
    table.write_text(text + "./all/0.png,test,dog\n")
    with pytest.raises(DataError, match=r"line 6: all/0\.png stands there twice"):
        open_labelled(table, Reading())
