"""Training in one call, ``fit(task, data, max_steps=…)``: the path that the command line takes
too."""

from __future__ import annotations

import inspect
import json
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.callbacks import LambdaCallback, LearningRateMonitor, ModelCheckpoint

from longseq.core.checkpoints.foreign import check_reloadable
from longseq.core.checkpoints.safe import load_checkpoint, load_weights
from longseq.core.domain import domains_of
from longseq.core.errors import ConfigError, DataError, did_you_mean
from longseq.core.files import atomic_path
from longseq.core.parallel.strategy import OPTION, take_option
from longseq.core.process import heard_again, keep_going
from longseq.core.runs import newest_checkpoint, remember_root
from longseq.core.training.callbacks import (
    AtomicCheckpointIO,
    LossCurve,
    StepCheckpoint,
    default_callbacks,
    progress_bar,
)
from longseq.core.training.folders import loggers_of, nothing_left, resumed_folder
from longseq.core.training.guards import StopAtTime
from longseq.core.training.hyper import class_path
from longseq.core.training.preemption import stopped_by_us
from longseq.core.training.quiet import quiet
from longseq.core.training.task import BaseTask
from longseq.core.yaml_files import read_yaml

Progress = Literal["auto", "bar", "lines"]
TRAINER_DEFAULTS = {
    "use_distributed_sampler": False,
    "log_every_n_steps": 10,
    "enable_model_summary": False,
}
"""What every run gives Lightning's trainer unless it is told otherwise."""


@dataclass(frozen=True)
class Run:
    """What a training has left.

    Attributes:
        folder: of its logs (metrics.csv, loss_curve.png, config.yaml) and checkpoints.
        best: checkpoint with the lowest validation loss; None if nothing was validated.
        last: checkpoint of the last step; None if none was written.
        seconds: that the training took.
        metrics: last value of everything that was logged, by name.
    """

    folder: Path
    best: Path | None
    last: Path | None
    seconds: float
    metrics: dict[str, float]

    @property
    def checkpoint(self) -> Path:
        """The best checkpoint, or the last where nothing was validated.

        Raises:
            DataError: if the run wrote none.
        """
        found = self.best or self.last
        if found is None:
            raise DataError("holds no checkpoint of the run", path=self.folder)
        return found


def _as_list(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, (list, tuple)) else [value]


def trainer_options(
    asked: Mapping[str, Any],
    command: str,
    name: str,
    checkpoint_every: int | None,
    progress: Progress,
    program: str | None = None,
    resumed: Path | None = None,
    max_time: str | None = None,
) -> dict[str, Any]:
    """Returns the arguments of Lightning's trainer that longseq adds: callbacks, loggers,
    checkpoint writer.

    Args:
        asked: the trainer's arguments, with ``default_root_dir``.
        command: fit, validate, test or predict.
        name: of the run's folder.
        checkpoint_every: optimiser steps between writes of last.ckpt; for fit.
        progress: a bar, plain lines, or a bar on a terminal.
        program: the domain's command line, "longseq genomics", for what to type next.
        resumed: folder of the run that a fit goes on with, of ``resumed_folder``.
        max_time: after which a fit stops with its last step kept, see ``guards.StopAtTime``.
    """
    bar = {"auto": sys.stderr.isatty(), "bar": True, "lines": False}[progress]
    bar = bar and asked.get("enable_progress_bar") is not False
    fit, quick = command == "fit", bool(asked.get("fast_dev_run"))
    if fit and not quick and program is not None:
        remember_root(program.split()[-1], asked["default_root_dir"])
    options: dict[str, Any] = {}
    if asked.get("logger") in (None, True):
        use = command != "predict" and not quick
        found = loggers_of(asked["default_root_dir"], name, resumed) if use else False
        options["logger"] = found
    extra: list[Callback] = [progress_bar()] if bar else []
    if fit and not quick:
        assert checkpoint_every is not None
        extra = default_callbacks(checkpoint_every, bar=bar, command=program)
        extra += [StopAtTime(max_time)] if max_time is not None else []
    if asked.get("logger") is False:
        extra = [one for one in extra if not isinstance(one, (LearningRateMonitor, LossCurve))]
    if asked.get("enable_checkpointing") is False:
        extra = [one for one in extra if not isinstance(one, ModelCheckpoint)]
    options["callbacks"] = [*_as_list(asked.get("callbacks")), *extra]
    options["enable_progress_bar"] = bar
    options["plugins"] = [*_as_list(asked.get("plugins")), AtomicCheckpointIO()]
    return options


def train(
    trainer: Trainer, task: BaseTask, data: LightningDataModule | None, **options: Any
) -> Run:
    """Trains; what could not be loaded again is refused first.

    Args:
        trainer: with the options of ``trainer_options``.
        task: to be trained.
        data: its data module.
        **options: of ``Trainer.fit``, for example ``ckpt_path``.

    Raises:
        ConfigError: if a checkpoint of this run could not be loaded again.
    """
    task.recipe.check()
    if trainer.checkpoint_callbacks:
        check_reloadable(task, data)
    keep_going()
    begin = time.perf_counter()
    with nothing_left(trainer), heard_again():
        trainer.fit(task, datamodule=data, **options)
    seconds = time.perf_counter() - begin
    best = last = ""
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, StepCheckpoint):
            last = callback.last_model_path
        elif isinstance(callback, ModelCheckpoint) and callback.filename == "best":
            best = callback.best_model_path
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    folder = Path(trainer.log_dir or trainer.default_root_dir)
    return Run(folder, Path(best) if best else None, Path(last) if last else None, seconds, metrics)


def check_contradictions(
    path: str,
    saved: Mapping[str, Any],
    asked: Mapping[str, Any],
    way_out: str = "",
    option: str = "--model.",
) -> None:
    """Checks that what the user asked of the model agrees with the checkpoint.

    Lightning would silently keep the checkpoint's values.

    Args:
        path: of the checkpoint.
        saved: the checkpoint's model, ``class_path`` and ``init_args``.
        asked: likewise.
        way_out: what to do instead, for the message.
        option: what stands before an argument's name.

    Raises:
        ConfigError: naming the first argument and both values.
    """
    if asked["class_path"] != saved["class_path"]:
        what = option.rstrip(".") or "the task"
        raise ConfigError(
            f"{what} {asked['class_path']} contradicts {path}, which holds "
            f"{saved['class_path']}{way_out}"
        )
    for name, value in (asked.get("init_args") or {}).items():
        value = json.loads(json.dumps(value, default=str))
        before = saved["init_args"].get(name, value)
        if before != value:
            raise ConfigError(
                f"{option}{name} {value} contradicts {path}, which was trained with {name} "
                f"{before}; leave {option}{name} out to go on{way_out}"
            )


def fit(
    task: BaseTask,
    data: LightningDataModule,
    out: str | Path | None = None,
    max_steps: int | None = None,
    *,
    name: str | None = None,
    ckpt_path: str | Path | None = None,
    init_from: str | Path | None = None,
    checkpoint_every: int = 200,
    progress: Progress = "auto",
    **trainer: Any,
) -> Run:
    """Trains a task, as ``longseq <domain> fit`` does.

    The weights are equal to the command line's bit for bit if the random generators are seeded as
    it does, before the task is made: ``seed_everything(0)``.

    Args:
        task: to be trained.
        data: its data module.
        out: folder for logs and checkpoints, in ``out/name/version_k``; ``outputs/<domain>`` if
            None.
        max_steps: optimiser steps; else ``max_epochs`` or ``max_time`` is needed.
        name: of the run's folder; None for "fit", or for that of the run that is resumed.
        ckpt_path: checkpoint to go on from, or "last" for the newest in ``out``. From its
            ``last.ckpt`` a run goes on in its own folder.
        init_from: .ckpt or .safetensors whose weights a new training starts from.
        checkpoint_every: optimiser steps between writes of last.ckpt.
        progress: "bar", "lines", or "auto": a bar on a terminal.
        **trainer: arguments of Lightning's ``Trainer``, for example ``val_check_interval=100``.
            Without one, a run by steps is validated every 100 steps, or twice if it is shorter.

    Returns:
        The run's folder, checkpoints, duration and metrics.

    Raises:
        ConfigError: for arguments that contradict each other or the checkpoint, or if the run could
            not be loaded again.
        DataError: if the checkpoint is unusable.
    """
    known = [one for one in inspect.signature(Trainer.__init__).parameters if one != "self"]
    known.append(OPTION)
    for option in trainer:
        if option not in known:
            raise ConfigError(f"fit has no argument {option!r}; {did_you_mean(option, known)}")
    if max_steps is None and not any(
        trainer.get(one) for one in ("max_epochs", "max_time", "fast_dev_run")
    ):
        raise ConfigError("how long? fit needs max_steps, max_epochs or max_time")
    if ckpt_path is not None and init_from is not None:
        raise ConfigError(
            "give either ckpt_path (go on) or init_from (start from weights), not both"
        )
    asked = _asked(task, out, max_steps, trainer)
    if ckpt_path is not None:
        if str(ckpt_path) == "last":
            ckpt_path = newest_checkpoint(asked["default_root_dir"])
        _check_resumed(str(ckpt_path), task, data)
    if init_from is not None:
        load_weights(init_from, task)
    with quiet():
        try:
            program = f"longseq {domains[0].name}" if (domains := domains_of(type(task))) else None
            before = resumed_folder(ckpt_path, asked["default_root_dir"], name)
            options = trainer_options(
                asked, "fit", name or "fit", checkpoint_every, progress, program, before
            )
            made = stopped_by_us(Trainer(**take_option({**asked, **options})))
        except (ValueError, MisconfigurationException) as error:
            raise ConfigError(str(error)) from error
        if made.loggers and made.is_global_zero:
            folder = Path(made.log_dir or ".")
            begun = begun_from(folder, ckpt_path, init_from)
            more = {**begun, "trainer": _plain(asked)}
            # Once a checkpoint is taken up: one that is refused leaves its run's file as it is.
            made.callbacks.append(  # type: ignore[attr-defined]
                LambdaCallback(on_fit_start=lambda *_: _write_config(folder, task, data, more))
            )
        return train(made, task, data, ckpt_path=None if ckpt_path is None else str(ckpt_path))


def _asked(
    task: BaseTask, out: str | Path | None, max_steps: int | None, trainer: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns the trainer's arguments: longseq's, then the domain's, then the user's."""
    domains = domains_of(type(task))
    asked: dict[str, Any] = dict(TRAINER_DEFAULTS)
    asked["default_root_dir"] = f"outputs/{domains[0].name}" if domains else "outputs"
    if domains:
        defaults = {
            key: value for key, value in domains[0].defaults.items() if key.startswith("trainer.")
        }
        asked |= {key.removeprefix("trainer."): value for key, value in defaults.items()}
    if out is not None:
        asked["default_root_dir"] = str(out)
    if max_steps is not None:
        asked["max_steps"] = max_steps
    asked |= trainer
    return {**asked, **validated_by_steps(asked)}


def validated_by_steps(asked: Mapping[str, Any]) -> dict[str, int]:
    """Returns when a run by steps is validated that does not say so: every 100 steps, or twice if
    it is shorter. An epoch of windows may be longer than the whole run.

    Args:
        asked: the trainer's arguments.
    """
    steps = asked.get("max_steps") or -1
    if steps < 0 or asked.get("check_val_every_n_epoch", 1) is not None:
        return {}
    if asked.get("val_check_interval") is not None:
        return {}
    return {"val_check_interval": max(1, min(100, steps // 2))}


def say_other_data(before: Mapping[str, Any], now: Mapping[str, Any], option: str = "") -> None:
    """Says which arguments of a data module are not those of the checkpoint's training.

    Args:
        before: the checkpoint's.
        now: this run's.
        option: what stands before an argument's name.
    """
    for name, value in now.items():
        if name in before and before[name] != json.loads(json.dumps(value, default=str)):
            then = f"where the checkpoint's training had {before[name]}"
            print(f"note: {option}{name} {value} {then}", file=sys.stderr)


def _check_resumed(path: str, task: BaseTask, data: LightningDataModule) -> None:
    """Checks a task against the checkpoint that it is to go on from, and says what has changed of
    the data."""
    content = load_checkpoint(path)
    say_other_data(content.get("datamodule_hyper_parameters") or {}, data.hparams, "data: ")
    saved = dict(content.get("hyper_parameters") or {})
    before = {"class_path": saved.pop("_class_path", None), "init_args": saved}
    own = {name: value for name, value in task.hparams.items() if name != "_class_path"}
    asked = {"class_path": class_path(type(task)), "init_args": own}
    check_contradictions(
        path, before, asked, "; init_from starts a new training from its weights", ""
    )


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns those of some values that YAML can hold."""
    found = {}
    for name, value in values.items():
        try:
            found[name] = json.loads(json.dumps(value))
        except (TypeError, ValueError):  # an object of the user's, which only Python can hold
            continue
    return found


_UNSEEDED = (
    "# The task was not made right after seed_everything(): its first weights were others than\n"
    "# those that these settings give.\n"
)


def begun_from(
    folder: Path, ckpt_path: str | Path | None, init_from: str | Path | None
) -> dict[str, str | None]:
    """Returns what a run's weights come from, for its ``config.yaml``: one that goes on in its own
    folder began as that file says.

    Args:
        folder: of the run.
        ckpt_path: that it goes on from.
        init_from: whose weights it starts from.
    """
    given: dict[str, Any] = {"init_from": init_from, "ckpt_path": ckpt_path}
    if ckpt_path is not None and Path(ckpt_path).resolve().parent.parent == folder.resolve():
        file = folder / "config.yaml"
        before = read_yaml(file) if file.is_file() else {}
        given = {name: before.get(name) if isinstance(before, dict) else None for name in given}
    return {name: None if path is None else str(path) for name, path in given.items()}


def _write_config(
    folder: Path, task: BaseTask, data: LightningDataModule, more: Mapping[str, Any]
) -> None:
    """Writes what ``longseq <domain> fit --config`` needs to train the same; a seed that is not
    known is said to be so."""
    import yaml  # type: ignore[import-untyped]

    content: dict[str, Any] = {} if task.seed is None else {"seed_everything": task.seed}
    for key, module in (("model", task), ("data", data)):
        own = {name: value for name, value in module.hparams.items() if name != "_class_path"}
        content[key] = {"class_path": class_path(type(module)), "init_args": _plain(own)}
    content |= more
    with atomic_path(folder / "config.yaml") as temporary:
        head = "" if task.seed is not None else _UNSEEDED
        temporary.write_text(head + yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
