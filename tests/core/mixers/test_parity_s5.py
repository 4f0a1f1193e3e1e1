"""S5 against the authors' JAX code on a CPU in float64, live and from frozen numbers.

The live tests run where LONGSEQ_UPSTREAM_S5 names a checkout of lindermanlab/S5, with jax and flax
importable; with it set, running this file as a program writes the frozen numbers anew.
"""

from __future__ import annotations

import functools
import importlib
import math
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import parity
from longseq.core.mixers import Mixer, create_mixer
from longseq.core.ops.ssm_init import normal_part
from parity import normal

FIXTURE = Path(__file__).parent / "fixtures" / "s5.npz"
CHECKOUT = os.environ.get("LONGSEQ_UPSTREAM_S5")
needs_checkout = pytest.mark.skipif(
    CHECKOUT is None, reason="LONGSEQ_UPSTREAM_S5 names no checkout of lindermanlab/S5"
)
D_MODEL, D_STATE, LENGTH = 4, 8, 30
TOLERANCE = 1e-12  # sums of some hundred terms in float64
close = functools.partial(parity.close, bound=TOLERANCE)
CASES: dict[str, dict[str, Any]] = {
    "half_glu1": {"activation": "half_glu1", "disc": "zoh", "clip_eigs": False},
    "half_glu2": {"activation": "half_glu2", "disc": "bilinear", "clip_eigs": True},
    "full_glu": {"activation": "full_glu", "disc": "zoh", "clip_eigs": True, "step_rescale": 2.0},
    "gelu": {"activation": "gelu", "disc": "zoh", "clip_eigs": False},
}


def upstream() -> tuple[Any, Any, Any, Any]:
    """Returns jax, jax.numpy and the published modules ``ssm`` and ``layers``."""
    assert CHECKOUT is not None
    if CHECKOUT not in sys.path:
        sys.path.insert(0, CHECKOUT)
    jax = importlib.import_module("jax")
    jnp = importlib.import_module("jax.numpy")
    jax.config.update("jax_enable_x64", True)
    # A name that newer jax no longer has; used in annotations only.
    if not hasattr(jnp, "DeviceArray"):
        jnp.DeviceArray = jax.Array
    return jax, jnp, importlib.import_module("s5.ssm"), importlib.import_module("s5.layers")


def build(case: str) -> tuple[Any, dict[str, Tensor]]:
    """Returns a function that gives the published layer's outputs and gradients, and its
    weights."""
    jax, jnp, ssm, layers = upstream()
    init = importlib.import_module("s5.ssm_init")
    options = CASES[case]
    eigenvalues, _, _, v, _ = init.make_DPLR_HiPPO(D_STATE)
    half = D_STATE // 2
    model = ssm.init_S5SSM(
        H=D_MODEL,
        P=half,
        Lambda_re_init=eigenvalues[:half].real,
        Lambda_im_init=eigenvalues[:half].imag,
        V=v[:, :half],
        Vinv=v[:, :half].conj().T,
        C_init="lecun_normal",
        discretization=options["disc"],
        dt_min=0.01,
        dt_max=0.1,
        conj_sym=True,
        clip_eigs=options["clip_eigs"],
        bidirectional=False,
    )
    layer = layers.SequenceLayer(
        ssm=model,
        dropout=0.0,
        d_model=D_MODEL,
        activation=options["activation"],
        training=False,
        prenorm=True,
        step_rescale=options.get("step_rescale", 1.0),
    )
    variables = layer.init(jax.random.PRNGKey(0), jnp.zeros((LENGTH, D_MODEL)))
    rng = np.random.default_rng(1)
    parameters = jax.tree_util.tree_map(
        lambda p: np.asarray(p, dtype=np.float64) + 0.05 * rng.standard_normal(p.shape),
        variables["params"],
    )
    if options["clip_eigs"]:  # one eigenvalue in the right half plane
        parameters["seq"]["Lambda_re"][0] = 0.3

    def loss(p: Any, x: Any, up: Any) -> tuple[Any, Any]:
        y = jax.vmap(lambda row: layer.apply({"params": p}, row))(x)
        return (y * up).sum(), y

    def outputs_and_gradients(x: Tensor, up: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        run = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
        (_, y), (by_parameters, by_x) = run(
            parameters, jnp.asarray(x.numpy()), jnp.asarray(up.numpy())
        )
        return torch.from_numpy(np.array(y)), {
            "x": torch.from_numpy(np.array(by_x)),
            **translate(by_parameters),
        }

    return outputs_and_gradients, translate(parameters)


def translate(parameters: Any) -> dict[str, Tensor]:
    """Brings the published parameters under our names; those of the norm stay beside them."""
    weights = {k: torch.from_numpy(np.array(v)) for k, v in parameters["seq"].items()}
    for name in ("out1", "out2"):
        if name in parameters:
            weights[f"{name}.weight"] = torch.from_numpy(
                np.array(parameters[name]["kernel"]).T.copy()
            )
            weights[f"{name}.bias"] = torch.from_numpy(np.array(parameters[name]["bias"]))
    for name in ("scale", "bias"):
        weights[f"norm.{name}"] = torch.from_numpy(np.array(parameters["norm"][name]))
    return weights


class Layer(torch.nn.Module):
    """The published layer: norm, mixer, residual connection."""

    def __init__(self, case: str, weights: dict[str, Tensor]) -> None:
        super().__init__()
        options = {"d_state": D_STATE, "chunk_size": 8, **CASES[case]}
        self.mixer: Mixer = create_mixer("s5", D_MODEL, **options).double()
        self.mixer.load_state_dict({k: v for k, v in weights.items() if not k.startswith("norm.")})
        self.scale, self.bias = (
            torch.nn.Parameter(weights[f"norm.{n}"]) for n in ("scale", "bias")
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.mixer(F.layer_norm(x, (D_MODEL,), self.scale, self.bias, eps=1e-6))[0]
        return x + y

    def gradients(self, x: Tensor, up: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        leaf = x.clone().requires_grad_()
        y = self(leaf)
        named = dict(self.named_parameters())
        found = torch.autograd.grad(y, [leaf, *named.values()], up)
        names = [n.removeprefix("mixer.") for n in named]
        names = [f"norm.{n}" if n in ("scale", "bias") else n for n in names]
        return y, dict(zip(["x", *names], found))


@needs_checkout
@pytest.mark.parametrize("case", CASES)
def test_live_outputs_and_gradients(case: str) -> None:
    theirs, weights = build(case)
    x, up = normal(2, LENGTH, D_MODEL), normal(2, LENGTH, D_MODEL, seed=1)
    y_theirs, expected = theirs(x, up)
    y, gradients = Layer(case, weights).gradients(x, up)
    close(y, y_theirs, f"{case}: output")
    assert set(gradients) == set(expected)
    for name, gradient in gradients.items():
        close(gradient, expected[name], f"{case}: gradient of {name}")


@needs_checkout
def test_live_initial_system() -> None:
    upstream()
    init = importlib.import_module("s5.ssm_init")
    eigenvalues, _, _, v, _ = init.make_DPLR_HiPPO(16)
    form = normal_part(16)
    close(form.eigenvalues, torch.from_numpy(np.array(eigenvalues[:8])), "eigenvalues")
    theirs = torch.from_numpy(np.array(v[:, :8]))
    # Eigenvectors are defined up to a phase each.
    close((form.v.conj() * theirs).sum(0).abs(), torch.ones(8, dtype=torch.float64), "eigenvectors")


@pytest.mark.parametrize("case", ["half_glu2", "full_glu"])
def test_frozen(case: str) -> None:
    """The weights, an input, and the outputs and input gradients that the authors' code gave."""
    with np.load(FIXTURE) as archive:
        names, shapes = (archive[f"{case}/{what}"].tolist() for what in ("names", "shapes"))
        flat = torch.from_numpy(archive[f"{case}/values"])
    sizes = [tuple(int(n) for n in shape.split(",")) for shape in shapes]
    parts = flat.split([math.prod(size) for size in sizes])
    stored = {name: part.view(size).clone() for name, part, size in zip(names, parts, sizes)}
    wanted = [stored.pop("y"), stored.pop("gradient")]
    y, gradients = Layer(case, stored).gradients(
        normal(1, LENGTH, D_MODEL), normal(1, LENGTH, D_MODEL, seed=1)
    )
    close(y, wanted[0], f"{case}: output")
    close(gradients["x"], wanted[1], f"{case}: gradient of x")


def write_fixture() -> None:
    arrays: dict[str, Any] = {}
    for case in ("half_glu2", "full_glu"):
        theirs, weights = build(case)
        y, gradients = theirs(normal(1, LENGTH, D_MODEL), normal(1, LENGTH, D_MODEL, seed=1))
        values = {**weights, "y": y, "gradient": gradients["x"]}
        arrays[f"{case}/names"] = np.array(list(values))
        arrays[f"{case}/shapes"] = np.array([",".join(map(str, v.shape)) for v in values.values()])
        arrays[f"{case}/values"] = torch.cat([v.flatten() for v in values.values()]).numpy()
    np.savez_compressed(FIXTURE, **arrays)


if __name__ == "__main__":
    write_fixture()
