"""The scan of complex gates; real tokens have no imaginary part."""

from __future__ import annotations

from torch import Tensor

from longseq.core.compat._names import module_getattr
from longseq.core.compat.accelerated_scan._scan import recurrence

__all__ = ["scan"]
__getattr__ = module_getattr(__name__)


def scan(forget: Tensor, inputs: Tensor) -> Tensor:
    """Returns x (B, C, T) with x_t = forget_t x_{t-1} + inputs_t.

    Args:
        forget: (B, C, T).
        inputs: (B, C, T).

    Raises:
        ArgumentError: naming the argument that does not fit.
    """
    return recurrence("accelerated_scan.complex.scan", forget, inputs)
