"""``longseq genomics generate``: new sequences from a model, and a report on them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from longseq.core.command_line import CommandParser, add_device
from longseq.core.errors import ConfigError, DataError
from longseq.core.files import atomic_path, check_writable
from longseq.core.tables import check_table, write_rows
from longseq.genomics.baselines import MarkovModel
from longseq.genomics.data.fasta import Genome, open_genome
from longseq.genomics.data.tokenizer import BASES, decode, encode, is_base
from longseq.genomics.models.language_model import DNALanguageModel
from longseq.genomics.progress import progress_bar
from longseq.genomics.sample_report import (
    LONG,
    ORDERS,
    SampleReport,
    report,
    sample_markov,
    word_shares,
)
from longseq.genomics.scorers import CKPT_HELP, load_model

STOP_CODONS = ("TAA", "TAG", "TGA")


def generate(
    model: DNALanguageModel,
    prompts: Sequence[np.ndarray] | None,
    count: int,
    length: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    until: str | None = None,
    stop_codon: bool = False,
    batch: int = 100,
    progress: Callable[[int], object] | None = None,
) -> list[np.ndarray]:
    """Returns sequences of A, C, G and T that continue prompts.

    All sequences of a batch are carried on side by side; a sequence depends on the seed and its own
    number alone, not on the batch.

    Args:
        model: a causal language model, in evaluation mode.
        prompts: token ids, in turn; None for one base each, drawn by the seed.
        count: sequences.
        length: bases after the prompt, at most; without prompts, of a whole sequence.
        temperature: see ``Sampling``; 0 takes the likeliest base.
        top_k: see ``Sampling``.
        top_p: see ``Sampling``.
        seed: of the random numbers.
        until: word after whose first occurrence (that ends after the prompt) a sequence is cut.
        stop_codon: cut after the first stop codon in the frame of the first base of the prompt.
        batch: sequences side by side.
        progress: called with the number of bases drawn, again and again.

    Returns:
        Token ids, uint8, with their prompts.

    Raises:
        ConfigError: for settings out of range, or a word that is not of A, C, G and T.
    """
    if count < 1 or length < 1 or batch < 1:
        raise ConfigError(
            f"count, length and batch must be at least 1, got {count}, {length}, {batch}"
        )
    word = encode(until) if until else None
    if word is not None and not is_base(word).all():
        raise ConfigError(f"until={until!r}: only A, C, G and T")
    steps = length if prompts else length - 1
    if not prompts:
        draws = np.random.default_rng(seed).integers(0, 4, count)
        prompts = [np.array([BASES[i]], np.uint8) for i in draws]
    chosen = [prompts[i % len(prompts)] for i in range(count)]
    settings = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    found: list[np.ndarray] = []
    for low in range(0, count, batch):
        rows = chosen[low : low + batch]
        drawn: list[list[int]] = [[] for _ in rows]
        if steps:
            parts = model.generate(
                [row.tolist() for row in rows],
                steps,
                stop_tokens=(),
                seed=seed,
                first_prompt=low,
                callback=None if progress is None else lambda row, token: progress(1),
                **settings,
            )
            drawn = [part.tokens for part in parts]
        for row, tokens in zip(rows, drawn):
            whole = np.concatenate([row, np.array(tokens, np.uint8)])
            found.append(_cut(whole, len(row), word, stop_codon))
    return found


def _cut(ids: np.ndarray, prompt: int, word: np.ndarray | None, stop_codon: bool) -> np.ndarray:
    """Returns a sequence up to the first thing that ends it."""
    ends = [len(ids)]
    if word is not None and len(ids) >= len(word):
        windows = np.lib.stride_tricks.sliding_window_view(ids, len(word))
        at = np.flatnonzero((windows == word).all(1)) + len(word)
        ends += at[at > prompt][:1].tolist()
    if stop_codon:
        codons = ids[: len(ids) // 3 * 3].reshape(-1, 3)
        stop = np.any([(codons == encode(one)).all(1) for one in STOP_CODONS], 0)
        at = (np.flatnonzero(stop) + 1) * 3
        ends += at[at > prompt][:1].tolist()
    return ids[: min(ends)]


def compare_samples(
    samples: Sequence[np.ndarray], genome: Genome, order: int, seed: int
) -> list[SampleReport]:
    """Returns figures of the genome itself (in pieces as long as the samples), of the samples, and
    of as many samples of an order-k Markov model of the genome.

    Args:
        samples: token ids, with bases only.
        genome: what they are compared with; the Markov model is fitted on all of it.
        order: of the Markov model.
        seed: of its samples.
    """
    records = [genome.fetch(name, 0, size) for name, size in genome.records.items()]
    words = {k: word_shares(records, k) for k in ORDERS}
    length = max(1, round(float(np.mean([len(ids) for ids in samples]))))
    pieces = [
        ids[low : low + length]
        for ids in records
        for low in range(0, max(len(ids) - length + 1, 1), length)
    ]
    markov = sample_markov(MarkovModel.fit(records, order), order, len(samples), length, seed)
    sets = {"genome": pieces, "model": samples, f"order-{order} Markov": markov}
    return [report(name, one, words) for name, one in sets.items()]


def write_samples(path: str | Path, samples: Sequence[np.ndarray]) -> None:
    """Writes sequences as FASTA, ``sample1`` …

    Args:
        path: the file.
        samples: token ids.
    """
    with atomic_path(path) as temporary, temporary.open("w", encoding="ascii") as out:
        for number, ids in enumerate(samples, 1):
            text = decode(ids)
            out.write(f">sample{number} length={len(text)}\n")
            out.writelines(f"{text[i : i + 80]}\n" for i in range(0, len(text), 80))


def write_report(path: str | Path, rows: Sequence[SampleReport]) -> None:
    """Writes figures, a row for each set.

    Args:
        path: .csv, .tsv or .parquet.
        rows: of ``compare_samples``.
    """
    columns = {"sequences": "", **{f"jsd_{k}": "r" for k in ORDERS}}
    columns |= dict.fromkeys(("gc", "gc_spread", "orf_mean", "orf_longest", "long_orfs"), "r")
    write_rows(path, columns, [[one.name, *one.divergence.values(), *_others(one)] for one in rows])


def _others(one: SampleReport) -> list[float]:
    return [one.gc, one.gc_spread, one.orf_mean, one.orf_longest, one.long_orfs]


def _print(rows: Sequence[SampleReport]) -> None:
    from rich.console import Console
    from rich.table import Table

    title = "divergence from the genome (Jensen-Shannon, bits), GC, open reading frames (bases)"
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for one in rows:
        table.add_column(one.name, justify="right")
    for k in ORDERS:
        table.add_row(f"{k}-mers", *(f"{one.divergence[k]:.5f}" for one in rows))
    shares = (("GC", "gc"), ("GC, deviation", "gc_spread"))
    lengths = (("mean ORF", "orf_mean"), ("longest ORF, mean", "orf_longest"))
    for name, key in shares:
        table.add_row(name, *(f"{getattr(one, key):.3f}" for one in rows))
    for name, key in (*lengths, (f"ORFs of ≥ {LONG} per 10 kb", "long_orfs")):
        table.add_row(name, *(f"{getattr(one, key):.1f}" for one in rows))
    Console(markup=False).print(table)
    model, markov = rows[1], rows[2]
    nearer = [k for k in ORDERS if model.divergence[k] < markov.divergence[k]]
    words = ", ".join(f"{k}-mers" for k in nearer) or "no length of word"
    print(f"The model's samples are nearer to the genome than those of {markov.name} in {words}.")
    gaps = [abs(one.long_orfs - rows[0].long_orfs) for one in (model, markov)]
    print(
        f"In long ORFs per 10 kb they are {gaps[0]:.1f} away, those of {markov.name} {gaps[1]:.1f}."
    )


def _prompts(text: str | None, path: str | None) -> list[np.ndarray] | None:
    """Returns the prompts of the command line.

    Raises:
        DataError: for one with anything but A, C, G and T.
    """
    found: dict[str, np.ndarray] = {}
    if text is not None:
        found = {"--prompt": encode(text, record="--prompt")}
    elif path is not None:
        genome = open_genome(path)
        found = {name: genome.fetch(name, 0, size) for name, size in genome.records.items()}
    for name, ids in found.items():
        if not is_base(ids).all():
            at = int((~is_base(ids)).argmax()) + 1
            raise DataError(f"position {at:,} is not A, C, G or T", path=path, record=name)
    return list(found.values()) or None


def run(argv: Sequence[str]) -> int:
    """Runs ``longseq genomics generate``."""
    parser = CommandParser(
        prog="longseq genomics generate",
        description="Draws sequences from a model: only A, C, G and T.",
    )
    parser.add_argument("--ckpt_path", help=CKPT_HELP)
    parser.add_argument("--out", required=True, help="FASTA file to write")
    parser.add_argument("--count", type=int, default=10, help="sequences (10)")
    parser.add_argument("--length", type=int, default=1000, help="bases after the prompt (1000)")
    parser.add_argument("--prompt", help="bases to go on from (one base, drawn by the seed)")
    parser.add_argument("--prompts", help="file of prompts, taken in turn")
    parser.add_argument("--temperature", type=float, default=1.0, help="0: the likeliest (1)")
    parser.add_argument("--top_k", type=int, help="only the k likeliest bases")
    parser.add_argument("--top_p", type=float, help="only the likeliest bases of this share")
    parser.add_argument("--seed", type=int, default=0, help="of the random numbers (0)")
    parser.add_argument("--until", help="end a sequence after this word: TTGACA")
    parser.add_argument(
        "--stop_codon", action="store_true", help="end after a stop codon in the prompt's frame"
    )
    parser.add_argument("--batch", type=int, default=100, help="sequences side by side (100)")
    parser.add_argument("--genome", help="report how the sequences compare with this genome")
    parser.add_argument(
        "--order",
        type=int,
        default=2,
        choices=range(13),
        metavar="ORDER",
        help="of the Markov model beside them, 0 to 12 (2)",
    )
    parser.add_argument("--report", help=".csv, .tsv or .parquet file to write the report to")
    add_device(parser)
    args = parser.parse_args(argv)
    check_writable(args.out)
    if args.prompt is not None and args.prompts is not None:
        raise ConfigError("give either --prompt or --prompts, not both")
    if args.prompt == "":
        raise ConfigError("--prompt is empty; leave it out to begin with a base drawn by the seed")
    if args.report:
        check_table(args.report)
        if not args.genome:
            raise ConfigError("--report needs --genome")
    genome = open_genome(args.genome) if args.genome else None
    prompts = _prompts(args.prompt, args.prompts)
    model = load_model(args.ckpt_path, args.device).model
    begin = time.perf_counter()
    with progress_bar("generating", args.count * args.length) as progress:
        samples = generate(
            model,
            prompts,
            args.count,
            args.length,
            args.temperature,
            args.top_k,
            args.top_p,
            args.seed,
            args.until,
            args.stop_codon,
            args.batch,
            progress,
        )
    write_samples(args.out, samples)
    bases = sum(map(len, samples))
    seconds = time.perf_counter() - begin
    print(f"{args.out}: {len(samples):,} sequences, {bases:,} bases in {seconds:.0f} s")
    if genome is not None:
        rows = compare_samples(samples, genome, args.order, args.seed)
        _print(rows)
        if args.report:
            write_report(args.report, rows)
            print(args.report)
    return 0
