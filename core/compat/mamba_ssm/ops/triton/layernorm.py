"""The norms by the name that mamba-ssm 1 had for their module."""

from __future__ import annotations

from longseq.core.compat._names import module_getattr
from longseq.core.compat.mamba_ssm.ops.triton.layer_norm import (
    RMSNorm,
    layer_norm_fn,
    layer_norm_linear_fn,
    layer_norm_ref,
    rms_norm_fn,
    rms_norm_ref,
)

__all__ = [
    "RMSNorm",
    "layer_norm_fn",
    "layer_norm_linear_fn",
    "layer_norm_ref",
    "rms_norm_fn",
    "rms_norm_ref",
]
__getattr__ = module_getattr(__name__)
