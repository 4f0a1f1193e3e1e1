"""Hybrids of Mamba and attention: Jamba, Bamba and Falcon-H1."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from longseq.core.checkpoints.families.base import GATED, Family, Published, plain_number
from longseq.core.checkpoints.layouts import Layout

_LAYERS = "backbone.layers.{i}."
_RULES = (
    ("model.embed_tokens.", "embedding."),
    ("model.final_layernorm.", "backbone.norm_f."),
    ("model.layers.{i}.input_layernorm.", _LAYERS + "norm1."),
    ("model.layers.{i}.pre_ff_layernorm.", _LAYERS + "norm2."),
    ("model.layers.{i}.feed_forward.down_proj.", _LAYERS + "mlp.fc2."),
    ("model.layers.{i}.feed_forward.", _LAYERS + "mlp."),
)


def _stack(published: Published, vocabulary: int, eps: float) -> dict[str, Any]:
    width = published.get("hidden_size", 4096)
    hidden = published.get("intermediate_size", 14336)
    published.need("hidden_act", "silu")
    return {
        "vocab_size": published.get("vocab_size", vocabulary),
        "d_model": width,
        "n_layers": published.get("num_hidden_layers", 32),
        "norm_eps": published.get("rms_norm_eps", eps),
        "tie_embeddings": published.get("tie_word_embeddings", False),
        "mlp": "swiglu",
        "mlp_ratio": hidden / width,
        "mlp_kwargs": {"d_hidden": hidden, "multiple_of": 1},
    }


def _heads(published: Published) -> dict[str, Any]:
    heads = published.get("num_attention_heads", 32)
    # A null stands for as many as there are heads; a missing one for 8.
    groups = published.get("num_key_value_heads", 8)
    if published.config.get("num_key_value_heads", groups) is None:
        groups = heads
    settings = {"n_heads": heads, "n_kv_heads": groups}
    settings["d_head"] = published.get("head_dim", published.config["hidden_size"] // heads)
    return settings


def _fixed_rope(published: Published, fraction: float) -> float:
    """Returns the base of the rotary frequencies of a family whose turned part is fixed."""
    base, part = published.rope(10_000.0, fraction)
    if part != fraction:
        published.refuse("partial_rotary_factor", "is not what transformers computes", [fraction])
    return base


def _layout(settings: Mapping[str, Any]) -> Layout:
    names = {"mamba": "mamba", "mamba2": "mamba", "attention": "self_attn"}
    places = [
        (f"model.layers.{i}.{names[entry[0]]}.", f"backbone.layers.{i}.mixer.")
        for i, entry in enumerate(settings["mixer"])
    ]
    return Layout(rules=(*_RULES, *places), fused=GATED)


def _read_jamba(published: Published) -> dict[str, Any]:
    published.config = {"hidden_size": 4096, **published.config}
    settings = _stack(published, 65536, 1e-6)
    layers, width = settings["n_layers"], settings["d_model"]
    period, offset = (
        published.get("expert_layer_period", 2),
        published.get("expert_layer_offset", 1),
    )
    if published.get("num_experts", 16) > 1 and any(i % period == offset for i in range(layers)):
        published.refuse("num_experts", "gives layers a mixture of experts", [1])
    published.unused("num_experts_per_tok", "num_local_experts")
    published.need("mamba_inner_layernorms", True)
    rank = published.get("mamba_dt_rank", "auto")
    mamba = {
        "d_state": published.get("mamba_d_state", 16),
        "d_conv": published.get("mamba_d_conv", 4),
        "expand": published.get("mamba_expand", 2),
        "dt_rank": math.ceil(width / 16) if rank == "auto" else rank,
        "conv_bias": published.get("mamba_conv_bias", True),
        "bias": published.get("mamba_proj_bias", False),
        "bcdt_norm": "rms",
        "bcdt_eps": settings["norm_eps"],
    }
    attention = {**_heads(published), "rope_base": None}
    period, offset = published.get("attn_layer_period", 8), published.get("attn_layer_offset", 4)
    settings["mixer"] = [
        ["attention", attention] if i % period == offset else ["mamba", mamba]
        for i in range(layers)
    ]
    return settings


def _mamba2(published: Published, inner: int, eps: float) -> dict[str, Any]:
    heads, size = published.get("mamba_n_heads", 128), published.get("mamba_d_head", "auto")
    size = inner // heads if size == "auto" else size
    if heads * size != inner:
        published.refuse("mamba_n_heads", f"times the head's width {size} is not {inner}")
    limit = published.get("time_step_limit", (0.0, math.inf))
    published.unused("mamba_chunk_size", "time_step_min", "time_step_max", "time_step_floor")
    return {
        "d_state": published.get("mamba_d_state", 256),
        "d_conv": published.get("mamba_d_conv", 4),
        "d_inner": inner,
        "headdim": size,
        "ngroups": published.get("mamba_n_groups", 1),
        "dt_limit": tuple(plain_number(bound) for bound in limit),
        "conv_bias": published.get("mamba_conv_bias", True),
        "bias": published.get("mamba_proj_bias", False),
        "norm_eps": eps,
    }


def _read_bamba(published: Published) -> dict[str, Any]:
    published.config = {"hidden_size": 4096, **published.config}
    settings = _stack(published, 128000, 1e-5)
    bias = published.get("attention_bias", False)
    base = _fixed_rope(published, 0.5)
    attention = {**_heads(published), "rope_base": base, "bias": bias, "out_bias": bias}
    attention["rope_fraction"] = 0.5  # transformers has it fixed
    published.need("attn_rotary_emb", attention["d_head"] // 2)
    settings["mlp_kwargs"]["bias"] = published.get("mlp_bias", False)
    inner = published.get("mamba_expand", 2) * settings["d_model"]
    mamba = _mamba2(published, inner, settings["norm_eps"])
    chosen = published.get("attn_layer_indices", [])
    settings["mixer"] = [
        ["attention", attention] if i in chosen else ["mamba2", mamba]
        for i in range(settings["n_layers"])
    ]
    return settings


def _read_falcon_h1(published: Published) -> dict[str, Any]:
    published.config = {"hidden_size": 4096, **published.config}
    settings = _stack(published, 128000, 1e-5)
    width = settings["d_model"]
    bias = published.get("attention_bias", False)
    attention = {**_heads(published), "rope_base": _fixed_rope(published, 1.0)}
    factor = published.number("key_multiplier", 1.0)
    attention |= {"bias": bias, "out_bias": bias, "scale": factor / attention["d_head"] ** 0.5}
    # A null mamba_d_ssm means expand · hidden_size; a missing one 1024.
    inner = published.get("mamba_d_ssm", 1024 if "mamba_d_ssm" not in published.config else None)
    inner = published.get("mamba_expand", 2) * width if inner is None else inner
    mamba = _mamba2(published, inner, settings["norm_eps"])
    published.need("projectors_bias", False, mamba["bias"])
    mamba |= {
        "rmsnorm": published.get("mamba_rms_norm", False),
        "norm_before_gate": published.get("mamba_norm_before_gate", True),
        "multipliers": list(published.get("ssm_multipliers", [1.0] * 5)),
    }
    published.need("mamba_use_mlp", True)
    published.unused("mlp_expansion_factor", "mamba_expand")
    gate, down = published.get("mlp_multipliers", (1.0, 1.0))
    settings["mlp_kwargs"] |= {
        "bias": published.get("mlp_bias", False),
        "gate_scale": gate,
        "out_scale": down,
    }
    scales = {
        name: [
            published.number(f"ssm_{name.removesuffix('_scales')}_multiplier", 1.0),
            published.number(f"attention_{name.removesuffix('_scales')}_multiplier", 1.0),
        ]
        for name in ("in_scales", "out_scales")
    }
    return {
        **settings,
        "mixer": "parallel",
        "mixer_kwargs": {"mixers": [["mamba2", mamba], ["attention", attention]], **scales},
        "embedding_scale": published.number("embedding_multiplier", 1.0),
        "logit_scale": published.number("lm_head_multiplier", 1.0),
    }


_FALCON_H1 = Layout(
    rules=(
        *_RULES,
        ("model.layers.{i}.mamba.", _LAYERS + "mixer.mixers.0."),
        ("model.layers.{i}.self_attn.", _LAYERS + "mixer.mixers.1."),
    ),
    fused=GATED,
)
JAMBA = Family("jamba", "JambaForCausalLM", _read_jamba, _layout)
BAMBA = Family("bamba", "BambaForCausalLM", _read_bamba, _layout)
FALCON_H1 = Family("falcon_h1", "FalconH1ForCausalLM", _read_falcon_h1, lambda _: _FALCON_H1)
