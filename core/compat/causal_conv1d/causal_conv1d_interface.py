"""The convolutions of causal-conv1d, by their own names and signatures, on longseq's operators."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from longseq.core.compat._names import module_getattr
from longseq.core.compat._operators import causal_conv1d
from longseq.core.compat._tensors import changes, check_indices, like, put, take
from longseq.core.errors import ArgumentError
from longseq.core.ops.arguments import check_kind, present
from longseq.core.ops.causal_conv1d import causal_conv1d_shift
from longseq.core.ops.precision import compute_dtype

__all__ = [
    "causal_conv1d_fn",
    "causal_conv1d_ref",
    "causal_conv1d_update",
    "causal_conv1d_update_ref",
]
__getattr__ = module_getattr(__name__)


def silu_or_none(name: str, activation: str | None) -> Literal["silu"] | None:
    """Returns "silu" for both of its names.

    Raises:
        ArgumentError: for another activation.
    """
    if activation not in (None, "silu", "swish"):
        raise ArgumentError(
            f"{name}: activation must be None, 'silu' or 'swish', got {activation!r}"
        )
    return None if activation is None else "silu"


def causal_conv1d_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    seq_idx: Tensor | str | None = None,
    initial_states: Tensor | None = None,
    return_final_states: bool = False,
    final_states_out: Tensor | None = None,
    activation: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Convolves every channel with its own short kernel, channels first, seeing only the past.

    Args:
        x: input (B, D, L).
        weight: kernels (D, W), the newest tap last.
        bias: (D,).
        seq_idx: integers (B, L), the sequence of each position: a tap on another sequence counts as
            zero, and the output is 0 where the index is negative (padding). Not together with final
            states. A string is the activation, whose place this was in causal-conv1d 1.0 and 1.1.
        initial_states: the W-1 inputs before x, (B, D, W-1), of the sequence of position 0.
        return_final_states: whether the last W-1 inputs are returned too.
        final_states_out: (B, D, W-1), overwritten with them.
        activation: None, "silu" or its other name "swish".

    Returns:
        The output (B, D, L) in x's dtype; and, if asked for, the final states (B, D, W-1).

    Raises:
        ArgumentError: naming the argument that does not fit.
    """
    name = "causal_conv1d_fn"
    if isinstance(seq_idx, str):
        seq_idx, activation = None, seq_idx
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
    past = None if initial_states is None else initial_states.transpose(1, 2)
    if seq_idx is not None:
        if return_final_states:
            raise ArgumentError(f"{name}: seq_idx does not go together with final states")
        y = _conv_of_sequences(name, rows, weight, bias, seq_idx, past, act)
        return like(y.transpose(1, 2), x)
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
    past: Tensor | None,
    act: Literal["silu"] | None,
) -> Tensor:
    """The convolution (B, L, D) within sequences; what was before, (B, W-1, D), is of the first."""
    if tuple(seq_idx.shape) != tuple(x.shape[:2]) or seq_idx.is_floating_point():
        raise ArgumentError(
            f"{name}: seq_idx must be integers of shape {tuple(x.shape[:2])} = (batch, length), "
            f"got {seq_idx.dtype} {tuple(seq_idx.shape)}"
        )
    before = weight.shape[-1] - 1
    if past is not None and x.shape[1]:
        wanted = (x.shape[0], before, x.shape[2])
        if past.shape != wanted:
            raise ArgumentError(
                f"{name}: initial_states must be (batch, channels, taps - 1) = "
                f"{(wanted[0], wanted[2], before)}, got {tuple(past.transpose(1, 2).shape)}"
            )
        seq_idx = torch.cat([seq_idx[:, :1].expand(-1, before), seq_idx], 1)
        x = torch.cat([past.to(x.dtype), x], 1)
        return _conv_of_sequences(name, x, weight, bias, seq_idx, None, act)[:, before:]
    resets = changes(seq_idx, None)
    if _comes_back(seq_idx, resets, weight.shape[1]):
        y = _sum_over_taps(x, weight, bias, seq_idx)
        y = (F.silu(y) if act else y).to(x.dtype)
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
        y = y + F.pad(part, (0, 0, o, 0))
    return y if bias is None else y + bias.to(dtype)


def causal_conv1d_update(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
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

    if not length:  # nothing is read, and no state moves
        y, _ = causal_conv1d(rows.transpose(1, 2), weight, bias, activation=act)
        return like(y.transpose(1, 2), x)
    if conv_state_indices is None and cache_seqlens is None:
        y = causal_conv1d_shift(
            rows.transpose(1, 2), weight, bias, conv_state.transpose(1, 2), activation=act
        ).transpose(1, 2)
        return y.squeeze(-1) if x.dim() == 2 else like(y, x)
    state = take(conv_state, conv_state_indices)
    size = conv_state.shape[2]
    incoming = rows.detach().to(state.dtype)
    if cache_seqlens is None:
        seen = state[..., size - past :]
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


def causal_conv1d_ref(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    initial_states: Tensor | None = None,
    return_final_states: bool = False,
    final_states_out: Tensor | None = None,
    activation: str | None = None,
    seq_idx: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """The convolution by torch's own, in the weight's dtype; arguments as ``causal_conv1d_fn``."""
    act = silu_or_none("causal_conv1d_ref", activation)
    past = weight.shape[1] - 1
    if initial_states is None:
        seen = F.pad(x, (past, 0))
    else:
        seen = torch.cat([initial_states.to(x.dtype), x], -1)
    if seq_idx is None:
        y = F.conv1d(seen.to(weight.dtype), weight.unsqueeze(1), bias, groups=x.shape[1])
    else:
        if return_final_states:
            raise ArgumentError("causal_conv1d_ref: seq_idx does not go together with final states")
        first = seq_idx[:, :1].expand(-1, past)
        index = torch.cat(
            [torch.full_like(first, -1) if initial_states is None else first, seq_idx], 1
        )
        windows, indices = (t.unfold(-1, past + 1, 1) for t in (seen.to(weight.dtype), index))
        kept = torch.where((indices == seq_idx.unsqueeze(-1)).unsqueeze(1), windows, 0)
        y = (kept * weight.unsqueeze(1)).sum(-1)
        y = y if bias is None else y + bias.unsqueeze(-1)
        y = y.masked_fill((seq_idx < 0).unsqueeze(1), 0)
    y = (F.silu(y) if act else y).to(x.dtype)
    if not return_final_states:
        return y
    final = seen[..., seen.shape[-1] - past :]
    return y, (final if final_states_out is None else final_states_out.copy_(final))


def causal_conv1d_update_ref(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    cache_seqlens: Tensor | None = None,
) -> Tensor:
    """The update row by row and position by position; arguments as ``causal_conv1d_update``."""
    act = silu_or_none("causal_conv1d_update_ref", activation)
    rows = x.unsqueeze(-1) if x.dim() == 2 else x
    size, taps = conv_state.shape[-1], weight.shape[1]
    outputs = []
    for b, row in enumerate(rows):
        at = None if cache_seqlens is None else int(cache_seqlens[b])
        # Oldest first: a circular buffer's entry i % size was written at position i.
        past = conv_state[b] if at is None else conv_state[b].roll(-at % max(size, 1), -1)
        seen = torch.cat([past.to(row.dtype), row], -1)
        first = size - taps + 1
        y = F.conv1d(
            seen[:, first:].to(weight.dtype).unsqueeze(0),
            weight.unsqueeze(1),
            bias,
            groups=weight.shape[0],
        )[0]
        outputs.append((F.silu(y) if act else y).to(x.dtype))
        last = seen[:, seen.shape[1] - size :]
        turn = 0 if at is None else (at + row.shape[-1]) % max(size, 1)
        conv_state[b].copy_(last.roll(turn, -1))
    y = torch.stack(outputs)
    return y.squeeze(-1) if x.dim() == 2 else y
