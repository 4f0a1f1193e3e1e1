"""Sizes that no machine can hold are refused before a model of them is built."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)

from longseq.core.checkpoints.contents import COUNT, is_size
from longseq.core.errors import ConfigError, is_out_of_memory

MOST = {"count": 10_000, "width": 2**27, "processes": 1_024}
"""The largest count of layers, heads and the like, any other size, and number of processes."""


def check_asked(values: Mapping[str, Any], option: str) -> None:
    """Checks the sizes that a user asks for: a typing error of many digits would fill the memory.
    What they are of is told by their names, as for a checkpoint's in ``contents.check_sizes``.

    Args:
        values: a class's arguments by name.
        option: what stands before them on the command line.

    Raises:
        ConfigError: naming the first that is too large.
    """
    for name, value in values.items():
        kind = "count" if COUNT.search(name) else "width"
        kind = "processes" if name in ("num_workers", "devices") else kind
        if kind == "width" and not (is_size(name) or name in ("batch_size", "length")):
            continue
        for one in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(one, int) and one > MOST[kind]:
                raise ConfigError(f"{option}{name} {one:,}: at most {MOST[kind]:,} are possible")


def free_memory() -> int:
    """Returns the bytes that can still be had of this machine's memory, or of the container's."""
    most = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with contextlib.suppress(OSError, ValueError, IndexError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(one.split()[1] for one in lines if one.startswith("MemAvailable:"))
        most = min(most, int(free) * 1024)
        group = Path("/sys/fs/cgroup")
        used = int((group / "memory.current").read_text())
        most = min(most, int((group / "memory.max").read_text()) - used)
    return most


@contextlib.contextmanager
def within_memory(limit: int | None = None) -> Iterator[None]:
    """Ends the building of a model as soon as its weights alone are more than the memory, before
    they are filled.

    Args:
        limit: bytes; None for what is free.

    Raises:
        ConfigError: naming the size, and what to lower.
    """
    limit = free_memory() if limit is None else limit
    total = 0
    lower = f"{limit / 2**30:.1f} GiB are free; lower model.d_model or model.n_layers"

    def count(module: nn.Module, name: str, value: Tensor | None) -> None:
        nonlocal total
        if value is not None and not value.is_meta:
            total += value.numel() * value.element_size()
        if total > limit:
            raise ConfigError(f"the model's weights alone take more than the memory: {lower}")

    hooks = [
        register_module_parameter_registration_hook(count),
        register_module_buffer_registration_hook(count),
    ]
    try:
        yield
    except Exception as error:  # a constructor may have made a ConfigError of it
        if is_out_of_memory(error):
            raise ConfigError(f"the model does not fit into the memory: {lower}") from error
        raise
    finally:
        for hook in hooks:
            hook.remove()
