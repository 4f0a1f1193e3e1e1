"""The recipe: signatures and defaults; optimisers, schedules, losses and metrics by name and class
path."""

from __future__ import annotations

import copy
import inspect
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn

from longseq.core.errors import ConfigError
from longseq.core.shell.cli import main
from longseq.core.training.muon import MuonAdamW, orthogonalise
from longseq.core.training.optim import parameter_groups
from longseq.core.training.recipe import Recipe
from longseq.core.training.schedules import SCHEDULES
from longseq.core.training.task import BaseTask
from longseq.genomics.task import CausalLanguageModel
from longseq.timeseries.task import Informer, MixerForecaster, SpaceTime
from longseq.weather.video.task import VideoForecaster


class Tiny(BaseTask):
    """A linear map.

    Args:
        width: of the input.
        **recipe: see ``BaseTask``.
    """

    defaults = {"lr": 0.5, "betas": (0.8, 0.9)}

    def __init__(self, width: int = 3, **recipe: Any) -> None:
        super().__init__(**recipe)
        self.layer = nn.Linear(width, 2)

    def compute(self, batch: Any) -> dict[str, Any]:
        prediction = self.layer(batch)
        target = batch[:, :2].contiguous()
        loss = self.criterion(prediction, target, nn.functional.mse_loss)
        return {"loss": loss, "pair": (prediction, target)}


class Slower(Tiny):
    defaults = {"lr": 0.25}


def test_the_seven_defaults_stand_once_and_each_task_shows_its_own() -> None:
    shown = inspect.signature(Slower.__init__).parameters
    assert list(shown) == ["self", "width", *Recipe.names()]
    assert (shown["lr"].default, shown["betas"].default) == (0.25, (0.8, 0.9))
    assert inspect.signature(Tiny.__init__).parameters["lr"].default == 0.5
    assert (Slower().recipe.lr, Tiny().recipe.lr, Tiny(lr=2.0).recipe.lr) == (0.25, 0.5, 2.0)
    assert Slower(5).layer.in_features == 5
    hyper = dict(Slower(4, warmup_steps=3).hparams)
    assert hyper["width"] == 4 and hyper["lr"] == 0.25 and hyper["warmup_steps"] == 3
    assert hyper["betas"] == [0.8, 0.9] and hyper["_class_path"].endswith(".Slower")
    json.dumps(hyper)
    hyper.pop("_class_path")
    assert dict(Slower(**hyper).hparams).items() >= hyper.items()


def test_defaults_are_those_of_the_first_version() -> None:
    """What each task trained with before the arguments stood once."""
    names = ("lr", "ssm_lr", "weight_decay", "betas", "warmup_steps", "total_steps", "min_lr_ratio")
    expected = {
        CausalLanguageModel: (3e-3, None, 0.1, (0.9, 0.95), 20, None, 0.1),
        MixerForecaster: (1e-3, None, 0.05, (0.9, 0.99), 20, None, 0.02),
        SpaceTime: (1e-3, None, 1e-4, (0.9, 0.999), 20, None, 0.1),
        Informer: (1e-4, None, 0.0, (0.9, 0.999), 0, None, 0.03),
        VideoForecaster: (3e-3, None, 1e-5, (0.9, 0.95), 50, None, 0.02),
        BaseTask: (1e-3, None, 0.1, (0.9, 0.95), 0, None, 0.1),
    }
    for cls, values in expected.items():
        assert tuple(cls.recipe_defaults()[name] for name in names) == values, cls


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        (
            "--model.optimizer.momentum",
            "0.9",
            "--model.optimizer: takes one value; "
            "its arguments are --model.optimizer_kwargs '{momentum: 0.9}'",
        ),
        ("--model.metrics", "torchmetrics.MeanSquaredError", "--model.metrics: a list in brackets"),
        ("--model.optimizer_kwargs", "{momentumm: 0.9}", "argument 'momentumm' (see optimizer_kw"),
        ("--model.schedule", "nowhere", "no schedule named 'nowhere'"),
    ],
)
def test_mistakes_leave_nothing_behind(
    option: str,
    value: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    argv = ["timeseries", "fit", "--config", "electricity_demand", "--trainer.max_steps", "1"]
    assert main([*argv, option, value]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_wrong_declarations_are_refused() -> None:
    with pytest.raises(ConfigError, match="Tiny has no argument 'lrr'; did you mean 'lr'"):
        Tiny(lrr=1.0)
    with pytest.raises(TypeError, match=r"must take \*\*recipe"):

        class Fixed(Tiny):
            defaults = {"lr": 1.0}

            def __init__(self, width: int = 3) -> None:
                super().__init__(width)


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 4), nn.RMSNorm(4), nn.Conv1d(4, 5, 3), nn.Embedding(3, 2))


def loss_of(net: nn.Module) -> torch.Tensor:
    total: torch.Tensor = sum(
        (p * torch.arange(1.0, p.numel() + 1).view_as(p)).sin().sum() for p in net.parameters()
    )
    return total


def run(net: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(net).backward()
        optimizer.step()


def test_the_default_is_adamw_with_cosine() -> None:
    one, two = model(), model()
    recipe = Recipe(lr=0.1, weight_decay=0.3, betas=(0.7, 0.8))
    plain = torch.optim.AdamW(parameter_groups(one, 0.1, 0.3), lr=0.1, betas=(0.7, 0.8))
    run(one, plain, 3)
    run(two, recipe.make_optimizer(two), 3)
    for a, b in zip(one.parameters(), two.parameters()):
        assert torch.equal(a, b)


def test_any_torch_optimiser() -> None:
    net = model()
    sgd = Recipe(
        lr=0.1, optimizer="torch.optim.SGD", optimizer_kwargs={"momentum": 0.5}
    ).make_optimizer(net)
    assert isinstance(sgd, torch.optim.SGD) and sgd.param_groups[0]["momentum"] == 0.5
    assert {g["name"]: g["weight_decay"] for g in sgd.param_groups} == {
        "decay": 0.1,
        "no_decay": 0.0,
    }
    nadam = Recipe(optimizer="torch.optim.NAdam", betas=(0.5, 0.6)).make_optimizer(net)
    assert nadam.param_groups[0]["betas"] == (0.5, 0.6)
    wrong = {
        "adam": "no optimizer named 'adam'; did you mean 'adamw'",
        "torch.optim.Adamm": "torch.optim has no Adamm",
        "torch.nn.Linear": "is no torch Optimizer",
        "nowhere.Lion": "no module nowhere; one in this folder is found by --import nowhere",
        "torch.optim.Rprop": "has no weight decay: set model.weight_decay to 0",
        "torch.optim.LBFGS": "optimizer torch.optim.LBFGS: ",
    }
    for name, says in wrong.items():
        with pytest.raises(ConfigError, match=says):
            Recipe(optimizer=name).make_optimizer(net)
    for kwargs, says in (
        ({"momentun": 1}, "momentun"),
        ({"lr": 1}, "lr has an argument of its own"),
    ):
        with pytest.raises(ConfigError, match=says):
            Recipe(optimizer="torch.optim.SGD", optimizer_kwargs=kwargs).make_optimizer(net)


def test_orthogonalise() -> None:
    for shape in ((4, 9), (9, 4), (5, 5)):
        matrix = torch.randn(*shape, generator=torch.Generator().manual_seed(1))
        values = torch.linalg.svdvals(orthogonalise(matrix, 8))
        assert values.min() > 0.5 and values.max() < 1.3
    assert orthogonalise(torch.zeros(2, 3)).abs().max() == 0


@pytest.mark.parametrize("steps", [1, 3, 5])
@pytest.mark.parametrize("shape", [(6, 40), (40, 6), (9, 10)])
def test_orthogonalise_is_the_iteration_written_out(shape: tuple[int, int], steps: int) -> None:
    """Also of few dimensions, where rounding has the most to grow from."""
    generator = torch.Generator().manual_seed(1)
    few = torch.randn(shape[0], 2, generator=generator) @ torch.randn(
        2, shape[1], generator=generator
    )
    for matrix in (torch.randn(shape, generator=generator), few):
        x = matrix.double() / matrix.double().norm()
        for _ in range(steps):
            gram = x @ x.mT
            x = 3.4445 * x + (-4.775 * gram + 2.0315 * gram @ gram) @ x
        found = orthogonalise(matrix, steps).double()
        torch.testing.assert_close(found, x, rtol=0, atol=1e-4 * float(x.abs().max()))


def test_muon_agrees_with_torch() -> None:
    """On a plain matrix, up to the bfloat16 in which torch's own iterates."""
    torch.manual_seed(0)
    one = nn.Linear(6, 12, bias=False)
    two = copy.deepcopy(one)
    ours = Recipe(
        optimizer="muon", optimizer_kwargs={"muon_lr": 0.1}, weight_decay=0.2
    ).make_optimizer(one)
    theirs = torch.optim.Muon(two.parameters(), lr=0.1, weight_decay=0.2)
    start = one.weight.clone()
    run(one, ours, 1)
    run(two, theirs, 1)
    moved = (two.weight - start).abs().max().item()
    # Five iterations of three products each, every one rounded to 2⁻⁸.
    assert (one.weight - two.weight).abs().max().item() < 15 / 256 * moved


def test_muon_takes_matrices_and_adamw_the_rest() -> None:
    one, two = model(), model()
    optimizer = Recipe(lr=0.1, optimizer="muon", weight_decay=0.0).make_optimizer(one)
    assert isinstance(optimizer, MuonAdamW)
    assert {g["name"]: len(g["params"]) for g in optimizer.param_groups} == {
        "no_decay": 4,
        "muon": 2,
    }
    fused = {"fused": True}  # as inside Muon
    adam = Recipe(lr=0.1, weight_decay=0.0, optimizer_kwargs=fused).make_optimizer(two)
    run(one, optimizer, 3)
    run(two, adam, 3)
    for (name, a), (_, b) in zip(one.named_parameters(), two.named_parameters()):
        assert torch.equal(a, b) == (name not in ("0.weight", "2.weight")), name
    schedule = Recipe(warmup_steps=4).make_schedule(optimizer, 10)["scheduler"]
    assert schedule.get_last_lr() == [0.1 / 4, 0.02 / 4]
    with pytest.raises(ConfigError, match="momentum"):
        Recipe(optimizer="muon", optimizer_kwargs={"momentum": 1.0}).make_optimizer(one)


def test_muon_goes_on_from_its_state() -> None:
    whole, parts = model(), model()
    recipe = Recipe(lr=0.05, optimizer="muon")
    run(whole, recipe.make_optimizer(whole), 6)
    first = recipe.make_optimizer(parts)
    run(parts, first, 3)
    saved = copy.deepcopy(first.state_dict())
    second = recipe.make_optimizer(parts)
    second.load_state_dict(saved)
    run(parts, second, 3)
    for a, b in zip(whole.parameters(), parts.parameters()):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_rise_and_end(name: str) -> None:
    factor = SCHEDULES[name]
    values = [factor(step, 4, 40, 0.1) for step in range(60)]
    assert values[:4] == [0.25, 0.5, 0.75, 1.0] and max(values) <= 1.0
    end = {"constant": 1.0, "inverse_sqrt": math.sqrt(4 / 60)}.get(name, 0.1)
    assert values[-1] == pytest.approx(end)
    assert factor(0, 0, 10, 0.0) <= 1.0
    assert all(math.isfinite(factor(step, 0, 1, 0.0)) for step in range(4))
    if name == "wsd":
        assert values[31] == 1.0 and factor(30, 4, 40, 0.0, decay=0.5) == pytest.approx(0.5)


def test_torch_schedules() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    recipe = Recipe(
        schedule="torch.optim.lr_scheduler.ExponentialLR",
        schedule_kwargs={"gamma": 0.5},
        warmup_steps=2,
    )
    scheduler = recipe.make_schedule(optimizer, 10)["scheduler"]
    found = []
    for _ in range(5):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert found == [0.5, 1.0, 1.0, 0.5, 0.25]
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"schedule": "cosin"}, "no schedule named 'cosin'; did you mean 'cosine'"),
        ({"schedule": "torch.optim.lr_scheduler.ReduceLROnPlateau"}, "follows a metric"),
        ({"schedule": "torch.optim.lr_scheduler.ExponentialLR"}, "gamma"),
        ({"schedule": "wsd", "schedule_kwargs": {"decay": 2}}, "decay must lie"),
        ({"schedule": "cosine", "schedule_kwargs": {"cycles": 2}}, "cycles"),
        ({"schedule": "torch.optim.SGD"}, "is no torch LRScheduler"),
    ]
    for change, says in wrong:
        with pytest.raises(ConfigError, match=says):
            Recipe(**change).make_schedule(optimizer, 10)


def test_losses() -> None:
    a, b = torch.tensor([1.0, 3.0]), torch.tensor([0.0, 0.0])
    for name, kwargs, value in (
        ("torch.nn.L1Loss", None, 2.0),
        ("torch.nn.HuberLoss", {"delta": 1.0}, 1.5),
        ("torch.nn.functional.l1_loss", {"reduction": "sum"}, 4.0),
    ):
        loss = Recipe(loss=name, loss_kwargs=kwargs).make_loss()
        assert loss is not None and float(loss(a, b)) == value
    assert Recipe().make_loss() is None
    for name, says in (
        ("torch.hub.load", "functions are taken from torch.nn.functional"),
        ("torch.pi", "neither a torch.nn.Module class nor a function"),
        ("l1", "its class path is needed, for example torch"),
    ):
        with pytest.raises(ConfigError, match=says):
            Recipe(loss=name).make_loss()
    with pytest.raises(ConfigError, match="loss_kwargs without a loss"):
        Recipe(loss_kwargs={"a": 1}).make_loss()


def test_metrics_and_loss_of_a_task(tmp_path: Path) -> None:
    metrics = [
        "torchmetrics.MeanAbsoluteError",
        {"class_path": "torchmetrics.MeanSquaredError", "init_args": {"squared": False}},
    ]
    task = Tiny(loss="torch.nn.L1Loss", metrics=metrics)
    assert list(task.state_dict()) == ["layer.weight", "layer.bias"]
    trainer = Trainer(
        logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu"
    )
    batches = torch.randn(3, 4, 3, generator=torch.Generator().manual_seed(0))
    trainer.validate(task, torch.utils.data.DataLoader(batches, batch_size=None), verbose=False)
    flat = batches.flatten(0, 1)
    error = (task.layer(flat) - flat[:, :2]).detach()
    found = trainer.callback_metrics
    assert float(found["val/loss"]) == pytest.approx(float(error.abs().mean()))
    assert float(found["val/mean_absolute_error"]) == pytest.approx(float(error.abs().mean()))
    assert float(found["val/mean_squared_error"]) == pytest.approx(
        float(error.square().mean().sqrt())
    )
    wrong: list[tuple[Any, str]] = [
        ([3], "class_path and init_args, is needed, got 3"),
        (["torch.nn.Linear"], "is no torchmetrics Metric"),
        (["mae"], "no metric named 'mae'; its class path is needed"),
        (["torchmetrics.MeanAbsoluteError"] * 2, "named twice"),
    ]
    for value, says in wrong:
        with pytest.raises(ConfigError, match=says):
            Tiny(metrics=value)


COMMON = [
    "--trainer.max_steps=2",
    "--trainer.val_check_interval=2",
    "--trainer.logger=false",
    "--trainer.enable_checkpointing=false",
    "--trainer.enable_model_summary=false",
]
ACCURACY = {
    "class_path": "torchmetrics.classification.MulticlassAccuracy",
    "init_args": {"num_classes": 16},
}
SMALL = ["--model.d_model=8", "--model.n_layers=1", "--data.length=64", "--data.batch_size=2"]
GENOME = ["genomics", "fit", "--data.fasta=tiny", *SMALL]


@pytest.mark.parametrize(
    "options",
    [
        [
            "--model.optimizer=muon",
            "--model.optimizer_kwargs={muon_lr: 0.01}",
            "--model.schedule=wsd",
        ],
        [
            "--model.optimizer=torch.optim.SGD",
            "--model.schedule=torch.optim.lr_scheduler.ExponentialLR",
            "--model.schedule_kwargs={gamma: 0.9}",
            "--model.warmup_steps=0",
        ],
        [
            "--model.loss=torch.nn.CrossEntropyLoss",
            "--model.loss_kwargs={label_smoothing: 0.1}",
            "--model.metrics=" + json.dumps([ACCURACY]),
        ],
    ],
    ids=["muon", "sgd", "loss"],
)
def test_from_the_command_line(
    options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*GENOME, *COMMON, *options]) == 0


def test_a_named_class_takes_none_of_the_default_ones_values(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As it did: SpaceTime had MixerForecaster's width, dropout and weight decay."""
    import yaml

    argv = [
        "timeseries",
        "fit",
        "--model=SpaceTime",
        "--data.path=electricity_demand",
        "--model.context=96",
    ]
    assert main([*argv, "--print_config"]) == 0
    found = yaml.safe_load(capsys.readouterr().out)["model"]
    own = {
        name: one.default for name, one in inspect.signature(SpaceTime.__init__).parameters.items()
    }
    own = json.loads(json.dumps({**{k: v for k, v in own.items() if k != "self"}, "context": 96}))
    assert found["init_args"] == own


def test_a_metric_gets_pairs_of_slices_and_says_what_it_does_not_take() -> None:
    made = Recipe(metrics=["torchmetrics.MeanAbsoluteError", "torchmetrics.R2Score"]).make_metrics()
    values = torch.arange(24.0).view(2, 3, 4)
    made["mean_absolute_error"].update((values[:, 1:], values[:, :-1]))
    assert float(made["mean_absolute_error"].compute()) == 4
    said = (
        r"metric R2Score: .*; it is given a prediction and a target of \(2, 3, 4\) of torch.float32"
    )
    with pytest.raises(ConfigError, match=said):
        made["r2_score"].update((values, values))
