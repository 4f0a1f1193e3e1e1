"""mLSTM against the layer and the operators published with xLSTM (NX-AI/xlstm), live and from
frozen numbers.

The live tests run where LONGSEQ_UPSTREAM_XLSTM names a checkout of that repository; with it set,
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
from torch import Tensor, nn

from longseq.core.mixers import create_mixer
from longseq.core.ops.mlstm import mlstm
from parity import differences, fill, gradients, waves

FIXTURE = Path(__file__).parent / "fixtures" / "mlstm.npz"
CHECKOUT = os.environ.get("LONGSEQ_UPSTREAM_XLSTM")
needs_checkout = pytest.mark.skipif(
    CHECKOUT is None, reason="LONGSEQ_UPSTREAM_XLSTM names no checkout of NX-AI/xlstm"
)
# Upstream subtracts cumulative sums of log forget gates where we add up spans: it loses digits in
# float32.
TOLERANCE = {torch.float32: 3e-5, torch.float64: 1e-12}
D_MODEL, N_HEADS, LENGTH = 16, 4, 37


def upstream(module: str) -> Any:
    assert CHECKOUT is not None
    if CHECKOUT not in sys.path:
        sys.path.insert(0, CHECKOUT)
    return importlib.import_module(module)


def their_layer(d_model: int, n_heads: int, length: int, bias: bool = False) -> nn.Module:
    module = upstream("xlstm.blocks.mlstm.layer")
    return module.mLSTMLayer(
        module.mLSTMLayerConfig(
            embedding_dim=d_model,
            num_heads=n_heads,
            context_length=length,
            bias=bias,
            round_proj_up_to_multiple_of=16,
        )
    )


@needs_checkout
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("form", ["parallel", "chunkwise"])
def test_operator_equals_upstream(form: str, dtype: torch.dtype) -> None:
    backends = upstream("xlstm.blocks.mlstm.backends")
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 64, 3, 8, dtype=dtype).requires_grad_() for _ in range(3))
    i, f = (torch.randn(2, 64, 3, dtype=dtype).add_(shift).requires_grad_() for shift in (-1, 3))
    leaves = {"q": q, "k": k, "v": v, "i": i, "f": f}
    y, state = mlstm(q, k, v, i, f)
    heads_first = [x.transpose(1, 2) for x in (q, k, v)]
    gates = [x.transpose(1, 2) for x in (i, f)]
    actual, expected = gradients(y, leaves), {}
    if form == "parallel":
        theirs = backends.parallel_stabilized_simple(
            *heads_first, *(gate.unsqueeze(-1) for gate in gates)
        )
    else:
        theirs, (c, n, m) = backends.chunkwise_simple(
            *(x.contiguous() for x in (*heads_first, *gates)), chunk_size=16, return_last_state=True
        )
        # There the queries are scaled instead of the keys, and m starts from 0 instead of -inf:
        # what does not depend on that is exp(m) C and exp(m) n.
        unit = m.squeeze((-1, -2)).exp()
        expected |= {"c": c * 8**-0.5 * unit[..., None, None], "n": n * 8**-0.5 * unit[..., None]}
        unit = state[2].exp()
        actual |= {"c": state[0] * unit[..., None, None], "n": state[1] * unit[..., None]}
    expected |= gradients(theirs.transpose(1, 2), leaves)
    found = differences(actual, expected)
    print({key: f"{value:.1e}" for key, value in found.items()})
    # m from 0 weighs the 1e-6 that both add to the denominator differently.
    assert max(found.values()) <= (TOLERANCE[dtype] if form == "parallel" else 1e-4), found


@needs_checkout
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bias", [False, True])
def test_layer_equals_upstream(bias: bool, dtype: torch.dtype) -> None:
    theirs = their_layer(D_MODEL, N_HEADS, LENGTH, bias).to(dtype)
    fill(theirs, 0.4)
    ours = create_mixer(
        "mlstm", D_MODEL, n_heads=N_HEADS, round_up_to=16, bias=bias, chunk_size=16
    ).to(dtype)
    ours.load_state_dict(theirs.state_dict())
    x = waves(2, LENGTH, D_MODEL).to(dtype).requires_grad_()
    found = differences(
        gradients(ours(x)[0], {"x": x, **dict(ours.named_parameters())}),
        gradients(theirs(x), {"x": x, **dict(theirs.named_parameters())}),
    )
    print({key: f"{value:.1e}" for key, value in found.items()})
    assert max(found.values()) <= TOLERANCE[dtype], found


@needs_checkout
def test_stepping_equals_upstream_stepping() -> None:
    theirs = their_layer(D_MODEL, N_HEADS, LENGTH).double()
    fill(theirs, 0.4)
    ours = create_mixer("mlstm", D_MODEL, n_heads=N_HEADS, round_up_to=16).double()
    ours.load_state_dict(theirs.state_dict())
    x = waves(2, 9, D_MODEL)
    with torch.no_grad():
        state, their_state = ours.init_state(2), {}
        # Upstream starts m from 0: with it our steps use the same rounding 1e-6 in the denominator.
        state["m"] = torch.zeros_like(state["m"])
        for t in range(9):
            y, state = ours.step(x[:, t], state)
            expected, their_state = theirs.step(x[:, t : t + 1], **their_state)
            torch.testing.assert_close(y, expected[:, 0], rtol=1e-11, atol=1e-12)
    c, n, m = their_state["mlstm_state"]
    torch.testing.assert_close(state["c"], c, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(state["n"], n.squeeze(-1), rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(state["m"], m.squeeze((-1, -2)), rtol=1e-11, atol=1e-12)


@needs_checkout
def test_starts_as_upstream_starts() -> None:
    theirs, ours = their_layer(32, 4, 8), create_mixer("mlstm", 32, n_heads=4, round_up_to=16)
    for name, expected in theirs.state_dict().items():
        value = ours.state_dict()[name]
        if expected.std() == 0 or name == "mlstm_cell.fgate.bias":
            torch.testing.assert_close(value, expected, msg=name)
        elif name != "mlstm_cell.igate.bias":  # four draws tell nothing
            assert value.std() == pytest.approx(expected.std().item(), rel=0.4), name


def frozen_case() -> tuple[nn.Module, Tensor]:
    """The layer and the input of the frozen numbers, float64."""
    ours = create_mixer("mlstm", 8, n_heads=2, round_up_to=16).double()
    fill(ours, 0.4)
    return ours, waves(2, 19, 8)


def test_equals_frozen_upstream() -> None:
    frozen = {key: torch.from_numpy(value).double() for key, value in np.load(FIXTURE).items()}
    ours, x = frozen_case()
    x.requires_grad_()
    found = differences(gradients(ours(x)[0], {"x": x, **dict(ours.named_parameters())}), frozen)
    assert max(found.values()) <= 1e-6, found  # stored as float32


def write_fixture() -> None:
    """Writes output and gradients of the upstream layer, computed in float64."""
    theirs = their_layer(8, 2, 19).double()
    ours, x = frozen_case()
    theirs.load_state_dict(ours.state_dict())
    x.requires_grad_()
    values = gradients(theirs(x), {"x": x, **dict(theirs.named_parameters())})
    np.savez_compressed(FIXTURE, **{key: value.float().numpy() for key, value in values.items()})


if __name__ == "__main__":
    write_fixture()
