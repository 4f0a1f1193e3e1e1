"""Mamba, Mamba-2 and FalconMamba as transformers keeps them, and mamba-ssm's own folders."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from longseq.core.checkpoints.families.base import Family, Published, plain_number
from longseq.core.checkpoints.layouts import Layout

_INITIAL = (
    "time_step_scale",
    "time_step_min",
    "time_step_max",
    "time_step_init_scheme",
    "time_step_floor",
)
# Left over from mamba-ssm in published files; transformers does not read them.
_LEFTOVER = ("d_inner", "d_model", "n_layer", "rms_norm", "ssm_cfg", "fused_add_norm")


def _stack(published: Published, tied: bool) -> dict[str, Any]:
    return {
        "vocab_size": published.get("vocab_size", 50280),
        "d_model": published.get("hidden_size", 768),
        "n_layers": published.get("num_hidden_layers", 32),
        "norm_eps": published.get("layer_norm_epsilon", 1e-5),
        "residual_in_fp32": published.get("residual_in_fp32", True),
        "tie_embeddings": published.get("tie_word_embeddings", tied),
    }


def _read_mamba(published: Published) -> dict[str, Any]:
    settings = _stack(published, True)
    width = settings["d_model"]
    inner = published.get("intermediate_size", int(published.get("expand", 2) * width))
    if inner % width:
        published.refuse("intermediate_size", f"is no multiple of hidden_size {width}")
    published.need("hidden_act", "silu")
    published.unused(*_INITIAL, *_LEFTOVER, "pad_vocab_size_multiple", "expand")
    rank = published.get("time_step_rank", "auto")
    mixer_kwargs = {
        "d_state": published.get("state_size", 16),
        "d_conv": published.get("conv_kernel", 4),
        "expand": inner // width,
        "dt_rank": math.ceil(width / 16) if rank == "auto" else rank,
        "bias": published.get("use_bias", False),
        "conv_bias": published.get("use_conv_bias", True),
    }
    return {**settings, "mixer": "mamba", "mixer_kwargs": mixer_kwargs}


def _write_mamba(settings: Mapping[str, Any]) -> dict[str, Any]:
    mixer = dict(settings["mixer_kwargs"] or {})
    width = settings["d_model"]
    rank = mixer.get("dt_rank", "auto")
    return {
        "vocab_size": settings["vocab_size"],
        "hidden_size": width,
        "num_hidden_layers": settings["n_layers"],
        "layer_norm_epsilon": settings["norm_eps"],
        "residual_in_fp32": settings["residual_in_fp32"],
        "tie_word_embeddings": settings["tie_embeddings"],
        "state_size": mixer.get("d_state", 16),
        "conv_kernel": mixer.get("d_conv", 4),
        "expand": mixer.get("expand", 2),
        "intermediate_size": mixer.get("expand", 2) * width,
        "time_step_rank": math.ceil(width / 16) if rank == "auto" else rank,
        "use_bias": mixer.get("bias", False),
        "use_conv_bias": mixer.get("conv_bias", True),
        "hidden_act": "silu",
    }


def _read_falcon(published: Published) -> dict[str, Any]:
    settings = _read_mamba(published)
    settings["mixer_kwargs"] |= {
        "bcdt_norm": "weightless",
        "bcdt_eps": published.get("mixer_rms_eps", 1e-6),
    }
    return settings


def _write_falcon(settings: Mapping[str, Any]) -> dict[str, Any]:
    mixer = dict(settings["mixer_kwargs"] or {})
    return {**_write_mamba(settings), "mixer_rms_eps": mixer.get("bcdt_eps", 1e-6)}


def _read_mamba2(published: Published) -> dict[str, Any]:
    defaults = {"vocab_size": 32768, "hidden_size": 4096, "num_hidden_layers": 64}
    for name, value in defaults.items():
        published.config = {name: value, **published.config}
    settings = _stack(published, False)
    width = settings["d_model"]
    inner = int(published.get("expand", 2) * width)
    heads, size = published.get("num_heads", 128), published.get("head_dim", 64)
    if heads * size != inner:
        published.refuse("num_heads", f"times head_dim is not expand · hidden_size = {inner}")
    published.need("hidden_act", "silu")
    published.unused(*_INITIAL, *_LEFTOVER, "time_step_rank", "intermediate_size")
    # transformers reads neither: the gate always comes first there.
    published.unused("norm_before_gate", "pad_vocab_size_multiple")
    limit = published.get("time_step_limit", (0.0, math.inf))
    mixer_kwargs = {
        "d_state": published.get("state_size", 128),
        "d_conv": published.get("conv_kernel", 4),
        "d_inner": inner,
        "headdim": size,
        "ngroups": published.get("n_groups", 8),
        "dt_limit": tuple(plain_number(bound) for bound in limit),
        "bias": published.get("use_bias", False),
        "conv_bias": published.get("use_conv_bias", True),
        "norm_eps": settings["norm_eps"],
    }
    published.unused("chunk_size")
    return {**settings, "mixer": "mamba2", "mixer_kwargs": mixer_kwargs}


def _write_mamba2(settings: Mapping[str, Any]) -> dict[str, Any]:
    mixer = dict(settings["mixer_kwargs"] or {})
    width = settings["d_model"]
    inner = mixer.get("d_inner") or mixer.get("expand", 2) * width
    size = mixer.get("headdim") or max(p for p in range(1, 65) if inner % p == 0)
    return {
        "vocab_size": settings["vocab_size"],
        "hidden_size": width,
        "num_hidden_layers": settings["n_layers"],
        "layer_norm_epsilon": settings["norm_eps"],
        "residual_in_fp32": settings["residual_in_fp32"],
        "tie_word_embeddings": settings["tie_embeddings"],
        "state_size": mixer.get("d_state", 128),
        "conv_kernel": mixer.get("d_conv", 4),
        "expand": inner / width if inner % width else inner // width,
        "num_heads": inner // size,
        "head_dim": size,
        "n_groups": mixer.get("ngroups", 1),
        "time_step_limit": list(mixer.get("dt_limit", (0.0, math.inf))),
        "use_bias": mixer.get("bias", False),
        "use_conv_bias": mixer.get("conv_bias", True),
        "hidden_act": "silu",
    }


def _read_mamba_ssm(published: Published) -> dict[str, Any]:
    mixer_kwargs = dict(published.get("ssm_cfg", {}))
    kind = mixer_kwargs.pop("layer", "Mamba1")
    if kind not in ("Mamba1", "Mamba2"):
        published.refuse("ssm_cfg", "names an unknown layer", ["Mamba1", "Mamba2"])
    published.need("rms_norm", True)
    published.need("attn_layer_idx", [], [])
    published.need("d_intermediate", 0)
    published.unused("attn_cfg", "fused_add_norm")
    vocabulary, multiple = (
        published.get("vocab_size", 50277),
        published.get("pad_vocab_size_multiple", 8),
    )
    return {
        "vocab_size": math.ceil(vocabulary / multiple) * multiple,
        "d_model": published.get("d_model", 2560),
        "n_layers": published.get("n_layer", 64),
        "norm_eps": 1e-5,
        "residual_in_fp32": published.get("residual_in_fp32", True),
        "tie_embeddings": published.get("tie_embeddings", True),
        "mixer": "mamba" if kind == "Mamba1" else "mamba2",
        "mixer_kwargs": mixer_kwargs,
    }


def _layout(embedding: str) -> Layout:
    rules = (
        (f"backbone.{embedding}.", "embedding."),
        ("backbone.layers.{i}.norm.", "backbone.layers.{i}.norm1."),
    )
    return Layout(rules=rules)


MAMBA = Family(
    "mamba", "MambaForCausalLM", _read_mamba, lambda _: _layout("embeddings"), _write_mamba
)
FALCON_MAMBA = Family(
    "falcon_mamba",
    "FalconMambaForCausalLM",
    _read_falcon,
    lambda _: _layout("embeddings"),
    _write_falcon,
)
MAMBA2 = Family(
    "mamba2", "Mamba2ForCausalLM", _read_mamba2, lambda _: _layout("embeddings"), _write_mamba2
)
MAMBA_SSM = Family("mamba_ssm", "MambaLMHeadModel", _read_mamba_ssm, lambda _: _layout("embedding"))
