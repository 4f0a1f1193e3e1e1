"""Arguments of commands: mistakes end in one line, and an output never overwrites an input."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from longseq.core.errors import ConfigError, did_you_mean
from longseq.core.files import refuse_overwriting
from longseq.core.runs import known_roots, newest_checkpoint


class CommandParser(argparse.ArgumentParser):
    """``argparse.ArgumentParser`` whose errors are ``ConfigError`` of one line, with the nearest
    option, and whose help begins with an example.

    Args:
        example: calls, one a line; made of what is needed if empty.
    """

    def __init__(self, *args: Any, example: str = "", **options: Any) -> None:
        super().__init__(*args, **options)
        self.example = example

    def format_help(self) -> str:
        """Returns the help, the example first."""
        calls = (self.example or self.needed()).splitlines()
        return "\n".join(
            ["for example", *(f"  {call}" for call in calls), "", super().format_help()]
        )

    def needed(self) -> str:
        """Returns the shortest call: all that is needed, by the arguments' names."""
        words = [self.prog]
        for action in self._actions:
            if not action.required:
                continue
            metavar = action.metavar[0] if isinstance(action.metavar, tuple) else action.metavar
            value = next(iter(action.choices or ()), metavar or action.dest.upper())
            ending = re.search(r"\.\w+", action.help or "")
            if action.dest == "out":
                value = f"out{ending[0]}" if ending else "out"
            words += [*action.option_strings[:1], *([] if action.nargs == 0 else [str(value)])]
        return " ".join(words)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parses; arguments and result as of ``argparse``.

        Raises:
            ConfigError: for arguments that cannot be understood, an output that is an input or
                another output, or a seed that no generator takes.
            DataError: for ``--ckpt_path last`` where no run has left one.
        """
        found, unknown = self.parse_known_args(args, namespace)
        if unknown:
            first = next((text for text in unknown if text.startswith("-")), unknown[0])
            self.error(self._unknown(first.partition("=")[0]))
        if hasattr(found, "ckpt_path"):
            found.ckpt_path = self._checkpoint(found.ckpt_path)
        check_outputs(found, self._outputs())
        seed = getattr(found, "seed", None)
        if isinstance(seed, int) and not 0 <= seed < 1 << 63:
            raise ConfigError(f"--seed must be 0 … 2^63 - 1, got {seed} ({self.prog} --help)")
        return found

    def _checkpoint(self, value: Any) -> Any:
        """Returns a checkpoint, or a list of them, with the newest of the domain for "last"."""
        if isinstance(value, list):
            return [self._checkpoint(one) for one in value]
        words = self.prog.split()
        if value != "last" or len(words) < 3 or os.path.exists(value):
            return value
        return newest_checkpoint(*known_roots(words[1]))

    def _unknown(self, text: str) -> str:
        if not text.startswith("-"):
            return f"{text}: one argument too many"
        options = [one for action in self._actions for one in action.option_strings]
        return f"{text}: no such option; {did_you_mean(text, options)}"

    def _outputs(self) -> dict[str, str]:
        """Returns the arguments that name what is written, destination → option."""
        return {
            action.dest: action.option_strings[-1]
            for action in self._actions
            if action.option_strings and re.search(r"\bto (write|unpack)\b", action.help or "")
        } | {"out": "--out"}

    def error(self, message: str) -> NoReturn:
        """Raises the one line."""
        message = message.removeprefix("argument ")
        message = message.replace("the following arguments are required:", "needed:")
        raise ConfigError(f"{message} ({self.prog} --help)")


def add_device(parser: argparse.ArgumentParser) -> None:
    """Adds ``--device``; a name that torch does not know, or a device that is not there, is
    refused before the work."""
    parser.add_argument(
        "--device",
        type=device_name,
        default="cpu",
        help="cpu (default), cuda, or cuda:1 of several",
    )


def device_name(text: str) -> str:
    """Returns the name of a device that is there; for ``type`` of an argument."""
    if text == "cpu":
        return text
    import torch

    kind, _, number = text.partition(":")
    if kind not in ("cpu", "cuda", "mps") or (number and not number.isdecimal()):
        raise argparse.ArgumentTypeError(f"no device {text!r}; known: cpu, cuda, cuda:0, mps")
    there = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": torch.backends.mps.is_available()}
    if not int(number or 0) < int(there[kind]):
        raise argparse.ArgumentTypeError(
            f"{text} is not there: longseq doctor says which devices are, and why others are not"
        )
    return text


def _paths(value: Any) -> Iterator[str]:
    """Yields the paths in the value of an argument: it as a whole, and its parts if it is a list
    like a.csv,b.csv, a sum like train.csv+test.csv, or a pair like name=a.csv."""
    if isinstance(value, (str, os.PathLike)):
        text = os.fspath(value)
        yield text
        if isinstance(text, str):
            yield from (part for part in re.split("[,+=]", text) if part not in ("", text))
    elif isinstance(value, Sequence) and not isinstance(value, bytes):
        for one in value:
            yield from _paths(one)


def check_outputs(arguments: argparse.Namespace, outputs: dict[str, str]) -> None:
    """Checks that what is written is not among what is read, and written once.

    Args:
        arguments: parsed.
        outputs: names of those that are written, with their options.

    Raises:
        ConfigError: if an output is an input or another output, under whatever name.
    """
    values = vars(arguments)
    taken: dict[str, str] = {}
    for name, option in outputs.items():
        if isinstance(out := values.get(name), (str, os.PathLike)):
            other = taken.setdefault(os.path.realpath(os.path.expanduser(out)), option)
            if other != option:
                raise ConfigError(f"{other} and {option} are the same file {out}: give it another")
    read = [path for name, value in values.items() if name not in outputs for path in _paths(value)]
    for name, option in outputs.items():
        for out in _paths(values.get(name)):
            refuse_overwriting(out, read, f"{option} ")
