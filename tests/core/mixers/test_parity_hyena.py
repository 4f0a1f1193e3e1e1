"""Hyena against HyenaDNA's standalone operator (HazyResearch/hyena-dna), live and from frozen
numbers.

The live tests run where LONGSEQ_UPSTREAM_HYENA_DNA names a checkout of that repository and einops
is installed; with it set, running this file as a program writes the frozen numbers again.
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

from longseq.core.mixers.hyena import Hyena
from parity import differences, disturb, with_gradients

FIXTURES = Path(__file__).parent / "fixtures"
CHECKOUT = os.environ.get("LONGSEQ_UPSTREAM_HYENA_DNA")
live = pytest.mark.skipif(
    CHECKOUT is None,
    reason="LONGSEQ_UPSTREAM_HYENA_DNA names no checkout of HazyResearch/hyena-dna",
)
# FFTs of another size: a few dozen roundings relative to the largest value. In float64 the
# published tables of positions keep the float32 values that they were made with, as ours do.
TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-12}
FROZEN = {"l_max": 12, "filter_order": 8, "order": 2}


def stub(name: str, **members: Any) -> None:
    """Stands in for a module that the checkout imports and that this comparison does not reach."""
    if name not in sys.modules:
        module = types.ModuleType(name)
        for key, value in members.items():
            setattr(module, key, value)
        sys.modules[name] = module


def upstream(d_model: int, l_max: int, filter_order: int, order: int) -> nn.Module:
    assert CHECKOUT is not None
    pytest.importorskip("einops")
    stub("transformers")
    stub("transformers.tokenization_utils", AddedToken=str, PreTrainedTokenizer=object)
    stub("torchvision")
    stub("torchvision.ops", StochasticDepth=nn.Identity)
    spec = importlib.util.spec_from_file_location(
        "hyena_dna", Path(CHECKOUT) / "standalone_hyenadna.py"
    )
    assert spec is not None and spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    # As in the published configurations: emb_dim 5, w 10 and a table that is not trained.
    operator = module.HyenaOperator(
        d_model, l_max, order=order, filter_order=filter_order, emb_dim=5, w=10, lr_pos_emb=0.0
    )
    assert isinstance(operator, nn.Module)
    return operator


def ours_like(theirs: nn.Module, d_model: int, dtype: torch.dtype, **kwargs: Any) -> Hyena:
    ours = Hyena(d_model, **kwargs).to(dtype)
    ours.load_state_dict(theirs.state_dict())
    return ours


@live
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("order", "length"), [(2, 1), (2, 33), (2, 64), (3, 40)])
def test_equals_upstream(order: int, length: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    theirs = upstream(16, 64, 32, order).to(dtype)
    disturb(theirs)
    ours = ours_like(theirs, 16, dtype, l_max=64, filter_order=32, order=order)
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
def test_starts_as_upstream_starts() -> None:
    theirs, ours = upstream(64, 128, 64, 2), Hyena(64, l_max=128)
    assert theirs.state_dict().keys() == ours.state_dict().keys()
    for name, value in ours.state_dict().items():
        expected = theirs.state_dict()[name]
        if "pos_emb" in name or "deltas" in name or "freq" in name:
            torch.testing.assert_close(value, expected, msg=name)
        else:
            assert value.std() == pytest.approx(expected.std().item(), rel=0.4), name


def test_equals_frozen_upstream() -> None:
    frozen = {
        key: torch.from_numpy(value) for key, value in np.load(FIXTURES / "hyena.npz").items()
    }
    ours = Hyena(4, **FROZEN).double()
    ours.load_state_dict({key[7:]: v for key, v in frozen.items() if key.startswith("weight:")})
    expected = {key[4:]: v for key, v in frozen.items() if key.startswith("out:")}
    names = [key for key in expected if key not in ("x", "y")]
    actual = with_gradients(
        ours, {name: ours.get_parameter(name) for name in names}, frozen["input"]
    )
    # The outputs are stored as float32.
    found = differences(actual, expected)
    assert max(found.values()) <= 1e-6, found


def write_fixture() -> None:
    """Writes weights, input, output and gradients of the published operator, computed in
    float64."""
    torch.manual_seed(0)
    layer = upstream(4, **FROZEN)
    disturb(layer)
    layer = layer.double()
    x = torch.randn(2, 9, 4).double()
    out = with_gradients(layer, dict(layer.named_parameters()), x)
    np.savez_compressed(
        FIXTURES / "hyena.npz",
        input=x.numpy(),
        **{f"weight:{key}": value.float().numpy() for key, value in layer.state_dict().items()},
        **{f"out:{key}": value.float().numpy() for key, value in out.items()},
    )


if __name__ == "__main__":
    write_fixture()
