"""The gated recurrence over a map: its definition, every order, and its gradient."""

from __future__ import annotations

import pytest
import torch

from longseq.vision.models import recurrence2d
from longseq.vision.models.recurrence2d import GatedRecurrence2d, along, back
from longseq.vision.models.scan2d import list_orders, scan_order


@pytest.mark.parametrize("order", list_orders())
def test_along_is_the_scan_order_and_back_undoes_it(order: str) -> None:
    x = torch.randn(2, 3, 5, 4)
    sequence = along(x, order)
    assert torch.equal(sequence, x.flatten(1, 2)[:, torch.from_numpy(scan_order(order, 3, 5))])
    assert torch.equal(back(sequence, order, 3, 5), x)


@pytest.mark.parametrize("orders", [("raster",), ("raster", "column_reversed", "snake")])
def test_it_is_the_recurrence_written_out(orders) -> None:
    torch.manual_seed(0)
    layer, x = GatedRecurrence2d(6, orders).double(), torch.randn(2, 6, 3, 4).double()
    value, *gates = layer.proj(x).split(6, 1)
    expected = torch.zeros_like(x)
    for gate, name in zip(gates, orders):
        keep, state = torch.sigmoid(gate).flatten(2), torch.zeros(2, 6).double()
        for position in scan_order(name, 3, 4).tolist():
            here = keep[..., position]
            state = here * state + (1 - here) * value.flatten(2)[..., position]
            expected.flatten(2)[..., position] += state
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)


def test_its_gradient() -> None:
    torch.manual_seed(0)
    layer = GatedRecurrence2d(3, ("raster", "raster_reversed")).double()
    x = torch.randn(1, 3, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, x)


@pytest.mark.parametrize("shape", [(3, 4), (1, 1), (1, 5), (2, 1), (8, 8), (11, 9)])
def test_both_ways_over_the_map_as_it_lies_are_the_scans(shape) -> None:
    torch.manual_seed(0)
    layer = GatedRecurrence2d(5).double()
    x = torch.randn(3, 5, *shape, dtype=torch.float64, requires_grad=True)
    mixed = layer.proj(x).permute(0, 2, 3, 1)
    scans = recurrence2d._scans(mixed, recurrence2d.BOTH).permute(0, 3, 1, 2)
    dy = torch.arange(scans.numel()).view_as(scans).double().cos()
    found, wanted = (
        (y, *torch.autograd.grad(y, [x, *layer.parameters()], dy)) for y in (layer(x), scans)
    )
    for one, other in zip(found, wanted):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_several_gradients_at_once() -> None:
    layer, x = GatedRecurrence2d(3).double(), torch.randn(1, 3, 2, 3).double().requires_grad_()
    y, many = layer(x), torch.randn(4, 1, 3, 2, 3).double()
    (found,) = torch.autograd.grad(y, x, many, is_grads_batched=True, retain_graph=True)
    for one, dy in zip(found, many):
        (wanted,) = torch.autograd.grad(y, x, dy, retain_graph=True)
        torch.testing.assert_close(one, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("orders", [recurrence2d.BOTH, ("column",)])
def test_its_gradient_has_a_gradient_and_a_tangent(orders) -> None:
    torch.manual_seed(0)
    layer = GatedRecurrence2d(3, orders).double()
    x = torch.randn(1, 3, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(layer, x)
    direction = torch.randn_like(x)
    with torch.autograd.forward_ad.dual_level():
        dual = layer(torch.autograd.forward_ad.make_dual(x.detach(), direction))
        found = torch.autograd.forward_ad.unpack_dual(dual).tangent
    near, far = layer(x - 1e-6 * direction), layer(x + 1e-6 * direction)
    torch.testing.assert_close(found, (far - near) / 2e-6, rtol=1e-6, atol=1e-8)


def test_a_trace_takes_other_images() -> None:
    layer, other = GatedRecurrence2d(3), torch.randn(1, 3, 2, 3)
    traced = torch.jit.trace(layer, torch.randn(1, 3, 2, 3))
    torch.testing.assert_close(traced(other), layer(other))


def test_it_trains_inside_transforms() -> None:
    layer, x = GatedRecurrence2d(4), torch.randn(2, 4, 3, 3)
    weights = dict(layer.named_parameters())

    def loss(weights, x):
        return torch.func.functional_call(layer, weights, (x,)).square().sum()

    layer(x).square().sum().backward()
    for found in (torch.func.grad(loss)(weights, x), torch.vmap(torch.func.grad(loss), (None, 0))):
        if not isinstance(found, dict):
            found = {name: rows.sum(0) for name, rows in found(weights, x[:, None]).items()}
        for name, value in found.items():
            torch.testing.assert_close(value, weights[name].grad, rtol=1e-4, atol=1e-5)


def test_bfloat16_keeps_its_state_in_float32() -> None:
    torch.manual_seed(0)
    layer, x = GatedRecurrence2d(8), torch.randn(1, 8, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    assert (y.float() - layer(x)).abs().max() < 0.1
