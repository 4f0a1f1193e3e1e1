"""Labelled sequences: reading, splits without leaks, symmetric models, folds beside baselines."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch

from longseq.core.errors import ConfigError, DataError
from longseq.core.shell.cli import main
from longseq.genomics.cross_validation import cross_validate, together
from longseq.genomics.data.labelled import LabelledData, fold_of, read_labelled
from longseq.genomics.data.padding import pad
from longseq.genomics.data.tokenizer import encode, reverse_complement
from longseq.genomics.models.sequence_model import SequenceModel, reverse_complement_rows
from longseq.genomics.sequence_baselines import kmer_shares, positions
from longseq.genomics.sequence_task import SequencePrediction

ENCODER = {"d_model": 8, "n_layers": 2, "mixer": "mamba", "mixer_kwargs": {"d_state": 2}}
BOTH = {"mixer": "bidirectional", "mixer_kwargs": {"mixer": "mamba"}}


@pytest.fixture
def files(write_fasta, tmp_path):
    """60 sequences of ragged lengths whose GC content is their class; one has a twin."""
    rng = np.random.default_rng(0)
    records, rows = {}, []
    for i in range(60):
        share = 0.8 if i % 2 else 0.2
        weights = [(1 - share) / 2, share / 2, share / 2, (1 - share) / 2]
        records[f"s{i}"] = "".join(rng.choice(list("ACGT"), 20 + i % 7, p=weights))
        rows.append((f"s{i}", "GC rich" if i % 2 else "AT rich", share))
    twin = encode(records["s0"])
    records["s60"] = "".join("ACGT"[i - 7] for i in reverse_complement(twin))
    rows.append(("s60", "AT rich", 0.2))
    table = pd.DataFrame(rows, columns=["name", "label", "share"])
    table.to_csv(tmp_path / "y.tsv", sep="\t", index=False)
    numbers = table.assign(label=table["share"])
    numbers.to_csv(tmp_path / "n.csv", index=False)
    return write_fasta(records), tmp_path / "y.tsv", tmp_path / "n.csv"


def test_equal_sequences_share_a_fold(files) -> None:
    found = read_labelled(*files[:2])
    assert found.groups[0] == found.groups[60] and len(set(found.groups)) == 60
    for seed in range(5):
        folds = fold_of(found, 5, seed, True)
        assert folds[0] == folds[60] and set(folds) == set(range(5))
    with pytest.raises(ConfigError, match="70 folds of 60"):
        fold_of(found, 70, 0, True)
    rare = dataclasses.replace(found, labels=["rare", *found.labels[1:]])
    with pytest.raises(ConfigError, match="class 'rare' has 1 distinct sequences, 5 folds need 5"):
        fold_of(rare, 5, 0, True)
    for seed in range(4):
        data = LabelledData(str(files[0]), str(files[1]), seed=seed)
        parts = data.parts()
        assert sorted(np.concatenate(list(parts.values()))) == list(range(61))
        assert sum(bool(np.isin([0, 60], rows).all()) for rows in parts.values()) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,label\ns0,a\n", "60 records have no row"),
        ("name,label\nzz,a\n", "no record of"),
        ("name,label\ns0,a\ns0,b\n", "a second row of 's0'"),
        ("name,class\ns0,a\n", "needs the columns name and label"),
        ("name,label,split\ns0,a,dev\n", "split 'dev'"),
        ("name,label\n", "has no rows"),
        ("name,label\n" + "".join(f"s{i},\n" for i in range(61)), "has no label"),
    ],
)
def test_wrong_tables_are_refused(files, tmp_path, text, message) -> None:
    (tmp_path / "w.csv").write_text(text)
    with pytest.raises(DataError) as error:
        read_labelled(files[0], tmp_path / "w.csv")
    assert message in str(error.value)


def test_numbers_are_no_classes(files, tmp_path, capsys, workdir, recwarn) -> None:
    rng = np.random.default_rng(0)

    def data(values, regression: bool = False) -> LabelledData:
        rows = [f"s{i},{value}\n" for i, value in enumerate(values)]
        (tmp_path / "numbers.csv").write_text("name,label\n" + "".join(rows))
        return LabelledData(str(files[0]), str(tmp_path / "numbers.csv"), regression=regression)

    for values in ([i % 3 for i in range(61)], [0.2 + 0.5 * (i % 2) for i in range(61)]):
        assert len(data(values).classes) == len(set(values))
    assert len(data([f"{i % 20}.0" for i in range(61)]).classes) == 20
    assert not [one for one in recwarn if "different numbers" in str(one.message)]
    with pytest.warns(UserWarning, match="numbers.csv: its labels are 8 different numbers"):
        assert len(data([i % 8 / 8 for i in range(61)]).classes) == 8
    with pytest.raises(DataError, match=r"61 different numbers.*--data\.regression true"):
        data(range(1000, 1061)).model_arguments()
    assert data(range(1000, 1061), regression=True).model_arguments() == {"n_classes": 0}
    values = rng.normal(size=61)
    with pytest.raises(DataError, match="61 different numbers, which would be as many classes"):
        data(values).setup()
    assert data(values, regression=True).values().tolist() == pytest.approx(values)
    where = f"--data.labels={tmp_path / 'numbers.csv'}"
    kind = ["--model=SequencePrediction", "--data=LabelledData"]
    assert main(["genomics", "fit", *kind, f"--data.fasta={files[0]}", where]) == 2
    argv = ["--fasta", str(files[0]), "--labels", str(tmp_path / "numbers.csv")]
    capsys.readouterr()
    assert main(["genomics", "cross_validate", *argv]) == 2
    assert "numbers.csv: its labels are 61 different numbers" in capsys.readouterr().err


@pytest.mark.parametrize("regression", [False, True])
def test_labels_are_read_once_not_for_every_batch(files, regression, monkeypatch) -> None:
    labels = files[2] if regression else files[1]
    data = LabelledData(str(files[0]), str(labels), regression=regression)
    values = data.values()
    monkeypatch.setattr(LabelledData, "_numbers", lambda self: pytest.fail("read again"))
    assert data.batch([3, 0])["target"].tolist() == pytest.approx(values[[3, 0]])


def test_regions_of_a_reference_are_turned_round(write_fasta, tmp_path) -> None:
    path = write_fasta({"c": "AACCGGGTTA" * 3})
    (tmp_path / "r.bed").write_text("c\t0\t4\tx\t0\t+\nc\t0\t4\ty\t0\t-\n")
    found = read_labelled(path, bed=tmp_path / "r.bed")
    assert found.labels == ["x", "y"] and found.groups[0] == found.groups[1]
    assert [list(ids) for ids in found.sequences] == [[7, 7, 8, 8], [9, 9, 10, 10]]
    with pytest.raises(ConfigError, match="either"):
        read_labelled(path)


@pytest.mark.parametrize("pool", ["mean", "max", "last", "center"])
@pytest.mark.parametrize("kind", ["causal", "bidirectional"])
def test_strands_agree_and_padding_is_not_seen(pool, kind) -> None:
    torch.manual_seed(0)
    encoder = {**ENCODER, **(BOTH if kind == "bidirectional" else {"kmer": 3})}
    model = SequenceModel(encoder, 3, pool).double().eval()
    sequences = [encode("ACGGTNACA"), encode("T"), encode("GGATTACA")]
    ids, lengths = pad(sequences)
    together = model(ids, lengths)
    for row, one in zip(together, sequences):
        alone = model(*pad([one]))[0]
        turned = model(*pad([reverse_complement(one)]))[0]
        torch.testing.assert_close(row, alone, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(turned, alone, rtol=1e-10, atol=1e-12)
    turned_rows = reverse_complement_rows(ids, lengths)
    expected, _ = pad([reverse_complement(one) for one in sequences])
    assert torch.equal(turned_rows, expected)


def test_layers_have_rates_and_a_frozen_encoder_has_none() -> None:
    task = SequencePrediction(2, encoder=ENCODER, layer_decay=0.5, lr=1.0, total_steps=10)
    groups = task.configure_optimizers()["optimizer"].param_groups
    rates = {
        name: group["initial_lr"]
        for group in groups
        for name, p in task.model.named_parameters()
        if any(p is one for one in group["params"])
    }
    assert set(rates) == {name for name, _ in task.model.named_parameters()}
    assert rates["output.weight"] == 1.0
    assert rates["encoder.backbone.layers.1.mixer.in_proj.weight"] == 0.5
    assert rates["encoder.backbone.layers.0.mixer.in_proj.weight"] == 0.25
    assert rates["encoder.embedding.weight"] == 0.125
    frozen = SequencePrediction(2, "packaged", frozen=True)
    assert {name for name, p in frozen.model.named_parameters() if p.requires_grad} == {
        "output.weight",
        "output.bias",
    }
    with pytest.raises(ConfigError, match="frozen needs"):
        SequencePrediction(2, frozen=True)


def test_features_of_the_baselines() -> None:
    sequences = [encode("ACGTN"), encode("AAAAA")]
    both = kmer_shares(sequences, 2, True)
    assert both[0].reshape(4, 4)[0, 1] == pytest.approx(2 / 6)  # AC, and AC of the other strand
    one = kmer_shares(sequences, 1, False)
    assert one.tolist() == [[0.25] * 4, [1, 0, 0, 0]]
    assert positions(sequences)[0].reshape(5, 4).sum(1).tolist() == [1, 1, 1, 1, 0]
    assert positions([*sequences, encode("A")]) is None
    assert kmer_shares([encode("AC")], 3, True).sum() == 0


def test_folds_beside_baselines(files, capsys, workdir, monkeypatch) -> None:
    monkeypatch.setattr("longseq.genomics.cross_validation.ORDERS", (1, 2))
    start = ["genomics", "cross_validate", "--fasta", str(files[0])]
    model = '{"encoder": {"d_model": 8, "n_layers": 1, "mixer": "mamba"}, "lr": 0.02}'
    argv = [*start, "--folds", "2", "--steps", "25", "--model", model]
    assert main([*argv, "--labels", str(files[1]), "--out", "o.csv"]) == 0
    text = capsys.readouterr().out
    assert "k-mer regression" in text and "the best baseline" in text and "AT rich" in text
    table = pd.read_csv("o.csv")
    names = [
        f"{which}: {kind}"
        for which in ("network", "k-mer regression", "network + regressions")
        for kind in ("AT rich", "GC rich")
    ]
    assert set(names) < set(table.columns) and table[names].notna().all().all()
    right = (table["k-mer regression: GC rich"] > 0.5) == (table["label"] == "GC rich")
    assert right.mean() > 0.9
    outcome = cross_validate(
        {"fasta": str(files[0]), "labels": str(files[2]), "regression": True}, None, 3
    )
    assert outcome.numbers("k-mer regression")["r2"] > 0.5
    assert main([*start, "--labels", str(files[1]), "--model", "{"]) == 2


def test_models_together_are_the_geometric_mean() -> None:
    parts = [np.array([[0.5, 0.5], [1.0, 0.0]]), np.array([[0.8, 0.2], [0.5, 0.5]])]
    found = together(parts, False)
    assert found[0] == pytest.approx([2 / 3, 1 / 3]) and found[1, 0] > 0.99
    assert found.sum(1) == pytest.approx(1) and np.isfinite(found).all()
    assert together([np.array([[1.0]]), np.array([[3.0]])], True).tolist() == [[2.0]]


def test_fit_then_label(files, workdir, capsys) -> None:
    argv = [
        "genomics",
        "fit",
        "--model=SequencePrediction",
        "--data=LabelledData",
        f"--data.fasta={files[0]}",
        f"--data.labels={files[1]}",
        "--model.pretrained=packaged",
        "--trainer.max_steps=2",
        "--trainer.val_check_interval=1",
        "--name=r",
        "--model.frozen=true",
        "--trainer.default_root_dir=out",
    ]
    assert main(argv) == 0
    checkpoint = "out/r/version_0/checkpoints/last.ckpt"
    argv = ["genomics", "label", str(files[0]), "--ckpt_path", checkpoint, "--out", "p.tsv"]
    assert main(argv) == 0
    table = pd.read_csv("p.tsv", sep="\t")
    assert list(table.columns) == ["name", "label", "AT rich", "GC rich"]
    np.testing.assert_allclose(table["AT rich"] + table["GC rich"], 1, atol=1e-5)
    assert main(["genomics", "test", "--ckpt_path", checkpoint]) == 0
