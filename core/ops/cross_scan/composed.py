"""The cross-scan as one selective scan after the other, each adding to the sum of those before."""

from __future__ import annotations

from torch import Tensor

from longseq.core.ops.backends import Backend
from longseq.core.ops.cross_scan.arguments import Arguments
from longseq.core.ops.selective_scan import selective_scan


def run(call: Arguments, backend: Backend = "auto") -> Tensor:
    """Returns y; ``backend`` is that of the scans."""
    states, rank = call.A.shape[2], call.weight.shape[2]
    y: Tensor | None = None
    for k, way in enumerate(call.ways):
        dt, B, C = call.low[:, :, k].split([rank, states, states], dim=-1)
        y, _ = selective_scan(
            call.u,
            dt,
            call.A[k],
            B,
            C,
            call.D[k],
            None,
            call.bias[k],
            delta_softplus=True,
            reverse=way.reverse,
            height=way.height,
            add=y,
            delta_weight=call.weight[k],
            backend=backend,
        )
    assert y is not None
    return y
