"""What model and data must share is typed once; a contradiction is refused before anything is
read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from longseq.core.checkpoints.safe import load_checkpoint
from longseq.core.domain import load_domain
from longseq.core.errors import ConfigError
from longseq.core.shell.agreement import agree, check_described
from longseq.core.shell.arguments import resolve_configs
from longseq.core.shell.cli import main

DOMAIN = load_domain("timeseries")


def added(argv: list[str], *configs: str) -> list[str]:
    """Returns what is added to the arguments."""
    result = agree(DOMAIN, argv, configs)
    assert result[: len(argv)] == argv
    return result[len(argv) :]


def test_a_flag_on_one_side_holds_for_both() -> None:
    assert added(["--data.horizon", "48"]) == ["--model.horizon=48"]
    assert added(["--model.context=24", "--data.horizon=12"]) == [
        "--data.context=24",
        "--model.horizon=12",
    ]
    # The last one counts.
    assert added(["--data.horizon=48", "--data.horizon=96"]) == ["--model.horizon=96"]
    assert added(["--data.horizon=48", "--model.horizon", "48"]) == []
    assert added(["--data.horizon=48", "--model.init_args.horizon=48"]) == []
    assert added(["--model.init_args.horizon=48"]) == ["--data.horizon=48"]
    assert added([]) == []


def test_a_configuration_gives_way_to_a_flag(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("data: {init_args: {path: x.csv, horizon: 24}}")
    assert added([], str(file)) == ["--model.horizon=24"]
    assert added(["--model.horizon=24"], str(file)) == ["--data.horizon=24"]
    assert not capsys.readouterr().err
    assert added(["--model.horizon=12"], str(file)) == ["--data.horizon=12"]
    note = "note: --data.horizon follows --model.horizon 12; the configuration had 24"
    assert note in capsys.readouterr().err
    file.write_text("model: SpaceTime\ndata: null")
    assert added(["--data.horizon=12"], str(file)) == ["--model.horizon=12"]


def test_a_flag_wins_over_a_configuration_wherever_it_stands() -> None:
    argv = ["--data.horizon", "12", "--config", "mixer_forecaster", "--model.d_model=8"]
    args, files = resolve_configs(DOMAIN, argv)
    assert args == [f"--config={files[0]}", "--data.horizon", "12", "--model.d_model=8"]


def test_a_class_may_be_named_after_its_arguments(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = ["--data.context", "28", "--data=LongFileData", "--model.d_model=8"]
    late = [*argv, "--model", "MixerForecaster"]
    args, _ = resolve_configs(DOMAIN, late)
    first = ["--data=LongFileData", "--model=MixerForecaster"]
    assert args == [*first, "--data.context", "28", "--model.d_model=8"]
    assert resolve_configs(DOMAIN, [*argv, "--model", "--data.path=x"])[0][-2] == "--model"
    monkeypatch.chdir(tmp_path)
    # The parser takes it: what is refused is the file.
    assert main(["timeseries", "fit", *late, "--data.path=none.parquet", "--model.horizon=7"]) == 2
    assert "none.parquet: no such time-series file" in capsys.readouterr().err


def test_where_nothing_is_given_the_data_follow_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "short.py").write_text(
        "from longseq.timeseries import ForecastTask\n\n\nclass Short(ForecastTask):\n"
        "    def __init__(self, context: int = 24, horizon: int = 12, **recipe) -> None:\n"
        "        super().__init__(**recipe)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert added(["--model=short.Short"]) == ["--data.context=24", "--data.horizon=12"]
    # The name alone will do, as it does for the parser.
    assert added(["--model=Short", "--data.horizon=6"]) == [
        "--data.context=24",
        "--model.horizon=6",
    ]
    assert added(["--model=short.Short", "--ckpt_path=x.ckpt"]) == []


def test_a_contradiction_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"--model\.horizon 96 and --data\.horizon 48 must agree; give one"
    ):
        agree(DOMAIN, ["--model.horizon=96", "--data.horizon=48"], [])


def test_a_model_that_does_not_know_the_value_is_left_alone() -> None:
    weather = load_domain("weather")
    # No model of scenarios has one.
    assert agree(weather, ["--data.context=3"], []) == ["--data.context=3"]
    video = ["--model=VideoForecaster", "--data=MovingDigits", "--data.context=3"]
    assert agree(weather, video, []) == [*video, "--model.context=3"]


def test_a_new_model_is_made_to_fit_its_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Classes, channels and side follow from the images, unless a configuration of one's own
    differs."""
    monkeypatch.chdir(tmp_path)
    for name in "abc":
        (tmp_path / "images" / name).mkdir(parents=True)
        for index in range(12):
            pixels = np.random.default_rng(index).integers(0, 255, (12, 12, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{index}.png")
    argv = ["vision", "fit", "--config=cifar", "--data.source=images", "--data.img_size=12"]
    argv += ["--data.batch_size=4", "--model.model=vit_pico", "--trainer.max_steps=1"]
    argv += ["--trainer.limit_val_batches=0"]
    assert main(argv) == 0, capsys.readouterr().err
    saved = load_checkpoint("outputs/vision/cifar/version_0/checkpoints/last.ckpt")[
        "hyper_parameters"
    ]
    assert (saved["num_classes"], saved["in_chans"], saved["img_size"]) == (3, 3, 12)
    (tmp_path / "mine.yaml").write_text(
        "model: {class_path: ImageClassifier, init_args: {num_classes: 5}}"
    )
    assert main([*argv, "--model.init_args.num_classes=4"]) == 2
    assert "num_classes is 4, but images has 3 classes" in capsys.readouterr().err
    assert main([*argv, "--config=mine.yaml"]) == 2
    assert "num_classes is 5, but images has 3 classes" in capsys.readouterr().err


GENES = {
    "class_path": "longseq.genomics.data.gene_labels.GeneLabelData",
    "init_args": {"fasta": ["a.fa", "b.fa"], "genes": ["a.gff", "b.gff"], "bed": None},
}


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["--data.genes", "other.gff"],
        ["--data.fasta", "[a.fa, b.fa]"],
        ["--data.fasta=x.fa", "--data.genes=x.gff"],
        ["--data.init_args.fasta=x.fa", "--data.genes", "null"],
    ],
)
def test_what_describes_files_is_given_with_them(argv: list[str]) -> None:
    check_described(GENES, argv, [])
    check_described(None, argv, [])


@pytest.mark.parametrize("name", ["x.fa", "[b.fa, a.fa]", "@x", "{x", "12"])
def test_other_files_are_not_read_with_what_describes_those_before(
    name: str, tmp_path: Path
) -> None:
    says = "data.genes .*a.gff.* is of .*a.fa.*give --data.genes too, null for none"
    with pytest.raises(ConfigError, match=says):
        check_described(GENES, ["--data.fasta", name], [])
    file = tmp_path / "x.yaml"
    file.write_text(f"data: {{init_args: {{fasta: '{name}'}}}}")
    with pytest.raises(ConfigError, match="genes too, null"):
        check_described(GENES, [], [str(file)])
    file.write_text(f"data: {{init_args: {{fasta: '{name}', genes: null}}}}")
    check_described(GENES, [], [str(file)])
    one = {"class_path": GENES["class_path"], "init_args": {"fasta": name, "genes": "a.gff"}}
    check_described(one, ["--data.fasta", name], [])  # as it was written
