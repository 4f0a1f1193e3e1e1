"""The command line of genomics: shipped configurations, and one-line errors for bad input."""

import gzip
from pathlib import Path

import pytest
import torch
import yaml

from longseq.core.shell.cli import main
from longseq.genomics.commands import DOMAIN
from longseq.genomics.data.samples import SAMPLES

SMALL = ["--model.d_model=8", "--model.n_layers=1", "--data.length=64", "--data.batch_size=2"]
QUICK = [
    "--trainer.logger=false",
    "--trainer.enable_checkpointing=false",
    "--trainer.val_check_interval=2",
]


@pytest.mark.parametrize("name", sorted(DOMAIN.configs()))
def test_every_shipped_configuration_trains(name: str, workdir: Path) -> None:
    content = yaml.safe_load(DOMAIN.configs()[name].read_text())
    argv = ["genomics", "fit", "--config", "small.yaml", *QUICK]
    if "mixer" in content["model"]["init_args"]:
        mixer = content["model"]["init_args"]["mixer"]
        argv += ["--model.d_model=8"]
        argv += [f"--model.n_layers={1 if isinstance(mixer, str) else len(mixer)}"]
    if content["data"]["class_path"].endswith("GeneLabelData"):  # of the packaged model's size
        argv += ["--data.length=64", "--data.batch_size=1", "--data.eval_length=64"]
        argv += ["--data.valid_fraction=0.0002"]
    elif content["data"]["class_path"].endswith("StringData"):
        rows = ["CCO", "CN", "CCC", "CO", "C", "N"]
        Path("some.smi").write_text("".join(f"{row}\n" for row in rows))
        argv += ["--data.file=some.smi", "--data.batch_size=2"]
    else:
        content["data"]["init_args"]["start_length"] = None
        content["data"]["init_args"]["length_warmup_steps"] = 0
        argv += ["--data.fasta=tiny", "--data.length=64", "--data.batch_size=2"]
    Path("small.yaml").write_text(yaml.safe_dump(content))
    assert main([*argv, "--trainer.max_steps=2"]) == 0


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("run")
    argv = ["genomics", "fit", "--data.fasta=tiny", *SMALL, "--trainer.max_steps=2", "--name=r"]
    argv += [f"--trainer.default_root_dir={root}", "--trainer.val_check_interval=2"]
    assert main(argv) == 0
    return root / "r/version_0/checkpoints/last.ckpt"


def bad_files(folder: Path) -> dict[str, tuple[str, list[str]]]:
    """Name of the case → what the message must name, and the arguments."""
    good = folder / "good.fa"
    good.write_text(">chr1\n" + "ACGT" * 100 + "\n>chr2\n" + "GGCA" * 50 + "\n")
    (folder / "empty.fa").write_text("")
    (folder / "letters.fa").write_text(">one\nACGT\n>two\nACGTACZT\n")
    whole = gzip.compress(b">one\n" + b"ACGT" * 5000 + b"\n")
    (folder / "cut.fa.gz").write_bytes(whole[: len(whole) - 12])
    (folder / "twice.fa").write_text(">one\nACGT\n>one\nACGT\n")
    (folder / "long.bed").write_text("chr1\t0\t100\ttrain\nchr1\t100\t500\ttest\n")
    (folder / "order.bed").write_text("chr1\t0\t100\ttrain\nchr1\t200\t200\ttest\n")
    (folder / "name.bed").write_text("chr9\t0\t100\ttrain\n")
    (folder / "key.yaml").write_text(
        "model:\n  class_path: CausalLanguageModel\n  init_args:\n    d_modle: 8\n"
    )
    fasta = f"--data.fasta={good}"
    return {
        "empty": ("empty.fa", [f"--data.fasta={folder}/empty.fa"]),
        "missing": ("missing.fa", [f"--data.fasta={folder}/missing.fa"]),
        "letters": ("letters.fa: two", [f"--data.fasta={folder}/letters.fa"]),
        "truncated": ("cut.fa.gz", [f"--data.fasta={folder}/cut.fa.gz"]),
        "duplicate": ("twice.fa: one", [f"--data.fasta={folder}/twice.fa"]),
        "beyond": ("long.bed: line 2", [fasta, f"--data.bed={folder}/long.bed"]),
        "empty region": ("order.bed: line 2", [fasta, f"--data.bed={folder}/order.bed"]),
        "unknown in BED": ("name.bed: line 1", [fasta, f"--data.bed={folder}/name.bed"]),
        "unknown chromosome": ("chrX", [fasta, "--data.test_chromosomes=[chrX]"]),
        "wrong key": ("d_modle", ["--config", f"{folder}/key.yaml", fasta]),
        "wrong mixer": ("'mambo'; did you mean 'mamba'", [fasta, "--model.mixer=mambo"]),
    }


CASES = [
    "empty",
    "missing",
    "letters",
    "truncated",
    "duplicate",
    "beyond",
    "empty region",
    "unknown in BED",
    "unknown chromosome",
    "wrong key",
    "wrong mixer",
]


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_one_line_and_status_2(
    case: str, workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named, arguments = bad_files(workdir)[case]
    before = sorted(workdir.rglob("*"))
    assert main(["genomics", "fit", "--trainer.max_steps=1", *QUICK, *arguments]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and named in errors[0], errors
    left = [path for path in workdir.rglob("*") if path not in before and path.suffix != ".fai"]
    assert all("outputs" in path.parts for path in left), left


def predict_error(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    out = Path("scores.parquet")
    out.write_bytes(b"earlier")
    assert main(["genomics", "predict", *argv, "--out", str(out)]) == 2
    assert out.read_bytes() == b"earlier" and not [
        p for p in out.parent.iterdir() if p.name.startswith(".")
    ]
    (line,) = [text for text in capsys.readouterr().err.splitlines() if text.startswith("error: ")]
    return line


def test_a_checkpoint_of_another_model_is_refused(workdir: Path, checkpoint: Path, capsys) -> None:
    content = torch.load(checkpoint, weights_only=True)
    content["state_dict"] = {
        key.replace("mixer", "attention"): v for key, v in content["state_dict"].items()
    }
    torch.save(content, "other.ckpt")
    line = predict_error([str(SAMPLES.path("tiny")), "--ckpt_path", "other.ckpt"], capsys)
    assert "other.ckpt" in line and "mixer" in line


class Harmful:
    def __reduce__(self):
        return (Path("harm").touch, ())


def test_a_pickled_object_is_refused_unexecuted(workdir: Path, checkpoint: Path, capsys) -> None:
    content = torch.load(checkpoint, weights_only=True)
    torch.save({**content, "extra": Harmful()}, "pickled.ckpt")
    line = predict_error([str(SAMPLES.path("tiny")), "--ckpt_path", "pickled.ckpt"], capsys)
    assert "pickled.ckpt" in line and "never executes" in line
    assert not Path("harm").exists()


def test_bad_genomes_leave_earlier_scores_alone(workdir: Path, checkpoint: Path, capsys) -> None:
    bad_files(workdir)
    for name in ("empty.fa", "letters.fa", "cut.fa.gz", "twice.fa"):
        assert name in predict_error([name, "--ckpt_path", str(checkpoint)], capsys)
