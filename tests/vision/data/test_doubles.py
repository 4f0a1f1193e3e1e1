"""Files that training and evaluation share are said, once for each part."""

import shutil

from longseq.vision.data import doubles
from longseq.vision.data.module import ImageData
from longseq.vision.data.segmentation import SegmentationData


def test_files_of_training_in_other_parts_are_said(make_folder, make_zip, capsys) -> None:
    folder = make_folder(8)
    said = "files of training too"
    assert len(ImageData(str(folder), valid_fraction=0).parts["test"]) == 24
    clean = capsys.readouterr().err
    shutil.copy(folder / "train/dark/03.png", folder / "test/dark/more.png")
    shutil.copy(folder / "train/dark/03.png", folder / "test/dark/again.png")
    shutil.copy(folder / "train/stripes/00.png", folder / "test/bright/wrong.png")
    _ = ImageData(str(folder), valid_fraction=0).parts
    note = capsys.readouterr().err
    assert said not in clean and f"{folder}: 3 of 27 images of the test part are {said}" in note
    assert "test/bright/wrong.png and train/stripes/00.png" in note and note.count(said) == 1


def test_splits_may_part_two_copies(tmp_path, make_folder, capsys, monkeypatch) -> None:
    folder = make_folder(8, ("",))
    for file in sorted(folder.glob("*/*.png")):
        shutil.copy(file, file.with_name(f"copy_{file.name}"))
    data = ImageData(str(folder), valid_fraction=0.25, test_fraction=0.25)
    names = {
        part: {one.name(i)[-6:] + one.name(i)[:4] for i in range(len(one))}
        for part, one in data.parts.items()
    }
    shared = {part: len(names[part] & names["train"]) for part in ("valid", "test")}
    said = capsys.readouterr().err
    assert all(
        f"images of the {part} part are files of training" in said
        for part, n in shared.items()
        if n
    )
    assert any(shared.values())
    monkeypatch.setattr(doubles, "CHECKED", 47)  # larger sets are not read for this
    _ = ImageData(str(folder)).parts
    assert "files of training" not in capsys.readouterr().err
    for part in ("train", "test"):
        for kind in ("images", "masks"):
            (tmp_path / "pairs" / part / kind).mkdir(parents=True)
            shutil.copy(folder / "stripes/00.png", tmp_path / "pairs" / part / kind / "0.png")
    _ = SegmentationData(str(tmp_path / "pairs"), valid_fraction=0, binary=True).pairs
    assert "1 of 1 images of the test part are files of training" in capsys.readouterr().err
