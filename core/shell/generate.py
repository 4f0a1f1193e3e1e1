"""``longseq generate FOLDER``: continuations of prompts by a published language model."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from longseq.core.command_line import CommandParser
from longseq.core.domain import MissingRequirement
from longseq.core.errors import ConfigError, DataError
from longseq.core.files import require_file

_EXAMPLE = """longseq generate FOLDER --prompt "The state of the art"
longseq generate FOLDER --prompt A --temperature 0.8 --top_p 0.95 --num_return_sequences 3
longseq generate FOLDER --prompt A --num_beams 6 --num_beam_groups 3 --diversity_penalty 1
longseq generate FOLDER --tokens "7 8 9 10" --json"""


class Tokenizer:
    """Text to token ids and back by a folder's ``tokenizer.json``.

    Args:
        folder: of the model.

    Raises:
        MissingRequirement: if the ``tokenizers`` package is not installed.
        DataError: if the file is damaged.
    """

    def __init__(self, folder: Path) -> None:
        file = require_file(folder / "tokenizer.json", "tokenizer")
        if importlib.util.find_spec("tokenizers") is None:
            raise MissingRequirement(
                'reading tokenizer.json needs tokenizers: pip install "longseq[language]"; '
                "--tokens takes token ids without it"
            )
        tokenizers = importlib.import_module("tokenizers")
        try:
            self.inner: Any = tokenizers.Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises plain Exception
            raise DataError(f"cannot be read: {error}", path=file) from error

    def encode(self, text: str) -> list[int]:
        """Returns the ids of a text, with the special tokens that the file asks for."""
        return list(self.inner.encode(text).ids)

    def decode(self, tokens: Sequence[int]) -> str:
        """Returns the text of ids, special tokens left out."""
        return str(self.inner.decode(list(tokens)))


def printable(text: str) -> str:
    """Returns text for a terminal: control characters but line ends and tabs are written out."""
    return "".join(
        c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text
    )


class _Stream:
    """Writes one continuation as it comes: text, or token ids."""

    def __init__(self, tokenizer: Tokenizer | None, stops: Sequence[int]) -> None:
        self.tokenizer, self.stops = tokenizer, stops
        self.tokens: list[int] = []
        self.written = 0

    def __call__(self, _: int, token: int) -> None:
        if self.tokenizer is None:
            print(token, end=" ", flush=True)
            return
        if token in self.stops:
            return
        self.tokens.append(token)
        text = self.tokenizer.decode(self.tokens)
        if not text.endswith("\N{REPLACEMENT CHARACTER}"):  # the rest of a character is to come
            print(printable(text[self.written :]), end="", flush=True)
            self.written = len(text)

    def finish(self) -> None:
        """Writes what is left of the text, a broken character at its end included."""
        rest = "" if self.tokenizer is None else self.tokenizer.decode(self.tokens)[self.written :]
        print(printable(rest))


def parser() -> argparse.ArgumentParser:
    """Returns the command's parser."""
    parser = CommandParser(
        prog="longseq generate",
        description=__doc__.partition("\n")[0],
        example=_EXAMPLE,
    )
    add = parser.add_argument
    add("folder", help="with config.json, the weights and, for text, tokenizer.json")
    add("--prompt", action="append", default=[], help="text to continue; may be repeated")
    add("--prompts", metavar="FILE", help="file with a prompt on every line")
    add("--tokens", action="append", default=[], metavar="IDS", help="a prompt as token ids")
    add("--max_new_tokens", type=int, default=64, metavar="N", help="of each continuation (64)")
    add("--temperature", type=float, default=0.0, metavar="T", help="0, the default, is greedy")
    add("--top_k", type=int, metavar="K", help="sample from the K likeliest tokens")
    add("--top_p", type=float, metavar="P", help="from the likeliest that together reach P")
    add("--min_p", type=float, metavar="P", help="from those at least P times the likeliest's")
    add("--repetition_penalty", type=float, default=1.0, metavar="X", help="above 1: fewer repeats")
    add("--num_return_sequences", type=int, default=1, metavar="N", help="of each prompt (1)")
    add("--num_beams", type=int, default=1, metavar="N", help="beams of a beam search (1: none)")
    add("--num_beam_groups", type=int, default=1, metavar="N", help="of a diverse beam search")
    add("--diversity_penalty", type=float, default=0.0, metavar="X", help="between the groups")
    add("--length_penalty", type=float, default=1.0, metavar="X", help="of beam scores (1)")
    add("--stop", type=int, action="append", metavar="ID", help="stop token; else the model's own")
    add("--seed", type=int, default=0, metavar="N", help="of the random numbers (0)")
    add("--dtype", default="auto", help="of the parameters: auto, float32, bfloat16, …")
    add(
        "--ignore", action="append", default=[], metavar="NAME", help="setting that does not matter"
    )
    add("--json", action="store_true", help="one JSON object a continuation, and nothing else")
    return parser


def read_prompts(args: argparse.Namespace, tokenizer: Tokenizer | None) -> list[list[int]]:
    """Returns the prompts of the command line as token ids.

    Args:
        args: what the parser read.
        tokenizer: of the folder; None where there is none.

    Raises:
        ConfigError: for no prompt, text without a tokenizer, or ids that are no integers.
    """
    texts = list(args.prompt)
    if args.prompts is not None:
        file = require_file(args.prompts, "file of prompts")
        try:
            lines = file.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise DataError("is no text in UTF-8", path=file, hint="save it as UTF-8") from error
        texts += [line for line in lines.splitlines() if line.strip()]
    if texts and tokenizer is None:
        raise ConfigError(
            f'{args.folder} has no tokenizer.json, so that a prompt is token ids: --tokens "7 8 9"'
        )
    prompts = [tokenizer.encode(text) for text in texts] if tokenizer is not None else []
    for ids in args.tokens:
        try:
            prompts.append([int(token) for token in ids.replace(",", " ").split()])
        except ValueError as error:
            raise ConfigError(f"--tokens takes token ids, got {ids!r}") from error
    if not prompts:
        raise ConfigError('nothing to continue: give --prompt "text" or --tokens "7 8 9"')
    return prompts


def run(argv: Sequence[str]) -> int:
    """Runs the command.

    Args:
        argv: arguments after ``generate``.

    Returns:
        The exit status.
    """
    args = parser().parse_args(list(argv))
    folder = Path(args.folder)
    if not folder.is_dir():
        raise DataError("is not a folder", path=folder, hint="give a folder with a config.json")
    wants_text = bool(args.prompt or args.prompts) or (folder / "tokenizer.json").is_file()
    tokenizer = None
    if wants_text and (folder / "tokenizer.json").is_file():
        try:
            tokenizer = Tokenizer(folder)
        except MissingRequirement:
            if args.prompt or args.prompts:
                raise
    prompts = read_prompts(args, tokenizer)
    from longseq.core.language_model import LanguageModel

    model = LanguageModel.from_pretrained(folder, args.dtype, args.ignore)
    stops = model.stop_tokens if args.stop is None else tuple(args.stop)
    single = len(prompts) == 1 and args.num_return_sequences == 1 and args.num_beams == 1
    stream = _Stream(tokenizer, stops) if single and not args.json else None
    names = (
        "max_new_tokens temperature top_k top_p min_p repetition_penalty num_return_sequences "
        "num_beams num_beam_groups diversity_penalty length_penalty seed"
    )
    settings = {name: getattr(args, name) for name in names.split()}
    progress = stream if stream is not None else _progress(args, len(prompts))
    found = model.generate(prompts, stop_tokens=stops, callback=progress, **settings)
    if stream is not None:
        stream.finish()
        return 0
    if progress is not None:
        print(file=sys.stderr)
    for one in found:
        kept = one.tokens[:-1] if one.stopped else one.tokens
        text = None if tokenizer is None else tokenizer.decode(kept)
        if args.json:
            record = {"prompt": one.prompt, "tokens": one.tokens, "stopped": one.stopped}
            record |= {} if text is None else {"text": text}
            record |= {} if one.score is None else {"score": one.score}
            print(json.dumps(record))
            continue
        score = "" if one.score is None else f" ({one.score:.4f})"
        print(f"[{one.prompt}]{score} {printable(text) if text is not None else kept}")
    return 0


def _progress(args: argparse.Namespace, prompts: int) -> Any:
    """Returns a callback that counts tokens on a terminal's error stream; None elsewhere."""
    if args.num_beams > 1 or not sys.stderr.isatty():
        return None
    total, count = prompts * args.num_return_sequences * args.max_new_tokens, 0

    def show(_: int, token: int) -> None:
        nonlocal count
        count += 1
        print(f"\r{count} of at most {total} tokens", end="", file=sys.stderr, flush=True)

    return show
