"""The demo of time series, from training to page; the packaged sample and its picture."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pandas as pd

from longseq.core.shell.cli import main
from longseq.timeseries.data.frames import read_panel
from longseq.timeseries.data.samples import SAMPLES


def test_the_packaged_sample_is_the_one_its_source_names() -> None:
    path = SAMPLES.path("electricity_demand")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert f"SHA-256: `{digest}`" in path.with_name("SOURCE.md").read_text(encoding="utf-8")
    panel = read_panel("electricity_demand")
    assert panel.values.shape == (4032, 1) and panel.season() == 48
    assert str(panel.ds[0]) == "2000-06-05 00:00:00" and panel.values[0, 0] == 22262


def test_the_demo_runs(tmp_path: Path, capsys) -> None:
    assert main(["timeseries", "demo", "--out", str(tmp_path), "--max_steps", "2"]) == 0
    out = capsys.readouterr().out
    for name in (
        "repeat",
        "same time yesterday",
        "same time a week ago",
        "NLinear (ridge)",
        "mamba (this run)",
    ):
        assert name in out
    assert "mamba (this run) does not beat the best baseline" in out  # two steps do not
    folder = tmp_path / "timeseries/fit/version_0"
    frame = pd.read_csv(folder / "forecasts.csv")
    assert len(frame) == 5 * 48 and frame["y"].notna().all()
    assert {"MixerForecaster", "MixerForecaster-lo-80", "SeasonalNaive"} <= set(frame.columns)
    assert (folder / "forecasts.png").read_bytes().startswith(b"\x89PNG")
    assert "data:image/png;base64," in (tmp_path / "index.html").read_text(encoding="utf-8")
