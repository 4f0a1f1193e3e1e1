"""Mixers with a bounded memory of another kind than one state that decays: their equations written
out position by position in float64, and what they promise of cost and size."""

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
from torch.nn.functional import conv1d, pad, rms_norm, silu, softplus

from longseq.core.errors import ConfigError
from longseq.core.mixers import create_mixer
from parity import close, differences, disturb, fill, normal, waves, with_gradients

CHECKOUT = os.environ.get("LONGSEQ_UPSTREAM_FLA")
D, LENGTH = 8, 23


def moving_averages(m: Any, x: Tensor) -> list[Tensor]:
    p, a = m.ema.delta.sigmoid(), m.ema.alpha.sigmoid()
    h, averages = x.new_zeros(len(x), *p.shape), []
    for x_t in x.unbind(1):
        h = p * m.ema.beta * x_t[..., None] + (1 - p * a) * h
        average = (h * m.ema.gamma).sum(-1) / math.sqrt(p.shape[1])
        averages.append(silu(average + m.ema.omega * x_t))
    return averages


def seqboat(m: Any, x: Tensor) -> Tensor:
    averages, rows = moving_averages(m, x), []
    for row in range(len(x)):
        keys: list[Tensor] = []
        values: list[Tensor] = []
        outputs = []
        for t in range(x.shape[1]):
            average = averages[t][row]
            y = m.hx_proj(average) + x[row, t]
            p = m.gate_proj(average).sigmoid()
            if p > 0.5:
                z, gate, value = silu(m.mx_proj(average)).split(
                    [m.d_attention, m.d_value, m.d_value]
                )
                query, key = (z * kappa + mu for kappa, mu in zip(m.kappa, m.mu))
                keys, values = [*keys, key][-m.window :], [*values, value][-m.window :]
                scores = torch.stack(keys) @ query / math.sqrt(m.d_attention)
                weights = torch.softmax(scores + m.relative[: len(keys)].flip(0), 0)
                y = y + p * m.h_proj(gate * (weights @ torch.stack(values)))
            outputs.append(silu(y))
        rows.append(torch.stack(outputs))
    return torch.stack(rows)


def longvq(m: Any, x: Tensor) -> Tensor:
    averages, rows = moving_averages(m, x), []
    for row in range(len(x)):
        keys: list[Tensor] = []
        values: list[Tensor] = []
        outputs = []
        for t in range(x.shape[1]):
            update, z, gate, own = m.mx_proj(averages[t][row]).split(
                [m.d_model, m.d_attention, m.d_value, m.d_model]
            )
            query, key = (silu(z) * kappa + mu for kappa, mu in zip(m.kappa, m.mu))
            keys = [*keys, rms_norm(key, key.shape, None, 1e-6)]
            values = [*values, silu(m.v_proj(x[row, t]))]
            begins, scores = t - t % m.window, []
            for s in range(t + 1):
                code = (m.codebook - keys[s]).square().sum(-1).argmin()
                key = keys[s] if s >= begins else m.codebook[code]
                bias = m.relative[t - s] if s >= begins else 0.0
                scores.append(query @ key / math.sqrt(m.d_attention) + bias)
            read = torch.softmax(torch.stack(scores), 0) @ torch.stack(values)
            update = update.sigmoid()
            h = silu(own + m.h_proj(silu(gate) * read))
            outputs.append(update * h + (1 - update) * x[row, t])
        rows.append(torch.stack(outputs))
    return torch.stack(rows)


def memmamba(m: Any, x: Tensor) -> Tensor:
    mamba: Any = create_mixer("mamba", D, d_state=m.d_state).double()
    mamba.load_state_dict({k: v for k, v in m.state_dict().items() if k in mamba.state_dict()})
    for name, _ in list(mamba.named_parameters()):  # the same parameters, for their gradients
        owner, _, leaf = name.rpartition(".")
        mamba.get_submodule(owner)._parameters[leaf] = m.get_parameter(name)
    z, rows = mamba(x)[0], []
    for row in range(len(x)):
        pool: list[Tensor] = []
        outputs = []
        for t in range(x.shape[1]):
            importance = m.importance_proj(x[row, t]).sigmoid()
            if importance > 0.5:
                pool = [*pool, importance * m.note_proj(x[row, t])][-m.notes :]
            notes = torch.stack([x.new_zeros(m.d_note), *pool])
            k, v = m.kv_proj(notes).chunk(2, -1)
            weights = torch.softmax(k @ m.q_proj(z[row, t]) / math.sqrt(m.d_note), 0)
            gate = m.recall_proj(z[row, t]).sigmoid()
            outputs.append(z[row, t] + gate * m.o_proj(weights @ v))
        rows.append(torch.stack(outputs))
    return torch.stack(rows)


def log_linear_mamba2(m: Any, x: Tensor) -> Tensor:
    heads, n, groups = m.nheads, m.d_state, m.ngroups
    z, mixed, dt, scales = m.in_proj(x).split([m.d_inner, m.conv_dim, heads, heads * m.levels], -1)
    mixed = pad(mixed.mT, (m.d_conv - 1, 0))
    mixed = silu(conv1d(mixed, m.conv1d.weight, m.conv1d.bias, groups=m.conv_dim).mT)
    u, k, q = mixed.split([m.d_inner, groups * n, groups * n], -1)
    u = u.unflatten(-1, (heads, -1))
    k, q = (t.unflatten(-1, (groups, n)).repeat_interleave(heads // groups, 2) for t in (k, q))
    dt = softplus(dt + m.dt_bias)
    scales = softplus(m.L * scales.unflatten(-1, (heads, -1)))
    decays, outputs = -m.A_log.exp() * dt, []
    for t in range(x.shape[1]):
        y = m.D[:, None] * u[:, t]
        for s in range(t + 1):
            level = min((t ^ s).bit_length(), m.levels - 1)
            weight = scales[:, t, :, level] * decays[:, s + 1 : t + 1].sum(1).exp()
            weight = weight * (q[:, t] * k[:, s]).sum(-1) * dt[:, s]
            y = y + weight[..., None] * u[:, s]
        y = y.flatten(1) * silu(z[:, t])
        y = rms_norm(y.unflatten(-1, (groups, -1)), (m.d_inner // groups,), None, 1e-5).flatten(1)
        outputs.append(m.out_proj(y * m.norm.weight))
    return torch.stack(outputs, 1)


CASES: list[tuple[Any, dict[str, Any]]] = [
    (seqboat, {"d_attention": 4, "d_value": 6, "d_ema": 2, "window": 3}),
    (seqboat, {"d_attention": 4, "d_ema": 2, "window": 64}),
    (longvq, {"codes": 5, "d_attention": 4, "d_value": 6, "d_ema": 2, "window": 5}),
    (longvq, {"codes": 3, "d_attention": 4, "d_ema": 2, "window": 1}),
    (memmamba, {"notes": 3, "d_note": 4, "d_state": 2}),
    (log_linear_mamba2, {"d_state": 3, "headdim": 4, "chunk_size": 8}),
    (log_linear_mamba2, {"d_state": 3, "headdim": 4, "ngroups": 2, "levels": 3, "chunk_size": 4}),
]


@pytest.mark.parametrize(
    ("equations", "options"), CASES, ids=[f"{f.__name__}-{n}" for n, (f, _) in enumerate(CASES)]
)
def test_a_mixer_is_its_equations(equations: Any, options: dict[str, Any]) -> None:
    mixer: Any = create_mixer(equations.__name__, D, **options).double()
    fill(mixer)
    x, parameters = waves(2, LENGTH, D), dict(mixer.named_parameters())
    if equations is seqboat:  # so that some positions are active and some are not
        with torch.no_grad():
            logits = mixer.gate_proj(mixer.ema(x, None, None)[0])
            mixer.gate_proj.bias.sub_(logits.mean())
        assert 0.3 < mixer.activated(x).double().mean() < 0.7
    expected = with_gradients(partial(equations, mixer), parameters, x)
    found = differences(with_gradients(mixer, parameters, x), expected)
    assert max(found.values()) < 1e-10, found


@pytest.mark.skipif(
    CHECKOUT is None,
    reason="LONGSEQ_UPSTREAM_FLA names no checkout of fla-org/flash-linear-attention",
)
def test_log_linear_attention_has_the_published_levels() -> None:
    if CHECKOUT not in sys.path:
        sys.path.insert(0, str(CHECKOUT))
    naive = importlib.import_module("fla.ops.log_linear_attn.naive").naive_log_linear_attn
    ours = importlib.import_module("longseq.core.mixers.log_linear_mamba2")._log_linear
    length, levels = 32, 6
    q, k, v = normal(2, length, 2, 3), normal(2, length, 2, 3, seed=1), normal(2, length, 4, 5)
    g, scales = -normal(2, length, 4, seed=2).exp(), normal(2, length, 4, levels, seed=3).exp()
    start, places = v.new_zeros(2, levels - 1, 4, 3, 5), torch.arange(length).expand(2, -1)
    y, _ = ours(q, k, v, g, scales, start, places, 8)
    close(y, naive(q, k, v, g, scales), "output", 1e-10)


def test_seqboat_runs_its_attention_where_it_is_asked() -> None:
    torch.manual_seed(1)
    mixer: Any = create_mixer("seqboat", 16, d_attention=8, window=8)
    disturb(mixer)
    x = normal(2, 100, 16).float()
    active, seen = mixer.activated(x), []
    assert 0.2 < active.float().mean() < 0.8
    mixer.mx_proj.register_forward_hook(lambda _m, args, _y: seen.append(args[0].shape[1]))
    mixer(x)
    assert seen == active.sum(1).tolist()


def test_longvq_carries_the_same_whatever_the_length() -> None:
    mixer = create_mixer("longvq", 16, codes=4, d_attention=8, window=4)
    sizes = []
    for length in (1, 30, 300):
        _, state = mixer(torch.randn(1, length, 16))
        sizes.append({name: tuple(value.shape) for name, value in state.items()})
    assert sizes[0] == sizes[1] == sizes[2]
    assert state["counts"].sum() == 300


def test_with_one_level_alike_log_linear_mamba2_is_mamba2() -> None:
    ours: Any = create_mixer("log_linear_mamba2", 16, d_state=4, headdim=8).double()
    theirs: Any = create_mixer("mamba2", 16, d_state=4, headdim=8).double()
    weights = {k: v for k, v in ours.state_dict().items() if k in theirs.state_dict()}
    weights["in_proj.weight"] = weights["in_proj.weight"][: -ours.nheads * ours.levels]
    theirs.load_state_dict(weights)
    with torch.no_grad():
        ours.L.zero_()  # λ = log 2
    # Half of which D's part is missing: the norm behind takes a common factor out.
    with torch.no_grad():
        ours.D.mul_(math.log(2))
        ours.norm.eps = theirs.norm.eps = 1e-30
    x = normal(2, 70, 16)
    close(ours(x)[0], theirs(x)[0], "output", 1e-10)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("seqboat", {"window": 0}, "window"),
        ("longvq", {"codes": 0}, "codes"),
        ("memmamba", {"notes": 0}, "notes"),
        ("memmamba", {"mamba": {"dt_min": 2.0}}, "dt_min"),
        ("log_linear_mamba2", {"levels": 1}, "levels must be at least 2"),
        ("log_linear_mamba2", {"headdim": 7}, "headdim"),
        ("log_linear_mamba2", {"mamba2": {"d_ssm": 8}, "headdim": 4}, "has no MLP part"),
    ],
)
def test_values_out_of_range_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        create_mixer(name, D, **options)
