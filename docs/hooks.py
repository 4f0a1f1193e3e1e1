"""Pages of the site that are made from sources: the API from docstrings, CONTRIBUTING and
CHANGELOG."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {
    "core/mixers": "Mixers",
    "core/ops": "Operators",
    "core/training": "Training",
    "core/checkpoints": "Checkpoints",
    "core/compat": "Other packages' functions",
    "core": "Core",
    "genomics": "Genomics",
    "timeseries": "Time series",
    "vision": "Vision",
    "audio": "Audio",
    "weather": "Weather and climate",
}
"""Folders, and the titles of their API pages. A module is on the page of the longest folder that
holds it."""
HIDDEN = ("core/kernels", "core/bench", "core/commands", "core/shell", "core/report")
COPIED = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}


def has_public(file: Path) -> bool:
    """Returns whether a module defines a function or class that is not private."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    kinds = (ast.FunctionDef, ast.ClassDef)
    return any(isinstance(node, kinds) and not node.name.startswith("_") for node in tree.body)


def modules(folder: str) -> Iterator[str]:
    """Yields the import names of the public modules that belong to a folder's page, sorted."""
    for file in sorted((ROOT / folder).rglob("*.py")):
        where = file.relative_to(ROOT)
        inner = where.parent.as_posix()
        owner = max((name for name in PACKAGES if f"{inner}/".startswith(f"{name}/")), key=len)
        private = any(part.startswith("_") for part in where.with_suffix("").parts)
        hidden = any(f"{inner}/".startswith(f"{name}/") for name in HIDDEN)
        if owner == folder and not private and not hidden and has_public(file):
            yield ".".join(("longseq", *where.with_suffix("").parts))


def page(folder: str) -> str:
    """Returns the API page of a folder in Markdown."""
    parts = [f"# {PACKAGES[folder]}: API\n"]
    parts += [f"::: {name}\n    options: {{heading_level: 2}}\n" for name in modules(folder)]
    return "\n".join(parts)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the generated pages, and the API pages to the navigation."""
    for folder in PACKAGES:
        name = f"api/{folder.replace('/', '-')}.md"
        files.append(File.generated(config, name, content=page(folder)))
    for source, name in COPIED.items():
        text = (ROOT / source).read_text(encoding="utf-8").replace("](docs/", "](")
        files.append(File.generated(config, name, content=text))
    return files


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Completes the navigation with what is generated."""
    assert config.nav is not None
    api: list[Any] = [
        {title: f"api/{name.replace('/', '-')}.md"} for name, title in PACKAGES.items()
    ]
    config.nav += [{"API": api}, {"Contributing": "contributing.md"}, {"Changes": "changelog.md"}]
    return config
