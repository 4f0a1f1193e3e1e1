"""cross_scan against its selective scans one by one: values, gradients, paths, sizes, layouts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from longseq.core.errors import ArgumentError
from longseq.core.ops.cross_scan import Way, cross_scan


def four(height: int) -> tuple[Way, ...]:
    return tuple(Way(reverse, h) for reverse in (False, True) for h in (0, height))


def make(
    batch: int,
    length: int,
    width: int,
    states: int,
    rank: int,
    ways: int,
    dtype: torch.dtype = torch.float64,
) -> list[Tensor]:
    g = torch.Generator().manual_seed(batch + length + width + states + rank)

    def new(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)

    given = [
        new(batch, length, width),
        new(batch, length, ways, rank + 2 * states),
        new(ways, width, rank) / rank**0.5,
        new(ways, width),
        -new(ways, width, states).exp(),
        new(ways, width),
    ]
    return [t.requires_grad_() for t in given]


def gradients(given: list[Tensor], ways: tuple[Way, ...], backend: Any) -> list[Tensor]:
    y = cross_scan(*given, ways, backend=backend)
    weights = torch.linspace(0, 9, y.numel(), dtype=y.dtype).sin().view_as(y)
    return [y, *torch.autograd.grad((y * weights).sum(), given)]


SIZES = [
    (2, 12, 16, 1, 1, 4),
    (1, 49, 40, 1, 3, 6),
    (2, 35, 20, 2, 2, 5),
    (1, 66, 37, 4, 5, 6),
    (3, 1, 8, 1, 2, 1),
    (1, 7, 1, 1, 1, 7),
]


@pytest.mark.parametrize(("batch", "length", "width", "states", "rank", "height"), SIZES)
@pytest.mark.parametrize("threads", [1, 2])
def test_equals_the_reference(
    batch: int, length: int, width: int, states: int, rank: int, height: int, threads: int
) -> None:
    height = height if length % height == 0 else 1
    given, ways = make(batch, length, width, states, rank, 4), four(height)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = gradients(given, ways, "cpu")
    finally:
        torch.set_num_threads(before)
    for a, e in zip(found, gradients(given, ways, "reference")):
        torch.testing.assert_close(a, e, rtol=1e-11, atol=1e-11 * max(1, e.abs().max().item()))
    with torch.no_grad():
        assert torch.equal(cross_scan(*given, ways, backend="cpu"), found[0])


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("states", [1, 3])
def test_float32_in_every_instruction_set(states: int) -> None:
    given = make(2, 196, 48, states, 3, 4, torch.float32)
    wide = [t.detach().double().requires_grad_() for t in given]
    found = gradients(given, four(14), "cpu")
    for a, e in zip(found, gradients(wide, four(14), "cpu")):
        # Sums over 392 positions of rounded terms.
        bound = 392**0.5 * 16 * 2.0**-24 * max(1.0, e.abs().max().item())
        torch.testing.assert_close(a.double(), e, rtol=0, atol=bound)


def test_ways_of_any_number_and_order() -> None:
    for ways in ((Way(True, 0),), (Way(False, 3), Way(False, 3)), (Way(True, 4), *four(3))):
        given = make(2, 12, 18, 1, 2, len(ways))
        for a, e in zip(gradients(given, ways, "cpu"), gradients(given, ways, "reference")):
            torch.testing.assert_close(a, e, rtol=1e-11, atol=1e-11)


def test_memory_of_any_layout() -> None:
    given, ways = make(2, 12, 18, 1, 2, 4), four(3)
    wanted = gradients(given, ways, "cpu")
    turned = [
        t.detach().transpose(0, -1).contiguous().transpose(0, -1).requires_grad_() for t in given
    ]
    for a, e in zip(gradients(turned, ways, "cpu"), wanted):
        torch.testing.assert_close(a, e, rtol=1e-12, atol=1e-12)
    y = cross_scan(*given, ways, backend="cpu")
    dy = torch.randn(2, 18, 12, dtype=torch.float64).mT  # of an output that was turned round
    (a,) = torch.autograd.grad(y, given[0], dy, retain_graph=True)
    (e,) = torch.autograd.grad(y, given[0], dy.contiguous())
    torch.testing.assert_close(a, e, rtol=1e-12, atol=1e-12)
    (a,) = torch.autograd.grad(cross_scan(*given, ways, backend="cpu").sum(), given[0])
    (e,) = torch.autograd.grad(cross_scan(*given, ways, backend="reference").sum(), given[0])
    torch.testing.assert_close(a, e, rtol=1e-11, atol=1e-11)


def test_rows_of_a_batch_do_not_see_each_other() -> None:
    given, ways = make(3, 12, 18, 1, 2, 4), four(3)
    with torch.no_grad():
        y = cross_scan(*given, ways, backend="cpu")
        one = cross_scan(given[0][1:2], given[1][1:2], *given[2:], ways, backend="cpu")
    assert torch.equal(y[1:2], one)


def test_what_is_not_learnt_gets_no_gradient() -> None:
    given, ways = make(1, 12, 18, 1, 2, 4), four(3)
    for one in given[2:]:
        one.requires_grad_(False)
    y = cross_scan(*given, ways, backend="cpu")
    y.sum().backward()
    assert given[0].grad is not None and all(one.grad is None for one in given[2:])


def test_second_derivatives() -> None:
    given, ways = make(1, 6, 3, 1, 2, 2), (Way(False, 0), Way(True, 2))
    assert torch.autograd.gradgradcheck(lambda *t: cross_scan(*t, ways, backend="cpu"), given)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_lower_precisions_go_scan_by_scan(dtype: torch.dtype) -> None:
    given, ways = make(1, 12, 18, 1, 2, 4, torch.float32), four(3)
    with torch.no_grad():
        low = [t.to(dtype) for t in given[:3]] + [t.float() for t in given[3:]]
        y = cross_scan(*low, ways)
        wanted = cross_scan(*given, ways, backend="reference")
    assert y.dtype == dtype
    # Each of four sums is rounded to the dtype, and so are the arguments.
    bound = 32 * torch.finfo(dtype).eps * wanted.abs().max().item()
    torch.testing.assert_close(y.float(), wanted, rtol=0, atol=bound)


def test_wrong_arguments_are_named() -> None:
    given = [t.detach() for t in make(1, 12, 18, 1, 2, 4)]
    for at, name in ((1, "low"), (2, "weight"), (3, "bias"), (4, "A"), (5, "D")):
        wrong = [t[..., :-1] if i == at and at != 2 else t for i, t in enumerate(given)]
        wrong[2] = wrong[2][:-1] if at == 2 else wrong[2]
        if at == 4:
            wrong[4] = given[4][:, :-1]
        with pytest.raises(ArgumentError, match=rf"cross_scan: {name} must be"):
            cross_scan(*wrong, four(3))
    with pytest.raises(ArgumentError, match="height must divide"):
        cross_scan(*given, four(5))
    with pytest.raises(ArgumentError, match="at least one way"):
        cross_scan(*given, ())


def test_a_transform_or_mode_around_the_backward_alone() -> None:
    given, ways = make(2, 12, 18, 1, 2, 4), four(3)
    y = cross_scan(*given, ways, backend="cpu")
    wanted = torch.autograd.grad(y.sum(), given, retain_graph=True)

    def pull(dy: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(y, given, dy, retain_graph=True)

    both = torch.func.vmap(pull)(torch.stack([torch.ones_like(y), -torch.ones_like(y)]))
    for a, e in zip(both, wanted):
        torch.testing.assert_close(a, torch.stack([e, -e]), rtol=1e-11, atol=1e-11)
    with FlopCounterMode(display=False) as counted:
        found = pull(torch.ones_like(y))
    assert counted.get_total_flops() > 0
    for a, e in zip(found, wanted):
        torch.testing.assert_close(a, e, rtol=1e-11, atol=1e-11)


def test_autocast_around_the_backward_lowers_nothing() -> None:
    given, ways = make(2, 12, 18, 1, 2, 4, torch.float32), four(3)
    y = cross_scan(*given, ways, backend="cpu")
    wanted = torch.autograd.grad(y.sum(), given, retain_graph=True, create_graph=True)
    with torch.autocast("cpu", torch.bfloat16):
        found = torch.autograd.grad(y.sum(), given, retain_graph=True, create_graph=True)
        direct = torch.autograd.grad(y.sum(), given)
    for a, d, e in zip(found, direct, wanted):
        assert torch.equal(a, e)
        torch.testing.assert_close(d, e, rtol=1e-4, atol=1e-4)
