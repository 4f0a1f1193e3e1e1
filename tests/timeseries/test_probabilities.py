"""Quantiles and distributions: known values, no crossing, no negative count, conformal on top."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from longseq.core.errors import ConfigError, DataError
from longseq.timeseries import Forecaster
from longseq.timeseries.likelihoods import LIKELIHOODS, Outputs
from longseq.timeseries.scores import score_frame

SMALL = {"horizon": 7, "max_steps": 3, "d_model": 8, "n_layers": 1, "context": 28}
NAMES = ("quantiles", "student_t", "poisson", "negative_binomial")


def outputs(name: str, shape: tuple[int, ...] = (3, 5, 1), mean: float = 4.0) -> Outputs:
    g = torch.Generator().manual_seed(0)
    kind = LIKELIHOODS[name]()
    place = torch.randn(shape, generator=g, dtype=torch.float64)
    rest = torch.randn(*shape, kind.outputs - 1, generator=g, dtype=torch.float64)
    one = torch.ones(shape, dtype=torch.float64)
    return Outputs(place, rest, 0.7 * one, mean * one, 2 * one)


def counts(series: int = 3, rows: int = 130, seed: int = 0) -> pd.DataFrame:
    rng, days = np.random.default_rng(seed), pd.date_range("2024-01-01", periods=rows)
    parts = [
        pd.DataFrame({"unique_id": f"i{i}", "ds": days, "y": rng.poisson(0.3 + i, rows)})
        for i in range(series)
    ]
    return pd.concat(parts, ignore_index=True)


@pytest.mark.parametrize("name", NAMES)
def test_quantiles_ascend_and_the_loss_is_least_for_what_is_true(name):
    kind, out = LIKELIHOODS[name](), outputs(name)
    levels = np.array([0.01, 0.05, 0.1, 0.3, 0.5, 0.7, 0.9, 0.95, 0.99])
    found = kind.quantiles(out, levels)
    assert (np.diff(found, axis=-1) >= 0).all()
    if name in NAMES[:2]:
        assert (np.diff(found, axis=-1) > 0).all()
        np.testing.assert_allclose(found[..., 4], kind.point(out), atol=1e-12)
    else:
        assert (found * 2 + 4 >= -1e-12).all()
        whole = found * 2 + 4
        np.testing.assert_allclose(whole, whole.round(), atol=1e-9)
        assert (kind.point(out) * 2 + 4 > 0).all()


@pytest.mark.parametrize("name", ["poisson", "negative_binomial"])
@pytest.mark.parametrize("mean", [1e7, 1e9, 1e11, 1e14, 1e18])
def test_quantiles_of_large_counts(name, mean):
    kind, levels = LIKELIHOODS[name](), np.array([0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95])
    zero = torch.zeros(3, dtype=torch.float64)
    rest = torch.full((3, 1), 0.5, dtype=torch.float64)
    out = Outputs(zero, rest, zero + 1, zero + mean, zero + mean / 3)
    found, middle = kind.ppf(out, levels)[0], float(kind.mean(out)[0])
    assert np.isfinite(found).all() and (np.diff(found) > 0).all() and (found % 1 == 0).all()
    if name == "poisson":  # a normal distribution of the same variance, to terms of order 1
        near = middle + np.sqrt(middle) * stats.norm.ppf(levels)
        np.testing.assert_allclose(found, near, atol=2, rtol=1e-15)
    else:
        size = 1 / float(kind._alpha(out)[0])
        near = stats.gamma.ppf(levels, size) / size * middle
        np.testing.assert_allclose(found, near, rtol=1e-6)


def test_log_likelihoods_are_those_of_scipy():
    count = np.array([0.0, 1, 7, 30])
    for name in NAMES[1:]:
        kind, out = LIKELIHOODS[name](), outputs(name, (4,))
        target = torch.from_numpy((count - 4) / 2)
        loss = kind.loss(out, target).numpy()
        if name == "student_t":
            scale, freedom = (part.numpy() for part in kind._parts(out))
            expected = -stats.t.logpdf(target.numpy(), freedom, out.place.numpy(), scale)
        else:
            mean = kind.mean(out).numpy()
            if name == "poisson":
                expected = -stats.poisson.logpmf(count, mean)
            else:
                size = 1 / kind._alpha(out).numpy()
                expected = -stats.nbinom.logpmf(count, size, size / (size + mean))
        np.testing.assert_allclose(loss, expected, rtol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_a_network_learns_a_distribution(name):
    df = counts()
    made = Forecaster("mixer_forecaster", likelihood=name, levels=(80, 50), **SMALL).fit(df)
    found = made.predict(10)
    column = made.name
    order = [f"{column}-lo-80", f"{column}-lo-50", f"{column}-hi-50", f"{column}-hi-80"]
    assert (np.diff(found[order].to_numpy(), axis=1) >= 0).all()
    if name in NAMES[2:]:
        assert (found[[column, *order]].to_numpy() >= 0).all()
        whole = found[[*order, "SeasonalNaive"]].to_numpy()
        np.testing.assert_array_equal(whole, np.rint(whole))
        signed = df.assign(y=df["y"] - 1)
        with pytest.raises(ConfigError, match="no counts, which the likelihood needs"):
            made.predict(10, frame=signed)
    # Nothing depends on the batch.
    alone = made.predict(10, frame=df[df["unique_id"] == "i1"])
    mine = found[found["unique_id"] == "i1"]
    np.testing.assert_allclose(alone[order], mine[order], rtol=1e-4, atol=1e-5)


def test_counts_are_asked_for_by_name(tmp_path):
    df = counts()
    df["y"] += 0.5
    with pytest.raises(ConfigError, match="no counts"):
        Forecaster("mixer_forecaster", likelihood="poisson", **SMALL).fit(df)
    with pytest.raises(ConfigError, match="did you mean 'poisson'"):
        Forecaster("mixer_forecaster", likelihood="poison", **SMALL).fit(df)
    with pytest.raises(ConfigError, match="has its own loss"):
        Forecaster("mixer_forecaster", likelihood="quantiles", loss="torch.nn.L1Loss", **SMALL).fit(
            df
        )


@pytest.mark.parametrize("loss", ["torch.nn.L1Loss", "torch.nn.HuberLoss"])
def test_robust_losses_resist_a_wild_value(loss):
    df = counts()
    wild = df.copy()
    wild.loc[50, "y"] = 10**6
    made = Forecaster("mixer_forecaster", loss=loss, **SMALL)
    assert np.isfinite(made.fit(wild).predict(7)[made.name]).all()
    assert type(made._task.own_loss).__name__ == loss.rpartition(".")[2]


def test_conformal_intervals_hold_what_they_say_for_any_model():
    rng = np.random.default_rng(0)
    days = pd.date_range("2020-01-01", periods=150)
    df = pd.concat(
        pd.DataFrame({"unique_id": f"s{i}", "ds": days, "y": 10 + rng.normal(size=150)})
        for i in range(60)
    )
    made = Forecaster("ses", conformal=20, levels=(80,), season=1)
    found = made.cross_validation(df, 3, windows=1)
    inside = (found["y"] >= found["SimpleSmoothing-lo-80"]) & (
        found["y"] <= found["SimpleSmoothing-hi-80"]
    )
    # 60 series by 3 steps: three standard errors are 0.09.
    assert 0.71 < inside.mean() < 0.91
    wild = df.copy()
    wild.loc[wild["ds"] > days[-4], "y"] = 1e6
    other = made.cross_validation(wild, 3, windows=1)
    for side in ("lo", "hi"):
        key = f"SimpleSmoothing-{side}-80"
        np.testing.assert_array_equal(found[key], other[key])
    with pytest.raises(ConfigError, match="interval of 90% needs 9 back-tests"):
        Forecaster("ses", conformal=3, levels=(90,)).fit(df).predict(3)
    with pytest.raises(DataError, match="back-tests"):
        Forecaster("ses", conformal=100, levels=(90,)).fit(df).predict(100)
    with pytest.raises(ConfigError, match="give it a likelihood"):
        Forecaster("mixer_forecaster", conformal=9)


@pytest.mark.parametrize("name", ["theta", "zero_shot"])
def test_conformal_intervals_of_counts_have_no_negative_end(name):
    rng = np.random.default_rng(0)
    counts = rng.poisson(2.0, 120).astype(float)
    days = pd.date_range("2020-01-01", periods=120)
    found = {}
    for key, shift in (("counts", 0.0), ("signed", -20.5)):
        df = pd.DataFrame({"ds": days, "y": counts + shift})
        made = Forecaster(name, conformal=19, levels=(95,)).fit(df)
        frame = made.predict(5)
        columns = [made.name, f"{made.name}-lo-95", f"{made.name}-hi-95"]
        found[key] = frame[columns].to_numpy() - shift
    assert (found["counts"] >= 0).all() and (np.diff(found["counts"][:, [1, 0, 2]]) >= 0).all()
    assert (found["signed"][:, 1] < 0).any()  # of a series that may be negative they stay
    if name == "theta":  # whose forecast moves with the level: nothing else has changed
        np.testing.assert_allclose(np.maximum(found["signed"], 0), found["counts"], atol=1e-6)


def test_scores_by_hand():
    days = pd.date_range("2024-01-01", periods=6)
    df = pd.DataFrame({"unique_id": "a", "ds": days, "y": [0.0, 2, 0, 2, 5, np.nan]})
    made = Forecaster("repeat", season=1).fit(df.iloc[:4])
    frame = pd.DataFrame(
        {
            "unique_id": "a",
            "ds": days[4:],
            "cutoff": days[3],
            "y": [5.0, np.nan],
            "M": [4.0, 0.0],
            "M-lo-80": [3.0, 0],
            "M-hi-80": [4.5, 0],
            "SeasonalNaive": [2.0, 2.0],
        }
    )
    found = score_frame(frame, made._panel, 1).set_index("model")
    assert found.loc["M", "mae"] == 1 and found.loc["M", "mase"] == 0.5
    assert found.loc["M", "smape"] == pytest.approx(200 / 9)
    assert found.loc["M", "coverage-80"] == 0
    # Losses at 0.1, 0.5, 0.9: 0.1 · 2, 0.5 · 1, 0.9 · 0.5.
    assert found.loc["M", "pinball"] == pytest.approx(2 * (0.2 + 0.5 + 0.45) / 3)
    assert found.loc["SeasonalNaive", "mase"] == 1.5
    with pytest.raises(DataError, match="no target"):
        score_frame(frame.assign(y=np.nan), made._panel)


def test_scores_take_what_is_there_and_name_what_does_not_belong():
    days = pd.date_range("2024-01-01", periods=40)
    df = pd.DataFrame({"unique_id": "007", "ds": days, "y": np.arange(40.0) % 7 + days.day / 9})
    made = Forecaster("zero_shot", levels=[80, 97.5]).fit(df)
    frame = made.cross_validation(df, 4, windows=2)
    whole = made.scores(frame).set_index("model")
    assert list(whole.index) == ["ZeroShot", "SeasonalNaive"]
    assert {"coverage-80", "coverage-97.5", "pinball"} <= set(whole.columns)
    # Rows without an interval do not count, and neither do columns of text.
    ends = [name for name in frame if "-lo-" in name or "-hi-" in name]
    half = frame.assign(shop="Köln")
    half.loc[::2, ends] = np.nan
    found = made.scores(half).set_index("model").loc["ZeroShot"]
    there = made.scores(frame.iloc[1::2]).set_index("model").loc["ZeroShot"]
    assert found["coverage-80"] == there["coverage-80"]
    assert found["pinball"] == pytest.approx(there["pinball"])
    assert found["mae"] == pytest.approx(whole.loc["ZeroShot", "mae"])
    # A model is not the best one for the rows that it leaves out.
    lazy = made.scores(frame.assign(mine=frame["y"].where(frame.index % 2 == 0)))
    assert lazy["model"].iloc[-1] == "mine" and np.isnan(lazy["mase"].iloc[-1])
    for wrong, says in (
        (frame.assign(unique_id=7), "7 is no series of the frame .*as text"),
        (frame.assign(cutoff=frame["cutoff"] + pd.Timedelta(hours=1)), "is no time of the frame"),
        (frame.drop(columns="cutoff"), "no column 'cutoff'"),
    ):
        with pytest.raises(DataError, match=says):
            made.scores(wrong)
    with pytest.raises(ConfigError, match=r"the path 'a\.csv': read it first"):
        made.scores("a.csv")
    for levels in ("80", ["80"], True, [None]):
        with pytest.raises(ConfigError, match="a level is a percentage"):
            Forecaster("zero_shot", levels=levels)
    assert Forecaster("zero_shot", levels=np.int64(80)).levels == (80,)
