"""fit, validate, test and predict: Lightning's command line with safe checkpoints and one-line errors."""

from __future__ import annotations

import importlib
import inspect
import json
import logging
import sys
import warnings
from argparse import ArgumentError as ArgparseError
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml  # type: ignore[import-untyped]
from jsonargparse import ArgumentError
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback

from longseq.core import plugins
from longseq.core.checkpoints.foreign import check_reloadable, record
from longseq.core.checkpoints.safe import load_checkpoint, load_weights
from longseq.core.domain import Domain, import_object
from longseq.core.errors import ConfigError, DataError, LongseqError
from longseq.core.shell.agreement import agree
from longseq.core.shell.messages import explain
from longseq.core.shell.task_help import asks_for_help
from longseq.core.training.callbacks import (
    AtomicCheckpointIO,
    LossCurve,
    default_callbacks,
    default_loggers,
    progress_bar,
)
from longseq.core.training.hyper import class_path
from longseq.core.training.loading import DATA, MODEL, check_domain, find_class, task_class

if TYPE_CHECKING:
    from longseq.core.training.task import BaseTask

Hyper = dict[str, dict[str, Any]]


def _as_list(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, (list, tuple)) else [value]


def _flag_values(argv: Sequence[str], *flags: str) -> list[tuple[int, str, str]]:
    """Returns (index, flag, value) of every ``--flag value`` and ``--flag=value``."""
    found = []
    for index, text in enumerate(argv):
        flag, equals, value = text.partition("=")
        if flag in flags and equals:
            found.append((index, flag, value))
        elif text in flags and index + 1 < len(argv):
            found.append((index, text, argv[index + 1]))
    return found


def resolve_configs(domain: Domain, argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Replaces names of packaged configurations by their files.

    Args:
        domain: whose configurations.
        argv: arguments.

    Returns:
        The arguments, and the configuration files in order.
    """
    args, files = list(argv), []
    for index, flag, value in _flag_values(argv, "--config", "-c"):
        file = domain.resolve_config(value)
        files.append(file)
        if "=" in args[index]:
            args[index] = f"{flag}={file}"
        else:
            args[index + 1] = file
    return args, files


def find_checkpoint(argv: Sequence[str], configs: Sequence[str]) -> str | None:
    """Returns the checkpoint that the arguments or configurations name, if any; the arguments win.

    Raises:
        ConfigError: if a configuration is not YAML.
    """
    path: str | None = None
    for file in configs:
        try:
            content = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            where = getattr(error, "problem_mark", None)
            line = f"line {where.line + 1}: " if where is not None else ""
            raise ConfigError(f"{file}: {line}is not valid YAML") from error
        if isinstance(content, dict) and isinstance(content.get("ckpt_path"), str):
            path = content["ckpt_path"]
    for _, _, value in _flag_values(argv, "--ckpt_path"):
        path = value
    return None if path == "null" else path


def output_folder(argv: Sequence[str], configs: Sequence[str]) -> str | None:
    """Returns ``trainer.default_root_dir`` as the arguments, or else the last configuration, have it."""
    found = None
    for file in configs:
        content = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
        trainer = content.get("trainer") if isinstance(content, dict) else None
        if isinstance(trainer, dict) and isinstance(trainer.get("default_root_dir"), str):
            found = trainer["default_root_dir"]
    for _, _, value in _flag_values(argv, "--trainer.default_root_dir"):
        found = value
    return found


def newest_checkpoint(folder: str) -> str:
    """Returns the ``last.ckpt`` written last in a domain's output folder.

    Args:
        folder: for example ``outputs/genomics``.

    Raises:
        DataError: if there is none.
    """
    patterns = ("*/version_*/checkpoints/last*.ckpt", "checkpoints/last*.ckpt")
    files = [file for pattern in patterns for file in Path(folder).glob(pattern)]
    found = sorted(files, key=lambda file: file.stat().st_mtime)
    if not found:
        raise DataError("holds no last.ckpt to go on from", path=folder, hint="give --ckpt_path a file")
    return str(found[-1])


def read_hyper(path: str, domain: Domain) -> Hyper:
    """Returns a checkpoint's hyper-parameters as ``model`` and ``data`` configurations.

    Args:
        path: checkpoint.
        domain: that it must be of.

    Raises:
        DataError: if it is unusable, or of another domain.
    """
    content = load_checkpoint(path)
    found: Hyper = {}
    task_class(content, path)
    for key, section in (("model", MODEL), ("data", DATA)):
        cls, hyper = find_class(content, path, section)
        if cls is None:
            continue
        check_domain(cls, domain.name, path)
        if key == "model":  # what a version that wrote the checkpoint did not know is as it was then
            taken, defaults = inspect.signature(cls.__init__).parameters, cls.recipe_defaults()
            hyper = {**{name: defaults[name] for name in defaults if name in taken}, **hyper}
        found[key] = {"class_path": class_path(cls), "init_args": json.loads(json.dumps(hyper))}
    return found


def check_contradictions(path: str, saved: dict[str, Any], asked: dict[str, Any], command: str) -> None:
    """Checks that what the user asked of the model agrees with the checkpoint.

    Lightning would silently keep the checkpoint's values.

    Args:
        path: of the checkpoint.
        saved: the checkpoint's ``model`` configuration.
        asked: the parsed one.
        command: fit, validate, …

    Raises:
        ConfigError: naming the first argument and both values.
    """
    way_out = "; --init_from starts a new training from its weights" if command == "fit" else ""
    if asked["class_path"] != saved["class_path"]:
        raise ConfigError(
            f"--model {asked['class_path']} contradicts {path}, which holds {saved['class_path']}{way_out}"
        )
    for name, value in (asked.get("init_args") or {}).items():
        value = json.loads(json.dumps(value, default=str))
        if name in saved["init_args"] and saved["init_args"][name] != value:
            raise ConfigError(
                f"--model.{name} {value} contradicts {path}, which was trained with {name} "
                f"{saved['init_args'][name]}; leave --model.{name} out to go on{way_out}"
            )


class _SaveConfig(SaveConfigCallback):
    """Writes ``config.yaml`` beside the logs of ``fit``."""

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        if stage == "fit" and trainer.loggers:
            super().setup(trainer, pl_module, stage)


class DomainCLI(LightningCLI):
    """Lightning's command line for one domain and one command.

    Args:
        domain: whose tasks and data.
        command: fit, validate, test or predict.
        argv: the user's arguments, configurations resolved to files.
        configs: these files.
    """

    def __init__(self, domain: Domain, command: str, argv: Sequence[str], configs: Sequence[str]) -> None:
        self.domain, self.command = domain, command
        args = list(argv)
        self.run_name = Path(configs[-1]).stem if configs else command
        asking = any(text in ("-h", "--help") or text.startswith(("--help", "--print_")) for text in args)
        self.checkpoint = None if asking else find_checkpoint(args, configs)
        if self.checkpoint == "last":
            self.checkpoint = newest_checkpoint(output_folder(args, configs) or f"outputs/{domain.name}")
            args += ["--ckpt_path", self.checkpoint]
        if command != "fit" and not asking and self.checkpoint is None:
            raise ConfigError(f"longseq {domain.name} {command} needs --ckpt_path file.ckpt (or last)")
        self.saved: Hyper = read_hyper(self.checkpoint, domain) if self.checkpoint else {}
        known = [f"--{key}={json.dumps(value)}" for key, value in self.saved.items()]
        prog = f"longseq {domain.name}"
        super().__init__(
            import_object(domain.task or ""),
            import_object(domain.data) if domain.data else None,
            save_config_callback=_SaveConfig,
            save_config_kwargs={"overwrite": True},
            trainer_defaults={
                "use_distributed_sampler": False,
                "log_every_n_steps": 10,
                "enable_model_summary": False,
            },
            seed_everything_default=0,
            parser_kwargs={
                "prog": prog,
                "exit_on_error": False,
                command: {"prog": f"{prog} {command}", "exit_on_error": False},
            },
            subclass_mode_model=True,
            subclass_mode_data=True,
            args=[command, *known, *args],
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """Returns only the command at hand: each parser takes a second to build."""
        return {self.command: LightningCLI.subcommands()[self.command]}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--name", type=str | None, default=None, help="Name of the run's folder.")
        parser.add_argument(
            "--progress",
            type=Literal["auto", "bar", "lines"],
            default="auto",
            help="Progress bar or plain lines; auto: a bar on a terminal.",
        )
        if self.command == "fit":
            text = "Optimiser steps between writes of last.ckpt."
            parser.add_argument("--checkpoint_every", type=int, default=200, help=text)
            text = "Start a new training from the weights in this .ckpt or .safetensors."
            parser.add_argument("--init_from", type=str | None, default=None, help=text)
        parser.set_defaults(
            {"trainer.default_root_dir": f"outputs/{self.domain.name}", **self.domain.defaults}
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parses; Lightning would warn that the process has arguments too."""
        self.config = parser.parse_args(args)

    def fit(self, model: BaseTask, **kwargs: Any) -> None:
        """Trains; what could not be loaded again is refused first."""
        if self.trainer.checkpoint_callbacks:
            check_reloadable(model, kwargs.get("datamodule"))
            needed = record(model, model.hparams)["modules"]
            unnamed = [module for module in needed if not plugins.is_allowed(module)]
            if unnamed:
                option = f"{plugins.OPTION} {','.join(unnamed)}"
                print(f"note: to use the checkpoints of this run, name their code: {option}", file=sys.stderr)
        self.trainer.fit(model, **kwargs)

    def _parse_ckpt_path(self) -> None:
        """Checks the arguments against the checkpoint, where Lightning would silently overrule them."""
        if self.checkpoint and "model" in self.saved:
            asked = self.config[self.command].model.as_dict()
            check_contradictions(self.checkpoint, self.saved["model"], asked, self.command)
        if self.command == "fit" and "data" in self.saved:
            data = (self.config[self.command].data.as_dict().get("init_args") or {}).items()
            before = self.saved["data"]["init_args"]
            for name, value in data:
                if name in before and before[name] != json.loads(json.dumps(value, default=str)):
                    text = f"note: --data.{name} {value} where the checkpoint's training had {before[name]}"
                    print(text, file=sys.stderr)

    def before_instantiate_classes(self) -> None:
        if self._get(self.config, "init_from") and self.checkpoint:
            raise ConfigError("give either --ckpt_path (go on) or --init_from (start from weights), not both")

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Makes the trainer with longseq's callbacks, loggers and checkpoint writer."""
        asked = self._get(self.config_init, "trainer")
        name = self._get(self.config_init, "name") or self.run_name
        bar = {"auto": sys.stderr.isatty(), "bar": True, "lines": False}[
            self._get(self.config_init, "progress")
        ]
        bar = bar and asked.get("enable_progress_bar") is not False
        fit, quick = self.command == "fit", bool(asked.get("fast_dev_run"))
        if asked.get("logger") in (None, True):
            use = self.command != "predict" and not quick
            kwargs["logger"] = default_loggers(asked["default_root_dir"], name) if use else False
        extra: list[Callback] = [progress_bar()] if bar else []
        if fit and not quick:
            command = f"longseq {self.domain.name}"
            every = self._get(self.config_init, "checkpoint_every")
            extra = default_callbacks(every, bar=bar, command=command)
        if asked.get("logger") is False:
            extra = [one for one in extra if not isinstance(one, (LearningRateMonitor, LossCurve))]
        if asked.get("enable_checkpointing") is False:
            extra = [one for one in extra if not isinstance(one, ModelCheckpoint)]
        kwargs["callbacks"] = [*_as_list(asked.get("callbacks")), *extra]
        kwargs["enable_progress_bar"] = bar
        kwargs["plugins"] = [*_as_list(asked.get("plugins")), AtomicCheckpointIO()]
        try:
            return super().instantiate_trainer(**kwargs)
        except ValueError as error:
            raise ConfigError(f"--trainer: {error}") from error

    def after_instantiate_classes(self) -> None:
        path = self._get(self.config, "init_from")
        if path:
            load_weights(path, self.model)


def run(domain: Domain, command: str, argv: Sequence[str]) -> int:
    """Runs a task command of a domain.

    Args:
        domain: whose.
        command: fit, validate, test or predict.
        argv: its arguments.

    Raises:
        ConfigError: for wrong arguments or configuration, in one line.
    """
    for module in domain.modules:
        importlib.import_module(module)
    _quiet()
    configs: list[str] = []
    try:
        argv, configs = resolve_configs(domain, argv)
        if not asks_for_help(argv):
            argv = agree(domain, argv, configs)
        DomainCLI(domain, command, argv, configs)
    except (ArgumentError, ArgparseError) as error:
        raise ConfigError(explain(str(error), domain, command, configs)) from error
    except MisconfigurationException as error:
        raise ConfigError(str(error)) from error
    except ValueError as error:
        if isinstance(error, LongseqError) or "Union subtypes" not in str(error):
            raise
        # jsonargparse's wrapping of a ValueError (a ConfigError is one) that a constructor raised
        raise ConfigError(explain(str(error), domain, command, configs)) from error
    return 0


def _quiet() -> None:
    """Drops advertisements and warnings that the user of a command can do nothing about."""
    for message in (
        ".*treespec, LeafSpec.*",
        ".*Experiment logs directory .* exists and is not empty.*",
        ".*callbacks used to create the checkpoint need to be provided.*",
        ".*The dirpath has changed from.*",
        ".*is smaller than the logging interval.*",
        ".*does not have many workers.*",
    ):
        warnings.filterwarnings("ignore", message=message)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_worth_saying)
    logging.getLogger("lightning.fabric.utilities.seed").addFilter(_worth_saying)


_NOISE = (
    "Tip:",
    "available: False",
    "TPU available",
    "HPU available",
    "`Trainer.fit` stopped",
    "Seed set to",
)


def _worth_saying(record: logging.LogRecord) -> bool:
    """Returns whether a line of Lightning's tells the user something: our own lines have the rest."""
    return not any(noise in record.getMessage() for noise in _NOISE)
