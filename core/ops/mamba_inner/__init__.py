r"""What a Mamba layer does between its outer maps, in one or several directions under one gate.

    x, z = xz;   u = silu(conv(x));   Δ, B, C = W_x u;
    y = scale · silu(z) · Σ over directions of scan(u, W_dt Δ, A, B, C, D)

The whole of it is one call of the CPU kernels, and its gradients another, where nobody has to see
what is inside (a module's hooks, a compiler, autocast): of a short sequence, calls and not
arithmetic take the time, and between calls everything goes to memory and back. Elsewhere it is its
operators, one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from longseq.core.errors import ArgumentError
from longseq.core.ops.backends import Backend, Dispatch
from longseq.core.ops.mamba_inner import composed, cpu
from longseq.core.ops.mamba_inner.arguments import NAME, Arguments, Way

__all__ = ["Way", "mamba_inner"]


def _example(new: Callable[..., Tensor]) -> Arguments:
    xz = new(1, 64, 64)

    def linear(inputs: int, outputs: int) -> nn.Linear:
        made = nn.Linear(inputs, outputs, device=xz.device, dtype=xz.dtype)
        return made.requires_grad_(False)

    way = Way(new(32, 1, 4), new(32), linear(32, 10), linear(2, 32), new(32, 4), new(32))
    return Arguments(xz, (way._replace(x_proj=linear(32, 10)),), 1.0)


# The composed form is made of operators, each of which says by what it runs.
_DISPATCH = Dispatch(NAME, {"cpu": cpu.reason}, _example, "composed", announced=False)


def mamba_inner(
    xz: Tensor, ways: Sequence[Way], *, scale: float = 1.0, backend: Backend = "auto"
) -> Tensor:
    """Runs convolutions, projections and scans, and gates their sum.

    Args:
        xz: input and, behind its channels, the gate (B, L, 2 D): what a layer's first map gives.
        ways: the directions, at least one.
        scale: a factor of the result.
        backend: see ``longseq.core.ops.backends``; of the operators where the one call is not made.

    Returns:
        y (B, L, D), in the input's dtype.

    Raises:
        ArgumentError: naming the argument that does not fit.
        BackendError: if the backend asked for cannot serve the call.
    """
    if not ways:
        raise ArgumentError(f"{NAME}: ways must be at least one")
    width = len(ways[0].A_log)
    if xz.dim() != 3 or xz.shape[1] == 0 or xz.shape[2] != 2 * width:
        raise ArgumentError(
            f"{NAME}: xz must be (batch, length ≥ 1, {2 * width}: input and gate of {width} "
            f"channels), got {tuple(xz.shape)}"
        )
    call = Arguments(xz, tuple(ways), scale)
    if backend in ("auto", "cpu") and _DISPATCH.choose("auto", call) == "cpu":
        return cpu.run(call)
    return composed.run(call, backend)
