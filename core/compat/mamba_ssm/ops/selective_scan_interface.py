"""The selective scan of mamba-ssm, the fused functions around it, and their parts one by one."""

from __future__ import annotations

from longseq.core.compat._names import module_getattr
from longseq.core.compat.mamba_ssm.ops._inner import (
    bimamba_inner_fn,
    mamba_inner_fn,
    mamba_inner_fn_no_out_proj,
)
from longseq.core.compat.mamba_ssm.ops._reference import (
    bimamba_inner_ref,
    mamba_inner_ref,
    selective_scan_ref,
)
from longseq.core.compat.mamba_ssm.ops._scan import selective_scan_fn

__all__ = [
    "bimamba_inner_fn",
    "bimamba_inner_ref",
    "mamba_inner_fn",
    "mamba_inner_fn_no_out_proj",
    "mamba_inner_ref",
    "selective_scan_fn",
    "selective_scan_ref",
]
__getattr__ = module_getattr(__name__)
