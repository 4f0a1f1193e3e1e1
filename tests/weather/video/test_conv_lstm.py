"""ConvLSTM: an independent recurrence in NumPy, parallel = sequential = chunked, equal size."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from longseq.core.errors import ArgumentError, ConfigError
from longseq.weather.video.conv_lstm import ConvLSTM, ConvLSTMBlock
from longseq.weather.video.task import VideoForecaster


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize("size", [(1, 1), (3, 4)])
def test_it_is_the_recurrence(size) -> None:
    torch.manual_seed(0)
    layer = ConvLSTM(3, 4, kernel=1).double()
    get = {name: value.detach().numpy() for name, value in layer.named_parameters()}
    assert get["input.bias"][4:8].tolist() == [1, 1, 1, 1]
    u = np.random.default_rng(0).standard_normal((5, 3, *size))
    h = c = np.zeros((4, *size))
    expected = []
    for frame in u:
        gates = np.einsum("oi,ihw->ohw", get["input.weight"][..., 0, 0], frame)
        gates = gates + np.einsum("oi,ihw->ohw", get["recurrent.weight"][..., 0, 0], h)
        gates = gates + get["input.bias"][:, None, None]
        i, f, o, g = np.split(gates, 4)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        y = np.einsum("oi,ihw->ohw", get["out.weight"][..., 0, 0], h)
        expected.append(y + get["out.bias"][:, None, None])
    with torch.no_grad():
        y, state = layer(torch.from_numpy(u)[None])
    assert np.abs(y[0].numpy() - np.stack(expected)).max() < 1e-12
    assert np.abs(state["c"][0].numpy() - c).max() < 1e-12


@pytest.mark.parametrize("edges", ["zeros", "circular"])
@pytest.mark.parametrize("cut", [1, 4, 7])
def test_whole_is_chunked_is_stepped(edges, cut) -> None:
    torch.manual_seed(0)
    block = ConvLSTMBlock(4, 3, groups=2, edges=edges).double()
    u = torch.randn(2, 7, 4, 3, 5, dtype=torch.float64)
    with torch.no_grad():
        whole, last = block(u)
        parts, carried = [], None
        for part in (u[:, :cut], u[:, cut:]):
            if part.shape[1]:
                y, carried = block(part, carried)
                parts.append(y)
        state, frames = block.lstm.init_state(2, 3, 5), []
        for frame in u.unbind(1):
            y, state = block.step(frame, state)
            frames.append(y)
        later = u.clone()
        later[:, 4:] += 1
        assert torch.equal(block(later)[0][:, :4], whole[:, :4])
    for other in (torch.cat(parts, 1), torch.stack(frames, 1)):
        torch.testing.assert_close(other, whole, atol=1e-12, rtol=0)
    for other in (carried, state):
        torch.testing.assert_close(other["c"], last["c"], atol=1e-12, rtol=0)


def test_the_documented_pair_is_of_equal_size() -> None:
    sizes = {}
    for core, d_state in (("conv_s5", 32), ("conv_lstm", 16)):
        task = VideoForecaster(depths=[32], d_state=d_state, core=core)  # type: ignore[arg-type]
        sizes[core] = sum(one.numel() for one in task.parameters())
        task.compute({"video": torch.rand(1, 16, 1, 8, 8)})["loss"].backward()
        assert all(one.grad is not None for one in task.parameters())
    assert 1 <= sizes["conv_lstm"] / sizes["conv_s5"] < 1.02


def test_wrong_arguments() -> None:
    for kwargs in ({"hidden": 0}, {"hidden": 2, "kernel": 2}, {"hidden": 2, "edges": "wrap"}):
        with pytest.raises(ConfigError):
            ConvLSTM(3, **kwargs)
    with pytest.raises(ConfigError, match="core"):
        VideoForecaster(core="lstm")  # type: ignore[arg-type]
    for shape in ((2, 3, 4, 4), (2, 0, 3, 4, 4), (2, 3, 2, 4, 4)):
        with pytest.raises(ArgumentError, match="frames must be"):
            ConvLSTM(3, 2)(torch.zeros(shape))
