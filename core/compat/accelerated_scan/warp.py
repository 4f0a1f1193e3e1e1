"""The scan by one warp a channel in the original."""

from __future__ import annotations

from torch import Tensor

from longseq.core.compat._names import module_getattr
from longseq.core.compat.accelerated_scan._scan import recurrence

__all__ = ["scan"]
__getattr__ = module_getattr(__name__)


def scan(gates: Tensor, tokens: Tensor) -> Tensor:
    """Returns x (B, C, T) with x_t = gates_t x_{t-1} + tokens_t.

    Args:
        gates: (B, C, T).
        tokens: (B, C, T).

    Raises:
        ArgumentError: naming the argument that does not fit.
    """
    return recurrence("accelerated_scan.warp.scan", gates, tokens)
