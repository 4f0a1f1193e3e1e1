"""LongConv, SGConv and Orchid against their published code, live and from frozen numbers.

The live tests run where LONGSEQ_UPSTREAM_SAFARI, LONGSEQ_UPSTREAM_SGCONV and
LONGSEQ_UPSTREAM_ORCHID name checkouts of HazyResearch/safari, ctlllll/SGConv and Karami-m/orchid,
and einops and opt_einsum are installed; with all three set, running this file as a program writes
the frozen numbers again.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import types
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from longseq.core.mixers.base import Mixer
from longseq.core.mixers.long_conv import LongConv
from longseq.core.mixers.orchid import Orchid
from longseq.core.mixers.sgconv import SGConv
from parity import differences, disturb, with_gradients

FIXTURES = Path(__file__).parent / "fixtures"
CHECKOUTS = {
    "long_conv": ("LONGSEQ_UPSTREAM_SAFARI", "HazyResearch/safari"),
    "sgconv": ("LONGSEQ_UPSTREAM_SGCONV", "ctlllll/SGConv"),
    "orchid": ("LONGSEQ_UPSTREAM_ORCHID", "Karami-m/orchid"),
}
CLASSES: dict[str, type[Mixer]] = {"long_conv": LongConv, "sgconv": SGConv, "orchid": Orchid}
# FFTs of another size: a few dozen roundings relative to the largest value.
TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-12}
CASES: list[tuple[str, dict[str, Any]]] = [
    # Where the kernel is longer than the sequence, the published LongConv wraps round; ours stays
    # causal.
    ("long_conv", {"l_max": 32, "lam": 0.01}),
    (
        "long_conv",
        {"l_max": 16, "lam": 0.01, "channels": 2, "smooth_window": 7, "weight_init": "double_exp"},
    ),
    ("sgconv", {"l_max": 64, "kernel_dim": 8}),
    ("sgconv", {"l_max": 64, "kernel_dim": 4, "channels": 2, "decay_max": 3.0, "postact": "glu"}),
    ("sgconv", {"l_max": 20, "kernel_dim": 8, "combine": "sum", "interpolate": "nearest"}),
    ("orchid", {"kind": "absfreq", "transform": "dct"}),
    ("orchid", {"kind": "absfreq", "transform": "fft", "residual": False}),
    ("orchid", {"kind": "corrTime", "transform": "dct", "short_filter_order": 5, "emb_dim": 7}),
    ("orchid", {"kind": "corrTime", "transform": "fft"}),
]
FROZEN: list[tuple[str, dict[str, Any]]] = [
    ("long_conv", {"l_max": 6, "lam": 0.01, "smooth_window": 3}),
    ("sgconv", {"l_max": 8, "kernel_dim": 2}),
    ("orchid", {"l_max": 10, "filter_order": 4}),
]


def load(name: str, path: Path, stand_ins: dict[str, Any]) -> Any:
    """Executes one file of a checkout, with stand-ins for what it imports and is not reached
    here."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with mock.patch.dict(sys.modules, stand_ins):
        spec.loader.exec_module(module)
    return module


def stand_in(name: str, **members: Any) -> Any:
    module = types.ModuleType(name)
    for key, value in members.items():
        setattr(module, key, value)
    return module


class Registers(nn.Module):
    """Stands in for the published base class, which also marks learning rates."""

    def register(self, name: str, tensor: Tensor, lr: float | None = None, wd: float = 0.0) -> None:
        self.register_parameter(name, nn.Parameter(tensor))


def upstream_long_conv(root: Path, d_model: int, **kwargs: Any) -> nn.Module:
    sequence = root / "src/models/sequence"
    components = load("src.models.nn", root / "src/models/nn/components.py", {})
    train = stand_in("src.utils.train", OptimModule=Registers)
    kernel = load("safari_kernel", sequence / "long_conv_kernel.py", {"src.utils.train": train})
    module = load(
        "safari_long_conv",
        sequence / "long_conv.py",
        {
            "src.models.nn": components,
            "src.models.sequence.block_fft": stand_in("block_fft", BlockFFT=None),
            "src.models.sequence.long_conv_kernel": kernel,
        },
    )
    window = kwargs.pop("smooth_window", 1)
    return module.LongConv(
        d_model, transposed=False, use_ma_smoothing=window > 1, ma_window_len=window, **kwargs
    )


def upstream_sgconv(root: Path, d_model: int, **kwargs: Any) -> nn.Module:
    stubs = {
        "IPython": stand_in("IPython", embed=None),
        "omegaconf": stand_in("omegaconf", DictConfig=dict),
    }
    module = load("gconv_standalone", root / "gconv_standalone.py", stubs)
    mode = "_".join(
        [kwargs.pop("combine", "cat"), "randn"]
        + (["nearest"] if kwargs.pop("interpolate", "linear") == "nearest" else [])
    )
    layer = module.GConv(d_model, transposed=False, mode=mode, n_scales=None, **kwargs)
    layer(torch.zeros(1, 2, d_model))  # its first call measures the kernel's norm
    return layer


def upstream_orchid(root: Path, d_model: int, **kwargs: Any) -> nn.Module:
    class Config(dict[str, Any]):
        __getattr__ = dict.__getitem__

    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    with mock.patch.dict(sys.modules, {"easydict": stand_in("easydict", EasyDict=Config)}):
        module: Any = importlib.import_module("orchid_standalone.orchid_standalone")
    l_max = kwargs.pop("l_max", 33)
    dxt: Any = "fft"
    if kwargs.pop("transform", "dct") == "dct":
        cosine: Any = importlib.import_module("orchid_standalone.utils.dxt")
        # Made for one length, the test's.
        dxt = ("dctxd-o", cosine.DCTX("dctxd", l_max - 1, norm="ortho"))
    conditioning = {
        "type": kwargs.pop("kind", "absfreq"),
        "nn": "convtf",
        "conv_filter_size": 3,
        "padding_mode": "zeros",
        "norm": "layernorm",
        "n_layer": 1,
        "activation": "gelu",
        "actq": "id",
        "wd": None,
        "lr": None,
        "bias": True,
    }
    residual = "sconv" if kwargs.pop("residual", True) else "none"
    return module.OrchidOperator(
        d_model,
        l_max,
        residual_long_conv=residual,
        conv_kernel=Config(conditioning),
        dxt=dxt,
        causal=False,
        lr_pos_emb=0.0,
        **kwargs,
    )


def upstream(name: str, d_model: int, **kwargs: Any) -> nn.Module:
    variable, repository = CHECKOUTS[name]
    root = os.environ.get(variable)
    if root is None:
        pytest.skip(f"{variable} names no checkout of {repository}")
    for package in ("einops", "opt_einsum"):
        pytest.importorskip(package)
    return globals()[f"upstream_{name}"](Path(root), d_model, **kwargs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize(("name", "kwargs"), CASES)
def test_equals_upstream(name: str, kwargs: dict[str, Any], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    kwargs = {"l_max": 33, **kwargs} if name == "orchid" else kwargs
    theirs = upstream(name, 16, **kwargs).to(dtype)
    disturb(theirs)
    ours = CLASSES[name](16, **kwargs).to(dtype)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 32, 16, dtype=dtype)
    names = dict(theirs.named_parameters())
    expected = with_gradients(theirs, names, x)
    actual = with_gradients(ours, {n: ours.get_parameter(n) for n in names}, x)
    found = differences(actual, expected)
    worst = max(found, key=lambda key: found[key])
    print(f"{name} {dtype}: output {found['y']:.1e}, worst {worst} {found[worst]:.1e}")
    # Orchid's published cosine transform multiplies by a table in float32.
    table = torch.float32 if "dct" in kwargs.values() else dtype
    assert found[worst] <= TOLERANCE[table], found


@pytest.mark.parametrize(("name", "kwargs"), FROZEN)
def test_equals_frozen_upstream(name: str, kwargs: dict[str, Any]) -> None:
    frozen = {
        key: torch.from_numpy(value) for key, value in np.load(FIXTURES / f"{name}.npz").items()
    }
    ours = CLASSES[name](4, **kwargs).double()
    ours.load_state_dict({key[7:]: v for key, v in frozen.items() if key.startswith("weight:")})
    expected = {key[4:]: v for key, v in frozen.items() if key.startswith("out:")}
    names = [key for key in expected if key not in ("x", "y")]
    actual = with_gradients(ours, {n: ours.get_parameter(n) for n in names}, frozen["input"])
    # The outputs are stored as float32.
    found = differences(actual, expected)
    assert max(found.values()) <= 1e-6, found


def write_fixtures() -> None:
    """Writes weights, input, output and gradients of the published layers, computed in float64."""
    for name, kwargs in FROZEN:
        torch.manual_seed(0)
        layer = upstream(name, 4, **kwargs)
        disturb(layer)
        layer = layer.double()
        x = torch.randn(2, 9, 4).double()
        out = with_gradients(layer, dict(layer.named_parameters()), x)
        weights = {
            f"weight:{k}": (v if v.dtype == torch.bool else v.float()).numpy()
            for k, v in layer.state_dict().items()
        }
        np.savez_compressed(
            FIXTURES / f"{name}.npz",
            input=x.numpy(),
            **weights,
            **{f"out:{key}": value.float().numpy() for key, value in out.items()},
        )


if __name__ == "__main__":
    write_fixtures()
