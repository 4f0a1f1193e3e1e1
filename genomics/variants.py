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

import numpy as np
import torch

from longseq.core.command_line import CommandParser, add_device
from longseq.core.errors import ConfigError
from longseq.core.tables import check_table, write_rows
from longseq.genomics.data.samples import SAMPLES
from longseq.genomics.data.vcf import (
    Variant,
    is_vcf,
    open_output,
    read_lines,
    read_variants,
    with_header,
    with_info,
)
from longseq.genomics.gene_hmm import gene_model, with_genes
from longseq.genomics.gene_model import STOPS
from longseq.genomics.masked_scores import MaskedScorer
from longseq.genomics.scorers import CKPT_HELP, load_scorer, model_file
from longseq.genomics.variant_scores import WINDOW, Scorer, Unit
from longseq.genomics.variant_sites import (
    CONTEXT,
    REASONS,
    Combine,
    Options,
    Scored,
    options_for,
    prepare,
    put,
)

_RATIO = "ln p(ALT and what follows) - ln p(REF and what follows)"
_COMBINED: dict[Combine, str] = {"mean": "mean", "low": "lower"}
_MASKED_RATIO = "ln p(ALT) - ln p(REF) at the hidden site, given both sides"
INFO = {
    "LSQ_LLR": "{ratio}, the {combine} of the strands",
    "LSQ_FWD": "{ratio}, forward strand",
    "LSQ_REV": "{ratio}, reverse strand",
    "LSQ_SKIP": "Why an ALT was not scored, . if it was: " + ", ".join(REASONS),
}
GENE_INFO = {
    "LSQ_GENE": "ln p(ALT and what lies around it) - ln p(REF and the same) under a hidden Markov "
    "model of genes",
    "LSQ_MIX": "LSQ_LLR + LSQ_GENE",
}
COLUMNS = {
    "chrom": "",
    "pos": "d",
    "id": "",
    "ref": "",
    "alt": "",
    "llr": ".6f",
    "llr_forward": ".6f",
    "llr_reverse": ".6f",
    "llr_gene": ".6f",
    "llr_mix": ".6f",
    "reason": "",
}


# ---- processes and resuming

_WORKER: dict[str, Any] = {}


def _start(fasta: str, checkpoint: str | None, window: int | None, device: str) -> None:
    torch.set_num_threads(1)
    _WORKER["scorer"] = load_scorer(fasta, checkpoint, window, device)


def _work(unit: Unit) -> dict[int, list[float]]:
    return _WORKER["scorer"].score(unit)


class Progress:
    """Scores that an interrupted run has left beside its output.

    Args:
        out: of the run.
        key: what the scores depend on; those of another key are thrown away.
    """

    def __init__(self, out: str | Path, key: str) -> None:
        self.path = Path(f"{out}.partial")
        self.done: dict[int, dict[int, list[float]]] = {}
        if self.path.exists():
            lines = self.path.read_text().splitlines()
            if lines and lines[0] == json.dumps(key):
                for line in lines[1:]:
                    try:
                        number, scores = json.loads(line)
                    except ValueError:  # cut off while it was written
                        break
                    self.done[number] = {int(index): values for index, values in scores.items()}
        self._file = self.path.open("w")
        self._write(key)
        for number, scores in self.done.items():
            self._write([number, scores])

    def _write(self, value: Any) -> None:
        self._file.write(json.dumps(value) + "\n")
        self._file.flush()

    def add(self, number: int, scores: dict[int, list[float]]) -> None:
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
) -> Iterator[tuple[int, dict[int, list[float]]]]:
    """Yields number and scores of every unit that is not done, from one process or several."""
    left = [number for number in range(len(work)) if number not in done]
    if args.workers <= 1 or len(left) < 2:
        for number in left:
            yield number, scorer.score(work[number])
        return
    start = (str(args.fasta), args.ckpt_path, args.window, args.device)
    with ProcessPoolExecutor(args.workers, get_context("spawn"), _start, start) as pool:
        yield from zip(left, pool.map(_work, [work[number] for number in left]))


# ---- writing


def _numbers(values: Sequence[float]) -> str:
    if all(np.isnan(value) for value in values):
        return ""
    return ",".join("." if np.isnan(value) else f"{value:.6f}" for value in values)


def header_info(masked: bool, combine: Combine = "mean", genes: bool = False) -> dict[str, str]:
    """Returns the header's description of the INFO fields.

    Args:
        masked: whether a masked model scores.
        combine: how the strands' ratios become one.
        genes: whether a model of genes scores too.
    """
    values = {"ratio": _MASKED_RATIO if masked else _RATIO, "combine": _COMBINED[combine]}
    texts = INFO | GENE_INFO if genes else INFO
    kinds = dict.fromkeys(texts, "A,Type=Float") | {"LSQ_SKIP": ".,Type=String"}
    return {
        name: f'Number={kinds[name]},Description="{text.format(**values)}"'
        for name, text in texts.items()
    }


def info(scored: Scored, combine: Combine = "mean") -> dict[str, str]:
    """Returns the INFO fields of a variant."""
    reasons = scored.reasons if any(scored.reasons) else []
    fields = {
        "LSQ_LLR": _numbers(scored.combined(combine)),
        "LSQ_FWD": _numbers(scored.forward),
        "LSQ_REV": _numbers(scored.reverse),
        "LSQ_SKIP": ",".join(reason or "." for reason in reasons),
    }
    if scored.genes is not None:
        fields["LSQ_GENE"] = _numbers(scored.genes)
        fields["LSQ_MIX"] = _numbers(scored.mixture(combine))
    return fields


def write_vcf(
    source: str | Path,
    out: str | Path,
    found: Sequence[Scored],
    note: str,
    masked: bool = False,
    combine: Combine = "mean",
) -> None:
    """Writes a VCF file again with the scores: the same lines in the same order."""
    texts = header_info(masked, combine, any(one.genes is not None for one in found))
    header: list[str] = []
    scores = iter(found)
    with open_output(out) as write:
        for _, line in read_lines(source):
            if line.startswith("#"):
                header.append(line)
                if not line.startswith("##"):
                    for one in with_header(header, texts, note):
                        write(one)
            elif line:
                write(with_info(line, info(next(scores), combine)))


def table_rows(
    variants: Sequence[Variant], found: Sequence[Scored], combine: Combine = "mean"
) -> Iterator[list[Any]]:
    """Yields a row per alternative allele; the position counts from 1, as in VCF. The two columns
    of the genes are there if they were scored."""
    for variant, scored in zip(variants, found):
        columns = [scored.combined(combine), scored.forward, scored.reverse]
        if scored.genes is not None:
            columns += [scored.genes, scored.mixture(combine)]
        for i, numbers in enumerate(zip(*columns)):
            yield [
                variant.chrom,
                variant.start + 1,
                variant.name,
                variant.ref,
                variant.alts[i] if variant.alts else ".",
                *(None if np.isnan(number) else number for number in numbers),
                scored.reasons[i],
            ]


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
        choices=sorted(_COMBINED),
        help="LSQ_LLR is the mean of the strands (default) or the lower: what breaks a reading "
        "frame is often seen from one side alone",
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
    if not is_vcf(args.out):
        check_table(args.out)
    if Path(args.out).exists() and Path(args.out).samefile(args.vcf):
        raise ConfigError("--out must be another file than the input")
    args.fasta = SAMPLES.path(args.fasta) if args.fasta in SAMPLES.names() else Path(args.fasta)
    scorer = load_scorer(args.fasta, args.ckpt_path, args.window, args.device)
    options = options_for(scorer, args.context, args.strand)
    if args.code is not None and args.genes_from is None:
        raise ConfigError("--code is of the model of genes: give --genes_from too")
    genes = gene_model(args.genes_from, scorer.genome, args.code or 11)
    variants = list(read_variants(args.vcf))
    work, found = prepare(variants, scorer.genome, options, scorer.masked, scorer.symmetric)
    both = scorer.symmetric and options.strand == "both"
    key = _key(args, options)
    progress, finished = Progress(args.out, key), False
    if progress.done:
        print(f"going on: {len(progress.done):,} of {len(work):,} blocks are done")
    try:
        for number, scores in progress.done.items():
            put(found, work[number].strand, scores, both)
        for number, scores in with_bar(run_units(work, progress.done, args, scorer), work):
            put(found, work[number].strand, scores, both)
            progress.add(number, scores)
        if genes is not None:
            found = with_genes(genes, variants, found, scorer.genome)
        if is_vcf(args.out):
            settings = {"masked": True} if scorer.masked else {"context": options.context}
            note = json.dumps({"model": key[:12], **settings, "window": options.window})
            write_vcf(args.vcf, args.out, found, note, scorer.masked, args.combine)
        else:
            columns = COLUMNS if genes is not None else _without_genes(COLUMNS)
            write_rows(args.out, columns, table_rows(variants, found, args.combine))
        finished = True
    finally:
        progress.close(finished)
    report(args.out, variants, found, work, options, scorer)
    return 0


def _without_genes(columns: dict[str, str]) -> dict[str, str]:
    return {name: how for name, how in columns.items() if name not in ("llr_gene", "llr_mix")}


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
    from rich.console import Console
    from rich.progress import track

    yield from track(
        results, "scoring", total=len(work), console=Console(stderr=True), transient=True
    )


def _key(args: argparse.Namespace, options: Options) -> str:
    """Returns a checksum of all that the scores depend on."""
    found = hashlib.sha256(repr(options).encode())
    for path in (args.vcf, args.fasta, model_file(args.ckpt_path)):
        with Path(path).open("rb") as file:
            found.update(hashlib.file_digest(file, "sha256").digest())
    return found.hexdigest()
