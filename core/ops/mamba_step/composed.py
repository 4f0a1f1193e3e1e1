"""One step of a Mamba layer as its maps, one step of the convolution and one of the state."""

from __future__ import annotations

from torch import Tensor

from longseq.core.ops.backends import Backend, convolution_backend
from longseq.core.ops.causal_conv1d import causal_conv1d_step
from longseq.core.ops.linear_maps import product_and_bias
from longseq.core.ops.mamba_step.arguments import Arguments
from longseq.core.ops.state_update import state_update


def run(call: Arguments, backend: Backend) -> tuple[Tensor, Tensor, Tensor]:
    """Takes one step."""
    x, conv, state, layer = call
    (width, _, _), states = layer.taps.shape, layer.A_log.shape[1]
    u, z = layer.in_proj(x).split(width, dim=-1)
    where = convolution_backend(backend)
    u, conv = causal_conv1d_step(u, layer.taps, layer.conv_bias, conv, "silu", where)
    projected = layer.x_proj(u)
    rank = projected.shape[-1] - 2 * states
    dt, B, C = projected.split([rank, states, states], dim=-1)
    delta, bias = product_and_bias(layer.dt_proj, dt)
    y, state = state_update(
        state,
        u,
        delta,
        layer.A_log,
        B,
        C,
        layer.D,
        z,
        bias,
        dt_softplus=True,
        log_decay=True,
        backend=backend,
    )
    return layer.out_proj(y), conv, state
