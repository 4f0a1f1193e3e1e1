"""S4, S4D and DSS against the authors' code on a CPU in float64, live and from frozen numbers.

The live tests run where LONGSEQ_UPSTREAM_S4 names a checkout of state-spaces/s4, or
LONGSEQ_UPSTREAM_DSS one of ag1988/dss, with einops and opt_einsum importable; with both set,
running this file as a program writes the frozen numbers anew. Modules that the checkouts import for
training alone are stood in for.
"""

from __future__ import annotations

import functools
import importlib.util
import math
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import parity
from longseq.core.mixers import Mixer, create_mixer
from longseq.core.ops.s4_kernel import truncated_output
from parity import normal

FIXTURE = Path(__file__).parent / "fixtures" / "s4.npz"
FILES = {
    "S4": ("state-spaces/s4", "models/s4/s4.py"),
    "DSS": ("ag1988/dss", "src/models/sequence/ss/standalone/dss.py"),
}
D_MODEL, LENGTH = 4, 24
# Sums of some hundred terms in float64. The published S4 kernel comes from an inverse FFT and holds
# C (1 - Āᴸ), and the published DSS adds 1e-7 to denominators, which both sides do.
TOLERANCE = 1e-11
close = functools.partial(parity.close, bound=TOLERANCE)
FROZEN = ["s4-legs", "s4-legt", "s4d-inv", "dss-exp", "dss-softmax"]
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "s4-legs": ("s4", {"d_state": 8}, {"mode": "dplr", "init": "legs", "rank": 1}),
    "s4-legt": ("s4", {"d_state": 8, "init": "legt"}, {"mode": "dplr", "init": "legt", "rank": 2}),
    "s4-fout": (
        "s4",
        {"d_state": 8, "init": "fout", "n_ssm": 2},
        {"mode": "dplr", "init": "fout", "rank": 1, "n_ssm": 2},
    ),
    "s4d-lin": ("s4d", {"d_state": 8}, {"mode": "diag", "init": "diag-lin"}),
    "s4d-inv": (
        "s4d",
        {"d_state": 8, "init": "inv", "disc": "bilinear", "n_ssm": 2},
        {"mode": "diag", "init": "diag-inv", "disc": "bilinear", "n_ssm": 2},
    ),
    "s4d-legs": ("s4d", {"d_state": 8, "init": "legs"}, {"mode": "diag", "init": "diag-legs"}),
    "dss-exp": ("dss", {"d_state": 5}, {"version": "exp"}),
    "dss-softmax": (
        "dss",
        {"d_state": 5, "version": "softmax", "l_max": LENGTH, "separate_dt": False},
        {"version": "softmax", "sep_dt_re_im": False},
    ),
}
S4_CASES = [name for name in CASES if not name.startswith("dss")]


def checkout(name: str) -> str | None:
    return os.environ.get(f"LONGSEQ_UPSTREAM_{name}")


def needs(name: str) -> None:
    if checkout(name) is None:
        pytest.skip(f"LONGSEQ_UPSTREAM_{name} names no checkout of {FILES[name][0]}")


def widen(patch: pytest.MonkeyPatch) -> None:
    """The published DSS rounds its kernel to float32, by a cast that also drops its imaginary
    part."""
    cast = Tensor.float
    patch.setattr(Tensor, "float", lambda t: t.real if t.dtype == torch.complex128 else cast(t))


class Options(dict):  # type: ignore[type-arg]
    """Stands in for omegaconf.DictConfig: a dictionary whose items are attributes."""

    __getattr__ = dict.__getitem__


def upstream(name: str) -> Any:
    root = checkout(name)
    assert root is not None
    lightning, utilities, omegaconf = (
        ModuleType(n) for n in ("pytorch_lightning", "u", "omegaconf")
    )
    utilities.rank_zero_only = lambda f: f  # type: ignore[attr-defined]
    omegaconf.DictConfig = Options  # type: ignore[attr-defined]
    stand_ins = {
        "pytorch_lightning": lightning,
        "pytorch_lightning.utilities": utilities,
        "omegaconf": omegaconf,
    }
    spec = importlib.util.spec_from_file_location(
        f"upstream_{name.lower()}", Path(root) / FILES[name][1]
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        for key, stand_in in stand_ins.items():
            patch.setitem(sys.modules, key, stand_in)
        spec.loader.exec_module(module)
    return module


def build_upstream(case: str) -> nn.Module:
    _, ours, theirs = CASES[case]
    torch.manual_seed(1)
    block: nn.Module
    if case.startswith("dss"):
        block = upstream("DSS").DSS(D_MODEL, d_state=ours["d_state"], transposed=False, **theirs)
    else:
        l_max = {"l_max": LENGTH} if theirs["mode"] == "dplr" else {}
        block = upstream("S4").S4Block(
            D_MODEL,
            d_state=ours["d_state"],
            transposed=False,
            backend="naive",
            dt_min=0.01,
            **l_max,
            **theirs,
        )
    with torch.no_grad():  # away from values that all channels share
        for parameter in block.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return block.double()


def ours(case: str, weights: dict[str, Tensor]) -> Mixer:
    name, kwargs, _ = CASES[case]
    mixer = create_mixer(name, D_MODEL, chunk_size=8, **kwargs).double()
    if name == "dss":  # a bare linear map there, the first of a sequence here
        weights = {k.replace("output_linear.", "output_linear.0."): v for k, v in weights.items()}
    mixer.load_state_dict(weights)
    return mixer


@pytest.mark.parametrize("case", CASES)
def test_live_outputs_and_gradients(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    needs("DSS" if case.startswith("dss") else "S4")
    widen(monkeypatch)
    theirs = build_upstream(case)
    x = normal(2, LENGTH, D_MODEL)
    theirs(x)  # the first call of S4 replaces C by C (1 - Āᴸ)
    mixer = ours(case, theirs.state_dict())
    if case.startswith("s4-"):  # differentiate by what the published layer has as parameters
        kernel: Any = mixer.layer.kernel
        with torch.no_grad():
            kernel.C.copy_(theirs.state_dict()["layer.kernel.C"])
        plain = kernel.low_rank

        def truncated() -> Any:
            system = plain()
            return system._replace(c=truncated_output(system, LENGTH, invert=True))

        kernel.low_rank = truncated
    up = normal(2, LENGTH, D_MODEL, seed=1)
    results = []
    for module in (mixer, theirs):
        leaf = x.clone().requires_grad_()
        y = module(leaf)[0]
        named = dict(module.named_parameters())
        results.append((y, torch.autograd.grad(y, [leaf, *named.values()], up), ["x", *named]))
    (y, gradients, names), (y_theirs, gradients_theirs, names_theirs) = results
    close(y, y_theirs, f"{case}: output")
    expected = {
        n.replace("output_linear.", "output_linear.0.") if case.startswith("dss") else n: g
        for n, g in zip(names_theirs, gradients_theirs)
    }
    assert set(names) == set(expected)
    for name, gradient in zip(names, gradients):
        close(gradient, expected[name], f"{case}: gradient of {name}", bound=10 * TOLERANCE)


@pytest.mark.parametrize("case", S4_CASES)
def test_live_kernel_state_and_steps(case: str) -> None:
    needs("S4")
    theirs: Any = build_upstream(case)
    x = normal(2, LENGTH, D_MODEL)
    theirs(x)
    mixer: Any = ours(case, theirs.state_dict())
    with torch.no_grad():
        close(
            mixer.convolution_kernel(LENGTH), theirs.layer.kernel(L=LENGTH)[0][0], f"{case}: kernel"
        )
        start = torch.view_as_complex(normal(2, D_MODEL, mixer.n_complex, 2, seed=3))
        theirs.setup_step()
        theirs.default_state(2)
        doubled = torch.cat([start, start.conj()], -1) if case.startswith("s4-") else start
        y_theirs, next_theirs = theirs(x, state=doubled)
        y, after = mixer(x, {"ssm": start})
        close(y, y_theirs, f"{case}: output from a state")
        close(after["ssm"], next_theirs[..., : mixer.n_complex], f"{case}: next state")
        y_theirs, next_theirs = theirs.step(x[:, 0], doubled)
        y, after = mixer.step(x[:, 0], {"ssm": start})
        close(y, y_theirs, f"{case}: step")
        close(after["ssm"], next_theirs[..., : mixer.n_complex], f"{case}: state after a step")


@pytest.mark.parametrize("case", FROZEN)
def test_frozen(case: str) -> None:
    """The weights, an input, and the outputs and input gradients that the authors' code gave."""
    with np.load(FIXTURE) as archive:
        names, shapes = (archive[f"{case}/{what}"].tolist() for what in ("names", "shapes"))
        flat = torch.from_numpy(archive[f"{case}/values"])
    sizes = [tuple(int(n) for n in shape.split(",") if n) for shape in shapes]
    parts = flat.split([math.prod(size) for size in sizes])
    stored = {name: part.view(size) for name, part, size in zip(names, parts, sizes)}
    wanted = [stored.pop("y"), stored.pop("gradient")]
    mixer = ours(case, stored)
    x = normal(1, LENGTH, D_MODEL).requires_grad_()
    y, _ = mixer(x)
    (gradient,) = torch.autograd.grad(y, x, normal(1, LENGTH, D_MODEL, seed=1))
    close(y, wanted[0], f"{case}: output")
    close(gradient, wanted[1], f"{case}: gradient of x")


def test_a_truncated_kernel_is_turned_back_when_loaded() -> None:
    mixer = create_mixer("s4", D_MODEL, d_state=8).double()
    with torch.no_grad():
        c = truncated_output(mixer.layer.kernel.low_rank(), 20)  # type: ignore[union-attr,operator]
    weights = mixer.state_dict()
    published = {
        **weights,
        "layer.kernel.C": torch.view_as_real(c).unsqueeze(0),
        "layer.kernel.l_kernel": torch.tensor(20),
    }
    other = create_mixer("s4", D_MODEL, d_state=8).double()
    other.load_state_dict(published)
    for name, value in other.state_dict().items():
        close(value, weights[name], name, bound=1e-9)
    assert published["layer.kernel.l_kernel"] == 20, "the caller's dictionary is left alone"


def write_fixture() -> None:
    arrays: dict[str, Any] = {}
    for case in FROZEN:
        theirs = build_upstream(case)
        x = normal(1, LENGTH, D_MODEL).requires_grad_()
        theirs(x)
        y = theirs(x)[0]
        (gradient,) = torch.autograd.grad(y, x, normal(1, LENGTH, D_MODEL, seed=1))
        values = {**theirs.state_dict(), "y": y.detach(), "gradient": gradient}
        arrays[f"{case}/names"] = np.array(list(values))
        arrays[f"{case}/shapes"] = np.array([",".join(map(str, v.shape)) for v in values.values()])
        arrays[f"{case}/values"] = torch.cat(
            [v.double().flatten() for v in values.values()]
        ).numpy()
    np.savez_compressed(FIXTURE, **arrays)


if __name__ == "__main__":
    with pytest.MonkeyPatch.context() as patch:
        widen(patch)
        write_fixture()
