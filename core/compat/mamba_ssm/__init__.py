"""The stand-in for mamba-ssm: its functions, layers and language model on longseq's operators.

The modules have the published names: ``longseq.core.compat.mamba_ssm.ops.selective_scan_interface``
is what ``mamba_ssm.ops.selective_scan_interface`` finds after ``longseq.core.compat.install()``.
Layouts, defaults, return values, names of parameters and what is updated in place are the published
ones; any stride, length and width will do, the tensors may be on a CPU, and the gradients of
initial and final states exist.
"""

from __future__ import annotations

from longseq.core.compat._names import module_getattr
from longseq.core.compat.causal_conv1d import causal_conv1d_fn, causal_conv1d_update
from longseq.core.compat.mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel
from longseq.core.compat.mamba_ssm.modules.mamba2 import Mamba2
from longseq.core.compat.mamba_ssm.modules.mamba2_simple import Mamba2Simple
from longseq.core.compat.mamba_ssm.modules.mamba_simple import Mamba
from longseq.core.compat.mamba_ssm.ops.selective_scan_interface import (
    mamba_inner_fn,
    selective_scan_fn,
)
from longseq.core.compat.mamba_ssm.ops.triton.selective_state_update import selective_state_update
from longseq.core.compat.mamba_ssm.ops.triton.ssd_combined import (
    mamba_chunk_scan_combined,
    mamba_split_conv1d_scan_combined,
)

__version__ = "2.3.2+longseq"  # the release whose signatures these are
__all__ = [
    "Mamba",
    "Mamba2",
    "Mamba2Simple",
    "MambaLMHeadModel",
    "causal_conv1d_fn",
    "causal_conv1d_update",
    "mamba_chunk_scan_combined",
    "mamba_inner_fn",
    "mamba_split_conv1d_scan_combined",
    "selective_scan_fn",
    "selective_state_update",
]
__getattr__ = module_getattr(__name__)
