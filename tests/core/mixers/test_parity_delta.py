"""The layers on the delta rule against flash-linear-attention in float64, live and from frozen
numbers.

The live tests run where LONGSEQ_UPSTREAM_FLA names a checkout of fla-org/flash-linear-attention,
with einops, triton and transformers importable; running this file as a program there writes the
frozen numbers anew. The layers' kernels give way to the repository's own naive references, whose
casts to float32 are read as casts to float64.
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import conv1d, pad, rms_norm, silu, softplus

from longseq.core.mixers import create_mixer
from longseq.core.ops.delta_rule import delta_rule
from longseq.core.ops.dplr import dplr
from parity import differences, fill, gradients, waves

FIXTURE = Path(__file__).parent / "fixtures" / "delta.npz"
CHECKOUT = os.environ.get("LONGSEQ_UPSTREAM_FLA")
needs_checkout = pytest.mark.skipif(
    CHECKOUT is None,
    reason="LONGSEQ_UPSTREAM_FLA names no checkout of fla-org/flash-linear-attention",
)
TOLERANCE = 1e-10
RANKS = {"decay_low_rank_dim": 3, "a_low_rank_dim": 2, "gate_low_rank_dim": 3}
# Our hyper-parameters, and the published class with its own.
CASES: dict[str, tuple[dict[str, Any], str, str, dict[str, Any]]] = {
    "delta_net": (
        {"n_heads": 2, "use_gate": True, "conv_bias": True},
        "delta_net",
        "DeltaNet",
        {"num_heads": 2, "use_gate": True, "conv_bias": True},
    ),
    "gated_delta_net": (
        {"n_heads": 2, "head_dim": 3, "expand_v": 1.0, "allow_neg_eigval": True},
        "gated_deltanet",
        "GatedDeltaNet",
        {"num_heads": 2, "head_dim": 3, "expand_v": 1.0, "allow_neg_eigval": True},
    ),
    "gated_delta_product": (
        {"n_heads": 2, "head_dim": 3, "expand_v": 1.0, "num_householder": 2},
        "gated_deltaproduct",
        "GatedDeltaProduct",
        {"num_heads": 2, "head_dim": 3, "expand_v": 1.0, "num_householder": 2},
    ),
    "kda": (
        {"n_heads": 2, "head_dim": 4, "expand_v": 0.5},
        "kda",
        "KimiDeltaAttention",
        {"num_heads": 2, "head_dim": 4, "expand_v": 0.5},
    ),
    "rwkv7": (
        {"head_dim": 4, **RANKS},
        "rwkv7",
        "RWKV7Attention",
        {"head_dim": 4, "layer_idx": 0, "num_hidden_layers": 2, **RANKS},
    ),
}


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


def naive(module: str, name: str) -> Any:
    """A naive reference of the checkout that computes in float64."""
    source = inspect.getsource(upstream(module))
    for narrow in (".float()", "torch.float32", "torch.float)"):
        wide = {
            ".float()": ".double()",
            "torch.float32": "torch.float64",
            "torch.float)": "torch.float64)",
        }
        source = source.replace(narrow, wide[narrow])
    copied = ModuleType("naive")
    exec(compile(source, module, "exec"), vars(copied))
    return getattr(copied, name)


def unit(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6)


def their_rwkv7(d_model: int) -> nn.Module:
    """RWKV-7's layer of index 0, float64, with the checkout's own references in place of its
    kernels."""
    module, parts = upstream("fla.layers.rwkv7"), "fla.ops.rwkv7."
    run = naive("fla.ops.generalized_delta_rule.dplr.naive", "dplr_recurrence")

    def operator(r: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, **_: Any) -> Any:
        flat = (x.transpose(1, 2) for x in (r * r.shape[-1] ** 0.5, k, v, a, b, w))
        return run(*flat)[0].transpose(1, 2), None

    module.chunk_rwkv7 = operator
    module.token_shift = lambda x, *_, **__: (
        upstream("fla.modules.token_shift").token_shift_ref(x),
        None,
    )
    module.fused_addcmul_rwkv7 = upstream(parts + "fused_addcmul").torch_addcmul_rwkv7
    module.fused_k_rwkv7 = upstream(parts + "fused_k_update").k_update_ref
    corrected = upstream(parts + "gate_output_correction").gate_output_correction_ref
    module.gate_output_correction = corrected
    return module.RWKV7Attention(hidden_size=d_model, **CASES["rwkv7"][3]).double()


def their_layer(name: str, d_model: int) -> nn.Module:
    """The published layer, float64, with naive operators, convolutions and norms in place of the
    kernels."""
    _, file, cls, options = CASES[name]
    if name == "rwkv7":
        return their_rwkv7(d_model)
    module = upstream(f"fla.layers.{file}")
    operators = {
        "delta_net": ("fla.ops.delta_rule.naive", "delta_rule_recurrence"),
        "gated_delta_net": ("fla.ops.gated_delta_rule.naive", "naive_recurrent_gated_delta_rule"),
        "gated_delta_product": (
            "fla.ops.gated_delta_product.naive",
            "naive_recurrent_gated_delta_product",
        ),
        "kda": ("fla.ops.kda.naive", "naive_recurrent_kda"),
    }
    run = naive(*operators[name])

    def operator(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, **o: Any) -> Any:
        q, k = unit(q), unit(k)
        if o.get("use_beta_sigmoid_in_kernel"):
            beta = beta.sigmoid() * (2.0 if o["allow_neg_eigval"] else 1.0)
        if name == "delta_net":
            flat = (x.transpose(1, 2) for x in (q, k, v, beta))
            return run(*flat)[0].transpose(1, 2), None
        g = o["g"]
        if o.get("use_gate_in_kernel"):
            bias = o["dt_bias"].view(g.shape[2:])
            g = -o["A_log"].exp().view(-1, *[1] * (g.ndim - 3)) * softplus(g + bias)
        if name == "gated_delta_product":
            return run(q, k, v, g, beta, q.shape[-1] ** -0.5, num_householder=o["num_householder"])
        y = run(q=q, k=k, v=v, beta=beta, g=g)[0]
        return (y.transpose(1, 2) if y.shape[1] != q.shape[1] else y), None

    for kernel in (
        "chunk_delta_rule",
        "chunk_gated_delta_rule",
        "chunk_gated_delta_product",
        "chunk_kda",
        "fused_recurrent_delta_rule",
    ):
        if hasattr(module, kernel):
            setattr(module, kernel, operator)
    layer = getattr(module, cls)(hidden_size=d_model, **options).double()
    layer._use_fused_qkv_conv = lambda **_: False

    def convolution(conv: nn.Conv1d) -> Any:
        def call(x: Tensor, **_: Any) -> Any:
            taps = conv.weight.shape[-1]
            y = conv1d(
                pad(x.mT, (taps - 1, 0)), conv.weight, conv.bias, groups=conv.weight.shape[0]
            )
            return silu(y).mT, None

        return call

    for conv in (layer.q_conv1d, layer.k_conv1d, layer.v_conv1d):
        conv.forward = convolution(conv)
    gated = torch.sigmoid if name == "kda" else silu
    norm = layer.o_norm
    norm.forward = lambda o, g: rms_norm(o, o.shape[-1:], norm.weight, norm.eps) * gated(g)
    forward = layer.forward

    def wide(x: Tensor) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            # The layers compute their decays in float32.
            patch.setattr(Tensor, "float", Tensor.double)
            return forward(x)

    layer.forward = wide
    return layer


def case(name: str) -> tuple[nn.Module, Tensor]:
    """Our layer and an input, float64."""
    ours = create_mixer(name, 8, **CASES[name][0], chunk_size=16).double()
    fill(ours)
    return ours, waves(1, 21, 8).requires_grad_()


@needs_checkout
@pytest.mark.parametrize("kind", ["none", "head", "channel"])
def test_operator_equals_naive(kind: str) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 75, 3, n, dtype=torch.float64) for n in (8, 8, 6))
    leaves = {"q": q, "k": unit(k), "v": v, "beta": 2 * torch.rand(2, 75, 3, dtype=torch.float64)}
    leaves["start"] = torch.randn(2, 3, 8, 6, dtype=torch.float64)
    if kind != "none":
        shape = (2, 75, 3) if kind == "head" else (2, 75, 3, 8)
        leaves["g"] = nn.functional.logsigmoid(torch.randn(shape, dtype=torch.float64))
    leaves = {key: value.requires_grad_() for key, value in leaves.items()}
    q, k, v, beta, start = (leaves[key] for key in ("q", "k", "v", "beta", "start"))
    y, state = delta_rule(q, k, v, beta, leaves.get("g"), initial_state=start)
    if kind == "none":
        run = naive("fla.ops.delta_rule.naive", "delta_rule_recurrence")
        theirs, last = run(*(x.transpose(1, 2) for x in (q, k, v, beta)), initial_state=start)
        theirs = theirs.transpose(1, 2)
    else:
        where = {
            "head": ("gated_delta_rule", "naive_recurrent_gated_delta_rule"),
            "channel": ("kda", "naive_recurrent_kda"),
        }[kind]
        run = naive(f"fla.ops.{where[0]}.naive", where[1])
        theirs, last = run(
            q=q, k=k, v=v, g=leaves["g"], beta=beta, initial_state=start, output_final_state=True
        )
    assert (state - last).abs().max() <= TOLERANCE * last.abs().max()
    found = differences(gradients(y, leaves), gradients(theirs, leaves))
    print({key: f"{value:.1e}" for key, value in found.items()})
    assert max(found.values()) <= TOLERANCE, found


@needs_checkout
def test_general_operator_equals_naive() -> None:
    torch.manual_seed(0)
    leaves = {
        name: torch.randn(2, 75, 3, 8, dtype=torch.float64)
        for name in ("q", "k", "v", "a", "b", "g")
    }
    leaves["b"] = unit(leaves["b"])
    leaves["a"] = -leaves["b"] * leaves["a"].sigmoid()
    leaves["g"] = nn.functional.logsigmoid(leaves["g"])
    leaves["start"] = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    leaves = {key: value.requires_grad_() for key, value in leaves.items()}
    q, k, v, a, b, g, start = leaves.values()
    y, state = dplr(q, k, v, a, b, g, initial_state=start)
    run = naive("fla.ops.generalized_delta_rule.dplr.naive", "dplr_recurrence")
    # There b is alpha, and a is beta.
    theirs, last = run(*(x.transpose(1, 2) for x in (q, k, v, b, a, g)), initial_state=start)
    assert (state - last).abs().max() <= TOLERANCE * last.abs().max()
    found = differences(gradients(y, leaves), gradients(theirs.transpose(1, 2), leaves))
    print({key: f"{value:.1e}" for key, value in found.items()})
    assert max(found.values()) <= TOLERANCE, found


@needs_checkout
@pytest.mark.parametrize("name", CASES)
def test_layer_equals_upstream(name: str) -> None:
    theirs = their_layer(name, 8)
    ours, x = case(name)
    theirs.load_state_dict(ours.state_dict())
    found = differences(
        gradients(ours(x)[0], {"x": x, **dict(ours.named_parameters())}),
        gradients(theirs(x)[0], {"x": x, **dict(theirs.named_parameters())}),
    )
    print({key: f"{value:.1e}" for key, value in found.items()})
    assert max(found.values()) <= TOLERANCE, found


@pytest.mark.parametrize("name", CASES)
def test_equals_frozen_upstream(name: str) -> None:
    frozen = {
        key.removeprefix(f"{name}:"): torch.from_numpy(value)
        for key, value in np.load(FIXTURE).items()
        if key.startswith(f"{name}:")
    }
    ours, x = case(name)
    found = differences(gradients(ours(x)[0], {"x": x, **dict(ours.named_parameters())}), frozen)
    assert max(found.values()) <= TOLERANCE, found


def write_fixture() -> None:
    """Writes output and gradients of the upstream layers for the frozen weights and input."""
    values = {}
    for name in CASES:
        theirs = their_layer(name, 8)
        ours, x = case(name)
        theirs.load_state_dict(ours.state_dict())
        found = gradients(theirs(x)[0], {"x": x, **dict(theirs.named_parameters())})
        values |= {f"{name}:{key}": value.numpy() for key, value in found.items()}
    np.savez_compressed(FIXTURE, **values)


if __name__ == "__main__":
    write_fixture()
