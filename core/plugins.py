"""Code from outside: modules that the user names, and plug-ins of installed packages; imports no
torch.

A module is named by ``--import my_module`` on any command, or by
``LONGSEQ_IMPORT=my_module,another``. An installed package names one under the entry-point group
``longseq.plugins``. What such a module registers (mixers, a domain) or defines (tasks, data
modules, metrics, losses, optimisers) can then be used, and its checkpoints can be loaded: nothing
else from outside longseq is imported because a file says so.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from longseq.core.errors import ConfigError, LongseqError

GROUP = "longseq.plugins"
VARIABLE = "LONGSEQ_IMPORT"
OPTION = "--import"
TRUSTED = ("longseq", "torch", "torchmetrics")
"""Packages whose classes a file may name: longseq itself and what it depends on."""
_INSIDE = (
    "<frozen importlib",
    importlib.__file__,
    os.path.dirname(os.path.abspath(__file__)) + os.sep,
)
"""How the files of frames begin that an error of code from outside is not of."""

_named: dict[str, None] = {}  # modules that the user has named, in order
_failures: dict[Plugin, str] = {}  # plug-ins that do not load, and why
_added: list[tuple[str, Callable[[], object]]] = []  # whose registrations, and how to undo them


@dataclass(frozen=True)
class Plugin:
    """A plug-in of an installed package.

    Attributes:
        name: of the entry point.
        module: that it names; empty if what it names is no module.
        package: distribution and version, such as "longseq-trend 0.1".
        value: what it names, ``module`` or ``module:attribute``. The module is imported; nothing
            is called.
    """

    name: str
    module: str
    package: str
    value: str


def take_imports(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Takes ``--import name`` and ``--import=name`` out of the arguments of a command.

    Args:
        argv: arguments.

    Returns:
        The other arguments, and the modules: those of ``LONGSEQ_IMPORT`` first. Commas separate
        several.

    Raises:
        ConfigError: if the option has no value.
    """
    rest: list[str] = []
    names = _split(os.environ.get(VARIABLE, ""))
    values = iter(argv)
    for text in values:
        flag, equals, value = text.partition("=")
        if flag != OPTION:
            rest.append(text)
            continue
        value = value if equals else next(values, "")
        if not _split(value) or value.startswith("-"):
            raise ConfigError(
                f"{OPTION} needs the name of a module, for example {OPTION} my_module"
            )
        names += _split(value)
    return rest, list(dict.fromkeys(names))


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def import_named(names: Iterable[str]) -> None:
    """Imports modules that the user has named; those in the current folder are found too.

    Args:
        names: dotted names.

    Raises:
        ConfigError: if one is not there or fails, in one line.
    """
    by_environment = _split(os.environ.get(VARIABLE, ""))
    for name in names:
        source = VARIABLE if name in by_environment else OPTION
        if name.endswith(".py") or not all(part.isidentifier() for part in name.split(".")):
            parts = Path(name).with_suffix("").parts if "/" in name or name.endswith(".py") else ()
            inside = all(part.isidentifier() for part in parts)  # of this folder
            module = ".".join(parts if inside else parts[-1:]) or "my_module"
            raise ConfigError(
                f"{source} {name}: the name of a module is needed, for example {OPTION} {module}"
            )
        if "" not in sys.path and os.getcwd() not in sys.path:
            # Last, so that a file of the user's hides no installed package.
            sys.path.append(os.getcwd())
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise ConfigError(f"{source} {name}: {why(error)}") from error
            raise ConfigError(
                f"{source} {name}: there is no module {error.name} in this folder or on PYTHONPATH"
            ) from error
        except (Exception, SystemExit) as error:  # the user's code may raise anything
            raise ConfigError(f"{source} {name}: {why(error)}") from error
        _named[name] = None


def named() -> list[str]:
    """Returns the modules that the user has named in this process, in order."""
    return list(_named)


def why(error: BaseException) -> str:
    """Returns an error of code from outside as one line, with the last place in that code."""
    text = " ".join(str(error).split())
    if isinstance(error, SyntaxError) and error.filename is not None:
        return f"{type(error).__name__}: {text}"  # which names the place
    if isinstance(error, SystemExit):
        text = f"it ends the program with sys.exit({error.code})"
    frames = traceback.extract_tb(error.__traceback__)
    outside = [one for one in frames if not one.filename.startswith(_INSIDE)]
    place = f" ({Path(outside[-1].filename).name}, line {outside[-1].lineno})" if outside else ""
    kind = "" if isinstance(error, (LongseqError, SystemExit)) else f"{type(error).__name__}: "
    return f"{kind}{text}{place}"


@cache
def installed() -> tuple[Plugin, ...]:
    """Returns the plug-ins of the installed packages; imports none."""
    from importlib.metadata import entry_points

    found = {}
    for entry in sorted(entry_points(group=GROUP), key=lambda one: one.name):
        by = entry.dist
        # A package whose metadata are broken has no name.
        package = f"{by.name} {by.version}" if by is not None and by.name else "an unnamed package"
        module = entry.value.partition("[")[0].partition(":")[0].strip()
        if not all(part.isidentifier() for part in module.split(".")):
            module = ""
        found[entry.name, entry.value] = Plugin(entry.name, module, package, entry.value)
    return tuple(found.values())


def _load(plugin: Plugin) -> None:
    """Imports the module of a plug-in.

    Raises:
        Exception: whatever the module raises.
        ConfigError: if the entry point names none, or something that is not in it.
    """
    if not plugin.module:
        raise ConfigError(f"its entry point {plugin.value!r} names no module")
    target = importlib.import_module(plugin.module)
    for part in plugin.value.partition("[")[0].partition(":")[2].strip().split("."):
        if part and not hasattr(target, part):
            raise ConfigError(f"its entry point {plugin.value!r} names {part}, which is not there")
        target = getattr(target, part) if part else target


def remember(module: str, undo: Callable[[], object]) -> None:
    """Keeps how a registration is undone, should the plug-in that it is of fail after it.

    Args:
        module: in which the thing is defined.
        undo: takes it out again.
    """
    _added.append((package_of(module), undo))


@cache
def load_installed() -> None:
    """Imports the plug-ins of the installed packages, once; one that fails is left out, with what
    it has registered before, and said so."""
    for plugin in installed():
        before = len(_added)
        try:
            _load(plugin)
        # Somebody else's package may raise anything.
        except (Exception, SystemExit) as error:  # noqa: BLE001
            _failures[plugin] = why(error)
            # Others', which it was the first to import, stay.
            for package, undo in reversed(_added[before:]):
                if package == package_of(plugin.module):
                    undo()
            print(
                f"note: the plug-in {plugin.name} of {plugin.package} is left out: {why(error)}",
                file=sys.stderr,
            )


def ran() -> bool:
    """Returns whether code from outside has been imported in this process."""
    tried = load_installed.cache_info().currsize > 0
    return bool(_named) or (tried and bool(installed()))


def failure(plugin: Plugin) -> str | None:
    """Returns why a plug-in did not load; None if it did, or was not tried."""
    return _failures.get(plugin)


def package_of(module: str) -> str:
    """Returns the outermost package of a module."""
    return module.partition(".")[0]


def is_allowed(module: str, allow: Iterable[str] = ()) -> bool:
    """Returns whether a file may have a module imported.

    That is so for longseq and its dependencies, for packages of which a module was named by the
    user, and for those of installed plug-ins.

    Args:
        module: dotted name.
        allow: modules that the caller allows in addition.
    """
    package = package_of(module)
    if package in TRUSTED:
        return True
    named = [*allow, *_named, *_split(os.environ.get(VARIABLE, ""))]
    return package in map(package_of, named) or package in {
        package_of(one.module) for one in installed()
    }


def fingerprint() -> list[str]:
    """Returns what the effect of all code from outside depends on: names, versions, times of the
    files."""
    parts = [f"{one.name} {one.value} {one.package}" for one in installed()]
    modules = [*(one.module for one in installed() if one.module), *_named]
    for package in dict.fromkeys(map(package_of, modules)):
        spec = importlib.util.find_spec(package)
        folders = list(spec.submodule_search_locations or ()) if spec is not None else []
        files = [file for folder in folders for file in sorted(Path(folder).rglob("*.py"))]
        if spec is not None and not folders and spec.origin is not None:
            files = [Path(spec.origin)]
        parts += [f"{file} {file.stat().st_mtime_ns} {file.stat().st_size}" for file in files]
    return [*parts, *_named]
