"""sLSTM against the layer published with xLSTM (NX-AI/xlstm, vanilla backend), live and from frozen
numbers.

The live test runs where LONGSEQ_UPSTREAM_XLSTM names a checkout of that repository; with it set,
running this file as a program writes the frozen numbers again.
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
from torch import nn

from longseq.core.mixers import create_mixer
from parity import differences, disturb, with_gradients

FIXTURE = Path(__file__).parent / "fixtures" / "slstm.npz"
CHECKOUT = os.environ.get("LONGSEQ_UPSTREAM_XLSTM")
# The same sums in another order over 33 steps of a recurrence that does not grow: tens of
# roundings.
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


@pytest.mark.skipif(
    CHECKOUT is None, reason="LONGSEQ_UPSTREAM_XLSTM names no checkout of NX-AI/xlstm"
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("d_model", "n_heads"), [(16, 4), (24, 2)])
def test_equals_upstream(d_model: int, n_heads: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    theirs = upstream(d_model, n_heads).to(dtype)
    disturb(theirs, 0.3)
    ours = create_mixer("slstm", d_model, n_heads=n_heads).to(dtype)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 33, d_model, dtype=dtype)
    found = differences(
        with_gradients(ours, dict(ours.named_parameters()), x),
        with_gradients(theirs, dict(theirs.named_parameters()), x),
    )
    print({key: f"{value:.1e}" for key, value in found.items()})
    assert max(found.values()) <= TOLERANCE[dtype], found

    with torch.no_grad():  # a second chunk, from the state after the first
        _, state = ours(x[:, :20])
        _, their_state = theirs(x[:, :20], return_last_state=True)
        y, _ = ours(x[:, 20:], state)
        expected, _ = theirs(x[:, 20:], **their_state, return_last_state=True)
    assert (y - expected).abs().max() <= TOLERANCE[dtype] * expected.abs().max()


@pytest.mark.skipif(
    CHECKOUT is None, reason="LONGSEQ_UPSTREAM_XLSTM names no checkout of NX-AI/xlstm"
)
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
    ours.load_state_dict(
        {key[len(prefix) :]: v for key, v in frozen.items() if key.startswith(prefix)}
    )
    expected = {key[len("out:") :]: v for key, v in frozen.items() if key.startswith("out:")}
    found = differences(
        with_gradients(ours, dict(ours.named_parameters()), frozen["input"]), expected
    )
    # The outputs are stored as float32.
    assert max(found.values()) <= 1e-6, found


def write_fixture() -> None:
    """Writes the frozen numbers: weights, input, output and gradients of the upstream layer, in
    float64."""
    torch.manual_seed(0)
    layer = upstream(8, 2).double()
    disturb(layer, 0.3)
    for parameter in layer.parameters():
        parameter.data = parameter.data.float().double()
    x = torch.randn(2, 9, 8).double()
    np.savez_compressed(
        FIXTURE,
        input=x.numpy(),
        **{f"weight:{key}": value.float().numpy() for key, value in layer.state_dict().items()},
        **{
            f"out:{key}": value.float().numpy()
            for key, value in with_gradients(layer, dict(layer.named_parameters()), x).items()
        },
    )


if __name__ == "__main__":
    write_fixture()
