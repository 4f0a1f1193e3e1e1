"""The command line of vision: shipped configurations, comparison, demo, and one-line errors for bad
input."""

from __future__ import annotations

import csv
import json
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from longseq.core.shell.cli import main
from longseq.vision.baselines import PixelRegression
from longseq.vision.commands import DOMAIN
from longseq.vision.compare import BASELINES
from longseq.vision.data.canvas import Layout, canvas_parts
from longseq.vision.data.idx import read_idx, write_idx

QUICK = [
    "--trainer.logger=false",
    "--trainer.enable_checkpointing=false",
    "--trainer.val_check_interval=2",
]
SHORT = [
    "--data.img_size=12",
    "--data.batch_size=8",
    "--model.num_classes=3",
    "--model.img_size=12",
    "--trainer.max_steps=2",
    "--trainer.val_check_interval=2",
]
SIZES = {
    "vmamba": {"dims": [8, 16], "depths": [1, 1]},
    "vim": {"depth": 1, "d_model": 16, "patch_size": 4},
    "vit": {"n_layers": 1, "d_model": 24, "patch_size": 4},
    "sequential": {"n_layers": 1, "d_model": 8},
    "hybrid": {"dims": [8, 16], "scans": [1], "depths": [1, 1]},
}


CLASSIFIERS = [
    name
    for name, path in sorted(DOMAIN.configs().items())
    if "task.ImageClassifier" in path.read_text()
]


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_every_shipped_configuration_trains(name: str, workdir: Path, make_zip) -> None:
    content = yaml.safe_load(DOMAIN.configs()[name].read_text())
    model, data = content["model"]["init_args"], content["data"]["init_args"]
    model["model_kwargs"] = {**model.get("model_kwargs", {}), **SIZES[model["model"].split("_")[0]]}
    model.update(num_classes=3, img_size=12)
    data.update(source=str(make_zip(6)), img_size=12, batch_size=4, num_workers=0)
    content["trainer"].update(max_steps=2, max_epochs=-1, val_check_interval=2)
    Path("small.yaml").write_text(yaml.safe_dump(content))
    assert main(["vision", "fit", "--config", "small.yaml", *QUICK]) == 0


@pytest.fixture
def checkpoints(workdir: Path, make_zip):
    """Two short trainings on the same images."""
    found = []
    for name, kwargs in (
        ("vmamba_pico", "{dims: [8], depths: [1]}"),
        ("vit_pico", "{d_model: 12, n_layers: 1}"),
    ):
        argv = [
            "vision",
            "fit",
            f"--data.source={make_zip(10)}",
            "--data.img_size=12",
            "--data.batch_size=8",
        ]
        argv += [f"--model.model={name}", f"--model.model_kwargs={kwargs}", "--model.num_classes=3"]
        argv += [
            f"--name={name}",
            "--model.img_size=12",
            "--trainer.max_steps=2",
            "--trainer.val_check_interval=2",
        ]
        assert main(argv) == 0
        found.append(workdir / f"outputs/vision/{name}/version_0/checkpoints/last.ckpt")
    return found


def test_compare_prints_a_verdict_and_writes_the_table(checkpoints, make_zip, capsys) -> None:
    capsys.readouterr()
    assert (
        main(
            [
                "vision",
                "compare",
                "--models",
                ",".join(map(str, [*BASELINES, *checkpoints])),
                "--out",
                "t.csv",
            ]
        )
        == 0
    )
    out = capsys.readouterr().out
    assert "logistic regression" in out and "the best baseline" in out and "may be chance" in out
    with Path("t.csv").open() as file:
        rows = {row["model"]: row for row in csv.DictReader(file)}
    assert set(rows) == {"most frequent class", "logistic regression", "vmamba_pico", "vit_pico"}
    assert float(rows["logistic regression"]["accuracy"]) == 1.0
    assert {row["test_images"] for row in rows.values()} == {"30"}
    assert rows["vit_pico"]["kind"] == "baseline" and rows["vmamba_pico"]["kind"] == "model"
    assert int(rows["vit_pico"]["parameters"]) > 0

    (other,) = [make_zip(10, name="other.zip")]
    argv = [
        "vision",
        "fit",
        f"--data.source={other}",
        "--data.img_size=12",
        "--data.batch_size=8",
        "--name=o",
    ]
    argv += [
        "--model.num_classes=3",
        "--model.model_kwargs={dims: [8], depths: [1]}",
        "--trainer.max_steps=1",
    ]
    assert main([*argv, "--trainer.val_check_interval=1"]) == 0
    last = "outputs/vision/o/version_0/checkpoints/last.ckpt"
    assert (
        main(["vision", "compare", "--models", f"{checkpoints[0]},{last}", "--out", "u.csv"]) == 2
    )
    assert "their test images differ" in capsys.readouterr().err


def test_models_are_compared_at_equal_cpu_time(workdir: Path, make_zip, capsys) -> None:
    source = make_zip(10, name="few.zip")
    own = ["--model.model_kwargs={dims: [8], depths: [1]}", "--data.img_size=12"]
    own += ["--data.batch_size=8", "--trainer.precision=32-true", "--data.channels=3"]
    models = "cifar:model=vmamba_pico,cifar:model=resnet8"
    argv = ["vision", "compare", "--models", models]
    argv += ["--data", str(source), "--out", "equal.csv", "--cpu_minutes"]
    assert main([*argv, "0.001,0.002", *own]) == 0
    with Path("equal.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["model"] for row in rows] == ["vmamba_pico", "resnet8"] * 2
    assert [row["kind"] for row in rows] == ["model", "baseline"] * 2
    for row, budget in zip(rows, (0.06, 0.06, 0.12, 0.12)):
        assert float(row["cpu_seconds"]) >= round(budget, 1) and int(row["steps"]) >= 1
    assert "0.002 CPU min for each model" in capsys.readouterr().out
    for wrong in ("a", "0", "-1,1", "inf"):
        assert main([*argv, wrong, *own]) == 2
    assert "--cpu_minutes: positive numbers" in capsys.readouterr().err
    argv[argv.index(models)] = models = f"{models}:model_kwargs.drop_path=0.5"
    curves = [*argv, "0.003", *own, "--data.valid_fraction=0.2", "--curves"]
    assert main([*curves, "curves.png"]) == 0
    with Path("equal.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["model"] for row in rows] == ["vmamba_pico", "resnet8 model_kwargs.drop_path=0.5"]
    assert [row["kind"] for row in rows] == ["model", "baseline"]
    assert "curves.png, curves.csv: 2 curves" in capsys.readouterr().out
    with Path("curves.csv").open() as file:
        points = list(csv.DictReader(file))
    variant = "resnet8 model_kwargs.drop_path=0.5"
    names = [f"cifar model={name} 0.003min" for name in ("vmamba_pico", variant)]
    assert sorted({row["model"] for row in points}) == sorted(names)
    for row in points:
        assert 0 <= float(row["val/accuracy"]) <= 1
    for name in names:
        last = [row for row in points if row["model"] == name][-1]
        assert float(last["cpu_seconds"]) >= 0.17
    assert Path("curves.png").read_bytes()[:4] == b"\x89PNG"
    assert main([*curves, "equal.png"]) == 2
    assert "its table would be --out equal.csv" in capsys.readouterr().err
    argv[argv.index(models)] = "logistic_regression"
    assert main([*argv, "1", "--curves", "curves.png"]) == 2
    assert "nothing in --models is trained" in capsys.readouterr().err


def test_validate_and_test_need_only_the_checkpoint(checkpoints, capsys) -> None:
    for command in ("validate", "test"):
        assert main(["vision", command, "--ckpt_path", str(checkpoints[0])]) == 0
    assert "test/accuracy" in capsys.readouterr().out


def test_mirror_images_count_alike_in_every_command(workdir: Path, capsys) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason='pip install "longseq[export]"')
    rng, labels = np.random.default_rng(0), np.arange(90) % 3
    Path("idx").mkdir()
    for part, chosen in (("train", labels), ("t10k", labels[:60])):
        # Garments of noise, brighter at one side: what a model says of a mirror image differs.
        images = rng.integers(0, 200, (len(chosen), 12, 12), np.uint8)
        images[..., :4] += (25 * chosen[:, None, None]).astype(np.uint8)
        write_idx(f"idx/{part}-images-idx3-ubyte", images)
        write_idx(f"idx/{part}-labels-idx1-ubyte", chosen.astype(np.uint8))
    size = ["--data.img_size=12", "--data.channels=1", "--model.in_chans=1", "--model.img_size=12"]
    own = ["--model.model=vmamba_pico", "--model.model_kwargs={dims: [8], depths: [1]}"]
    own += [*size, "--model.num_classes=3", "--model.lr=0.01"]
    argv = ["vision", "fit", "--data.source=idx", "--data.augment=none", "--data.batch_size=30"]
    argv += [*own, "--trainer.max_steps=30", "--trainer.val_check_interval=30", "--name=r"]
    assert main(argv) == 0
    ckpt, told = "outputs/vision/r/version_0/checkpoints/last.ckpt", {}
    for value in ("true", "false"):
        option = ["--model.mirrored", value]
        source = "idx/t10k-images-idx3-ubyte"
        argv = ["vision", "predict", source, "--ckpt_path", ckpt, "--out", f"{value}.csv"]
        assert main([*argv, *option]) == 0
        table = pd.read_csv(f"{value}.csv")
        chances = table[[name for name in table if name.startswith("p_")]].to_numpy()
        hits = (chances.argmax(1) == labels[:60]).mean()
        argv = ["vision", "compare", "--models", ckpt, "--out", "c.csv"]
        assert main([*argv, *option]) == 0
        assert pd.read_csv("c.csv")["accuracy"].tolist() == pytest.approx([hits], abs=1e-6)
        capsys.readouterr()
        assert main(["vision", "test", "--ckpt_path", ckpt, *option]) == 0
        assert f"{hits:.4f}" in capsys.readouterr().out
        assert main(["vision", "report", "--ckpt_path", ckpt, "--out", "r", *option]) == 0
        assert f"accuracy {hits:.4f}" in capsys.readouterr().out
        argv = ["vision", "export", "--ckpt_path", ckpt, "--out", "m.onnx"]
        assert main([*argv, *option]) == 0
        session = onnxruntime.InferenceSession("m.onnx")
        notes = json.loads(session.get_modelmeta().custom_metadata_map["longseq"])
        assert notes["mirrored"] is (value == "true")
        pixels = read_idx(source)[:, None].astype(np.float32) / 255
        (logits,) = session.run(None, {"images": pixels})
        powers = np.exp(logits - logits.max(1, keepdims=True))
        found = powers / powers.sum(1, keepdims=True)
        np.testing.assert_allclose(found, chances, atol=1e-5)
        told[value] = chances, hits
    assert np.abs(told["true"][0] - told["false"][0]).max() > 0.01
    assert told["true"][1] != told["false"][1]
    # What a training chose its checkpoint by stays what it was.
    argv = ["vision", "fit", "--ckpt_path", ckpt, "--trainer.max_steps=31", "--model.mirrored=true"]
    assert main(argv) == 2
    assert "--model.mirrored True contradicts" in capsys.readouterr().err


def test_the_models_are_listed(capsys) -> None:
    assert main(["vision", "models", "vim_t*"]) == 0
    assert "7.148 M" in capsys.readouterr().out
    assert main(["vision", "models", "resnet"]) == 2
    assert main(["vision", "compare", "--models", "none.ckpt", "--out", "u.csv"]) == 2
    assert main(["vision", "compare", "--out", "u.csv"]) == 2
    assert "name a checkpoint or configuration too" in capsys.readouterr().err


def test_the_demo_runs(workdir: Path, capsys, monkeypatch) -> None:
    quick = partial(PixelRegression, (1e-2,), max_iter=5)
    for module in ("compare", "demo"):
        monkeypatch.setattr(f"longseq.vision.{module}.PixelRegression", quick)
    few = Layout(counts=(200, 64, 100))
    monkeypatch.setattr(
        "longseq.vision.data.sources.canvas_parts", partial(canvas_parts, layout=few)
    )
    assert main(["vision", "demo", "--max_steps", "2", "--out", "demo"]) == 0
    out = capsys.readouterr().out
    folder = Path("demo/vision")
    assert 'id="vision"' in Path("demo/index.html").read_text(encoding="utf-8")
    assert "best baseline" in out and all(name in out for name in ("scores.csv", "predictions.csv"))
    told = float(out.split("what the question is: accuracy ")[1].split()[0].rstrip("."))
    assert told > 0.5  # the canvases say where the pictures lie, and two of them are the answer
    for name in ("scores.csv", "predictions.csv", "predictions.png"):
        assert (folder / name).stat().st_size > 0
    rows = Path("demo/vision/scores.csv").read_text(encoding="utf-8")
    assert all(
        name in rows for name in ("hybrid_pico", "resnet8", "vit_pico", "logistic regression")
    )


BAD = {
    "missing": ("none.zip: no such folder or file", ["--data.source=none.zip"]),
    "empty": ("empty: holds no images", ["--data.source=empty"]),
    "not a zip": ("text.zip: is not a zip archive", ["--data.source=text.zip"]),
    "truncated zip": ("cut.zip", ["--data.source=cut.zip"]),
    "truncated IDX": ("train-images-idx3-ubyte: the IDX file is truncated", ["--data.source=idx"]),
    "few": ("fewer than batch_size", ["--data.batch_size=5000"]),
    "classes": ("has 3 classes", ["--model.num_classes=4"]),
    "channels": ("data.channels is 1", ["--data.channels=1", "--model.in_chans=3"]),
    "model": ("did you mean 'vmamba_pico'", ["--model.model=vmamba_pik"]),
    "model argument": ("did you mean 'dims'", ["--model.model_kwargs={dim: [8]}"]),
    "argument": ("did you mean 'img_size'", ["--data.image_size=8"]),
    "published": ("w.pth", ["--model.pretrained=w.pth"]),
}


@pytest.mark.parametrize("case", sorted(BAD))
def test_bad_input_is_one_line_and_status_2(
    case, workdir: Path, make_zip, make_idx, capsys
) -> None:
    named, arguments = BAD[case]
    good = make_zip(4)
    Path("empty").mkdir()
    Path("text.zip").write_text("hello")
    Path("w.pth").write_text("hello")
    Path("cut.zip").write_bytes(good.read_bytes()[:-200])
    images = make_idx() / "train-images-idx3-ubyte"
    images.write_bytes(images.read_bytes()[:-5])
    argv = ["vision", "fit", f"--data.source={good}", "--data.img_size=12", "--data.batch_size=4"]
    argv += ["--model.num_classes=3", "--trainer.max_steps=1", *QUICK]
    if case != "model argument":
        argv.append("--model.model_kwargs={dims: [8], depths: [1]}")
    assert main([*argv, *arguments]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and named in errors[0], errors
