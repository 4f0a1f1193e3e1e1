"""Fixtures of the time-series tests: small generated files."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

ETTH1 = Path(
    os.environ.get("LONGSEQ_ETTH1")
    or Path(__file__).resolve().parents[3] / "shared/data/timeseries/ETTh1.csv"
)


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def make_wide() -> Callable[..., pd.DataFrame]:
    """Returns a wide frame: daily sines with a trend and noise, under the column ``date``."""

    def make(rows: int, series: int = 2, freq: str = "h", seed: int = 0) -> pd.DataFrame:
        rng = np.random.default_rng(seed)
        t = np.arange(rows)[:, None]
        phase, level = rng.uniform(0, 6, series), rng.uniform(-5, 5, series)
        noise = 0.1 * rng.standard_normal((rows, series))
        values = np.sin(2 * np.pi * t / 24 + phase) + level + 0.002 * t + noise
        frame = pd.DataFrame(values, columns=[f"s{i}" for i in range(series)])
        frame.insert(0, "date", pd.date_range("2020-01-01", periods=rows, freq=freq))
        return frame

    return make


@pytest.fixture(scope="session")
def wide_csv(tmp_path_factory, make_wide) -> Path:
    """600 hours of two series."""
    path = tmp_path_factory.mktemp("data") / "wide.csv"
    make_wide(600).to_csv(path, index=False)
    return path


@pytest.fixture(scope="session")
def etth1() -> Path:
    """The hourly transformer data; CC BY-ND, so not part of this repository."""
    if not ETTH1.is_file():
        pytest.skip(
            "no ETTh1.csv: set LONGSEQ_ETTH1 to ETT-small/ETTh1.csv of "
            "github.com/zhouhaoyi/ETDataset"
        )
    return ETTH1
