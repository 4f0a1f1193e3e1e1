"""Training on a long Parquet file that is larger than memory: windows from pools of row groups."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from long_files import ragged, write
from longseq.core.errors import ConfigError, DataError
from longseq.core.shell.cli import main
from longseq.core.training.loading import load_task
from longseq.timeseries.data import long_file, pools
from longseq.timeseries.data.frames import read_panel
from longseq.timeseries.data.long_file import LongFile
from longseq.timeseries.data.long_file_data import LongFileData
from longseq.timeseries.data.pools import PoolWindows
from longseq.timeseries.data.protocols import Part
from longseq.timeseries.data.ragged import Ragged, RaggedWindows
from longseq.timeseries.data.windows import Scaler, Windows

L, H = 14, 4
LENGTHS = (90, 7, 300, 1, 60)


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of 64 rows, and a new pool after three batches."""
    monkeypatch.setattr(long_file, "BATCH", 64)
    monkeypatch.setattr(pools, "VISIT", 3)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Series of 90, 7, 300, 1 and 60 rows in row groups of 50; one over six of them."""
    return write(ragged(LENGTHS), tmp_path / "a.parquet", empty=True)


def made(path: Path, **more) -> LongFileData:
    usual = {"context": L, "horizon": H, "batch_size": 8, "pool": 400}
    return LongFileData(str(path), **{**usual, **more})


def batches(data: LongFileData) -> PoolWindows:
    return data.train_dataloader().dataset


def last_rows_held(path: Path) -> Scaler:
    """The scaler of every series without its last horizon, from the panel in memory."""
    panel = read_panel(path)
    rows = np.arange(len(panel))[:, None]
    values = np.where(rows < panel.ends - H, panel.values, np.nan)
    return Scaler.fit(replace(panel, values=values), Part(0, len(panel)))


def test_windows_are_those_of_the_panel(path: Path) -> None:
    panel, scaler, file = read_panel(path), last_rows_held(path), LongFile(path)
    parts = [Ragged.of(piece, file.rows_of(piece)) for piece in file.pieces()]
    whole = Ragged.joined(parts)
    mean, std = whole.scales(H)
    np.testing.assert_allclose(mean, scaler.mean, rtol=1e-12)
    np.testing.assert_allclose(std, scaler.std, rtol=1e-12)
    tiny, some = replace(whole, values=np.ldexp(whole.values, -560)).scales(H), mean != 0
    assert some.sum() > 3  # one ends before the rows that are held, and is scaled by 1
    for one, wanted in zip(tiny, (mean, std)):
        np.testing.assert_allclose(np.ldexp(one, 560)[some], wanted[some], rtol=1e-12)
    for least in (1, 5, L):
        expected = Windows(panel, scaler, range(1, len(panel) - H + 1), L, H, least)
        at = whole.cutoffs(least, H, 0)
        c = np.searchsorted(whole.bounds, at, side="right") - 1
        rows = at - whole.bounds[c] + whole.starts[c]
        # Targets beyond a series' end are padded there, and are none here.
        place, series = np.divmod(expected.pairs, len(panel.ids))
        cutoff = np.asarray(expected.cutoffs)[place]
        inside = cutoff + H <= panel.ends[series]
        pairs = sorted(zip(series[inside].tolist(), cutoff[inside].tolist()))
        assert pairs == list(zip(c.tolist(), rows.tolist())) and len(pairs) > 300
        own = RaggedWindows(whole, mean, std, expected.marks, L, H).batch(at)
        which = [expected.cutoffs.index(row) * len(panel.ids) + s for s, row in pairs]
        for name, value in expected.batch_of_pairs(np.array(which)).items():
            torch.testing.assert_close(own[name], value, rtol=1e-6, atol=1e-6, msg=name)


def test_every_window_comes_once_an_epoch_and_each_epoch_in_another_order(path: Path) -> None:
    data = made(path)
    many = batches(data)
    count = len(many)
    assert count == sum(length - 2 * H - L + 1 for length in (90, 300, 60))
    steps = -(-2 * count // 8)
    found = [many[step] for step in range(steps)]
    keys = torch.cat([torch.cat([b["x"][..., 0], b["mean"], b["unit"]], 1) for b in found])
    epochs = keys[:count], keys[count : 2 * count]
    unique = [torch.unique(one, dim=0) for one in epochs]
    assert len(unique[0]) == count
    torch.testing.assert_close(*unique, rtol=0, atol=0)
    assert not torch.equal(*epochs)
    assert len(many.groups) >= 2  # the pools of the first epoch hold more than one row group
    names = torch.unique(torch.cat([one["mean"] for one in found[:9]]))
    assert len(names) == 3  # the file is gone through long before its windows are at an end
    other = batches(made(path, seed=1))[0]
    assert not torch.equal(other["x"], found[0]["x"])


def test_a_batch_depends_on_its_step_alone(path: Path) -> None:
    many, steps = batches(made(path)), [7, 3, 91, 90, 3]
    for step in steps:
        fresh = batches(made(path))[step]
        for name, value in many[step].items():
            assert torch.equal(value, fresh[name])


def test_ranks_share_a_step(path: Path) -> None:
    data = made(path, batch_size=8)
    one = batches(data)
    groups, scaler = data._found[:2]
    common = (data.file, groups, scaler, one.sizes, 400)
    pair = [PoolWindows(*common, 4, 0, rank, 2) for rank in (0, 1)]
    for step in (0, 5, 60):
        parts = [rank[step]["x"] for rank in pair]
        torch.testing.assert_close(torch.cat(parts), one[step]["x"], rtol=0, atol=0)


def test_workers_change_nothing(path: Path) -> None:
    found = []
    for workers in (0, 2):
        data = made(path, num_workers=workers, steps_per_epoch=7)
        found.append(list(data.train_dataloader()))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one["x"], other["x"]) and torch.equal(one["y"], other["y"])


def test_validation_is_the_last_horizon_of_a_sample(path: Path) -> None:
    panel, scaler = read_panel(path), last_rows_held(path)
    (batch,) = made(path).val_dataloader()
    assert batch["x"].shape == (3, L, 1)  # of 7 rows and of one, none has a context before it
    for i, c in enumerate((0, 2, 4)):
        end = panel.ends[c]
        seen = batch["y_mask"][i, :, 0].numpy()
        expected = (panel.values[end - H : end, c] - scaler.mean[c]) / scaler.std[c]
        np.testing.assert_array_equal(seen, ~np.isnan(expected))
        np.testing.assert_allclose(batch["y"][i, seen, 0], expected[seen], rtol=1e-5)
        known = (panel.carried()[end - H - L : end - H, c] - scaler.mean[c]) / scaler.std[c]
        np.testing.assert_allclose(batch["x"][i, :, 0], known, rtol=1e-4, atol=1e-5)
    (few,) = made(path, valid_series=1).val_dataloader()
    assert len(few["x"]) == 1
    (all_,) = made(path, min_context=1).val_dataloader()
    assert len(all_["x"]) == 4 and not all_["x_mask"][1, :11].any()


@pytest.mark.parametrize("pool", [400, 3_000_000])
def test_baselines_see_the_windows_that_were_tested(path: Path, tmp_path: Path, pool: int) -> None:
    file = write(ragged(LENGTHS), tmp_path / "b.parquet", 20)  # groups that fit small pools
    data = made(file, pool=pool, valid_series=4, min_context=3)
    (own,) = data.val_dataloader()
    beside = data.sample().windows("test")
    found = beside.batch_of_pairs(beside.pairs)
    for name in ("x", "y", "x_mask", "y_mask", "mean", "unit", "zero"):
        mask = found["y_mask"] if name == "y" else True
        torch.testing.assert_close(own[name] * mask, found[name] * mask, msg=name)
    assert len(data.sample().windows("train").pairs) >= 90


def test_nothing_of_the_last_horizon_trains(path: Path, tmp_path: Path) -> None:
    frame = ragged(LENGTHS)
    last = frame.groupby("unique_id").cumcount(ascending=False) < H
    frame["y"] = frame["y"].where(~last | frame["y"].isna(), 1e6)
    changed = batches(made(write(frame, tmp_path / "b.parquet", empty=True)))
    before = batches(made(path))
    for step in range(0, 45, 3):
        for name, value in before[step].items():
            assert torch.equal(changed[step][name], value)


def test_what_cannot_be_trained_on_is_refused(path: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a row group of 3\d\d rows, the pool holds 100"):
        made(path, pool=100).setup()
    with pytest.raises(DataError, match="no series has 300 rows before"):
        made(path, context=300).setup()
    with pytest.raises(ConfigError, match="never all in memory"):
        made(path).windows("train")
    with pytest.raises(ConfigError, match="pool"):
        made(path, pool=0)
    assert made(path).not_counts() == "s0"
    counts = ragged(LENGTHS).assign(y=lambda frame: np.floor(frame["y"]))
    counts.loc[counts["unique_id"] == "s3", "y"] = np.nan
    assert made(write(counts, tmp_path / "c.parquet")).not_counts() is None


FIT = [
    *("timeseries", "fit", "--data", "LongFileData", "--model", "MixerForecaster"),
    *("--data.pool=400", "--data.batch_size=8", f"--data.context={L}", f"--model.horizon={H}"),
    *("--model.d_model=8", "--model.n_layers=1", "--model.patch=7", "--model.stride=7"),
    *("--trainer.val_check_interval=2", "--data.min_context=3"),
]


def last(root: Path, name: str) -> Path:
    (file,) = root.rglob(f"{name}/version_0/checkpoints/last.ckpt")
    return file


def test_fit_resumes_and_its_model_forecasts_in_pieces(
    path: Path, workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # A constant rate, so that a run of four steps is the beginning of one of six.
    steady = ["--model.warmup_steps=0", "--model.min_lr_ratio=1", "--model.dropout=0.1"]
    run = [*FIT, *steady, f"--data.path={path}"]
    assert main([*run, "--trainer.max_steps=6", "--name=whole"]) == 0
    assert "5 series of 458 rows" in (said := capsys.readouterr().out) and "4 series vali" in said
    assert main([*run, "--trainer.max_steps=4", "--name=half"]) == 0
    half = ["--ckpt_path", str(last(workdir, "half")), "--trainer.max_steps=6", "--name=on"]
    assert main(["timeseries", "fit", *half, "--data.num_workers=2"]) == 0
    whole, resumed = (torch.load(last(workdir, n), weights_only=True) for n in ("whole", "on"))
    assert resumed["global_step"] == 6
    for name, value in whole["state_dict"].items():
        assert torch.equal(value, resumed["state_dict"][name]), name
    task = load_task(last(workdir, "whole"), "timeseries")
    assert task.facts["frequency"] == "D" and len(task.get_scaler().ids) == 5
    assert task.facts["train_end"].startswith("2024-03-27")
    capsys.readouterr()
    frame = ragged(LENGTHS)
    longer = write(frame[frame["unique_id"] != "s3"], workdir / "b.parquet")
    argv = ["timeseries", "predict", str(longer), "--ckpt_path", str(last(workdir, "whole"))]
    for how in ("yes", "no"):
        assert main([*argv, "--in_pieces", how, "--out", f"{how}.parquet"]) == 0
    found = [pd.read_parquet(f"{how}.parquet") for how in ("yes", "no")]
    pd.testing.assert_frame_equal(*found, rtol=1e-5)


def test_models_of_all_series_and_of_counts_are_refused(
    path: Path, workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ["timeseries", "fit", "--data", "LongFileData", f"--data.path={path}"]
    sizes = [f"--data.context={L}", f"--model.horizon={H}"]
    counts = ["--model", "MixerForecaster", "--model.likelihood=poisson", "--model.patch=7"]
    more = ["--model", "Informer", "--model.label=7", "--model.channels=5", "--model.features=3"]
    for model, named in (
        (more, "takes all series at once"),
        (counts, "s0 has values that are no counts"),
    ):
        assert main([*run, *model, *sizes]) == 2
        assert named in capsys.readouterr().err
