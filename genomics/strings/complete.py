"""``longseq genomics complete``: proteins or molecules drawn from a model, or parts of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from longseq.core.command_line import CommandParser, add_device
from longseq.core.errors import ConfigError
from longseq.core.files import atomic_path, check_writable
from longseq.core.training.loading import load_task
from longseq.genomics.strings.reading import read_strings
from longseq.genomics.strings.task import StringLanguageModel

GAP = "_"


def write_strings(path: str | Path, strings: Sequence[str], fasta: bool) -> None:
    """Writes strings with the names sample1 …

    Args:
        path: the file.
        strings: to write.
        fasta: as FASTA; otherwise a string and its name per line.
    """
    with atomic_path(path) as temporary, temporary.open("w", encoding="ascii") as out:
        for number, text in enumerate(strings, 1):
            name = f"sample{number}"
            out.write(f">{name}\n{text}\n" if fasta else f"{text}\t{name}\n")


def run(argv: Sequence[str]) -> int:
    """Runs ``longseq genomics complete``."""
    parser = CommandParser(
        prog="longseq genomics complete",
        description="Draws proteins or SMILES strings from a model, or a missing part of one.",
    )
    parser.add_argument("--ckpt_path", required=True, help="checkpoint of a StringLanguageModel")
    parser.add_argument("--out", required=True, help="FASTA (proteins) or .smi file to write")
    parser.add_argument("--prompt", default="", help="how the strings begin")
    parser.add_argument("--infill", help=f"a string with one gap to fill: MKV{GAP}LLA")
    parser.add_argument("--count", type=int, default=10, help="strings (10)")
    parser.add_argument("--most", type=int, help="symbols to draw (the longest training string's)")
    parser.add_argument("--temperature", type=float, default=1.0, help="0: the likeliest (1)")
    parser.add_argument("--top_k", type=int, help="only the k likeliest symbols")
    parser.add_argument("--top_p", type=float, help="only the likeliest symbols of this share")
    parser.add_argument("--seed", type=int, default=0, help="of the random numbers (0)")
    parser.add_argument("--known", help="file of strings: count how many of the drawn are in it")
    add_device(parser)
    args = parser.parse_args(argv)
    check_writable(args.out)
    before, after = args.prompt, None
    if args.infill is not None:
        if args.prompt or args.infill.count(GAP) != 1:
            raise ConfigError(f"--infill needs one gap {GAP!r} and no --prompt: MKV{GAP}LLA")
        before, after = args.infill.split(GAP)
    task = load_task(args.ckpt_path, StringLanguageModel)
    assert isinstance(task, StringLanguageModel)
    known = None
    if args.known:
        known = {row.tobytes() for row in read_strings(args.known, task.alphabet)[1]}
    drawn = task.to(args.device).complete(
        before, after, args.count, args.most, args.temperature, args.top_k, args.top_p, args.seed
    )
    write_strings(args.out, drawn, task.alphabet.name == "protein")
    print(f"{args.out}: {len(drawn):,} strings, {len(set(drawn)):,} distinct")
    if known is not None:
        old = sum(task.alphabet.encode(text).tobytes() in known for text in drawn)
        print(f"{old:,} of them are in {args.known}")
    return 0
