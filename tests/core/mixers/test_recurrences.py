"""Mixers against their papers' equations, written out position by position in float64; forgetting
attention also against flash-linear-attention's naive reference, live.

The live test runs where LONGSEQ_UPSTREAM_FLA names a checkout of fla-org/flash-linear-attention,
with einops, triton and transformers importable.
"""

from __future__ import annotations

import importlib
import math
import os
import sys
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, rms_norm, silu, softplus

from longseq.core.errors import ConfigError
from longseq.core.mixers import Mixer, create_mixer
from longseq.core.mixers.rg_lru import _bounded_sqrt
from parity import close, differences, fill, waves, with_gradients

CHECKOUT = os.environ.get("LONGSEQ_UPSTREAM_FLA")
needs_checkout = pytest.mark.skipif(
    CHECKOUT is None,
    reason="LONGSEQ_UPSTREAM_FLA names no checkout of fla-org/flash-linear-attention",
)
D, LENGTH = 16, 21


def mamba3(m: Any, x: Tensor) -> Tensor:
    heads, rank, n = m.nheads, m.mimo_rank, m.d_state
    state = x.new_zeros(len(x), heads, n, m.headdim)
    angle = x.new_zeros(len(x), heads, m.angles)
    k_before, v_before = (
        x.new_zeros(len(x), rank, heads, n),
        x.new_zeros(len(x), rank, heads, m.headdim),
    )
    outputs = []
    for x_t in x.unbind(1):
        z, v, k, q, dt, rate, share, turn = m.in_proj(x_t).split(
            [m.d_inner, m.d_inner, m.maps, m.maps, heads, heads, heads, m.angles], -1
        )
        dt = softplus(dt + m.dt_bias)
        decay = torch.exp(-softplus(rate).clamp_min(m.A_floor) * dt)
        share = share.sigmoid()
        angle = angle + math.pi * turn.tanh()[:, None] * dt[..., None]
        turned = []
        for value, norm, bias in ((k, m.B_norm, m.B_bias), (q, m.C_norm, m.C_bias)):
            value = rms_norm(value.unflatten(-1, (rank, -1, n)), (n,), norm.weight, 1e-5)
            value = value.repeat_interleave(heads // m.ngroups, 2) + bias.transpose(0, 1)
            result = value.clone()
            for pair in range(m.angles):
                i, j = (2 * pair, 2 * pair + 1) if rank == 1 else (pair, pair + n // 2)
                cos, sin = angle[..., pair].cos()[:, None], angle[..., pair].sin()[:, None]
                result[..., i] = value[..., i] * cos - value[..., j] * sin
                result[..., j] = value[..., i] * sin + value[..., j] * cos
            turned.append(result)
        k, q = turned
        v, z = v.unflatten(-1, (heads, -1)), z.unflatten(-1, (heads, -1))
        v = v[:, None] * m.mimo_x.transpose(0, 1) if rank > 1 else v[:, None]
        z = z[:, None] * m.mimo_z.transpose(0, 1) if rank > 1 else z[:, None]

        def pair(k: Tensor, v: Tensor) -> Tensor:
            return torch.einsum("brhn,brhp->bhnp", k, v)

        early, now = ((1 - share) * dt)[..., None, None], (share * dt)[..., None, None]
        state = decay[..., None, None] * (state + early * pair(k_before, v_before))
        state = state + now * pair(k, v)
        y = torch.einsum("bhnp,brhn->brhp", state, q) + m.D[:, None] * v
        if m.norm is None:
            y = y * silu(z)
        else:
            y = rms_norm(y, (m.headdim,), None, 1e-5) * m.norm.weight.view(heads, -1) * silu(z)
        y = (y * m.mimo_o.transpose(0, 1)).sum(1) if rank > 1 else y[:, 0]
        outputs.append(m.out_proj(y.flatten(1)))
        k_before, v_before = k, v
    return torch.stack(outputs, 1)


def hgrn2(m: Any, x: Tensor) -> Tensor:
    heads, width = m.n_heads, m.d_head
    state = x.new_zeros(len(x), heads, width, width)
    outputs = []
    for x_t in x.unbind(1):
        forget = m.lower_bound + (1 - m.lower_bound) * m.f_proj(x_t).sigmoid()
        forget = forget.unflatten(-1, (heads, width))
        written = m.i_proj(x_t).unflatten(-1, (heads, width))
        state = forget[..., None] * state + (1 - forget)[..., None] * written[..., None, :]
        query = silu(m.q_proj(x_t)).unflatten(-1, (heads, width)) / math.sqrt(width)
        read = torch.einsum("bhkv,bhk->bhv", state, query).flatten(1)
        outputs.append(m.o_proj(rms_norm(read, (D,), m.g_norm.weight, 1e-5)))
    return torch.stack(outputs, 1)


def transnormer(m: Any, x: Tensor) -> Tensor:
    heads, width = m.n_heads, m.d_head
    decay = torch.ones(heads, dtype=x.dtype)
    if m.decay:
        decay = torch.exp(-8 * torch.arange(heads, dtype=x.dtype) / heads * (1 - m.depth))
    state = x.new_zeros(len(x), heads, width, width)
    outputs = []
    for x_t in x.unbind(1):
        q, k, v = (p(x_t).unflatten(-1, (heads, width)) for p in (m.q_proj, m.k_proj, m.v_proj))
        state = decay[:, None, None] * state + silu(k)[..., None] * v[..., None, :]
        read = torch.einsum("bhkv,bhk->bhv", state, silu(q) / math.sqrt(width)).flatten(1)
        read = rms_norm(read, (D,), None, m.norm_eps)
        outputs.append(m.o_proj(read if m.u_proj is None else read * m.u_proj(x_t)))
    return torch.stack(outputs, 1)


def diag_attention(m: Any, x: Tensor) -> Tensor:
    outputs = []
    for t in range(x.shape[1]):
        seen = x[:, t - t % m.block : t + 1]
        q, k, v = (
            p(part).unflatten(-1, (m.n_heads, m.d_head))
            for p, part in ((m.q_proj, x[:, t]), (m.k_proj, seen), (m.v_proj, seen))
        )
        scores = torch.einsum("bhp,bshp->bsh", q, k) / math.sqrt(m.d_head)
        read = torch.einsum("bsh,bshp->bhp", torch.softmax(scores, 1), v).flatten(1)
        outputs.append(m.o_proj(read if m.u_proj is None else read * m.u_proj(x[:, t])))
    return torch.stack(outputs, 1)


def gsa(m: Any, x: Tensor) -> Tensor:
    heads, width, slots = m.n_heads, m.d_head, m.n_slots
    keys = x.new_zeros(len(x), heads, width, slots)
    values = x.new_zeros(len(x), heads, slots, width)
    outputs = []
    for x_t in x.unbind(1):
        q, k, v = (silu(p(x_t)).unflatten(-1, (heads, -1)) for p in (m.q_proj, m.k_proj, m.v_proj))
        keep = m.f_proj(x_t).sigmoid().unflatten(-1, (heads, -1)) ** (1 / m.gate_logit_normalizer)
        keys = keys * keep[..., None, :] + k[..., None] * (1 - keep)[..., None, :]
        values = keep[..., None] * values + (1 - keep)[..., None] * v[..., None, :]
        weights = torch.softmax(torch.einsum("bhkm,bhk->bhm", keys, q), -1)
        read = torch.einsum("bhmv,bhm->bhv", values, weights).flatten(1)
        outputs.append(m.o_proj(rms_norm(silu(read), (D,), m.g_norm.weight, 1e-5)))
    return torch.stack(outputs, 1)


def forgetting_attention(m: Any, x: Tensor) -> Tensor:
    shape = (m.n_heads, m.d_head)
    q, k, v = m.project(x)
    k, v = (one.repeat_interleave(m.n_heads // m.n_kv_heads, 2) for one in (k, v))
    gates = logsigmoid(m.f_proj(x))
    outputs = []
    for t in range(x.shape[1]):
        scores = torch.einsum("bhp,bshp->bsh", q[:, t], k[:, : t + 1]) / math.sqrt(m.d_head)
        faded = torch.stack([gates[:, s + 1 : t + 1].sum(1) for s in range(t + 1)], 1)
        weights = torch.softmax(scores + faded, 1)
        read = torch.einsum("bsh,bshp->bhp", weights, v[:, : t + 1])
        assert read.shape[1:] == shape
        outputs.append(m.o_proj(read.flatten(1)))
    return torch.stack(outputs, 1)


def mega(m: Any, x: Tensor) -> Tensor:
    p, a = m.ema.delta.sigmoid(), m.ema.alpha.sigmoid()
    h, averages = x.new_zeros(len(x), *p.shape), []
    for x_t in x.unbind(1):
        h = p * m.ema.beta * x_t[..., None] + (1 - p * a) * h
        average = (h * m.ema.gamma).sum(-1) / math.sqrt(p.shape[1])
        averages.append(silu(average + m.ema.omega * x_t))
    return chunked_attention(m, x, averages)


def tcnca(m: Any, x: Tensor) -> Tensor:
    values = x
    for i, layer in enumerate(m.tcn.layers):
        taps, dilation, total = layer.weight.squeeze(1), m.tcn.dilations[i], []
        for t in range(x.shape[1]):
            y = layer.bias.expand(len(x), -1)
            for k in range(taps.shape[1]):
                lag = (taps.shape[1] - 1 - k) * dilation
                y = y + (values[:, t - lag] * taps[:, k] if t >= lag else 0)
            total.append(y)
        values = values + silu(torch.stack(total, 1))
    return chunked_attention(m, x, list(values.unbind(1)))


def chunked_attention(m: Any, x: Tensor, averages: list[Tensor]) -> Tensor:
    keys: list[Tensor] = []
    values: list[Tensor] = []
    outputs = []
    for t, (x_t, average) in enumerate(zip(x.unbind(1), averages)):
        update, z, gate, own = m.mx_proj(average).split(
            [m.d_model, m.d_attention, m.d_value, m.d_model], -1
        )
        query, key = (silu(z) * kappa + mu for kappa, mu in zip(m.kappa, m.mu))
        if t % m.window == 0:
            keys, values = [], []
        keys, values = [*keys, key], [*values, silu(m.v_proj(x_t))]
        scores = torch.stack([(query * k).sum(-1) for k in keys], -1) / math.sqrt(m.d_attention)
        weights = torch.softmax(scores + m.relative[: len(keys)].flip(0), -1)
        read = (weights[..., None] * torch.stack(values, 1)).sum(1)
        update = update.sigmoid()
        outputs.append(update * silu(own + m.h_proj(silu(gate) * read)) + (1 - update) * x_t)
    return torch.stack(outputs, 1)


def pgn(m: Any, x: Tensor) -> Tensor:
    outputs = []
    for t, x_t in enumerate(x.unbind(1)):
        h = m.history.bias.expand(len(x), -1)
        for lag in range(1, min(t, m.window) + 1):
            h = h + x[:, t - lag] @ m.history.weight[:, :, m.window - lag].T
        gate = m.gate(torch.cat([x_t, h], -1)).sigmoid()
        candidate = m.candidate(torch.cat([x_t, gate * h], -1)).tanh()
        outputs.append(gate * h + (1 - gate) * candidate)
    return torch.stack(outputs, 1)


CASES: list[tuple[Any, dict[str, Any]]] = [
    (mamba3, {"d_state": 8, "headdim": 8, "chunk_size": 4}),
    (mamba3, {"d_state": 6, "headdim": 4, "ngroups": 2, "rope_fraction": 1.0, "out_norm": True}),
    (mamba3, {"d_state": 8, "headdim": 8, "mimo_rank": 3, "ngroups": 2}),
    (mamba3, {"d_state": 4, "headdim": 16, "mimo_rank": 2, "rope_fraction": 1.0, "out_norm": True}),
    (hgrn2, {"n_heads": 2, "chunk_size": 8}),
    (hgrn2, {"n_heads": 4, "lower_bound": 0.25}),
    (transnormer, {"n_heads": 2, "depth": 0.25, "chunk_size": 8}),
    (transnormer, {"n_heads": 4, "decay": False, "gate": False}),
    (diag_attention, {"n_heads": 4, "block": 5}),
    (diag_attention, {"n_heads": 2, "block": 64, "gate": False}),
    (gsa, {"n_heads": 2, "chunk_size": 8}),
    (gsa, {"n_heads": 4, "n_slots": 3, "gate_logit_normalizer": 1.0}),
    (forgetting_attention, {"n_heads": 4, "n_kv_heads": 2}),
    (pgn, {"window": 6}),
    (tcnca, {"d_attention": 8, "kernel": 3, "base": 3, "layers": 3, "window": 5}),
    (mega, {"d_attention": 8, "d_ema": 4, "window": 5}),
]


@pytest.mark.parametrize(
    ("equations", "options"), CASES, ids=[f"{f.__name__}-{n}" for n, (f, _) in enumerate(CASES)]
)
def test_a_mixer_is_its_equations(equations: Any, options: dict[str, Any]) -> None:
    name = {"diag_attention": "transnormer"}.get(equations.__name__, equations.__name__)
    mixer = create_mixer(name, D, **options).double()
    fill(mixer)
    x, parameters = waves(2, LENGTH, D), dict(mixer.named_parameters())
    expected = with_gradients(partial(equations, mixer), parameters, x)
    found = differences(with_gradients(mixer, parameters, x), expected)
    assert max(found.values()) < 1e-10, found


def upstream(module: str) -> Any:
    if CHECKOUT not in sys.path:
        sys.path.insert(0, str(CHECKOUT))
    return importlib.import_module(module)


@needs_checkout
def test_forgetting_attention_has_the_published_scores() -> None:
    mixer: Any = create_mixer("forgetting_attention", D, n_heads=4, n_kv_heads=2)
    x = waves(2, LENGTH, D).float()
    run = upstream("fla.ops.forgetting_attn.naive").naive_forgetting_attn
    expected = mixer.o_proj(run(*mixer.project(x), logsigmoid(mixer.f_proj(x))).flatten(2))
    close(mixer(x)[0], expected, "output", 1e-5)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mamba3", {"rope_fraction": 0.3}, "rope_fraction must be 0.5 or 1"),
        ("mamba3", {"d_state": 7}, "d_state must be even"),
        ("mamba3", {"headdim": 5}, "headdim"),
        ("rwkv7", {"head_dim": 1}, "head_dim must be at least 2"),
        ("hgrn2", {"lower_bound": 1.0}, "lower_bound must be at least 0 and below 1"),
        ("transnormer", {"depth": 2.0}, "depth must lie between 0 and 1"),
        ("transnormer", {"block": 0}, "block"),
        ("gsa", {"gate_logit_normalizer": 0.0}, "gate_logit_normalizer must be above 0"),
        ("forgetting_attention", {"n_heads": 3}, "n_heads"),
    ],
)
def test_values_out_of_range_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        create_mixer(name, D, **options)


@pytest.mark.parametrize("name", ["mamba3", "forgetting_attention"])
def test_long_sums_do_not_drift(name: str) -> None:
    """Angles and forget gates are sums over the whole sequence; chunks must see the same."""
    torch.manual_seed(0)
    mixer: Mixer = create_mixer(name, D)
    x = torch.randn(1, 3000, D)
    with torch.no_grad():
        whole, _ = mixer(x)
        first, state = mixer(x[:, :2900])
        last, _ = mixer(x[:, 2900:], state)
    close(torch.cat([first, last], 1), whole, "chunks", 1e-5)


def test_rg_lru_bounds_the_slope_of_its_root_alike_with_and_without_steep_places() -> None:
    gentle = torch.tensor([0.25e-6, 1e-3, 0.5, 1.0], dtype=torch.float64, requires_grad=True)
    steep = torch.tensor([0.0, 1e-9, 1e-3, 0.5], dtype=torch.float64, requires_grad=True)
    for x in (gentle, steep):
        y = _bounded_sqrt(x)
        torch.testing.assert_close(y, x.detach().sqrt())
        (slope,) = torch.autograd.grad(y.sum(), [x])
        torch.testing.assert_close(slope, (0.5 * x.detach().rsqrt()).clamp_max(1000.0))
