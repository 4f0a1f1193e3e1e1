"""The masked-and-forecast transformer: patches, windows, hidden patches, training."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from longseq.core.errors import ConfigError
from longseq.core.training import fit
from longseq.core.training.loading import load_task
from longseq.weather.forecasting.masked_transformer import MaskedTransformer
from longseq.weather.forecasting.task import FlowData, FlowForecaster

CLOSE = {"atol": 1e-10, "rtol": 0.0}


def model_and_frames() -> tuple[MaskedTransformer, torch.Tensor]:
    torch.manual_seed(0)
    model = MaskedTransformer(2, 16, 2, patch=2, window=2, heads=2).double()
    for name, one in model.named_parameters():
        if "bias" in name or name in ("place", "lead", "hidden"):
            torch.nn.init.normal_(one)  # small or zero at first
    return model, torch.randn(2, 5, 2, 8, 12, dtype=torch.float64)


def test_patches_are_cut_and_put_back() -> None:
    model, frames = model_and_frames()
    tokens = model._tokens(frames[:, 0])
    assert tokens.shape == (2, 6, 4, 8) and model.grid(frames.shape[-2:]) == (2, 3)
    torch.testing.assert_close(model._frames(tokens, (2, 3)), frames[:, 0])
    # Window 4 is the second below; its token 1 is the upper right patch of it.
    expected = frames[0, 0, :, 4:6, 6:8].flatten()
    torch.testing.assert_close(tokens[0, 4, 1], expected)
    moved = model._shifted(tokens, (2, 3), 1)
    torch.testing.assert_close(
        model._frames(moved, (2, 3)), frames[:, 0].roll((2, 2), (-2, -1)), **CLOSE
    )


def test_shifts_by_whole_windows_and_pieces_in_time() -> None:
    model, frames = model_and_frames()
    whole, _ = model(frames)
    assert (whole - frames).std() > 0.1
    for shift in ((4, 0), (0, 8), (4, 4)):
        moved, _ = model(frames.roll(shift, (-2, -1)))
        torch.testing.assert_close(moved, whole.roll(shift, (-2, -1)), **CLOSE)
    assert (model(frames.roll(1, -1))[0] - whole.roll(1, -1)).abs().max() > 1e-3
    first, states = model(frames[:, :2])
    rest, _ = model(frames[:, 2:], states)
    torch.testing.assert_close(torch.cat([first, rest], 1), whole, **CLOSE)
    later = frames.clone()
    later[:, 3:] += 1
    torch.testing.assert_close(model(later)[0][:, :3], whole[:, :3], **CLOSE)
    rolled = list(model.rollout(frames, 3))
    torch.testing.assert_close(rolled[0], whole[:, -1], **CLOSE)
    alone = next(model.rollout(frames[:, :1], 1))
    torch.testing.assert_close(alone, whole[:, 0], **CLOSE)
    second = model.make(frames[:, -1], rolled[0], 1)
    torch.testing.assert_close(rolled[1], second, **CLOSE)


def test_every_point_reaches_every_other() -> None:
    model, frames = model_and_frames()
    other = frames.clone()
    other[:, -1, 0, 5, 7] += 1
    gap = (model(other)[0] - model(frames)[0])[:, -1].abs().amax((0, 1))
    assert (gap > 1e-12).all()


@pytest.mark.parametrize("lead", [0, 1])
def test_what_is_hidden_is_not_seen(lead: int) -> None:
    model, frames = model_and_frames()
    before, now = frames[:, 0], frames[:, 1]
    hidden = model.draw_hidden(now, 0.5)
    assert 0 < hidden.double().mean() < 1
    where = model._frames(hidden[..., None].expand(-1, -1, -1, 8), (2, 3))
    made = model.make(before, now, lead, hidden)
    noise = torch.randn_like(now)
    same = model.make(
        torch.where(where, noise, before), torch.where(where, noise, now), lead, hidden
    )
    torch.testing.assert_close(same, made, **CLOSE)
    seen = model.make(before, torch.where(where, now, noise), lead, hidden)
    assert (seen - made)[where].abs().max() > 1e-3
    assert (model.make(before, now, 1 - lead, hidden) - made).abs().max() > 1e-3
    assert (model.make(before, now, lead) - made).abs().max() > 1e-3


def test_what_is_made_is_held_to_the_right_frames() -> None:
    model, frames = model_and_frames()
    made, true = model.masked_pairs(frames, 0.0)
    assert made.shape == true.shape == (2, 2, 2, 8, 12)
    for video, now, after, ahead in zip(frames, true[0], true[1], made[1]):
        (time,) = (n for n in range(5) if torch.equal(video[n], now))
        assert 1 <= time < 4 and torch.equal(video[time + 1], after)
        expected = model.make(video[None, time - 1], now[None], 1)[0]
        torch.testing.assert_close(ahead, expected, **CLOSE)
    torch.manual_seed(1)
    times = {int(model.masked_pairs(frames[:1], 0.9)[1][0, 0, 0, 0, 0] * 1e6) for _ in range(20)}
    assert len(times) == 3
    # Three frames are just enough, and nothing but the hidden patches' own values is lost.
    whole, _ = model.masked_pairs(frames[:, :3], 0.0)
    torch.testing.assert_close(whole[1], model(frames)[0][:, 1], **CLOSE)


def test_it_learns_to_make_frames_whole(tmp_path: Path) -> None:
    torch.manual_seed(0)
    data = FlowData(8, 2, 12, 2, 200, horizon=2, leads=3, eval_members=1, batch_size=4)
    task = FlowForecaster("masked_transformer", 16, 1)
    video = data.train_windows()[0]["video"]
    optimizer = torch.optim.Adam(task.parameters(), 5e-3)
    losses = []
    for _ in range(40):
        loss = task.compute({"video": video})["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    assert all(one.grad is not None for one in task.parameters())
    done = fit(task, data, tmp_path, 1)
    again = load_task(done.checkpoint, "weather").eval()
    assert again(video[:, :4], 2).shape == (4, 2, 2, 8, 8)


def test_what_does_not_fit_is_refused() -> None:
    model, frames = model_and_frames()
    with pytest.raises(ConfigError, match="columns of the field"):
        model(frames[..., :10])
    with pytest.raises(ConfigError, match="three frames"):
        model.masked_pairs(frames[:, :2], 0.5)
    for wrong in ({"heads": 5}, {"patch": 0}, {"window": 0}, {"width": 0}):
        with pytest.raises(ConfigError):
            MaskedTransformer(**wrong)  # type: ignore[arg-type]
    for hidden in (1.0, -0.1, float("nan")):
        with pytest.raises(ConfigError, match="hidden"):
            FlowForecaster("masked_transformer", hidden=hidden)
    with pytest.raises(ConfigError, match="masked_transformr"):
        FlowForecaster("masked_transformr")  # type: ignore[arg-type]
