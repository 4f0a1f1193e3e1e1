"""What a Mamba layer does between its outer maps, as its operators one after the other."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from longseq.core.ops.backends import Backend, convolution_backend
from longseq.core.ops.causal_conv1d import one_sided_conv1d
from longseq.core.ops.linear_maps import ANY_HOOKS, plain_map, product_and_bias
from longseq.core.ops.mamba_inner.arguments import Arguments, Way
from longseq.core.ops.selective_scan import selective_scan


def run(call: Arguments, backend: Backend) -> Tensor:
    """Returns y; the gate is applied once, to the sum of all directions."""
    x, gate = call.halves()
    y, last = None, len(call.ways) - 1
    for number, way in enumerate(call.ways):
        z = gate if number == last else None
        y = _scan(x, way, y, z, call.scale, backend)
    assert y is not None
    return y


def _scan(
    x: Tensor,
    way: Way,
    add: Tensor | None,
    z: Tensor | None,
    scale: float,
    backend: Backend,
) -> Tensor:
    """Returns one direction's output (B, L, D) times ``scale``; ``add`` joins it before the gate
    z."""
    where = convolution_backend(backend)
    u = one_sided_conv1d(x, way.taps.squeeze(1), way.conv_bias, "silu", way.reverse, backend=where)
    mapped, states, log = way.x_proj(u), way.A_log.shape[1], way.A_log
    rank = mapped.shape[-1] - 2 * states
    dt, B, C = mapped.split([rank, states, states], dim=-1)
    if scale != 1:  # what is linear in C and the skip; both are smaller than the output
        C, way = C * scale, way._replace(D=way.D * scale)
    decay = -torch.exp(log if log.dtype == torch.float64 else log.float())
    # The bias is added inside the scan, in float32; a map that is no more than one, too.
    weight: Tensor | None = None
    bias: Tensor | None
    if plain_map(way.dt_proj, ANY_HOOKS):
        assert isinstance(way.dt_proj, nn.Linear)
        weight, bias = way.dt_proj.weight, way.dt_proj.bias
    else:
        dt, bias = product_and_bias(way.dt_proj, dt)
    y, _ = selective_scan(
        u,
        dt,
        decay,
        B,
        C,
        way.D,
        z,
        bias,
        delta_softplus=True,
        reverse=way.reverse,
        add=add,
        delta_weight=weight,
        backend=backend,
    )
    return y
