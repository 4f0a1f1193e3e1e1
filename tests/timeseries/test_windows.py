"""Windows: every cutoff once, the scaler from training rows only, batches a pure function of the
step."""

import numpy as np
import pytest
import torch

from longseq.core.errors import ConfigError
from longseq.timeseries.data.calendar import N_FEATURES, calendar_features, resolution
from longseq.timeseries.data.frames import read_panel
from longseq.timeseries.data.module import ForecastData
from longseq.timeseries.data.windows import Scaler, TrainWindows


@pytest.fixture
def data(wide_csv) -> ForecastData:
    return ForecastData(str(wide_csv), "ratio", 48, 12, batch_size=8, eval_batch_size=7)


def test_the_scaler_sees_training_rows_only(data, make_wide, tmp_path) -> None:
    end = data.split().train.end
    wild = make_wide(600)
    wild.iloc[end:, 1:] = 1e6
    wild.to_csv(tmp_path / "wild.csv", index=False)
    other = ForecastData(str(tmp_path / "wild.csv"), "ratio", 48, 12)
    np.testing.assert_allclose(other.scaler().mean, data.scaler().mean, rtol=1e-12)
    np.testing.assert_allclose(other.scaler().std, data.scaler().std, rtol=1e-12)
    scaled = data.scaler().transform(data.panel.values[:end])
    np.testing.assert_allclose(scaled.mean(0), 0, atol=1e-12)
    np.testing.assert_allclose(scaled.std(0), 1, atol=1e-12)
    np.testing.assert_allclose(data.scaler().inverse(scaled), data.panel.values[:end], rtol=1e-12)
    assert Scaler.from_dict(data.scaler().to_dict()).to_dict() == data.scaler().to_dict()


def test_a_constant_series_is_scaled_by_one(make_wide, tmp_path) -> None:
    wide = make_wide(600)
    wide["s1"] = 3.0
    wide.to_csv(tmp_path / "flat.csv", index=False)
    scaler = ForecastData(str(tmp_path / "flat.csv"), "ratio", 48, 12).scaler()
    assert scaler.std[1] == 1 and scaler.mean[1] == 3


def test_every_test_window_comes_once_and_none_is_dropped(data) -> None:
    part = data.split().test
    expected = part.end - part.start - 12 + 1
    batches = list(data.test_dataloader())
    assert (
        sum(len(batch["x"]) for batch in batches) == 2 * expected == 2 * len(data.windows("test"))
    )
    assert len(batches[-1]["x"]) == (2 * expected % 7 or 7)
    # A window is a cutoff and a series; the series of a cutoff follow one another.
    x, y = (torch.cat([batch[name] for batch in batches]) for name in ("x", "y"))
    x, y = (v.unflatten(0, (-1, 2)).squeeze(-1).transpose(1, 2) for v in (x, y))
    scaled = torch.from_numpy(data.scaler().transform(data.panel.values)).float()
    for k in (0, 1, expected - 1):
        row = part.start + k
        torch.testing.assert_close(x[k], scaled[row - 48 : row])
        torch.testing.assert_close(y[k], scaled[row : row + 12])


def test_no_training_window_reaches_beyond_the_training_rows(data) -> None:
    windows, end = data.windows("train"), data.split().train.end
    assert (
        windows.cutoffs[0] == 48
        and windows.cutoffs[-1] + 12 == end
        and len(windows) == end - 48 - 12 + 1
    )


def test_training_batches_are_a_function_of_the_step_and_an_epoch_takes_each_window_once(
    data,
) -> None:
    windows = data.windows("train")
    first, again = TrainWindows(windows, 8, 3), TrainWindows(windows, 8, 3)
    torch.testing.assert_close(first[70]["x"], again[70]["x"], rtol=0, atol=0)
    assert not torch.equal(first[0]["x"], TrainWindows(windows, 8, 4)[0]["x"])
    steps = -(-len(windows) // 8)
    seen = torch.cat([first[n]["y"][:, 0, 0] for n in range(steps)])[: len(windows)]
    assert len(seen.unique()) == len(windows)
    # Two processes share what one would see.
    for world in (2, 4):
        shares = [TrainWindows(windows, 8 // world, 3, rank, world) for rank in range(world)]
        for step in (0, 5, steps):
            assert torch.equal(torch.cat([one[step]["x"] for one in shares]), first[step]["x"])


def test_calendar_features_are_known_ahead_and_scaled(wide_csv) -> None:
    panel = read_panel(wide_csv)
    assert resolution(panel.freq) == "h" and resolution(1) == "n"
    for kind, count in N_FEATURES.items():
        assert calendar_features(panel.ds, kind).shape == (600, count)
    marks = calendar_features(panel.ds, "t")
    assert marks.min() >= -0.5 and marks.max() <= 0.5
    np.testing.assert_allclose(marks[5], [-0.5, 5 / 23 - 0.5, 2 / 6 - 0.5, -0.5, -0.5], atol=1e-7)


def test_wrong_sizes_are_refused(wide_csv) -> None:
    with pytest.raises(ConfigError, match="horizon"):
        ForecastData(str(wide_csv), horizon=0)
    with pytest.raises(ConfigError, match="protocol"):
        ForecastData(str(wide_csv), protocol="etth")
