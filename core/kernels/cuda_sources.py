"""The CUDA sources: their text, and the parameter structs that they define."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path

SOURCES = Path(__file__).parent / "cuda"


@cache
def source(name: str) -> str:
    """Returns a CUDA source with its own headers in place of their includes.

    Args:
        name: of a file in ``core/kernels/cuda``.
    """
    seen: set[str] = set()

    def inline(name: str) -> str:
        if name in seen:
            return ""
        seen.add(name)
        text = (SOURCES / name).read_text(encoding="utf-8").replace("#pragma once\n", "")
        return re.sub(
            r'^#include "(.+)"$', lambda match: inline(match[1]), text, flags=re.MULTILINE
        )

    return inline(name)


@cache
def fields(name: str, struct: str) -> tuple[str, ...]:
    """Returns the names of the 64-bit fields of a parameter struct, read from the source that
    defines it.

    Args:
        name: the source.
        struct: the struct's name.
    """
    body = source(name).split(f"struct {struct} {{", 1)[1].split("};", 1)[0]
    return tuple(
        field.strip() for line in re.findall(r"i64 ([^;]+);", body) for field in line.split(",")
    )


def parameters(name: str, struct: str, values: Mapping[str, int]) -> ctypes.Array[ctypes.c_int64]:
    """Returns a kernel's parameter struct; fields that are not given are 0.

    Args:
        name: the source.
        struct: the struct's name.
        values: numbers and addresses by field.
    """
    names = fields(name, struct)
    unknown = set(values) - set(names)
    if unknown:
        raise KeyError(f"{name}: {struct} has no field {', '.join(sorted(unknown))}")
    return (ctypes.c_int64 * len(names))(*[int(values.get(field, 0)) for field in names])
