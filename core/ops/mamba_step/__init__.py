r"""One position of a whole Mamba layer, for decoding.

    u, z = W_in x;   u' = silu(conv(u));   Δ, B, C = W_x u';
    y = W_out (scan(u', W_dt Δ, A, B, C, D) · silu(z))

At a batch of one, time goes into reading the weights and into the calls between them; on a CPU it
is one call that reads the weights once, in order, by all threads.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from longseq.core.ops.backends import Backend, Dispatch
from longseq.core.ops.mamba_step import composed, cpu
from longseq.core.ops.mamba_step.arguments import Arguments, MambaLayer

__all__ = ["MambaLayer", "mamba_step"]


def _example(new: Callable[..., Tensor]) -> Arguments:
    x, bias = new(1, 16), new(32)

    def linear(inputs: int, outputs: int) -> nn.Linear:
        made = nn.Linear(inputs, outputs, device=x.device, dtype=x.dtype)
        return made.requires_grad_(False)

    layer = MambaLayer(
        linear(16, 64),
        new(32, 1, 4),
        bias,
        linear(32, 9),
        linear(1, 32),
        new(32, 4),
        bias,
        linear(32, 16),
    )
    return Arguments(x, new(1, 3, 32), new(1, 32, 4), layer)


# The composed form is made of operators, each of which says by what it runs.
_DISPATCH = Dispatch("mamba_step", {"cpu": cpu.reason}, _example, "composed", announced=False)


def mamba_step(
    x: Tensor, conv: Tensor, state: Tensor, layer: MambaLayer, *, backend: Backend = "auto"
) -> tuple[Tensor, Tensor, Tensor]:
    """Takes one step.

    Args:
        x: (B, d_model).
        conv: the last d_conv - 1 inputs of the convolution, (B, d_conv - 1, D).
        state: h (B, D, N).
        layer: its maps and parameters.
        backend: see ``longseq.core.ops.backends``; of the layer's operators where the one call is
            not made.

    Returns:
        y (B, d_model), the new ``conv`` and the new ``state``.

    Raises:
        ArgumentError: naming the argument that does not fit.
        BackendError: if the backend asked for cannot serve the call.
    """
    call = Arguments(x, conv, state, layer)
    if backend in ("auto", "cpu") and _DISPATCH.choose("auto", call) == "cpu":
        return cpu.run(call)
    return composed.run(call, backend)
