"""The configuration of mamba-ssm's language model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from longseq.core.compat._names import module_getattr

__all__ = ["MambaConfig"]
__getattr__ = module_getattr(__name__)


@dataclass
class MambaConfig:
    """What config.json of a published model says.

    Attributes:
        d_model: width.
        d_intermediate: width of the MLP after every mixer; 0 for none.
        n_layer: layers.
        vocab_size: tokens, before padding.
        ssm_cfg: arguments of the mixer; its "layer" is "Mamba1" (also if absent) or "Mamba2".
        attn_layer_idx: layers whose mixer is attention.
        attn_cfg: arguments of the attention.
        rms_norm: RMS norms instead of layer norms.
        residual_in_fp32: whether the residual sum is float32.
        fused_add_norm: whether sum and norm are one function.
        pad_vocab_size_multiple: the vocabulary is padded to a multiple of this.
        tie_embeddings: whether embedding and head share their weight.
    """

    d_model: int = 2560
    d_intermediate: int = 0
    n_layer: int = 64
    vocab_size: int = 50277
    ssm_cfg: dict[str, Any] = field(default_factory=dict)
    attn_layer_idx: list[int] = field(default_factory=list)
    attn_cfg: dict[str, Any] = field(default_factory=dict)
    rms_norm: bool = True
    residual_in_fp32: bool = True
    fused_add_norm: bool = True
    pad_vocab_size_multiple: int = 8
    tie_embeddings: bool = True
