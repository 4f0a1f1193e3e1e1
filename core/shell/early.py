"""Mistakes in flags and files, told without importing torch or Lightning, which takes seconds."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

from longseq.core.domain import Domain, import_object
from longseq.core.errors import ConfigError, did_you_mean
from longseq.core.shell.arguments import (
    configured,
    contents,
    find_checkpoint,
    flag_values,
    named_sections,
    resolve_configs,
)

__all__ = ["arguments_of", "check", "check_flags", "class_of", "name_of", "resolve_configs"]

RUN = (
    "config",
    "name",
    "progress",
    "checkpoint_every",
    "init_from",
    "max_time",
    "ckpt_path",
    "seed_everything",
    "print_config",
    "weights_only",
    "model",
    "data",
    "trainer",
    "return_predictions",
    "verbose",
)
"""Options that are neither the model's, the data's nor the trainer's."""
_BARE = ("help", "print_config", "version")
"""Options that may stand without a value."""
_FILES = (".csv", ".tsv", ".txt", ".parquet", ".pq", ".gz", ".ckpt", ".safetensors")
_SETTINGS = (".yaml", ".yml", ".json")  # which may stand for a class and its arguments
_OWN = ("class_path", "init_args", "dict_kwargs", "help")
_RECIPE = "longseq.core.training.recipe.Recipe"
"""The record whose fields every task takes as ``**recipe``."""
_TRAINER = "lightning.pytorch.trainer.trainer.Trainer"


@cache
def _tree(module: str) -> ast.Module | None:
    """Returns a module's syntax, read and not imported; None if it is not there as a Python
    file."""
    top, _, rest = module.partition(".")
    spec = importlib.util.find_spec(top) if top.isidentifier() else None
    parts = rest.split(".") if rest else []
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        base = Path(folder).joinpath(*parts)
        for file in (base.with_suffix(".py"), base / "__init__.py"):
            if file.is_file():
                return ast.parse(file.read_text(encoding="utf-8"))
    return None


def _classes(module: str) -> dict[str, ast.ClassDef]:
    tree = _tree(module)
    return {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)} if tree else {}


def _imported(module: str, name: str) -> str | None:
    """Returns the dotted path of a name that a module imports with ``from … import``."""
    tree = _tree(module)
    for node in tree.body if tree else ():
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return f"{node.module}.{alias.name}"
    return None


def arguments_of(path: str) -> list[str] | None:
    """Returns the names of a class's arguments, read from its source; None where they cannot be
    told.

    Args:
        path: dotted.
    """
    module, _, name = path.rpartition(".")
    found = _classes(module).get(name)
    if found is None:
        elsewhere = _imported(module, name) if module else None
        return arguments_of(elsewhere) if elsewhere else None
    init = next(
        (x for x in found.body if isinstance(x, ast.FunctionDef) and x.name == "__init__"), None
    )
    if init is not None:
        names = [
            one.arg for one in [*init.args.posonlyargs, *init.args.args, *init.args.kwonlyargs]
        ][1:]
        if init.args.vararg is not None:
            return None
        if init.args.kwarg is None:
            return names
        more = arguments_of(_RECIPE) if init.args.kwarg.arg == "recipe" else None
        return None if more is None else names + more
    typed = [x.target for x in found.body if isinstance(x, ast.AnnAssign)]
    fields = [target.id for target in typed if isinstance(target, ast.Name)]
    if any("dataclass" in ast.unparse(one) for one in found.decorator_list):
        return fields
    for base in found.bases:
        if isinstance(base, ast.Name):
            own = (
                f"{module}.{base.id}" if base.id in _classes(module) else _imported(module, base.id)
            )
            return arguments_of(own) if own else None
    return None


def _is_list(path: str, argument: str) -> bool:
    """Returns whether an argument of a class is written down as a list of texts."""
    module, _, name = path.rpartition(".")
    found = _classes(module).get(name)
    for one in found.body if found is not None else []:
        if isinstance(one, ast.FunctionDef) and one.name == "__init__":
            known = {x.arg: x.annotation for x in [*one.args.args, *one.args.kwonlyargs]}
            kind = known.get(argument)
            return kind is not None and "list[str]" in ast.unparse(kind)
    return False


def name_of(domain: Domain, argv: Sequence[str], configs: Sequence[str], side: str) -> str | None:
    """Returns the class that a command asks for, as it was written: dotted, or a name alone.

    Args:
        domain: whose default holds where none is named.
        argv: arguments.
        configs: configuration files.
        side: "model" or "data".
    """
    flags = [value for _, _, value in flag_values(argv, f"--{side}", f"--{side}.class_path")]
    name = (
        flags[-1] if flags else configured(configs, side)["class_path"] or domain.defaults.get(side)
    )
    return name if isinstance(name, str) else None


def class_of(domain: Domain, argv: Sequence[str], configs: Sequence[str], side: str) -> str | None:
    """Returns that class's dotted path, None if no module of the domain has it; arguments as
    ``name_of``."""
    name = name_of(domain, argv, configs, side)
    if name is None or "." in name:
        return name
    return next((f"{module}.{name}" for module in domain.modules if name in _classes(module)), None)


def _options(argv: Sequence[str]) -> Iterator[str]:
    """Yields the names of the options among the arguments, without dashes and values."""
    for text in argv:
        if text.startswith("--") and len(text) > 2:
            yield text[2:].partition("=")[0].rstrip("+")


def _near(domain: Domain, argv: Sequence[str], configs: Sequence[str], name: str) -> str:
    """Returns what an option was meant to be: an argument of the data or the model, or of the
    run."""
    for side in ("data", "model"):
        path = class_of(domain, argv, configs, side)
        if path is not None and name in (arguments_of(path) or ()):
            return f"did you mean --{side}.{name}?"
    if name in (arguments_of(_TRAINER) or ()):
        return f"did you mean --trainer.{name}?"
    return did_you_mean(name, RUN)


def check_flags(domain: Domain, argv: Sequence[str], configs: Sequence[str]) -> None:
    """Checks the names of all options; what a class takes that a checkpoint decides is left to the
    parser.

    Raises:
        ConfigError: for the first that there is not, with the nearest that there is.
    """
    known_to_checkpoint = set()
    if find_checkpoint(argv, configs) is not None:
        known_to_checkpoint = {"model", "data"} - named_sections(argv, configs)
    for name in _options(argv):
        section, dot, rest = name.partition(".")
        if section in known_to_checkpoint and dot:
            continue
        if not dot or section not in ("model", "data", "trainer"):
            if section not in RUN:
                raise ConfigError(f"--{name}: no such option; {_near(domain, argv, configs, name)}")
            continue
        first = rest.split(".")[0]
        if section == "trainer":
            known, what = arguments_of(_TRAINER), None
            known = None if known is None else [*known, "context_parallel_size"]
        else:
            what = class_of(domain, argv, configs, section)
            known = arguments_of(what) if what is not None else None
        if known is None or first in known or first in _OWN:
            continue
        if what is None:
            near = did_you_mean(name, [f"trainer.{one}" for one in known])
            raise ConfigError(f"--{name}: no such option; {near}")
        owner = what.rpartition(".")[2]
        raise ConfigError(f"--{name}: {owner} has no such argument; {did_you_mean(first, known)}")


def check_values(domain: Domain, argv: Sequence[str], configs: Sequence[str]) -> None:
    """Checks that every option has its value, and that what names a class is no file.

    Raises:
        ConfigError: for the first that has none.
    """
    for at, text in enumerate(argv):
        name = text[2:]
        if not text.startswith("--") or "=" in text or name.split(".")[-1] in _BARE:
            continue
        value = argv[at + 1] if at + 1 < len(argv) else "--"
        if value.startswith("--"):
            hint = f"; {_file_option(domain, configs)}" if name == "data" else ""
            section, _, argument = name.partition(".")
            what = (
                class_of(domain, argv, configs, section) if section in ("data", "model") else None
            )
            if what is not None and _is_list(what, argument):
                hint = f"; a list is {text} '[NAME, NAME]'"
            raise ConfigError(f"argument {text}: expected one argument{hint}")
    for _, flag, value in flag_values(argv, "--data", "--model"):
        suffix = Path(value).suffix.lower()
        if suffix in _FILES or (suffix not in _SETTINGS and Path(value).is_file()):
            hint = "weights are --ckpt_path FILE or --init_from FILE"
            if flag == "--data":
                hint = _file_option(domain, configs, value)
            raise ConfigError(f"{flag} {value}: names a class, and this is a file; {hint}")


def _file_option(domain: Domain, configs: Sequence[str], file: str = "FILE") -> str:
    """Returns how the usual data of a domain take a file: as their first argument."""
    usual = class_of(domain, [], configs, "data")
    known = (arguments_of(usual) if usual else None) or ["path"]
    return f"a file is --data.{known[0]} {file}"


def check(domain: Domain, argv: Sequence[str], configs: Sequence[str]) -> None:
    """Checks what can be told of a task command at once: its options, and the files that it reads.

    Args:
        domain: whose.
        argv: the user's arguments, configurations resolved to files.
        configs: these files.

    Raises:
        ConfigError: for an option that there is not.
        DataError: for a file that is not there or not what it should be.
    """
    for file, content in zip(configs, contents(configs)):  # which says which is no YAML
        if not content:
            raise ConfigError(f"{file}: holds no settings")
    check_flags(domain, argv, configs)
    check_values(domain, argv, configs)
    if domain.check is None or class_of(domain, argv, configs, "data") != domain.defaults.get(
        "data"
    ):
        return
    given = {str(name): value for name, value in configured(configs, "data")["init_args"].items()}
    for name in _options(argv):
        typed = flag_values(argv, f"--{name}") if name.startswith("data.") else []
        if typed:  # a flag without its value, or one that adds to a list, is the parser's business
            given[name.removeprefix("data.").removeprefix("init_args.")] = typed[-1][2]
    import_object(domain.check, ":")(given)
