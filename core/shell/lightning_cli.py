"""fit, validate, test and predict: Lightning's command line with safe checkpoints and one-line
errors."""

from __future__ import annotations

import importlib
import json
import sys
from argparse import ArgumentError as ArgparseError
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse import ArgumentError
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback

from longseq.core import plugins
from longseq.core.checkpoints.foreign import record
from longseq.core.checkpoints.safe import load_weights
from longseq.core.compare import Comparison
from longseq.core.domain import Domain, import_object
from longseq.core.errors import ConfigError, LongseqError
from longseq.core.files import atomic_path
from longseq.core.parallel.strategy import OPTION, take_option
from longseq.core.runs import known_roots, newest_checkpoint
from longseq.core.shell.agreement import agree, check_described, follow_data
from longseq.core.shell.arguments import (
    find_checkpoint,
    flag_values,
    named_sections,
    output_folder,
    resolve_configs,
    resumed_settings,
)
from longseq.core.shell.measured import say_predict, show, show_test
from longseq.core.shell.messages import explain
from longseq.core.shell.task_help import asks_for_help
from longseq.core.training.by_config import Values
from longseq.core.training.folders import own_checkpoint, resumed_folder
from longseq.core.training.hyper import class_path
from longseq.core.training.loading import Hyper, read_hyper
from longseq.core.training.preemption import stopped_by_us
from longseq.core.training.quiet import quiet
from longseq.core.training.run import (
    TRAINER_DEFAULTS,
    Run,
    begun_from,
    check_contradictions,
    say_other_data,
    train,
    trainer_options,
    validated_by_steps,
)
from longseq.core.training.sizes import check_asked, within_memory
from longseq.core.training.task import BaseTask


class _SaveConfig(SaveConfigCallback):
    """Writes ``config.yaml`` beside the logs of ``fit``."""

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Writes nothing yet: a run that is refused when its checkpoint is loaded keeps its own."""

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        if trainer.loggers:
            self.folder = trainer.log_dir or "."  # on every rank: it is broadcast
            super().setup(trainer, pl_module, "fit")

    def save_config(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Writes the file whole or not at all, where Lightning's would write in place."""
        file, config = Path(self.folder) / self.config_filename, self.config.clone()
        begun = begun_from(file.parent, config.get("ckpt_path"), config.get("init_from"))
        for name, path in begun.items():
            config[name] = path
        with atomic_path(file) as temporary:
            self.parser.save(
                config, str(temporary), skip_none=False, overwrite=True, multifile=False
            )


class DomainCLI(LightningCLI):
    """Lightning's command line for one domain and one command.

    Args:
        domain: whose tasks and data.
        command: fit, validate, test or predict.
        argv: the user's arguments, configurations resolved to files.
        configs: these files.
    """

    def __init__(
        self, domain: Domain, command: str, argv: Sequence[str], configs: Sequence[str]
    ) -> None:
        self.domain, self.command, self.config_files = domain, command, list(configs)
        self.made_data: Any = None
        self.outcome: Run | None = None
        args = list(argv)
        self.run_name = Path(configs[-1]).stem if configs else command
        asking = any(
            text in ("-h", "--help") or text.startswith(("--help", "--print_")) for text in args
        )
        self.checkpoint = None if asking else find_checkpoint(args, configs)
        given = output_folder(args, configs)
        self.root = given or f"outputs/{domain.name}"
        if self.checkpoint == "auto" and command == "fit":
            name = next((value for _, _, value in flag_values(args, "--name")), self.run_name)
            self.checkpoint = own_checkpoint(self.root, name)
            args += ["--ckpt_path", self.checkpoint or "null", "--name", name]
        elif self.checkpoint == "last":
            self.checkpoint = newest_checkpoint(*([given] if given else known_roots(domain.name)))
            args += ["--ckpt_path", self.checkpoint]
            wanted = next((value for _, _, value in flag_values(args, "--name")), None)
            if command == "fit" and wanted and Path(self.checkpoint).parts[-4:-3] != (wanted,):
                print(
                    f"note: the newest run is not {wanted}, which becomes a fork of it: "
                    f"{self.checkpoint}; --ckpt_path auto takes {wanted}'s own",
                    file=sys.stderr,
                )
        if command != "fit" and not asking and self.checkpoint is None:
            raise ConfigError(
                f"longseq {domain.name} {command} needs --ckpt_path file.ckpt (or last)"
            )
        self.saved: Hyper = read_hyper(self.checkpoint, domain) if self.checkpoint else {}
        check_described(self.saved.get("data"), args, configs)
        self.named = {*self.saved, *named_sections(args, configs)}
        known = [f"--{key}={json.dumps(value)}" for key, value in self.saved.items()]
        if self.checkpoint and command == "fit":
            settings = resumed_settings(self.checkpoint, args, configs)
            known += [
                f"--{name}={json.dumps(value) if isinstance(value, list) else value}"
                for name, value in settings.items()
            ]
        prog = f"longseq {domain.name}"
        super().__init__(
            import_object(domain.task or ""),
            import_object(domain.data) if domain.data else None,
            save_config_callback=_SaveConfig,
            save_config_kwargs={"save_to_log_dir": False},
            trainer_defaults=dict(TRAINER_DEFAULTS),
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
        text = "Name of the run's folder."
        parser.add_argument("--name", type=str | None, default=None, help=text)
        parser.add_argument(
            "--progress",
            type=Literal["auto", "bar", "lines"],
            default="auto",
            help="Progress bar or plain lines; auto: a bar on a terminal.",
        )
        if self.command == "fit":
            text = "Processes that share every sequence: each trains on its part of the positions."
            parser.add_argument(f"--trainer.{OPTION}", type=int, default=1, help=text)
            text = "Optimiser steps between writes of last.ckpt."
            parser.add_argument("--checkpoint_every", type=int, default=200, help=text)
            text = "Start a new training from the weights in this .ckpt or .safetensors."
            parser.add_argument("--init_from", type=str | None, default=None, help=text)
            text = "Stop after this time of this attempt (90s, 45m, 3.5h), status 75."
            parser.add_argument("--max_time", type=str | None, default=None, help=text)
        # Where a class is named the default one must not be there: its arguments would be taken for
        # the named class's wherever both have one of a name.
        defaults = {
            key: value for key, value in self.domain.defaults.items() if key not in self.named
        }
        parser.set_defaults({"trainer.default_root_dir": f"outputs/{self.domain.name}", **defaults})

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parses; Lightning would warn that the process has arguments too."""
        self.config = parser.parse_args(args)
        if self.command == "fit" and not self.checkpoint:
            section = self.config[self.command]
            self.made_data = follow_data(self.domain, section, args, self.config_files)

    def instantiate_classes(self) -> None:
        """Makes the classes; data that were made to see what is in them are not made, and read,
        again."""
        with within_memory():
            super().instantiate_classes()
        if self.made_data is not None:
            self.datamodule = self.made_data

    def fit(
        self, model: BaseTask, datamodule: LightningDataModule | None = None, **kwargs: Any
    ) -> None:
        """Trains, and keeps what the training has left."""
        if self.trainer.checkpoint_callbacks:
            needed = record(model, model.hparams)["modules"]
            unnamed = [module for module in needed if not plugins.is_allowed(module)]
            if unnamed:
                option = f"{plugins.OPTION} {','.join(unnamed)}"
                print(
                    f"note: to use the checkpoints of this run, name their code: {option}",
                    file=sys.stderr,
                )
        self.outcome = train(self.trainer, model, datamodule, **kwargs)

    def validate(self, model: BaseTask, verbose: bool = True, **kwargs: Any) -> None:
        """Validates, and shows what was measured."""
        found = self.trainer.validate(model, verbose=False, **kwargs)
        if verbose:
            show(self.trainer, self.command, self.checkpoint, found)

    def test(
        self,
        model: BaseTask,
        datamodule: LightningDataModule | None = None,
        verbose: bool = True,
        **kwargs: Any,
    ) -> None:
        """Tests, and shows the score beside the baselines where the domain has quick ones."""
        compare = self.domain.compare
        cls: type[Comparison] | None = import_object(compare.run, ":") if compare else None
        beside = cls.of_test(model, datamodule) if cls is not None else None
        found = self.trainer.test(model, datamodule=datamodule, verbose=False, **kwargs)
        # What follows is one process's alone: its metrics would wait for those that have ended, and
        # baselines must see all samples, not this process's share.
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.barrier()
            torch.distributed.destroy_process_group()
            if datamodule is not None:
                datamodule.trainer = None
        if not self.trainer.is_global_zero:
            return
        if beside is None:
            if verbose:
                show(self.trainer, self.command, self.checkpoint, found)
        elif found and found[0]:
            show_test(self.trainer, beside, model, found, self.checkpoint)
            say_predict(self.domain, beside.predict_next(), str(self.checkpoint))

    def before_predict(self) -> None:
        """Refuses a task that cannot predict, where Lightning would speak of itself."""
        own = (type(self.model).forward, type(self.model).predict_step)
        if own == (BaseTask.forward, BaseTask.predict_step):
            name = type(self.model).__name__
            raise ConfigError(f"{name} defines neither forward nor predict_step: predict needs one")

    def _parse_ckpt_path(self) -> None:
        """Checks the arguments against the checkpoint, where Lightning would silently overrule
        them."""
        if self.checkpoint and "model" in self.saved:
            asked = self.config[self.command].model.as_dict()
            # Whatever exports it.
            cls = import_object(asked["class_path"])
            asked["class_path"] = class_path(cls)
            fits = self.command == "fit"
            if not fits:
                for name in cls.evaluation_only:
                    asked["init_args"].pop(name, None)
            way_out = "; --init_from starts a new training from its weights" if fits else ""
            check_contradictions(self.checkpoint, self.saved["model"], asked, way_out)
        if self.command == "fit" and "data" in self.saved:
            data = (self.config[self.command].data.as_dict().get("init_args") or {}).items()
            say_other_data(self.saved["data"]["init_args"], dict(data), "--data.")

    def before_instantiate_classes(self) -> None:
        if self._get(self.config, "init_from") and self.checkpoint:
            raise ConfigError(
                "give either --ckpt_path (go on) or --init_from (start from weights), not both"
            )
        for side in ("model", "data"):
            section = self.config[self.command].get(side)
            values = section.as_dict() if section is not None else {}
            check_asked(values.get("init_args") or {}, f"--{side}.")
        devices = str(self.config[self.command].trainer.devices)
        check_asked({"devices": int(devices) if devices.isdecimal() else 0}, "--trainer.")
        if self.command == "fit":
            trainer = self.config[self.command].trainer
            for name, value in validated_by_steps(trainer.as_dict()).items():
                trainer[name] = value

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Makes the trainer with longseq's callbacks, loggers and checkpoint writer."""
        asked = self._get(self.config_init, "trainer")
        name = self._get(self.config_init, "name")
        fit = self.command == "fit"
        root = asked["default_root_dir"]
        resumed = resumed_folder(self.checkpoint, root, name) if fit else None
        every = self._get(self.config_init, "checkpoint_every")
        kwargs |= trainer_options(
            asked,
            self.command,
            name or self.run_name,
            every,
            self._get(self.config_init, "progress"),
            f"longseq {self.domain.name}",
            resumed,
            self._get(self.config_init, "max_time") if fit else None,
        )
        plain = take_option(asked)
        kwargs |= {name: plain[name] for name in ("strategy", "devices") if name in plain}
        try:
            return stopped_by_us(super().instantiate_trainer(**kwargs))
        except (ValueError, MisconfigurationException) as error:
            raise ConfigError(f"--trainer: {error}") from error

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Any]) -> Trainer:
        config.pop(OPTION, None)  # ours, taken above
        return super()._instantiate_trainer(config, callbacks)

    def after_instantiate_classes(self) -> None:
        if path := self._get(self.config, "init_from"):
            load_weights(path, self.model)


def run(domain: Domain, command: str, argv: Sequence[str]) -> int:
    """Runs a task command of a domain and returns the exit status.

    Args:
        domain: whose.
        command: fit, validate, test or predict.
        argv: its arguments.

    Raises:
        ConfigError: for wrong arguments or configuration, in one line.
    """
    start(domain, command, argv)
    return 0


def fit_config(
    domain: Domain,
    config: str,
    folder: str | Path,
    name: str = "fit",
    values: Values | None = None,
    seed: int | None = None,
    options: Sequence[str] = (),
) -> Run:
    """Runs ``longseq <domain> fit`` for a demo or a comparison; see
    ``core.training.by_config.Train``."""
    argv = ["--config", config]
    for part, own in (values or {}).items():
        texts = {
            key: value if isinstance(value, str) else json.dumps(value)
            for key, value in own.items()
        }
        argv += [f"--{part}.{key}={text}" for key, text in texts.items()]
    if seed is not None:
        argv += ["--seed_everything", str(seed)]
    return fit(domain, [*argv, "--trainer.default_root_dir", str(folder), "--name", name, *options])


def fit(domain: Domain, argv: Sequence[str]) -> Run:
    """Runs ``longseq <domain> fit`` and returns what the training has left.

    Args:
        domain: whose.
        argv: its arguments.

    Raises:
        ConfigError: for wrong arguments or configuration, in one line.
    """
    outcome = start(domain, "fit", argv).outcome
    assert outcome is not None
    return outcome


def start(domain: Domain, command: str, argv: Sequence[str]) -> DomainCLI:
    """Parses and runs a task command; arguments and errors as of ``run``."""
    for module in domain.modules:
        importlib.import_module(module)
    configs: list[str] = []
    try:
        argv, configs = resolve_configs(domain, argv)
        if not asks_for_help(argv):
            argv = agree(domain, argv, configs)
        with quiet():
            return DomainCLI(domain, command, argv, configs)
    except (ArgumentError, ArgparseError) as error:
        raise ConfigError(explain(str(error), domain, command, argv, configs)) from error
    except MisconfigurationException as error:
        raise ConfigError(str(error)) from error
    except ValueError as error:
        if isinstance(error, LongseqError) or "Union subtypes" not in str(error):
            raise
        # jsonargparse's wrapping of a ValueError (a ConfigError is one) that a constructor raised
        raise ConfigError(explain(str(error), domain, command, argv, configs)) from error
