"""longseq generate: text and token ids in, streams and JSON out, errors in one line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from longseq.core import LanguageModel
from longseq.core.shell.cli import main
from longseq.core.shell.generate import Tokenizer, _Stream, printable

WORDS = ["<eos>", "a", "b", "c", "d", "e", "f", "g", "<unk>"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = LanguageModel(9, 16, 1, "mamba", tie_embeddings=False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path)
    return tmp_path


def with_tokenizer(folder: Path) -> None:
    vocabulary = {word: number for number, word in enumerate(WORDS)}
    content = {
        "version": "1.0",
        "pre_tokenizer": {"type": "Whitespace"},
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"},
    }
    (folder / "tokenizer.json").write_text(json.dumps(content))


def test_token_ids(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = LanguageModel.from_pretrained(folder).generate([1, 2, 3], 5)[0].tokens
    options = ["--max_new_tokens", "5"]
    assert main(["generate", str(folder), "--tokens", "1 2 3", *options]) == 0
    assert [int(token) for token in capsys.readouterr().out.split()] == expected
    ids = ["--tokens", "1,2,3", "--tokens", "4"]
    assert main(["generate", str(folder), *ids, *options, "--json"]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert records[0] == {"prompt": 0, "tokens": expected, "stopped": False}
    assert records[1]["prompt"] == 1
    beams = ["--num_beams", "4", "--num_beam_groups", "2", "--diversity_penalty", "1"]
    beams += ["--num_return_sequences", "2", "--stop", "0"]
    assert main(["generate", str(folder), "--tokens", "1", *options, *beams]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_text(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tokenizers", reason="tokenizers is not installed: extra language")
    with_tokenizer(folder)
    expected = LanguageModel.from_pretrained(folder).generate([1, 2, 3], 5)[0].tokens
    options = ["--max_new_tokens", "5"]
    assert main(["generate", str(folder), "--prompt", "a b c", *options]) == 0
    assert capsys.readouterr().out.split() == [WORDS[token] for token in expected]
    (tmp_path / "prompts.txt").write_text("a b c\n\nd\n")
    file = ["--prompts", str(tmp_path / "prompts.txt"), "--json"]
    assert main(["generate", str(folder), *file, *options]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert records[0]["text"].split() == [WORDS[token] for token in expected]
    assert len(records) == 2


class _Bytes(Tokenizer):
    """Token ids are the bytes of the text."""

    def __init__(self) -> None:
        pass

    def decode(self, tokens: Sequence[int]) -> str:
        return bytes(tokens).decode("utf-8", "replace")


@pytest.mark.parametrize("whole", [0, 1])
def test_a_character_that_breaks_off_is_written_at_the_end(
    whole: int, capsys: pytest.CaptureFixture[str]
) -> None:
    tokens = list("aü".encode())
    stream = _Stream(_Bytes(), [])
    for token in tokens[: len(tokens) - 1 + whole]:
        stream(0, token)
    stream.finish()
    assert capsys.readouterr().out == ("aü\n" if whole else "a\N{REPLACEMENT CHARACTER}\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt", "a"], "no tokenizer.json"),
        ([], "nothing to continue"),
        (["--tokens", "a"], "takes token ids"),
        (["--tokens", "99"], "outside the vocabulary"),
        (["--tokens", "1", "--top_k", "3"], "need a temperature"),
        (["--tokens", "1", "--dtype", "int8"], "dtype 'int8'"),
        (["--prompts", "nowhere.txt"], "nowhere.txt"),
    ],
)
def test_mistakes_are_one_line(
    folder: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", str(folder), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_no_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", str(tmp_path / "none"), "--tokens", "1"]) == 2
    assert "is not a folder" in capsys.readouterr().err


def test_control_characters_are_written_out() -> None:
    assert printable("a\x1b[2Jb\n\té") == "a\\x1b[2Jb\n\té"
