"""The stand-in for causal-conv1d: its functions on longseq's operators."""

from __future__ import annotations

from longseq.core.compat._names import module_getattr
from longseq.core.compat.causal_conv1d.causal_conv1d_interface import (
    causal_conv1d_fn,
    causal_conv1d_update,
)
from longseq.core.compat.causal_conv1d.causal_conv1d_varlen import causal_conv1d_varlen_states

__version__ = "1.7.0+longseq"  # the release whose signatures these are
__all__ = ["causal_conv1d_fn", "causal_conv1d_update", "causal_conv1d_varlen_states"]
__getattr__ = module_getattr(__name__)
