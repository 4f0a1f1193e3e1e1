"""Padding in mixers and stacks, states of packed sequences, and what is refused by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from longseq.core.backbone import Backbone
from longseq.core.errors import ArgumentError, ConfigError
from longseq.core.mixers import create_mixer
from longseq.core.mixers.padding import repack, unpack

COUNTS = [7, 3, 0, 1, 3]


def stack() -> Backbone:
    torch.manual_seed(0)
    pattern: list[Any] = [("attention", {"n_heads": 2}), ("mamba", {"d_state": 4}), "hyena"]
    return Backbone(16, 3, pattern, {"hyena": {"l_max": 32}}, mlp_ratio=2.0).double().eval()


@pytest.mark.parametrize("left", [False, True])
def test_a_padded_stack_is_its_rows_alone(left: bool) -> None:
    model, place = stack(), torch.arange(7)
    counts = torch.tensor(COUNTS).unsqueeze(1)
    real = place >= 7 - counts if left else place < counts
    x = torch.randn(5, 7, 16, dtype=torch.float64)
    x[~real] = torch.nan
    y, states = model(x, attention_mask=real)
    assert not y[~real].any()
    more = torch.randn(5, 2, 16, dtype=torch.float64)
    following, _ = model(more, states)
    step, _ = model.step(more[:, 0], states)
    for row, count in enumerate(COUNTS):
        alone, last = model(x[row, real[row]].unsqueeze(0))
        torch.testing.assert_close(y[row, real[row]], alone[0], rtol=1e-11, atol=1e-12)
        expected = model(more[row : row + 1], last if count else None)[0][0]
        torch.testing.assert_close(following[row], expected, rtol=1e-11, atol=1e-12)
        torch.testing.assert_close(step[row], expected[0], rtol=1e-11, atol=1e-12)


def test_padding_beside_packed_sequences() -> None:
    model = create_mixer("mamba2", 16, d_state=4).double()
    x = torch.randn(1, 9, 16, dtype=torch.float64)
    ids = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 2, 2]])
    real = torch.tensor([[1, 1, 0, 0, 1, 1, 0, 0, 0]])
    y, state = model(x, segment_ids=ids, attention_mask=real)
    first, _ = model(x[:, :2])
    second, last = model(x[:, 4:6])
    torch.testing.assert_close(y[:, :2], first)
    torch.testing.assert_close(y[:, 4:6], second)
    torch.testing.assert_close(state, last)


def test_a_state_after_each_packed_sequence() -> None:
    model = create_mixer("gla", 16, n_heads=2).double()
    x = torch.randn(2, 6, 16, dtype=torch.float64)
    ids = torch.tensor([[0, 0, 1, 1, 1, 2], [5, 5, 5, 5, 5, 5]])
    rows, lengths = unpack(x, ids)
    assert lengths.tolist() == [2, 3, 1, 6] and rows.shape == (4, 6, 16)
    y, states = model(rows, lengths=lengths)
    torch.testing.assert_close(repack(y, ids), model(x, segment_ids=ids)[0])
    torch.testing.assert_close(states["kv"][1], model(x[:1, 2:5])[1]["kv"][0])
    torch.testing.assert_close(states["kv"][2:], model(x, segment_ids=ids)[1]["kv"])


def test_a_mask_under_a_compiler() -> None:
    model = create_mixer("mamba", 8, d_state=2).double()
    x, real = torch.randn(3, 6, 8, dtype=torch.float64), torch.ones(3, 6, dtype=torch.bool)
    real[0, 3:], real[1, :] = False, False
    expected, last = model(x, attention_mask=real)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    y, state = compiled(x, attention_mask=real)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(state, last)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"attention_mask": torch.ones(2, 5), "lengths": [1, 2]}, "not both"),
        ({"attention_mask": torch.zeros(2, 5)}, "attention_mask must be bool or integer"),
        ({"attention_mask": torch.ones(2, 4).long()}, r"\(batch, length\) = \(2, 5\)"),
        ({"lengths": [1, 6]}, "lengths must be 0 to 5"),
        ({"lengths": torch.tensor([1.0, 2.0])}, "lengths must be 2 integers"),
        ({"segment_ids": torch.zeros(2, 4).long()}, "segment_ids must be integers"),
    ],
)
def test_masks_that_do_not_fit_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        create_mixer("mamba", 8)(torch.randn(2, 5, 8), **arguments)


@pytest.mark.parametrize("name", ["mamba", "attention", "s4d", "hyena"])
def test_inputs_that_do_not_fit_are_refused_in_one_line(name: str) -> None:
    mixer = create_mixer(name, 16)
    state = mixer.init_state(2)
    for x in (torch.randn(2, 5, 6), torch.randn(2, 16), torch.ones(2, 5, 16, dtype=torch.long)):
        with pytest.raises(ArgumentError, match="x must be") as caught:
            mixer(x)
        assert "\n" not in str(caught.value)
    with pytest.raises(ArgumentError, match=r"x must be \(batch, width\) with width d_model = 16"):
        mixer.step(torch.randn(2, 6), state)
    with pytest.raises(ArgumentError, match="is that of 2 rows, x has 3"):
        mixer(torch.randn(3, 5, 16), state)


def test_another_dtype_is_explained() -> None:
    with pytest.raises(ArgumentError, match=r"x is torch\.float64 and the parameters"):
        create_mixer("attention", 16)(torch.randn(1, 3, 16, dtype=torch.float64))


def test_weights_that_an_operator_takes_are_not_passed_by() -> None:
    mixer = create_mixer("mamba", 8, d_state=2)
    x = torch.randn(1, 6, 8)
    plain, _ = mixer(x)
    nn.utils.parametrizations.weight_norm(mixer.conv1d)  # the same weights, computed anew
    torch.testing.assert_close(mixer(x)[0], plain)
    mixer = create_mixer("mamba", 8, d_state=2)
    mixer.conv1d = nn.Sequential(mixer.conv1d)
    with pytest.raises(ConfigError, match="conv1d is Sequential, and its weights go into an oper"):
        mixer(x)
    with pytest.raises(ConfigError, match="conv1d is Sequential"), torch.no_grad():
        mixer.step(x[:, 0], mixer.init_state(1))
