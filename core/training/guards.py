"""What stops a training early and keeps what it has: signals of a scheduler or a user, and numbers
that are not finite."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, WeightAveraging
from torch import Tensor, nn
from torch.optim import Optimizer

from longseq.core.errors import ConfigError, LongseqError
from longseq.core.process import ENDING, say, takes


class Interrupted(LongseqError):
    """A training was asked to stop, and did at the end of a step.

    Args:
        signum: the signal.
        step: optimiser steps done.
        checkpoint: that holds them; empty if none is kept.
    """

    def __init__(self, signum: int, step: int, checkpoint: str) -> None:
        kept = f"; go on with --ckpt_path {checkpoint}" if checkpoint else "; nothing is kept"
        name = signal.Signals(signum).name
        super().__init__(f"{name}: stopped after step {step}{kept}")
        self.status = 128 + signum


class StopOnSignal(Callback):
    """Ends a training at the next step on a signal of ``core.process.ENDING``, with ``last.ckpt``
    written; in a validation the step before it is written at once, as it may be a long one.

    A second Ctrl-C acts at once. No other second signal does: a scheduler and a launcher may both
    send one, and a limit of processor time sends one every second. A signal that was ignored at the
    start stays so. Signals can be caught in the main thread only; in another one a training has no
    such end.
    """

    def __init__(self) -> None:
        self.received = 0
        self._before: dict[int, Any] = {}
        self._trainer: Trainer | None = None
        self._kept = -1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.received, self._trainer, self._kept = 0, trainer, -1
        if threading.current_thread() is threading.main_thread():
            for one in ENDING:
                if takes(one):
                    self._before[one] = signal.signal(one, self._take)

    def _take(self, signum: int, frame: FrameType | None) -> None:
        _ = frame
        if self.received and signum == signal.SIGINT:
            say(f"SIGINT again: stopping at once; {self._held()}")
            raise KeyboardInterrupt
        if self.received:
            return
        self.received = signum
        more = "; Ctrl-C again stops at once" if signum == signal.SIGINT else ""
        say(f"{signal.Signals(signum).name}: stopping at the end of this step{more}")

    def _held(self) -> str:
        """Returns what is kept of the training where the step at hand is not waited for."""
        for one in self._trainer.checkpoint_callbacks if self._trainer is not None else ():
            if isinstance(one, ModelCheckpoint) and one.save_last and one.last_model_path:
                return f"{one.last_model_path} holds step {one._last_global_step_saved}"
        return "nothing is kept"

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        received = self.received
        if trainer.world_size > 1:  # every rank stops at the same step, whoever was told
            told = torch.tensor(received, device=trainer.strategy.root_device)
            received = int(trainer.strategy.reduce(told, reduce_op="max"))
        if not received or trainer.fit_loop._should_accumulate():
            return
        raise Interrupted(received, trainer.global_step, _keep(trainer))

    def on_validation_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if not self.received or trainer.state.fn != "fit" or trainer.world_size > 1:
            return  # of many ranks one may be told, and all must write
        if self._kept != trainer.global_step and not trainer.fit_loop._should_accumulate():
            self._kept = trainer.global_step
            with _trained_weights(trainer):
                _keep(trainer)

    def _restore(self) -> None:
        while self._before:
            one, handler = self._before.popitem()
            if signal.getsignal(one) not in (signal.SIG_IGN,):
                signal.signal(one, handler)
        self._trainer = None

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._restore()
        if self.received:  # after the last step, in its validation: what would follow must not
            raise Interrupted(self.received, trainer.global_step, _keep(trainer))

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self._restore()


class OutOfTime(LongseqError):
    """A training has used up its time, with its last step kept; status 75, "try again later"."""

    status = 75


class StopAtTime(Callback):
    """Ends a training when its time is used up, with ``last.ckpt`` written. The time is this
    attempt's: Lightning's ``max_time`` counts the attempts before it too.

    Args:
        limit: "90s", "45m", "3.5h", "1d" or [days:]hours:minutes:seconds.
        clock: seconds that pass.

    Raises:
        ConfigError: if ``limit`` is neither.
    """

    def __init__(self, limit: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.limit, self.seconds, self._clock = limit, seconds_of(limit), clock
        self._begin, self._longest = clock(), 0.0
        self._before = self._begin

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = self._clock()
        # The longest step so far, validation included, must still fit.
        self._longest = max(self._longest, now - self._before)
        self._before = now
        over = now - self._begin + self._longest > self.seconds
        if trainer.world_size > 1:
            over = trainer.strategy.reduce_boolean_decision(over, all=False)
        total = trainer.estimated_stepping_batches
        if over and not trainer.fit_loop._should_accumulate() and trainer.global_step < total:
            path = _keep(trainer)
            kept = f"; go on with --ckpt_path {path}" if path else "; nothing is kept"
            raise OutOfTime(
                f"{self.limit} are over: stopped after step {trainer.global_step}{kept}"
            )


def seconds_of(limit: str) -> float:
    """Returns a time in seconds.

    Args:
        limit: as of ``StopAtTime``.

    Raises:
        ConfigError: if it is not of that form, or not positive.
    """
    factor = {"s": 1, "m": 60, "h": 3600, "d": 86400}.get(limit[-1:])
    try:
        if factor is not None:
            seconds = float(limit[:-1]) * factor
        else:
            parts = [int(one) for one in limit.split(":")]
            if not 3 <= len(parts) <= 4:
                raise ValueError
            seconds = sum(
                n * size for n, size in zip(parts[::-1], (1, 60, 3600, 86400), strict=False)
            )
        if not 0 < seconds < float("inf"):
            raise ValueError
    except ValueError:
        form = "90s, 45m, 3.5h, 1d or [days:]hours:minutes:seconds"
        raise ConfigError(f"max_time {limit!r}: expected {form}") from None
    return float(seconds)


def _keep(trainer: Trainer) -> str:
    """Writes ``last.ckpt`` after a step and returns its path; empty if none is kept."""
    if trainer._logger_connector._first_loop_iter is not None:
        # What the step has logged is written after the callbacks' turn, which is now.
        trainer._logger_connector.on_batch_end()
        trainer._logger_connector.update_train_step_metrics()
    path = ""
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.save_last:
            callback._save_last_checkpoint(trainer, callback._monitor_candidates(trainer))
            path = callback.last_model_path
    return path


@contextmanager
def _trained_weights(trainer: Trainer) -> Iterator[None]:
    """Puts the trained weights back while the block runs: a validation has their averages in their
    place, where there are such, and a checkpoint would hold each as the other."""
    averages = [one for one in _averaging(trainer) if one._average_model is not None]
    for one in averages:
        one._swap_models(trainer.lightning_module)
    try:
        yield
    finally:
        for one in averages:
            one._swap_models(trainer.lightning_module)


def _averaging(trainer: Trainer) -> list[WeightAveraging]:
    return [one for one in trainer.callbacks if isinstance(one, WeightAveraging)]  # type: ignore[attr-defined]


class Continuation(Callback):
    """Lets a run go on as it was.

    Without the callback that averages the weights it is refused: the checkpoint has the averages in
    the place of the weights, and only that callback puts these back. Of others that are left out it
    is said. Logs count optimiser steps: Lightning's own count is one too many where a run that had
    done all its steps goes on.
    """

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if trainer.state.fn != "fit":
            return
        # A state's key is the class's name and, of some, arguments that may have changed.
        had = {str(key).partition("{")[0] for key in checkpoint.get("callbacks") or {}}
        have = {type(one).__qualname__ for one in trainer.callbacks}  # type: ignore[attr-defined]
        have |= {one.state_key.partition("{")[0] for one in trainer.callbacks}  # type: ignore[attr-defined]
        again = "give it again (--trainer.callbacks, or callbacks=[…] of fit)"
        if "current_model_state" in checkpoint and not _averaging(trainer):
            raise ConfigError(
                "the checkpoint's weights are averages, and its run goes on from others that only "
                f"the callback of that run takes up, {_LIGHTNING}EMAWeightAveraging or a relative: "
                f"{again}; --init_from starts a new training from the averages"
            )
        for name in sorted(had - have - _OURS) if trainer.is_global_zero else ():
            say(f"note: the checkpoint's run had the callback {name}, this one has not: {again}")


_LIGHTNING = "lightning.pytorch.callbacks."
_OURS = {"BestCheckpoint", "StepCheckpoint"}


class NotFinite(LongseqError):
    """A loss, gradient or score that is not a finite number."""


class StopOnNotFinite(Callback):
    """Ends a training whose gradients or validation loss are not finite, before the weights are.

    The step's batch is run again with every module watched: the message names the first one whose
    output is not finite, and the row. On a GPU gradients are looked at every few steps, so that the
    host does not wait for each.

    Args:
        every: steps between looks on a GPU.
    """

    def __init__(self, every: int = 10) -> None:
        self.every = every
        self._batch: Any = None
        self._norms: list[Tensor] = []

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._batch = batch

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        if getattr(trainer.precision_plugin, "scaler", None) is not None:
            return  # float16's scaler leaves such steps out by itself
        with torch.no_grad():
            grads = [p.grad for p in pl_module.parameters() if p.grad is not None]
            grads = [g.to_dense() if g.is_sparse else g for g in grads]
            if not grads:
                return
            norms = torch._foreach_norm(
                [torch.view_as_real(g) if g.is_complex() else g for g in grads]
            )
            self._norms.append(torch.stack([n.float() for n in norms]).sum())
        wait = self.every if pl_module.device.type == "cuda" else 1
        if len(self._norms) >= wait:
            self._look(trainer, pl_module)

    def _look(self, trainer: Trainer, module: LightningModule) -> None:
        bad = ~torch.isfinite(torch.stack(self._norms))
        self._norms.clear()
        if bool(bad.any()):
            raise NotFinite(self._words(trainer, module))

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if self._norms:  # of steps that have not been looked at: the last file is a finite one
            self._look(trainer, pl_module)

    def _words(self, trainer: Trainer, module: LightningModule) -> str:
        where = first_not_finite(module, self._batch) or _first_gradient(module)
        kept = [
            c.last_model_path
            for c in trainer.checkpoint_callbacks
            if isinstance(c, ModelCheckpoint) and c.last_model_path
        ]
        rest = f"; the last checkpoint before it is {Path(kept[0])}" if kept else ""
        return (
            f"step {trainer.global_step + 1}: not a finite number, first in {where}; "
            f"lower model.lr or look at the data{rest}"
        )

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        loss = trainer.callback_metrics.get("val/loss")
        if trainer.state.fn == "fit" and loss is not None and not bool(torch.isfinite(loss)):
            when = "before training" if trainer.sanity_checking else f"step {trainer.global_step}"
            raise NotFinite(f"{when}: the validation loss is {float(loss)}")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._norms:
            self._look(trainer, pl_module)
        self._batch = None


def first_not_finite(module: LightningModule, batch: Any) -> str:
    """Returns where a batch first meets a number that is not finite: an input, a module with the
    row, or the loss; empty if nowhere.

    Args:
        module: a task, in training; its gradients are left alone.
        batch: of one step.
    """
    found: list[str] = []

    def look(name: str, value: Any) -> None:
        values = value.values() if isinstance(value, dict) else value
        for part in values if isinstance(value, (dict, tuple, list)) else [value]:
            if isinstance(part, (dict, tuple, list)):
                look(name, part)
            elif isinstance(part, Tensor) and (part.is_floating_point() or part.is_complex()):
                bad = ~torch.isfinite(part)
                if bool(bad.any()) and not found:
                    row = int(bad.nonzero()[0, 0]) if bad.dim() else 0
                    found.append(f"{name}, row {row} of the batch" if bad.dim() else name)

    def watch(name: str) -> Any:
        return lambda _module, _inputs, output: look(name, output)

    look("the input", batch)
    handles = [
        child.register_forward_hook(watch(name))
        for name, child in module.named_modules()
        if name and not isinstance(child, nn.ModuleList | nn.ModuleDict)
    ]
    try:
        with torch.no_grad():
            if not found:
                out = module.compute(batch)  # type: ignore[operator]
                look("the loss", out["loss"])
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else ""


def _first_gradient(module: nn.Module) -> str:
    for name, parameter in module.named_parameters():
        if parameter.grad is not None and not bool(torch.isfinite(parameter.grad).all()):
            return f"the gradient of {name}"
    return "a gradient"
