"""The help of task commands: an example, the arguments of model and data, the usual trainer
flags."""

from __future__ import annotations

import importlib
import inspect
import re
import shutil
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import docstring_parser

from longseq.core import plugins
from longseq.core.domain import TASK_COMMANDS, Domain, import_object
from longseq.core.errors import ConfigError, did_you_mean
from longseq.core.shell.early import name_of, resolve_configs

TRAINER = {
    "max_steps": ("N", "optimiser steps of the training"),
    "accelerator": ("NAME", "cpu, gpu, mps or auto (auto)"),
    "devices": ("N", "how many devices, or auto (auto)"),
    "precision": ("NAME", "32-true, bf16-mixed, 16-mixed, … (32-true)"),
    "strategy": ("NAME", "over several devices: ddp, fsdp, … (auto)"),
    "accumulate_grad_batches": ("N", "batches per optimiser step (1)"),
    "gradient_clip_val": ("X", "largest norm of the gradient"),
    "val_check_interval": ("N", "training batches between two validations"),
    "limit_val_batches": ("N", "batches of a validation at most"),
    "log_every_n_steps": ("N", "steps between two lines of metrics (10)"),
    "default_root_dir": ("FOLDER", "where runs are written"),
}
"""Flags of Lightning's trainer that people use; ``--help_all`` has the others."""
DEVICE = ("accelerator", "devices", "precision")
"""Those that matter where nothing is trained."""
_FIT = {
    "--name NAME": "of the run's folder; the configuration's name if not given",
    "--ckpt_path FILE": "go on from it; last: the newest one; auto: this --name's, if any",
    "--max_time TIME": "stop after 90s, 45m, 3.5h with the last step kept, status 75",
    "--init_from FILE": "begin a new training with the weights of a .ckpt or .safetensors file",
    "--checkpoint_every N": "optimiser steps between two writes of last.ckpt (200)",
}
_OTHER = {
    "--ckpt_path FILE": "the checkpoint, which carries its own configuration; or the newest one: "
    "last"
}
_ALL = {
    "--import MODULE": "code of your own: mixers, tasks, data",
    "--seed_everything N": "seed of all random numbers (0)",
    "--progress KIND": "bar, lines or auto: a bar on a terminal (auto)",
    "--print_config": "print the whole configuration and stop; a file of it can be given to "
    "--config",
}


def _class(domain: Domain, name: str, base: str | None) -> type:
    """Returns a class by its dotted path, or by its name if a module of the domain has it, or code
    from outside derives it from the base class of the domain's tasks or data modules.

    Raises:
        ConfigError: if there is none.
    """
    modules = [importlib.import_module(module) for module in domain.modules]
    if "." not in name:
        for module in modules:
            if isinstance(getattr(module, name, None), type):
                return getattr(module, name)
        if base is not None and (own := find_subclass(import_object(base), name)) is not None:
            return own
        known = [
            key
            for module in modules
            for key, value in vars(module).items()
            if isinstance(value, type)
        ]
        raise ConfigError(
            f"no class named {name!r} in longseq {domain.name}; {did_you_mean(name, known)}"
        )
    try:
        return import_object(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{name} cannot be imported: {error}") from error


def find_subclass(base: type, name: str) -> type | None:
    """Returns the class of a name among all that derive from a class; None if there is none."""
    children: list[type] = base.__subclasses__()
    for child in children:
        if child.__name__ == name:
            return child
        if (deeper := find_subclass(child, name)) is not None:
            return deeper
    return None


def classes(domain: Domain, argv: Sequence[str]) -> dict[str, type]:
    """Returns the classes whose arguments are shown: of the flags, the configuration, or the
    defaults.

    Args:
        domain: whose.
        argv: arguments beside ``--help``.
    """
    args, configs = resolve_configs(domain, argv)
    names = {side: name_of(domain, args, configs, side) for side in ("model", "data")}
    bases = {"model": domain.task, "data": domain.data}
    found = {side: name for side, name in names.items() if name is not None}
    return {side: _class(domain, name, bases[side]) for side, name in found.items()}


def _words(cls: type) -> dict[str, str]:
    """Returns what the docstrings of a class and of its bases say of each argument."""
    found: dict[str, str] = {}
    for one in reversed(cls.__mro__):
        for text in (one.__doc__, getattr(vars(one).get("__init__"), "__doc__", None)):
            for param in docstring_parser.parse(text or "").params:
                found[param.arg_name] = " ".join((param.description or "").split())
    return found


def arguments(cls: type) -> Iterator[tuple[str, str, str]]:
    """Yields (name, type, words with the default) of each argument of a class.

    Args:
        cls: a task or a data module.
    """
    words = _words(cls)
    for name, parameter in inspect.signature(cls).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        kind = "" if parameter.annotation is parameter.empty else parameter.annotation
        kind = (
            kind.__name__
            if isinstance(kind, type)
            else str(kind).strip("'\"").replace("typing.", "")
        )
        kind = kind.replace(" | None", "").replace("Literal[", "{").replace("collections.abc.", "")
        kind = kind.replace("]", "}") if kind.startswith("{") else kind
        default = parameter.default
        told = (
            " (required)"
            if default is parameter.empty
            else ""
            if default is None
            else f" ({default})"
        )
        yield name, kind.replace('"', "").replace("'", ""), words.get(name, "").rstrip(".") + told


def _cut(text: str, room: int) -> str:
    """Returns words cut to one line, but for the default in brackets at their end."""
    default = re.search(r" \([^()]*(?:\([^()]*\))?\)$", text)
    end = default[0] if default else ""
    words = text.removesuffix(end)
    return textwrap.shorten(words, max(room - len(end), 8), placeholder=" …") + end


def _two_lines(text: str, room: int) -> list[str]:
    """Returns words as at most two lines; ``--help_all`` has the rest."""
    parts = textwrap.wrap(text, room) or [""]
    for most in range(2 * room, room, -4):
        if len(parts) <= 2:
            break
        parts = textwrap.wrap(_cut(text, most), room)
    return parts


def _recipe(cls: type) -> list[str]:
    """Returns the arguments that a task shares with all others."""
    recipe = import_object("longseq.core.training.recipe.Recipe")
    defaults = getattr(cls, "recipe_defaults", None)
    return recipe.names() if defaults is not None else []


def _table(
    rows: Sequence[tuple[str, str]], width: int, short: frozenset[str] = frozenset()
) -> list[str]:
    """Returns lines of flags and their words; the words of ``short`` flags are cut to one line."""
    left = min(max((len(flag) for flag, _ in rows), default=0), 30)
    lines = []
    for flag, text in rows:
        room = max(width - left - 4, 24)
        parts = _two_lines(text, room)
        if flag.partition(" ")[0] in short:
            lines.append(f"  {flag:<{left}}  {_cut(text, width - max(len(flag), left) - 4)}")
            continue
        if left < len(flag) <= width - len(text) - 4:
            lines.append(f"  {flag}  {text}")
            continue
        head = f"  {flag:<{left}}  "
        if len(flag) > left:
            lines.append(f"  {flag}")
            head = " " * (left + 4)
        lines.append(f"{head}{parts[0]}".rstrip())
        lines += [" " * (left + 4) + part for part in parts[1:]]
    return lines


def _first_comment(file: Path) -> str:
    """Returns the first sentence of the comment at the head of a configuration."""
    said = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        said.append(line.lstrip("# ").strip())
    return re.split(r"[.:] ", " ".join(said))[0].rstrip(".")


def _example(domain: Domain, command: str, shown: Mapping[str, type]) -> str:
    """Returns arguments with which a command works as it is typed, but for words in capitals."""
    example = domain.examples.get(command)
    if example is None and command != "fit":
        example = "--ckpt_path last"
    if example is None:
        needed = [
            f"--{side}.{name} {name.upper()}"
            for side, cls in shown.items()
            for name, parameter in inspect.signature(cls).parameters.items()
            if parameter.default is parameter.empty
            and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        ]
        example = " ".join([*needed, "--trainer.max_steps 100"])
    named = ",".join(plugins.named())
    return f"{plugins.OPTION} {named} {example}" if named else example


def text(domain: Domain, command: str, argv: Sequence[str] = ()) -> str:
    """Returns the help of a task command.

    Args:
        domain: whose.
        command: fit, validate, test or predict.
        argv: other arguments: ``--config``, ``--model`` and ``--data`` choose whose arguments are
            shown.
    """
    width = min(shutil.get_terminal_size().columns, 110)
    usage = f"longseq {domain.name} {command}"
    shown = classes(domain, argv) if command == "fit" else {}
    lines = [
        f"usage: {usage} [options]",
        "",
        f"{TASK_COMMANDS[command].capitalize()}.",
        "",
        "for example",
    ]
    lines += [f"  {usage} {_example(domain, command, shown)}", ""]
    configs = domain.configs()
    if configs and command == "fit":
        rows = [(name, _first_comment(file)) for name, file in configs.items()]
        lines += ["configurations: --config NAME, or a file of your own", *_table(rows, width), ""]
    if command == "fit":
        for key, cls in shown.items():
            title = (cls.__doc__ or "").strip().split("\n")[0]
            rows = [
                (f"--{key}.{name} {kind}".rstrip(), words) for name, kind, words in arguments(cls)
            ]
            # All tasks share the recipe: --help_all says more of it.
            table = _table(rows, width, frozenset(f"--{key}.{name}" for name in _recipe(cls)))
            lines += [f"the {key}: --{key} {cls.__name__}. {title}", *table, ""]
        run = [*_FIT.items(), *_ALL.items()]
    else:
        run = [*_OTHER.items(), *_ALL.items()]
    lines += ["the run", *_table(run, width), ""]
    flags = TRAINER if command == "fit" else {name: TRAINER[name] for name in DEVICE}
    rows = [(f"--trainer.{name} {kind}", words) for name, (kind, words) in flags.items()]
    lines += ["the trainer", *_table(rows, width), ""]
    tail = f"{usage} --help_all lists every option"
    if command == "fit":
        tail += "; --config NAME --help and --model CLASS --help show another model's"
    return "\n".join([*lines, f"{tail}."]) + "\n"
