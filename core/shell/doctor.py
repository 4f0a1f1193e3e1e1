"""``longseq doctor``: what is installed, which kernels run here and how fast, and why others do
not."""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from longseq.core import __version__, plugins
from longseq.core.command_line import CommandParser
from longseq.core.domain import list_domains, load_domain

_DRIVER = Path("/proc/driver/nvidia/version")
Row = tuple[str, str, str]
"""Section, item, value."""


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(errors="replace").splitlines():
            if line.lower().startswith(("model name", "hardware", "cpu model")):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _memory() -> str:
    try:
        pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
        free = os.sysconf("SC_AVPHYS_PAGES") * size
    except (AttributeError, ValueError, OSError):
        return "unknown"
    return f"{pages * size / 2**30:.1f} GiB, {free / 2**30:.1f} GiB free"


def machine_rows() -> list[Row]:
    """Returns versions, processor, memory and CUDA."""
    import torch

    rows: list[Row] = [
        ("versions", "longseq", __version__),
        ("versions", "python", platform.python_version()),
    ]
    rows += [("versions", name, _version(name)) for name in ("torch", "lightning", "numpy")]
    rows += [
        ("machine", "CPU", cpu_model()),
        ("machine", "threads", f"{torch.get_num_threads()} of {os.cpu_count()}"),
    ]
    rows.append(("machine", "memory", _memory()))
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        cuda = f"{', '.join(names)} (CUDA {torch.version.cuda})"
    else:
        cuda = f"not available: {_why_no_device(torch.version.cuda)}"
    rows.append(("machine", "CUDA", cuda))
    return rows


def _why_no_device(built_for: str | None) -> str:
    """Returns why torch finds no CUDA device, and what to install.

    Args:
        built_for: torch's CUDA version, None if it is built without.
    """
    if built_for is None:
        return (
            "this torch is built without CUDA; "
            "to use an NVIDIA GPU, install a PyTorch built for CUDA"
        )
    if not _DRIVER.exists():
        return "no NVIDIA driver on this machine; to use a GPU, install it"
    found = re.search(r"\d+\.\d+(\.\d+)?", _DRIVER.read_text(errors="replace"))
    return (
        f"this torch, built for CUDA {built_for}, finds no usable device by NVIDIA driver "
        f"{found[0] if found else 'of unknown version'}: if there is a GPU, update the driver, or "
        f"install a "
        "PyTorch built for an older CUDA"
    )


def cpu_kernels() -> tuple[str | None, str]:
    """Returns the instruction set of the native CPU kernels (None if they do not load), and the
    reason."""
    try:
        kernels = importlib.import_module("longseq.core._cpu")
        return str(kernels.isa()), ""
    except (ImportError, OSError, AttributeError) as error:
        return None, f"{type(error).__name__}: {error}"


def backend_rows() -> list[Row]:
    """Returns each backend of the operators, and why one is not available."""
    try:
        availability = importlib.import_module("longseq.core.ops.availability")
    except ImportError as error:
        return [("backends", "all", f"not available: {error}")]
    return [
        (
            "backends",
            name,
            f"available{f' ({reason})' if reason else ''}" if available else f"no: {reason}",
        )
        for name, available, reason in availability.describe()
    ]


def domain_rows() -> list[Row]:
    """Returns for each domain whether what it needs is installed, or the line that installs it."""
    rows: list[Row] = []
    for name in list_domains():
        missing = [
            one for one in load_domain(name).requires if importlib.util.find_spec(one) is None
        ]
        fix = f'needs {", ".join(missing)}: pip install "longseq[{name}]"'
        rows.append(("domains", name, fix if missing else "ready"))
    return rows


def plugin_rows() -> list[Row]:
    """Returns the plug-ins of installed packages, and why one does not load."""
    plugins.load_installed()
    states = [(one, plugins.failure(one)) for one in plugins.installed()]
    return [
        (
            "plug-ins",
            one.name,
            f"{one.value} of {one.package}" + (f", left out: {why}" if why else ""),
        )
        for one, why in states
    ]


def speed_rows(seconds: float = 1.0) -> list[Row]:
    """Returns positions per second of the selective scan on this machine's CPU.

    Args:
        seconds: to measure for, at most.
    """
    import torch

    from longseq.core.errors import BackendError
    from longseq.core.ops.selective_scan import selective_scan

    batch, length, channels, states = 1, 2048, 256, 16
    generator = torch.Generator().manual_seed(0)
    u, delta = (torch.rand(batch, length, channels, generator=generator) for _ in range(2))
    a = -torch.rand(channels, states, generator=generator)
    b, c = (torch.randn(batch, length, states, generator=generator) for _ in range(2))
    try:
        with torch.no_grad():
            selective_scan(u, delta, a, b, c, backend="cpu")
            runs, start = 0, time.perf_counter()
            while runs < 3 or (time.perf_counter() - start < 0.5 * seconds and runs < 1000):
                selective_scan(u, delta, a, b, c, backend="cpu")
                runs += 1
            elapsed = (time.perf_counter() - start) / runs
    except BackendError as error:
        return [("speed", "selective scan", f"not measured: {error}")]
    shape = f"{channels} channels × {states} states, forward, float32, CPU"
    return [("speed", "selective scan", f"{batch * length / elapsed:,.0f} positions/s ({shape})")]


_DTYPES = ("float32", "bfloat16", "float16", "float64")


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="longseq doctor",
        description=__doc__,
        example="longseq doctor --why ssd --device cuda --dtype bfloat16",
    )
    parser.add_argument("--no-speed", action="store_true", help="leave the speed reading out")
    parser.add_argument(
        "--why",
        metavar="OPERATOR",
        help="say which backend would serve an operator, and why not the others",
    )
    parser.add_argument(
        "--dtype", choices=_DTYPES, default="float32", help="with --why: of the call"
    )
    parser.add_argument(
        "--device", help="with --why: cpu or cuda, which need not be there (default: cuda if it is)"
    )
    return parser


def _print(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a table; a first column without a title names sections, each of several rows."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, show_lines=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    last = ""
    for first, *rest in rows:
        if last and first != last and not columns[0]:
            table.add_section()
        table.add_row(first if first != last else "", *rest)
        last = first
    Console(width=None if sys.stdout.isatty() else 120, markup=False).print(table)


def explain(operator: str, dtype: str, device: str | None) -> int:
    """Prints which backend would serve an operator's call, and why not the others.

    Args:
        operator: its name.
        dtype: of the call.
        device: of the call; None for a GPU where there is one.

    Returns:
        0, or 2 for an operator or a device that there is not.
    """
    import torch

    from longseq.core.errors import ConfigError
    from longseq.core.ops.availability import explain

    device = ("cuda" if torch.cuda.is_available() else "cpu") if device is None else device
    try:
        if device.split(":")[0] not in ("cpu", "cuda"):
            raise ConfigError(f"--device must be cpu or cuda, got {device!r}")
        rows = explain(operator, getattr(torch, dtype), device)
    except ConfigError as error:
        print(f"longseq doctor: {error}", file=sys.stderr)
        return 2
    _print(f"{operator}, {dtype} on {device}", ("backend", "state", "why"), rows)
    return 0


def run(argv: Sequence[str]) -> int:
    """Prints the table.

    Args:
        argv: options.

    Returns:
        0; 1 if the native CPU kernels do not load; 2 for an operator that there is not.
    """
    options = _parser().parse_args(list(argv))
    if options.why is not None:
        return explain(options.why, options.dtype, options.device)
    isa, reason = cpu_kernels()
    rows = machine_rows()
    rows.append(("machine", "native kernels", isa if isa is not None else "do not load"))
    rows += backend_rows() + domain_rows() + plugin_rows()
    if not options.no_speed:
        rows += speed_rows()
    _print("longseq doctor", ("", "item", "state"), rows)
    if isa is None:
        print(
            f"The native CPU kernels do not load ({reason}); the slow reference is used instead. "
            f"Reinstall "
            "with a C++17 compiler at hand: pip install --force-reinstall --no-deps longseq "
            "(in a checkout: pip install -e .)",
            file=sys.stderr,
        )
        return 1
    return 0
