"""The base of every domain's task: shared step, logging, recipe, hyper-parameters and random
stream."""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Callable, Mapping
from types import FunctionType
from typing import Any, ClassVar

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer
from torchmetrics import Metric, MetricCollection

from longseq.core.checkpoints import foreign
from longseq.core.checkpoints.contents import check_resumable
from longseq.core.checkpoints.safe import check_state_dict
from longseq.core.errors import ConfigError, did_you_mean
from longseq.core.ops.precision import autocast_off
from longseq.core.parallel.strategy import ContextParallelStrategy
from longseq.core.training.facts import KEY, take_legacy
from longseq.core.training.hyper import BaseData, record_hyper_parameters
from longseq.core.training.recipe import Recipe
from longseq.core.training.rng import RngStream, untouched_seed


class BaseTask(LightningModule):
    """A model in training: subclasses build it in ``__init__`` and define ``compute``.

    A step is: ``compute``, log the loss, update metrics (validation, test). Arguments must be
    JSON-able.

    A subclass takes the arguments below as ``**recipe`` and hands them on
    (``super().__init__(**recipe)``); they then stand in its signature and on the command line with
    its own defaults, which it declares in a class attribute: ``defaults = {"lr": 3e-3}``.

    Args:
        lr: peak learning rate.
        ssm_lr: peak learning rate of state-space parameters; None for the same as ``lr``.
        weight_decay: of matrices; norms, biases, embeddings and state-space parameters are never
            decayed.
        betas: decay rates of AdamW and its relatives.
        warmup_steps: optimiser steps of linear warm-up.
        total_steps: optimiser steps until the end of the schedule; None for the trainer's number.
        min_lr_ratio: final over peak learning rate.
        optimizer: "adamw", "muon" (Muon for matrices, AdamW for the rest) or a class path
            (torch.optim.SGD).
        optimizer_kwargs: further arguments of the optimiser, for example {"muon_lr": 0.05}.
        schedule: "cosine", "linear", "constant", "inverse_sqrt", "wsd" or a class path of a torch
            scheduler.
        schedule_kwargs: further arguments of the schedule.
        loss: class path of a loss of (prediction, target) in place of the task's own.
        loss_kwargs: arguments of the loss.
        metrics: class paths of torchmetrics metrics of (prediction, target), beside the task's own.
    """

    defaults: ClassVar[Mapping[str, Any]] = {}
    unit: ClassVar[str] = "samples"
    """What training speed is counted in, in the plural: "bases", "windows", "images"."""

    copies: ClassVar[tuple[str, ...]] = ()
    """Modules that hold averages of the weights: no parameters of the model's own."""

    evaluation_only: ClassVar[tuple[str, ...]] = ()
    """Arguments that change no weights: ``test`` and ``validate`` may have others than the training
    had."""

    def __init__(self, **recipe: Any) -> None:
        super().__init__()
        self.seed = untouched_seed()
        for name in recipe:
            if name not in Recipe.names():
                near = did_you_mean(name, Recipe.names())
                raise ConfigError(f"{type(self).__name__} has no argument {name!r}; {near}")
        values = {**self.recipe_defaults(), **recipe}
        taken = inspect.signature(type(self).__init__).parameters
        record_hyper_parameters(
            self, {name: value for name, value in values.items() if name in taken}
        )
        self.recipe = Recipe(**values)
        self._stream = RngStream()
        self.facts: dict[str, Any] = {}
        own, further = dict(self.make_metrics()), self.recipe.make_metrics()
        if clash := set(own) & set(further):
            raise ConfigError(
                f"metrics: {type(self).__name__} has {', '.join(sorted(clash))} already"
            )
        made = MetricCollection({**own, **further})
        self.metrics = nn.ModuleDict(
            {stage: made.clone(prefix=f"{stage}/") for stage in ("val", "test")}
        )
        self._losses = nn.ModuleDict({stage: MeanLoss() for stage in ("val", "test")})
        self.own_loss = self.recipe.make_loss()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        init = cls.__dict__.get("__init__")
        # The inherited constructor, shown with these defaults.
        if init is None and "defaults" in cls.__dict__:
            init = _copy_function(cls.__init__)
            cls.__init__ = init  # type: ignore[method-assign]
        if init is not None:
            _show_recipe(cls, init)

    @classmethod
    def recipe_defaults(cls) -> dict[str, Any]:
        """Returns the values of the recipe's arguments that are not given: the class's, then the
        bases'."""
        values = {one.name: one.default for one in Recipe.parameters({})}
        for base in reversed(cls.__mro__):
            values |= base.__dict__.get("defaults", {})
        return values

    def criterion(
        self, prediction: Tensor, target: Tensor, default: Callable[[Tensor, Tensor], Tensor]
    ) -> Tensor:
        """Returns the loss: the user's, or else the task's own.

        Args:
            prediction: of the model.
            target: what it should be.
            default: the task's own loss.
        """
        return (default if self.own_loss is None else self.own_loss)(prediction, target)

    def count_units(self, batch: Any) -> int:
        """Returns how many ``unit`` a batch holds: its rows, unless a subclass counts otherwise."""
        if isinstance(batch, Tensor):
            return len(batch)
        parts = batch.values() if isinstance(batch, Mapping) else batch
        parts = parts if isinstance(batch, (Mapping, list, tuple)) else ()
        return next((count for part in parts if (count := self.count_units(part))), 0)

    @abstractmethod
    def compute(self, batch: Any) -> dict[str, Any]:
        """Returns ``loss``, ``count`` (int) if it is a mean over so many, and the metrics'
        arguments.

        ``weight`` is what several processes weigh their training losses by, where that is not
        ``count``: the sum of the weights, or the number of values that were observed.

        ``pair`` is what the user's further metrics (``metrics``) are given: prediction and target.
        """

    @property
    def positions(self) -> tuple[str, ...]:
        """Entries of a training batch, (B, L, …), whose positions several processes may share; the
        loss must be a mean over ``count`` positions. Empty for a task that needs them all.

        Raises:
            ConfigError: if this model cannot be divided, naming why.
        """
        return ()

    def make_metrics(self) -> Mapping[str, Metric]:
        """Returns the metrics of validation and test by name; called while ``__init__`` of the base
        runs."""
        return {}

    _looked_at: BaseData | None = None

    @property
    def data(self) -> BaseData | None:
        """The data module of the run, or of ``look_at``; None without one of longseq's kind."""
        running = self._trainer is not None
        found = getattr(self.trainer, "datamodule", None) if running else self._looked_at
        return found if isinstance(found, BaseData) else None

    def look_at(self, data: BaseData) -> None:
        """Checks data against what was learnt, and has them read alike, where no trainer does."""
        self._looked_at = data
        self.setup("test")

    def check_data(self, data: Any) -> None:
        """Checks that model and data fit, before a run begins.

        Raises:
            ConfigError: if they do not.
        """

    def check_facts(self, known: Mapping[str, Any], found: Mapping[str, Any], stage: str) -> None:
        """Checks what was learnt before against the data at hand.

        Args:
            known: by the checkpoint.
            found: by the data module.
            stage: fit, validate, test or predict.

        Raises:
            ConfigError: if the run cannot go on with these data.
            DataError: likewise.
        """

    def setup(self, stage: str) -> None:
        """Checks that data and model fit, and takes the facts of the data where ``fit`` begins."""
        if (data := self.data) is None:
            return
        self.check_data(data)
        found = data.facts()
        if self.facts:
            self.check_facts(self.facts, found, stage)
        if stage == "fit" or not self.facts:
            self.facts = {**self.facts, **found}

    @classmethod
    def upgrade(cls, content: dict[str, Any]) -> None:
        """Brings a checkpoint of an earlier version to today's form, in place.

        Args:
            content: of the checkpoint.
        """
        take_legacy(content)

    def _shared_step(self, batch: Any, stage: str) -> Tensor:
        strategy = self.trainer.strategy
        if stage == "train" and isinstance(strategy, ContextParallelStrategy):
            part = strategy.part(batch, self.positions, type(self).__name__)
            with strategy.context(self):
                out = self.compute(part)
            out["loss"] = strategy.mean(out["loss"], int(out["count"]))
        else:
            out = self.compute(batch)
        loss, count = out.pop("loss"), int(out.pop("count", 1))
        if not isinstance(loss, Tensor) or loss.dim():
            own = self.recipe.loss
            what = f"the loss {own}" if own else f"{type(self).__name__}.compute's loss"
            got = f"of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else repr(loss)
            raise ConfigError(f"{what} must be one number, a tensor of shape (), and is {got}")
        weight = out.pop("weight", count)
        if stage == "train":
            self.log("train/loss", loss, batch_size=count, prog_bar=True)
            if not isinstance(strategy, ContextParallelStrategy):
                loss = self._share(loss, weight)
        else:  # by count over all ranks, where Lightning would take the mean of the ranks' means
            mean: Any = self._losses[stage]
            mean.update(loss.detach(), count)
            self.log(f"{stage}/loss", mean, batch_size=count, prog_bar=True)
        if stage != "train" and self.recipe.metrics and "pair" not in out:
            raise ConfigError(
                f"{type(self).__name__} gives further metrics no prediction and target"
            )
        if stage != "train" and len(self.metrics[stage]):  # type: ignore[arg-type]
            # Autocast would lower what some compute by: SSIM is a difference of convolutions.
            with autocast_off(loss):
                self.metrics[stage].update(**out)  # type: ignore[operator]
            self.log_dict(self.metrics[stage], batch_size=count)  # type: ignore[arg-type]
        return loss

    def _share(self, loss: Tensor, weight: float | Tensor) -> Tensor:
        """Returns this rank's loss, scaled so that the mean of the ranks' gradients, which DDP and
        FSDP take, is the gradient of the mean over all that they have counted.

        With n_r counted on rank r of R, the global mean is Σ n_r loss_r / Σ n_r, and the factor
        R n_r / Σ n_r; it is exactly 1 where all count the same. With accumulation every batch is a
        mean of its own, as on one process.

        Args:
            loss: mean of this rank's part of a batch.
            weight: what it is a mean over.
        """
        ranks = self.trainer.world_size
        if ranks == 1:
            return loss
        own = torch.as_tensor(weight, device=loss.device).double()
        total = self.trainer.strategy.reduce(own.clone(), reduce_op="sum")
        assert isinstance(total, Tensor)
        factor = torch.where(own > 0, own * ranks / total, 0).to(loss.dtype)
        # A mean over nothing may be no number; it has no share, where NaN × 0 would be NaN.
        return torch.where(own > 0, loss, torch.nan_to_num(loss, 0.0)) * factor

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.log("train/lr", self.trainer.optimizers[0].param_groups[0]["lr"])
        return self._shared_step(batch, "train")

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self._shared_step(batch, "val")

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self._shared_step(batch, "test")

    def make_optimizer(self) -> Optimizer:
        """Returns the recipe's optimiser; a task may change its groups before the schedule takes
        their rates."""
        return self.recipe.make_optimizer(self)

    def configure_optimizers(self) -> Any:
        recipe = self.recipe
        if (total := float(recipe.total_steps or self.trainer.estimated_stepping_batches)) == float(
            "inf"
        ):
            raise ConfigError(
                "the length of the run is unknown: set model.total_steps or trainer.max_steps"
            )
        optimizer = self.make_optimizer()
        return {"optimizer": optimizer, "lr_scheduler": recipe.make_schedule(optimizer, int(total))}

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        self.stepped(self.trainer.global_step + 1)  # this one is counted when it returns

    def stepped(self, step: int) -> None:
        """Takes note that the weights have moved, before callbacks can keep or end the run: what is
        averaged at the end of a batch is not yet in their checkpoint, and missing when it resumes.

        Args:
            step: number of the optimiser's steps, this one included.
        """

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self._stream.enter()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._stream.leave()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["rng_states"] = self._stream.state_dict()
        checkpoint[KEY] = self.facts
        checkpoint[foreign.KEY] = foreign.record(self, self.hparams)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.upgrade(checkpoint)
        path = None if self._trainer is None else self.trainer.ckpt_path
        check_state_dict(self, checkpoint["state_dict"], path)
        if self._trainer is not None and self.trainer.state.fn == "fit":
            check_resumable(checkpoint, 1)
        if self.data is not None:
            stage = self.trainer.state.fn
            self.check_facts(checkpoint[KEY], self.facts, "" if stage is None else stage.value)
        self.facts = dict(checkpoint[KEY])
        self._stream.load_state_dict(checkpoint.get("rng_states", []))


class MeanLoss(Metric):
    """The mean of a loss over all samples of all ranks. torchmetrics' own mean drops what is not a
    number, or, told not to, the weights."""

    total: Tensor
    samples: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("total", "samples"):
            self.add_state(name, torch.zeros((), dtype=torch.float32), dist_reduce_fx="sum")

    def update(self, loss: Tensor, samples: int) -> None:
        """Adds the mean loss of so many samples."""
        self.total += loss * samples
        self.samples += samples

    def compute(self) -> Tensor:
        return self.total / self.samples


def _copy_function(function: Any) -> Any:
    """Returns a function of the same code, with attributes of its own."""
    copy = FunctionType(
        function.__code__,
        function.__globals__,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    copy.__kwdefaults__, copy.__annotations__ = (
        function.__kwdefaults__,
        dict(function.__annotations__),
    )
    copy.__qualname__, copy.__module__, copy.__doc__ = (
        function.__qualname__,
        function.__module__,
        function.__doc__,
    )
    return copy


def _show_recipe(cls: Any, init: Any) -> None:
    """Puts the recipe's arguments into the signature of a constructor that takes ``**recipe``.

    Signatures are what the command line and its help are made from. What a constructor names itself
    it keeps.
    """
    signature = inspect.signature(init)
    parameters = list(signature.parameters.values())
    if not parameters or parameters[-1].kind is not inspect.Parameter.VAR_KEYWORD:
        if "defaults" in cls.__dict__:
            raise TypeError(
                f"{cls.__qualname__} declares defaults: its constructor must take **recipe"
            )
        return
    if parameters[-1].name != "recipe":
        return
    own = {one.name for one in parameters}
    shown = [one for one in Recipe.parameters(cls.recipe_defaults()) if one.name not in own]
    init.__signature__ = signature.replace(parameters=[*parameters[:-1], *shown])


_show_recipe(BaseTask, BaseTask.__init__)
