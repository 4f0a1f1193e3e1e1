"""SpaceTime's companion state-space model against the authors' code on a CPU, live and from frozen
numbers.

The live tests run where LONGSEQ_UPSTREAM_SPACETIME names a checkout of HazyResearch/spacetime, with
einops and opt_einsum importable; with it set, running this file as a program writes the frozen
numbers anew.
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
from torch import Tensor

import parity
from longseq.core.errors import ConfigError
from longseq.core.mixers.companion import Companion
from parity import normal

FIXTURE = Path(__file__).parent / "fixtures" / "spacetime.npz"
CHECKOUT = os.environ.get("LONGSEQ_UPSTREAM_SPACETIME")
needs_checkout = pytest.mark.skipif(
    CHECKOUT is None,
    reason="LONGSEQ_UPSTREAM_SPACETIME names no checkout of HazyResearch/spacetime",
)
D_MODEL, D_STATE, LENGTH, HORIZON = 4, 5, 30, 9
TOLERANCE = 1e-12  # sums of some hundred terms in float64
close = functools.partial(parity.close, bound=TOLERANCE)
CASES: dict[str, dict[str, Any]] = {
    "open": {"n_kernels": 2, "norm_order": 1},
    "open-2-norm": {"n_kernels": 4, "norm_order": 2, "skip_connection": False},
    "closed": {"n_kernels": 4, "norm_order": 1, "closed_loop": True},
}


def build(case: str) -> Any:
    """Returns the published module in float64."""
    assert CHECKOUT is not None
    if CHECKOUT not in sys.path:
        sys.path.insert(0, CHECKOUT)
    ssm = importlib.import_module("model.ssm")
    options = CASES[case]
    torch.manual_seed(0)
    arguments: dict[str, Any] = {
        "norm_order": options["norm_order"],
        "model_dim": D_MODEL,
        "n_kernels": options["n_kernels"],
        "kernel_dim": D_STATE,
        "head_dim": 1,
    }
    if options.get("closed_loop"):
        module = ssm.ClosedLoopCompanionSSM(lag=LENGTH, horizon=HORIZON, **arguments)
    else:
        module = ssm.CompanionSSM(skip_connection=options.get("skip_connection", True), **arguments)
    module = module.double()
    for name in ("shift_matrix", "p_padding"):  # plain attributes, which .double() does not reach
        setattr(module, name, getattr(module, name).double())
    return module


def ours(case: str, weights: dict[str, Tensor]) -> Companion:
    mixer = Companion(D_MODEL, D_STATE, chunk_size=8, **CASES[case]).double()
    mixer.load_state_dict(weights)
    return mixer


def published_output(module: Any, x: Tensor) -> Tensor:
    module.closed_loop = False
    y = module(x)
    return y[0] if isinstance(y, tuple) else y


@needs_checkout
@pytest.mark.parametrize("case", CASES)
def test_live_open_loop(case: str) -> None:
    theirs = build(case)
    mixer = ours(case, theirs.state_dict())
    up = normal(2, LENGTH, D_MODEL, seed=1)
    results = []
    for run, parameters in (
        (lambda x: mixer(x)[0], dict(mixer.named_parameters())),
        (lambda x: published_output(theirs, x), dict(theirs.named_parameters())),
    ):
        x = normal(2, LENGTH, D_MODEL).requires_grad_()
        y = run(x)
        gradients = torch.autograd.grad(y, [x, *parameters.values()], up, allow_unused=True)
        results.append((y, dict(zip(["x", *parameters], gradients))))
    (y, gradients_ours), (y_theirs, gradients_theirs) = results
    close(y, y_theirs, f"{case}: output")
    assert set(gradients_ours) == set(gradients_theirs)
    for name, gradient in gradients_ours.items():
        if gradient is not None:
            close(gradient, gradients_theirs[name], f"{case}: gradient of {name}")


@needs_checkout
def test_live_closed_loop() -> None:
    theirs = build("closed")
    mixer = ours("closed", theirs.state_dict())
    ups = [normal(2, HORIZON, D_MODEL, seed=s) for s in (1, 2)]

    def forecast(x: Tensor) -> tuple[Tensor, Tensor]:
        return mixer.rollout(mixer(x)[1], HORIZON)

    results = []
    for run, module in ((forecast, mixer), (theirs, theirs)):
        x = normal(2, LENGTH, D_MODEL).requires_grad_()
        outputs = run(x)
        named = dict(module.named_parameters())
        leaves = {n: p for n, p in named.items() if n != "skip"}
        results.append(
            (outputs, torch.autograd.grad(outputs, [x, *leaves.values()], ups), ["x", *leaves])
        )
    (outputs, gradients, names), (outputs_theirs, gradients_theirs, names_theirs) = results
    close(outputs[0], outputs_theirs[0], "rollout: outputs")
    close(outputs[1], outputs_theirs[1], "rollout: inputs")
    expected = dict(zip(names_theirs, gradients_theirs))
    for name, gradient in zip(names, gradients):
        close(gradient, expected[name], f"rollout: gradient of {name}")


@pytest.mark.parametrize("case", ["open", "closed"])
def test_frozen(case: str) -> None:
    """The weights, an input, and what the authors' code gave for them."""
    with np.load(FIXTURE) as archive:
        names, shapes = (archive[f"{case}/{what}"].tolist() for what in ("names", "shapes"))
        flat = torch.from_numpy(archive[f"{case}/values"])
    sizes = [tuple(int(n) for n in shape.split(",")) for shape in shapes]
    parts = flat.split([math.prod(size) for size in sizes])
    stored = {name: part.view(size) for name, part, size in zip(names, parts, sizes)}
    wanted = {name: stored.pop(name) for name in names if name.startswith("wanted ")}
    mixer = ours(case, stored)
    x = normal(1, LENGTH, D_MODEL).requires_grad_()
    y, state = mixer(x)
    (gradient,) = torch.autograd.grad(y, x, normal(1, LENGTH, D_MODEL, seed=1), retain_graph=True)
    close(y, wanted["wanted y"], f"{case}: output")
    close(gradient, wanted["wanted gradient"], f"{case}: gradient of x")
    if case == "closed":
        forecast, inputs = mixer.rollout(state, HORIZON)
        close(forecast, wanted["wanted forecast"], "rollout: outputs")
        close(inputs, wanted["wanted inputs"], "rollout: inputs")


def test_rollout_is_the_closed_loop_step_by_step() -> None:
    torch.manual_seed(0)
    mixer = Companion(D_MODEL, D_STATE, n_kernels=2, norm_order=0, closed_loop=True).double()
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.mul_(0.3)
        _, state = mixer(normal(2, LENGTH, D_MODEL))
        forecast, inputs = mixer.rollout(state, HORIZON)
        c, k = (mixer._spread(t) for t in (mixer.c, mixer.k))
        x = state
        for h in range(HORIZON):
            close((x["ssm"] * c).sum(-1), forecast[:, h], f"output {h}")
            close((x["ssm"] * k).sum(-1), inputs[:, h], f"input {h}")
            # Feeding the predicted input back is the closed loop.
            _, x = mixer.step(inputs[:, h], x)


@pytest.mark.parametrize("horizon", [1, 2, 7])
def test_rollout_of_any_length(horizon: int) -> None:
    mixer = Companion(D_MODEL, D_STATE, closed_loop=True)
    _, state = mixer(torch.randn(3, 6, D_MODEL))
    forecast, inputs = mixer.rollout(state, horizon)
    assert forecast.shape == inputs.shape == (3, horizon, D_MODEL)
    longer, _ = mixer.rollout(state, 8)
    assert torch.allclose(longer[:, :horizon], forecast, rtol=1e-5, atol=1e-6)


def test_rollout_needs_the_closed_loop() -> None:
    mixer = Companion(D_MODEL)
    with pytest.raises(ConfigError, match="closed_loop=True"):
        mixer.rollout(mixer.init_state(1), 3)


def write_fixture() -> None:
    arrays: dict[str, Any] = {}
    for case in ("open", "closed"):
        theirs = build(case)
        x = normal(1, LENGTH, D_MODEL).requires_grad_()
        y = published_output(theirs, x)
        (gradient,) = torch.autograd.grad(y, x, normal(1, LENGTH, D_MODEL, seed=1))
        values = {**theirs.state_dict(), "wanted y": y.detach(), "wanted gradient": gradient}
        if case == "closed":
            theirs.closed_loop = True
            values |= dict(
                zip(("wanted forecast", "wanted inputs"), (t.detach() for t in theirs(x)))
            )
        arrays[f"{case}/names"] = np.array(list(values))
        arrays[f"{case}/shapes"] = np.array([",".join(map(str, v.shape)) for v in values.values()])
        arrays[f"{case}/values"] = torch.cat([v.flatten() for v in values.values()]).numpy()
    np.savez_compressed(FIXTURE, **arrays)


if __name__ == "__main__":
    write_fixture()
