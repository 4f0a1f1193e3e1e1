"""The stand-in for VMamba's selective_scan_cuda_core: the scan without a gate."""

from __future__ import annotations

from torch import Tensor

from longseq.core.compat import selective_scan_cuda
from longseq.core.compat._names import module_getattr

__all__ = ["bwd", "fwd"]
__getattr__ = module_getattr(__name__)


def fwd(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    nrows: int = 1,
) -> list[Tensor]:
    """Returns the output and the states; see ``selective_scan_cuda.fwd``.

    ``nrows``, how many channels a thread block took, is accepted and not needed.
    """
    del nrows
    return selective_scan_cuda.fwd(u, delta, A, B, C, D, None, delta_bias, delta_softplus)


def bwd(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    dout: Tensor,
    x: Tensor | None = None,
    delta_softplus: bool = False,
    nrows: int = 1,
) -> list[Tensor | None]:
    """Returns the gradients of the first seven arguments; see ``selective_scan_cuda.bwd``."""
    del nrows
    return selective_scan_cuda.bwd(
        u, delta, A, B, C, D, None, delta_bias, dout, x, delta_softplus=delta_softplus
    )
