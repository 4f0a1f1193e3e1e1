"""Losses and errors of mattes, the median background, and clips of moving shapes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from scipy import ndimage

from longseq.core.errors import ConfigError, DataError
from longseq.vision.video.mattes import (
    MatteError,
    MedianMatte,
    background_difference,
    laplacian_loss,
    matte_loss,
)
from longseq.vision.video.moving_shapes import (
    MOTIONS,
    MovingShapes,
    load_photographs,
    make_clip,
    part_of,
)


def test_errors_are_their_definitions() -> None:
    random = np.random.default_rng(0)
    alpha, target = random.random((2, 1, 3, 1, 20, 24))
    expected = {
        "mad": 1000 * abs(alpha - target).mean(),
        "mse": 1000 * ((alpha - target) ** 2).mean(),
        "dt": 1000 * (np.diff(alpha - target, axis=1) ** 2).mean(),
    }
    slopes = [
        [ndimage.gaussian_gradient_magnitude(one, 1.4, mode="nearest", truncate=3.6) for one in a]
        for a in (alpha[0, :, 0], target[0, :, 0])
    ]
    expected["gradient"] = 1000 * ((np.array(slopes[0]) - np.array(slopes[1])) ** 2).mean()
    for kind, value in expected.items():
        metric = MatteError(kind)
        for part in range(2):  # in two updates of unequal size, but for what spans frames
            where = slice(0, 1) if part == 0 else slice(1, 3)
            if kind == "dt":
                where = slice(0, 3) if part == 0 else slice(0, 0)
            if len(alpha[0, where]):
                metric.update(torch.tensor(alpha[:, where]), torch.tensor(target[:, where]))
        assert float(metric.compute()) == pytest.approx(value, rel=2e-3), kind


def test_the_laplacian_loss_is_the_difference_of_pyramids_made_apart() -> None:
    torch.manual_seed(0)
    alpha, target = torch.rand(2, 1, 1, 21, 18, dtype=torch.float64)
    bands = []
    for one in (alpha, target):
        bands.append([])
        while len(bands[-1]) < 3:  # 21 × 18, 10 × 9, 5 × 4; then a side is below 4 pixels
            taps = np.outer([1, 4, 6, 4, 1], [1, 4, 6, 4, 1]) / 256
            smooth = torch.tensor(ndimage.convolve(one[0, 0].numpy(), taps, mode="mirror"))
            low = F.avg_pool2d(smooth[None, None], 2)
            bands[-1].append(one - F.interpolate(low, one.shape[2:], mode="bilinear"))
            one = low
    expected = sum(2**s * (a - b).abs().mean() / 4 for s, (a, b) in enumerate(zip(*bands)))
    torch.testing.assert_close(laplacian_loss(alpha, target), expected)
    assert float(laplacian_loss(target, target)) == 0
    tiny = torch.rand(1, 2, 1, 2, 3, requires_grad=True)
    matte_loss(tiny, torch.rand(1, 2, 1, 2, 3)).backward()
    assert torch.isfinite(tiny.grad).all()


def test_the_median_finds_what_moves_and_its_thresholds_are_chosen() -> None:
    clips = MovingShapes(size=32, frames=9, distractors=1, eval_clips=8)
    pairs = [(batch["frames"], batch["alpha"]) for batch in clips.evaluation("valid")]
    rule = MedianMatte().fit(pairs)
    errors = [float((rule.alpha(f) - a).abs().mean()) for f, a in pairs]
    nothing = [float(a.mean()) for _, a in pairs]
    assert np.mean(errors) < 0.8 * np.mean(nothing)
    frames = pairs[0][0]
    running = background_difference(frames, running=True)
    assert (running[:, 0] == 0).all()  # the first frame is its own background
    torch.testing.assert_close(running[:, -1], background_difference(frames)[:, -1])
    with pytest.raises(DataError, match="no clips"):
        MedianMatte().fit([])


@pytest.mark.parametrize("pan", [0.0, 1.0])
def test_clips_are_what_they_say(pan: float) -> None:
    photographs = load_photographs("sklearn")
    seen = set()
    for seed in range(40):
        random = np.random.default_rng(seed)
        frames, alpha, motion = make_clip(random, photographs, 8, 32, 2, 0.0, pan)
        seen.add(motion)
        assert frames.shape == (8, 32, 32, 3) and alpha.shape == (8, 32, 32)
        assert frames.dtype == alpha.dtype == np.float32 and alpha.max() > 0.6
        rows, columns = ((alpha.sum(a) * np.arange(32)).sum(1) / alpha.sum((1, 2)) for a in (2, 1))
        name = MOTIONS[motion]
        steps = {"right": columns, "left": -columns, "down": rows, "up": -rows}
        if name in steps:
            assert (np.diff(steps[name]) > 0.3).all()
        else:
            turn = np.cross(
                np.stack([np.diff(columns)[:-1], np.diff(rows)[:-1], np.zeros(6)], 1),
                np.stack([np.diff(columns)[1:], np.diff(rows)[1:], np.zeros(6)], 1),
            )[:, 2]
            assert (turn > 0).all() if name == "clockwise" else (turn < 0).all()
    assert seen == set(range(6))
    if not pan:  # where nothing has opacity, nothing changes
        still = (alpha < 1e-3).all(0)
        assert still.any() and np.ptp(frames[:, still], 0).max() < 3e-3


def test_batches_are_functions_of_the_step_and_parts_share_no_pixel(tmp_path) -> None:
    data = MovingShapes(size=24, frames=3, batch_size=2, eval_clips=3)
    loader = data.train_dataloader()
    first, again, other = loader.dataset[4], loader.dataset[4], loader.dataset[5]
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["frames"], other["frames"])
    assert [len(batch["label"]) for batch in data.test_dataloader()] == [2, 1]
    photograph = np.arange(10.0).reshape(1, 10, 1)
    parts = [part_of(photograph, part).ravel().tolist() for part in ("train", "valid", "test")]
    assert np.concatenate(parts).tolist() == list(range(10)) and len(parts[0]) == 6
    for i in range(2):  # smaller than a frame: mirrored
        array = np.random.default_rng(i).integers(0, 255, (9, 30, 3), np.uint8)
        Image.fromarray(array).save(tmp_path / f"{i}.png")
    small = MovingShapes(str(tmp_path), size=24, frames=2, eval_clips=1)
    assert next(iter(small.val_dataloader()))["frames"].shape == (1, 2, 3, 24, 24)
    with pytest.raises(DataError, match="no such folder or zip of photographs"):
        MovingShapes("none").setup()
    with pytest.raises(ConfigError, match="distractors, noise and pan"):
        MovingShapes(pan=-1.0)
