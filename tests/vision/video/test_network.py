"""Networks with memory over frames: streaming equals the whole clip, and what no memory means."""

from __future__ import annotations

import pytest
import torch

from longseq.core.errors import ArgumentError, ConfigError
from longseq.vision.video.network import ClipNetwork, FrameMemory, MatteNetwork

SMALL = {"dims": (4, 6, 8), "n_layers": 2}


def settled(network: torch.nn.Module, frames: torch.Tensor) -> torch.nn.Module:
    """The network in evaluation mode with the batch norms' moments of some frames."""
    with torch.no_grad():
        network.train()(frames)
    return network.eval()


@pytest.mark.parametrize("mixer", ["mamba", "gla", "slstm", "mamba2"])
@pytest.mark.parametrize("kind", ["matte", "clip"])
def test_streaming_equals_the_whole_clip(kind: str, mixer: str) -> None:
    torch.manual_seed(0)
    # Odd sides: the decoder enlarges to the encoder's own.
    frames = torch.rand(2, 7, 3, 13, 18)
    kwargs = {"headdim": 4} if mixer == "mamba2" else {}
    memory = FrameMemory(mixer=mixer, mixer_kwargs=kwargs, **SMALL)
    network = settled(MatteNetwork(memory) if kind == "matte" else ClipNetwork(memory, 5), frames)
    with torch.no_grad():
        whole, last = network(frames)
        parts, states = [], None
        for frame in frames.split([1, 1, 3, 1, 1], 1):
            part, states = network(frame, states)
            parts.append(part)
    assert whole.shape == ((2, 7, 1, 13, 18) if kind == "matte" else (2, 7, 5))
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=0, atol=1e-5)
    for ours, theirs in zip(states, last):
        for one, other in zip(ours, theirs):
            for name in one:
                torch.testing.assert_close(one[name], other[name], rtol=1e-4, atol=1e-5)


def test_the_future_changes_nothing_and_the_past_does() -> None:
    torch.manual_seed(0)
    frames = torch.rand(1, 6, 3, 12, 12)
    network = settled(MatteNetwork(FrameMemory(**SMALL)), frames)
    other = frames.clone()
    other[:, 3] = torch.rand(3, 12, 12)
    with torch.no_grad():
        change = (network(frames)[0] - network(other)[0]).abs().amax((0, 2, 3, 4))
    assert (change[:3] == 0).all() and (change[3:] > 0).all()


def test_without_memory_every_frame_stands_alone() -> None:
    torch.manual_seed(0)
    frames = torch.rand(2, 5, 3, 12, 12)
    network = settled(MatteNetwork(FrameMemory(memory=False, **SMALL)), frames)
    with torch.no_grad():
        whole, states = network(frames)
        alone = torch.cat([network(one)[0] for one in frames.split(1, 1)], 1)
    assert states == []
    torch.testing.assert_close(whole, alone, rtol=0, atol=1e-5)


def test_one_level_and_one_frame() -> None:
    network = MatteNetwork(FrameMemory(in_chans=1, dims=(4,), n_layers=1)).eval()
    assert network(torch.rand(1, 1, 1, 1, 1))[0].shape == (1, 1, 1, 1, 1)


def test_what_does_not_fit_is_refused() -> None:
    network = FrameMemory(**SMALL)
    for shape in ((1, 0, 3, 8, 8), (1, 2, 1, 8, 8), (2, 3, 8, 8), (1, 2, 3, 3, 8)):
        with pytest.raises(ArgumentError, match="frames must"):
            network(torch.zeros(shape))
    with pytest.raises(ConfigError, match="must be causal"):
        FrameMemory(mixer="bidirectional")
    with pytest.raises(ConfigError, match="dims must name"):
        FrameMemory(dims=())
