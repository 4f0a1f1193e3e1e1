"""Retention and GLA against flash-linear-attention on a CPU, live and from frozen numbers.

The live tests run where LONGSEQ_UPSTREAM_FLA names a checkout of fla-org/flash-linear-attention,
with einops, triton and transformers importable; running this file as a program there writes the
frozen numbers anew. The layers' Triton kernels give way to the repository's own naive references.
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
from longseq.core.ops.linear_attention import linear_attention
from parity import differences, fill, gradients, waves

FIXTURE = Path(__file__).parent / "fixtures" / "fla.npz"
CHECKOUT = os.environ.get("LONGSEQ_UPSTREAM_FLA")
needs_checkout = pytest.mark.skipif(
    CHECKOUT is None,
    reason="LONGSEQ_UPSTREAM_FLA names no checkout of fla-org/flash-linear-attention",
)
# The naive references compute in float32 whatever they are given: sums of some hundred terms,
# reordered.
TOLERANCE = 1e-5
CASES = {"retention": {"n_heads": 4}, "gla": {"n_heads": 2}}


def upstream(module: str) -> Any:
    assert CHECKOUT is not None
    if CHECKOUT not in sys.path:
        sys.path.insert(0, CHECKOUT)
    autotuner: Any = importlib.import_module("triton.runtime.autotuner").Autotuner
    original = autotuner.__init__

    def lenient(
        self: Any, fn: Any, arg_names: Any, configs: Any, key: Any, *rest: Any, **options: Any
    ) -> None:
        # Newer Triton refuses tuning keys that are no argument; the kernels are imported here,
        # never run.
        original(self, fn, arg_names, configs, [k for k in key if k in arg_names], *rest, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(autotuner, "__init__", lenient)
        return importlib.import_module(module)


@needs_checkout
@pytest.mark.parametrize("kind", ["retention", "simple_gla_recurrent", "simple_gla_chunk", "gla"])
def test_operator_equals_naive(kind: str) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 75, 4, n).requires_grad_() for n in (8, 8, 6))
    start = torch.randn(2, 4, 8, 6).requires_grad_()
    per_key = kind == "gla"
    g = nn.functional.logsigmoid(
        torch.randn(2, 75, 4, 8) if per_key else torch.randn(2, 75, 4)
    ).requires_grad_()
    leaves = {"q": q, "k": k, "v": v}
    if kind == "retention":
        fixed = torch.log(1 - 2.0 ** (-5 - torch.arange(4))).expand(2, 75, 4)
        y, _ = linear_attention(q, k, v, fixed)
        naive = upstream("fla.ops.retention.naive").naive_retention
        theirs = naive(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)
    else:
        leaves |= {"g": g, "start": start}
        y, state = linear_attention(q, k, v, g, initial_state=start)
        naive = {
            "gla": lambda: upstream("fla.ops.gla.naive").naive_recurrent_gla,
            "simple_gla_recurrent": lambda: (
                upstream("fla.ops.simple_gla.naive").naive_recurrent_simple_gla
            ),
            "simple_gla_chunk": lambda: upstream("fla.ops.simple_gla.naive").naive_chunk_simple_gla,
        }[kind]()
        theirs, their_state = naive(q, k, v, g, initial_state=start, output_final_state=True)
        assert (state - their_state).abs().max() <= TOLERANCE * their_state.abs().max()
    found = differences(gradients(y, leaves), gradients(theirs, leaves))
    print({key: f"{value:.1e}" for key, value in found.items()})
    assert max(found.values()) <= TOLERANCE, found


def their_layer(name: str, d_model: int, n_heads: int) -> nn.Module:
    """The published layer with naive operators, norm and rotation in place of the kernels."""
    module = upstream(
        {"gla": "fla.layers.gla", "retention": "fla.layers.multiscale_retention"}[name]
    )
    if name == "gla":
        naive_gla = upstream("fla.ops.gla.naive").naive_recurrent_gla

        def operator(q: Tensor, k: Tensor, v: Tensor, gk: Tensor, **_: Any) -> Any:
            return naive_gla(q, k, v, gk)

        module.fused_recurrent_gla = operator
        layer = module.GatedLinearAttention(hidden_size=d_model, num_heads=n_heads)
    else:
        naive_retention = upstream("fla.ops.retention.naive").naive_retention

        def operator(q: Tensor, k: Tensor, v: Tensor, **_: Any) -> Any:
            return naive_retention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2), None

        module.fused_recurrent_retention = module.chunk_retention = operator
        layer = module.MultiScaleRetention(hidden_size=d_model, num_heads=n_heads)
        rotation = upstream("fla.modules.rotary")

        def rotate(q: Tensor, k: Tensor, **_: Any) -> Any:
            angles = torch.outer(torch.arange(q.shape[1]).float(), layer.rotary.inv_freq)
            return tuple(
                rotation.rotary_embedding_ref(x, angles.cos(), angles.sin()) for x in (q, k)
            )

        layer.rotary.forward = rotate

    def norm(o: Tensor, g: Tensor) -> Tensor:
        gated = layer.g_norm_swish_gate
        return nn.functional.rms_norm(
            o, o.shape[-1:], gated.weight, gated.eps
        ) * nn.functional.silu(g)

    layer.g_norm_swish_gate.forward = norm
    return layer


@needs_checkout
@pytest.mark.parametrize("name", CASES)
def test_layer_equals_upstream(name: str) -> None:
    theirs = their_layer(name, 16, **CASES[name])
    fill(theirs)
    ours = create_mixer(name, 16, **CASES[name], chunk_size=16)
    ours.load_state_dict(theirs.state_dict())
    x = waves(2, 37, 16).float().requires_grad_()
    found = differences(
        gradients(ours(x)[0], {"x": x, **dict(ours.named_parameters())}),
        gradients(theirs(x)[0], {"x": x, **dict(theirs.named_parameters())}),
    )
    print({key: f"{value:.1e}" for key, value in found.items()})
    assert max(found.values()) <= TOLERANCE, found


def frozen_case(name: str) -> tuple[nn.Module, Tensor]:
    """The layer and the input of the frozen numbers, float32."""
    ours = create_mixer(name, 8, **CASES[name])
    fill(ours)
    return ours, waves(2, 19, 8).float()


@pytest.mark.parametrize("name", CASES)
def test_equals_frozen_upstream(name: str) -> None:
    frozen = {
        key.removeprefix(f"{name}:"): torch.from_numpy(value)
        for key, value in np.load(FIXTURE).items()
        if key.startswith(f"{name}:")
    }
    ours, x = frozen_case(name)
    x.requires_grad_()
    found = differences(gradients(ours(x)[0], {"x": x, **dict(ours.named_parameters())}), frozen)
    assert max(found.values()) <= TOLERANCE, found


def write_fixture() -> None:
    """Writes output and gradients of the upstream layers for the frozen weights and input."""
    values = {}
    for name, options in CASES.items():
        theirs = their_layer(name, 8, **options)
        ours, x = frozen_case(name)
        theirs.load_state_dict(ours.state_dict())
        x.requires_grad_()
        found = gradients(theirs(x)[0], {"x": x, **dict(theirs.named_parameters())})
        values |= {f"{name}:{key}": value.numpy() for key, value in found.items()}
    np.savez_compressed(FIXTURE, **values)


if __name__ == "__main__":
    write_fixture()
