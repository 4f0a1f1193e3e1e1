"""A convolution of every channel of a map by itself, channels last, with SiLU behind it."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from longseq.core.ops.backends import Backend, Dispatch
from longseq.core.ops.depthwise_conv2d import cpu, reference, torch_op
from longseq.core.ops.depthwise_conv2d.arguments import Arguments, check

__all__ = ["depthwise_conv2d"]


def _example(new: Callable[..., Tensor]) -> Arguments:
    return Arguments(new(1, 14, 14, 64), new(64, 1, 3, 3), new(64), True)


# torch's own convolution is the form for other devices and for compilers.
_DISPATCH = Dispatch("depthwise_conv2d", {"cpu": cpu.reason}, _example, "composed", announced=False)
_RUN = {"cpu": torch_op.run, "composed": reference.composed, "reference": reference.run}


def depthwise_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    silu: bool = False,
    backend: Backend = "auto",
) -> Tensor:
    """Returns y[i, j] = Σ_kl w[k, l] x[i + k - KH/2, j + l - KW/2] + b of every channel, with zeros
    around the map: ``torch.nn.functional.conv2d(..., padding="same", groups=channels)``.

    Args:
        x: maps (B, H, W, C), channels last; any strides of the first three.
        weight: (C, 1, KH, KW), both odd, as a ``Conv2d(groups=channels)`` has it.
        bias: (C,).
        silu: whether y is followed by SiLU, in the same pass.
        backend: see ``longseq.core.ops.backends``.

    Returns:
        (B, H, W, C) in x's dtype.

    Raises:
        ArgumentError: naming the argument that does not fit.
        BackendError: if the backend asked for cannot serve the call.
    """
    call = Arguments(x, weight, bias, silu)
    check(call)
    return _RUN[_DISPATCH.choose(backend, call)](call)
