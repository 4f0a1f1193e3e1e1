"""What can be said of a training's files before torch is imported."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from longseq.core.files import EARLY_BYTES, require_file
from longseq.genomics.data.fasta import Genome
from longseq.genomics.data.samples import SAMPLES


def check(arguments: Mapping[str, Any]) -> None:
    """Checks the files of a training, and reads them where that is quick.

    Args:
        arguments: of ``GenomeData``, as they were typed.

    Raises:
        DataError: if one cannot be used.
    """
    given, bed = arguments.get("fasta"), arguments.get("bed")
    if isinstance(bed, str):
        require_file(bed, "BED file")
    if isinstance(given, str) and given.startswith("[") and not Path(given).exists():
        given = [one.strip(" '\"") for one in given.strip("[]").split(",")]
    for path in given if isinstance(given, list) else [given]:
        if not isinstance(path, str) or (path in SAMPLES.names() and not Path(path).exists()):
            continue
        if require_file(path, "genome file", SAMPLES.names()).stat().st_size <= EARLY_BYTES:
            Genome(path).validate()
