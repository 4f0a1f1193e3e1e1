"""What the command line knows of a domain without importing it: names, help,
requirements."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from longseq.core import plugins
from longseq.core.errors import ConfigError, LongseqError, did_you_mean

DOMAINS = ("genomics", "timeseries", "vision", "audio", "weather")
TASK_COMMANDS = {
    "fit": "train a model, or go on training from --ckpt_path",
    "validate": "loss and metrics of a checkpoint on the validation data",
    "test": "loss and metrics of a checkpoint on the test data",
    "predict": "predictions of a checkpoint",
}


class MissingRequirement(LongseqError):
    """An optional package of a domain is not installed."""


@dataclass(frozen=True)
class Command:
    """A command of a domain.

    Args:
        help: one line.
        run: ``"package.module:function"``, imported when run; the function takes ``argv`` (without
            the names of domain and command) and returns the exit status.
    """

    help: str
    run: str


@dataclass(frozen=True)
class Domain:
    """A domain as its ``longseq.<name>.commands`` module declares it, under the name ``DOMAIN``.

    Args:
        name: as on the command line.
        help: one line.
        requires: modules that must be importable, from the optional dependencies ``longseq[name]``.
        task: dotted path of the base class of its tasks; None if it has no fit, validate, test and
            predict.
        data: dotted path of the base class of its data modules.
        models: dotted path of the ``Registry`` of presets that ``models`` lists; None if it has
            none.
        modules: modules to import before parsing, so that ``--model ClassName`` finds its classes.
        demo: help line and ``"module:function"`` of its demo, which takes the folder for what it
            writes, a ``core.training.by_config.Train`` and ``max_steps``, and returns a
            ``core.report.Section``.
        compare: help line and ``"module:class"`` of its ``core.compare.Comparison``.
        commands: further commands; one named like a task command takes its place.
        moved: class paths of earlier versions → those of today, so that old checkpoints load.
        defaults: of options, for example ``{"trainer.max_steps": 1000, "data": "FastaData"}``.
        check: ``"module:function"`` that takes the data module's arguments as they were typed, by
            name, and raises a ``DataError`` for a file that cannot be used; it must import neither
            torch nor Lightning.
        shared: pairs of a model's and a data module's argument that must agree; one of them is
            enough.
        examples: arguments of an example by task command, shown at the head of its help.
        package: that holds its configurations (``configs/*.yaml``) and its demo; ``longseq.<name>``
            if None.
    """

    name: str
    help: str
    requires: Sequence[str] = ()
    task: str | None = None
    data: str | None = None
    models: str | None = None
    demo: Command | None = None
    compare: Command | None = None
    modules: Sequence[str] = ()
    commands: Mapping[str, Command] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    check: str | None = None
    shared: Sequence[tuple[str, str]] = ()
    examples: Mapping[str, str] = field(default_factory=dict)
    moved: Mapping[str, str] = field(default_factory=dict)
    package: str | None = None

    @property
    def home(self) -> str:
        """Its package."""
        return self.package or f"longseq.{self.name}"

    def owns(self, module: str) -> bool:
        """Returns whether a module is of this domain's package."""
        return f"{module}.".startswith(f"{self.home}.")

    def all_commands(self) -> dict[str, str]:
        """Returns every command's name and help line."""
        own = {name: command.help for name, command in self.commands.items()}
        if self.compare:
            own["compare"] = self.compare.help
        if self.models:
            own["models"] = "the models by name, with their sizes"
        if self.demo:
            own["demo"] = self.demo.help
        return {**(TASK_COMMANDS if self.task else {}), **own}

    def check_requirements(self) -> None:
        """Checks that what the domain needs is installed.

        Raises:
            MissingRequirement: naming the first missing module and the line that installs it.
        """
        for module in self.requires:
            if importlib.util.find_spec(module) is None:
                extra = f'"longseq[{self.name}]"' if self.package is None else module
                raise MissingRequirement(f"longseq {self.name} needs {module}: pip install {extra}")

    def check_parts(self, command: str) -> None:
        """Checks that what the domain names for a command is there, if it came from outside.

        Args:
            command: one of ``all_commands``.

        Raises:
            ConfigError: naming the part of the ``Domain``, where it points, and what is missing.
        """
        if self.name not in _REGISTERED:
            return
        parts: dict[str, str | None] = {}
        if command in self.commands:
            parts[f"commands[{command!r}]"] = self.commands[command].run
        elif command in TASK_COMMANDS:
            parts |= {"task": self.task, "data": self.data, "check": self.check}
            _part(self.name, "package", self.home)
        else:
            own = self.demo if command == "demo" else self.compare
            parts[command] = self.models if command == "models" else own.run if own else None
        for part, path in parts.items():
            if path is not None:
                _part(self.name, part, path)

    def configs(self) -> dict[str, Path]:
        """Returns the packaged configurations, name (without .yaml) → file."""
        package = importlib.import_module(self.home)
        folders = [Path(folder) / "configs" for folder in getattr(package, "__path__", ())]
        return {path.stem: path for folder in folders for path in sorted(folder.glob("*.yaml"))}

    def resolve_config(self, name: str) -> str:
        """Returns the file of ``--config name``: a path first, then a packaged configuration.

        Args:
            name: path, or name of a packaged configuration with or without ``.yaml``.

        Raises:
            ConfigError: if there is neither.
        """
        if Path(name).is_file():
            return name
        packaged = self.configs()
        found = packaged.get(name.removesuffix(".yaml"))
        if found is None:
            hint = (
                did_you_mean(name.removesuffix(".yaml"), packaged)
                if packaged
                else "none is packaged"
            )
            raise ConfigError(f"--config {name}: no such file or packaged configuration; {hint}")
        return str(found)


_REGISTERED: dict[str, Domain] = {}


def register_domain(domain: Domain) -> None:
    """Adds a domain by hand, in front of those in the tree; for plug-ins and tests.

    Args:
        domain: replaces one of the same name.
    """
    if domain.name not in _REGISTERED:
        plugins.remember(domain.home, lambda: unregister_domain(domain.name))
    _REGISTERED[domain.name] = domain


def unregister_domain(name: str) -> None:
    """Removes a domain that ``register_domain`` added."""
    _REGISTERED.pop(name, None)


def _present(name: str) -> bool:
    try:
        return importlib.util.find_spec(f"longseq.{name}.commands") is not None
    except ModuleNotFoundError:
        return False


def list_domains() -> list[str]:
    """Returns the names of the domains in this version."""
    return [*(name for name in DOMAINS if name not in _REGISTERED and _present(name)), *_REGISTERED]


def load_domain(name: str) -> Domain:
    """Returns a domain by name; imports only its light ``commands`` module.

    Raises:
        ConfigError: if it is unknown, or not part of this version.
    """
    if name in _REGISTERED:
        return _REGISTERED[name]
    if name in DOMAINS and not _present(name):
        raise ConfigError(
            f"{name} is not part of this version; available: {', '.join(list_domains()) or 'none'}"
        )
    if name not in DOMAINS:
        plugins.load_installed()
        if name in _REGISTERED:
            return _REGISTERED[name]
        known = [*list_domains(), "doctor", "demo", "data", "bench"]
        near = did_you_mean(name, known)
        own = "; a domain of your own needs --import its_module" if near.startswith("known") else ""
        raise ConfigError(f"no domain or command named {name!r}; {near}{own}")
    domain = importlib.import_module(f"longseq.{name}.commands").DOMAIN
    assert isinstance(domain, Domain)
    return domain


def domains_of(cls: type) -> list[Domain]:
    """Returns the domains that a class belongs to: that of its own package, then those of its base
    classes.

    Args:
        cls: a task or data module, also one from outside.
    """
    known = [load_domain(name) for name in list_domains()]
    found = [domain for base in cls.__mro__ for domain in known if domain.owns(base.__module__)]
    return list({domain.name: domain for domain in found}.values())


def current_path(dotted: str) -> str:
    """Returns where a class is today that an earlier version of its domain had elsewhere.

    Args:
        dotted: path of the class, as a checkpoint names it.
    """
    name = dotted.split(".")[1] if dotted.startswith("longseq.") else ""
    return load_domain(name).moved.get(dotted, dotted) if name in list_domains() else dotted


def import_object(path: str, separator: str = ".") -> Any:
    """Returns the object at a dotted path such as ``longseq.genomics.task.Task`` (or
    ``module:function``).

    Args:
        path: where.
        separator: between module and name.
    """
    module, _, name = path.rpartition(separator)
    return getattr(importlib.import_module(module), name)


def _part(domain: str, part: str, path: str) -> None:
    """Imports what a domain names: a package, or an object in a module.

    Raises:
        ConfigError: if it is not there. Other errors of the module are its own.
    """
    separator = ":" if ":" in path else "."
    module, _, name = (path, "", "") if part == "package" else path.rpartition(separator)
    try:
        found = importlib.import_module(module) if module else None
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise
        found = None
    if found is None or (name and not hasattr(found, name)):
        missing = name if found is not None else f"module {module or path!r}"
        raise ConfigError(
            f"the domain {domain} names {path} as its {part}, but there is no {missing}"
        )
