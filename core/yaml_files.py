"""YAML that people write, read as plain values; what would fill the memory is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from longseq.core.errors import ConfigError

LARGEST = 1_000_000
"""Values in a file, those that stand for others (aliases) counted as often as they are named."""


def read_yaml(path: str | Path) -> Any:
    """Returns what a YAML file holds.

    Args:
        path: the file.

    Raises:
        ConfigError: if it is not YAML, is not there, or names itself or too much by aliases.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if node is not None and _size(node, {}) > LARGEST:
            raise ConfigError(f"{path}: its aliases stand for more than {LARGEST:,} values")
        return yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        where = getattr(error, "problem_mark", None)
        line = f"line {where.line + 1}: " if where is not None else ""
        raise ConfigError(f"{path}: {line}is not valid YAML") from error
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except ConfigError:
        raise
    except (RecursionError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(f"{path}: is not valid YAML: {error}".splitlines()[0]) from error


def _size(node: Any, known: dict[int, int]) -> int:
    """Returns the number of values that a node stands for; known: of nodes, 0 while inside one."""
    if id(node) in known:
        if known[id(node)] == 0:
            raise RecursionError("it holds itself")
        return known[id(node)]
    known[id(node)] = 0
    total = 1
    if isinstance(node, yaml.MappingNode):
        total += sum(_size(key, known) + _size(value, known) for key, value in node.value)
    elif isinstance(node, yaml.SequenceNode):
        total += sum(_size(one, known) for one in node.value)
    known[id(node)] = total
    return total
