r"""A gated linear recurrence along several orders of a map: a convolution whose window is the map.

    v, f_1 … f_K = split(W x + b);   h_k[t] = σ(f_k[t]) h_k[t-1] + (1 - σ(f_k[t])) v[t]

along order k, and y = Σ_k h_k. The gates are those of minGRU (Feng et al. 2024, arXiv 2410.01201)
and HGRN (Qin et al. 2023, arXiv 2311.04823): they depend on the input alone, so that the recurrence
is a linear scan.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longseq.core.checks import check_positive
from longseq.core.kernels.custom_op import gradients_of, in_forward_mode, in_transform, several
from longseq.core.ops.linear_scan import linear_scan
from longseq.vision.models.scan2d import along, back, scan_order

BOTH = ("raster", "raster_reversed")
"""The orders that a loop takes."""

FEW = 64
"""Positions up to which a loop over them trains faster than scans do."""


class _BothWays(torch.autograd.Function):
    """The recurrences forwards and backwards over few positions, one after another: nothing is
    turned round, gathered or kept that need not be. (B, L, 3 C), values and gates, to (B, L, C)."""

    @staticmethod
    def forward(ctx: Any, mixed: Tensor) -> Tensor:
        batch, length, width = mixed.shape
        wide = torch.promote_types(mixed.dtype, torch.float32)
        parts = mixed.new_empty((length, batch, width), dtype=wide).copy_(mixed.transpose(0, 1))
        parts[:, :, width // 3 :].sigmoid_()
        value, *keep = parts.split(width // 3, dim=2)
        states = parts.new_empty((2, length, *value.shape[1:]))
        for way, (decays, found) in enumerate(zip(keep, states)):
            state = torch.zeros_like(found[0])
            times = range(length) if way == 0 else range(length - 1, -1, -1)
            for t in times:
                state = torch.lerp(value[t], state, decays[t], out=found[t])
        ctx.save_for_backward(mixed, parts, states)
        total = (states[0] + states[1]).transpose(0, 1)
        return mixed.new_empty(total.shape).copy_(total)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        mixed, parts, states = ctx.saved_tensors
        # The gradient is to have one itself, or cannot be written into memory.
        if torch.is_grad_enabled() or several(dy):
            (found,) = gradients_of(lambda one: _scans(one[:, None], BOTH)[:, 0], [mixed], [dy])
            return found
        value, *keep = parts.split(parts.shape[2] // 3, dim=2)
        length = len(value)
        given = torch.empty_like(states[0]).copy_(dy.transpose(0, 1))
        dparts, grads = torch.empty_like(parts), torch.empty_like(states[0])
        dvalue, *dkeep = dparts.split(value.shape[2], dim=2)
        for way, (decays, dgates, found) in enumerate(zip(keep, dkeep, states)):
            step = 1 if way == 0 else -1
            first, last = (0, length - 1) if way == 0 else (length - 1, 0)
            later = grads[last].copy_(given[last])
            for t in range(last - step, first - step, -step):
                later = torch.addcmul(given[t], decays[t + step], later, out=grads[t])
            inner = slice(1, None) if way == 0 else slice(None, -1)
            before = slice(None, -1) if way == 0 else slice(1, None)
            torch.sub(found[before], value[inner], out=dgates[inner])
            torch.neg(value[first], out=dgates[first])
            dgates.mul_(grads)
            torch.ops.aten.sigmoid_backward.grad_input(dgates, decays, grad_input=dgates)
            if way == 0:
                torch.addcmul(grads, grads, decays, value=-1, out=dvalue)
            else:
                dvalue.add_(grads).addcmul_(grads, decays, value=-1)
        flat = dparts.transpose(0, 1)
        return flat.new_empty(flat.shape, dtype=mixed.dtype).copy_(flat)


def _scans(mixed: Tensor, orders: Sequence[str]) -> Tensor:
    """Returns the recurrences along orders of a map, (B, H, W, (1 + K) C) to (B, H, W, C)."""
    height, breadth, parts = mixed.shape[1], mixed.shape[2], 1 + len(orders)
    wide = mixed.to(torch.promote_types(mixed.dtype, torch.float32))
    wide = wide.unflatten(3, (parts, mixed.shape[3] // parts))
    value, keep = wide[:, :, :, :1], torch.sigmoid(wide[:, :, :, 1:])
    inputs = torch.addcmul(value, keep, value, value=-1)
    total: Tensor | None = None
    for decays, arrives, order in zip(keep.unbind(3), inputs.unbind(3), orders):
        states, _ = linear_scan(along(decays, order), along(arrives, order))
        one = back(states, order, height, breadth)
        total = one if total is None else total + one
    assert total is not None
    return total.to(mixed.dtype)


class GatedRecurrence2d(nn.Module):
    """The recurrence over a map: (B, C, H, W) to the same shape, every position seeing all others.

    Args:
        channels: C.
        orders: scan orders, see ``scan2d.list_orders``.
    """

    no_decay_parameters: ClassVar[tuple[str, ...]] = ("proj.bias",)

    def __init__(
        self, channels: int, orders: Sequence[str] = ("raster", "raster_reversed")
    ) -> None:
        super().__init__()
        self.channels, self.orders = check_positive("channels", channels), tuple(orders)
        for name in self.orders:
            scan_order(name, 1, 1)  # an unknown name fails here, not at the first batch
        self.proj = nn.Conv2d(channels, channels * (1 + len(self.orders)), 1)
        with torch.no_grad():
            # Channels begin with memories of 1.1 to 20 positions.
            gates = self.proj.bias.view(-1, channels)
            gates[0], gates[1:] = 0.0, torch.linspace(-2, 3, channels)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W)."""
        # As a linear map: a convolution of one pixel takes several times as long to train on a CPU.
        mixed = F.linear(x.permute(0, 2, 3, 1), self.proj.weight.flatten(1), self.proj.bias)
        if self._few(mixed):
            y = _BothWays.apply(mixed.flatten(1, 2)).unflatten(1, mixed.shape[1:3])
        else:
            y = _scans(mixed, self.orders)
        return y.permute(0, 3, 1, 2)

    def _few(self, mixed: Tensor) -> bool:
        """Returns whether ``_BothWays`` is to train it, on a CPU and eagerly."""
        return (
            self.orders == BOTH
            and mixed.device.type == "cpu"
            and mixed.requires_grad
            and not torch.compiler.is_compiling()
            and not torch.jit.is_tracing()
            and not in_transform()
            and not in_forward_mode()
            and 0 < mixed.shape[1] * mixed.shape[2] <= FEW
        )
