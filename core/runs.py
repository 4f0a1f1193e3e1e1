"""Where trainings lie: the newest checkpoint of a domain, wherever its runs were told to go."""

from __future__ import annotations

import json
from pathlib import Path

from longseq.core.errors import DataError
from longseq.core.files import atomic_path, cache_dir

_KEPT = 200  # working folders that are remembered
_PATTERNS = ("*/version_*/checkpoints/last*.ckpt", "checkpoints/last*.ckpt")


def remember_root(domain: str, root: str | Path) -> None:
    """Notes where runs go that are started in the current folder, if it is not the usual place.

    Where nothing can be noted (no home folder, a full disk), ``last`` finds the usual place alone.

    Args:
        domain: its name.
        root: ``default_root_dir`` of a training.
    """
    here, there = str(Path.cwd()), str(Path(root).expanduser().resolve())
    if there == str(Path(f"outputs/{domain}").resolve()):
        return
    try:
        known = _read(domain)
        roots = [one for one in known.pop(here, []) if one != there]
        known[here] = [*roots, there][-_KEPT:]
        with atomic_path(_file(domain)) as temporary:
            temporary.write_text(json.dumps(dict(list(known.items())[-_KEPT:])), encoding="utf-8")
    except (OSError, DataError):
        return


def known_roots(domain: str) -> list[Path]:
    """Returns the folders of a domain's runs that were started in the current folder.

    Args:
        domain: its name.
    """
    try:
        noted = _read(domain).get(str(Path.cwd()), [])
    except (OSError, DataError):
        noted = []
    return [Path(f"outputs/{domain}"), *map(Path, noted)]


def newest_checkpoint(*folders: str | Path) -> str:
    """Returns the ``last.ckpt`` written last in one of some output folders.

    Args:
        *folders: for example ``outputs/genomics``.

    Raises:
        DataError: if there is none.
    """
    files = [file for one in folders for pattern in _PATTERNS for file in Path(one).glob(pattern)]
    if not files:
        hint = "give --ckpt_path a file"
        raise DataError("holds no last.ckpt to go on from", path=folders[0], hint=hint)
    return str(max(files, key=lambda file: file.stat().st_mtime))


def _file(domain: str) -> Path:
    return cache_dir("runs") / f"{domain}.json"


def _read(domain: str) -> dict[str, list[str]]:
    """Returns what was noted: working folder → roots; nothing if the note is damaged."""
    file = _file(domain)
    try:
        content = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    except ValueError:
        return {}
    if not isinstance(content, dict):
        return {}
    return {
        str(here): [str(one) for one in roots]
        for here, roots in content.items()
        if isinstance(roots, list)
    }
