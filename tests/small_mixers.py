"""Hyper-parameters that make every mixer small, for tests that go through all of them."""

from __future__ import annotations

# Hyper-parameters that make a mixer small, or that exercise a path that its defaults do not.
SMALL: dict[str, list[dict[str, object]]] = {
    "attention": [
        {"n_heads": 4, "n_kv_heads": 2},
        {"n_heads": 2, "rope_base": None, "bidirectional": True},
    ],
    "local_attention": [{"window": 4, "n_heads": 4, "n_kv_heads": 1}, {"window": 16, "n_heads": 2}],
    "bidirectional": [
        {"mixer": "slstm", "combine": "concat"},
        {"mixer": "local_attention", "mixer_kwargs": {"window": 4}, "tied": ("q_proj", "o_proj")},
    ],
    "strided": [
        {"mixer_kwargs": {"d_state": 4}},
        {"mixer": "gla", "stride": 4, "mixer_kwargs": {"n_heads": 2, "chunk_size": 8}},
    ],
    "slstm": [{}, {"n_heads": 2, "d_conv": 0}],
    "h3": [{"d_state": 8}, {"d_state": 4, "head_dim": 4, "n_ssm": 2, "disc": "zoh"}],
    "hyena": [
        {"l_max": 64, "filter_order": 8},
        {"l_max": 64, "filter_order": 8, "order": 3, "short_filter_order": 4},
    ],
    "long_conv": [
        {"l_max": 64, "lam": 0.01, "channels": 2},
        {"l_max": 3, "lam": 0.01, "smooth_window": 3},
    ],
    "orchid": [
        {"l_max": 64, "filter_order": 8},
        {"l_max": 64, "filter_order": 8, "kind": "corrTime", "transform": "fft"},
    ],
    "sgconv": [
        {"l_max": 64, "kernel_dim": 8},
        {"kernel_dim": 2, "n_scales": 2, "combine": "sum", "channels": 2},
    ],
    "mamba2": [
        {"d_state": 8, "headdim": 8, "chunk_size": 8},
        {
            "d_state": 3,
            "headdim": 4,
            "d_ssm": 24,
            "ngroups": 2,
            "norm_before_gate": True,
            "D_has_hdim": True,
        },
    ],
    "mlstm": [
        {"round_up_to": 16, "chunk_size": 8},
        {"n_heads": 2, "proj_factor": 1.0, "round_up_to": 1, "bias": True},
        {"n_heads": 2, "round_up_to": 16, "chunk_size": 8, "rotary_base": 100.0},
    ],
    "retention": [{"n_heads": 2, "chunk_size": 8}],
    "gla": [{"n_heads": 2, "chunk_size": 8, "gate_logit_normalizer": 1.0}],
    "delta_net": [
        {"n_heads": 2, "chunk_size": 8},
        {"use_gate": True, "conv_bias": True, "expand_v": 0.5},
    ],
    "gated_delta_net": [{"n_heads": 2, "chunk_size": 8}, {"head_dim": 4, "allow_neg_eigval": True}],
    "gated_delta_product": [
        {"n_heads": 2, "head_dim": 4, "chunk_size": 8},
        {"n_heads": 2, "num_householder": 3, "use_forget_gate": False, "expand_v": 1.0},
    ],
    "kda": [{"n_heads": 2, "chunk_size": 8}, {"head_dim": 4, "expand_v": 2.0, "conv_size": 1}],
    "mamba3": [
        {"d_state": 8, "headdim": 8, "chunk_size": 8},
        {"d_state": 6, "headdim": 4, "ngroups": 2, "mimo_rank": 3, "rope_fraction": 1.0},
        {"d_state": 4, "headdim": 16, "mimo_rank": 2, "out_norm": True},
    ],
    "mega": [
        {"d_attention": 8, "d_ema": 4, "window": 4},
        {"d_attention": 4, "d_value": 8, "d_ema": 2, "window": 1},
    ],
    "pgn": [{"window": 4}, {"window": 1}],
    "tcnca": [
        {"d_attention": 8, "kernel": 3, "base": 2, "layers": 2, "window": 4},
        {"d_attention": 4, "d_value": 8, "kernel": 1, "base": 3, "layers": 1, "window": 3},
    ],
    "hgrn2": [{"n_heads": 2, "chunk_size": 8}, {"n_heads": 4, "lower_bound": 0.5}],
    "transnormer": [
        {"n_heads": 2, "chunk_size": 8},
        {"n_heads": 4, "decay": False, "gate": False},
        {"n_heads": 2, "block": 4},
    ],
    "gsa": [{"n_heads": 2, "chunk_size": 8}, {"n_heads": 4, "n_slots": 3}],
    "titans": [{"n_heads": 2}, {"n_heads": 2, "layers": 2, "d_hidden": 5, "chunk": 5}],
    "atlas": [
        {"n_heads": 2, "window": 3, "chunk": 6},
        {"n_heads": 2, "layers": 2, "orthogonal": 2, "degree": 1, "chunk": 5},
    ],
    "seqboat": [
        {"d_attention": 8, "d_ema": 4, "window": 4},
        {"d_attention": 4, "d_value": 8, "d_ema": 2, "window": 1},
    ],
    "longvq": [
        {"codes": 6, "d_attention": 8, "d_ema": 4, "window": 6},
        {"codes": 3, "d_attention": 4, "d_value": 8, "d_ema": 2, "window": 8},
    ],
    "memmamba": [
        {"notes": 4, "d_note": 6, "d_state": 4},
        {"notes": 1, "d_note": 4, "d_state": 3, "mamba": {"dt_rank": 2}},
    ],
    "log_linear_mamba2": [
        {"d_state": 4, "headdim": 8, "chunk_size": 8},
        {"d_state": 3, "headdim": 4, "ngroups": 2, "levels": 3},
    ],
    "forgetting_attention": [
        {"n_heads": 4, "n_kv_heads": 2},
        {"n_heads": 2, "rope_base": 100.0, "bias": True},
    ],
    "rwkv7": [{"head_dim": 4, "chunk_size": 8}, {"head_dim": 16, "decay_low_rank_dim": 3}],
    "s4": [
        {"d_state": 8, "chunk_size": 8},
        {"d_state": 6, "init": "legt", "n_ssm": 4, "output": "linear"},
    ],
    "s4d": [
        {"d_state": 8, "chunk_size": 8},
        {"d_state": 6, "init": "ptd", "disc": "bilinear", "n_ssm": 4},
    ],
    "dss": [{"d_state": 4, "chunk_size": 8}, {"d_state": 3, "version": "softmax", "l_max": 50}],
    "s5": [
        {"d_state": 8, "blocks": 2, "chunk_size": 4},
        {"d_state": 6, "init": "ptd", "activation": "full_glu"},
    ],
    "companion": [
        {"d_state": 4, "chunk_size": 8},
        {"d_state": 5, "n_kernels": 4, "closed_loop": True},
    ],
    "mamba": [
        {"d_state": 4},
        {"d_state": 3, "d_conv": 3, "expand": 1},
        {"d_state": 4, "bcdt_norm": "rms"},
    ],
    "rg_lru": [{}, {"d_inner": 12, "n_heads": 3, "d_conv": 2}],
    "mlstm_large": [
        {"n_heads": 2, "chunk_size": 8},
        {"n_heads": 4, "qk_dim_factor": 1.0, "gate_soft_cap": 2.0, "bias": True},
    ],
    "parallel": [
        {
            "mixers": [
                ["mamba2", {"d_inner": 24, "headdim": 4, "multipliers": [1.0, 0.5, 2.0, 0.7, 1.1]}],
                ["attention", {"n_heads": 4, "rope_fraction": 0.5, "scale": 0.3}],
            ],
            "in_scales": [1.0, 0.5],
            "out_scales": [0.3, 2.0],
        },
    ],
}
