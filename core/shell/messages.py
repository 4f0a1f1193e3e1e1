"""Turns the many-line errors of jsonargparse into one line: the file, the key, the nearest valid
one."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

from longseq.core.domain import Domain, import_object
from longseq.core.errors import ConfigError, did_you_mean
from longseq.core.plugins import OPTION
from longseq.core.shell.arguments import contents
from longseq.core.training.recipe import Recipe

_NOT_ACCEPTED = re.compile(r"class_path '([\w.]+)':\s+Option '([\w.]+)' is not accepted")
_BAD_VALUE = re.compile(
    r"Parser key \"([\w.]+)\":\s*Expected an? (.+?)\. Got value: (.*?)(?:\s+- Expected|\n|$)"
)
_NO_OPTION = re.compile(r"does not accept option '([\w.]+)'")
_UNKNOWN = re.compile(r"unrecognized arguments: (--)?([\w.-]+)")
_PART = re.compile(r"NestedArg\(key='([\w.]+)', val='?(.*?)'?\)$")
_LIST = re.compile(r".*Parser key \"([\w.]+)\":.*Expected a (?:<class 'list'>|list\b)", re.DOTALL)
_NO_CLASS = re.compile(
    r"Parser key \"(\w+)\":.*Expected a dot import path string: (\S+)", re.DOTALL
)
_NOT_FOUND = re.compile(r"class_path '([\w.]+)':\s+No module named '([\w.]+)'")
_REQUIRED = re.compile(r"arguments are required: ([\w., ]+)")
_UNION = re.compile(r"Errors:\s*- (.*?)(?:\s+- Expected a <class 'NoneType'>|$)", re.DOTALL)
_KINDS = re.compile(  # of one value, where several kinds are allowed
    r"(?:Parser key \"([\w.]+)\":\s+)?Does not validate against any of the Union subtypes\s+"
    r"Subtypes: [^\n]*\s+Errors:\s+((?:- Expected an? [^\n]*\s+)+)"
    r"Given value type: [^\n]*\s+Given value: ([^\n]*)"
)
_EXPECTED = re.compile(r"- Expected an? (.*?)(?:\. Got value[^\n]*)?\n")
_NO_SUBCLASS = re.compile(
    r"Parser key \"(\w+)\".*does not correspond to a subclass of (\w+).*Given value: ([\w.]+)",
    re.DOTALL,
)
_CLASS = re.compile(r"<class '(?:[\w]+\.)*(\w+)'>")


def _has_key(content: Any, key: str) -> bool:
    """Returns whether the dotted ``key`` occurs in a configuration, with ``init_args`` left out of
    it."""
    parts = key.split(".")
    for index, part in enumerate(parts):
        if (
            isinstance(content, dict)
            and part not in content
            and isinstance(content.get("init_args"), dict)
        ):
            content = content["init_args"]
        if not isinstance(content, dict) or part not in content:
            flat = ".".join(parts[index:])
            return isinstance(content, dict) and flat in content
        content = content[part]
    return True


def _place(argv: Sequence[str], configs: Sequence[str], key: str) -> str:
    """Returns ``--key`` if the key was typed or no configuration has it, else ``file: key``."""
    typed = [text.partition("=")[0].replace(".init_args", "") for text in argv]
    if f"--{key}" in typed:
        return f"--{key}"
    for file in reversed(configs):
        try:
            (content,) = contents([file])
        except ConfigError:
            continue
        if _has_key(content, key):
            return f"{file}: {key}"
    return f"--{key}"


def _own_arguments(key: str, name: str, value: str) -> str:
    """Says where an argument that was written as a part of a name belongs."""
    where = f"{key.rpartition('.')[2]}_kwargs"
    if where not in Recipe.names():
        return f"it has no part {name}"
    return f"its arguments are --{key}_kwargs '{{{name}: {value}}}'"


def _wanted(errors: str) -> str:
    """Returns what a value may be, of the parser's lines "- Expected a …"."""
    kinds = [_CLASS.sub(r"\1", kind) for kind in _EXPECTED.findall(errors)]
    words: list[str] = []
    for kind in kinds:
        choices = re.match(r"typing\.Literal\[(.*)\]$", kind)
        words += choices[1].replace("'", "").split(", ") if choices else [kind]
    words = ["a mapping in braces, '{name: value}'" if one == "dict" else one for one in words]
    return " or ".join(one for one in dict.fromkeys(words) if one != "NoneType")


def _arguments(cls: Any) -> list[str]:
    return [
        name
        for name in inspect.signature(cls.__init__).parameters
        if name not in ("self", "args", "kwargs")
    ]


def _subclasses(cls: type) -> Iterable[type]:
    children: list[type] = cls.__subclasses__()
    for child in children:
        yield child
        yield from _subclasses(child)


def _known(key: str) -> list[str]:
    """Returns the valid dotted names beside ``key``."""
    from lightning.pytorch import Trainer

    if key.startswith("trainer."):
        return [f"trainer.{name}" for name in _arguments(Trainer)]
    return [
        "model",
        "data",
        "trainer",
        "config",
        "name",
        "progress",
        "seed_everything",
        "ckpt_path",
    ]


def explain(
    text: str, domain: Domain, command: str, argv: Sequence[str], configs: Sequence[str]
) -> str:
    """Returns one line for an error of the argument parser.

    Args:
        text: its message.
        domain: of the command.
        command: fit, validate, …
        argv: the user's arguments.
        configs: configuration files that were read.
    """
    place = partial(_place, argv, configs)
    if match := _NOT_ACCEPTED.search(text):
        owner, name = match.groups()
        section = re.search(r"Parser key \"(\w+)\"", text)
        key = f"{section.group(1)}.{name}" if section else name
        near = did_you_mean(name.split(".")[0], _arguments(import_object(owner)))
        return f"{place(key)}: {owner.rpartition('.')[2]} has no such argument; {near}"
    if match := _NO_CLASS.search(text):
        group, name = match.groups()
        base = domain.task if group == "model" else domain.data
        names = [cls.__name__ for cls in _subclasses(import_object(base))] if base else []
        return f"{place(group)}: no class named {name!r}; {did_you_mean(name, names)}"
    if match := _NOT_FOUND.search(text):
        path, module = match.groups()
        section = re.search(r"Parser key \"(\w+)\"", text)
        where = f"{place(section.group(1))}: " if section else ""
        named = path.rpartition(".")[0]
        return (
            f"{where}no module {module} for {path}; one in this folder is found by {OPTION} {named}"
        )
    if match := _NO_SUBCLASS.search(text):
        key, base, value = match.groups()
        return f"{place(key)}: {value} is no {base}"
    if (kinds := _KINDS.findall(text)) and kinds[-1][0]:
        key, errors, value = kinds[-1]
        key = f"model.{key}" if key in Recipe.names() else key
        if part := _PART.match(value.strip()):
            return f"{place(key)}: takes one value; {_own_arguments(key, *part.groups())}"
        if "'list'" in errors or "a list" in errors:
            return f"{place(key)}: a list in brackets is needed, such as '[one, two]'"
        return f"{place(key)}: expected {_wanted(errors)}, got {value.strip()}"
    if found := _BAD_VALUE.findall(text):
        section = re.search(r"Parser key \"(model|data)\"", text)
        key, kind, value = found[-1]
        if section and "." not in key and key != section.group(1):
            key = f"{section.group(1)}.{key}"
        wanted = _CLASS.sub(r"\1", kind)
        if re.match(r"list\b", wanted):
            return f"{place(key)}: a list in brackets is needed, such as '[one, two]'"
        if part := _PART.match(value.strip()):
            return f"{place(key)}: takes one value; {_own_arguments(key, *part.groups())}"
        return f"{place(key)}: expected {wanted}, got {value.strip()}"
    if match := _NO_OPTION.search(text):
        key = match.group(1)
        return f"{place(key)}: no such option; {did_you_mean(key, _known(key))}"
    if match := _UNKNOWN.search(text):
        dashes, name = match.groups()
        hint = did_you_mean(name, _known(name)) if dashes else "options begin with --"
        hint = f"a configuration is given by --config {name}" if name in domain.configs() else hint
        return f"{dashes or ''}{name}: no such option; {hint}"
    if match := _REQUIRED.search(text):
        names = [
            f"--{name.strip().removeprefix(command + '.')}" for name in match.group(1).split(",")
        ]
        packaged = ", ".join(domain.configs())
        hint = f"--config with one of {packaged}" if packaged else "--config file.yaml"
        return f"{' and '.join(names)} needed: {hint} (longseq {domain.name} {command} --help)"
    if match := _LIST.search(text):
        key = match.group(1)
        key = f"model.{key}" if key in Recipe.names() else key
        return f"{place(key)}: a list in brackets is needed, such as '[one, two]'"
    if match := _UNION.search(text):
        text = match.group(1)
    return " ".join(_CLASS.sub(r"\1", text).split())
