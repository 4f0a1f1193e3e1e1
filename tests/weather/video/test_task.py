"""Moving digits and the next-frame model: laws of the videos, streaming, learning, constant
memory."""

from __future__ import annotations

import gc
import gzip

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longseq.core.errors import ArgumentError, ConfigError, DataError
from longseq.weather.video.moving_digits import MovingDigits, load_digits, make_video
from longseq.weather.video.next_frame import NextFrame
from longseq.weather.video.task import VideoForecaster


@given(st.integers(0, 2**32 - 1), st.integers(4, 12), st.integers(1, 3))
@settings(max_examples=30, deadline=None)
def test_a_digit_keeps_its_pixels_moves_steadily_and_bounces(seed, size, speed) -> None:
    image = np.arange(1, 17, dtype=np.float32).reshape(1, 4, 4) / 16
    video = make_video(np.random.default_rng(seed), image, 30, size, 1, speed)
    assert np.array_equal(video, make_video(np.random.default_rng(seed), image, 30, size, 1, speed))
    assert np.allclose(video.sum((1, 2)), image.sum())
    places = np.array([np.argwhere(frame == image[0, 0, 0])[0] for frame in video])
    steps = np.abs(np.diff(places, axis=0))
    assert steps.max() <= speed and places.min() >= 0 and places.max() <= size - 4
    turns = (np.diff(np.sign(np.diff(places, axis=0)), axis=0) != 0).any(1)
    if size - 4 > 4 * speed:  # away from the walls nothing changes
        inner = ((places[1:-1] > speed) & (places[1:-1] < size - 4 - speed)).all(1)
        assert not turns[inner].any()


def test_parts_do_not_share_images_and_batches_are_functions_of_the_step() -> None:
    data = MovingDigits(batch_size=2, frames=5, context=2, eval_videos=3)
    parts = [data.images(part) for part in ("train", "valid", "test")]
    assert sum(map(len, parts)) == len(load_digits()) == 1797 and parts[0].shape[1:] == (8, 8)
    loader = data.train_dataloader()
    first, again = next(iter(loader)), next(iter(data.train_dataloader()))
    assert torch.equal(first["video"], again["video"]) and first["video"].shape == (2, 5, 1, 16, 16)
    assert not torch.equal(loader.dataset[1]["video"], first["video"])
    assert data.videos("test", 3, 7)[2]["video"].shape == (7, 1, 16, 16)
    assert not torch.equal(
        data.videos("test", 3, 7)[0]["video"], data.videos("valid", 3, 7)[0]["video"]
    )


def test_idx_files(tmp_path) -> None:
    images = (load_digits() * 255).astype(np.uint8)[:30]
    content = (
        b"\x00\x00\x08\x03"
        + b"".join(n.to_bytes(4, "big") for n in images.shape)
        + images.tobytes()
    )
    (tmp_path / "a").write_bytes(content)
    (tmp_path / "a.gz").write_bytes(gzip.compress(content))
    for name in ("a", "a.gz"):
        assert np.array_equal(load_digits(str(tmp_path / name)), images / np.float32(255))
    bad = {
        "cut": content[:-1],
        "text": b"hello",
        "cut.gz": gzip.compress(content)[:50],
        "empty": b"",
    }
    for name, wrong in bad.items():
        (tmp_path / name).write_bytes(wrong)
        with pytest.raises(DataError, match=name):
            load_digits(str(tmp_path / name))
    with pytest.raises(ConfigError, match="smaller than the digits"):
        MovingDigits(size=4).images("train")
    with pytest.raises(ConfigError, match="must exceed"):
        MovingDigits(frames=5, context=5)


@pytest.mark.parametrize("depths", [(8,), (8, 16)])
def test_whole_chunked_and_stepped_predictions_agree(depths) -> None:
    torch.manual_seed(0)
    model = NextFrame(1, 2, depths, 2, 4, groups=4).eval()
    video = torch.rand(2, 7, 1, 8, 12)
    with torch.no_grad():
        whole, last = model(video)
        first, states = model(video[:, :3])
        frames = [first]
        for t in range(3, 7):
            y, states = model.step(video[:, t], states)
            frames.append(y[:, None])
    assert whole.shape == video.shape and (torch.cat(frames, 1) - whole).abs().max() <= 1e-5
    for one, other in zip(states, last):
        assert (one["ssm"] - other["ssm"]).abs().max() <= 1e-5
    with pytest.raises(ArgumentError, match="multiples"):
        model(torch.rand(1, 2, 1, 7, 8))


def test_the_rollout_feeds_its_frames_back_and_keeps_nothing() -> None:
    torch.manual_seed(0)
    model = NextFrame(1, 2, (8,), 1, 4, groups=4).eval()
    context = torch.rand(1, 4, 1, 8, 8)
    with torch.no_grad():
        frames = list(model.rollout(context, 3))
        video, expected = context, []
        for _ in range(3):
            expected.append(model(video)[0][:, -1])
            video = torch.cat([video, expected[-1][:, None]], 1)
    for one, other in zip(frames, expected, strict=True):
        assert (one - other).abs().max() <= 1e-5
    assert list(model.rollout(context, 0)) == []


def test_memory_does_not_grow_with_the_rollout() -> None:
    model = NextFrame(1, 2, (8,), 1, 4, groups=4).eval()
    held = []

    def size_of(tensor: torch.Tensor) -> int:
        return tensor.numel() * tensor.element_size()

    with torch.inference_mode():
        for index, frame in enumerate(model.rollout(torch.rand(2, 4, 1, 16, 16), 60)):
            size = size_of(frame)
            del frame
            if index in (9, 59):
                gc.collect()
                # One expression: a name would keep the tensors of now alive until the next count.
                held.append(
                    sum(size_of(one) for one in gc.get_objects() if type(one) is torch.Tensor)
                )
    assert held[1] <= held[0] + size


def test_it_learns_to_go_on(tmp_path) -> None:
    torch.manual_seed(0)
    task = VideoForecaster(1, 2, (8,), 1, 8, groups=4, context=4)
    data = MovingDigits(size=12, digits=1, speed=1, frames=10, context=4, batch_size=8)
    batches = data.train_dataloader().dataset
    optimiser = torch.optim.Adam(task.parameters(), lr=1e-2)
    losses = []
    for step in range(25):
        loss = task.compute(batches[step])["loss"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert np.mean(losses[-3:]) < 0.6 * losses[0]
    out = task.eval().compute(batches[99])
    assert out["forecast"].shape == out["target"].shape == (8, 6, 1, 12, 12)


def test_length_one_and_no_own_pass() -> None:
    task = VideoForecaster(1, 2, (8,), 1, 4, groups=4, context=1, passes=0)
    batch = {"video": torch.rand(1, 2, 1, 8, 8)}
    assert task.compute(batch)["loss"].requires_grad
    with pytest.raises(ConfigError):
        VideoForecaster(context=0)


@pytest.mark.parametrize("context", [1, 4])
def test_own_frames_of_a_rollout_are_those_of_use(context: int) -> None:
    torch.manual_seed(0)
    task = VideoForecaster(1, 2, (8,), 1, 4, groups=4, context=context, own="rollout").double()
    video = torch.rand(2, 9, 1, 8, 8, dtype=torch.float64)
    loss = task.compute({"video": video})["loss"]
    with torch.no_grad():
        made = torch.stack(list(task.model.rollout(video[:, :context], 8 - context)), 1)
    parts = []
    for frames in (video[:, :-1], torch.cat([video[:, :context], made], 1)):
        predicted, _ = task.model(frames)
        if context > 1 and not parts:
            first = predicted[:, : context - 1] - video[:, 1:context]
            parts.append(first.square().mean())
        parts.append((predicted[:, context - 1 :] - video[:, context:]).square().mean())
    assert loss.item() == pytest.approx(torch.stack(parts).mean().item(), rel=1e-12)
    loss.backward()
    with pytest.raises(ConfigError, match="passes 2"):
        VideoForecaster(own="rollout", passes=2)
    with pytest.raises(ConfigError, match="own"):
        VideoForecaster(own="rollouts")  # type: ignore[arg-type]


def test_model_and_data_must_agree() -> None:
    task = VideoForecaster(1, 2, (8,), 1, 4, groups=4, context=4)
    task.check_data(MovingDigits(size=12, context=4))
    with pytest.raises(ConfigError, match=r"context 4 and --data\.context 5 must agree"):
        task.check_data(MovingDigits(size=12, context=5))
    with pytest.raises(ConfigError, match="size 13 must be a multiple of 2"):
        task.check_data(MovingDigits(size=13, context=4))
