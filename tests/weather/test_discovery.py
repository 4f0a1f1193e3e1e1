"""MEDIDA: a removed term is found again, from pairs of fields, and nothing where nothing lacks."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from longseq.core.errors import ArgumentError, ConfigError
from longseq.core.shell.cli import main
from longseq.weather.forecasting.discovery import discover, observe, regress
from longseq.weather.forecasting.kuramoto_sivashinsky import KuramotoSivashinsky
from longseq.weather.forecasting.quasigeostrophic import TwoLayerFlow
from longseq.weather.forecasting.shallow_water import ShallowWater


def waves(**changes: float) -> KuramotoSivashinsky:
    return KuramotoSivashinsky(32, step=0.01, **changes)


def seen(pairs: int, steps: int = 1, noise: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    return observe(waves(), pairs, steps, noise, 3, KuramotoSivashinsky(32))


@pytest.fixture(scope="module")
def pairs() -> tuple[torch.Tensor, torch.Tensor]:
    return seen(40)


@pytest.mark.parametrize(
    ("change", "term", "value"),
    [
        ({"growth": 0.0}, "u_xx", -1),
        ({"advection": 0.0}, "u u_x", -1),
        ({"growth": 1.2}, "u_xx", 0.2),
    ],
)
def test_a_removed_or_changed_term_is_found(change, term, value) -> None:
    # Short steps: what advection lacks also answers as u u_xxx and u_x u_xx, by half the interval.
    quick = KuramotoSivashinsky(32, step=0.002)
    observed = observe(quick, 40, 1, 0.0, 3, KuramotoSivashinsky(32))
    (found,) = discover(KuramotoSivashinsky(32, step=0.002, **change), *observed)
    assert list(found.coefficients) == [term]
    assert abs(found.coefficients[term] / value - 1) < 0.03
    assert found.explained > 0.99 and 0 < found.deviations[term] < 0.01
    assert term in str(found)


def test_the_error_falls_with_the_interval() -> None:
    """The forecast's own response to what it lacks is the method's error: of first order."""
    gaps = []
    for steps in (2, 1):
        (found,) = discover(waves(growth=0.0), *seen(20, steps), steps)
        gaps.append(abs(found.coefficients["u_xx"] + 1))
    assert 1.5 < gaps[0] / gaps[1] < 2.5


def test_nothing_lacks_and_what_noise_does(pairs) -> None:
    (found,) = discover(waves(), *pairs)
    assert found.coefficients == {} and str(found) == "nothing"
    # Noise of 1% per 0.01 of time is far above what lacks: it explains nothing, and says so.
    (found,) = discover(waves(growth=0.0), *seen(40, noise=0.01))
    assert found.explained < 0.5
    (found,) = discover(waves(growth=0.0), *seen(40, noise=1e-5))
    assert abs(found.coefficients["u_xx"] + 1) < 0.05


def test_drag_lacks_in_the_lower_layer_alone() -> None:
    before, after = observe(TwoLayerFlow(16, step=0.01), 15, 1, 0.0, 0, TwoLayerFlow(16))
    upper, lower = discover(TwoLayerFlow(16, step=0.01, drag=0.0), before, after)
    assert upper.coefficients == {}
    assert list(lower.coefficients) == ["∇²ψ2"]
    assert abs(lower.coefficients["∇²ψ2"] / -0.5 - 1) < 0.03


def test_regression_keeps_few_terms() -> None:
    rng = np.random.default_rng(0)
    terms = {name: rng.standard_normal(500) * 10.0**n for n, name in enumerate("abcdef")}
    terms["zero"] = np.zeros(500)
    target = 3 * terms["b"] - 0.02 * terms["d"] + 0.1 * rng.standard_normal(500)
    found, spread = regress(terms, target, 0.02)
    assert set(found) == set(spread) == {"b", "d"}
    assert abs(found["b"] - 3) < 0.01 and abs(found["d"] + 0.02) < 1e-4
    assert regress(terms, np.zeros(500)) == ({}, {})
    assert regress({}, target) == ({}, {})


def test_the_command(tmp_path: Path, capsys) -> None:
    out, png = tmp_path / "m.csv", tmp_path / "m.png"
    argv = ["weather", "discover", "--size", "32", "--pairs", "10"]
    assert main([*argv, "--change", "growth=0", "--out", str(out), "--png", str(png)]) == 0
    assert "u_xx" in capsys.readouterr().out and png.stat().st_size > 1000
    (row,) = csv.DictReader(out.open())
    assert row["term"] == "u_xx" and abs(float(row["coefficient"]) + 1) < 0.1


def test_what_does_not_fit_is_refused(tmp_path, capsys, pairs) -> None:
    argv = ["weather", "discover", "--out", str(tmp_path / "m.csv"), "--change"]
    for more, message in (
        (["growht=0"], "growth"),
        (["growth"], "NAME=NUMBER"),
        (["growth=nan"], "--change"),
        (["growth=0", "--pairs", "4"], "≥ 5"),
        (["jet=0.1", "--flow", "shallow_water", "--size", "8"], "no terms"),
    ):
        assert main([*argv, *more]) == 2 and message in capsys.readouterr().err
    with pytest.raises(ArgumentError, match="five pairs"):
        discover(waves(), pairs[0][:4], pairs[1][:4])
    with pytest.raises(ArgumentError, match="five pairs"):
        discover(KuramotoSivashinsky(16), *pairs)
    with pytest.raises(ConfigError, match="no terms"):
        ShallowWater(8).terms(torch.zeros(1, 3, 8, 8))
