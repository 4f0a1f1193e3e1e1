"""RecurrentGemma: Griffin's recurrent blocks and sliding-window attention."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from longseq.core.checkpoints.families.base import GATED, Family, Published
from longseq.core.checkpoints.layouts import Layout

_LAYERS = "backbone.layers.{i}."
_LAYOUT = Layout(
    rules=(
        ("model.embed_tokens.", "embedding."),
        ("model.final_norm.", "backbone.norm_f."),
        ("model.layers.{i}.temporal_pre_norm.", _LAYERS + "norm1."),
        ("model.layers.{i}.temporal_block.", _LAYERS + "mixer."),
        ("model.layers.{i}.channel_pre_norm.", _LAYERS + "norm2."),
        ("model.layers.{i}.mlp_block.down_proj.", _LAYERS + "mlp.fc2."),
        ("model.layers.{i}.mlp_block.", _LAYERS + "mlp."),
    ),
    fused=GATED,
)


def _read(published: Published) -> dict[str, Any]:
    width, heads = published.get("hidden_size", 2560), published.get("num_attention_heads", 10)
    hidden = published.get("intermediate_size", 7680) // 2
    layers = published.get("num_hidden_layers", 26)
    published.need("hidden_activation", "gelu_pytorch_tanh")
    published.need("embeddings_scale_by_sqrt_dim", True)
    published.need("head_dim", width // heads)
    published.unused("w_init_variance_scale", "final_w_init_variance_scale", "_block_types")
    base, fraction = published.rope(10_000.0, 0.5)
    attention = {
        "window": published.get("attention_window_size", published.get("sliding_window", 2048)),
        "n_heads": heads,
        "n_kv_heads": published.get("num_key_value_heads", heads),
        "rope_base": base,
        "rope_fraction": fraction,
        "bias": published.get("attention_bias", False),
        "out_bias": True,
    }
    recurrent = {
        "d_inner": published.get("lru_width", width),
        "n_heads": heads,
        "d_conv": published.get("conv1d_width", 4),
    }
    kinds = {"recurrent": ["rg_lru", recurrent], "attention": ["local_attention", attention]}
    blocks = published.get("block_types", ["recurrent", "recurrent", "attention"])
    if set(blocks) - set(kinds):
        published.refuse("block_types", "names an unknown block", kinds)
    return {
        "vocab_size": published.get("vocab_size", 256000),
        "d_model": width,
        "n_layers": layers,
        "mixer": [kinds[blocks[i % len(blocks)]] for i in range(layers)],
        "norm": "rms_offset",
        "norm_eps": published.get("rms_norm_eps", 1e-6),
        "tie_embeddings": published.get("tie_word_embeddings", True),
        "mlp": "geglu_tanh",
        "mlp_ratio": hidden / width,
        "mlp_kwargs": {"d_hidden": hidden, "multiple_of": 1, "bias": True},
        # The published factor is rounded to bfloat16.
        "embedding_scale": float(torch.tensor(width**0.5, dtype=torch.bfloat16)),
        "logit_soft_cap": published.get("logits_soft_cap", 30.0),
    }


def _layout(_: Mapping[str, Any]) -> Layout:
    return _LAYOUT


RECURRENT_GEMMA = Family("recurrent_gemma", "RecurrentGemmaForCausalLM", _read, _layout)
