"""Covariates: what is read, what is refused by name, what they change, and that nothing leaks."""

import numpy as np
import pandas as pd
import pytest
import torch

from longseq.core.errors import ConfigError, DataError
from longseq.core.shell.cli import main
from longseq.timeseries import Forecaster
from longseq.timeseries.compare import ForecastComparison
from longseq.timeseries.data.frames import Roles, panel_of
from longseq.timeseries.data.future import with_future
from longseq.timeseries.data.module import ForecastData
from longseq.timeseries.regression import covariate_effects

H = 14
NETWORK = {"horizon": 7, "max_steps": 2, "d_model": 8, "n_layers": 1, "context": 28}


def retail(series: int = 6, rows: int = 160, seed: int = 0) -> pd.DataFrame:
    """Poisson sales by the week, with promotions that multiply them; ragged."""
    rng = np.random.default_rng(seed)
    t, parts = np.arange(rows), []
    for i in range(series):
        promo = (rng.random(rows) < 0.15).astype(int)
        rate = (3 + 2 * i) * (1 + 0.4 * np.sin(2 * np.pi * t / 7)) * 2.5**promo
        frame = pd.DataFrame(
            {
                "unique_id": f"i{i}",
                "ds": pd.date_range("2024-01-01", periods=rows),
                "y": rng.poisson(rate).astype(float),
                "promo": promo,
                "visitors": rate + rng.normal(size=rows),
                "kind": "ab"[i % 2],
                "size": float(i),
            }
        )
        parts.append(frame.iloc[5 * i :])
    return pd.concat(parts, ignore_index=True)


@pytest.mark.parametrize("name", ["theta", "zero_shot", "mixer_forecaster"])
def test_series_that_ended_stand_in_the_way_of_no_back_test(name):
    df = retail(4)
    last = df["ds"].max()
    early = df[~((df["unique_id"] == "i1") & (df["ds"] > last - pd.Timedelta(days=10)))]
    arguments = NETWORK if name == "mixer_forecaster" else {}
    found = Forecaster(name, future=["promo"], **arguments).cross_validation(early, 7, windows=2)
    rows = found.groupby("unique_id").size().to_dict()
    assert rows == {"i0": 14, "i2": 14, "i3": 14}  # i1 ends within the first horizon
    short = df[~((df["unique_id"] == "i1") & (df["ds"] > last - pd.Timedelta(days=7)))]
    found = Forecaster(name, future=["promo"], **arguments).cross_validation(short, 7, windows=2)
    rows = found.groupby("unique_id").size().to_dict()
    assert rows == {"i0": 14, "i1": 7, "i2": 14, "i3": 14} and found["y"].notna().all()


def split(df: pd.DataFrame, h: int = H) -> tuple[pd.DataFrame, pd.DataFrame]:
    last = df["ds"].max() - pd.Timedelta(days=h)
    return df[df["ds"] <= last].reset_index(drop=True), df[df["ds"] > last].drop(columns="y")


@pytest.mark.parametrize("name", ["theta", "zero_shot", "nlinear_ridge"])
def test_promotions_explain_their_days_and_counts_stay_counts(name):
    df = retail()
    errors = {}
    for future in ((), ("promo",)):
        made = Forecaster(name, future=future)
        found = made.cross_validation(df, H, windows=2)
        assert (found[made.name] >= 0).all()
        days = found.merge(df[["unique_id", "ds", "promo"]])
        days = days[days["promo"] == 1]
        errors[future] = (days["y"] - days[made.name]).abs().mean()
    assert errors["promo",] < 0.7 * errors[()]


def test_effects_are_recovered_beside_season_and_trend():
    rng = np.random.default_rng(0)
    t = np.arange(300)
    x = rng.normal(size=300)
    y = 50 + 0.1 * t + 8 * np.sin(2 * np.pi * t / 7) + 3 * x + 0.1 * rng.normal(size=300)
    frame = pd.DataFrame({"ds": pd.date_range("2024-01-01", periods=300), "y": y, "x": x})
    panel = panel_of(frame, source="f", roles=Roles(future=("x",)))
    effects, weights = covariate_effects(panel, panel.ends, 0, 7)
    assert weights[0, 0] == pytest.approx(3, abs=0.1)
    assert np.corrcoef(effects[:, 0], x)[0, 1] > 0.999


@pytest.mark.parametrize("name", ["theta", "zero_shot", "mixer_forecaster"])
def test_nothing_after_the_cutoff_leaks_but_what_is_known_beforehand(name):
    df = retail(3)
    own = NETWORK if name == "mixer_forecaster" else {}
    more = {"past": ["visitors"], "static": ["kind"]} if own else {}
    made = Forecaster(name, future=["promo"], **more, **own)
    cut = df["ds"].max() - pd.Timedelta(days=7)
    wild = df.copy()
    wild.loc[wild["ds"] > cut, ["y", "visitors"]] = 1e4
    found, other = (made.cross_validation(one, 7, windows=1)[made.name] for one in (df, wild))
    np.testing.assert_array_equal(found, other)
    promoted = df.copy()
    promoted.loc[promoted["ds"] > cut, "promo"] = 1
    more_sold = made.cross_validation(promoted, 7, windows=1)[made.name]
    assert (more_sold != found).any()


@pytest.mark.parametrize("name", ["theta", "mixer_forecaster"])
def test_the_future_comes_in_the_frame_or_beside_it(name, tmp_path):
    df = retail(3)
    known, future = split(df, 7)
    own = NETWORK if name == "mixer_forecaster" else {}
    made = Forecaster(name, future=["promo"], **own).fit(known)
    found = made.predict(7, future=future)
    # A trained network forecasts the longer frame with the weights it has.
    longer = pd.concat([known, future], ignore_index=True).sort_values(["unique_id", "ds"])
    same = made.predict(7, frame=longer)
    pd.testing.assert_frame_equal(found, same)
    made.save(tmp_path / "f")
    again = Forecaster.load(tmp_path / "f").predict(7, future=future)
    pd.testing.assert_frame_equal(found, again, rtol=1e-6)
    with pytest.raises(DataError, match=r"no future covariate 'promo' among its columns"):
        made.predict(7, future=future.drop(columns="promo"))
    with pytest.raises(DataError, match="'promo' has no value"):
        made.predict(7)
    with pytest.raises(DataError, match=r"i1 at 2024-06-0\d.*'promo' has no value"):
        made.predict(7, future=future[future["unique_id"] != "i1"])


def test_columns_are_read_by_their_roles_and_refused_by_name():
    df = retail(2)

    def read(frame: pd.DataFrame, **roles: object):
        return panel_of(frame, source="f.csv", roles=Roles(**roles)).covariates

    found = read(df, future=("promo",), past=("visitors",), static=("kind", "size"))
    assert found.names == {
        "future": ["promo"],
        "past": ["visitors"],
        "static": ["kind=a", "kind=b", "size"],
    }
    assert found.static["kind=b"].tolist() == [0, 1]
    with pytest.raises(DataError, match=r"no future covariate 'prom'.*did you mean 'promo'"):
        read(df, future=("prom",))
    with pytest.raises(DataError, match="'promo' has two roles"):
        read(df, future=("promo",), past=("promo",))
    with pytest.raises(DataError, match="static covariate 'promo' is 1 and was 0"):
        read(df, static=("promo",))
    with pytest.raises(DataError, match="'kind' is 'a', a finite number"):
        read(df, future=("kind",))
    with pytest.raises(ConfigError, match="past and static ones are for mixer_forecaster"):
        Forecaster("theta", static=["size"])
    with pytest.raises(DataError, match="long frame"):
        panel_of(
            pd.DataFrame({"ds": [1, 2], "a": [1.0, 2], "s": [1, 1]}),
            source="f",
            roles=Roles(static=("s",)),
        )


def test_a_wide_frame_shares_its_covariates():
    df = pd.DataFrame({"ds": pd.date_range("2024-01-01", periods=40), "a": 1.0, "b": 2.0})
    df["x"] = np.arange(40.0)
    df.loc[35:, ["a", "b"]] = np.nan
    panel = panel_of(df, source="f", roles=Roles(future=("x",)))
    assert panel.ids == ("a", "b") and len(panel) == 35
    assert panel.covariates.future["x"].shape == (40, 2)
    assert panel.before(10).extended(20).covariates.future["x"][39, 1] == 39


def test_holidays_go_on_by_themselves():
    pytest.importorskip("holidays", reason="holidays is not installed: pip install holidays")
    days = pd.DataFrame({"ds": pd.date_range("2023-01-01", periods=710), "y": 1.0})
    panel = panel_of(days, source="f", roles=Roles(holidays="DE"))
    longer = panel.extended(30)
    on = longer.ds[longer.covariates.future["holidays:DE"][:, 0] > 0].strftime("%Y-%m-%d")
    assert {"2023-10-03", "2024-12-25", "2024-12-26", "2025-01-01"} <= set(on)
    months = pd.DataFrame({"ds": pd.date_range("2024-01-01", periods=12, freq="MS"), "y": 1.0})
    found = panel_of(months, source="f", roles=Roles(holidays="DE")).covariates
    assert found.future["holidays:DE"][11, 0] == 2
    with pytest.raises(ConfigError, match="no holidays of 'XX'"):
        panel_of(months, source="f", roles=Roles(holidays="XX"))


def test_the_network_is_told_what_it_was_made_for(tmp_path):
    df = retail(2)
    df.to_csv(tmp_path / "s.csv", index=False)
    known, future = split(df, 7)
    known.to_csv(tmp_path / "k.csv", index=False)
    future.to_csv(tmp_path / "f.csv", index=False)
    out = str(tmp_path / "o.csv")
    usual = ["timeseries", "predict", str(tmp_path / "k.csv"), "--horizon", "7", "--out", out]
    assert main([*usual, "--future", "promo", "--future_frame", str(tmp_path / "f.csv")]) == 0
    assert len(pd.read_csv(out)) == 14
    assert main([*usual, "--future", "promo"]) == 2
    assert main([*usual, "--static", "kind"]) == 2
    made = Forecaster("mixer_forecaster", future=["promo"], static=["kind"], **NETWORK).fit(known)
    assert made._task.covariates == ("future:promo", "static:kind=a", "static:kind=b")
    with pytest.raises(DataError, match=r"no static covariate 'kind'.*trained with"):
        other = Forecaster("mixer_forecaster", future=["promo"], **NETWORK)
        other._task = made._task
        other.predict(7, frame=known)


def test_a_window_does_not_depend_on_its_neighbours():
    from longseq.timeseries.models.mixer_forecaster import MixerForecaster

    torch.manual_seed(0)
    model = MixerForecaster(32, 8, 8, 1, patch=8, stride=4, covariates=(2, 1, 1)).eval()
    torch.nn.init.normal_(model.beside.out.weight)
    g = torch.Generator().manual_seed(0)
    inputs = [torch.randn(7, *size, generator=g) for size in ((32, 1), (32, 3), (8, 2), (1,))]
    with torch.no_grad():
        whole = model(*inputs)
        torch.testing.assert_close(model(*(one[2:3] for one in inputs)), whole[2:3])


def test_baselines_are_compared_with_the_covariates_too(tmp_path, capsys):
    table = retail(rows=240)
    table.to_csv(tmp_path / "a.csv", index=False)
    usual = ["timeseries", "compare", "--data", str(tmp_path / "a.csv"), "--context", "28"]
    usual += ["--horizons", "7", "--min_context", "14", "--models", "seasonal_naive,nlinear_gcv"]
    found = {}
    for future in ("", "promo"):
        out = tmp_path / f"with_{future}.csv"
        assert main([*usual, "--future", future, "--out", str(out)]) == 0
        found[future] = pd.read_csv(out).set_index("model")
    assert "covariates promo" in " ".join(capsys.readouterr().out.split())
    assert set(found["promo"]["covariates"]) == {"by regression"}
    assert found[""]["covariates"].isna().all()
    assert (found["promo"]["mse"] < 0.7 * found[""]["mse"]).all()


def test_effects_of_a_comparison_are_those_of_the_training_rows(tmp_path):
    table = retail(rows=240)
    changed = table.copy()
    late = changed["ds"] > changed["ds"].min() + pd.Timedelta(days=190)
    changed.loc[late, "y"] *= 3
    seen = []
    for frame in (table, changed):
        frame.to_csv(tmp_path / "a.csv", index=False)
        data = ForecastData(str(tmp_path / "a.csv"), "ratio", 28, 7, future=["promo"])
        comparison = ForecastComparison(data)
        seen.append(comparison.baseline_windows("train").values[:168])
    torch.testing.assert_close(*seen, rtol=0, atol=0)


def test_a_frame_of_the_future_is_looked_at():
    df = retail(3)
    known, future = split(df, 7)
    with pytest.raises(ConfigError, match=r"no future covariate is named: --future NAME"):
        Forecaster("theta").fit(known).predict(7, future=future)
    made = Forecaster("theta", future=["promo"]).fit(known)
    twice = pd.concat([future, future.iloc[[4]].assign(promo=1.0)])
    with pytest.raises(DataError, match=rf"row {len(future)}: the time .* comes twice"):
        made.predict(7, future=twice)
    holes = known.copy()
    holes.loc[holes["ds"] == holes["ds"].unique()[30], "promo"] = np.nan
    with pytest.raises(DataError, match=r"'promo' has no value \(it has to be known in all rows"):
        Forecaster("theta", future=["promo"]).fit(holes).predict(7, future=future)
    # An item without a past is named.
    panel = panel_of(known, source="f", roles=Roles(future=("promo",)))
    more = pd.concat([future, future[future["unique_id"] == "i0"].assign(unique_id="new")])
    found = with_future(panel, more, 7, Roles(future=("promo",)))
    assert any("'new' in the future is no series with a past" in note for note in found.notes)
    pd.testing.assert_frame_equal(made.predict(7, future=more), made.predict(7, future=future))


def test_a_frame_of_the_future_of_another_kind_is_named(tmp_path, capsys):
    df = retail(3)
    known, future = split(df, 7)
    made = Forecaster("theta", future=["promo"], id="unique_id").fit(known)
    with pytest.raises(DataError, match="future: has no column 'unique_id' of the series' names"):
        made.predict(7, future=future.drop(columns="unique_id"))
    zoned = future.assign(ds=pd.to_datetime(future["ds"]).dt.tz_localize("UTC"))
    with pytest.raises(DataError, match=r"a clock with a zone, those of .* no zone .*zone Europe"):
        made.predict(7, future=zoned)
    with pytest.raises(DataError, match="times are numbers, those of the frame on a clock"):
        made.predict(7, future=future.assign(ds=np.arange(len(future))))
    # The file of the future is named, and its line.
    known.to_csv(tmp_path / "sales.csv", index=False)
    future.assign(promo="x").to_csv(tmp_path / "plan.csv", index=False)
    beside = ["--future", "promo", "--future_frame", str(tmp_path / "plan.csv")]
    given = [str(tmp_path / "sales.csv"), "--horizon", "7", *beside]
    assert main(["timeseries", "predict", *given, "--out", str(tmp_path / "out.csv")]) == 2
    assert "plan.csv: line 2: 'promo' is 'x'" in capsys.readouterr().err


def test_static_texts_are_those_of_the_training():
    df = retail(3)
    df["kind"] = df["unique_id"].map({"i0": "a", "i1": "b", "i2": "a"})
    made = Forecaster("mixer_forecaster", static="kind", **NETWORK).fit(df)
    whole = made.predict(7)
    some = df[df["unique_id"] == "i0"]  # which knows no "b"
    found = made.predict(7, frame=some)
    mine = whole[whole["unique_id"] == "i0"]
    np.testing.assert_allclose(found[made.name], mine[made.name], rtol=1e-5)
    for frame in (
        some.assign(kind="z"),
        df.assign(kind=df["kind"].where(df.unique_id != "i0", "z")),
    ):
        with pytest.raises(DataError, match=r"i0: .*'kind' is 'z', .* not seen \(it knows a, b\)"):
            made.predict(7, frame=frame)
    with pytest.raises(DataError, match="no static covariate 'kind'"):
        made.predict(7, frame=df.drop(columns="kind"))


def test_one_name_stands_for_a_list_of_one():
    df = retail(3)
    known, future = split(df, 7)
    one = Forecaster("theta", future="promo", conformal=9, levels=90).fit(known)
    same = Forecaster("theta", future=["promo"], conformal=9, levels=[90]).fit(known)
    pd.testing.assert_frame_equal(one.predict(7, future=future), same.predict(7, future=future))
    with pytest.raises(ConfigError, match=r"percentage between 1 and 99, got 0\.9"):
        Forecaster("theta", levels=0.9)
    with pytest.raises(ConfigError, match="one country, as DE"):
        Forecaster("theta", holidays=["DE"]).fit(known).predict(7)


def test_a_past_covariate_without_a_value_is_named():
    days = pd.date_range("2024-01-01", periods=30)
    parts = [
        pd.DataFrame({"unique_id": name, "ds": days, "y": np.arange(30.0), "temp": temp})
        for name, temp in (("a", 1.0), ("b", np.nan))
    ]
    told = Roles(past=("temp",))
    panel = panel_of(pd.concat(parts), roles=told, source="m")
    assert any("'temp' has no value for b" in note for note in panel.notes)
    with pytest.raises(DataError, match="past covariate 'temp' has no value"):
        panel_of(parts[1], roles=told, source="m")


def test_the_future_may_have_times_in_its_index_or_be_a_file(tmp_path):
    ds = pd.date_range("2024-01-01", periods=34)
    promo = (np.arange(34) % 5 == 0).astype(float)
    df = pd.DataFrame({"y": 3.0 + 2 * promo + np.arange(34) % 2, "promo": promo}, index=ds)
    df.index.name = "ds"
    plan = df[["promo"]].iloc[30:]
    forecaster = Forecaster("repeat", future="promo").fit(df.iloc[:30])
    expected = forecaster.predict(4, future=plan.reset_index())
    plan.to_csv(tmp_path / "plan.csv")
    many = plan.assign(unique_id="y").set_index("unique_id", append=True)
    for future in (plan, plan.rename_axis(None), many, tmp_path / "plan.csv"):
        pd.testing.assert_frame_equal(forecaster.predict(4, future=future), expected)
    with pytest.raises(ConfigError, match=r"plan\.csv"):
        forecaster.predict(4, future=tmp_path / "plan.csv", out=tmp_path / "plan.csv")
    assert len((tmp_path / "plan.csv").read_text().splitlines()) == 5


@pytest.mark.parametrize("index", [["unique_id"], ["ds"], ["unique_id", "ds"], ["y"]])
def test_an_index_that_is_a_column_too_is_taken_once(index):
    ds = pd.date_range("2024-01-01", periods=6)
    df = pd.DataFrame({"unique_id": "a", "ds": ds, "y": np.arange(6.0)})
    found = Forecaster("repeat").fit(df.set_index(index, drop=False)).predict(2)
    pd.testing.assert_frame_equal(found, Forecaster("repeat").fit(df).predict(2))


@pytest.mark.parametrize("step", ["6h", "D"])
def test_a_plan_is_averaged_over_the_step_of_the_series(step):
    hours = pd.date_range("2024-10-20", "2024-11-06", freq="h", tz="Europe/Berlin")
    rng = np.random.default_rng(0)
    df = pd.DataFrame({"ds": hours, "temp": rng.normal(size=len(hours))})
    df["y"] = 3 * df["temp"] + rng.normal(size=len(hours)) / 9
    end = int(np.flatnonzero(hours == pd.Timestamp("2024-11-04", tz="Europe/Berlin"))[0])
    end -= 1 if step == "6h" else 0  # the first row is of summer time, so winter's is 23:00
    forecaster = Forecaster("repeat", future="temp", resample=step).fit(df.iloc[:end])
    horizon = 4 if step == "6h" else 2
    whole = df.iloc[end : end + 24 if step == "6h" else end + 48]
    found = forecaster.predict(horizon, future=whole[["ds", "temp"]])
    both = pd.concat([df.iloc[:end], whole.assign(y=np.nan)])
    expected = Forecaster("repeat", future="temp", resample=step).fit(both).predict(horizon)
    pd.testing.assert_frame_equal(found, expected)
    assert found["Repeat"].nunique() == horizon


def test_a_plan_for_series_of_other_names_says_so():
    ds = pd.date_range("2024-01-01", periods=20)
    df = pd.DataFrame({"unique_id": "007", "ds": ds, "y": np.arange(20.0), "promo": ds.day % 3})
    plan = df.iloc[16:].drop(columns="y")
    forecaster = Forecaster("repeat", future="promo").fit(df.iloc[:16])
    with pytest.raises(DataError, match=r"'7' is no series of the frame, .* none called '007'"):
        forecaster.predict(4, future=plan.assign(unique_id=7))
    more = pd.concat([plan, plan.assign(unique_id="new")])  # which is noted, and stops nothing
    assert len(forecaster.predict(4, future=more)) == 4
