"""Log-likelihood of every base of a genome: streamed with a carried state, in constant memory, to a
table or a track."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from longseq.core.checks import check_positive
from longseq.core.command_line import CommandParser, add_device
from longseq.core.errors import ConfigError
from longseq.core.tables import SUFFIXES, check_table
from longseq.genomics.data.annotation import own_features, read_features
from longseq.genomics.data.collection import Collection
from longseq.genomics.data.fasta import Genome
from longseq.genomics.data.regions import chosen
from longseq.genomics.data.samples import SAMPLES
from longseq.genomics.data.splits import Interval
from longseq.genomics.data.tokenizer import is_base
from longseq.genomics.masked_scores import HIDE_EVERY, masked_scores
from longseq.genomics.models.language_model import DNALanguageModel
from longseq.genomics.models.masked_model import MaskedDNAModel
from longseq.genomics.records import RecordCosts
from longseq.genomics.scorers import CKPT_HELP, load_reader, model_file
from longseq.genomics.streaming import DEFAULT_WINDOW, Chunk, bunches, stream_log_probs
from longseq.genomics.tracks import (
    FeatureSums,
    ScoredChunk,
    check_track,
    track_order,
    write_scores,
)

__all__ = ["ScoredChunk", "score_strands", "stream_log_likelihood", "write_scores"]

_GIVEN = {
    "+": "all bases before it",
    "-": "all bases after it, on the other strand",
    "both": "the bases before it and those after it, the mean of the two logarithms",
}


def stream_log_likelihood(
    model: DNALanguageModel,
    genome: Genome | Collection,
    chunk: int = 65536,
    intervals: Sequence[Interval] | None = None,
    window: int | None = None,
) -> Iterator[ScoredChunk]:
    """Scores a genome in one pass; see ``streaming`` for what is carried from chunk to chunk.

    Args:
        model: a causal language model, in evaluation mode.
        genome: the sequence.
        chunk: bases read at once; memory grows with it, the result does not depend on it.
        intervals: what to score, each from an empty state; every record as a whole if None.
        window: positions at once for models that cannot carry a state; their own reach if None.
    """
    for part in stream_log_probs(model, genome, intervals, chunk, window):
        yield ScoredChunk(part.chrom, part.start, part.ids, _chosen(part))


def score_strands(
    model: DNALanguageModel | MaskedDNAModel,
    genome: Genome | Collection,
    intervals: Sequence[Interval],
    strand: str = "+",
    chunk: int = 65536,
    window: int | None = None,
    every: int = HIDE_EVERY,
) -> Iterator[ScoredChunk]:
    """Scores intervals on a strand, or on both.

    On the other strand a base is predicted from those after it; a region's scores there, or those
    of a bunch of short regions, are kept until they can be turned round, in 4 bytes per base.

    Args:
        model: a causal or masked language model, in evaluation mode.
        genome: the sequence.
        intervals: what to score.
        strand: "+", "-", or "both" for the mean of the two (of one, at a region's ends).
        chunk: bases read at once.
        window: see ``stream_log_likelihood``, and ``masked_scores``.
        every: K, of a masked model: see ``masked_scores``.

    Yields:
        Bases in the order of the genome, whatever the strand.
    """
    if isinstance(model, MaskedDNAModel):
        yield from _masked_chunks(model, genome, intervals, strand, chunk, window, every)
        return
    if strand == "+":
        yield from stream_log_likelihood(model, genome, chunk, intervals, window)
        return
    for bunch in bunches(intervals, chunk):
        firsts = np.cumsum([0, *map(len, bunch)])
        back = np.empty(firsts[-1], np.float32)
        for i, part in enumerate(stream_log_probs(model, genome, bunch, chunk, window, "-")):
            which = min(i, len(bunch) - 1)  # only an interval that is alone has several chunks
            low = int(firsts[which]) + part.start - bunch[which].start
            back[low : low + len(part.ids)] = _chosen(part)[::-1]
        if strand == "both":
            forward = stream_log_likelihood(model, genome, chunk, bunch, window)
        else:
            forward = _unscored(genome, bunch, chunk)
        done = 0
        for piece in forward:
            pair = np.stack([piece.log_likelihood, back[done : done + len(piece.ids)]])
            done += len(piece.ids)
            known = np.isfinite(pair).sum(0)
            mean = np.where(np.isfinite(pair), pair, 0).sum(0) / np.maximum(known, 1)
            values = np.where(known > 0, mean, np.nan).astype(np.float32)
            yield ScoredChunk(piece.chrom, piece.start, piece.ids, values)


def _masked_chunks(
    model: MaskedDNAModel,
    genome: Genome | Collection,
    intervals: Sequence[Interval],
    strand: str,
    chunk: int,
    window: int | None,
    every: int,
) -> Iterator[ScoredChunk]:
    """Yields what a masked model says, several blocks of a window at once."""
    check_positive("chunk", chunk)
    found = masked_scores(model, genome, intervals, every, window, strand)
    for one in intervals:
        start, ids, scores = one.start, [], []
        while start < one.end:
            block, tokens, said = next(found)
            ids.append(tokens)
            scores.append(said)
            if block.end - start >= chunk or block.end == one.end:
                yield ScoredChunk(one.chrom, start, np.concatenate(ids), np.concatenate(scores))
                start, ids, scores = block.end, [], []


def _unscored(
    genome: Genome | Collection, intervals: Sequence[Interval], chunk: int
) -> Iterator[ScoredChunk]:
    for one in intervals:
        for start in range(one.start, one.end, chunk):
            ids = genome.fetch(one.chrom, start, min(start + chunk, one.end))
            yield ScoredChunk(one.chrom, start, ids, np.full(len(ids), np.nan, np.float32))


def _chosen(part: Chunk) -> np.ndarray:
    """Returns ln p of each base of a chunk, float32 (n,), NaN for what is no base."""
    tokens = torch.from_numpy(part.ids.astype(np.int64)).to(part.log_probs.device)
    scores = part.log_probs.gather(1, tokens.unsqueeze(1)).squeeze(1).float().cpu().numpy()
    return np.where(is_base(part.ids), scores, np.float32("nan"))


def with_progress(chunks: Iterator[ScoredChunk], total: int, title: str) -> Iterator[ScoredChunk]:
    """Passes chunks on and shows how far they are, on stderr, if that is a terminal."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn(title),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("bases"),
        TimeRemainingColumn(),
    )
    with Progress(
        *columns, console=Console(stderr=True), disable=not sys.stderr.isatty()
    ) as progress:
        bar = progress.add_task(title, total=total)
        for part in chunks:
            yield part
            progress.advance(bar, len(part.ids))


def collected(chunks: Iterator[ScoredChunk], costs: RecordCosts) -> Iterator[ScoredChunk]:
    """Passes chunks on and counts what their records cost."""
    for part in chunks:
        costs.add(part.chrom, part.log_likelihood)
        yield part


def run(argv: Sequence[str]) -> int:
    """Runs ``longseq genomics predict``."""
    parser = CommandParser(
        prog="longseq genomics predict",
        description="Log-likelihood of every base given all bases before it (masked models: those "
        "on both sides), as a table (chrom, position from 0, base, log_likelihood in nats) or a "
        "track.",
    )
    parser.add_argument(
        "genome", help=f"FASTA or GenBank file, or a packaged sample: {', '.join(SAMPLES.names())}"
    )
    parser.add_argument("--ckpt_path", help=CKPT_HELP)
    parser.add_argument(
        "--out", required=True, help=".parquet, .csv, .tsv, .bedgraph or .bw file to write"
    )
    parser.add_argument("--region", help="only record:first-last, from 1 (all records)")
    parser.add_argument("--bed", help="only the regions of a BED file")
    parser.add_argument(
        "--strand",
        default="+",
        choices=("+", "-", "both"),
        help="-: given all bases after it, read on the other strand; both: the mean",
    )
    parser.add_argument(
        "--chunk", type=int, default=65536, help="bases read at once (default 65536)"
    )
    parser.add_argument(
        "--hide_every",
        type=int,
        metavar="K",
        help="masked models: each of K passes over a window hides every K-th base "
        f"({HIDE_EVERY}); 0 hides one base at a time, which costs a pass per base",
    )
    parser.add_argument(
        "--genes", help="features: GFF3, GTF, GenBank, EMBL or BED (those of a GenBank genome)"
    )
    parser.add_argument("--kinds", default="", help="only features of these kinds: gene,tRNA (all)")
    parser.add_argument(
        "--gene_table", help=".csv, .tsv or .parquet to write, a row for each feature"
    )
    parser.add_argument(
        "--plot", help="PNG to write: bits per base along the genome above its genes"
    )
    add_device(parser)
    args = parser.parse_args(argv)
    kind = check_track(args.out)
    if args.plot and kind not in SUFFIXES:
        raise ConfigError(f"--plot is drawn from a table, and {args.out} is a track")
    if args.gene_table:
        check_table(args.gene_table)
    source = SAMPLES.path(args.genome) if args.genome in SAMPLES.names() else Path(args.genome)
    genome = Genome(source)
    genome.validate()
    model, window = load_reader(args.ckpt_path, args.device)
    given = _GIVEN[args.strand]
    every = HIDE_EVERY if args.hide_every is None else args.hide_every
    if isinstance(model, MaskedDNAModel):
        hidden = f"of every {every} one" if every else "one at a time"
        given = f"those on both sides, {window or DEFAULT_WINDOW} at once, hidden {hidden}"
    elif args.hide_every is not None:
        raise ConfigError("--hide_every is for masked models; this one reads in one direction")
    metadata = {
        "genome": Path(source).name,
        "genome_sha256": genome.checksum(),
        "checkpoint": model_file(args.ckpt_path).name,
        "log_likelihood": f"ln of the probability of the base given {given}",
        "position": "0-based",
        "strand": args.strand,
    }
    wanted = chosen(genome, args.region, args.bed)
    intervals = track_order(wanted, genome.records, args.out, args.gene_table)
    kinds = [one for one in args.kinds.split(",") if one]
    genes = (
        read_features(args.genes, genome, kinds)
        if args.genes
        else [one for one in own_features(source, genome) if not kinds or one.kind in kinds]
    )
    if args.gene_table and not genes:
        raise ConfigError("--gene_table needs --genes, or a GenBank or EMBL genome")
    total = sum(len(one) for one in intervals)
    scored = score_strands(model, genome, intervals, args.strand, args.chunk, window, every)
    costs = RecordCosts()
    sums = FeatureSums(genes)
    chunks = with_progress(sums.collected(collected(scored, costs)), total, "scoring")
    bases = write_scores(chunks, args.out, metadata, genome.records)
    costs.print()
    if isinstance(model, MaskedDNAModel):
        print(f"pseudo-log-likelihood: given {given}; not to be set beside a causal model's bits")
    records = len({one.chrom for one in intervals})
    print(f"{args.out}: {bases:,} bases of {records} records")
    if args.gene_table:
        sums.write(args.gene_table)
        print(f"{args.gene_table}: {len(genes):,} features")
    if args.plot:
        from longseq.genomics.plots import plot_scores

        plot_scores(args.out, args.plot, genes)
        print(args.plot)
    return 0
