"""HGRN2, GSA, Lightning attention, Mamba-3, the RG-LRU block and Gated DeltaNet against published
code in float64 and float32: outputs, gradients and states, live.

LONGSEQ_UPSTREAM_FLA names a checkout of fla-org/flash-linear-attention (einops importable),
LONGSEQ_UPSTREAM_MAMBA one of state-spaces/mamba, LONGSEQ_UPSTREAM_TRANSFORMERS a folder with
transformers. Where a reference computes in float32 whatever it is given, the dtype that is compared
is read in its place.
"""

from __future__ import annotations

import importlib
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Optional

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.functional import logsigmoid, silu, softplus

from longseq.core.mixers import create_mixer
from parity import differences, fill, gradients, waves

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
D, LENGTH = 16, 21


@pytest.fixture(params=TOLERANCE, ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    found: torch.dtype = request.param
    return found


def checkout(name: str) -> Path:
    """The folder of published code, or a skip with the reason."""
    folder = os.environ.get(f"LONGSEQ_UPSTREAM_{name}")
    if folder is None:
        pytest.skip(f"LONGSEQ_UPSTREAM_{name} names no checkout")
    return Path(folder)


def defined(source: str, dtype: torch.dtype, **given: Any) -> dict[str, Any]:
    """The names that a reference's source defines, its float32 read as ``dtype``."""
    for narrow, asked in (
        ("torch.float32", f"{dtype}"),
        ("dtype=torch.float,", f"dtype={dtype},"),
        (".float()", f".to({dtype})"),
    ):
        source = source.replace(narrow, asked)
    names: dict[str, Any] = dict(given)
    exec(source, names)
    return names


def naive(module: str, name: str, dtype: torch.dtype) -> Any:
    path = checkout("FLA") / "fla" / "ops" / module / "naive.py"
    return defined(path.read_text(encoding="utf-8"), dtype)[name]


def case(name: str, dtype: torch.dtype, **options: Any) -> tuple[Any, Tensor]:
    mixer = create_mixer(name, D, **options).to(dtype)
    fill(mixer)
    return mixer, waves(2, LENGTH, D).to(dtype).requires_grad_()


Reference = Callable[[Tensor], tuple[Tensor, dict[str, Tensor]]]


def agree(mixer: nn.Module, x: Tensor, reference: Reference, leaves: dict[str, Tensor]) -> None:
    """Compares outputs, gradients and the states that the reference returns."""
    y, state = mixer(x)
    theirs, last = reference(x)
    found = differences(
        gradients(y, {"x": x, **dict(mixer.named_parameters())}),
        gradients(theirs, {"x": x, **leaves}),
    )
    found |= {
        f"state {key}": v for key, v in differences({k: state[k] for k in last}, last).items()
    }
    print({key: f"{value:.1e}" for key, value in found.items()})
    assert max(found.values()) <= TOLERANCE[x.dtype], found


@pytest.mark.parametrize("bound", [0.0, 0.25])
def test_hgrn2(bound: float, dtype: torch.dtype) -> None:
    run = naive("gla", "naive_recurrent_gla", dtype)
    m, x = case("hgrn2", dtype, n_heads=2, lower_bound=bound)

    def reference(x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        shape = (2, D // 2)
        forget = (bound + (1 - bound) * m.f_proj(x).sigmoid()).unflatten(-1, shape)
        q, v = silu(m.q_proj(x)).unflatten(-1, shape), m.i_proj(x).unflatten(-1, shape)
        o, last = run(q, 1 - forget, v, forget.log(), output_final_state=True)
        return m.o_proj(m.g_norm(o.flatten(2))), {"kv": last}

    agree(m, x, reference, dict(m.named_parameters()))


def test_gsa(dtype: torch.dtype) -> None:
    run = naive("gsa", "naive_recurrent_gsa", dtype)
    m, x = case("gsa", dtype, n_heads=2, n_slots=6)

    def reference(x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        q, k, v, f = (p(x).unflatten(-1, (2, -1)) for p in (m.q_proj, m.k_proj, m.v_proj, m.f_proj))
        g = logsigmoid(f) / m.gate_logit_normalizer
        given = (silu(q), silu(k), silu(v), 1 - g.exp(), g)
        o, (keys, values) = run(*given, scale=1.0, output_final_state=True)
        return m.o_proj(m.g_norm(silu(o.flatten(2)))), {"k": keys, "v": values}

    agree(m, x, reference, dict(m.named_parameters()))


def test_lightning_attention(dtype: torch.dtype) -> None:
    """fla's Lightning attention is its simple GLA with a fixed decay; layer 3 of 12."""
    run = naive("simple_gla", "naive_recurrent_simple_gla", dtype)
    heads, depth = 4, 3 / 12
    m, x = case("transnormer", dtype, n_heads=heads, depth=depth, gate=False)

    def reference(x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        q, k, v = (p(x).unflatten(-1, (heads, -1)) for p in (m.q_proj, m.k_proj, m.v_proj))
        g = -(8 / heads * (1 - depth)) * torch.arange(heads, dtype=x.dtype)
        g = g.expand(*x.shape[:2], -1)
        o, last = run(silu(q), silu(k), v, g, output_final_state=True)
        o = F.rms_norm(o.flatten(2), (D,), None, m.norm_eps)
        return m.o_proj(o), {"kv": last}

    agree(m, x, reference, dict(m.named_parameters()))


@pytest.mark.parametrize("form", ["step", "fwd"])
@pytest.mark.parametrize("options", [{}, {"ngroups": 2, "rope_fraction": 1.0}])
def test_mamba3(form: str, options: dict[str, Any], dtype: torch.dtype) -> None:
    path = checkout("MAMBA") / "tests" / "ops" / "triton" / "test_mamba3_siso.py"
    source = path.read_text(encoding="utf-8").split("# Reference Implementations")[1]
    source = source.split("# Test Utilities")[0]
    repeat = importlib.import_module("einops").repeat
    names = defined(
        source, dtype, torch=torch, F=F, math=math, repeat=repeat, Optional=Optional, Tuple=tuple
    )
    run = names[f"mamba3_siso_{form}_ref"]
    m, x = case("mamba3", dtype, d_state=8, headdim=8, **options)
    widths = [m.d_inner, m.d_inner, m.maps, m.maps, m.nheads, m.nheads, m.nheads, m.angles]

    def reference(x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        z, v, b, c, dt, rate, trap, turn = m.in_proj(x).split(widths, -1)
        dt = softplus(dt + m.dt_bias)
        decay = -softplus(rate).clamp_min(m.A_floor) * dt
        b, c = m.B_norm(b.unflatten(-1, (-1, 8))), m.C_norm(c.unflatten(-1, (-1, 8)))
        v, z = v.unflatten(-1, (-1, 8)), z.unflatten(-1, (-1, 8))
        turn = turn.unsqueeze(2).expand(-1, -1, m.nheads, -1)
        biases = (m.C_bias[:, 0], m.B_bias[:, 0])
        y, (angle, s, k, v_last) = run(c, b, v, decay.mT, dt.mT, trap.mT, *biases, turn, m.D, z)
        last = {"kv": s.mT, "angle": angle, "k": k.unsqueeze(1), "v": v_last}
        return m.out_proj(y.flatten(2)), last

    agree(m, x, reference, dict(m.named_parameters()))


def published(module: str) -> Any:
    folder = str(checkout("TRANSFORMERS"))
    if folder not in sys.path:
        sys.path.insert(0, folder)
    return importlib.import_module(f"transformers.models.{module}")


def test_recurrent_gemma(dtype: torch.dtype) -> None:
    models = published("recurrent_gemma.modeling_recurrent_gemma")
    config = models.RecurrentGemmaConfig(hidden_size=D, lru_width=D, num_attention_heads=2)
    theirs = models.RecurrentGemmaRecurrentBlock(config, 0).to(dtype)
    m, x = case("rg_lru", dtype, n_heads=2)
    theirs.load_state_dict(m.state_dict())
    with pytest.MonkeyPatch.context() as patch:
        scan = theirs.rg_lru._rnn_scan
        patch.setattr(theirs.rg_lru, "_rnn_scan", lambda **o: scan(**o, acc_dtype=dtype))
        positions = torch.arange(LENGTH).expand(2, -1)

        def reference(x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            y = theirs(x, positions, None, use_cache=False)[0]
            return y, {"h": theirs.rg_lru.recurrent_states}

        agree(m, x, reference, dict(theirs.named_parameters()))


def test_qwen3_next(dtype: torch.dtype) -> None:
    """Its Gated DeltaNet layer, with our weights in its interleaved maps; gradients come back
    through the copying."""
    models = published("qwen3_next.modeling_qwen3_next")
    heads, width = 2, 4
    config = models.Qwen3NextConfig(
        hidden_size=D,
        linear_num_value_heads=heads,
        linear_num_key_heads=heads,
        linear_key_head_dim=width,
        linear_value_head_dim=width,
        num_hidden_layers=1,
        layer_types=["linear_attention"],
        rms_norm_eps=1e-5,
    )
    theirs = models.Qwen3NextGatedDeltaNet(config, 0).to(dtype)
    m, x = case("gated_delta_net", dtype, n_heads=heads, head_dim=width, expand_v=1.0)
    m.o_norm.eps = 1e-5

    def weights() -> dict[str, Tensor]:
        maps = [
            p.weight.unflatten(0, (heads, -1)) for p in (m.q_proj, m.k_proj, m.v_proj, m.g_proj)
        ]
        gates = [p.weight.unflatten(0, (heads, -1)) for p in (m.b_proj, m.a_proj)]
        taps = [c.weight for c in (m.q_conv1d, m.k_conv1d, m.v_conv1d)]
        return {
            "in_proj_qkvz.weight": torch.cat(maps, 1).flatten(0, 1),
            "in_proj_ba.weight": torch.cat(gates, 1).flatten(0, 1),
            "conv1d.weight": torch.cat(taps),
            "dt_bias": m.dt_bias,
            "A_log": m.A_log,
            "norm.weight": m.o_norm.weight,
            "out_proj.weight": m.o_proj.weight,
        }

    run, kept = models.torch_recurrent_gated_delta_rule, []

    def operator(*inputs: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
        y, last = run(*inputs, **{**options, "output_final_state": True})
        kept.append(last)
        return y, last

    def reference(x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        y = torch.func.functional_call(theirs, weights(), (x,))
        return y, {"kv": kept[-1]}

    with pytest.MonkeyPatch.context() as patch:
        # Its parts compute in float32 whatever they are given.
        patch.setattr(models, "torch_chunk_gated_delta_rule", operator)
        patch.setattr(Tensor, "float", lambda x: x.to(dtype))
        patch.setattr(torch, "float32", dtype)
        agree(m, x, reference, dict(m.named_parameters()))
