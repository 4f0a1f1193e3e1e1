"""How a task is trained, as one record: optimiser, schedule, loss and further metrics."""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from types import FunctionType
from typing import Any

from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau, SequentialLR
from torchmetrics import Metric
from torchmetrics.wrappers.abstract import WrapperMetric

from longseq.core.errors import ConfigError, LongseqError, did_you_mean, is_out_of_memory
from longseq.core.plugins import OPTION, TRUSTED, package_of
from longseq.core.training.muon import MuonAdamW
from longseq.core.training.optim import parameter_groups
from longseq.core.training.schedules import cosine_with_warmup, find_schedule

OPTIMIZERS: dict[str, type[Optimizer]] = {"adamw": AdamW, "muon": MuonAdamW}
_LOSSES = ("torch.nn.functional", "torchmetrics.functional")
"""Where functions of our dependencies may be taken from as losses."""


@dataclass(frozen=True)
class Recipe:
    """The arguments that every task takes beside its own; ``BaseTask`` documents them."""

    lr: float = 1e-3
    ssm_lr: float | None = None
    weight_decay: float = 0.1
    betas: Sequence[float] = (0.9, 0.95)
    warmup_steps: int = 0
    total_steps: int | None = None
    min_lr_ratio: float = 0.1
    optimizer: str = "adamw"
    optimizer_kwargs: dict[str, Any] | None = None
    schedule: str = "cosine"
    schedule_kwargs: dict[str, Any] | None = None
    loss: str | None = None
    loss_kwargs: dict[str, Any] | None = None
    metrics: list[str | dict[str, Any]] | None = None

    @classmethod
    def names(cls) -> list[str]:
        """Returns the names of the arguments."""
        return [field.name for field in fields(cls)]

    @classmethod
    def parameters(cls, defaults: Mapping[str, Any]) -> list[inspect.Parameter]:
        """Returns the arguments as keyword-only parameters of a signature.

        Args:
            defaults: in place of the record's own.
        """
        parameters = list(inspect.signature(cls, eval_str=True).parameters.values())
        kind = inspect.Parameter.KEYWORD_ONLY
        return [
            one.replace(kind=kind, default=defaults.get(one.name, one.default))
            for one in parameters
        ]

    def check(self) -> None:
        """Checks optimiser and schedule on one small layer, before a run leaves anything behind.

        Raises:
            ConfigError: as ``make_optimizer`` and ``make_schedule`` do.
        """
        optimizer = self.make_optimizer(nn.Linear(2, 2))
        self.make_schedule(optimizer, self.total_steps or self.warmup_steps + 1)

    def make_optimizer(self, module: nn.Module) -> Optimizer:
        """Returns the optimiser over the groups of ``parameter_groups``.

        Args:
            module: the model.

        Raises:
            ConfigError: for an unknown optimiser, or arguments that it does not take.
        """
        cls = OPTIMIZERS.get(self.optimizer) or find_class(
            self.optimizer, Optimizer, "optimizer", OPTIMIZERS
        )
        own = dict(self.optimizer_kwargs or {})
        for name in ("lr", "weight_decay", "params"):
            if name in own:
                raise ConfigError(
                    f"optimizer_kwargs: {name} has an argument of its own, model.{name}"
                )
        accepted = inspect.signature(cls.__init__).parameters
        if "betas" in accepted:
            own.setdefault("betas", (self.betas[0], self.betas[1]))
        groups = parameter_groups(module, self.lr, self.weight_decay, self.ssm_lr)
        try:
            made = cls(groups, lr=self.lr, **own)  # type: ignore[call-arg]
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"optimizer {self.optimizer}: {error} (see optimizer_kwargs)"
            ) from error
        if self.weight_decay and "weight_decay" not in made.defaults:
            raise ConfigError(
                f"optimizer {self.optimizer} has no weight decay: set model.weight_decay to 0"
            )
        return made

    def make_schedule(self, optimizer: Optimizer, total: int) -> dict[str, Any]:
        """Returns Lightning's entry of the schedule, stepped once per optimiser step.

        Args:
            optimizer: whose groups' learning rates are multiplied.
            total: steps of the whole run.

        Raises:
            ConfigError: for an unknown schedule, or values outside their range.
        """
        warmup, least = self.warmup_steps, self.min_lr_ratio
        if warmup < 0:
            raise ConfigError(f"warmup_steps must be ≥ 0, got {warmup}")
        if total < 1:
            raise ConfigError(f"a training needs at least one step (max_steps), got {total}")
        if not 0.0 <= least <= 1.0:
            raise ConfigError(f"min_lr_ratio must lie between 0 and 1, got {least}")
        own = dict(self.schedule_kwargs or {})
        scheduler: LRScheduler
        try:
            if "." in self.schedule:
                scheduler = _torch_schedule(self.schedule, own, optimizer, warmup)
            else:
                factor = find_schedule(self.schedule)
                factor(0, warmup, total, least, **own)
                scheduler = LambdaLR(
                    optimizer, lambda step: factor(step, warmup, total, least, **own)
                )
        except (TypeError, ValueError) as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(f"schedule {self.schedule}: {error} (see schedule_kwargs)") from error
        return {"scheduler": scheduler, "interval": "step", "frequency": 1}

    def make_loss(self) -> Callable[[Tensor, Tensor], Tensor] | None:
        """Returns the loss that replaces the task's own; None if there is none.

        Raises:
            ConfigError: if it is neither a class of modules nor a function, or does not take its
                arguments.
        """
        own = dict(self.loss_kwargs or {})
        if self.loss is None:
            if own:
                raise ConfigError("loss_kwargs without a loss")
            return None
        found = find_object(self.loss, "loss")
        if isinstance(found, FunctionType):
            module = self.loss.rpartition(".")[0]
            if (
                package_of(module) in TRUSTED
                and module not in _LOSSES
                and package_of(module) != "longseq"
            ):
                raise ConfigError(
                    f"loss {self.loss}: functions are taken from {' and '.join(_LOSSES)}"
                )
            return functools.partial(found, **own)
        if not (inspect.isclass(found) and issubclass(found, nn.Module)):
            raise ConfigError(f"loss {self.loss} is neither a torch.nn.Module class nor a function")
        try:
            made: nn.Module = found(**own)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"loss {self.loss}: {error} (see loss_kwargs)") from error
        return made

    def make_metrics(self) -> dict[str, Metric]:
        """Returns the further metrics by their class's name in lower snake case.

        Raises:
            ConfigError: if one is no torchmetrics metric, or two have one name.
        """
        made: dict[str, Metric] = {}
        for entry in self.metrics or []:
            is_mapping = isinstance(entry, Mapping) and set(entry) <= {"class_path", "init_args"}
            if not (isinstance(entry, str) or (is_mapping and "class_path" in entry)):
                raise ConfigError(
                    f"metrics: a class path, or class_path and init_args, is needed, got {entry!r}"
                )
            path = entry if isinstance(entry, str) else entry["class_path"]
            own = {} if isinstance(entry, str) else dict(entry.get("init_args") or {})
            cls = find_class(path, Metric, "metric", ())
            name = "".join(f"_{c.lower()}" if c.isupper() else c for c in cls.__name__).strip("_")
            if name in made:
                raise ConfigError(f"metrics: {path} is named twice")
            try:
                made[name] = PairMetric(cls(**own))
            except (TypeError, ValueError) as error:
                raise ConfigError(f"metric {path}: {error}") from error
        return made


class PairMetric(WrapperMetric):
    """A metric of predictions and targets whatever else a task's own metrics take.

    Args:
        metric: updated with (prediction, target).
    """

    def __init__(self, metric: Metric) -> None:
        super().__init__()
        self.metric = metric

    def update(self, pair: tuple[Tensor, Tensor]) -> None:
        """Adds predictions and targets.

        Args:
            pair: prediction and target, in shapes that the metric takes.

        Raises:
            ConfigError: if it does not take them.
        """
        # Some metrics view them in another shape, which slices do not allow.
        pair = (pair[0].contiguous(), pair[1].contiguous())
        try:
            self.metric.update(*pair)
        except (TypeError, ValueError, RuntimeError) as error:
            if isinstance(error, LongseqError) or is_out_of_memory(error):
                raise
            shapes = " and ".join(f"{tuple(one.shape)} of {one.dtype}" for one in pair)
            raise ConfigError(
                f"metric {type(self.metric).__name__}: {error}; it is given a prediction and a "
                f"target of {shapes}"
            ) from error

    def compute(self) -> Any:
        return self.metric.compute()

    def reset(self) -> None:
        self.metric.reset()
        super().reset()


def _torch_schedule(
    path: str, own: dict[str, Any], optimizer: Optimizer, warmup: int
) -> LRScheduler:
    """Returns a torch scheduler, after a linear warm-up if there is one."""
    cls = find_class(path, LRScheduler, "schedule", ())
    if issubclass(cls, ReduceLROnPlateau):
        raise ConfigError(f"schedule {path} follows a metric, and schedules here follow the step")
    if warmup == 0:
        return cls(optimizer, **own)
    rising = LambdaLR(optimizer, lambda step: cosine_with_warmup(step, warmup, warmup, 1.0))
    return SequentialLR(optimizer, [rising, cls(optimizer, **own)], [warmup])


def find_object(path: str, what: str) -> Any:
    """Returns the object at a dotted path.

    Args:
        path: for example "torch.optim.SGD".
        what: for the message.

    Raises:
        ConfigError: if it is not there, with what to do.
    """
    module, _, name = path.rpartition(".")
    if not module:
        example = {"loss": "torch.nn.MSELoss", "metric": "torchmetrics.MeanSquaredError"}.get(
            what, "torch.optim.SGD"
        )
        raise ConfigError(f"{what} {path}: its class path is needed, for example {example}")
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{what} {path}: no module {error.name}; one in this folder is found by {OPTION} "
            f"{module}"
        ) from error
    except (AttributeError, ValueError) as error:
        there = [one for one in dir(sys.modules.get(module)) if not one.startswith("_")]
        near = difflib.get_close_matches(name, there, n=1)
        hint = f"; did you mean {module}.{near[0]}?" if near else ""
        raise ConfigError(f"{what} {path}: {module} has no {name}{hint}") from error


def find_class(
    path: str, base: type[Any], what: str, known: Sequence[str] | Mapping[str, Any]
) -> type[Any]:
    """Returns a class by its path.

    Args:
        path: dotted, or a misspelt name.
        base: that it must derive from.
        what: for the message.
        known: names that there are instead of paths.

    Raises:
        ConfigError: if there is none.
    """
    if "." not in path:
        near = (
            f"{did_you_mean(path, known)}, or a class path" if known else "its class path is needed"
        )
        owner = inspect.getmodule(base)
        if owner is not None and hasattr(
            owner.__package__ and sys.modules[owner.__package__], path
        ):
            near += f" (torch's is {owner.__package__}.{path})"
        raise ConfigError(f"no {what} named {path!r}; {near}")
    found = find_object(path, what)
    if not (inspect.isclass(found) and issubclass(found, base)):
        raise ConfigError(
            f"{what} {path} is no {base.__module__.partition('.')[0]} {base.__name__}"
        )
    return found
