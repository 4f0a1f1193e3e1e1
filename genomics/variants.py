"""``longseq genomics variants``: VCF in, VCF out, with the log-likelihood ratio of every allele."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from longseq.core.command_line import CommandParser, add_device
from longseq.core.errors import ConfigError
from longseq.core.files import check_writable
from longseq.core.tables import check_table, write_rows
from longseq.genomics.data.samples import SAMPLES
from longseq.genomics.data.vcf import Variant, is_vcf, read_variants
from longseq.genomics.gene_hmm import gene_model, with_genes
from longseq.genomics.gene_model import STOPS
from longseq.genomics.masked_scores import MaskedScorer
from longseq.genomics.progress import progress_bar
from longseq.genomics.scorers import CKPT_HELP, load_scorer, model_file
from longseq.genomics.variant_fields import (
    COMBINED,
    GENE_INFO,
    INFO,
    Fields,
    table_rows,
    write_vcf,
)
from longseq.genomics.variant_scores import WINDOW, Ratio, Scorer, Unit
from longseq.genomics.variant_sites import (
    CONTEXT,
    REASONS,
    Options,
    Scored,
    options_for,
    prepare,
    put,
)

# ---- processes and resuming

_WORKER: dict[str, Any] = {}


def _start(fasta: str, checkpoint: str | None, window: int | None, device: str) -> None:
    torch.set_num_threads(1)
    _WORKER["scorer"] = load_scorer(fasta, checkpoint, window, device)


def _work(unit: Unit) -> dict[int, list[Ratio]]:
    return _WORKER["scorer"].score(unit)


class Progress:
    """Scores that an interrupted run has left beside its output.

    Args:
        out: of the run.
        key: what the scores depend on; those of another key are thrown away.
    """

    def __init__(self, out: str | Path, key: str) -> None:
        self.path = Path(f"{out}.partial")
        self.done: dict[int, dict[int, list[Ratio]]] = {}
        if self.path.exists():
            lines = self.path.read_text().splitlines()
            if lines and lines[0] == json.dumps(key):
                for line in lines[1:]:
                    try:
                        number, scores = json.loads(line)
                    except ValueError:  # cut off while it was written
                        break
                    self.done[number] = {
                        int(index): [Ratio(*one) for one in own] for index, own in scores.items()
                    }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("w")
        self._write(key)
        for number, scores in self.done.items():
            self._write([number, scores])

    def _write(self, value: Any) -> None:
        self._file.write(json.dumps(value) + "\n")
        self._file.flush()

    def add(self, number: int, scores: dict[int, list[Ratio]]) -> None:
        """Keeps the scores of a unit."""
        self._write([number, scores])

    def close(self, finished: bool) -> None:
        """Ends; a finished run needs them no more."""
        self._file.close()
        if finished:
            self.path.unlink()


def run_units(
    work: Sequence[Unit],
    done: dict[int, Any],
    args: argparse.Namespace,
    scorer: Scorer | MaskedScorer,
) -> Iterator[tuple[int, dict[int, list[Ratio]]]]:
    """Yields number and scores of every unit that is not done, from one process or several."""
    left = [number for number in range(len(work)) if number not in done]
    if args.workers <= 1 or len(left) < 2:
        for number in left:
            yield number, scorer.score(work[number])
        return
    start = (str(args.fasta), args.ckpt_path, args.window, args.device)
    with ProcessPoolExecutor(args.workers, get_context("spawn"), _start, start) as pool:
        yield from zip(left, pool.map(_work, [work[number] for number in left]))


# ---- the command


def parser() -> argparse.ArgumentParser:
    """Returns the command's arguments."""
    made = CommandParser(
        prog="longseq genomics variants",
        description="Scores every ALT by ln p(ALT and the bases after it) - ln p(REF and the same "
        "bases) under a language model; under a masked one, substitutions by ln p(ALT) - ln p(REF) "
        "while the site is hidden. Below 0, the reference is the likelier.",
        epilog=f"INFO: {', '.join(INFO | GENE_INFO)}. Why an ALT is not scored: "
        + "; ".join(f"{key}, {text}" for key, text in REASONS.items())
        + ".",
    )
    made.add_argument("vcf", help="VCF file, plain, gzip or bgzip")
    made.add_argument("--fasta", required=True, help="the reference: FASTA, GenBank or a sample")
    made.add_argument("--ckpt_path", help=CKPT_HELP)
    made.add_argument("--out", required=True, help=".vcf, .vcf.gz, .csv, .tsv or .parquet")
    made.add_argument(
        "--context",
        type=int,
        help=f"bases before a site: this many to twice as many ({CONTEXT})",
    )
    made.add_argument(
        "--window",
        type=int,
        help=f"bases after REF ({WINDOW}); of a masked model, bases read around it (as trained)",
    )
    made.add_argument("--strand", default="both", help="both (default), + or -")
    made.add_argument(
        "--combine",
        default="mean",
        choices=sorted(COMBINED),
        help="LSQ_LLR is the mean of the strands (default) or the lower: what breaks a reading "
        "frame is often seen from one side alone",
    )
    made.add_argument(
        "--site_weight",
        type=float,
        metavar="W",
        help="add LSQ_SCORE, W LSQ_SITE + LSQ_AFTER, to rank by: 0.25 (with --combine low) tells "
        "what breaks a reading frame better than the ratio, in which both count alike",
    )
    made.add_argument(
        "--genes_from",
        help="score by a hidden Markov model of genes too, learnt without annotation from the "
        "reference (give `reference`) or from other genomes: a.fa,b.fa",
    )
    made.add_argument("--code", type=int, choices=sorted(STOPS), help="its genetic code (11)")
    made.add_argument("--workers", type=int, default=1, help="processes (1)")
    add_device(made)
    return made


def run(argv: Sequence[str]) -> int:
    """Runs ``longseq genomics variants``."""
    args = parser().parse_args(argv)
    if is_vcf(args.out):
        check_writable(args.out)
    else:
        check_table(args.out)
    if Path(args.out).exists() and Path(args.out).samefile(args.vcf):
        raise ConfigError("--out must be another file than the input")
    args.fasta = SAMPLES.path(args.fasta) if args.fasta in SAMPLES.names() else Path(args.fasta)
    scorer = load_scorer(args.fasta, args.ckpt_path, args.window, args.device)
    options = options_for(scorer, args.context, args.strand)
    if args.code is not None and args.genes_from is None:
        raise ConfigError("--code is of the model of genes: give --genes_from too")
    genes = gene_model(args.genes_from, scorer.genome, args.code or 11)
    fields = Fields(scorer.masked, args.combine, args.site_weight, genes is not None)
    variants = list(read_variants(args.vcf))
    work, found, places = prepare(variants, scorer.genome, options, scorer.masked, scorer.symmetric)
    both = scorer.symmetric and options.strand == "both"
    key = _key(args, options)
    progress, finished = Progress(args.out, key), False
    if progress.done:
        print(f"going on: {len(progress.done):,} of {len(work):,} blocks are done")
    try:
        for number, scores in progress.done.items():
            put(found, places, work[number].strand, scores, both)
        for number, scores in with_bar(run_units(work, progress.done, args, scorer), work):
            put(found, places, work[number].strand, scores, both)
            progress.add(number, scores)
        if genes is not None:
            found = with_genes(genes, variants, found, scorer.genome)
        if is_vcf(args.out):
            settings = {"masked": True} if scorer.masked else {"context": options.context}
            note = json.dumps({"model": key[:12], **settings, "window": options.window})
            write_vcf(args.vcf, args.out, found, note, fields)
        else:
            write_rows(args.out, fields.columns(), table_rows(variants, found, fields))
        finished = True
    finally:
        progress.close(finished)
    report(args.out, variants, found, work, options, scorer)
    return 0


def report(
    out: str,
    variants: Sequence[Variant],
    found: Sequence[Scored],
    work: Sequence[Unit],
    options: Options,
    scorer: Scorer | MaskedScorer,
) -> None:
    """Prints what was scored, what was not and why, and what it cost."""
    reasons = [reason for one in found for reason in one.reasons]
    scored = reasons.count("")
    positions = sum(scorer.positions(unit) for unit in work)
    print(f"{out}: {len(variants):,} records, {scored:,} of {len(reasons):,} alleles scored")
    for reason in REASONS:
        if count := reasons.count(reason):
            print(f"  {count:,} not scored: {reason} ({REASONS[reason]})")
    if scored and scorer.masked:
        print(f"{positions:,} positions were run, at most {options.window:,} around each site")
    elif scored:
        rows = len(options.strands) * sum(
            1 + one.reasons.count("") for one in found if "" in one.reasons
        )
        naive = rows * (options.context + options.window)
        print(f"{positions:,} positions were run, one by one it would be {naive:,}")


def with_bar(results: Iterator[Any], work: Sequence[Unit]) -> Iterator[Any]:
    """Passes results on and shows how far they are, on stderr, if that is a terminal."""
    with progress_bar("scoring", len(work)) as progress:
        for one in results:
            yield one
            progress(1)


def _key(args: argparse.Namespace, options: Options) -> str:
    """Returns a checksum of all that the scores depend on."""
    found = hashlib.sha256(f"two parts, without what is shared, {options!r}".encode())
    for path in (args.vcf, args.fasta, model_file(args.ckpt_path)):
        with Path(path).open("rb") as file:
            found.update(hashlib.file_digest(file, "sha256").digest())
    return found.hexdigest()
