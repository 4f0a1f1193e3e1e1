"""Names of series stay what they are in the file."""

from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pytest

from longseq.core.errors import DataError
from longseq.timeseries import Forecaster
from longseq.timeseries.data.frames import Roles, read_panel
from longseq.timeseries.data.text import read_text
from longseq.timeseries.predict import run

DAYS = pd.date_range("2024-01-01", periods=20)


def written(file: Path, names: list[str], mark: str = ",", header: str = "unique_id") -> Path:
    rows = [f"{name}{mark}{day.date()}{mark}{i}\n" for name in names for i, day in enumerate(DAYS)]
    file.write_text(f"{header}{mark}ds{mark}y\n" + "".join(rows))
    return file


@pytest.mark.parametrize("mark", [",", ";"])
@pytest.mark.parametrize(
    "names", [["007", "7", "07"], ["1e5", "100000", "1.0"], ["NA", "US"], ["null", "None", "True"]]
)
def test_names_in_text_are_kept(names, mark, tmp_path):
    file = written(tmp_path / "a.csv", names, mark)
    assert read_panel(file).ids == tuple(names)
    other = written(tmp_path / "b.csv", names, mark, " Shop")
    assert read_panel(other, roles=Roles(id="Shop", target="y")).ids == tuple(names)


def test_missing_values_are_missing_beside_names(tmp_path):
    file = written(tmp_path / "a.csv", ["NA"])
    text = file.read_text().replace(",3\n", ",NA\n").replace(",4\n", ",\n")
    file.write_text(text)
    assert read_panel(file).missing == 2
    file.write_text(text.replace("NA,2024-01-05", ",2024-01-05"))
    with pytest.raises(DataError, match="line 6: 'unique_id' is empty"):
        read_panel(file)


def test_forecasts_of_a_file_and_its_plan_carry_the_names(tmp_path, capsys):
    file = written(tmp_path / "a.csv", ["007", "08"])
    table = pd.read_csv(file, dtype=str).assign(promo=0)
    table.to_csv(file, index=False)
    after = pd.date_range("2024-01-21", periods=2)
    plan = pd.DataFrame({"unique_id": np.repeat(["007", "08"], 2), "ds": [*after, *after]})
    plan.assign(promo=1).to_csv(tmp_path / "plan.csv", index=False)
    out = tmp_path / "out.csv"
    options = ["--horizon=2", "--future=promo", f"--future_frame={tmp_path / 'plan.csv'}"]
    assert run([str(file), *options, f"--out={out}"]) == 0
    assert pd.read_csv(out, dtype=str)["unique_id"].tolist() == ["007", "007", "08", "08"]


def test_a_number_and_a_text_are_no_two_series_of_one_name():
    names = np.repeat(np.array([1, "1"], object), 20)
    frame = pd.DataFrame({"unique_id": names, "ds": [*DAYS, *DAYS], "y": 1.0})
    with pytest.raises(DataError, match="row 20: 'unique_id' is '1', and a series before it"):
        Forecaster("theta").fit(frame)


def test_a_lazy_frame_of_polars_is_collected():
    frame = pl.DataFrame({"ds": DAYS.to_numpy(), "y": np.arange(20.0)})
    found = Forecaster("theta").fit(frame.lazy()).predict(2)
    assert found.equals(Forecaster("theta").fit(frame).predict(2))


def test_lines_may_end_in_carriage_returns(tmp_path):
    text = b"unique_id,ds,y\n007,2024-01-01,1\n007,2024-01-02,2\n"
    file = tmp_path / "old.csv"
    file.write_bytes(text.replace(b"\n", b"\r"))
    found = read_text(file, ",", ("unique_id",))
    assert found.to_numpy().tolist() == [["007", "2024-01-01", 1], ["007", "2024-01-02", 2]]
