"""Point clouds from files and generated ones, and the classifier from the command line."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from longseq.core.errors import ConfigError, DataError
from longseq.core.shell.cli import main
from longseq.vision.commands import DOMAIN
from longseq.vision.points.baselines import distance_histogram
from longseq.vision.points.clouds import normalised, read_cloud
from longseq.vision.points.data import PointClouds
from longseq.vision.points.shapes import SHAPES, make_shape, rotation

CONFIGS = [
    name
    for name, path in sorted(DOMAIN.configs().items())
    if "longseq.vision.points." in path.read_text()
]


def header(kind: str, count: int, *more: str) -> bytes:
    lines = ["ply", f"format {kind} 1.0", "comment made by hand", f"element vertex {count}"]
    lines += ["property uchar red", *(f"property float {axis}" for axis in "xyz"), *more]
    return "\n".join([*lines, "end_header", ""]).encode()


def write_clouds(points: np.ndarray) -> list[str]:
    """The same points in every kind of file."""
    np.save("a.npy", points)
    np.save("b.npy", np.concatenate([points, points], 1).astype(np.float32))
    np.savetxt("c.xyz", points, header="x y z")
    np.savetxt("d.XYZ", points, delimiter=",")
    face = ("element face 1", "property list uchar int vertex_indices")
    text = "".join(f"7 {x!r} {y!r} {z!r}\n" for x, y, z in points.tolist())
    Path("e.ply").write_bytes(header("ascii", len(points), *face) + text.encode() + b"3 0 1 2\n")
    for name, kind, order in (("f", "binary_little_endian", "<"), ("g", "binary_big_endian", ">")):
        body = b"".join(struct.pack(f"{order}Bfff", 7, *row) for row in points.tolist())
        Path(f"{name}.ply").write_bytes(header(kind, len(points), *face) + body + b"\3\0\0\0\0")
    return ["a.npy", "b.npy", "c.xyz", "d.XYZ", "e.ply", "f.ply", "g.ply"]


def test_every_kind_of_file_gives_the_same_points(workdir: Path) -> None:
    points = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32).astype(np.float64)
    for name in write_clouds(points):
        np.testing.assert_array_equal(read_cloud(name), points, err_msg=name)


def test_a_ply_header_ends_at_its_own_line(workdir: Path) -> None:
    points = np.arange(9.0).reshape(3, 3)
    body = b"".join(struct.pack("<Bfff", 7, *row) for row in points.tolist())
    plain = header("binary_little_endian", 3)
    spaced = plain.replace(b"end_header\n", b"end_header \n")
    named = plain.replace(b"made by hand", b"no end_header here")
    for head in (spaced, named, plain.replace(b"\n", b"\r\n")):
        Path("a.ply").write_bytes(head + body)
        np.testing.assert_array_equal(read_cloud("a.ply"), points)


def test_a_ply_header_of_bare_carriage_returns_takes_no_byte_of_a_point(workdir: Path) -> None:
    points = np.arange(9.0).reshape(3, 3)
    body = b"".join(struct.pack("<Bfff", ord("\n"), *row) for row in points.tolist())
    face = ("element face 1", "property list uchar int vertex_indices")
    head = header("binary_little_endian", 3, *face).replace(b"\n", b"\r")
    Path("a.ply").write_bytes(head + body + struct.pack("<Biii", 3, 0, 1, 2))
    np.testing.assert_array_equal(read_cloud("a.ply"), points)


def test_bad_files_are_named(workdir: Path) -> None:
    body = struct.pack("<Bfff", 7, 1, 2, 3)
    little = "binary_little_endian"
    listed = ("property list uchar int others",)
    cases = {
        "empty.xyz": (b"", "the file is empty"),
        "none.npy": (None, "holds no points"),
        "comments.xyz": (b"# nothing\n", "holds no points"),
        "two.xyz": (b"1 2 3\n1 2\n", "line 2 holds 2 numbers"),
        "word.xyz": (b"1 2 3\n1 b 3\n", "line 2 does not hold numbers"),
        "nan.xyz": (b"1 2 3\n1 nan 3\n", "point 1 is not finite"),
        "german.xyz": (b"0,5 1,25 3,0\n1,5 2,0 3,0\n", "line 1 has commas inside of numbers"),
        "bytes.xyz": (b"\xff\xfe", "not a text file"),
        "flat.npy": (None, "not numbers of"),
        "turned.npy": (None, "holds 3 rows of 50 columns: a point is a row"),
        "words.npy": (b"hello", "not an array of numbers"),
        "kind.obj": (b"v 1 2 3", "no known kind"),
        "not.ply": (b"hello", "not a PLY file"),
        "cut.ply": (header(little, 2) + body, "ends before the last of its 2 vertices"),
        "few.ply": (header("ascii", 2) + b"7 1 2 3\n", "holds 1 of the 2 vertices"),
        "huge.ply": (header(little, 10**12), "claims 1,000,000,000,000 points"),
        "list.ply": (header(little, 1, *listed), "property of no one number"),
        "order.ply": (header("binary_middle", 1) + body, "names no format"),
        "face.ply": (header(little, 1).replace(b"vertex", b"face"), "is not the vertices"),
        "twice.ply": (header(little, 1, "property float x"), "two properties of one name"),
    }
    np.save("none.npy", np.empty((0, 3)))
    np.save("flat.npy", np.zeros((4, 2)))
    np.save("turned.npy", np.zeros((3, 50)))
    for name, (content, said) in cases.items():
        if content is not None:
            Path(name).write_bytes(content)
        with pytest.raises(DataError, match=said) as error:
            read_cloud(name)
        assert name in str(error.value)
    for points, said in ((np.ones((1, 3)), "one point"), (np.ones((4, 3)), "4 points in one pl")):
        with pytest.raises(DataError, match=f"f.npy: holds {said}.*no shape"):
            normalised(points, "f.npy")


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_lie_on_their_surface_and_lose_a_side(name: str) -> None:
    for seed in range(3):
        random = np.random.default_rng(seed)
        points = make_shape(random, name, 200, 0.0, 0.6)
        again = make_shape(np.random.default_rng(seed), name, 200, 0.0, 0.6)
        assert points.shape == (200, 3) and np.array_equal(points, again)
        # A surface: neighbours are far nearer than in a volume of the same spread.
        assert np.isfinite(points).all() and np.linalg.matrix_rank(points - points.mean(0)) == 3
    if name == "sphere":  # stretched and turned, it is an ellipsoid: a quadric fits it
        x, y, z = points.T
        table = np.stack([x * x, y * y, z * z, x * y, x * z, y * z], 1)
        _, rest, *_ = np.linalg.lstsq(table, np.ones(200), rcond=None)
        assert rest < 1e-18


def test_rotations_are_rotations_and_change_no_distances() -> None:
    random = np.random.default_rng(0)
    turns = np.stack([rotation(random) for _ in range(300)])
    np.testing.assert_allclose(
        turns @ turns.transpose(0, 2, 1), np.eye(3)[None].repeat(300, 0), atol=1e-12
    )
    assert (np.linalg.det(turns) > 0.999).all() and abs(turns.mean(0)).max() < 0.15
    points = make_shape(random, "box", 60, 0.01, 0.0)
    found = distance_histogram(points)
    assert found.sum() == pytest.approx(1)
    np.testing.assert_array_equal(found, distance_histogram(points[::-1]))
    # Other pairs are drawn once it is turned: the same distribution up to chance.
    assert abs(found.cumsum() - distance_histogram(3 * points @ turns[0]).cumsum()).max() < 0.05


def folder_of(points: int = 12, per_class: int = 8) -> Path:
    root = Path("clouds")
    for number, name in enumerate(("sphere", "torus")):
        (root / name).mkdir(parents=True)
        for i in range(per_class):
            random = np.random.default_rng((number, i))
            np.save(root / name / f"{i}.npy", make_shape(random, name, points, 0.0, 0.0))
    return root


def test_batches_are_functions_of_the_step_and_parts_are_apart(workdir: Path) -> None:
    data = PointClouds(points=(10, 30), train_clouds=20, eval_clouds=3, batch_size=2)
    loader = data.train_dataloader()
    first, again = loader.dataset[3], loader.dataset[3]
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert loader.dataset.per_epoch == 10 and first["cloud"].unique().tolist() == [0, 1]
    assert [len(batch["label"]) for batch in data.test_dataloader()] == [2, 1]
    parts = [data.parts[part][0][0] for part in ("train", "valid", "test")]
    assert not any(np.array_equal(parts[i], parts[i - 1]) for i in range(3))
    files = PointClouds(str(folder_of()), points=(3, 5), valid_fraction=0.25, test_fraction=0.25)
    assert files.classes == ["sphere", "torus"]
    names = [{str(file) for file in files.parts[part].files} for part in ("train", "valid", "test")]
    assert [len(one) for one in names] == [8, 4, 4] and len(set.union(*names)) == 16
    batch = files.train_dataloader().dataset[0]
    assert torch.bincount(batch["cloud"]).tolist() == [5] * 16  # thinned
    assert torch.bincount(next(iter(files.val_dataloader()))["cloud"]).tolist() == [12] * 4


def test_bad_folders_and_settings_are_named(workdir: Path) -> None:
    root = folder_of()
    (root / "test" / "cone").mkdir(parents=True)
    np.save(root / "test" / "cone" / "0.npy", np.zeros((4, 3)))
    with pytest.raises(DataError, match="'cone' has no training clouds"):
        PointClouds(str(root)).setup()
    np.save(root / "lost.npy", np.zeros((4, 3)))
    with pytest.raises(DataError, match=r"lost\.npy: lies in no class folder"):
        PointClouds(str(root)).setup()
    (root / "lost.npy").unlink()
    deep = root / "test" / "cone" / "scan_1"  # nor are scans classes, nor <class>/train/
    deep.mkdir()
    np.save(deep / "0.npy", np.zeros((4, 3)))
    with pytest.raises(DataError, match=r"0\.npy: lies in a folder inside its class folder"):
        PointClouds(str(root)).setup()
    Path("void").mkdir()
    with pytest.raises(DataError, match="holds no training clouds"):
        PointClouds("void").setup()
    with pytest.raises(DataError, match="no such folder"):
        PointClouds("none").setup()
    for wrong in ({"points": (2, 5)}, {"points": (9, 5)}, {"missing": 1.0}, {"noise": -1.0}):
        with pytest.raises(ConfigError):
            PointClouds(**wrong)


def test_links_are_followed_and_other_files_are_said(workdir: Path, capsys) -> None:
    # Classes behind links, and those in files of another kind, were missing in silence.
    root = folder_of()
    assert PointClouds(str(root)).classes == ["sphere", "torus"] and not capsys.readouterr().err
    (root / "torus").rename("elsewhere")
    (root / "torus").symlink_to(Path("elsewhere").resolve())
    (root / "cone").mkdir()
    (root / "cone/0.OFF").write_text("OFF")
    found = PointClouds(str(root))
    assert found.classes == ["sphere", "torus"] and len(found.parts["train"].files) == 12
    assert "left out, not clouds by name: 1 .off, such as cone/0.OFF" in capsys.readouterr().err


@pytest.mark.parametrize("name", CONFIGS)
def test_every_shipped_configuration_trains_and_is_scored(name: str, workdir, capsys) -> None:
    content = yaml.safe_load(DOMAIN.configs()[name].read_text())
    small = {"dims": [4, 6], "voxel": 0.4}
    content["model"]["init_args"].update(model_kwargs=small, num_classes=2)
    content["data"]["init_args"].update(source=str(folder_of()), batch_size=4)
    content["trainer"].update(max_steps=2, val_check_interval=2)
    Path("small.yaml").write_text(yaml.safe_dump(content))
    assert main(["vision", "fit", "--config", "small.yaml", "--name=s"]) == 0
    last = "outputs/vision/s/version_0/checkpoints/last.ckpt"
    assert main(["vision", "test", "--ckpt_path", last]) == 0
    assert main(["vision", "score", "--ckpt_path", last]) == 0
    out = capsys.readouterr().out
    assert "random forest" in out and "best baseline" in out and "groups of voxels" in out
    for name in ("ape", "cone"):  # as many classes, and not the same ones
        Path("other", name).mkdir(parents=True)
        for number in range(7):
            points = make_shape(np.random.default_rng(number), "box", 20, 0.0, 0.0)
            np.save(Path("other", name, f"{number}.npy"), points)
    assert main(["vision", "score", "--ckpt_path", last, "--source", "other"]) == 2
    assert "other: has the classes ['ape', 'cone']" in capsys.readouterr().err
    argv = ["vision", "fit", "--config", "small.yaml", "--model.num_classes=3", "--name=t"]
    assert main(argv) == 2
    assert "has 2 classes" in capsys.readouterr().err
