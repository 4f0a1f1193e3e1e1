"""HyenaDNA as its publishers keep it for transformers."""

from __future__ import annotations

import math
from typing import Any

from longseq.core.checkpoints.families.base import Family, Published
from longseq.core.checkpoints.layouts import LAYOUTS


def _read(published: Published) -> dict[str, Any]:
    width, hidden = published.get("d_model", 256), published.get("d_inner", None)
    hidden = 4 * width if hidden is None else hidden
    vocabulary = published.get("vocab_size", 12)
    multiple = published.get("pad_vocab_size_multiple", 8)
    published.need("use_bias", True)
    published.need("hyena_order", 2)
    published.need("layer_norm_epsilon", 1e-5)
    # The published class is code of the folder, which is not run; dropout is for training only.
    published.unused("auto_map", "embed_dropout", "hyena_dropout", "hyena_filter_dropout")
    mixer_kwargs = {
        "l_max": published.get("max_seq_len", 1024),
        "filter_order": published.get("filter_order", 64),
        "emb_dim": published.get("emb_dim", 3),
        "short_filter_order": published.get("short_filter_order", 3),
        "num_inner_mlps": published.get("num_inner_mlps", 2),
        "activation_freq": published.get("activation_freq", 1),
        "train_freq": published.get("train_freq", True),
    }
    return {
        "vocab_size": math.ceil(vocabulary / multiple) * multiple,
        "d_model": width,
        "n_layers": published.get("n_layer", 8),
        "mixer": "hyena",
        "mixer_kwargs": mixer_kwargs,
        "norm": "layer",
        "residual_in_fp32": True,
        "tie_embeddings": published.get("tie_word_embeddings", False),
        "mlp_ratio": hidden / width,
        "mlp_kwargs": {"d_hidden": hidden},
    }


HYENADNA = Family("hyenadna", "HyenaDNAForCausalLM", _read, lambda _: LAYOUTS["hyenadna"])
