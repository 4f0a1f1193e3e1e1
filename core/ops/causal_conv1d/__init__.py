r"""Causal depthwise convolution over time, as in H3 and Mamba: y_t = act(Σ_k w_k x_{t-W+1+k} +
bias)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from longseq.core.errors import ArgumentError
from longseq.core.ops.backends import Backend, Dispatch
from longseq.core.ops.causal_conv1d import cpu, cuda, torch_op
from longseq.core.ops.causal_conv1d.arguments import MAX_WIDTH, NAME, Arguments, checked, silu
from longseq.core.ops.causal_conv1d.reference import causal_conv1d_reference
from longseq.core.ops.cpu_calls import direct_reason

__all__ = [
    "MAX_WIDTH",
    "causal_conv1d",
    "causal_conv1d_reference",
    "causal_conv1d_shift",
    "causal_conv1d_step",
    "one_sided_conv1d",
]


def _example(new: Callable[..., Tensor]) -> Arguments:
    return Arguments(new(1, 64, 32), new(32, 4), None, None, None, True)


_DISPATCH = Dispatch(NAME, {"cpu": cpu.reason, "cuda": cuda.reason}, _example)


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    initial_state: Tensor | None = None,
    resets: Tensor | None = None,
    activation: Literal["silu"] | None = None,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:
    """Convolves every channel with its own short kernel, seeing only the past.

    Args:
        x: input (B, L, D).
        weight: kernels (D, W), the newest tap last.
        bias: (D,).
        initial_state: the W-1 inputs before x (B, W-1, D); zeros if None.
        resets: bool or integer (B, L); a position sees nothing before the last true position at or
            before it.
        activation: "silu" or None.
        backend: see ``longseq.core.ops.backends``.

    Returns:
        The output (B, L, D) in x's dtype, and the last W-1 inputs (B, W-1, D): the next chunk's
        initial state.

    Raises:
        ArgumentError: naming the argument that does not fit.
    """
    call = checked(Arguments(x, weight, bias, initial_state, resets, silu(activation)))
    chosen = _DISPATCH.choose(backend, call)
    if (
        chosen == "cuda"
        and call.resets is None
        and cuda.one_position(x, weight, bias, initial_state)
    ):
        assert initial_state is not None
        y, after = cuda.update(x[:, 0], weight, bias, initial_state, call.silu)
        return y.unsqueeze(1), after.to(x.dtype)
    if chosen == "reference":
        y = causal_conv1d_reference(x, weight, bias, initial_state, call.resets, activation)
    else:
        y = torch_op.forward(*call)
    return y, _final_state(x, weight.shape[1], initial_state, call.resets)


def one_sided_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: Literal["silu"] | None = None,
    reverse: bool = False,
    backend: Backend = "auto",
) -> Tensor:
    """Convolves whole sequences, seeing only the past, as ``causal_conv1d`` does, or only the
    future: for mixers that run from both ends and keep no state.

    Args:
        x: input (B, L, D).
        weight: kernels (D, W); the last tap weighs the position itself, whichever way.
        bias: (D,).
        activation: "silu" or None.
        reverse: whether the future is seen. It is that of the mirrored sequence, mirrored again;
            the CPU kernels move nothing for it.
        backend: see ``longseq.core.ops.backends``.

    Returns:
        The output (B, L, D) in x's dtype.

    Raises:
        ArgumentError: naming the argument that does not fit.
    """
    call = checked(Arguments(x, weight, bias, None, None, silu(activation)))
    chosen = _DISPATCH.choose(backend, call)
    direct = chosen == "cpu" and not torch.compiler.is_compiling()  # programs know the causal one
    if reverse and direct:
        return torch_op.forward_reversed(*call)
    seen = x.flip(1) if reverse else x
    if chosen == "reference":
        y = causal_conv1d_reference(seen, weight, bias, activation=activation)
    else:
        y = torch_op.forward(*call._replace(x=seen))
    return y.flip(1) if reverse else y


def causal_conv1d_step(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    state: Tensor,
    activation: Literal["silu"] | None = None,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:
    """Convolves one position: ``causal_conv1d`` at L = 1, on a CPU past torch's dispatcher where it
    may.

    Args:
        x: input (B, D).
        weight: kernels (D, W), or (D, 1, W) as ``nn.Conv1d`` keeps them, the newest tap last.
        bias: (D,).
        state: the W-1 inputs before x (B, W-1, D).
        activation: "silu" or None.
        backend: see ``longseq.core.ops.backends``.

    Returns:
        The output (B, D) in x's dtype, and the last W-1 inputs (B, W-1, D).

    Raises:
        ArgumentError: naming the argument that does not fit.
        BackendError: if the backend asked for cannot serve the call.
    """
    (rows, channels), taps = x.shape, weight.shape
    fits = taps[0] == channels and state.shape == (rows, taps[-1] - 1, channels)
    fits = fits and (bias is None or bias.numel() == channels)
    if fits and backend in ("auto", "cpu") and direct_reason(x, weight, bias, state) is None:
        return cpu.update(x, weight, bias, state, silu(activation))
    weight = weight.squeeze(1) if weight.dim() == 3 else weight
    y, after = causal_conv1d(
        x.unsqueeze(1), weight, bias, state, activation=activation, backend=backend
    )
    return y.squeeze(1), after


def causal_conv1d_shift(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    buffer: Tensor,
    activation: Literal["silu"] | None = None,
) -> Tensor:
    """Convolves the positions after a buffer of inputs, which moves on in place and outside the
    autograd graph.

    Where no gradient is wanted and x is short, one call of a kernel reads and writes the memory as
    it lies.

    Args:
        x: input (B, L, D).
        weight: kernels (D, W), the newest tap last.
        bias: (D,).
        buffer: the last T inputs (B, T, D), T at least W-1.
        activation: "silu" or None.

    Returns:
        The output (B, L, D) in x's dtype.

    Raises:
        ArgumentError: naming the argument that does not fit.
    """
    call = Arguments(x, weight, bias, None, None, silu(activation))
    past, size = weight.shape[-1] - 1, buffer.shape[1]
    if buffer.shape != (x.shape[0], size, x.shape[2]) or size < past:
        raise ArgumentError(
            f"causal_conv1d_shift: buffer must be {(x.shape[0], past, x.shape[2])} = (batch, at "
            f"least taps - 1, channels), got {tuple(buffer.shape)}"
        )
    short = 0 < x.shape[1] <= cpu.SHORT and buffer.dtype == x.dtype
    fits = weight.shape == (x.shape[2], past + 1) and 0 <= past < MAX_WIDTH
    fits = fits and (bias is None or bias.shape == (x.shape[2],))
    if short and fits and direct_reason(x, weight, bias, buffer) is None:
        return cpu.shift(call, buffer)
    before = buffer[:, size - past :].to(x.dtype, copy=True)  # autograd needs it once overwritten
    y, _ = causal_conv1d(x, weight, bias, before, activation=activation)
    with torch.no_grad():
        buffer.copy_(torch.cat([buffer, x.to(buffer.dtype)], 1)[:, x.shape[1] :])
    return y


def _final_state(
    x: Tensor, width: int, initial_state: Tensor | None, resets: Tensor | None
) -> Tensor:
    """Returns the last W-1 inputs; those of an earlier segment than the last position's are
    zero."""
    past = width - 1
    if past == 0:
        return x[:, :0]
    if initial_state is None:
        before = x.new_zeros(x.shape[0], past, x.shape[2])
    else:
        before = initial_state.to(x.dtype)
    seen = torch.cat([before, x[:, -past:]], 1)[:, -past:]
    if resets is None:
        return seen.clone()  # the slice would keep twice its size alive
    segment = resets.cumsum(1)
    source = torch.cat([segment.new_zeros(x.shape[0], past), segment[:, -past:]], 1)[:, -past:]
    return torch.where((source == segment[:, -1:]).unsqueeze(-1), seen, torch.zeros_like(seen))
