"""Forecaster: a frame in and a frame out, for every kind of model, and nothing after a cutoff."""

import importlib.util
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from longseq.core.errors import ConfigError, DataError
from longseq.timeseries import Forecaster
from longseq.timeseries.forecaster import _TRAINED
from longseq.timeseries.local import BASELINES
from longseq.timeseries.plots import plot_lead_error

SMALL = {
    "zero_shot": {},
    "seasonal_naive": {},
    "repeat": {},
    "ses": {},
    "theta": {},
    "croston": {},
    "tsb": {},
    "ar": {},
    "nlinear_ridge": {"context": 30},
    "mixer_forecaster": {"horizon": 8, "max_steps": 2, "d_model": 8, "n_layers": 1, "context": 24},
}


def sales(series: int = 3, rows: int = 120, ragged: bool = True) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    days = pd.date_range("2024-01-01", periods=rows)
    parts = []
    for i in range(series):
        t = np.arange(rows)
        y = 20 + 5 * i + 6 * np.sin(2 * np.pi * t / 7) + rng.normal(size=rows)
        first, last = (5 * i, rows - 9 * i) if ragged else (0, rows)
        frame = pd.DataFrame({"unique_id": f"item{i}", "ds": days, "y": y})
        parts.append(frame.iloc[first:last])
    return pd.concat(parts, ignore_index=True)


@pytest.mark.parametrize("name", SMALL)
def test_every_model_forecasts_ragged_series_from_their_own_ends(name):
    df = sales()
    ridge = name == "nlinear_ridge"
    forecaster = Forecaster(name, **SMALL[name]).fit(df)
    found = forecaster.predict(13)
    assert len(found) == 3 * 13 and found["y"].isna().all()
    column = forecaster.name
    assert list(found.columns[:5]) == ["unique_id", "ds", "cutoff", "y", column]
    assert found[column].notna().all() and found.columns[-1] == "SeasonalNaive"
    ends = df.groupby("unique_id")["ds"].max()
    assert (found.groupby("unique_id")["cutoff"].first() == ends).all()
    assert (found.groupby("unique_id")["ds"].min() == ends + pd.Timedelta(days=1)).all()
    if not ridge and name != "mixer_forecaster":
        # Local: one series alone gives what it gave among others.
        alone = Forecaster(name, **SMALL[name]).fit(df[df["unique_id"] == "item1"]).predict(13)
        mine = found[found["unique_id"] == "item1"][column].to_numpy()
        np.testing.assert_allclose(alone[column], mine, rtol=1e-6)


_NETWORK = {"horizon": 8, "context": 24, "max_steps": 2, "d_model": 8}
_HEADS = {**_NETWORK, "n_heads": 2, "d_ff": 8, "label": 12}
EVERY = {
    **{key: {} for key in BASELINES},
    **SMALL,
    **{key: {"context": 30} for key in ("dlinear_ridge", "nlinear_gcv", "dlinear_gcv")},
    # Without a season it has no networks, which take their time; test_baselines.py looks at them.
    "closed_form": {"context": 28, "season": 1},
    "spacetime": {**_NETWORK, "d_state": 6},
    "informer": _HEADS,
    "autoformer": {**_HEADS, "moving_average": 7},
    "tpgn": _NETWORK,
    "inverted_forecaster": {**_NETWORK, "n_layers": 1, "mixer_kwargs": {"n_heads": 2}},
    "tuned_zero_shot": {"horizon": 8, "context": 24, "max_steps": 2},
}


def test_every_forecaster_is_tried_below():
    assert set(EVERY) == {*BASELINES, *_TRAINED}


@pytest.mark.parametrize("name", EVERY)
def test_cross_validation_sees_nothing_after_its_cutoffs(name):
    if name.startswith("auto_"):
        pytest.importorskip("statsforecast", reason="statsforecast is not installed")
    df = sales(2, ragged=False)
    wild = df.copy()
    cut = df["ds"].unique()[110]
    wild.loc[wild["ds"] > cut, "y"] = 1e5
    made = Forecaster(name, **EVERY[name])
    found, other = (made.cross_validation(one, 8, windows=2, step=9) for one in (df, wild))
    assert found["cutoff"].nunique() == 2 and len(found) == 2 * 2 * 8
    early = (found["cutoff"] <= cut).to_numpy()
    assert early.any()
    np.testing.assert_array_equal(found[made.name][early], other[made.name][early])
    merged = found.merge(df, on=["unique_id", "ds"], suffixes=("", "_known"))
    np.testing.assert_array_equal(merged["y"], merged["y_known"])


def test_polars_comes_out_where_polars_went_in(tmp_path):
    polars = pytest.importorskip("polars", reason="polars is not installed: pip install polars")
    df = sales(2)
    found = Forecaster("theta").fit(polars.from_pandas(df)).predict(5)
    assert isinstance(found, polars.DataFrame)
    expected = Forecaster("theta").fit(df).predict(5)
    np.testing.assert_allclose(found["Theta"].to_numpy(), expected["Theta"].to_numpy())
    forecaster = Forecaster("theta").fit(polars.from_pandas(df))
    forecaster.plot(found, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 1000
    long = polars.from_pandas(df).with_columns(polars.col("y").cast(polars.Int128))
    with pytest.raises(ConfigError, match=r"Int128.*cast the column"):
        Forecaster("theta").fit(long)


def test_scores_and_pictures_of_polars_are_those_of_pandas(tmp_path):
    polars = pytest.importorskip("polars", reason="polars is not installed: pip install polars")
    df, scores = sales(2, ragged=False), []
    for name, frame in (("pandas", df), ("polars", polars.from_pandas(df))):
        forecaster = Forecaster("theta").fit(frame)
        found = forecaster.cross_validation(frame, 7, windows=2)
        forecaster.plot(found, tmp_path / f"{name}.png")
        plot_lead_error(found, forecaster.name, tmp_path / f"{name}-lead.png")
        scores.append(forecaster.scores(found))
    for end in (".png", "-lead.png"):
        mine, other = ((tmp_path / f"{name}{end}").read_bytes() for name in ("polars", "pandas"))
        assert mine == other
    assert isinstance(scores[1], polars.DataFrame)
    pd.testing.assert_frame_equal(scores[0], scores[1].to_pandas())


@pytest.mark.parametrize("name", ["zero_shot", "theta", "mixer_forecaster"])
def test_a_saved_forecaster_forecasts_the_same(name, tmp_path):
    forecaster = Forecaster(name, **SMALL[name]).fit(sales(2))
    expected = forecaster.predict(10)
    forecaster.save(tmp_path / "f")
    again = Forecaster.load(tmp_path / "f").predict(10)
    pd.testing.assert_frame_equal(again, expected, rtol=1e-6)
    with pytest.raises(DataError, match="holds no forecaster"):
        Forecaster.load(tmp_path)


def test_a_saved_forecaster_keeps_all_series_and_their_times(tmp_path):
    names = ["y", "target", "ds", "unique_id", "item_id", "time", "0", "a/b", "007"]
    days = pd.date_range("2024-01-01", periods=9)
    parts = [
        pd.DataFrame({"unique_id": name, "ds": days, "y": np.arange(9) + 10.0 * i})
        for i, name in enumerate(names)
    ]
    week = pd.DataFrame({"unique_id": "a", "ds": days[:5], "y": np.arange(5.0)})
    plan = pd.DataFrame({"unique_id": "a", "ds": days[7:9], "y": np.nan})
    frames = [
        (pd.concat(parts), {}),
        # Days, once they were said to be numbers, and numbers that may be dates.
        (week.assign(ds=range(20240101, 20240106)), {"date_order": "number"}),
        (week.assign(ds=range(31122024, 31122029)), {"date_order": "number"}),
        # That these are working days, the rows of the plan alone tell.
        (pd.concat([week, plan]).assign(promo=[0, 1.0, 0, 1, 0, 1, 0]), {"future": "promo"}),
    ]
    for i, (df, options) in enumerate(frames):
        forecaster = Forecaster("repeat", **options).fit(df)
        forecaster.save(tmp_path / str(i))
        again = Forecaster.load(tmp_path / str(i))
        pd.testing.assert_frame_equal(again.predict(2), forecaster.predict(2))
        assert again._panel.frequency == forecaster._panel.frequency
    assert list(again.predict(2)["ds"].dt.day) == [8, 9]


def test_refitting_trains_at_every_cutoff():
    df, made = sales(2, ragged=False), Forecaster("mixer_forecaster", **SMALL["mixer_forecaster"])
    once = made.cross_validation(df, 8, windows=2)
    anew = made.cross_validation(df, 8, windows=2, refit=True)
    first = (once["cutoff"] == once["cutoff"].min()).to_numpy()
    name = made.name
    np.testing.assert_allclose(once[name][first], anew[name][first], rtol=1e-6)
    assert not np.allclose(once[name][~first], anew[name][~first])


def test_wrong_use_is_named():
    with pytest.raises(ConfigError, match="did you mean 'zero_shot'"):
        Forecaster("zeroshot")
    with pytest.raises(ConfigError, match="theta takes no argument 'd_model'"):
        Forecaster("theta", d_model=3)
    with pytest.raises(ConfigError, match="no forecaster 3; known"):
        Forecaster(3)
    with pytest.raises(ConfigError, match="max_steps must be an integer of at least 1, got -1"):
        Forecaster("mixer_forecaster", max_steps=-1)  # which would train for a thousand epochs
    with pytest.raises(ConfigError, match="call fit first"):
        Forecaster("theta").predict(3)
    with pytest.raises(ConfigError, match="predict\\(28\\)"):
        Forecaster("theta").fit(sales(1)).predict()
    with pytest.raises(ConfigError, match="got list"):
        Forecaster("theta").fit([1, 2, 3])
    with pytest.raises(DataError, match="needs"):
        Forecaster("mixer_forecaster", context=50, horizon=40).fit(sales(1, 60))
    if importlib.util.find_spec("statsforecast") is None:
        with pytest.raises(ConfigError, match="pip install statsforecast"):
            Forecaster("auto_theta").fit(sales(1)).predict(3)


def test_pictures(tmp_path):
    df = sales(2, ragged=False)
    forecaster = Forecaster("zero_shot").fit(df)
    forecaster.plot(forecaster.predict(14), tmp_path / "f.png", "item1")
    found = forecaster.cross_validation(df, 7, windows=2)
    forecaster.plot(found, tmp_path / "w.png")
    plot_lead_error(found, forecaster.name, tmp_path / "e.png")
    for name in "fwe":
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(DataError, match="no target"):
        plot_lead_error(forecaster.predict(3), forecaster.name, tmp_path / "x.png")


@pytest.mark.parametrize("name", ["mixer_forecaster", "nlinear_gcv"])
def test_short_and_late_series_stop_no_other(name):
    df = sales()
    late = df[df["unique_id"] == "item0"].tail(3).assign(unique_id="late")
    gone = df[df["unique_id"] == "item0"].head(12).assign(unique_id="gone")
    many = pd.concat([df, late, gone])
    forecaster = Forecaster(name, **SMALL.get(name, {})).fit(many)
    found = forecaster.predict(8)
    assert len(found) == 5 * 8 and found[forecaster.name].notna().all()
    first = found[found["unique_id"] == "gone"]["ds"].iloc[0]
    assert first == gone["ds"].iloc[-1] + pd.Timedelta(days=1)
    backtest = forecaster.cross_validation(many, 8, windows=2)
    assert set(backtest["unique_id"]) >= set(df["unique_id"])
    assert backtest[forecaster.name].notna().all()


def test_a_ridge_is_fitted_on_all_that_is_known():
    # One series that ended early takes no rows of the others out of the fit.
    df = sales(ragged=False)
    gone = df[df["unique_id"] == "item0"].head(40).assign(unique_id="gone")
    whole = Forecaster("nlinear_ridge", context=30).fit(pd.concat([df, gone])).predict(8)
    alone = Forecaster("nlinear_ridge", context=30).fit(df).predict(8)
    error = []
    for found in (whole, alone):
        one = found[found["unique_id"] == "item1"]
        t = np.arange(120, 128)
        error.append(np.abs(one["NLinearRidge"] - 25 - 6 * np.sin(2 * np.pi * t / 7)).mean())
    assert error[0] < 1.2 * error[1]


def test_training_names_no_file_that_is_gone(capfd):
    Forecaster("mixer_forecaster", **SMALL["mixer_forecaster"]).fit(sales())
    said = "".join(capfd.readouterr())
    assert "val/loss" in said and "next:" not in said and "ckpt" not in said


def test_local_models_load_no_training_framework():
    code = (
        "import sys, numpy as np, pandas as pd\n"
        "from longseq.timeseries import Forecaster\n"
        "df = pd.DataFrame({'ds': pd.date_range('2024', periods=40), 'y': np.arange(40.0)})\n"
        "Forecaster('theta').fit(df).predict(3)\n"
        "Forecaster('zero_shot').fit(df).predict(3)\n"
        "print(sorted({'lightning', 'torchmetrics', 'matplotlib'} & set(sys.modules)))"
    )
    # A quarter of a gigabyte and seconds of start-up, which only training needs.
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().splitlines()[-1] == "[]"


def test_a_series_too_short_for_a_network_is_left_out_and_named(capsys) -> None:
    def frame(rows: dict[str, int]) -> pd.DataFrame:
        parts = []
        for name, count in rows.items():
            ds = pd.date_range(end="2024-06-30", periods=count, freq="D")
            y = np.sin(np.arange(count)) + 3
            parts.append(pd.DataFrame({"unique_id": name, "ds": ds, "y": y}))
        return pd.concat(parts, ignore_index=True)

    made = Forecaster("mixer_forecaster", horizon=4, context=40, max_steps=1)
    made.fit(frame({"a": 120, "b": 100}))
    whole = made.predict(9, frame=frame({"a": 120, "c": 60}))
    capsys.readouterr()
    found = made.predict(9, frame=frame({"a": 120, "short": 5, "c": 60}))
    said = capsys.readouterr().err
    assert said.count("left out for want of 10 rows") == 1 and "of short" in said
    pd.testing.assert_frame_equal(found, whole)
