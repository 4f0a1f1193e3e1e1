"""The classifier in training: learns, averages its weights, resumes, and refuses what does not
fit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, Trainer

from longseq.core.errors import ConfigError, DataError
from longseq.core.training.loading import load_task
from longseq.vision.data.module import ImageData
from longseq.vision.models.registry import create_model
from longseq.vision.task import ImageClassifier

TINY = {"dims": [8, 16], "depths": [1, 1]}


def classifier(**kwargs) -> ImageClassifier:
    defaults = {
        "model": "vmamba_pico",
        "num_classes": 3,
        "img_size": 12,
        "model_kwargs": TINY,
        "warmup_steps": 2,
    }
    return ImageClassifier(**{**defaults, **kwargs})


def train(
    task: ImageClassifier,
    data: ImageData,
    steps: int,
    folder: Path,
    ckpt_path: Path | None = None,
    **kwargs,
) -> Trainer:
    trainer = Trainer(
        max_steps=steps,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        accelerator="cpu",
        use_distributed_sampler=False,
        limit_val_batches=0,
        **kwargs,
    )
    trainer.fit(task, data, ckpt_path=ckpt_path)
    return trainer


@pytest.fixture
def data(make_zip) -> ImageData:
    return ImageData(str(make_zip(12)), img_size=12, batch_size=8)


# Also logits that all lie in [0, 1], and sure ones.
@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
def test_the_metrics_are_their_definitions(scale: float, monkeypatch) -> None:
    torch.manual_seed(0)
    task = classifier(num_classes=7).eval()
    logits, target = scale * torch.rand(50, 7), torch.randint(0, 7, (50,))
    metrics = task.metrics["val"]
    for part in (slice(0, 13), slice(13, 50)):
        monkeypatch.setattr(task, "forward", lambda images, part=part: logits[part])
        out = task.compute({"image": logits[part], "target": target[part]})
        metrics.update(preds=out["preds"], target=out["target"])
    found = {name: float(value) for name, value in metrics.compute().items()}
    confidence, guess = torch.softmax(logits.double(), 1).max(1)
    right, where = (guess == target).double(), (confidence * 15).long().clamp(max=14)
    error = sum(float((right - confidence)[where == i].sum().abs()) for i in range(15)) / 50
    recalls = [float(right[target == k].mean()) for k in target.unique()]
    assert found["val/balanced_accuracy"] == pytest.approx(sum(recalls) / len(recalls), abs=1e-6)
    best = logits.argsort(1, descending=True)[:, :5]
    assert found["val/accuracy"] == pytest.approx(float(right.mean()), abs=1e-6)
    assert found["val/top5"] == pytest.approx(
        float((best == target[:, None]).any(1).double().mean()), abs=1e-6
    )
    assert found["val/calibration_error"] == pytest.approx(error, abs=1e-6)


def test_it_learns_and_the_averaged_weights_are_evaluated(make_zip, tmp_path: Path) -> None:
    torch.manual_seed(0)
    data = ImageData(str(make_zip(12)), img_size=12, batch_size=8, augment="none")
    task = classifier(ema_decay=0.9, lr=1e-2)
    start = {key: value.clone() for key, value in task.ema.state_dict().items()}
    trainer = train(task, data, 80, tmp_path)
    (result,) = trainer.test(task, data, verbose=False)
    assert result["test/accuracy"] > 0.9 and result["test/top5"] == 1
    own, averaged = task.model.state_dict(), task.ema.state_dict()
    moved = [key for key in own if not torch.equal(own[key], averaged[key])]
    assert moved and any(not torch.equal(averaged[key], start[key]) for key in moved)
    x = torch.randn(2, 3, 12, 12)
    assert torch.equal(task.eval()(x), task.ema(x)) and task.best is task.ema


def test_the_average_follows_its_formula_once_an_optimiser_step(
    data: ImageData, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    task = classifier(ema_decay=0.5)
    expected = [value.clone() for value in task.ema.state_dict().values()]
    seen = []
    before = [value.clone() for value in expected]

    def follow(*args) -> None:
        after = list(task.ema.state_dict().values())
        seen.append(any(not torch.equal(a, b) for a, b in zip(before, after)))
        if seen[-1]:
            step = task.trainer.global_step
            decay = min(0.5, (1 + step) / (10 + step))
            for mean, value in zip(expected, task.model.state_dict().values()):
                mean.lerp_(value, 1 - decay)
        before[:] = [value.clone() for value in after]

    task.on_train_batch_end = follow
    train(task, data, 2, tmp_path, accumulate_grad_batches=2)
    assert seen == [False, True, False, True]
    for mean, value in zip(expected, task.ema.state_dict().values()):
        torch.testing.assert_close(mean, value)


class KeepAt(Callback):
    """Keeps the run after a step as a callback of the command line does."""

    def __init__(self, step: int, path: Path) -> None:
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer: Trainer, *args) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


def test_the_average_goes_on_where_a_step_was_kept(data: ImageData, tmp_path: Path) -> None:
    torch.manual_seed(0)
    whole, path = classifier(ema_decay=0.9, lr=1e-2, total_steps=4), tmp_path / "kept.ckpt"
    train(whole, data, 4, tmp_path, callbacks=[KeepAt(2, path)])
    resumed = classifier(ema_decay=0.9, lr=1e-2, total_steps=4)
    train(resumed, data, 4, tmp_path, ckpt_path=path)
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


def test_mirrored_evaluation(data: ImageData, tmp_path: Path) -> None:
    task = classifier(mirrored=True, ema_decay=0.5)
    seen: list[int] = []
    task.model.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    train(task, data, 2, tmp_path).save_checkpoint(tmp_path / "a.ckpt")
    assert len(seen) == 2  # it trains on every image once
    images = torch.rand(3, 3, 12, 12)
    loaded = load_task(tmp_path / "a.ckpt", "vision").eval()
    with torch.inference_mode():
        alone = [loaded.ema(one) for one in (images, images.flip(3))]
        assert not torch.equal(*alone)
        torch.testing.assert_close(loaded(images), sum(alone) / 2)
        torch.testing.assert_close(loaded(images.flip(3)), loaded(images))


def test_a_checkpoint_carries_classes_and_preprocessing(data: ImageData, tmp_path: Path) -> None:
    task = classifier()
    train(task, data, 1, tmp_path).save_checkpoint(tmp_path / "a.ckpt")
    loaded = load_task(tmp_path / "a.ckpt", "vision")
    assert isinstance(loaded, ImageClassifier)
    assert loaded.classes == ["bright", "dark", "stripes"]
    assert loaded.preprocess == data.preprocess
    assert loaded.preprocess["img_size"] == 12 and len(loaded.preprocess["mean"]) == 3


def test_mixed_labels_train(make_zip, tmp_path: Path) -> None:
    data = ImageData(str(make_zip(12)), img_size=12, batch_size=8, mixup=0.8, cutmix=1.0)
    train(classifier(label_smoothing=0.1), data, 2, tmp_path)


def test_evaluation_does_not_depend_on_the_batch_size(make_zip, tmp_path: Path) -> None:
    torch.manual_seed(0)
    task, path, results = classifier(), str(make_zip(12)), []
    for size in (1, 5, 64):
        trainer = Trainer(
            logger=False, enable_progress_bar=False, enable_model_summary=False, accelerator="cpu"
        )
        data = ImageData(path, img_size=12, eval_batch_size=size, batch_size=8)
        results.append(trainer.test(task, data, verbose=False)[0])
    for result in results[1:]:
        assert result == pytest.approx(results[0], rel=1e-5)


def test_state_space_parameters_are_not_decayed() -> None:
    task = classifier(model="vim_nano", model_kwargs={"depth": 1}, ema_decay=0.9, total_steps=10)
    groups = {
        group["name"]: group for group in task.configure_optimizers()["optimizer"].param_groups
    }
    mixer = task.model.layers[0].mixer
    found = {id(parameter) for parameter in groups["ssm"]["params"]}
    assert {id(mixer.A_log), id(mixer.A_b_log), id(mixer.dt_proj_b.bias)} <= found
    trained = sum(len(group["params"]) for group in groups.values())
    assert trained == len(list(task.model.parameters()))


def test_published_weights_start_a_training_with_a_new_head(
    data: ImageData, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    source = create_model("vmamba_pico", **TINY)
    torch.save({"model": source.state_dict()}, tmp_path / "published.pth")
    task = classifier(pretrained=str(tmp_path / "published.pth"), ema_decay=0.9, lr=1e-9)
    train(task, data, 1, tmp_path)
    for key, value in source.state_dict().items():
        if not key.startswith("classifier.head"):
            torch.testing.assert_close(task.model.state_dict()[key], value, rtol=0, atol=1e-6)
            torch.testing.assert_close(task.ema.state_dict()[key], value, rtol=0, atol=1e-6)


def test_what_does_not_fit_is_named(data: ImageData, tmp_path: Path, make_folder) -> None:
    with pytest.raises(ConfigError, match=r"num_classes is 4, but .* has 3 classes"):
        train(classifier(num_classes=4), data, 1, tmp_path)
    with pytest.raises(ConfigError, match=r"in_chans is 1"):
        train(classifier(in_chans=1), data, 1, tmp_path)
    for kwargs in ({"ema_decay": 1.0}, {"num_classes": 1}, {"label_smoothing": -0.1}):
        with pytest.raises(ConfigError):
            classifier(**kwargs)
    task = classifier()
    trainer = train(task, data, 1, tmp_path)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    folder = make_folder(4, name="other")
    for part in ("train", "test"):
        (folder / part / "dark").rename(folder / part / "night")
    # Only the first four classes were named, which may be the same.
    with pytest.raises(DataError, match="has 'night' and lacks 'dark' of the classes that the"):
        trainer.test(
            task,
            ImageData(str(folder), img_size=12),
            ckpt_path=str(tmp_path / "a.ckpt"),
            verbose=False,
        )
