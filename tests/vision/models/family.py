"""Tiny models of the family, shared by its tests: our keywords and those of the published code."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

NORM = partial(nn.LayerNorm, eps=1e-6)
TINY: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "mambavision": (
        "mambavision_tiny",
        {
            "dim": 8,
            "stem_dim": 8,
            "depths": (1, 1, 2, 3),
            "n_heads": (1, 1, 2, 2),
            "windows": (4, 4, 4, 2),
            "layer_scale": 0.5,
        },
        {
            "dim": 8,
            "in_dim": 8,
            "depths": [1, 1, 2, 3],
            "num_heads": [1, 1, 2, 2],
            "window_size": [4, 4, 4, 2],
            "layer_scale": 0.5,
            "mlp_ratio": 4,
        },
    ),
    "mobilemamba": (
        "mobilemamba_t2",
        {"dims": (32, 40, 56), "depths": (1, 1, 2), "convolved": (0.2, 0.3, 0.3)},
        {
            "embed_dim": [32, 40, 56],
            "depth": [1, 1, 2],
            "local_ratio": [0.2, 0.3, 0.3],
            "ssm_ratio": 2,
        },
    ),
    "groupmamba": (
        "groupmamba_tiny",
        {"dims": (16, 24, 32, 36), "depths": (1, 2, 1, 1), "stem_dim": 8},
        {
            "embed_dims": [16, 24, 32, 36],
            "depths": [1, 2, 1, 1],
            "stem_hidden_dim": 8,
            "norm_layer": NORM,
        },
    ),
    "inceptionnext": (
        "inceptionnext_tiny",
        {"dims": (8, 16, 24, 32), "depths": (1, 2, 1, 1), "layer_scale": 0.5},
        {"dims": (8, 16, 24, 32), "depths": (1, 2, 1, 1), "ls_init_value": 0.5},
    ),
    "dinat": (
        "dinat_mini",
        {
            "dim": 8,
            "depths": (2, 2, 1, 1),
            "n_heads": (1, 2, 2, 4),
            "kernel": 3,
            "dilations": (3, 2, 1, 1),
            "layer_scale": 0.5,
        },
        {
            "embed_dim": 8,
            "depths": [2, 2, 1, 1],
            "num_heads": [1, 2, 2, 4],
            "kernel_size": 3,
            "dilations": [[1, 3], [1, 2], [1], [1]],
            "mlp_ratio": 3,
            "layer_scale": 0.5,
        },
    ),
    "favit": (
        "favit_b0",
        {"dims": (16, 32, 64, 64), "depths": (1, 2, 1, 1), "strides": (4, 2, 2, 1)},
        {
            "embed_dims": [16, 32, 64, 64],
            "depths": [1, 2, 1, 1],
            "sr_ratios": [4, 2, 2, 1],
            "num_heads": [1, 2, 4, 8],
            "mlp_ratios": [8, 6, 4, 4],
            "qkv_bias": True,
            "norm_layer": NORM,
        },
    ),
    "efficientvmamba": (
        "efficientvmamba_tiny",
        {"dims": (16, 24, 32, 40), "depths": (2, 1, 1, 2)},
        {
            "dims": [16, 24, 32, 40],
            "depths": [2, 1, 1, 2],
            "mlp_ratio": 0.0,
            "downsample_version": "v1",
        },
    ),
    "mhsvm": (
        "mhsvm_4h",
        {
            "dims": (16, 32, 64),
            "depths": (1, 1, 2),
            "d_state": 4,
            "threshold": 0.3,
        },
        {
            "dims": [16, 32, 64],
            "dims_decoder": [64, 32, 16],
            "depths": [1, 1, 2],
            "depths_decoder": [1, 1, 1],
            "d_state": 4,
            "para_dict": {"head_num": 4, "gfu_t": 0.3, "with_proj": True},
        },
    ),
    "vir": (
        "vir_tiny",
        {"img_size": 64, "d_model": 16, "n_heads": 2, "depth": 3},
        {"side": 64, "patch": 16, "width": 16, "heads": 2, "depth": 3},
    ),
}
