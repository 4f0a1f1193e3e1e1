"""Video from the command line: shipped configurations, mattes of clips in files, scores, errors."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
import yaml
from PIL import Image

from longseq.core.errors import DataError
from longseq.core.shell.cli import main
from longseq.core.training.loading import load_task
from longseq.vision.commands import DOMAIN
from longseq.vision.video.clips import open_clip

CONFIGS = [
    name
    for name, path in sorted(DOMAIN.configs().items())
    if "longseq.vision.video." in path.read_text()
]
LAST = "outputs/vision/{}/version_0/checkpoints/last.ckpt"


def train(name: str, **model) -> str:
    content = yaml.safe_load(DOMAIN.configs()[name].read_text())
    content["model"]["init_args"].update(dims=[4, 8], n_layers=1, **model)
    content["data"]["init_args"].update(size=16, frames=4, batch_size=2, eval_clips=4)
    content["trainer"].update(max_steps=2, val_check_interval=2)
    Path("small.yaml").write_text(yaml.safe_dump(content))
    assert main(["vision", "fit", "--config", "small.yaml", f"--name={name}"]) == 0
    return LAST.format(name)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_shipped_configuration_trains_and_is_scored(name: str, workdir, capsys) -> None:
    path = train(name)
    assert main(["vision", "test", "--ckpt_path", path]) == 0
    capsys.readouterr()
    assert main(["vision", "score", "--ckpt_path", path, "--out", "s.csv"]) == 0
    out = capsys.readouterr().out
    assert "best baseline" in out and "mamba over frames" in out
    with Path("s.csv").open() as file:
        kinds = [row["kind"] for row in csv.DictReader(file)]
    assert kinds.count("model") == 1 and kinds.count("baseline") >= 2
    assert main(["vision", "predict", "clip", "--ckpt_path", path, "--out", "found"]) == 2
    err = capsys.readouterr().err
    other = "longseq vision matte CLIP" if name == "matting" else "longseq vision score"
    assert other in err and err.count("\n") == 1


def write_clips(frames: np.ndarray) -> dict[str, Path]:
    """The same frames (L, H, W, 3) as a folder, a TIFF and an animated PNG."""
    Path("folder").mkdir()
    for i, frame in enumerate(frames):  # frame 10 comes after frame 9
        Image.fromarray(frame).save(f"folder/frame{i + 8}.png")
    tifffile.imwrite("clip.tif", frames, photometric="rgb")
    tifffile.imwrite("wide.tif", frames.astype(np.uint16) * 257, photometric="rgb")
    first, *rest = [Image.fromarray(frame) for frame in frames]
    first.save("clip.png", save_all=True, append_images=rest)
    return {name: Path(name) for name in ("folder", "clip.tif", "wide.tif", "clip.png")}


def test_mattes_of_files_are_those_of_the_network(workdir: Path, capsys) -> None:
    path = train("matting")
    frames = np.random.default_rng(0).integers(0, 255, (5, 17, 21, 3), np.uint8)
    task = load_task(path, "vision")
    with torch.no_grad():
        video = torch.from_numpy(frames).permute(0, 3, 1, 2)[None].float() / 255
        expected = task(video)[0][0, :, 0].numpy()
    for name, clip in write_clips(frames).items():
        argv = ["vision", "matte", str(clip), "--ckpt_path", path, "--out", f"out_{name}"]
        assert main([*argv, "--over", "0,255,0"]) == 0
        files = sorted(Path(f"out_{name}/alpha").iterdir())
        assert len(files) == 5
        if name == "folder":
            files = [Path(f"out_{name}/alpha/frame{i + 8}.png") for i in range(5)]
        for i, file in enumerate(files):
            found = np.asarray(Image.open(file))
            assert found.dtype == np.uint8 and found.shape == (17, 21)
            assert abs(found / 255 - expected[i]).max() < 0.51 / 255 + 1e-5
        over = np.asarray(Image.open(f"out_{name}/over/{files[2].name}")) / 255
        alpha = expected[2][..., None]
        mixed = alpha * frames[2] / 255 + (1 - alpha) * np.array([0, 1, 0])
        assert abs(over - mixed).max() < 0.51 / 255 + 1e-5
    assert "5 frames" in capsys.readouterr().out


def test_grey_and_animated_gif_clips_are_read(workdir: Path) -> None:
    grey = np.random.default_rng(0).integers(0, 2, (3, 8, 9), np.uint8) * 255
    first, *rest = [Image.fromarray(frame) for frame in grey]
    first.save("a.gif", save_all=True, append_images=rest)
    tifffile.imwrite("b.tif", grey, photometric="miniswhite")
    for file, expected in (("a.gif", grey), ("b.tif", 255 - grey)):
        found = [frame for _, frame in open_clip(file)]
        assert np.array_equal(torch.stack(found)[:, 0].numpy(), expected / 255)
        assert all(torch.equal(one[0], one[2]) for one in found)


def test_bad_clips_are_named(workdir: Path, capsys) -> None:
    Path("empty").mkdir()
    Path("two").mkdir()
    for i, side in enumerate((8, 9)):
        Image.fromarray(np.zeros((side, 8, 3), np.uint8)).save(f"two/{i}.png")
    Path("text.gif").write_text("hello")
    tifffile.imwrite("float.tif", np.zeros((2, 8, 8), np.float32))
    tifffile.imwrite("cut.tif", np.zeros((2, 64, 64), np.uint8))
    Path("cut.tif").write_bytes(Path("cut.tif").read_bytes()[:4500])
    for path, said in (
        ("none", "no such clip"),
        ("empty", "holds no images"),
        ("two", "8 × 9 pixels, the clip began with 8 × 8"),
        ("text.gif", "not an image of a known format"),
        ("float.tif", "no range of their own"),
        ("cut.tif", "truncated or damaged"),
    ):
        with pytest.raises(DataError, match=said):
            list(open_clip(path))
    path = train("motion")
    assert main(["vision", "matte", "two", "--ckpt_path", path, "--out", "o"]) == 2
    assert "VideoClassifier, not of VideoMatting" in capsys.readouterr().err
    path = train("matting")
    for over in ("1,2", "0,0,256", "red"):
        argv = ["vision", "matte", "two", "--ckpt_path", path, "--out", "o", "--over", over]
        assert main(argv) == 2
    Path("file").write_text("")
    assert main(["vision", "matte", "two", "--ckpt_path", path, "--out", "file"]) == 2
    assert "is a file" in capsys.readouterr().err
