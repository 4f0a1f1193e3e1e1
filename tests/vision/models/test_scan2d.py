"""Scan orders: permutations with inverses, an adjoint merge, gradients, and the shapes they are
named for."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longseq.core.errors import ConfigError
from longseq.vision.models.scan2d import CROSS_SCAN, Scan2d, list_orders, scan2d, scan_order

sides = st.integers(1, 7)
some_orders = st.lists(st.sampled_from(list_orders()), min_size=1, max_size=4)


@pytest.mark.parametrize("name", list_orders())
@given(sides, sides)
@settings(max_examples=20, deadline=None)
def test_every_order_is_a_permutation_and_runs_backwards(name: str, h: int, w: int) -> None:
    order = scan_order(name, h, w)
    assert np.array_equal(np.sort(order), np.arange(h * w))
    other = name.removesuffix("_reversed") if name.endswith("_reversed") else f"{name}_reversed"
    assert np.array_equal(scan_order(other, h, w), order[::-1])


@given(some_orders, sides, sides)
@settings(max_examples=30, deadline=None)
def test_merge_is_the_adjoint_of_expand(orders: list[str], h: int, w: int) -> None:
    scan, generator = Scan2d(orders, h, w), torch.Generator().manual_seed(0)
    x = torch.randn(2, h * w, 3, generator=generator, dtype=torch.float64)
    y = torch.randn(2, h * w, len(orders), 3, generator=generator, dtype=torch.float64)
    assert torch.allclose((scan.expand(x) * y).sum(), (x * scan.merge(y)).sum())
    assert torch.equal(scan.restore(scan.reorder(y)), y)
    assert torch.allclose(scan.merge(scan.expand(x)), len(orders) * x)
    assert torch.equal(scan.reorder(x.unsqueeze(2).expand(-1, -1, len(orders), -1)), scan.expand(x))


def test_gradients() -> None:
    scan = Scan2d(CROSS_SCAN, 2, 3)
    x = torch.randn(1, 6, 2, dtype=torch.float64, requires_grad=True)
    y = torch.randn(1, 6, 4, 2, dtype=torch.float64, requires_grad=True)
    for function, leaf in ((scan.expand, x), (scan.merge, y), (scan.reorder, y), (scan.restore, y)):
        assert torch.autograd.gradcheck(function, leaf)
        assert torch.autograd.gradgradcheck(function, leaf)


def test_the_orders_are_what_they_are_called() -> None:
    assert scan_order("column", 2, 3).tolist() == [0, 3, 1, 4, 2, 5]
    assert scan_order("snake", 2, 3).tolist() == [0, 1, 2, 5, 4, 3]
    assert scan_order("column_snake", 2, 3).tolist() == [0, 3, 4, 1, 2, 5]
    assert scan_order("zigzag_right", 2, 3).tolist() == [2, 1, 5, 4, 0, 3]
    assert scan_order("spiral_below", 3, 3).tolist() == [6, 7, 8, 5, 2, 1, 0, 3, 4]
    assert scan_order("spiral", 3, 3).tolist() == [0, 1, 2, 5, 8, 7, 6, 3, 4]
    assert scan_order("zigzag", 3, 3).tolist() == [0, 1, 3, 6, 4, 2, 5, 7, 8]
    assert scan_order("diagonal", 2, 2).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("name", ["snake", "spiral"])
def test_continuous_orders_go_from_neighbour_to_neighbour(name: str) -> None:
    rows, columns = np.divmod(scan_order(name, 5, 6), 6)
    assert set(np.abs(np.diff(rows)) + np.abs(np.diff(columns))) == {1}


def test_a_grid_is_made_once() -> None:
    assert scan2d(CROSS_SCAN, 4, 5) is scan2d(CROSS_SCAN, 4, 5)


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ConfigError, match="did you mean 'raster'"):
        scan_order("rastar", 2, 2)
    with pytest.raises(ConfigError, match="height"):
        scan_order("raster", 0, 2)
    with pytest.raises(ConfigError, match="at least one order"):
        Scan2d([], 2, 2)


def test_an_order_made_in_inference_serves_training() -> None:
    with torch.inference_mode():
        scan2d(CROSS_SCAN, 7, 3).reorder(torch.randn(1, 21, 4, 2))
    x = torch.randn(1, 21, 4, 2, requires_grad=True)
    scan2d(CROSS_SCAN, 7, 3).reorder(x).sum().backward()
    assert x.grad is not None
