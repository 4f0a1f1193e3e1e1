"""Regression on held-out runs: the patterns that decide, by products of years as by singular
values, and errors by hand."""

from __future__ import annotations

import numpy as np
import pytest

from longseq.weather import regression
from longseq.weather.regression import Ridge, held_out_error, leading


@pytest.mark.parametrize(("cells", "chunk"), [(40, 4096), (500, 4096), (500, 64), (501, 100)])
def test_leading_patterns_of_coarse_and_fine_grids(cells, chunk, monkeypatch) -> None:
    monkeypatch.setattr(regression, "_CELLS", chunk)
    rng = np.random.default_rng(0)
    whole = (rng.standard_normal((60, 12)) * 2.0 ** -np.arange(12)) @ rng.standard_normal(
        (12, cells)
    )
    fields, area = (
        [whole[:35], whole[35:36], whole[36:]],
        rng.random(cells) * (rng.random(cells) > 0.2),
    )
    left, values, _ = np.linalg.svd(whole * area, full_matrices=False)
    expected = left[:, :10] * values[:10]
    made = leading(fields, area)
    assert [len(one) for one in made] == [35, 1, 24]
    joined = np.concatenate(made)
    order = np.argsort(-(joined**2).sum(0))
    # Signs are arbitrary; products of years square the rounding.
    np.testing.assert_allclose(np.abs(joined[:, order]), np.abs(expected), atol=1e-7 * values[0])
    assert sum(map(len, leading([whole[:3, :2]], area[:2]))) == 3


def test_errors_of_runs_and_of_fifths_of_one() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((20, 2)), rng.standard_normal((20, 3))

    def by_hand(parts: np.ndarray, years: int = 20) -> float:
        total = 0.0
        for part in np.unique(parts[parts >= 0]):
            out = parts == part
            design = np.column_stack([np.ones(20), x])
            fit = np.linalg.lstsq(design[~out], y[~out], rcond=None)[0]
            total += ((design[out] @ fit - y[out]) ** 2).sum()
        return total / years

    fifths, runs = np.arange(20) // 4, (np.arange(20) >= 13).astype(int)
    assert held_out_error([x], [y], penalty=0.0) == pytest.approx(by_hand(fifths), rel=1e-9)
    split = held_out_error([x[:13], x[13:]], [y[:13], y[13:]], penalty=0.0)
    assert split == pytest.approx(by_hand(runs), rel=1e-9)
    # Years that all runs have stay in the fit; two runs of which one has none of its own are one.
    own = [np.arange(13) >= 5, np.ones(7, dtype=bool)]
    kept = held_out_error([x[:13], x[13:]], [y[:13], y[13:]], own, 0.0)
    parts = np.where(np.arange(20) < 5, -1, runs)
    assert kept == pytest.approx(by_hand(parts, 15), rel=1e-9)
    own[1][:] = False
    alone = held_out_error([x[:13], x[13:]], [y[:13], y[13:]], own, 0.0)
    assert alone == pytest.approx(by_hand(fifths), rel=1e-9)
    # A penalty of its own, and a regressor that is constant where it is fitted.
    assert held_out_error([x], [y]) == pytest.approx(
        held_out_error([x], [y], penalty=1e-4), rel=1e-12
    )
    assert np.isfinite(held_out_error([x * [1, 0]], [y]))
    slopes, offset = Ridge(0.0).fit(x, y).linear()
    np.testing.assert_allclose(x @ slopes.T + offset, Ridge(0.0).fit(x, y).predict(x), rtol=1e-10)
