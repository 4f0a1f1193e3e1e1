"""Values that the model and the data must have in common are typed once: the other side is filled
in."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import yaml  # type: ignore[import-untyped]

from longseq.core.domain import Domain, import_object
from longseq.core.errors import ConfigError
from longseq.core.shell.arguments import configured, find_checkpoint, flag_values
from longseq.core.shell.short_help import classes


def _flag(argv: Sequence[str], flag: str) -> str | None:
    """Returns the last value of a flag, ``--model.horizon`` or ``--model.init_args.horizon``."""
    side, _, name = flag.partition(".")
    values = flag_values(argv, flag, f"{side}.init_args.{name}")
    return next((value for _, _, value in reversed(values)), None)


def agree(domain: Domain, argv: Sequence[str], configs: Sequence[str]) -> list[str]:
    """Returns arguments in which the model and the data have the same values where they must.

    A flag on one side holds for both; so does a configuration where no flag is given, and the
    model's default where nothing is.

    Args:
        domain: whose ``shared`` arguments.
        argv: the user's arguments, configurations resolved to files.
        configs: these files.

    Raises:
        ConfigError: if two flags contradict each other.
    """
    added: list[str] = []
    if not domain.shared:
        return list(argv)
    try:
        takes = {
            side: inspect.signature(cls).parameters for side, cls in classes(domain, argv).items()
        }
    # The parser says it, with file and line.
    except (ConfigError, yaml.YAMLError, UnicodeDecodeError):
        return list(argv)
    for model, data in domain.shared:
        if model not in takes.get("model", ()) or data not in takes.get("data", ()):
            continue
        names = {"model": f"--model.{model}", "data": f"--data.{data}"}
        flags = {side: _flag(argv, name) for side, name in names.items()}
        if None not in flags.values():
            if flags["model"] != flags["data"]:
                raise ConfigError(
                    f"{names['model']} {flags['model']} and {names['data']} {flags['data']} must "
                    "agree; give one of them"
                )
            continue
        values = {
            side: configured(configs, side)["init_args"].get(name)
            for side, name in (("model", model), ("data", data))
        }
        for side, other in (("model", "data"), ("data", "model")):
            if (flag := flags[side]) is not None:
                added.append(f"{names[other]}={flag}")
                if values[other] is not None and str(values[other]) != flag:
                    said = f"note: {names[other]} follows {names[side]} {flag}"
                    print(f"{said}; the configuration had {values[other]}", file=sys.stderr)
            elif not any(flags.values()) and values[side] is not None and values[other] is None:
                added.append(f"{names[other]}={values[side]}")
        given = any(one is not None for one in (*flags.values(), *values.values()))
        if not given and find_checkpoint(argv, configs) is None:
            default, other = takes["model"][model].default, takes["data"][data].default
            if default != other and isinstance(default, int) and isinstance(other, int):
                added.append(f"{names['data']}={default}")
    return [*argv, *added]


def check_described(
    data: Mapping[str, Any] | None, argv: Sequence[str], configs: Sequence[str]
) -> None:
    """Checks that other files than a checkpoint's are not read with what describes its own ones.

    Args:
        data: ``class_path`` and ``init_args`` of the checkpoint's data, if there are.
        argv: the user's arguments.
        configs: configuration files.

    Raises:
        ConfigError: for files of the user's (``BaseData.described_by``) without what describes
            them.
    """
    if data is None:
        return
    cls, saved = import_object(data["class_path"]), data["init_args"]
    typed = configured(configs, "data")["init_args"]

    def is_other(name: str) -> bool:
        """Returns whether the user says another value than the saved one."""
        text, before = _flag(argv, f"--data.{name}"), saved.get(name)
        if text is None or text == before:
            return bool(text is None and typed.get(name, before) != before)
        try:
            return bool(yaml.safe_load(text) != before)
        except yaml.YAMLError:  # a name, and no list of them
            return True

    for files, others in getattr(cls, "described_by", {}).items():
        if not is_other(files):
            continue
        for name in others:
            said = _flag(argv, f"--data.{name}") is not None or name in typed
            if saved.get(name) and not said:
                raise ConfigError(
                    f"--data.{files} is another than the checkpoint's, and its data.{name} "
                    f"({saved[name]}) is of {saved.get(files)}: give --data.{name} too, null for "
                    "none"
                )


def follow_data(domain: Domain, section: Any, argv: Sequence[str], configs: Sequence[str]) -> Any:
    """Gives a new model what follows from its data, unless the user has typed it.

    Args:
        domain: whose packaged configurations may be overruled.
        section: of the parsed configuration of fit; its model's arguments are changed.
        argv: the user's arguments.
        configs: configuration files.

    Returns:
        The data module, if it had to be made to see what is in the data; else None.
    """
    data, model = section.get("data"), section.model
    cls = import_object(data.class_path) if data is not None else None
    taken = model.get("init_args") or {}
    packaged = {str(file) for file in domain.configs().values()}
    typed = set(
        configured([file for file in configs if file not in packaged], "model")["init_args"]
    )
    names = [text.partition("=")[0] for text in argv if text.startswith("--model.")]
    typed |= {name.removeprefix("--model.").removeprefix("init_args.") for name in names}
    for _, _, value in flag_values(argv, "--model"):
        if value.startswith("{") or value.endswith((".yaml", ".yml", ".json")):
            return None  # a whole configuration on the command line is taken at its word
    wanted = [name for name in getattr(cls, "fits", ()) if name in taken and name not in typed]
    if cls is None or not wanted:
        return None
    made = cls(**(data.get("init_args") or {}))
    known = made.model_arguments()
    for name in wanted:
        model.init_args[name] = known[name]
    return made
