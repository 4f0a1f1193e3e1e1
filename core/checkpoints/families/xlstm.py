"""xLSTM-7B as transformers keeps it, with separate ("single") weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from longseq.core.checkpoints.families.base import GATED, Family, Published
from longseq.core.checkpoints.layouts import Layout

_LAYERS = "backbone.layers.{i}."
_LAYOUT = Layout(
    rules=(
        ("backbone.embeddings.", "embedding."),
        ("backbone.out_norm.", "backbone.norm_f."),
        ("backbone.blocks.{i}.norm_mlstm.", _LAYERS + "norm1."),
        ("backbone.blocks.{i}.mlstm_layer.", _LAYERS + "mixer."),
        ("backbone.blocks.{i}.norm_ffn.", _LAYERS + "norm2."),
        ("backbone.blocks.{i}.ffn.proj_up_gate.", _LAYERS + "mlp.gate_proj."),
        ("backbone.blocks.{i}.ffn.proj_up.", _LAYERS + "mlp.up_proj."),
        ("backbone.blocks.{i}.ffn.proj_down.", _LAYERS + "mlp.fc2."),
    ),
    fused=GATED,
)


def _read(published: Published) -> dict[str, Any]:
    width = published.get("embedding_dim", published.get("hidden_size", 4096))
    published.need("hidden_size", width)
    layers = published.get("num_blocks", published.get("num_hidden_layers", 32))
    published.need("num_hidden_layers", layers)
    published.need("use_bias", False)
    published.need("add_out_norm", True)
    published.need("weight_mode", "single")
    published.need("tie_word_embeddings", False)
    published.need("eps", 1e-6)
    # Switches of earlier code, which the published modules do not have.
    published.need("add_embedding_dropout", False)
    published.need("add_post_norm", False)
    published.need("add_qk_norm", False)
    published.need("add_post_blocks_norm", True)
    published.unused("add_forward_backend_padding", "forward_backend_name", "igate_bias_init_range")
    published.unused(  # kernels, and precisions that float32 does not see
        "norm_reduction_force_float32",
        "chunkwise_kernel",
        "sequence_kernel",
        "step_kernel",
        "mode",
        "chunk_size",
        "return_last_states",
        "autocast_kernel_dtype",
        "inference_state_dtype",
        "max_inference_chunksize",
        "mlstm_round_up_to_multiple_of",
        "force_bos_token_insert",
    )
    multiple = published.get("ffn_round_up_to_multiple_of", 64)
    hidden = published.get("ffn_proj_factor", 2.667) * width
    hidden = math.ceil(hidden / multiple) * multiple
    eps = published.get("norm_eps", 1e-6)
    heads, factor = published.get("num_heads", 8), published.get("v_dim_factor", 1.0)
    published.need("head_dim", int(factor * width) // heads)
    published.need("cell_norm_eps", eps)
    mixer_kwargs = {
        "n_heads": heads,
        "qk_dim_factor": published.get("qk_dim_factor", 0.5),
        "v_dim_factor": factor,
        "gate_soft_cap": published.get("gate_soft_cap", 15.0),
        "norm_eps": eps,
    }
    return {
        "vocab_size": published.get("vocab_size", 50304),
        "d_model": width,
        "n_layers": layers,
        "mixer": "mlstm_large",
        "mixer_kwargs": mixer_kwargs,
        "norm_eps": eps,
        "tie_embeddings": False,
        "mlp": "swiglu",
        "mlp_ratio": hidden / width,
        "mlp_kwargs": {"d_hidden": hidden, "multiple_of": 1},
        "logit_soft_cap": published.get("output_logit_soft_cap", 30.0),
    }


def _layout(_: Mapping[str, Any]) -> Layout:
    return _LAYOUT


XLSTM = Family("xlstm", "xLSTMForCausalLM", _read, _layout)
