"""Paths of the sequences that ship with the package; their source is in ``genomics/samples/SOURCE.md``."""

from __future__ import annotations

from pathlib import Path

from longseq.core.errors import ConfigError

_FOLDER = Path(__file__).resolve().parent.parent / "samples"
_SAMPLES = {"chlamydia_trachomatis": "chlamydia_trachomatis.gbk.gz", "tiny": "tiny.fa"}


def list_samples() -> list[str]:
    """Returns the names of the packaged samples."""
    return sorted(_SAMPLES)


def sample_path(name: str) -> Path:
    """Returns the path of a packaged sample.

    Args:
        name: a sample's name, ``"chlamydia_trachomatis"`` (a whole genome, 1,042,519 bp, GenBank) or
            ``"tiny"`` (two short FASTA records), or its file name.

    Raises:
        ConfigError: if there is no such sample.
    """
    file = _SAMPLES.get(name, name)
    if file not in _SAMPLES.values():
        raise ConfigError(f"no packaged genomics sample {name!r} (known: {', '.join(list_samples())})")
    return _FOLDER / file
