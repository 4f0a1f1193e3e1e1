"""The stand-in for causal-conv1d's compiled extension, which forks of its interface call."""

from __future__ import annotations

from longseq.core.compat._names import module_getattr
from longseq.core.compat.causal_conv1d.cpp_functions import (
    causal_conv1d_bwd_function as causal_conv1d_bwd,
)
from longseq.core.compat.causal_conv1d.cpp_functions import (
    causal_conv1d_fwd_function as causal_conv1d_fwd,
)
from longseq.core.compat.causal_conv1d.cpp_functions import (
    causal_conv1d_update_function as causal_conv1d_update,
)

__all__ = ["causal_conv1d_bwd", "causal_conv1d_fwd", "causal_conv1d_update"]
__getattr__ = module_getattr(__name__)
