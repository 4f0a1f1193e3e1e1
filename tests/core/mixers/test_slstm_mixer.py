"""The sLSTM layer beyond the contract: what it holds, long memories and refusals."""

from __future__ import annotations

import pytest
import torch

from longseq.core.errors import ConfigError
from longseq.core.mixers import create_mixer


def test_parameters_are_the_published_layer_s() -> None:
    shapes = {
        name: tuple(value.shape)
        for name, value in create_mixer("slstm", 12, n_heads=2).state_dict().items()
    }
    assert shapes == {
        "conv1d.conv.weight": (12, 1, 4),
        "conv1d.conv.bias": (12,),
        **{f"{gate}.weight": (2, 6, 6) for gate in ("fgate", "igate", "zgate", "ogate")},
        "slstm_cell._recurrent_kernel_": (2, 24, 6),
        "slstm_cell._bias_": (48,),
        "group_norm.weight": (12,),
    }


def test_forget_biases_fall_across_a_head() -> None:
    for depth in (0.0, 0.5, 1.0):
        mixer = create_mixer("slstm", 32, n_heads=2, depth=depth)
        bias = mixer.slstm_cell._bias_.view(4, 2, 16)
        assert bias[1, :, 0].tolist() == pytest.approx([5.0, 5.0])
        assert bias[1, :, -1].tolist() == pytest.approx([-7.0, -7.0])
        assert (bias[1].diff(dim=-1) < 0).all()
        assert not bias[[0, 2, 3]].any()


def test_recurrence_tracks_parity() -> None:
    """What no linear recurrence does: the state flips with every 1, for longer than any training
    length."""
    torch.manual_seed(0)
    mixer = create_mixer("slstm", 8, n_heads=1, d_conv=0)
    head = torch.nn.Linear(8, 2)
    embedding = torch.nn.Embedding(2, 8)
    parameters = [*mixer.parameters(), *head.parameters(), *embedding.parameters()]
    with torch.no_grad():
        mixer.slstm_cell._recurrent_kernel_.normal_(std=0.5)
    optimiser = torch.optim.Adam(parameters, lr=0.02)
    generator = torch.Generator().manual_seed(0)
    for step in range(200):
        bits = torch.randint(2, (32, 2 + step // 20), generator=generator)
        logits = head(mixer(embedding(bits))[0])
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), (bits.cumsum(1) % 2).flatten()
        )
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
    bits = torch.randint(2, (64, 60), generator=generator)
    with torch.no_grad():
        right = head(mixer(embedding(bits))[0]).argmax(-1) == bits.cumsum(1) % 2
    assert right.float().mean() > 0.95


@pytest.mark.parametrize(
    ("kwargs", "named"),
    [
        ({"n_heads": 3}, "n_heads"),
        ({"n_heads": 0}, "n_heads"),
        ({"d_conv": -1}, "d_conv"),
        ({"depth": 1.5}, "depth"),
        ({"dropout": -0.1}, "dropout"),
    ],
)
def test_wrong_values_are_refused(kwargs: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        create_mixer("slstm", 16, **kwargs)
