"""Comparing models with baselines: the table, the verdict, and what is refused."""

from pathlib import Path

import pandas as pd
import pytest

from longseq.core.shell.cli import main
from longseq.timeseries import ForecastData, make_baseline
from longseq.timeseries.compare import ForecastComparison, evaluate


def test_models_stand_beside_baselines_with_a_verdict(
    wide_csv: Path, tmp_path: Path, capsys
) -> None:
    out = tmp_path / "table.csv"
    argv = [
        "timeseries",
        "compare",
        "--data",
        str(wide_csv),
        "--context",
        "48",
        "--horizons",
        "6,12",
    ]
    argv += [
        "--models",
        "repeat,seasonal_naive,nlinear_ridge,dlinear_ridge,mixer_forecaster",
        "--seeds",
        "0,1",
    ]
    argv += [
        "--out",
        str(out),
        "--folder",
        str(tmp_path / "runs"),
        "--model.d_model=8",
        "--model.n_layers=1",
    ]
    assert main([*argv, "--trainer.max_steps=2", "--trainer.val_check_interval=2"]) == 0
    table = pd.read_csv(out)
    assert list(table.columns) == list(ForecastComparison.columns) and len(table) == 2 * (4 + 2)
    assert (
        set(table["horizon"]) == {6, 12} and (table["windows"][table["horizon"] == 6] == 115).all()
    )
    trained = table[table["kind"] == "model"]
    assert set(trained["model"]) == {"mixer_forecaster"}
    assert set(trained["seed"]) == {0, 1} and trained["verdict"].str.contains("best baseline").all()
    assert table[table["kind"] == "baseline"]["seed"].isna().all()
    assert trained.groupby("horizon")["mse"].nunique().eq(2).all()  # two seeds, two results
    text = capsys.readouterr().out
    assert text.count("the best baseline") == 2 and "115 test windows" in text


def test_five_lines_of_python_give_the_figures_of_the_table(wide_csv: Path, tmp_path: Path) -> None:
    out = tmp_path / "table.csv"
    argv = ["timeseries", "compare", f"--data={wide_csv}", "--context=48", "--horizons=12"]
    assert main([*argv, f"--out={out}"]) == 0
    table = pd.read_csv(out)
    assert len(table) == len(ForecastComparison.usual)
    for row in table.itertuples():
        data = ForecastData(str(wide_csv), "ratio", context=48, horizon=12)
        model = make_baseline(row.model, 12, season=24)
        model.fit(data.windows("train"))
        assert evaluate(model, data.windows("test")) == pytest.approx((row.mse, row.mae), rel=1e-12)


def test_the_same_seed_gives_the_same_result(wide_csv: Path, tmp_path: Path) -> None:
    tables = []
    for run in "ab":
        out = tmp_path / f"{run}.parquet"
        argv = [
            "timeseries",
            "compare",
            "--data",
            str(wide_csv),
            "--context",
            "48",
            "--horizons",
            "6",
        ]
        argv += ["--models", "spacetime", "--out", str(out), "--folder", str(tmp_path / run)]
        argv += ["--model.d_model=8", "--model.d_state=4", "--trainer.max_steps=3"]
        assert main([*argv, "--trainer.val_check_interval=3", "--protocol", "rolling"]) == 0
        tables.append(pd.read_parquet(out))
    assert tables[0]["mse"][0] == tables[1]["mse"][0] and tables[0]["windows"][0] == 5


def test_a_checkpoint_is_scored_as_after_its_training(
    wide_csv: Path, workdir: Path, capsys
) -> None:
    argv = ["timeseries", "compare", "--data", str(wide_csv), "--context", "48", "--horizons", "6"]
    small = [
        "--model.d_model=8",
        "--model.n_layers=1",
        "--trainer.max_steps=2",
        "--trainer.val_check_interval=2",
    ]
    curves = ["--curves", "curves.png"]
    assert main([*argv, "--models", "mixer_forecaster", *small, "--out", "a.tsv", *curves]) == 0
    assert "nothing to compare it with" in capsys.readouterr().out
    points = pd.read_csv("curves.csv")  # without a budget of CPU time over steps
    assert points["model"].tolist() == ["mixer_forecaster h6"] and points["step"].tolist() == [2]
    assert points["cpu_seconds"].isna().all() and points["val/loss"].between(0, 10).all()
    (best,) = workdir.glob(
        "outputs/timeseries/mixer_forecaster_h6_seed0/version_0/checkpoints/best.ckpt"
    )
    assert main([*argv, "--models", f"repeat,{best}", "--out", "b.parquet"]) == 0
    first, again = pd.read_csv("a.tsv", sep="\t"), pd.read_parquet("b.parquet")
    assert first["mse"][0] == again["mse"][1] and again["seed"].isna().all()
    assert main([*argv[:-1], "12", "--models", str(best), "--out", "c.csv"]) == 2
    assert "has horizon 6, the comparison 12" in capsys.readouterr().err
    assert main([*argv, "--protocol", "rolling", "--models", str(best), "--out", "c.csv"]) == 2
    assert "was trained on other rows" in capsys.readouterr().err
    assert (
        main([*argv, "--models", "mixer_forecaster", "--data.protocol=rolling", "--out", "c.csv"])
        == 2
    )
    assert "--data.protocol: follows from the data" in capsys.readouterr().err


def test_the_table_of_curves_is_never_an_input(workdir: Path, wide_csv: Path, capsys):
    kept = Path("kept.csv")
    kept.write_bytes(wide_csv.read_bytes())
    argv = ["timeseries", "compare", "--horizons", "6", "--models", "mixer_forecaster"]
    argv += ["--out", "a.csv", "--curves", "kept.png", "--data"]
    assert main([*argv, str(kept)]) == 2
    assert "--curves kept.csv would overwrite the input kept.csv" in capsys.readouterr().err
    assert main([*argv, str(wide_csv), f"--model.mixer_kwargs={kept}"]) == 2
    assert "--curves kept.csv would overwrite the input" in capsys.readouterr().err
    assert kept.read_bytes() == wide_csv.read_bytes() and not Path("kept.png").exists()


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["--models", "nlinear_rigde"], "did you mean 'nlinear_ridge'"),
        (["--horizons", "6,x"], "--horizons"),
        (["--horizons", "6,6"], "distinct"),
        (["--horizons", "700"], "leave no"),
        (["--data", "none.csv"], "none.csv"),
        (["--protocol", "ett"], "needs 14400"),
        (["--out", "table.txt"], "table.txt"),
        (["--modle.d_model=8"], "--modle.d_model"),
        (["--season", "100"], "one season of 100"),
        (["--series", "s0,s7"], "no series 's7'"),
        (["--ridge", "-1"], "ridge must be above 0"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    more, named, wide_csv: Path, tmp_path: Path, capsys
) -> None:
    out = tmp_path / "table.csv"
    out.write_text("earlier")
    argv = ["timeseries", "compare", "--data", str(wide_csv), "--context", "48", "--horizons", "6"]
    assert main([*argv, "--out", str(out), *more]) == 2
    (line,) = [text for text in capsys.readouterr().err.splitlines() if text.startswith("error: ")]
    assert named in line and out.read_text() == "earlier"
