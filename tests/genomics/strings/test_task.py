"""Tests of models of strings: data, training, resume, test beside order-k models, completion."""

from pathlib import Path

import numpy as np
import pytest
import torch

from longseq.core.errors import ConfigError, DataError
from longseq.core.shell.cli import main
from longseq.core.training import fit
from longseq.core.training.loading import load_task
from longseq.genomics.data.tokenizer import IGNORE_INDEX
from longseq.genomics.strings.alphabets import BEGIN, END, MIDDLE, PREFIX
from longseq.genomics.strings.data import StringData, batch
from longseq.genomics.strings.task import StringLanguageModel

SHAPE = {"d_model": 16, "n_layers": 1, "mixer": "mlstm", "mixer_kwargs": {"n_heads": 2}}


@pytest.fixture
def proteins(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    path = tmp_path / "some.faa"
    rows = ["M" + "KVLA" * int(rng.integers(1, 20)) for _ in range(30)]
    path.write_text("".join(f">p{i}\n{row}\n" for i, row in enumerate(rows)))
    return path


def test_equal_strings_are_on_one_side(proteins: Path) -> None:
    data = StringData(str(proteins), valid_fraction=0.2, test_fraction=0.4)
    parts = data.parts()
    sides = {k: {data.strings[i].tobytes() for i in rows} for k, rows in parts.items()}
    assert sum(map(len, parts.values())) == 30
    assert sides["test"] and sides["train"]
    assert not sides["train"] & sides["test"] and not sides["train"] & sides["valid"]


def test_long_strings_have_the_marks_of_their_own_ends(tmp_path: Path) -> None:
    path = tmp_path / "one.faa"
    path.write_text(">a\nMKVLAW\n")
    data = StringData(str(path), max_length=4, infill=0.0, valid_fraction=0, test_fraction=0)
    seen = {tuple(data.training_strings().string(0, epoch).tolist()) for epoch in range(40)}
    assert {(row[0] == BEGIN, row[-1] == END) for row in seen} == {
        (True, False),
        (False, False),
        (False, True),
    }
    assert {len(row) for row in seen} == {4, 5}


def test_what_no_model_can_know_is_not_scored(tmp_path: Path) -> None:
    path = tmp_path / "one.faa"
    path.write_text(">a\nMKVLAW\n>b\nM\n")
    data = StringData(str(path), infill=1.0, valid_fraction=0, test_fraction=0)
    found = batch([data.training_strings().string(row, 0) for row in (0, 1)])
    ids, targets = found["input_ids"], found["targets"]
    assert (ids[:, 0] == PREFIX).all()
    known = targets[targets != IGNORE_INDEX]
    assert sorted(known.tolist()) == sorted(
        [*data.strings[0].tolist(), *data.strings[1].tolist(), END, END]
    )
    assert (ids == MIDDLE).sum() == 2


def test_trains_resumes_and_is_tested_beside_order_k_models(
    proteins: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ["genomics", "fit", "--model", "longseq.genomics.strings.task.StringLanguageModel"]
    base += ["--data", "longseq.genomics.strings.data.StringData", "--data.file", str(proteins)]
    base += ["--model.d_model", "16", "--model.n_layers", "1", "--data.batch_size", "4"]
    base += ["--trainer.default_root_dir", str(tmp_path / "runs"), "--trainer.max_steps"]
    assert main([*base, "6"]) == 0
    capsys.readouterr()
    command = ["genomics", "test", "--ckpt_path", str(next(tmp_path.rglob("last.ckpt")))]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "order 4" in said and "bits per symbol" in said and "best baseline" in said


def test_python_and_completion(proteins: Path, tmp_path: Path) -> None:
    data = StringData(str(proteins), batch_size=8, infill=0.5)
    run = fit(
        StringLanguageModel("protein", **SHAPE, lr=1e-2), data, out=tmp_path / "r", max_steps=60
    )
    task = load_task(run.last, StringLanguageModel)
    assert isinstance(task, StringLanguageModel)
    drawn = task.complete("MKV", count=3, seed=1)
    assert all(text.startswith("MKV") for text in drawn)
    assert drawn == task.complete("mkv ", count=3, seed=1)
    filled = task.complete("MK", "KVLA", count=3, temperature=0, most=12)
    assert all(text.startswith("MK") and text.endswith("KVLA") for text in filled)
    with pytest.raises(DataError, match="position 1"):
        task.complete("1")
    with pytest.raises(ConfigError, match="at least 1"):
        task.complete(count=0)
    with pytest.raises(ConfigError, match="most must be at least 1, got 0"):
        task.complete(most=0)
    out = tmp_path / "out.faa"
    command = ["genomics", "complete", "--ckpt_path", str(run.last), "--out", str(out)]
    assert main([*command, "--infill", "MK_LA", "--count", "2", "--known", str(proteins)]) == 0
    assert out.read_text().count(">") == 2
    assert main([*command, "--infill", "MKLA"]) == 2


def test_a_model_that_never_filled_in_says_so(proteins: Path, tmp_path: Path) -> None:
    data = StringData(str(proteins), infill=0.0)
    run = fit(StringLanguageModel("protein", **SHAPE), data, out=tmp_path / "r", max_steps=1)
    with pytest.raises(ConfigError, match="infill=0"):
        load_task(run.last, StringLanguageModel).complete("M", "K")


def test_wrong_settings(proteins: Path) -> None:
    with pytest.raises(ConfigError, match="at most 1"):
        StringData(str(proteins), valid_fraction=0.6, test_fraction=0.6)
    with pytest.raises(ConfigError, match="infill"):
        StringData(str(proteins), infill=2)
    with pytest.raises(ConfigError, match="causal"):
        StringLanguageModel("protein", 16, 1, "bidirectional", {"mixer": "mamba"})
    alone = StringData(str(proteins), valid_fraction=0, test_fraction=1)
    with pytest.raises(DataError, match="in the train part"):
        alone.setup("fit")
    alone.setup("test")
    with pytest.raises(DataError, match="in the test part"):
        StringData(str(proteins), test_fraction=0).setup("test")


def test_only_symbols_and_the_end_can_follow() -> None:
    torch.manual_seed(0)
    task = StringLanguageModel("smiles", **SHAPE).eval()
    with torch.no_grad():
        p = task(torch.tensor([[BEGIN, 20, 21]])).softmax(-1)
    assert p[..., [0, 1, 3, 4, 5]].max() == 0 and p[..., task.alphabet.size :].max() == 0
    assert p.sum(-1).numpy() == pytest.approx(np.ones((1, 3)), rel=1e-6)


def test_workers_make_the_same_batches(proteins: Path) -> None:
    alone, helped = (StringData(str(proteins), batch_size=4, num_workers=n) for n in (0, 2))
    for one, other in zip(alone.train_dataloader(), helped.train_dataloader(), strict=True):
        assert torch.equal(one["input_ids"], other["input_ids"])
        assert torch.equal(one["targets"], other["targets"])
