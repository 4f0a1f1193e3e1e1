"""The selective scan backwards, down the columns of a grid, and joined to a sum before its gate."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from longseq.core import _cpu
from longseq.core.errors import ArgumentError
from longseq.core.ops.selective_scan import selective_scan, selective_scan_reference

PATHS = [(True, 0), (False, 1), (False, 5), (True, 7), (True, 35), (False, 35)]
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


def make(
    length: int = 35,
    width: int = 20,
    states: int = 3,
    given: str = "Dzbira",
    dtype: torch.dtype = torch.float64,
    batch: int = 2,
) -> dict[str, Any]:
    """Arguments; ``given`` as in test_selective_scan.py, "a" for what is added, "g" for groups."""
    g = torch.Generator().manual_seed(length + width)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)

    rows, complex_ = (batch, length, width), "c" in given
    maps = (batch, length, 2, states) if "g" in given else (batch, length, states)
    decay = -normal(width, states).exp()
    kwargs: dict[str, Any] = {"delta_softplus": True, "u": normal(*rows), "delta": normal(*rows)}
    wide = (lambda t: torch.complex(t, normal(*t.shape))) if complex_ else (lambda t: t)
    kwargs |= {"A": wide(decay), "B": wide(normal(*maps)), "C": wide(normal(*maps))}
    for letter, name in (("z", "z"), ("a", "add")):
        if letter in given:
            kwargs[name] = normal(*rows)
    for letter, name in (("D", "D"), ("b", "delta_bias")):
        if letter in given:
            kwargs[name] = normal(width)
    if "i" in given:
        kwargs["initial_state"] = wide(normal(batch, width, states))
    if "r" in given:
        kwargs["resets"] = torch.rand(batch, length, generator=g) < 0.1
    return kwargs


def low_rank(kwargs: dict[str, Any], rank: int) -> dict[str, Any]:
    """The same call with step sizes of a rank: strided, as a split leaves them, and their rows."""
    g = torch.Generator().manual_seed(rank)
    batch, length, width = kwargs["u"].shape
    like: dict[str, Any] = {"generator": g, "dtype": kwargs["u"].dtype}
    narrow = torch.randn(batch, length, rank + 3, **like)[..., 1 : rank + 1]
    return kwargs | {"delta": narrow, "delta_weight": torch.randn(width, rank, **like)}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("reverse", "height"), [(False, 0), *PATHS])
@pytest.mark.parametrize("states", [1, 3, 16])
@pytest.mark.parametrize("rank", [1, 5])
def test_step_sizes_of_low_rank(
    rank: int, states: int, reverse: bool, height: int, dtype: torch.dtype
) -> None:
    for width, given in ((20, "Dzbira"), (64, ""), (64, "gDzb")):
        kwargs = low_rank(make(35, width, states, given, dtype), rank)
        kwargs |= {"reverse": reverse, "height": height}
        y, state = selective_scan(**kwargs, backend="cpu")  # no gradient: the kernel widens them
        exact, final = selective_scan_reference(**kwargs)
        bound = TOLERANCE[dtype] * max(1, float(exact.abs().max()))
        torch.testing.assert_close(y, exact, rtol=TOLERANCE[dtype], atol=bound)
        torch.testing.assert_close(state, final, rtol=TOLERANCE[dtype], atol=bound)


def test_low_rank_is_the_same_with_gradients_and_half_types_and_refuses_other_shapes() -> None:
    kwargs = low_rank(make(given="Dzb"), 4)
    weight = kwargs["delta_weight"].requires_grad_()
    y, _ = selective_scan(**kwargs)
    wide = kwargs | {"delta": kwargs["delta"] @ weight.T}
    del wide["delta_weight"]
    expected, _ = selective_scan(**wide)
    torch.testing.assert_close(y, expected)
    found, wanted = (torch.autograd.grad(v.square().sum(), weight)[0] for v in (y, expected))
    torch.testing.assert_close(found, wanted)
    low = {
        name: value.detach().bfloat16() if name in ("u", "delta", "B", "C", "z") else value
        for name, value in kwargs.items()
    }
    for name in ("A", "D", "delta_bias", "delta_weight"):
        low[name] = low[name].detach().float()
    y, _ = selective_scan(**low)
    exact, _ = selective_scan_reference(
        **{k: v.double() if isinstance(v, Tensor) else v for k, v in low.items()}
    )
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.double(), exact, rtol=2**-7, atol=2**-7 * float(exact.abs().max()))
    for bad in ({"delta_weight": weight[:3]}, {"delta": kwargs["u"]}, {"delta_weight": weight[0]}):
        with pytest.raises(ArgumentError, match=r"selective_scan: (delta|u)"):
            selective_scan(**kwargs | bad)


def results(function: Any, kwargs: dict[str, Any], dtype: torch.dtype | None) -> dict[str, Tensor]:
    """Output, final state, and the gradients of a weighted sum of both; in ``dtype`` if given."""
    leaves = dict(kwargs)
    for name, value in kwargs.items():
        if isinstance(value, Tensor) and value.dtype != torch.bool:
            if dtype is not None:
                value = value.to(
                    torch.promote_types(dtype, torch.complex64) if value.is_complex() else dtype
                )
            leaves[name] = value.detach().requires_grad_()
    y, state = function(**leaves)
    g = torch.Generator().manual_seed(1)
    weights = torch.randn(y.shape, generator=g).to(y.dtype)
    parts = torch.view_as_real(state) if state.is_complex() else state
    names = [n for n, leaf in leaves.items() if isinstance(leaf, Tensor) and leaf.requires_grad]
    grads = torch.autograd.grad(
        [y, parts.sin().sum()], [leaves[n] for n in names], [weights, torch.ones_like(parts.sum())]
    )
    return {"y": y.detach(), "state": state.detach(), **dict(zip(names, grads))}


@pytest.mark.parametrize(("reverse", "height"), PATHS)
@pytest.mark.parametrize("given", ["Dzbira", "ra", "zgi", "Dac", ""])
def test_every_kernel_against_the_reference(reverse: bool, height: int, given: str) -> None:
    kwargs = {**make(given=given), "reverse": reverse, "height": height}
    expected = results(selective_scan_reference, kwargs, torch.float64)
    before = _cpu.isa()
    for isa in _cpu.available_isas():
        _cpu.select_isa(isa)
        for dtype, tolerance in TOLERANCE.items():
            found = results(selective_scan, kwargs, dtype)
            for name, value in expected.items():
                error = (found[name] - value).abs().max() / value.abs().max()
                assert error <= tolerance, (isa, dtype, name, error)
    _cpu.select_isa(before)


@pytest.mark.parametrize(
    ("length", "height", "width"), [(1, 0, 16), (1, 1, 5), (100, 10, 48), (64, 2, 33)]
)
@pytest.mark.parametrize("given", ["Dzbiar", "ba", "D"])
def test_one_state_per_channel(length: int, height: int, width: int, given: str) -> None:
    for reverse in (False, True):
        kwargs = make(length, width, 1, given) | {"reverse": reverse, "height": height}
        expected = results(selective_scan_reference, kwargs, torch.float64)
        before = _cpu.isa()
        for isa in _cpu.available_isas():
            _cpu.select_isa(isa)
            for dtype, tolerance in TOLERANCE.items():
                for name, value in results(selective_scan, kwargs, dtype).items():
                    scale = expected[name].abs().max().clamp(min=1e-30)
                    error = (value - expected[name]).abs().max() / scale
                    assert error <= tolerance, (isa, dtype, name, error)
        _cpu.select_isa(before)


def test_a_path_is_the_plain_scan_of_rearranged_positions() -> None:
    kwargs = make(35, given="Dzbi")
    rows = ("u", "delta", "B", "C", "z")
    for height in (0, 5):
        order = torch.arange(35)
        if height:
            order = order.view(height, -1).t().reshape(-1)
        order = order.flip(0)
        moved = {k: v[:, order].contiguous() if k in rows else v for k, v in kwargs.items()}
        y, state = selective_scan(**kwargs, reverse=True, height=height)
        there, last = selective_scan(**moved)
        assert torch.equal(y[:, order], there) and torch.equal(state, last)
    y, _ = selective_scan(**kwargs, height=1)  # the columns of one row are the row
    assert torch.equal(y, selective_scan(**kwargs)[0])


@pytest.mark.parametrize("layout", ["transposed", "sliced", "expanded"])
def test_any_layout_of_memory(layout: str) -> None:
    kwargs = make(35, 18, given="Dzbira", dtype=torch.float32)

    def lay(t: Tensor) -> Tensor:
        if layout == "transposed":
            return t.transpose(1, 2).contiguous().transpose(1, 2)
        if layout == "expanded":
            return t[:1].expand_as(t)
        return torch.cat([t, t], -1)[..., : t.shape[-1]]

    for name in ("u", "delta", "B", "C", "z", "add"):
        kwargs[name] = lay(kwargs[name])
    for reverse, height in PATHS:
        kwargs |= {"reverse": reverse, "height": height}
        expected = results(selective_scan_reference, kwargs, torch.float64)
        for name, value in results(selective_scan, kwargs, None).items():
            error = (value - expected[name]).abs().max() / expected[name].abs().max()
            assert error <= 1e-5, (name, error)


def test_half_precision_is_rounded_once_after_the_sum() -> None:
    kwargs = make(given="Dzbia") | {"reverse": True, "height": 7}
    for name in ("u", "delta", "B", "C", "z", "add"):
        kwargs[name] = kwargs[name].bfloat16()
    kwargs = {
        k: v.float() if isinstance(v, Tensor) and v.dtype == torch.float64 else v
        for k, v in kwargs.items()
    }
    exact = results(selective_scan_reference, kwargs, torch.float64)
    for function in (selective_scan, selective_scan_reference):
        found = results(function, kwargs, None)
        assert found["y"].dtype == found["add"].dtype == torch.bfloat16
        for name, value in exact.items():
            rounding = torch.finfo(found[name].dtype).eps / 2
            allowed = rounding * value.abs() + 2e-5 * value.abs().max()
            # what is weighted, the gradient of y, was rounded too
            wide = allowed if name in ("y", "state") else allowed + 2**-8 * value.abs().max()
            assert ((found[name] - value).abs() <= wide).all(), name


def test_transforms_compilers_and_autocast_see_it() -> None:
    kwargs = make(12, 4, 2, "Dza", torch.float32) | {"reverse": True, "height": 3}
    y, _ = selective_scan(**kwargs)

    def run(u: Tensor, add: Tensor) -> Tensor:
        return selective_scan(**{**kwargs, "u": u, "add": add})[0]

    u, add = kwargs["u"], kwargs["add"]
    several = torch.func.vmap(run)(torch.stack([u, 2 * u]), torch.stack([add, -add]))
    torch.testing.assert_close(several[0], y)
    torch.testing.assert_close(several[1], run(2 * u, -add))
    compiled = torch.compile(run, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(u, add), y)
    value, slope = torch.func.jvp(run, (u, add), (u, torch.zeros_like(add)))
    torch.testing.assert_close(value, y)
    torch.testing.assert_close(slope, y - run(0 * u, add), rtol=1e-4, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        low, last = selective_scan(**kwargs)
    assert low.dtype == torch.bfloat16 and last.dtype == torch.float32
    torch.testing.assert_close(low.float(), y, rtol=0.05, atol=0.05)


def test_what_does_not_fit_is_named() -> None:
    kwargs = make(12, 4, 2, "D")
    for height in (5, -3, 24):
        with pytest.raises(ArgumentError, match=r"^selective_scan: height must divide the 12 "):
            selective_scan(**kwargs, height=height)
    for add in (torch.zeros(2, 12, 3), torch.zeros(2, 12, 4, dtype=torch.int64), 1.0):
        with pytest.raises(ArgumentError, match=r"^selective_scan: add "):
            selective_scan(**kwargs, add=add)
    with pytest.raises(ArgumentError, match=r"^selective_scan: .*add"):
        selective_scan(**kwargs, add=torch.zeros(2, 12, 4, device="meta"))
    empty = make(12, 4, 2, "a", batch=0)
    assert selective_scan(**empty, reverse=True)[0].shape == (0, 12, 4)


@pytest.mark.parametrize("width", [16, 37, 96])
@pytest.mark.parametrize(
    "way", [{}, {"reverse": True}, {"height": 10}, {"height": 5, "reverse": True}]
)
def test_gradients_of_one_state_per_channel_equal_the_recurrences(
    width: int, way: dict[str, Any]
) -> None:
    g = torch.Generator().manual_seed(width)
    shapes = [(2, 70, width)] * 2 + [(width, 1), (2, 70, 1), (2, 70, 1), (width,), (width,)]
    shapes += [(2, 70, width), (2, width, 1)]
    draws = [torch.randn(*s, generator=g, dtype=torch.float64) for s in shapes]
    draws[2] = -draws[2].exp()
    resets = torch.rand(2, 70, generator=g) < 0.1
    before = _cpu.isa()

    def gradients(backend: Any, dtype: torch.dtype) -> tuple[Tensor, ...]:
        u, delta, A, B, C, D, bias, add, first = leaves = [
            t.to(dtype).requires_grad_() for t in draws
        ]
        options: dict[str, Any] = {"add": add, "initial_state": first, "resets": resets, **way}
        y, last = selective_scan(
            u, delta, A, B, C, D, None, bias, delta_softplus=True, backend=backend, **options
        )
        return torch.autograd.grad(y.sin().sum() + last.sin().sum(), leaves)

    wanted = gradients("reference", torch.float64)
    try:
        for isa in _cpu.available_isas():
            _cpu.select_isa(isa)
            for dtype, bound in ((torch.float64, 1e-11), (torch.float32, 1e-4)):
                for found, right in zip(gradients("cpu", dtype), wanted):
                    scale = right.abs().max().item()
                    assert (found.double() - right).abs().max().item() <= bound * max(1.0, scale)
    finally:
        _cpu.select_isa(before)
