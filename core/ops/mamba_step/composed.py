"""One step of a Mamba layer as its maps, one step of the convolution and one of the state."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import linear

from longseq.core.ops.backends import Backend, convolution_backend
from longseq.core.ops.causal_conv1d import causal_conv1d_step
from longseq.core.ops.mamba_step.arguments import Arguments
from longseq.core.ops.state_update import state_update


def run(call: Arguments, backend: Backend) -> tuple[Tensor, Tensor, Tensor]:
    """Takes one step."""
    x, conv, state, layer = call
    (width, _, _), states = layer.taps.shape, layer.A_log.shape[1]
    u, z = layer.in_proj(x).split(width, dim=-1)
    where = convolution_backend(backend)
    u, conv = causal_conv1d_step(u, layer.taps, layer.conv_bias, conv, "silu", where)
    dt, B, C = layer.x_proj(u).split([layer.dt_proj.weight.shape[1], states, states], dim=-1)
    y, state = state_update(
        state,
        u,
        linear(dt, layer.dt_proj.weight),
        layer.A_log,
        B,
        C,
        layer.D,
        z,
        layer.dt_proj.bias,
        dt_softplus=True,
        log_decay=True,
        backend=backend,
    )
    return layer.out_proj(y), conv, state
