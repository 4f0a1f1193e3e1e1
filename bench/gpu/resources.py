"""What the CUDA kernels take of a multiprocessor, as NVRTC compiles them: registers, spills, local
memory.

Needs NVRTC and no GPU. What a compiler does with registers changes from version to version, so
these figures are a report; the tests assert a bound on local memory that leaves room
(``LOCAL_MEMORY_LIMIT``).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any
from unittest.mock import patch

import torch

from longseq.core.kernels import nvrtc
from longseq.core.ops import cuda_calls
from longseq.core.ops.causal_conv1d import arguments as conv_arguments
from longseq.core.ops.causal_conv1d import cuda as conv
from longseq.core.ops.linear_scan import cuda as linear
from longseq.core.ops.selective_scan import arguments as scan_arguments
from longseq.core.ops.selective_scan import cuda as scan
from longseq.core.ops.slstm import arguments as slstm_arguments
from longseq.core.ops.slstm import cuda as slstm

LOCAL_MEMORY_LIMIT = 56
"""Bytes of local memory per thread that a kernel may use: 14 registers' worth.

A few spilled registers are one compiler's choice and are read from the L1 cache: NVRTC 13.0.88
takes up to 32 bytes for them. What must never happen is that an array over states leaves the
registers. The smallest that a thread keeps, 8 positions by 2 states in float32, is 64 bytes.
"""
ARCHITECTURES = (80, 90, 100)

_USAGE = re.compile(
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes "
    r"spill loads"
)
_REGISTERS = re.compile(r"Used (\d+) registers")

Source = tuple[str, tuple[tuple[str, Any], ...]]
"""A source's name, and its macros in order."""


@dataclass(frozen=True)
class Usage:
    """What one kernel takes, from the compiler's log.

    Attributes:
        registers: per thread.
        local_memory: bytes per thread (the stack frame).
        spill_stores: bytes per thread.
        spill_loads: bytes per thread.
    """

    registers: int
    local_memory: int
    spill_stores: int
    spill_loads: int


def usages(log: str) -> dict[str, Usage]:
    """Returns what every kernel of a compilation takes.

    Args:
        log: that ``nvrtc.compile_cubin`` returned.

    Raises:
        ValueError: if a kernel's figures are not in the log.
    """
    found = {}
    for part in log.split("Compiling entry function ")[1:]:
        kernel = part.split("'")[1]
        memory, registers = _USAGE.search(part), _REGISTERS.search(part)
        if memory is None or registers is None:
            raise ValueError(f"the compiler's log does not say what {kernel} takes: {part}")
        sizes = (int(memory[name]) for name in ("stack", "stores", "loads"))
        found[kernel] = Usage(int(registers[1]), *sizes)
    return found


def _launch_scan(
    batch: int, width: int, states: int, dtype: torch.dtype, complex_states: bool = False
) -> None:
    u = torch.zeros(batch, 1, width, dtype=dtype)
    A = torch.zeros(width, states, dtype=torch.complex64 if complex_states else torch.float32)
    maps = torch.zeros(batch, 1, 1, states, dtype=A.dtype if complex_states else dtype)
    state = torch.zeros(batch, width, states, dtype=A.dtype)
    vector, saved = torch.zeros(width), torch.zeros(batch, scan.saved_size(1, A))
    call = scan_arguments.Arguments(u, u, A, maps, maps, vector, u, vector, state, None, True)
    scan.forward(u, state, saved, call)
    scan.backward(u, state, call, saved)


def _launch_walks() -> None:
    x, past = (
        torch.zeros(1, 2, 64, dtype=torch.bfloat16),
        torch.zeros(1, 3, 64, dtype=torch.bfloat16),
    )
    conv.backward(x, conv_arguments.Arguments(x, torch.zeros(64, 4), None, past, None, True))
    for dtype in (torch.float32, torch.complex64):
        h = torch.zeros(1, 2, 64, dtype=dtype)
        linear.backward(h, h, h[:, 0], h, h, None, h)
    linear.forward(h, h, h, None)
    gates, state, hs = (
        torch.zeros(4, 2, 4, 4, 64),
        torch.zeros(4, 4, 4, 64),
        torch.zeros(4, 2, 4, 64),
    )
    recurrent = torch.zeros(4, 256, 64)
    call = slstm_arguments.Arguments(gates, recurrent, state, None)
    slstm.forward(hs, state, torch.zeros(7, 2, 4, 4, 64), call)


VARIANTS: dict[str, Callable[[], None]] = {
    "wide bf16": lambda: _launch_scan(16, 1536, 16, torch.bfloat16),
    "walks": _launch_walks,
    "narrow float": lambda: _launch_scan(1, 768, 16, torch.float32),
    "many states": lambda: _launch_scan(16, 1536, 64, torch.bfloat16),
    "complex": lambda: _launch_scan(16, 1536, 8, torch.float32, complex_states=True),
}
"""Calls whose kernels are looked at, by name."""


@contextmanager
def recorded() -> Iterator[dict[Source, set[str]]]:
    """Writes launches down instead of making them, as they would be on an H100.

    Yields:
        Names of kernels by source and macros, filled while the block runs.
    """
    seen: dict[Source, set[str]] = {}

    def launch(
        name: str, kernel: str, defines: Mapping[str, Any], *rest: Any, **named: Any
    ) -> None:
        seen.setdefault((name, tuple(sorted(defines.items()))), set()).add(kernel)

    with (
        patch.object(nvrtc, "launch", launch),
        patch.object(cuda_calls, "multiprocessors", lambda device: 132),
        patch.object(slstm, "shared_limit", lambda device: 227 * 1024),
    ):
        yield seen


def compile_variant(variant: str, architecture: int) -> dict[str, Usage]:
    """Compiles every source of a variant.

    Args:
        variant: of ``VARIANTS``.
        architecture: compute capability times ten.

    Returns:
        What each kernel that the variant starts takes; the larger figure where macros make several.

    Raises:
        BackendError: if a source does not compile.
        KeyError: if a kernel that is started is not in what was compiled.
    """
    with recorded() as seen:
        VARIANTS[variant]()
    found: dict[str, Usage] = {}
    for (name, defines), kernels in seen.items():
        made = usages(nvrtc.compile_cubin(name, dict(defines), architecture)[1])
        for kernel in kernels:
            pairs = zip(
                asdict(made[kernel]).values(), asdict(found.get(kernel, made[kernel])).values()
            )
            found[kernel] = Usage(*(max(pair) for pair in pairs))
    return found


def report(architectures: Sequence[int] = ARCHITECTURES) -> list[dict[str, Any]]:
    """Compiles everything and prints a line per kernel.

    Args:
        architectures: compute capabilities times ten.

    Returns:
        A row per variant, architecture and kernel, with the compiler's version.
    """
    version = ".".join(map(str, nvrtc.version()))
    print(f"registers and local memory per thread, NVRTC {version}:")
    rows = []
    for variant in VARIANTS:
        for architecture in architectures:
            for kernel, usage in sorted(compile_variant(variant, architecture).items()):
                where = {"variant": variant, "architecture": architecture, "kernel": kernel}
                rows.append({**where, **asdict(usage), "nvrtc": version})
                print(line(rows[-1]), flush=True)
    return rows


def line(row: Mapping[str, Any]) -> str:
    """Returns a row of ``report`` in words."""
    spills = row["spill_stores"] + row["spill_loads"]
    spilled = f", {row['spill_stores']} + {row['spill_loads']} bytes of spills" if spills else ""
    return (
        f"  {row['variant']}, sm_{row['architecture']}, {row['kernel']}: {row['registers']} "
        f"registers, {row['local_memory']} bytes of local memory{spilled}"
    )
