"""The functions of mamba-ssm and causal-conv1d, by their own names and signatures, on longseq's
operators.

``from longseq.core.compat.mamba_ssm import selective_scan_fn`` takes the place of the published
import. Layouts, defaults, return values and what is updated in place are the published ones; any
stride, length and width will do, the tensors may be on a CPU, and the gradients of initial and
final states exist.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import silu, softplus
from torch.utils.checkpoint import checkpoint

from longseq.core.compat.causal_conv1d import (
    causal_conv1d_fn,
    causal_conv1d_update,
    changes,
    check_indices,
    like,
    put,
    take,
)
from longseq.core.errors import ArgumentError
from longseq.core.ops.arguments import check_kind, check_shape, present
from longseq.core.ops.cpu_calls import direct_reason
from longseq.core.ops.precision import autocast_off, compute_dtype
from longseq.core.ops.selective_scan import selective_scan
from longseq.core.ops.ssd import ssd
from longseq.core.ops.state_update import state_update

__all__ = [
    "causal_conv1d_fn",
    "causal_conv1d_update",
    "mamba_chunk_scan_combined",
    "selective_scan_fn",
    "selective_state_update",
]


def selective_scan_fn(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Runs the selective scan of Mamba, channels first.

    Args:
        u: input (B, D, L).
        delta: step sizes (B, D, L).
        A: decays (D, N), real or complex.
        B: input map, constant (D, N), or (B, N, L), or (B, G, N, L). With a complex A, a map that
            depends on time is complex, or real with 2L values along its last dimension, real and
            imaginary in turn.
        C: output map, as B.
        D: skip (D,).
        z: gate (B, D, L).
        delta_bias: added to delta (D,).
        delta_softplus: whether the softplus is applied.
        return_last_state: whether the last state is returned too.

    Returns:
        The output (B, D, L) in u's dtype; and, if asked for, the last state (B, D, N),
        differentiable.

    Raises:
        ArgumentError: naming the argument that does not fit.
    """
    name = "selective_scan_fn"
    check_kind(name, True, u=u, delta=delta, **present(z=z))
    check_kind(name, False, A=A, B=B, C=C)
    if u.dim() != 3:
        raise ArgumentError(f"{name}: u must be (batch, channels, length), got {tuple(u.shape)}")
    check_shape(name, "delta", delta, u.shape, "(batch, channels, length)")
    if z is not None:
        check_shape(name, "z", z, u.shape, "(batch, channels, length)")
    maps = [_time_first(name, key, m, u, A) for key, m in (("B", B), ("C", C))]
    varying = [m for m in maps if m.dim() == 4]
    groups = max((m.shape[2] for m in varying), default=1)
    maps = [m.expand(-1, -1, groups, -1) if m.dim() == 4 and m.shape[2] == 1 else m for m in maps]
    x, dt = u.transpose(1, 2), delta.transpose(1, 2)
    gate = None if z is None else z.transpose(1, 2)
    if len(varying) == 2:
        y, last = selective_scan(
            x, dt, A, maps[0], maps[1], D, gate, delta_bias, delta_softplus=delta_softplus
        )
    else:
        y, last = _scan_with_constant_maps(x, dt, A, maps, D, gate, delta_bias, delta_softplus)
    out = like(y.transpose(1, 2), u)
    return (out, last) if return_last_state else out


def _time_first(name: str, key: str, m: Tensor, u: Tensor, A: Tensor) -> Tensor:
    """Returns a map (B, L, G, N), complex if A is; or (D, N) as it is."""
    if m.dim() == 2:
        check_shape(name, key, m, A.shape, "(channels, states)")
        return m
    if m.dim() not in (3, 4):
        raise ArgumentError(
            f"{name}: {key} must be (channels, states), (batch, states, length) or "
            f"(batch, groups, states, length), got {tuple(m.shape)}"
        )
    if A.is_complex() and not m.is_complex():
        if m.shape[-1] != 2 * u.shape[2]:
            raise ArgumentError(
                f"{name}: A is complex, so {key} must be complex, or real with twice the length "
                f"in its last dimension ({2 * u.shape[2]}), got {tuple(m.shape)}"
            )
        pairs = m.to(compute_dtype(u, A)).unflatten(-1, (-1, 2))
        m = torch.view_as_complex(pairs.contiguous())
    return (m.unsqueeze(1) if m.dim() == 3 else m).permute(0, 3, 1, 2)


def _scan_with_constant_maps(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    maps: list[Tensor],
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> tuple[Tensor, Tensor]:
    """The scan where B or C, or both, are constants (D, N).

    The recurrence is linear, so a factor per channel and state can be applied to what comes out of
    it: each state is scanned with ones in the place of the constants. That is one scan per state,
    in the memory of a few (B, L, D) tensors; in the backward pass each is run again.
    """
    if (maps[0].is_complex() or maps[1].is_complex()) and not A.is_complex():
        raise ArgumentError(
            "selective_scan_fn: B or C is complex, so A must be, got " + str(A.dtype)
        )
    dtype = compute_dtype(u, A)
    state_dtype = torch.promote_types(dtype, torch.complex64) if A.is_complex() else dtype
    batch, length, _ = u.shape
    groups = next((m.shape[2] for m in maps if m.dim() == 4), 1)
    ones = torch.ones((), dtype=state_dtype, device=u.device).expand(batch, length, groups, 1)
    x = u.to(dtype)

    def one_state(
        n: int, x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor
    ) -> tuple[Tensor, Tensor]:
        def scan(turn: complex) -> tuple[Tensor, Tensor]:
            B_n, C_n = (m[..., n : n + 1].to(state_dtype) if m.dim() == 4 else ones for m in (B, C))
            C_n = C_n if turn == 1 else turn * C_n
            return selective_scan(
                x,
                delta,
                A[:, n : n + 1],
                B_n,
                C_n,
                None,
                None,
                delta_bias,
                delta_softplus=delta_softplus,
            )

        first, second = (m[:, n].to(state_dtype) if m.dim() == 2 else None for m in (B, C))
        y, last = scan(1)
        if first is not None:
            last = last * first.unsqueeze(-1)
        factor = first if second is None else second if first is None else first * second
        assert factor is not None  # one of the maps is a constant
        if factor.is_complex():
            # The operator returns real parts only; the imaginary part of w is the real part of -iw.
            return y * factor.real - scan(-1j)[0] * factor.imag, last
        return y * factor, last

    recompute = torch.is_grad_enabled()
    outputs, states = torch.zeros_like(x), []
    with autocast_off(u):  # x is at full precision because outputs are summed
        for n in range(A.shape[1]):
            arguments = (n, x, delta, A, *maps)
            if recompute:
                y, last = checkpoint(
                    one_state, *arguments, use_reentrant=False, preserve_rng_state=False
                )
            else:
                y, last = one_state(*arguments)  # type: ignore[arg-type]
            outputs = outputs + y
            states.append(last)
        if D is not None:
            outputs = outputs + x * D.to(dtype)
        if z is not None:
            outputs = outputs * silu(z.to(dtype))
    return outputs.to(u.dtype), torch.cat(states, -1)


def selective_state_update(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    state_batch_indices: Tensor | None = None,
) -> Tensor:
    """Runs one position of the selective scan and updates ``state`` in place, outside the autograd
    graph.

    Args:
        state: (S, D, N) or (S, H, D, N), S the batch B or, with ``state_batch_indices``, the number
            of slots.
        x: input (B, D) or (B, H, D).
        dt: step sizes, as x.
        A: decays (D, N) or (H, D, N).
        B: input map (B, N) or (B, G, N), H a multiple of G.
        C: output map, as B.
        D: skip (D,) or (H, D).
        z: gate, as x.
        dt_bias: added to dt, (D,) or (H, D).
        dt_softplus: whether the softplus is applied.
        state_batch_indices: the slot of each row (B,); a row whose index is negative is padding:
            its output is 0 and no state changes.

    Returns:
        The output, as x.

    Raises:
        ArgumentError: naming the argument that does not fit.
    """
    name = "selective_state_update"
    optional = present(D=D, z=z, dt_bias=dt_bias)
    check_kind(name, True, state=state, x=x, dt=dt, A=A, B=B, C=C, **optional)
    if state.dim() not in (3, 4):
        raise ArgumentError(
            f"{name}: state must be (batch, channels, states) or (batch, heads, channels, "
            f"states), got {tuple(state.shape)}"
        )

    def with_heads(t: Tensor, dims: int, at: int) -> Tensor:
        return t.unsqueeze(at) if t.dim() == dims - 1 else t

    slots = with_heads(state, 4, 1)
    _, heads, width, states = slots.shape
    rows, step, maps_in, maps_out = (with_heads(t, 3, 1) for t in (x, dt, B, C))
    batch = rows.shape[0]
    check_shape(name, "x", rows, (batch, heads, width), "(batch, heads, channels)")
    check_shape(name, "dt", step, rows.shape, "(batch, heads, channels)")
    decay = with_heads(A, 3, 0)
    check_shape(name, "A", decay, (heads, width, states), "(heads, channels, states)")
    groups = maps_in.shape[1] if maps_in.dim() == 3 else 0
    if groups == 0 or heads % groups:
        raise ArgumentError(
            f"{name}: B must have groups that divide the {heads} heads, got {tuple(B.shape)}"
        )
    for key, m in (("B", maps_in), ("C", maps_out)):
        check_shape(name, key, m, (batch, groups, states), "(batch, groups, states)")
    if state_batch_indices is None and slots.shape[0] != batch:
        raise ArgumentError(f"{name}: state has {slots.shape[0]} rows and x has {batch}")
    keep = check_indices(name, "state_batch_indices", state_batch_indices, batch)

    dtype = compute_dtype(state, x, A)
    if dt_bias is not None:
        dt_bias = with_heads(dt_bias, 2, 0)
        check_shape(name, "dt_bias", dt_bias, (heads, width), "(heads, channels)")
    if D is not None:
        D = with_heads(D, 2, 0)
        check_shape(name, "D", D, (heads, width), "(heads, channels)")
    gate = None if z is None else with_heads(z, 3, 1)
    if gate is not None:
        check_shape(name, "z", gate, rows.shape, "(batch, heads, channels)")
    tensors = (slots, rows, step, decay, maps_in, maps_out, D, gate, dt_bias)
    if (
        keep is None
        and slots.dtype == dtype
        and not decay.is_complex()
        and direct_reason(*tensors) is None
    ):
        flat = [None if t is None else t.flatten(at) for t, at in ((gate, 1), (D, 0), (dt_bias, 0))]
        y, new = state_update(
            slots.flatten(1, 2),
            rows.flatten(1),
            step.flatten(1),
            decay.flatten(0, 1),
            maps_in,
            maps_out,
            flat[1],
            flat[0],
            flat[2],
            dt_softplus,
        )
        slots.copy_(new.view(slots.shape))
        return y.view(x.shape)
    step = step.to(dtype)
    if dt_bias is not None:
        step = step + dt_bias.to(dtype)
    if dt_softplus:
        step = softplus(step)
    maps_in, maps_out = (
        m.to(dtype).repeat_interleave(heads // groups, 1) for m in (maps_in, maps_out)
    )
    # A copy: autograd needs the old state after the new one has taken its place.
    old = slots.to(dtype, copy=True) if keep is None else take(slots, state_batch_indices).to(dtype)
    value = rows.to(dtype)
    new = old * torch.exp(step.unsqueeze(-1) * decay.to(dtype))
    new = new + (step * value).unsqueeze(-1) * maps_in.unsqueeze(2)
    y = (new * maps_out.unsqueeze(2)).sum(-1)
    if D is not None:
        y = y + value * D.to(dtype)
    if gate is not None:
        y = y * silu(gate.to(dtype))
    put(slots, state_batch_indices, keep, new)
    if keep is not None:
        y = torch.where(keep[:, None, None], y, torch.zeros_like(y))
    y = y.to(x.dtype)
    return y if state.dim() == 4 else y.squeeze(1)


def mamba_chunk_scan_combined(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    chunk_size: int,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    initial_states: Tensor | None = None,
    seq_idx: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, math.inf),
    return_final_states: bool = False,
    return_varlen_states: bool = False,
    state_dtype: torch.dtype | None = None,
) -> Tensor | tuple[Tensor, ...]:
    """Runs the scan of Mamba-2 in chunks.

    Args:
        x: input (B, L, H, P).
        dt: step sizes (B, L, H).
        A: decay rates (H,).
        B: input maps (B, L, G, N).
        C: output maps (B, L, G, N).
        chunk_size: positions per chunk; changes speed only.
        D: skip (H,) or (H, P).
        z: gate (B, L, H, P).
        dt_bias: added to dt (H,).
        initial_states: (B, H, P, N); with ``seq_idx`` it belongs to the sequence of index 0.
        seq_idx: integers (B, L): the state is zeroed wherever they change.
        cu_seqlens: where the packed sequences begin, and the length of all (S + 1,); for varlen
            states only.
        dt_softplus: whether the softplus is applied to dt.
        dt_limit: bounds of the step size.
        return_final_states: whether the final states (B, H, P, N) are returned too.
        return_varlen_states: whether each packed sequence's final state (S, H, P, N) is returned
            too; B is 1.
        state_dtype: accepted and not needed: states are float32, or float64 for float64 inputs.

    Returns:
        The output (B, L, H, P); then, as asked for, the final states and the varlen states.

    Raises:
        ArgumentError: naming the argument that does not fit.
    """
    del state_dtype
    name = "mamba_chunk_scan_combined"
    resets = None
    if seq_idx is not None:
        if seq_idx.shape != x.shape[:2] or seq_idx.is_floating_point():
            raise ArgumentError(
                f"{name}: seq_idx must be integers of shape {tuple(x.shape[:2])} = (batch, "
                f"length), got {seq_idx.dtype} {tuple(seq_idx.shape)}"
            )
        resets = changes(seq_idx, 0)

    def scan(
        start: int, stop: int, first: Tensor | None, resets: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        x_part, dt_part, B_part, C_part = (t[:, start:stop] for t in (x, dt, B, C))
        gate = None if z is None else z[:, start:stop]
        return ssd(
            x_part,
            dt_part,
            A,
            B_part,
            C_part,
            chunk_size,
            D,
            gate,
            dt_bias,
            first,
            resets,
            dt_softplus,
            dt_limit,
        )

    y, final = scan(0, x.shape[1], initial_states, resets)
    results: tuple[Tensor, ...] = (y, final) if return_final_states else (y,)
    if return_varlen_states:
        if cu_seqlens is None or x.shape[0] != 1:
            raise ArgumentError(f"{name}: return_varlen_states needs cu_seqlens and a batch of 1")
        bounds = cu_seqlens.tolist()
        states = [
            scan(start, stop, initial_states if start == 0 else None, None)[1]
            for start, stop in pairwise(bounds)
        ]
        results = (*results, torch.cat(states))
    return results if len(results) > 1 else y
