"""``longseq genomics embed``: vectors per base, window or feature, to Parquet or NPY."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import cast

import numpy as np

from longseq.core.command_line import CommandParser, add_device
from longseq.core.errors import ConfigError, DataError
from longseq.core.files import atomic_path, check_writable
from longseq.core.tables import arrow_column, check_table, write_batches, write_rows
from longseq.genomics.data.annotation import Feature, read_features
from longseq.genomics.data.collection import Collection
from longseq.genomics.data.fasta import Genome
from longseq.genomics.data.regions import apart, chosen
from longseq.genomics.data.samples import SAMPLES
from longseq.genomics.data.splits import Interval
from longseq.genomics.embeddings import STRANDS, embed_features, ordered_vectors, windows
from longseq.genomics.progress import progress_bar
from longseq.genomics.scorers import CKPT_HELP, Reader, load_reader, model_file

_ROWS = {"chrom": "", "start": "d", "end": "d", "name": "", "strand": "", "kind": ""}


def _place(one: Feature) -> list[object]:
    return [one.chrom, one.start, one.end, one.name, one.strand, one.kind]


def rows_path(path: str | Path) -> Path:
    """Returns where the places of an NPY file's rows are written: ``x.npy`` → ``x.rows.tsv``."""
    return Path(path).with_suffix(".rows.tsv")


def write_vectors(
    path: str | Path,
    places: Sequence[Feature],
    values: np.ndarray,
    metadata: dict[str, str] | None = None,
) -> None:
    """Writes one vector for each place.

    Args:
        path: .parquet (columns chrom, start, end, name, strand, kind, embedding) or .npy, with the
            places in ``rows_path``.
        places: of the rows.
        values: float32 (places, D).
        metadata: written into the schema of a Parquet file.
    """
    if Path(path).suffix.lower() == ".npy":
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.save(file, values)
        write_rows(rows_path(path), _ROWS, [_place(one) for one in places])
        return
    import pyarrow as pa

    kinds = [pa.int64() if how == "d" else pa.string() for how in _ROWS.values()]
    columns = [
        arrow_column(np.array(one, np.int64) if how == "d" else cast(tuple[str, ...], one))
        for one, how in zip(zip(*map(_place, places)), _ROWS.values())
    ]
    numbers = arrow_column(np.ascontiguousarray(values).ravel())
    vectors = pa.FixedSizeListArray.from_arrays(numbers, values.shape[1])
    fields = [*zip(_ROWS, kinds), ("embedding", vectors.type)]
    schema = pa.schema(fields, metadata=metadata)
    write_batches(path, schema, [pa.Table.from_arrays([*columns, vectors], schema=schema)])


def write_bases(
    path: str | Path,
    model: Reader,
    genome: Genome | Collection,
    intervals: Sequence[Interval],
    strand: str = "+",
    chunk: int = 4096,
    window: int | None = None,
    metadata: dict[str, str] | None = None,
    progress: Callable[[int], object] | None = None,
) -> int:
    """Writes the vector at every base, in the memory of a chunk.

    Args:
        path: .parquet (columns chrom, position, embedding) or .npy, whose intervals stand in
            ``rows_path``.
        model: a causal language model, in evaluation mode.
        genome: the sequence.
        intervals: each is read from an empty state.
        strand: "+", "-" or "both" (the two vectors side by side).
        chunk: positions at once.
        window: see ``Stream``.
        metadata: written into the schema of a Parquet file.
        progress: called with the number of positions read.

    Returns:
        The number of bases.
    """
    target = Path(path)
    folder = target.resolve().parent
    folder.mkdir(parents=True, exist_ok=True)
    parts = ordered_vectors(model, genome, intervals, strand, chunk, window, progress, folder)
    total = sum(map(len, intervals))
    width = model.backbone.d_model * (2 if strand == "both" else 1)
    if target.suffix.lower() == ".npy":
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            header = {"descr": "<f4", "fortran_order": False, "shape": (total, width)}
            np.lib.format.write_array_header_1_0(file, header)
            for part in parts:
                file.write(part.values.astype("<f4").tobytes())
        regions = [Feature(one.chrom, one.start, one.end, ".", "bases") for one in intervals]
        write_rows(rows_path(path), _ROWS, [_place(one) for one in regions])
        return total
    import pyarrow as pa

    vector = pa.list_(pa.float32(), width)
    fields = [("chrom", pa.string()), ("position", pa.int64()), ("embedding", vector)]
    schema = pa.schema(fields, metadata=metadata)

    def tables() -> Iterator[pa.Table]:
        for part in parts:
            at = arrow_column(np.arange(part.start, part.start + len(part.ids)))
            values = arrow_column(np.ascontiguousarray(part.values).ravel())
            rows = pa.FixedSizeListArray.from_arrays(values, width)
            names = arrow_column([part.chrom] * len(at))
            yield pa.Table.from_arrays([names, at, rows], schema=schema)

    write_batches(path, schema, tables())
    return total


def check_output(path: str | Path) -> None:
    """Checks the name of an output before the work for it is done.

    Args:
        path: the file.

    Raises:
        ConfigError: unless it is .parquet or .npy.
    """
    kind = Path(path).suffix.lower()
    if kind not in (".parquet", ".npy"):
        raise ConfigError(f"{path}: embeddings must end in .parquet or .npy")
    if kind == ".parquet":
        check_table(path)
    else:
        check_writable(path)


def run(argv: Sequence[str]) -> int:
    """Runs ``longseq genomics embed``."""
    parser = CommandParser(
        prog="longseq genomics embed",
        description="Writes the output of the model's last layer, one vector per row.",
    )
    parser.add_argument("genome", help="genome file or packaged sample")
    parser.add_argument("--ckpt_path", help=CKPT_HELP)
    parser.add_argument("--out", required=True, help=".parquet or .npy file to write")
    parser.add_argument("--window", type=int, help="a row for each window of so many bases")
    parser.add_argument(
        "--features", help="a row for each feature: GFF3, GTF, GenBank, EMBL or BED"
    )
    parser.add_argument("--kinds", default="", help="only features of these kinds: gene,tRNA (all)")
    parser.add_argument("--pool", default="mean", choices=("mean", "last"), help="of a row's bases")
    parser.add_argument("--region", help="read only record:first-last, from 1 (all records)")
    parser.add_argument("--bed", help="read only the regions of a BED file")
    parser.add_argument(
        "--strand",
        default="+",
        choices=STRANDS,
        help="-: read on the other strand; both: the two vectors side by side; own: each feature "
        "on its own strand",
    )
    parser.add_argument("--chunk", type=int, default=4096, help="bases read at once (default 4096)")
    add_device(parser)
    args = parser.parse_args(argv)
    check_output(args.out)
    if args.window is not None and args.features is not None:
        raise ConfigError("give either --window or --features, not both")
    if args.strand == "own" and not args.features:
        raise ConfigError("--strand own needs --features")
    source = SAMPLES.path(args.genome) if args.genome in SAMPLES.names() else Path(args.genome)
    genome = Genome(source)
    genome.validate()
    model, window = load_reader(args.ckpt_path, args.device)
    intervals = chosen(genome, args.region, args.bed)
    places: list[Feature] | None = None
    if args.window is not None or args.features is not None:
        apart(intervals, genome.records, args.out, "a vector is of one reading of its bases")
    if args.window is not None:
        places = windows(intervals, args.window)
    elif args.features is not None:
        kinds = [one for one in args.kinds.split(",") if one]
        places = _inside(read_features(args.features, genome, kinds), intervals, args.features)
        touched = {one.chrom for one in places}
        intervals = [one for one in intervals if one.chrom in touched]
    metadata = {
        "genome": source.name,
        "genome_sha256": genome.checksum(),
        "checkpoint": model_file(args.ckpt_path).name,
        "strand": args.strand,
        "pool": args.pool if places is not None else "none",
    }
    sides = 1 if args.strand in ("+", "-") else 2
    with progress_bar("embedding", sides * sum(map(len, intervals))) as progress:
        if places is None:
            rows = write_bases(
                args.out,
                model,
                genome,
                intervals,
                args.strand,
                args.chunk,
                window,
                metadata,
                progress,
            )
        else:
            vectors = embed_features(
                model,
                genome,
                places,
                args.pool,
                args.strand,
                intervals,
                args.chunk,
                window,
                progress,
            )
            write_vectors(args.out, places, vectors, metadata)
            rows = len(places)
    print(f"{args.out}: {rows:,} vectors")
    return 0


def _inside(features: Sequence[Feature], intervals: Sequence[Interval], path: str) -> list[Feature]:
    """Returns the features that lie in the intervals as a whole; says how many do not."""
    spans: dict[str, list[Interval]] = {}
    for one in intervals:
        spans.setdefault(one.chrom, []).append(one)
    kept = [
        one
        for one in features
        if all(
            any(k.start <= low and high <= k.end for k in spans.get(one.chrom, ()))
            for low, high in one.spans()
        )
    ]
    if not kept:
        raise DataError("no feature lies in what is read", path=path)
    if len(kept) < len(features):
        print(f"{len(features) - len(kept):,} features outside the regions are left out")
    return kept
