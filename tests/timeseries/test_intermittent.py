"""Upper ends of intervals of values that are mostly zero."""

import numpy as np
import pandas as pd

from longseq.timeseries.data.frames import panel_of
from longseq.timeseries.intermittent import reach_of_intermittent
from longseq.timeseries.zero_shot import zero_shot_frame

DEMAND = np.random.default_rng(0).poisson(0.2, (60, 314)).astype(float)


def test_intervals_of_intermittent_demand_hold_what_they_say():
    # Extrapolated from nine quantiles alone, 0.85 of the values lie in the interval of 95%.
    wide = pd.DataFrame(DEMAND[:, :300].T, columns=[f"i{i}" for i in range(60)])
    wide.insert(0, "ds", pd.date_range("2024-01-01", periods=300))
    found = zero_shot_frame(panel_of(wide, source="a.csv"), 14, levels=(80, 90, 95, 99))
    ends = {n: found[f"ZeroShot-hi-{n}"].to_numpy().reshape(60, 14) for n in (80, 90, 95, 99)}
    for level in (90, 95, 99):
        assert (DEMAND[:, 300:] <= ends[level]).mean() > 0.5 + level / 200 - 0.01
    assert (ends[80] <= ends[90]).all() and (ends[90] <= ends[95]).all()
    assert (ends[95] <= ends[99]).all()


def test_the_mixture():
    rows = np.zeros(100)
    rows[np.random.default_rng(1).permutation(90)[:10]] = np.arange(1, 11)
    rows[-1] = 11
    (low,), (high,), (most,) = (reach_of_intermittent([rows], p) for p in (0.6, 0.95, 0.9999))
    assert low == 0 and 1 < high < 11 and most == 11
    gaps = np.where(np.arange(100) % 7 == 3, np.nan, rows)
    assert np.isfinite(reach_of_intermittent([gaps], 0.95)).all()


def test_what_is_regular_ended_or_mostly_there_is_left_alone():
    hours = np.arange(24 * 14) % 24
    sun = np.where((hours > 7) & (hours < 17), 50.0, 0.0)  # no night has a day's power
    mondays = np.where(np.arange(300) % 7 == 0, DEMAND[0, :300] + 1, 0.0)
    ended = np.concatenate([DEMAND[1, :240], np.zeros(60)])
    both = np.where(DEMAND[2] > 0, DEMAND[2], -1 * (DEMAND[3] > 0))
    often = np.random.default_rng(2).poisson(1.0, 300).astype(float)
    left = [sun, mondays, ended, both, often, np.zeros(50), np.ones(1), np.zeros(1)]
    assert (reach_of_intermittent(left, 0.975) == -np.inf).all()
