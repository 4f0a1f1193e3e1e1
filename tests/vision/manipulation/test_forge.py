"""Forged images: exact masks, seeds, parts; what finds them; the command and its errors."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from scipy import ndimage

from longseq.core.errors import DataError
from longseq.core.shell.cli import main
from longseq.vision.commands import DOMAIN
from longseq.vision.manipulation.baselines import (
    best_threshold,
    f1,
    ghost_map,
    noise_map,
)
from longseq.vision.manipulation.forge import photographs_by_part, write_forgeries
from longseq.vision.manipulation.forging import compressed, fill, forge, random_region
from longseq.vision.models.high_pass import HighPass
from longseq.vision.models.unet import UNetEncoder

CONFIGS = [
    name
    for name, path in sorted(DOMAIN.configs().items())
    if "longseq.vision.manipulation." in path.read_text()
]


def pictures(count: int, side: int = 60, width: int = 60) -> list[np.ndarray]:
    """Smooth random pictures with some noise, bytes."""
    found = []
    for seed in range(count):
        random = np.random.default_rng(seed)
        picture = ndimage.gaussian_filter(random.normal(size=(side, width, 3)), (4, 4, 0))
        picture = 128 + 50 * picture / picture.std() + random.normal(0, 3, picture.shape)
        found.append(picture.clip(0, 255).astype(np.uint8))
    return found


def test_masks_are_exact_and_every_kind_is_drawn() -> None:
    seen = set()
    for seed in range(40):
        made = forge(np.random.default_rng(seed), pictures(3), 40, authentic=0.2)
        again = forge(np.random.default_rng(seed), pictures(3), 40, authentic=0.2)
        assert np.array_equal(made.changed, again.changed) and np.array_equal(made.mask, again.mask)
        seen.add(made.kind)
        differs = (made.before != made.changed).any(2)
        assert not (differs & ~made.mask).any()  # nothing beside the mask has changed
        if made.kind == "authentic":
            assert not made.mask.any()
        else:
            assert 0.01 < made.mask.mean() < 0.4
            assert (differs & made.mask).sum() > 0.5 * made.mask.sum()
        assert (made.donor > 0) == (made.kind == "splice") and made.last >= 90
    assert seen == {"splice", "copy", "removal", "authentic"}


def test_what_is_filled_lies_between_its_borders() -> None:
    ramp = np.tile(np.linspace(0, 255, 40).astype(np.uint8)[None, :, None], (40, 1, 3))
    region = np.zeros((40, 40), bool)
    region[10:30, 12:28] = True
    filled = fill(np.where(region[..., None], np.uint8(7), ramp), region)
    assert np.array_equal(filled[~region], ramp[~region])
    assert abs(filled.astype(int) - ramp)[region].mean() < 12
    regions = [random_region(np.random.default_rng(seed), 64).mean() for seed in range(50)]
    assert min(regions) > 0.02 and max(regions) < 0.3


def test_rules_find_what_they_are_made_for() -> None:
    (smooth,) = pictures(1, 96, 96)
    mask = np.zeros((96, 96), bool)
    mask[30:64, 20:60] = True
    random = np.random.default_rng(0)
    noisy = smooth + random.normal(0, 12, smooth.shape) * mask[..., None]
    noisy = noisy.clip(0, 255).astype(np.uint8)
    found = noise_map(noisy)
    assert f1(found > best_threshold([(found, mask)]), mask) > 0.85
    spliced = np.where(mask[..., None], compressed(smooth, 60), smooth)
    found = ghost_map(spliced)
    assert f1(found > best_threshold([(found, mask)]), mask) > 0.6
    assert f1(mask, mask) == 1 and f1(mask & ~mask, mask & ~mask) == 1 and f1(~mask, mask) == 0


def test_residuals_vanish_on_ramps_and_stay_below_one() -> None:
    layer = HighPass(2)
    rows, columns = torch.meshgrid(torch.arange(9.0), torch.arange(7.0), indexing="ij")
    x = torch.stack([0.3 * rows - 0.2 * columns, rows * 0 + 4])[None]
    y = layer(x)
    assert y.shape == (1, 8, 9, 7) and torch.equal(y[:, :2], x)
    torch.testing.assert_close(y[:, 2:, 2:-2, 2:-2], torch.zeros(1, 6, 5, 3), rtol=0, atol=1e-5)
    noise = torch.randn(1, 2, 3, 1)
    assert layer(100 * noise)[:, 2:].abs().max() <= 1
    one = torch.zeros(1, 1, 7, 7)
    one[0, 0, 3, 3] = 1
    single = HighPass(1, scale=1e-3)(one)[0, 1:, 3, 3] * 1e3
    torch.testing.assert_close(single, torch.tensor([-1.0, -1.0, -1.0]), rtol=1e-4, atol=0)
    encoder = UNetEncoder(0, 2, (4, 6), high_pass=True)
    assert [tuple(one.shape[1:]) for one in encoder.stage_maps(x)] == [(4, 9, 7), (6, 4, 3)]


def test_the_set_is_seeded_and_its_parts_share_no_photograph(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for i, picture in enumerate(pictures(10)):
        Image.fromarray(picture).save(tmp_path / "photos" / f"{i}.png")
    source = str(tmp_path / "photos")
    how = write_forgeries(source, tmp_path / "a", 20, 32, seed=3)
    assert how == "photographs of its own"
    write_forgeries(source, tmp_path / "b", 20, 32, seed=3)
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*.*"))
    assert len(files) == 2 * (14 + 3 + 3) + 1
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    with (tmp_path / "a/forgeries.csv").open() as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        mask = tmp_path / "a" / row["file"].replace("images", "masks").replace(".jpg", ".png")
        found = np.asarray(Image.open(mask))
        assert set(np.unique(found)) <= {0, 255}
        assert (found > 0).mean() == pytest.approx(float(row["share"]), abs=1e-6)
    parts, _ = photographs_by_part(pictures(10), 3)
    keys = [{one.tobytes() for one in parts[part]} for part in ("train", "valid", "test")]
    assert [len(one) for one in keys] == [6, 2, 2] and len(set.union(*keys)) == 10
    with pytest.raises(DataError, match="holds a set already"):
        write_forgeries(source, tmp_path / "a", 20, 32)
    with pytest.raises(DataError, match="60 × 60 pixels for a part, 72 are needed"):
        write_forgeries(source, tmp_path / "c", 20, 64)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_shipped_configuration_trains_and_is_scored(name: str, workdir, capsys) -> None:
    Path("photos").mkdir()
    for i, picture in enumerate(pictures(2, 60, 300)):
        Image.fromarray(picture).save(f"photos/{i}.png")
    argv = ["vision", "forge", "photos", "--out", "pairs", "--count", "12", "--size", "32"]
    assert main(argv) == 0
    assert "columns of the same photographs" in capsys.readouterr().out
    content = yaml.safe_load(DOMAIN.configs()[name].read_text())
    content["model"]["init_args"]["encoder_kwargs"]["dims"] = [4, 4]
    content["data"]["init_args"].update(tile=32, batch_size=2)
    content["trainer"].update(max_steps=2, val_check_interval=2)
    Path("small.yaml").write_text(yaml.safe_dump(content))
    assert main(["vision", "fit", "--config", "small.yaml", "--name=s"]) == 0
    last = "outputs/vision/s/version_0/checkpoints/last.ckpt"
    assert main(["vision", "score", "--ckpt_path", last]) == 0
    out = capsys.readouterr().out
    assert "JPEG ghosts" in out and "best baseline" in out and "unet with residuals" in out
    test = "pairs/test/images"
    assert main(["vision", "predict", test, "--ckpt_path", last, "--out", "found"]) == 0
    assert len(list(Path("found/masks").iterdir())) == 2
    for wrong in (["none"], ["photos", "--size", "8"], ["photos", "--authentic", "1"]):
        assert main(["vision", "forge", *wrong, "--out", "other"]) == 2
    argv = ["vision", "fit", "--config", "small.yaml", "--model.num_classes=3", "--name=t"]
    assert main(argv) == 2
    assert "num_classes must be 2" in capsys.readouterr().err
