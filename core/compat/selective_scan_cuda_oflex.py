"""The stand-in for VMamba's selective_scan_cuda_oflex: no gate, and output in float32 or not."""

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
    out_float: bool = True,
) -> list[Tensor]:
    """Returns the output, in float32 if ``out_float``, and the states; see
    ``selective_scan_cuda.fwd``.

    ``nrows``, how many channels a thread block took, is accepted and not needed.
    """
    del nrows
    wide = u.float() if out_float and u.dtype.itemsize < 4 else u
    return selective_scan_cuda.fwd(wide, delta, A, B, C, D, None, delta_bias, delta_softplus)


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
    """Returns the gradients of the first seven arguments, in their dtypes; see
    ``selective_scan_cuda.bwd``."""
    del nrows
    wide = u.float() if dout.dtype.itemsize >= 4 else u
    du, *rest = selective_scan_cuda.bwd(
        wide, delta, A, B, C, D, None, delta_bias, dout, x, delta_softplus=delta_softplus
    )
    return [None if du is None else du.to(u.dtype), *rest]
