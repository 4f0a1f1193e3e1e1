"""A training of so many CPU minutes, for comparisons at equal cost: the schedule follows the time
that is used up, not the step."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from longseq.core.checks import check_positive
from longseq.core.errors import ConfigError
from longseq.core.training.schedules import find_schedule
from longseq.core.training.task import BaseTask

_PARTS = 10_000
"""Steps of the schedule that the budget is divided into."""
_NEVER = 1 << 60
"""Batches between validations that no training makes."""


class CpuBudget(Callback):
    """Trains for so many CPU minutes of this process; a slow and a fast model then cost the same.

    The learning rates follow the recipe's schedule over the share of the time that is used up, so
    that both end where the schedule ends. Loading counts, validation and checkpoints of the end do
    not. Two runs make different numbers of steps, so results are not equal bit for bit. Validations
    come at equal shares of the time, the last one at its end, and log it as ``val/cpu_seconds``.

    Args:
        minutes: of CPU time, of all threads.
        warmup: share of them in which the learning rate rises.
        clock: CPU seconds of this process.
        validations: how many; None leaves them to the trainer.

    Raises:
        ConfigError: for minutes that are not positive, a share outside [0, 1), fewer than one
            validation, or one with nothing to validate on.
    """

    def __init__(
        self,
        minutes: float,
        warmup: float = 0.1,
        clock: Callable[[], float] = time.process_time,
        validations: int | None = None,
    ) -> None:
        if not 0 < minutes < float("inf") or not 0 <= warmup < 1:
            raise ConfigError(
                f"a budget needs minutes > 0 and a warm-up in [0, 1), got {minutes} and {warmup}"
            )
        if validations is not None:
            check_positive("validations", validations)
        self.minutes, self.warmup, self._clock = minutes, warmup, clock
        self.validations, self._passed = validations, 0
        self.used, self.steps, self._before = 0.0, 0, 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, BaseTask)
        if "." in pl_module.recipe.schedule:
            raise ConfigError(
                f"schedule {pl_module.recipe.schedule}: a CPU budget needs a schedule by name"
            )
        if self.validations is not None:
            if not sum(trainer.num_val_batches):
                raise ConfigError(
                    "nothing to validate on: a validation curve needs a validation part "
                    "(--data.valid_fraction, --trainer.limit_val_batches)"
                )
            self._passed = self._share(self.validations)
            trainer.val_check_batch = _NEVER
        self._before = self._clock()

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._take()
        assert isinstance(pl_module, BaseTask)
        recipe, share = pl_module.recipe, min(1.0, self.used / (60 * self.minutes))
        factor = find_schedule(recipe.schedule)(
            int(share * _PARTS),
            int(self.warmup * _PARTS),
            _PARTS,
            recipe.min_lr_ratio,
            **(recipe.schedule_kwargs or {}),
        )
        for optimizer in trainer.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * factor

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._take()
        self.steps = trainer.global_step
        if self.used >= 60 * self.minutes and not trainer.fit_loop._should_accumulate():
            trainer.should_stop = True
        numbers = {"train/cpu_seconds": self.used, "train/steps": float(self.steps)}
        pl_module.log_dict(numbers, batch_size=1)
        if self.validations is not None and not trainer.fit_loop._should_accumulate():
            passed = self._share(self.validations)
            # Lightning validates after batches whose number this divides, and where a run stops.
            trainer.val_check_batch = 1 if passed > self._passed else _NEVER
            self._passed = passed

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._take()

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            pl_module.log("val/cpu_seconds", self.used, batch_size=1)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._before = self._clock()

    def _share(self, parts: int) -> int:
        """Returns how many of the budget's equal parts are used up."""
        return min(parts, int(parts * self.used / (60 * self.minutes)))

    def _take(self) -> None:
        """Adds the time since the last look."""
        now = self._clock()
        self.used, self._before = self.used + now - self._before, now

    def state_dict(self) -> dict[str, Any]:
        return {"used": self.used}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.used = float(state_dict["used"])


def budget_values(minutes: float, validations: int | None = None) -> dict[str, Any]:
    """Returns the trainer's arguments of a training of so many CPU minutes.

    Args:
        minutes: of CPU time.
        validations: at equal shares of them; None for no validation at all.
    """
    own: dict[str, Any] = {"minutes": minutes}
    checks: dict[str, Any] = {"limit_val_batches": 0}
    if validations is not None:
        own["validations"] = validations
        checks = {"check_val_every_n_epoch": None, "num_sanity_val_steps": 0}
    return {
        "callbacks": [
            {"class_path": f"{CpuBudget.__module__}.{CpuBudget.__name__}", "init_args": own}
        ],
        "max_steps": 100_000_000,  # the budget ends it
        **checks,
    }
