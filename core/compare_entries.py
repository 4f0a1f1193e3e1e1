"""What stands in ``--models`` of a comparison: names, files, variants."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from longseq.core.errors import ConfigError, did_you_mean


def check_models(text: str, baselines: Mapping[str, Any], configs: Mapping[str, Path]) -> list[str]:
    """Returns the names in ``--models``.

    Args:
        text: names by commas.
        baselines: that there are.
        configs: packaged configurations.

    Raises:
        ConfigError: for none, or one that is neither a baseline, a configuration nor a file.
    """
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names:
        raise ConfigError("--models: at least one name is needed")
    for entry in names:
        name = split_entry(entry)[0]
        if name not in baselines and name not in configs and not Path(name).is_file():
            hint = did_you_mean(name, (*baselines, *configs))
            own = (
                "; a class of your own needs a configuration with its class_path"
                if "." in name
                else ""
            )
            raise ConfigError(f"--models: no baseline, configuration or file {name!r}; {hint}{own}")
    return names


def split_entry(entry: str) -> tuple[str, dict[str, str]]:
    """Returns the name in an entry of ``--models`` and the model's arguments behind it.

    Args:
        entry: a name or file, or ``config:argument=value`` (several: ``config:a=1:b.c=2``).

    Raises:
        ConfigError: for an argument that begins with "model.", which all of them are.
    """
    if Path(entry).is_file():
        return entry, {}
    name, *parts = re.split(r":(?=[\w.]+=)", entry)
    for part in parts:
        if part.startswith("model."):
            own = part.removeprefix("model.")
            raise ConfigError(f"--models: {entry!r} names the model's arguments: {name}:{own}")
    return name, dict(part.split("=", 1) for part in parts)
