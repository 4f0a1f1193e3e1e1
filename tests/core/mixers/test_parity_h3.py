"""H3 against the layer published with its paper (HazyResearch/H3), live and from frozen numbers.

The live tests run where LONGSEQ_UPSTREAM_H3 names a checkout of that repository, and einops,
opt_einsum and scipy are installed; with it set, running this file as a program writes the frozen
numbers again.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from longseq.core.mixers.h3 import H3
from parity import differences, disturb, with_gradients

FIXTURES = Path(__file__).parent / "fixtures"
CHECKOUT = os.environ.get("LONGSEQ_UPSTREAM_H3")
live = pytest.mark.skipif(
    CHECKOUT is None, reason="LONGSEQ_UPSTREAM_H3 names no checkout of HazyResearch/H3"
)
# In float32 the published zoh loses digits in e^z - 1 for small steps, and takes powers in float32.
# Its shift kernel is rounded to float32 whatever the parameters are, which bounds the comparison in
# float64.
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-6}
CASES: list[dict[str, Any]] = [
    {"d_state": 16},
    {"d_state": 8, "head_dim": 4, "disc": "zoh"},
    {"d_state": 8, "head_dim": 2, "n_ssm": 2, "measure": "diag-inv"},
]
FROZEN: dict[str, Any] = {"d_state": 6, "head_dim": 2}


def stub(name: str, **members: Any) -> None:
    """Stands in for a module that the checkout imports and that this comparison does not reach."""
    if name not in sys.modules:
        module = types.ModuleType(name)
        for key, value in members.items():
            setattr(module, key, value)
        sys.modules[name] = module


def upstream(d_model: int, **kwargs: Any) -> nn.Module:
    assert CHECKOUT is not None
    for name in ("einops", "opt_einsum", "scipy"):
        pytest.importorskip(name)
    if CHECKOUT not in sys.path:
        sys.path.insert(0, CHECKOUT)
    import logging

    stub("src.utils.utils", get_logger=logging.getLogger)
    module: Any = importlib.import_module("src.models.ssm.h3")
    layer = module.H3(d_model, **kwargs)
    assert isinstance(layer, nn.Module)
    return layer


@live
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("length", [1, 33])
@pytest.mark.parametrize("kwargs", CASES)
def test_equals_upstream(kwargs: dict[str, Any], length: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    theirs = upstream(16, **kwargs).to(dtype)
    disturb(theirs)
    ours = H3(16, **kwargs).to(dtype)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, length, 16, dtype=dtype)
    names = dict(theirs.named_parameters())
    expected = with_gradients(theirs, names, x)
    actual = with_gradients(ours, {name: ours.get_parameter(name) for name in names}, x)
    found = differences(actual, expected)
    print({key: f"{value:.1e}" for key, value in found.items()})
    assert max(found.values()) <= TOLERANCE[dtype], found

    with torch.no_grad():  # in two chunks
        first, state = ours(x[:, : length // 2 + 1])
        rest = x[:, length // 2 + 1 :]
        y = torch.cat([first, ours(rest, state)[0]], 1) if rest.shape[1] else first
    assert (y - expected["y"]).abs().max() <= TOLERANCE[dtype] * expected["y"].abs().max()


@live
@pytest.mark.parametrize("kwargs", CASES)
def test_starts_as_upstream_starts(kwargs: dict[str, Any]) -> None:
    theirs, ours = upstream(64, **kwargs), H3(64, **kwargs)
    assert theirs.state_dict().keys() == ours.state_dict().keys()
    for name, value in ours.state_dict().items():
        expected = theirs.state_dict()[name]
        if name.endswith((".B", "inv_A_real", "A_imag")):
            torch.testing.assert_close(value, expected, msg=name)
        else:
            assert value.std() == pytest.approx(expected.std().item(), rel=0.4), name


def test_equals_frozen_upstream() -> None:
    frozen = {key: torch.from_numpy(value) for key, value in np.load(FIXTURES / "h3.npz").items()}
    ours = H3(4, **FROZEN).double()
    ours.load_state_dict({key[7:]: v for key, v in frozen.items() if key.startswith("weight:")})
    expected = {key[4:]: v for key, v in frozen.items() if key.startswith("out:")}
    names = [key for key in expected if key not in ("x", "y")]
    actual = with_gradients(
        ours, {name: ours.get_parameter(name) for name in names}, frozen["input"]
    )
    found = differences(actual, expected)
    assert max(found.values()) <= TOLERANCE[torch.float64], found


def write_fixture() -> None:
    """Writes weights, input, output and gradients of the published layer, computed in float64."""
    torch.manual_seed(0)
    layer = upstream(4, **FROZEN)
    disturb(layer)
    layer = layer.double()
    x = torch.randn(2, 9, 4).double()
    out = with_gradients(layer, dict(layer.named_parameters()), x)
    np.savez_compressed(
        FIXTURES / "h3.npz",
        input=x.numpy(),
        **{f"weight:{key}": value.float().numpy() for key, value in layer.state_dict().items()},
        **{f"out:{key}": value.float().numpy() for key, value in out.items()},
    )


if __name__ == "__main__":
    write_fixture()
