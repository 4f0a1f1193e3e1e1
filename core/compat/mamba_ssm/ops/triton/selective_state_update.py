"""One position of the selective scan, as mamba-ssm has it: the state is updated in place."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import silu, softplus

from longseq.core.compat._names import module_getattr
from longseq.core.compat._tensors import check_indices, put, take
from longseq.core.errors import ArgumentError
from longseq.core.ops.arguments import check_kind, check_shape, present
from longseq.core.ops.cpu_calls import direct_reason
from longseq.core.ops.precision import compute_dtype
from longseq.core.ops.state_update import state_update

__all__ = ["selective_state_update", "selective_state_update_ref"]
__getattr__ = module_getattr(__name__)


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


def selective_state_update_ref(
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
) -> Tensor:
    """The update head by head; arguments as ``selective_state_update``, without slots."""
    heads = state.shape[1] if state.dim() == 4 else None
    groups = B.shape[1] if B.dim() == 3 else None
    outputs = []
    for h in range(heads or 1):

        def of_head(t: Tensor | None, at: int, h: int = h) -> Tensor | None:
            return t if t is None or heads is None else t.select(at, h)

        def of_group(t: Tensor, h: int = h) -> Tensor:
            return t if groups is None else t[:, h * groups // (heads or 1)]

        s, value, step = of_head(state, 1), of_head(x, 1), of_head(dt, 1)
        decay, skip, gate, bias = of_head(A, 0), of_head(D, 0), of_head(z, 1), of_head(dt_bias, 0)
        assert s is not None and value is not None and step is not None and decay is not None
        step = step if bias is None else step + bias
        step = softplus(step) if dt_softplus else step
        written = (step * value).unsqueeze(-1) * of_group(B).unsqueeze(1)
        s.copy_(s * torch.exp(step.unsqueeze(-1) * decay) + written)
        y = (s.to(C.dtype) * of_group(C).unsqueeze(1)).sum(-1)
        y = y if skip is None else y + value * skip
        outputs.append((y if gate is None else y * silu(gate)).to(x.dtype))
    return outputs[0] if heads is None else torch.stack(outputs, 1)
