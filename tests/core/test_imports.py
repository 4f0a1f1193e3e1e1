"""Imports inside the core go one way, lazy ones included: no circle, and none of a floor above."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2] / "core"
# From the ground up; a module stands on the floor of its longest prefix.
FLOORS = (
    (
        "_cpu",
        "arrays",
        "checks",
        "command_line",
        "curves",
        "errors",
        "exports",
        "figures",
        "files",
        "lean_imports",
        "process",
        "results",
        "runs",
        "samples",
        "tables",
    ),
    ("yaml_files",),
    ("plugins", "registry", "domain", "formats"),
    ("kernels",),
    ("ops",),
    ("mixers",),
    ("mlp", "norms", "backbone", "parallel"),
    ("checkpoints", "compare", "compare_entries", "generation", "language_model", "training"),
    ("report", "testing", "compat"),
    ("shell",),
)


def modules() -> dict[str, Path]:
    """Every module of the core by its name below ``longseq.core``; a package by its folder's."""
    found = {}
    for file in ROOT.rglob("*.py"):
        parts = file.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    assert len(found) > 100, ROOT
    return found


def imports(file: Path, known: dict[str, Path]) -> set[str]:
    """The core's modules that a file imports anywhere in it, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        names: list[str] = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            names = [one.value for one in node.args if isinstance(one, ast.Constant)]
        for name in names:
            if name.startswith("longseq.core."):
                inner = name.removeprefix("longseq.core.")
                found.add(inner if inner in known else inner.rpartition(".")[0])
    return found - {""}


def floor(module: str) -> int:
    """The number of a module's floor.

    Raises:
        KeyError: for a module without one: give it one in ``FLOORS``.
    """
    parts = module.split(".")
    for size in range(len(parts), 0, -1):
        for number, prefixes in enumerate(FLOORS):
            if ".".join(parts[:size]) in prefixes:
                return number
    raise KeyError(module)


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """The strongly connected components of more than one module (Tarjan's algorithm)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for to in graph[node]:
            if to not in index:
                visit(to)
                low[node] = min(low[node], low[to])
            elif to in stack:
                low[node] = min(low[node], index[to])
        if low[node] == index[node]:
            at = stack.index(node)
            if len(stack) - at > 1 or node in graph[node]:
                found.append(sorted(stack[at:]))
            del stack[at:]

    for node in graph:
        if node not in index:
            visit(node)
    return found


def graph() -> dict[str, set[str]]:
    known = modules()
    return {name: imports(file, known) & known.keys() for name, file in known.items()}


def test_the_walk_sees_circles_and_lazy_imports(tmp_path: Path) -> None:
    file = tmp_path / "lazy.py"
    lines = (
        "from longseq.core.ops import backends",
        "importlib.import_module('longseq.core.errors')",
    )
    file.write_text("def f():\n" + "".join(f"    {line}\n" for line in lines))
    known = modules()
    assert imports(file, known) == {"ops.backends", "errors"}
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]
    assert floor("ops.ssd.triton") > floor("kernels.triton.ssd") and floor("ops.ssd") < floor(
        "mixers.mamba"
    )


def test_no_circle() -> None:
    assert circles(graph()) == []


def test_nothing_imports_a_floor_above() -> None:
    upwards = [
        f"{name} -> {to}"
        for name, targets in graph().items()
        if name
        for to in sorted(targets)
        if floor(to) > floor(name)
    ]
    assert upwards == []


def test_no_mixer_looks_below_an_operator() -> None:
    """Which kernel serves is the operators' business: a mixer passes ``backend`` on."""
    inner = re.compile(
        r"kernels\b.*|ops\.\w+_calls|ops\.\w+\.(cpu|cuda|triton|torch_op|chunked|composed)"
    )
    found = [
        f"{name} -> {to}"
        for name, targets in graph().items()
        for to in targets
        if inner.fullmatch(to)
    ]
    assert [one for one in found if one.startswith(("mixers", "backbone"))] == []
    assert any(one.startswith("ops.ssd") for one in found)
