"""What a Mamba layer does between its outer maps: the calls against its operators' definitions,
with gradients, and what has to see the inside."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from longseq.core.errors import ArgumentError
from longseq.core.ops.backends import Backend
from longseq.core.ops.mamba_inner import Way, cpu, mamba_inner
from longseq.core.ops.mamba_inner.arguments import Arguments


def layer(
    length: int = 7,
    width: int = 12,
    states: int = 4,
    rank: int = 3,
    taps: int = 4,
    ways: int = 2,
    batch: int = 2,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, list[Way]]:
    torch.manual_seed(0)
    xz = torch.randn(batch, length, 2 * width, dtype=dtype)
    made = []
    for number in range(ways):
        low = nn.Linear(width, rank + 2 * states, bias=False, dtype=dtype)
        wide = nn.Linear(rank, width, bias=number != 1, dtype=dtype)
        bias = torch.randn(width, dtype=dtype) if number != 2 else None
        decays, skip = torch.randn(width, states, dtype=dtype), torch.randn(width, dtype=dtype)
        kernel = torch.randn(width, 1, taps, dtype=dtype)
        made.append(Way(kernel, bias, low, wide, decays, skip, number % 2 == 1))
    return xz, made


SHAPES = [
    {},
    {"length": 1},
    {"length": 3, "ways": 1},
    {"length": 33, "width": 5, "states": 1, "rank": 1, "taps": 1},
    {"length": 65, "width": 16, "states": 16, "rank": 2, "taps": 2, "ways": 3},
    {"length": 70, "width": 40, "states": 3, "rank": 7, "taps": 3, "batch": 1},
    {"length": 37, "width": 100, "states": 6, "rank": 12, "taps": 5},
    # Gradients go through wide layers in stretches: three of at most 128 positions, so that one has
    # both a later and an earlier one; and one of 64 with one of a single position.
    {"length": 300, "width": 1000, "states": 2, "rank": 3, "batch": 1},
    {"length": 65, "width": 1600, "states": 1, "rank": 1, "taps": 5},
    {"length": 65, "width": 1600, "states": 2, "rank": 1, "taps": 1, "ways": 3},
]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-13)])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_its_operators(
    shape: dict[str, int], dtype: torch.dtype, tolerance: float, isa: str
) -> None:
    xz, ways = layer(**shape, dtype=dtype)
    with torch.no_grad():
        assert cpu.reason(Arguments(xz, tuple(ways), 0.7)) is None
        found = mamba_inner(xz, ways, scale=0.7, backend="cpu")
        wanted = mamba_inner(
            xz.double(), [_double(way) for way in ways], scale=0.7, backend="reference"
        )
    assert found.dtype == dtype and found.is_contiguous()
    error = (found.double() - wanted).abs().max() / wanted.abs().max()
    assert error < tolerance


def _double(way: Way, dtype: torch.dtype = torch.float64) -> Way:
    maps = [copy.deepcopy(one).to(dtype) for one in (way.x_proj, way.dt_proj)]
    values = [None if t is None else t.to(dtype) for t in way[:2]]
    return Way(*values, *maps, way.A_log.to(dtype), way.D.to(dtype), way.reverse)


def _single(way: Way) -> Way:
    return _double(way, torch.float32)


def learnt(xz: Tensor, ways: list[Way]) -> tuple[Tensor, list[Way], list[Tensor]]:
    """Returns the same values as leaves that ask for gradients, and the leaves."""
    xz, made = xz.detach().clone().requires_grad_(), []
    leaves = [xz]
    for way in ways:
        own = [
            t if t is None else t.detach().clone().requires_grad_() for t in (*way[:2], *way[4:6])
        ]
        maps = [copy.deepcopy(one) for one in (way.x_proj, way.dt_proj)]
        made.append(Way(*own[:2], *maps, *own[2:], way.reverse))
        leaves += [t for t in own if t is not None]
        leaves += [t for one in maps for t in one.parameters()]
    return xz, made, leaves


def gradients(xz: Tensor, ways: list[Way], backend: Backend) -> tuple[Tensor, ...]:
    """Returns those of a fixed sum of the output, of all leaves."""
    xz, ways, leaves = learnt(xz, ways)
    y = mamba_inner(xz, ways, scale=0.7, backend=backend)
    torch.manual_seed(1)
    dy = torch.randn(y.shape, dtype=torch.float64).to(y.dtype)
    return torch.autograd.grad(y, leaves, dy)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-13)])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradients_equal_those_of_the_definition(
    shape: dict[str, int], dtype: torch.dtype, tolerance: float, isa: str
) -> None:
    xz, ways = layer(**shape, dtype=dtype)
    assert cpu.reason(Arguments(*learnt(xz, ways)[:2], 0.7)) is None
    found = gradients(xz, ways, "cpu")
    wanted = gradients(xz.double(), [_double(way) for way in ways], "reference")
    for one, other in zip(found, wanted, strict=True):
        # Of a single position the decays have no gradient at all.
        assert (one.double() - other).abs().max() <= tolerance * other.abs().max()
        assert one.dtype == dtype


def test_rows_and_threads_change_nothing() -> None:
    xz, ways = layer(length=67, width=48, batch=5)
    threads = torch.get_num_threads()

    def both(xz: Tensor) -> tuple[Tensor, Tensor]:
        xz = xz.detach().clone().requires_grad_()
        y = mamba_inner(xz, ways, backend="cpu")
        return y.detach(), torch.autograd.grad(y.square().sum(), xz)[0]

    whole = both(xz)
    alone = [both(xz[i : i + 1]) for i in range(5)]
    for one, parts in zip(whole, zip(*alone)):
        assert torch.equal(one, torch.cat(parts))
    with torch.no_grad():
        assert torch.equal(mamba_inner(xz, ways, backend="cpu"), whole[0])
    trained = gradients(xz, ways, "cpu")
    try:
        torch.set_num_threads(3)
        for one, other in zip(both(xz), whole):
            assert torch.equal(one, other)
        for one, other in zip(gradients(xz, ways, "cpu"), trained):
            assert torch.equal(one, other)
    finally:
        torch.set_num_threads(threads)


def test_gradients_of_some_leaves_alone() -> None:
    xz, ways = layer()
    wanted = gradients(xz, ways, "reference")
    xz, ways, leaves = learnt(xz, ways)
    for i in (0, 3, len(leaves) - 1):
        for k, leaf in enumerate(leaves):
            leaf.requires_grad_(k == i)
        y = mamba_inner(xz, ways, scale=0.7)
        torch.manual_seed(1)
        dy = torch.randn(y.shape, dtype=torch.float64)
        (found,) = torch.autograd.grad(y, leaves[i], dy)
        torch.testing.assert_close(found, wanted[i], rtol=1e-10, atol=1e-12)


def test_a_gradient_that_does_not_lie_dense_or_is_missing_is_read_right() -> None:
    xz, ways = layer()
    wanted = gradients(xz, ways, "reference")
    xz, ways, leaves = learnt(xz, ways)
    y = mamba_inner(xz, ways, scale=0.7)
    torch.manual_seed(1)
    dy = torch.randn(y.shape, dtype=torch.float64)
    turned = dy.mT.contiguous().mT
    for one, other in zip(torch.autograd.grad(y, leaves, turned, retain_graph=True), wanted):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
    (one,) = torch.autograd.grad(y.sum(), xz, retain_graph=True)  # a gradient without strides
    (other,) = torch.autograd.grad(y, xz, torch.ones_like(y))
    assert torch.equal(one, other)


def test_second_derivatives_are_those_of_the_definition() -> None:
    xz, ways = layer(length=5, width=3, states=2, rank=1)
    found = []
    for backend in ("auto", "reference"):
        given, made, leaves = learnt(xz, ways)
        y = mamba_inner(given, made, backend=backend)
        first = torch.autograd.grad(y.square().sum(), leaves, create_graph=True)
        found.append(torch.autograd.grad(sum(one.square().sum() for one in first), leaves))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_second_derivatives_are_of_the_weights_of_the_call() -> None:
    """A module may have others by then, as after torch.func.functional_call."""
    xz, ways, _ = learnt(*layer(length=5, width=3, states=2, rank=1))
    found = []
    for late in (False, True):
        y = mamba_inner(xz, ways)
        kept = ways[0].x_proj.weight
        if late:
            ways[0].x_proj.weight = nn.Parameter(torch.zeros_like(kept))
        (first,) = torch.autograd.grad(y.square().sum(), xz, create_graph=True)
        ways[0].x_proj.weight = kept
        found.append(torch.autograd.grad(first.square().sum(), xz)[0])
    assert torch.equal(*found)


def test_gradients_with_a_graph_count_a_shared_weight_once() -> None:
    """Of a weight of both directions, and of a layer that is called on what it gave."""
    xz, (way,), leaves = learnt(*layer(length=5, width=3, states=2, rank=1, ways=1))
    ways = [way, way._replace(reverse=True)]
    once = mamba_inner(xz, ways)
    for y in (once, mamba_inner(torch.cat([once, once.flip(1)], -1), ways)):
        wanted = torch.autograd.grad(y.square().sum(), leaves, retain_graph=True)
        found = torch.autograd.grad(y.square().sum(), leaves, create_graph=True)
        for one, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_transforms_and_the_compiler_take_its_operators() -> None:
    xz, ways = layer()
    xz, ways, _ = learnt(xz, ways)
    (wanted,) = torch.autograd.grad(mamba_inner(xz, ways).sum(), xz)
    found = torch.func.grad(lambda x: mamba_inner(x, ways).sum())(xz.detach())
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)
    with torch.autocast("cpu", torch.bfloat16):
        low = mamba_inner(xz.float(), [_single(way) for way in ways])
    assert low.requires_grad and low.dtype == torch.bfloat16


def test_a_nan_stays_in_its_row_of_the_batch() -> None:
    xz, ways = layer()
    xz = xz.clone()
    xz[0, 3, 2] = float("nan")
    xz.requires_grad_()
    found = mamba_inner(xz, ways, backend="cpu")
    assert found[0].isnan().any() and found[1].isfinite().all()
    (dxz,) = torch.autograd.grad(found.sum(), xz)
    assert dxz[0].isnan().any() and dxz[1].isfinite().all()


class Doubled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def test_maps_that_are_more_than_a_matrix_are_called() -> None:
    x, ways = layer()
    with torch.no_grad():
        plain = mamba_inner(x, ways)
        for name in ("x_proj", "dt_proj"):
            heard: list[int] = []
            handle = getattr(ways[1], name).register_forward_hook(
                lambda *_, seen=heard: seen.append(1)
            )
            torch.testing.assert_close(mamba_inner(x, ways), plain, rtol=1e-12, atol=1e-12)
            assert heard
            handle.remove()
            for told in (register_module_forward_hook, register_module_forward_pre_hook):
                heard.clear()
                handle = told(lambda *_, seen=heard: seen.append(1))
                torch.testing.assert_close(mamba_inner(x, ways), plain, rtol=1e-12, atol=1e-12)
                handle.remove()
                assert len(heard) == 4  # both maps of both ways
            twice = Doubled(1, 1, bias=False, dtype=torch.float64)
            twice.weight = nn.Parameter(getattr(ways[1], name).weight / 2)
            assert getattr(ways[1], name).bias is None
            changed = [ways[0], ways[1]._replace(**{name: twice})]
            torch.testing.assert_close(mamba_inner(x, changed), plain, rtol=1e-12, atol=1e-12)


def test_backward_hooks_of_a_map_are_called() -> None:
    xz, ways, leaves = learnt(*layer())
    wanted = torch.autograd.grad(mamba_inner(xz, ways).sum(), leaves)
    heard: list[int] = []
    handle = ways[1].x_proj.register_full_backward_hook(lambda *_: heard.append(1))
    found = torch.autograd.grad(mamba_inner(xz, ways).sum(), leaves)
    handle.remove()
    assert heard
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_what_the_kernel_does_not_take_says_why() -> None:
    xz, ways = layer()
    way = ways[0]
    reasons = {
        "float32 or": Arguments(xz.bfloat16(), (way,), 1.0),
        "dense channels": Arguments(xz.mT.contiguous().mT, (way,), 1.0),
        "do not fit": Arguments(xz, (way._replace(D=way.D[:5]),), 1.0),
        "dense weights": Arguments(xz, (way._replace(A_log=way.A_log.float()),), 1.0),
        "bias": Arguments(xz, (way._replace(x_proj=nn.Linear(12, 11).double()),), 1.0),
    }
    for said, call in reasons.items():
        assert said in (cpu.reason(call) or ""), said
    with torch.autocast("cpu", torch.bfloat16):
        assert "autocast" in (cpu.reason(Arguments(xz, (way,), 1.0)) or "")
    with torch.no_grad():
        empty = mamba_inner(xz[:0], ways)
    assert empty.shape == (0, 7, 12)


def test_wrong_arguments_are_named() -> None:
    xz, ways = layer()
    for arguments, message in (
        ((xz, []), "ways must be at least one"),
        ((xz[0], ways), "length ≥ 1"),
        ((xz[..., :3], ways), "24: input and gate of 12 channels"),
    ):
        with pytest.raises(ArgumentError, match=message):
            mamba_inner(*arguments)
