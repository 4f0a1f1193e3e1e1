"""The functions of causal-conv1d, by their own names and signatures, on longseq's operators."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad, silu

from longseq.core.errors import ArgumentError
from longseq.core.ops.arguments import check_kind, present
from longseq.core.ops.causal_conv1d import causal_conv1d
from longseq.core.ops.precision import compute_dtype

Activation = Literal["silu", "swish"]


def like(y: Tensor, x: Tensor) -> Tensor:
    """Returns y with time as its dense dimension if it is x's: callers may rely on views of the
    output."""
    return y.contiguous() if x.stride(-1) == 1 else y


def changes(seq_idx: Tensor, before: int | None) -> Tensor:
    """Returns a bool tensor (B, L), true where the index is not that of the position before.

    Args:
        seq_idx: integers (B, L).
        before: the index before position 0; None if that position begins a sequence anyway.
    """
    first = (
        torch.ones_like(seq_idx[:, :1], dtype=torch.bool)
        if before is None
        else seq_idx[:, :1] != before
    )
    return torch.cat([first, seq_idx[:, 1:] != seq_idx[:, :-1]], 1)


def check_indices(name: str, key: str, indices: Tensor | None, batch: int) -> Tensor | None:
    """Returns which rows are not padding; None without indices."""
    if indices is None:
        return None
    if tuple(indices.shape) != (batch,) or indices.is_floating_point():
        raise ArgumentError(
            f"{name}: {key} must be integers of shape {(batch,)} = (batch,), got {indices.dtype} "
            f"{tuple(indices.shape)}"
        )
    return indices >= 0


def take(slots: Tensor, indices: Tensor | None) -> Tensor:
    return slots if indices is None else slots[indices.long().clamp(min=0)]


def put(slots: Tensor, indices: Tensor | None, keep: Tensor | None, new: Tensor) -> None:
    """Writes the new states in place, those of padding rows excepted."""
    with torch.no_grad():
        new = new.to(slots.dtype)
        if indices is None or keep is None:
            slots.copy_(new)
        else:
            slots[indices.long()[keep]] = new[keep]


def silu_or_none(name: str, activation: str | None) -> Literal["silu"] | None:
    if activation not in (None, "silu", "swish"):
        raise ArgumentError(
            f"{name}: activation must be None, 'silu' or 'swish', got {activation!r}"
        )
    return None if activation is None else "silu"


def causal_conv1d_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    seq_idx: Tensor | None = None,
    initial_states: Tensor | None = None,
    return_final_states: bool = False,
    final_states_out: Tensor | None = None,
    activation: Activation | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Convolves every channel with its own short kernel, channels first, seeing only the past.

    Args:
        x: input (B, D, L).
        weight: kernels (D, W), the newest tap last.
        bias: (D,).
        seq_idx: integers (B, L), the sequence of each position: a tap on another sequence counts as
            zero, and the output is 0 where the index is negative (padding). Not together with
            states.
        initial_states: the W-1 inputs before x, (B, D, W-1).
        return_final_states: whether the last W-1 inputs are returned too.
        final_states_out: (B, D, W-1), overwritten with them.
        activation: None, "silu" or its other name "swish".

    Returns:
        The output (B, D, L) in x's dtype; and, if asked for, the final states (B, D, W-1).

    Raises:
        ArgumentError: naming the argument that does not fit.
    """
    name = "causal_conv1d_fn"
    act = silu_or_none(name, activation)
    optional = present(bias=bias, initial_states=initial_states)
    check_kind(name, True, x=x, weight=weight, **optional)
    if x.dim() != 3:
        raise ArgumentError(f"{name}: x must be (batch, channels, length), got {tuple(x.shape)}")
    if initial_states is not None and initial_states.dim() != 3:
        raise ArgumentError(
            f"{name}: initial_states must be (batch, channels, taps - 1), got "
            f"{tuple(initial_states.shape)}"
        )
    rows = x.transpose(1, 2)
    if seq_idx is not None:
        if initial_states is not None or return_final_states:
            raise ArgumentError(
                f"{name}: seq_idx does not go together with initial or final states"
            )
        return like(_conv_of_sequences(name, rows, weight, bias, seq_idx, act).transpose(1, 2), x)
    past = None if initial_states is None else initial_states.transpose(1, 2)
    y, final = causal_conv1d(rows, weight, bias, past, activation=act)
    out = like(y.transpose(1, 2), x)
    if not return_final_states:
        return out
    final = final.transpose(1, 2)
    return out, (final if final_states_out is None else final_states_out.copy_(final))


def _conv_of_sequences(
    name: str,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    seq_idx: Tensor,
    act: Literal["silu"] | None,
) -> Tensor:
    """The convolution (B, L, D) within sequences."""
    if tuple(seq_idx.shape) != tuple(x.shape[:2]) or seq_idx.is_floating_point():
        raise ArgumentError(
            f"{name}: seq_idx must be integers of shape {tuple(x.shape[:2])} = (batch, length), "
            f"got {seq_idx.dtype} {tuple(seq_idx.shape)}"
        )
    resets = changes(seq_idx, None)
    if _comes_back(seq_idx, resets, weight.shape[1]):
        y = _sum_over_taps(x, weight, bias, seq_idx)
        y = (silu(y) if act else y).to(x.dtype)
    else:
        y = causal_conv1d(x, weight, bias, resets=resets, activation=act)[0]
    return torch.where((seq_idx < 0).unsqueeze(-1), torch.zeros_like(y), y)


def _comes_back(seq_idx: Tensor, resets: Tensor, taps: int) -> bool:
    """Returns whether an index returns, after another, within the reach of the kernel."""
    run = resets.cumsum(1)
    return any(
        bool(((seq_idx[:, o:] == seq_idx[:, :-o]) & (run[:, o:] != run[:, :-o])).any())
        for o in range(2, min(taps, seq_idx.shape[1]))
    )


def _sum_over_taps(x: Tensor, weight: Tensor, bias: Tensor | None, seq_idx: Tensor) -> Tensor:
    """The convolution before its activation, with the indices compared tap by tap."""
    dtype = compute_dtype(x, weight)
    rows, taps = x.to(dtype), weight.to(dtype)
    y = rows * taps[:, -1]
    for o in range(1, min(weight.shape[1], x.shape[1])):
        seen = (seq_idx[:, o:] == seq_idx[:, :-o]).unsqueeze(-1)
        part = torch.where(seen, rows[:, :-o], torch.zeros_like(rows[:, :-o])) * taps[:, -1 - o]
        y = y + pad(part, (0, 0, o, 0))
    return y if bias is None else y + bias.to(dtype)


def causal_conv1d_update(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: Activation | None = None,
    cache_seqlens: Tensor | None = None,
    conv_state_indices: Tensor | None = None,
) -> Tensor:
    """Convolves the next inputs and updates ``conv_state`` in place, outside the autograd graph.

    Args:
        x: input (B, D) or (B, D, L).
        conv_state: the inputs before x (S, D, T), T at least W-1; S the batch B or, with
            ``conv_state_indices``, the number of slots. Without ``cache_seqlens`` x is shifted in
            at the end.
        weight: kernels (D, W), the newest tap last.
        bias: (D,).
        activation: None, "silu" or its other name "swish".
        cache_seqlens: positions seen so far (B,): the state is then a circular buffer, and x is
            written from ``cache_seqlens % T`` on.
        conv_state_indices: the slot of each row (B,); a row whose index is negative is padding: its
            output is 0 and no state changes.

    Returns:
        The output, as x.

    Raises:
        ArgumentError: naming the argument that does not fit.
    """
    name = "causal_conv1d_update"
    act = silu_or_none(name, activation)
    check_kind(name, True, x=x, conv_state=conv_state, weight=weight, **present(bias=bias))
    if x.dim() not in (2, 3):
        raise ArgumentError(
            f"{name}: x must be (batch, channels) or (batch, channels, length), got "
            f"{tuple(x.shape)}"
        )
    rows = x.unsqueeze(-1) if x.dim() == 2 else x
    batch, channels, length = rows.shape
    past = weight.shape[-1] - 1
    if conv_state.dim() != 3 or conv_state.shape[1] != channels or conv_state.shape[2] < past:
        raise ArgumentError(
            f"{name}: conv_state must be (batch, {channels} channels, at least {past} = taps - "
            f"1), got {tuple(conv_state.shape)}"
        )
    if conv_state_indices is None and conv_state.shape[0] != batch:
        raise ArgumentError(f"{name}: conv_state has {conv_state.shape[0]} rows and x has {batch}")
    keep = check_indices(name, "conv_state_indices", conv_state_indices, batch)
    check_indices(name, "cache_seqlens", cache_seqlens, batch)

    state = take(conv_state, conv_state_indices)
    size = conv_state.shape[2]
    incoming = rows.detach().to(state.dtype)
    if cache_seqlens is None:
        seen = state[..., size - past :].clone()  # autograd needs it after the state is overwritten
        new = torch.cat([state, incoming], -1)[..., length:]
    else:
        start = cache_seqlens.long().view(-1, 1, 1)

        def places(first: int, last: int) -> Tensor:
            steps = torch.arange(first, last, device=x.device)
            return ((start + steps) % max(size, 1)).expand(-1, channels, -1)

        seen = state.gather(2, places(-past, 0))
        written = min(length, size)  # what a longer x would overwrite again is left out
        new = state.scatter(2, places(length - written, length), incoming[..., length - written :])
    y, _ = causal_conv1d(
        rows.transpose(1, 2), weight, bias, seen.to(x.dtype).transpose(1, 2), activation=act
    )
    put(conv_state, conv_state_indices, keep, new)
    y = y.transpose(1, 2)
    if keep is not None:
        y = torch.where(keep[:, None, None], y, torch.zeros_like(y))
    return y.squeeze(-1) if x.dim() == 2 else like(y, x)
