"""What a Mamba layer does between its outer maps: the one call against its operators' definitions,
and what has to see the inside."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from longseq.core import _cpu
from longseq.core.errors import ArgumentError
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
) -> tuple[Tensor, Tensor, list[Way]]:
    torch.manual_seed(0)
    x, z = torch.randn(batch, length, 2 * width, dtype=dtype).split(width, -1)
    made = []
    for number in range(ways):
        low = nn.Linear(width, rank + 2 * states, bias=False, dtype=dtype)
        wide = nn.Linear(rank, width, bias=number != 1, dtype=dtype)
        bias = torch.randn(width, dtype=dtype) if number != 2 else None
        decays, skip = torch.randn(width, states, dtype=dtype), torch.randn(width, dtype=dtype)
        kernel = torch.randn(width, 1, taps, dtype=dtype)
        made.append(Way(kernel, bias, low, wide, decays, skip, number % 2 == 1))
    return x, z, made


SHAPES = [
    {},
    {"length": 1},
    {"length": 3, "ways": 1},
    {"length": 33, "width": 5, "states": 1, "rank": 1, "taps": 1},
    {"length": 65, "width": 16, "states": 16, "rank": 2, "taps": 2, "ways": 3},
    {"length": 70, "width": 40, "states": 3, "rank": 7, "taps": 3, "batch": 1},
    {"length": 37, "width": 100, "states": 6, "rank": 12, "taps": 5},
]


@pytest.fixture(params=_cpu.available_isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    before = _cpu.isa()
    _cpu.select_isa(request.param)
    yield request.param
    _cpu.select_isa(before)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-13)])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_its_operators(
    shape: dict[str, int], dtype: torch.dtype, tolerance: float, isa: str
) -> None:
    x, z, ways = layer(**shape, dtype=dtype)
    with torch.no_grad():
        assert cpu.reason(Arguments(x, z, tuple(ways), 0.7)) is None
        found = mamba_inner(x, z, ways, scale=0.7, backend="cpu")
        wanted = mamba_inner(
            x.double(), z.double(), [_double(way) for way in ways], scale=0.7, backend="reference"
        )
    assert found.dtype == dtype and found.is_contiguous()
    error = (found.double() - wanted).abs().max() / wanted.abs().max()
    assert error < tolerance


def _double(way: Way) -> Way:
    maps = []
    for one in (way.x_proj, way.dt_proj):
        made = nn.Linear(1, 1, dtype=torch.float64)
        made.weight = nn.Parameter(one.weight.double())
        made.bias = None if one.bias is None else nn.Parameter(one.bias.double())
        maps.append(made)
    values = [None if t is None else t.double() for t in way[:2]]
    return Way(*values, *maps, way.A_log.double(), way.D.double(), way.reverse)


def test_rows_and_threads_change_nothing() -> None:
    x, z, ways = layer(length=67, width=48, batch=5)
    threads = torch.get_num_threads()
    with torch.no_grad():
        whole = mamba_inner(x, z, ways, backend="cpu")
        alone = [mamba_inner(x[i : i + 1], z[i : i + 1], ways, backend="cpu") for i in range(5)]
        assert torch.equal(whole, torch.cat(alone))
        try:
            torch.set_num_threads(3)
            assert torch.equal(mamba_inner(x, z, ways, backend="cpu"), whole)
        finally:
            torch.set_num_threads(threads)


def test_gradients_are_those_of_the_definition() -> None:
    x, z, ways = layer()
    x, z = x.detach().requires_grad_(), z.detach().requires_grad_()
    leaves = [x, z]
    for way in ways:
        leaves += [*way.x_proj.parameters(), *way.dt_proj.parameters()]
        leaves += [t.requires_grad_() for t in (way.taps, way.A_log, way.D)]
    wanted, found = (
        torch.autograd.grad(mamba_inner(x, z, ways, backend=one).square().sum(), leaves)
        for one in ("reference", "auto")
    )
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


def test_a_nan_stays_in_its_row_of_the_batch() -> None:
    x, z, ways = layer()
    x = x.clone()
    x[0, 3, 2] = float("nan")
    with torch.no_grad():
        found = mamba_inner(x, z, ways, backend="cpu")
    assert found[0].isnan().any() and found[1].isfinite().all()


class Doubled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def test_maps_that_are_more_than_a_matrix_are_called() -> None:
    x, z, ways = layer()
    with torch.no_grad():
        plain = mamba_inner(x, z, ways)
        for name in ("x_proj", "dt_proj"):
            heard: list[int] = []
            handle = getattr(ways[1], name).register_forward_hook(
                lambda *_, seen=heard: seen.append(1)
            )
            torch.testing.assert_close(mamba_inner(x, z, ways), plain, rtol=1e-12, atol=1e-12)
            assert heard
            handle.remove()
            for told in (register_module_forward_hook, register_module_forward_pre_hook):
                heard.clear()
                handle = told(lambda *_, seen=heard: seen.append(1))
                torch.testing.assert_close(mamba_inner(x, z, ways), plain, rtol=1e-12, atol=1e-12)
                handle.remove()
                assert len(heard) == 4  # both maps of both ways
            twice = Doubled(1, 1, bias=False, dtype=torch.float64)
            twice.weight = nn.Parameter(getattr(ways[1], name).weight / 2)
            assert getattr(ways[1], name).bias is None
            changed = [ways[0], ways[1]._replace(**{name: twice})]
            torch.testing.assert_close(mamba_inner(x, z, changed), plain, rtol=1e-12, atol=1e-12)


def test_what_the_kernel_does_not_take_says_why() -> None:
    x, z, ways = layer()
    way = ways[0]
    reasons = {
        "float32 or": Arguments(x.bfloat16(), z.bfloat16(), (way,), 1.0),
        "channels dense": Arguments(x.mT.contiguous().mT, z, (way,), 1.0),
        "do not fit": Arguments(x, z, (way._replace(D=way.D[:5]),), 1.0),
        "dense weights": Arguments(x, z, (way._replace(A_log=way.A_log.float()),), 1.0),
        "autograd": Arguments(x, z, (way,), 1.0),
        "bias": Arguments(x, z, (way._replace(x_proj=nn.Linear(12, 11).double()),), 1.0),
    }
    assert "autograd" in (cpu.reason(reasons.pop("autograd")) or "")
    with torch.no_grad():
        for said, call in reasons.items():
            assert said in (cpu.reason(call) or ""), said
        empty = mamba_inner(x[:0], z[:0], ways)
    assert empty.shape == (0, 7, 12)


def test_wrong_arguments_are_named() -> None:
    x, z, ways = layer()
    for arguments, message in (
        ((x, z, []), "ways must be at least one"),
        ((x[0], z[0], ways), "length ≥ 1"),
        ((x, z[:, :3], ways), "z must have shape"),
    ):
        with pytest.raises(ArgumentError, match=message):
            mamba_inner(*arguments)
