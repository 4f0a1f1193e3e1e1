"""The selective scan's recurrence written out, one step at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from longseq.core.ops.precision import compute_dtype
from longseq.core.ops.selective_scan.arguments import (
    Arguments,
    Path,
    check_low_rank,
    checked,
    checked_path,
)


def selective_scan_reference(
    *arguments: Any,
    reverse: bool = False,
    height: int = 0,
    add: Tensor | None = None,
    delta_weight: Tensor | None = None,
    **named: Any,
) -> tuple[Tensor, Tensor]:
    """The recurrence written out, one step at a time; takes and returns as ``selective_scan``.

    Args:
        *arguments: those of ``selective_scan`` in its order, but the backend.
        reverse: as there.
        height: as there.
        add: as there.
        delta_weight: as there.
        **named: the others by name.
    """
    x = Arguments(*arguments, **named)
    if delta_weight is not None:
        check_low_rank(x.u, x.delta, delta_weight)
        x = x._replace(delta=widened(x.delta, delta_weight))
    call = checked(x)
    return along(call, checked_path(call, Path(reverse, height, add)), run)


def widened(delta: Tensor, weight: Tensor) -> Tensor:
    """Returns step sizes (B, L, D) of low-rank ones (B, L, R) and their rows (D, R)."""
    dtype = torch.promote_types(delta.dtype, weight.dtype)
    delta, weight = delta.to(dtype), weight.to(dtype)
    if not torch.is_grad_enabled() or delta.device.type != "cpu" or torch.compiler.is_compiling():
        return F.linear(delta, weight)
    # Autograd's products follow how these lie in memory: with few columns they take up to ten times
    # as long as with few rows.
    columns = delta.flatten(0, 1).t().contiguous().t()
    return (columns @ weight.t().contiguous()).unflatten(0, delta.shape[:2])


def along(
    x: Arguments, path: Path, scan: Callable[[Arguments], tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor]:
    """Runs a checked call along a path by a scan that knows none: positions are laid out in the
    order of the path, and the output is put back.

    Args:
        x: the call.
        path: its checked path.
        scan: the scan.
    """
    reverse, height, add = path

    def there(t: Tensor) -> Tensor:
        t = t.unflatten(1, (height, -1)).transpose(1, 2).flatten(1, 2) if height else t
        return t.flip(1) if reverse else t

    def back(t: Tensor) -> Tensor:
        t = t.flip(1) if reverse else t
        return t.unflatten(1, (-1, height)).transpose(1, 2).flatten(1, 2) if height else t

    z, wide = x.z, compute_dtype(x.u, x.A)
    moved = x._replace(
        u=there(x.u if add is None else x.u.to(wide)),  # rounded once, after the sum
        delta=there(x.delta),
        B=there(x.B),
        C=there(x.C),
        z=None if z is None or add is not None else there(z),
        resets=None if x.resets is None else there(x.resets),
    )
    y, final = scan(moved)
    y = back(y)
    if add is not None:
        y = y + add.to(wide)
        y = y if z is None else y * F.silu(z.to(wide))
    return y.to(x.u.dtype), final


def run(x: Arguments) -> tuple[Tensor, Tensor]:
    """Runs a checked call."""
    u, delta, A, B, C, D, z, delta_bias, initial_state, resets, delta_softplus = x
    dtype = compute_dtype(u, A)
    cdtype = torch.promote_types(dtype, torch.complex64) if A.is_complex() else dtype
    batch, _, width = u.shape
    groups = B.shape[2] if B.dim() == 4 else 1
    value, dt = u.to(dtype), delta.to(dtype)
    if delta_bias is not None:
        dt = dt + delta_bias.to(dtype)
    if delta_softplus:
        # torch's default, 20, is off by 2e-9 there: much in float64
        dt = F.softplus(dt, threshold=40.0)
    A = A.to(cdtype)
    if initial_state is None:
        h = torch.zeros(batch, width, A.shape[1], dtype=cdtype, device=u.device)
    else:
        h = initial_state.to(cdtype)

    def per_channel(m: Tensor) -> Tensor:  # (B, G, N) or (B, N) to (B, D, N)
        m = m.reshape(batch, groups, 1, A.shape[1]).to(cdtype)
        return m.expand(-1, -1, width // groups, -1).reshape(batch, width, A.shape[1])

    steps = zip(value.unbind(1), dt.unbind(1), B.unbind(1), C.unbind(1))
    outputs = []
    for t, (x_t, dt_t, B_t, C_t) in enumerate(steps):
        if resets is not None:
            h = torch.where(resets[:, t, None, None], torch.zeros_like(h), h)
        h = torch.exp(dt_t.unsqueeze(-1) * A) * h + (dt_t * x_t).unsqueeze(-1) * per_channel(B_t)
        y_t = (per_channel(C_t) * h).sum(-1)
        outputs.append(2 * y_t.real if y_t.is_complex() else y_t)
    y = torch.stack(outputs, 1)
    if D is not None:
        y = y + value * D.to(dtype)
    if z is not None:
        y = y * F.silu(z.to(dtype))
    return y.to(u.dtype), h
