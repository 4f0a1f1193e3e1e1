"""Informer, Autoformer, SpaceTime and TPGN against the authors' code at random weights, live and
frozen.

The live tests run where LONGSEQ_UPSTREAM_INFORMER, LONGSEQ_UPSTREAM_AUTOFORMER,
LONGSEQ_UPSTREAM_SPACETIME and LONGSEQ_UPSTREAM_TPGN name checkouts of zhouhaoyi/Informer2020,
thuml/Autoformer, HazyResearch/spacetime (which needs einops and opt_einsum) and Water2sea/TPGN;
with all set, running this file as a program writes the frozen numbers anew.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from longseq.timeseries.models.autoformer import Autoformer
from longseq.timeseries.models.informer import Informer
from longseq.timeseries.models.spacetime import SpaceTime
from longseq.timeseries.models.tpgn import TPGN

FIXTURE = Path(__file__).parent / "fixtures" / "published.npz"
REPOSITORIES = {
    "informer": "zhouhaoyi/Informer2020",
    "autoformer": "thuml/Autoformer",
    "spacetime": "HazyResearch/spacetime",
    "tpgn": "Water2sea/TPGN",
}
PARAMETERS = {
    "informer": (81, 11_330_055),
    "autoformer": (51, 10_535_943),
    "spacetime": (15, 52_737),
    "tpgn": (12, 35_063),
}
SIZES: dict[str, dict[str, int]] = {
    "published": {
        "c": 7,
        "l": 96,
        "h": 24,
        "label": 48,
        "d": 512,
        "heads": 8,
        "ff": 2048,
        "average": 25,
        "width": 128,
        "state": 64,
        "lag": 336,
        "period": 24,
        "units": 16,
    },
    "small": {
        "c": 2,
        "l": 16,
        "h": 6,
        "label": 8,
        "d": 8,
        "heads": 2,
        "ff": 16,
        "average": 5,
        "width": 16,
        "state": 5,
        "lag": 40,
        "period": 2,
        "units": 4,
    },
}
TOLERANCE = 1e-10  # of the largest output, in float64


def upstream(name: str) -> str | None:
    return os.environ.get(f"LONGSEQ_UPSTREAM_{name.upper()}")


def import_from(root: str, module: str) -> Any:
    """Imports a module of a checkout; checkouts share names such as ``models`` and ``utils``."""
    for key in [
        key for key in sys.modules if key.split(".")[0] in ("models", "model", "utils", "layers")
    ]:
        del sys.modules[key]
    sys.path.insert(0, root)
    try:
        return importlib.import_module(module)
    finally:
        sys.path.remove(root)


def theirs(name: str, s: dict[str, int]) -> nn.Module:
    """Returns the published model in float64 and evaluation mode."""
    root = upstream(name)
    assert root is not None
    torch.manual_seed(0)
    if name == "informer":
        made = import_from(root, "models.model").Informer(
            s["c"],
            s["c"],
            s["c"],
            s["l"],
            s["label"],
            s["h"],
            factor=5 if s["d"] == 512 else 2,
            d_model=s["d"],
            n_heads=s["heads"],
            e_layers=2,
            d_layers=1,
            d_ff=s["ff"],
            dropout=0.05,
            attn="prob",
            embed="timeF",
            freq="h",
            activation="gelu",
            distil=True,
            mix=True,
            device=torch.device("cpu"),
        )
    elif name == "autoformer":
        made = import_from(root, "models.Autoformer").Model(
            SimpleNamespace(
                seq_len=s["l"],
                label_len=s["label"],
                pred_len=s["h"],
                output_attention=False,
                moving_avg=s["average"],
                enc_in=s["c"],
                dec_in=s["c"],
                c_out=s["c"],
                d_model=s["d"],
                embed="timeF",
                freq="h",
                dropout=0.05,
                factor=3 if s["d"] == 512 else 1,
                n_heads=s["heads"],
                d_ff=s["ff"],
                activation="gelu",
                e_layers=2,
                d_layers=1,
            )
        )
    elif name == "tpgn":
        made = import_from(root, "models.TPGN").Model(
            SimpleNamespace(
                freq="h",
                TPGN_period=s["period"],
                seq_len=s["l"],
                pred_len=s["h"],
                enc_in=s["c"],
                c_out=s["c"],
                d_model=s["units"],
                norm=1,
            )
        )
    else:
        made = _their_spacetime(root, s)
    return made.double().eval()


def _their_spacetime(root: str, s: dict[str, int]) -> nn.Module:
    pytest.importorskip("einops")
    pytest.importorskip("opt_einsum")
    width = s["width"]
    ssm = {
        "model_dim": width,
        "kernel_dim": s["state"],
        "kernel_repeat": 1,
        "head_dim": 1,
        "norm_order": 1,
    }
    mlp = {
        "input_dim": width,
        "activation": "gelu",
        "dropout": 0.25,
        "n_layers": 1,
        "n_activations": 1,
        "pre_activation": True,
    }
    pre = {
        "max_diff_order": 4,
        "min_avg_window": 4,
        "max_avg_window": 64,
        "model_dim": width,
        "n_kernels": 8,
        "kernel_dim": 2,
        "kernel_repeat": width // 8,
        "head_dim": 1,
    }
    encoder = {
        "input_dim": width,
        "pre_config": {"method": "residual", "kwargs": pre},
        "ssm_config": {
            "method": "companion",
            "kwargs": {**ssm, "n_kernels": width // 8, "n_heads": 8, "skip_connection": True},
        },
        "mlp_config": {
            "method": "mlp",
            "kwargs": {**mlp, "output_dim": width, "skip_connection": True},
        },
        "skip_connection": True,
    }
    none: dict[str, Any] = {"method": "identity", "kwargs": None}
    decoder = {
        "input_dim": width,
        "pre_config": none,
        "mlp_config": none,
        "ssm_config": {
            "method": "closed_loop_companion",
            "kwargs": {**ssm, "n_kernels": width, "n_heads": 1},
        },
    }
    made = import_from(root, "model.network").SpaceTime(
        {"method": "repeat", "kwargs": {"input_dim": 1, "embedding_dim": width}},
        {"blocks": [encoder]},
        {"blocks": [decoder]},
        {"method": "mlp", "kwargs": {**mlp, "output_dim": 1}},
        lag=s["lag"],
        horizon=s["h"],
    )
    for module in made.modules():
        # Plain attributes, which .double() does not reach.
        for key in ("shift_matrix", "p_padding"):
            if hasattr(module, key):
                setattr(module, key, getattr(module, key).double())
    return made


def ours(name: str, s: dict[str, int], compat: bool = True) -> nn.Module:
    """Returns our model of the same sizes."""
    sizes = {
        "channels": s["c"],
        "context": s["l"],
        "horizon": s["h"],
        "label": s["label"],
        "d_model": s["d"],
        "n_heads": s["heads"],
        "d_ff": s["ff"],
        "compat": compat,
    }
    small = s["d"] != 512
    if name == "informer":
        return Informer(**sizes, factor=2 if small else 5).double().eval()
    if name == "autoformer":
        return (
            Autoformer(**sizes, moving_average=s["average"], factor=1 if small else 3)
            .double()
            .eval()
        )
    if name == "tpgn":
        return TPGN(s["c"], s["l"], s["h"], s["period"], 4, s["units"]).double().eval()
    return SpaceTime(s["h"], s["width"], s["state"], compat=compat).double().eval()


def fill(model: nn.Module) -> None:
    """Sets weights and statistics to numbers that any version of torch makes alike."""
    for place, (key, value) in enumerate(sorted(model.state_dict().items())):
        if not value.is_floating_point() or key.endswith((".pe", "diff_kernel")):
            continue
        wave = torch.sin(0.7 * torch.arange(value.numel(), dtype=torch.float64) + place).reshape(
            value.shape
        )
        value.copy_(1 + 0.5 * wave if key.endswith("running_var") else 0.3 * wave)


def sample(name: str, s: dict[str, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Returns a context and its marks and those of the horizon."""

    def wave(*shape: int) -> Tensor:
        index = torch.arange(int(np.prod(shape)), dtype=torch.float64)
        return (torch.sin(0.37 * index) + torch.cos(0.011 * index * index)).reshape(shape)

    if name == "spacetime":
        return wave(3, s["lag"], 1), wave(3, 1, 4), wave(3, 1, 4)
    return wave(3, s["l"], s["c"]), wave(3, s["l"], 4) / 4, wave(3, s["h"], 4) / 4


def run_theirs(name: str, model: nn.Module, s: dict[str, int]) -> Tensor:
    x, x_mark, y_mark = sample(name, s)
    with torch.no_grad():
        if name == "spacetime":
            mean = x.mean(1, keepdim=True)
            (closed, _), _ = model(x - mean)
            return closed + mean
        if name == "tpgn":
            return model(x.clone(), x_mark, None, None)
        start = torch.cat([x[:, -s["label"] :], x.new_zeros(len(x), s["h"], s["c"])], 1)
        torch.manual_seed(5)  # ProbSparse attention draws its keys
        # Autoformer makes float32 zeros; a default dtype is what it follows.
        torch.set_default_dtype(torch.float64)
        try:
            return model(x, x_mark, start, torch.cat([x_mark[:, -s["label"] :], y_mark], 1))
        finally:
            torch.set_default_dtype(torch.float32)


def run_ours(name: str, model: nn.Module, s: dict[str, int]) -> Tensor:
    x, x_mark, y_mark = sample(name, s)
    with torch.no_grad():
        torch.manual_seed(5)
        if name == "tpgn":
            return model(x, x_mark)
        return model(x) if name == "spacetime" else model(x, x_mark, y_mark)


def relative(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("name", PARAMETERS)
def test_layouts_have_the_published_numbers_of_tensors_and_parameters(name: str) -> None:
    for compat in (True, False):
        model = ours(name, SIZES["published"], compat)
        count = sum(parameter.numel() for parameter in model.parameters())
        assert (len(model.state_dict()), count) == PARAMETERS[name]


@pytest.mark.parametrize("name", PARAMETERS)
def test_outputs_equal_the_frozen_numbers_of_the_authors_code(name: str) -> None:
    model = ours(name, SIZES["small"])
    fill(model)
    expected = torch.from_numpy(np.load(FIXTURE)[name])
    assert relative(run_ours(name, model, SIZES["small"]), expected) < TOLERANCE


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", PARAMETERS)
def test_outputs_equal_those_of_the_authors_code(name: str, size: str) -> None:
    if upstream(name) is None:
        pytest.skip(f"LONGSEQ_UPSTREAM_{name.upper()} names no checkout of {REPOSITORIES[name]}")
    published, s = theirs(name, SIZES[size]), SIZES[size]
    model = ours(name, s)
    model.load_state_dict(published.state_dict(), strict=True)
    found = relative(run_ours(name, model, s), run_theirs(name, published, s))
    print(f"{name}, {size}: largest difference over largest output {found:.1e}")
    assert found < TOLERANCE


def test_autoformer_trains_as_published_with_shared_delays() -> None:
    if upstream("autoformer") is None:
        pytest.skip(
            f"LONGSEQ_UPSTREAM_AUTOFORMER names no checkout of {REPOSITORIES['autoformer']}"
        )
    s = SIZES["small"]
    published, model = theirs("autoformer", s), ours("autoformer", s)
    model.load_state_dict(published.state_dict(), strict=True)
    for one in (published, model):
        one.train()
        for module in one.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
    assert (
        relative(run_ours("autoformer", model, s), run_theirs("autoformer", published, s))
        < TOLERANCE
    )


if __name__ == "__main__":
    frozen = {}
    for each in PARAMETERS:
        their_model = theirs(each, SIZES["small"])
        fill(their_model)
        frozen[each] = run_theirs(each, their_model, SIZES["small"]).numpy()
    FIXTURE.parent.mkdir(exist_ok=True)
    np.savez_compressed(FIXTURE, **frozen)
