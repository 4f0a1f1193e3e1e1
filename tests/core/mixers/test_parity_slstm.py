"""sLSTM against the layer published with xLSTM (NX-AI/xlstm, vanilla backend), live and from frozen numbers.

The live test runs where LONGSEQ_UPSTREAM_XLSTM names a checkout of that repository; with it set, running this
file as a program writes the frozen numbers again.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from longseq.core.mixers import create_mixer

FIXTURE = Path(__file__).parent / "fixtures" / "slstm.npz"
CHECKOUT = os.environ.get("LONGSEQ_UPSTREAM_XLSTM")
# The same sums in another order over 33 steps of a recurrence that does not grow: tens of roundings.
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


def upstream(d_model: int, n_heads: int) -> nn.Module:
    assert CHECKOUT is not None
    if CHECKOUT not in sys.path:
        sys.path.insert(0, CHECKOUT)
    module: Any = importlib.import_module("xlstm.blocks.slstm.layer")
    config = module.sLSTMLayerConfig(embedding_dim=d_model, num_heads=n_heads, backend="vanilla")
    layer = module.sLSTMLayer(config)
    layer.reset_parameters()
    return layer


def disturb(layer: nn.Module) -> None:
    """Moves every parameter away from zero and one, so that no term is absent by its initialisation."""
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))


def with_gradients(layer: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Output and gradients of a weighted sum of it, by parameter name."""
    x = x.clone().requires_grad_()
    result = layer(x)
    y = result[0] if isinstance(result, tuple) else result
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y).cos()
    names, parameters = zip(*layer.named_parameters())
    gradients = torch.autograd.grad((y * weights).sum(), [x, *parameters])
    return {"y": y.detach(), **dict(zip(("x", *names), gradients))}


def largest_difference(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    """Relative to the largest value of each tensor, or to 1e-3 of the largest of all where that is more."""
    assert actual.keys() == expected.keys()
    floor = 1e-3 * max(value.abs().max().item() for value in expected.values())
    return {
        key: (actual[key] - value).abs().max().item() / max(value.abs().max().item(), floor)
        for key, value in expected.items()
    }


@pytest.mark.skipif(CHECKOUT is None, reason="LONGSEQ_UPSTREAM_XLSTM names no checkout of NX-AI/xlstm")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("d_model", "n_heads"), [(16, 4), (24, 2)])
def test_equals_upstream(d_model: int, n_heads: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    theirs = upstream(d_model, n_heads).to(dtype)
    disturb(theirs)
    ours = create_mixer("slstm", d_model, n_heads=n_heads).to(dtype)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 33, d_model, dtype=dtype)
    differences = largest_difference(with_gradients(ours, x), with_gradients(theirs, x))
    print({key: f"{value:.1e}" for key, value in differences.items()})
    assert max(differences.values()) <= TOLERANCE[dtype], differences

    with torch.no_grad():  # a second chunk, from the state after the first
        _, state = ours(x[:, :20])
        _, their_state = theirs(x[:, :20], return_last_state=True)
        y, _ = ours(x[:, 20:], state)
        expected, _ = theirs(x[:, 20:], **their_state, return_last_state=True)
    assert (y - expected).abs().max() <= TOLERANCE[dtype] * expected.abs().max()


@pytest.mark.skipif(CHECKOUT is None, reason="LONGSEQ_UPSTREAM_XLSTM names no checkout of NX-AI/xlstm")
def test_starts_as_upstream_starts() -> None:
    theirs, ours = upstream(32, 4), create_mixer("slstm", 32, n_heads=4)
    for name, value in ours.state_dict().items():
        expected = theirs.state_dict()[name]
        if name.startswith(("slstm_cell", "group_norm")):
            torch.testing.assert_close(value, expected, msg=name)
        else:
            assert value.std() == pytest.approx(expected.std().item(), rel=0.4), name


def test_equals_frozen_upstream() -> None:
    frozen = {key: torch.from_numpy(value) for key, value in np.load(FIXTURE).items()}
    ours = create_mixer("slstm", 8, n_heads=2).double()
    prefix = "weight:"
    ours.load_state_dict({key[len(prefix) :]: v for key, v in frozen.items() if key.startswith(prefix)})
    expected = {key[len("out:") :]: v for key, v in frozen.items() if key.startswith("out:")}
    differences = largest_difference(with_gradients(ours, frozen["input"]), expected)
    # The outputs are stored as float32.
    assert max(differences.values()) <= 1e-6, differences


def write_fixture() -> None:
    """Writes the frozen numbers: weights, input, output and gradients of the upstream layer, in float64."""
    torch.manual_seed(0)
    layer = upstream(8, 2).double()
    disturb(layer)
    for parameter in layer.parameters():
        parameter.data = parameter.data.float().double()
    x = torch.randn(2, 9, 8).double()
    np.savez_compressed(
        FIXTURE,
        input=x.numpy(),
        **{f"weight:{key}": value.float().numpy() for key, value in layer.state_dict().items()},
        **{f"out:{key}": value.float().numpy() for key, value in with_gradients(layer, x).items()},
    )


if __name__ == "__main__":
    write_fixture()
