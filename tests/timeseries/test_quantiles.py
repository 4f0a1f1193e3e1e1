"""Forecasts of what has no negative values, and what is said where some may have."""

import numpy as np
import pandas as pd

from longseq.timeseries.data.frames import panel_of
from longseq.timeseries.zero_shot import Quantiles, zero_shot_frame


def test_what_came_close_to_zero_stays_above_it():
    packaged, t = Quantiles(), np.arange(120)
    decays = [100 * np.exp(-t / 15), 1000 * np.exp(-(((t - 40) / 20) ** 2)) + 0.01]
    assert packaged.forecast(decays, 24).min() >= 0
    assert packaged.forecast([decays[0] - 1], 24).min() < 0


def test_series_that_fall_below_zero_for_the_first_time_are_named(capsys):
    packaged, t = Quantiles(), np.arange(120)
    days = pd.date_range("2024-01-01", periods=120)
    columns = {
        "charge": 100 - 0.82 * t,
        "balance": 50 - 0.82 * t,
        "high": 1000.5 + 10 * np.sin(2 * np.pi * t / 7),
    }
    panel = panel_of(pd.DataFrame(columns, index=days), source="m")
    found = zero_shot_frame(panel, 24, quantiles=packaged).set_index("unique_id")
    assert found.loc["charge", "ZeroShot"].min() < 0
    said = capsys.readouterr().err
    assert "of 'charge' fall below 0, which the known values never did" in said
    assert "balance" not in said and "high" not in said
    panel = panel_of(pd.DataFrame(columns | {"more": columns["charge"]}, index=days), source="m")
    zero_shot_frame(panel, 24, levels=(), quantiles=packaged)
    assert "of 'charge' and 1 series more fall" in capsys.readouterr().err
    zero_shot_frame(panel, 24, [100], quantiles=packaged)  # a back-test
    zero_shot_frame(panel.select(["balance", "high"]), 24, quantiles=packaged)
    assert capsys.readouterr().err == ""
