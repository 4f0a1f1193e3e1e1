"""Arguments of commands: one line per mistake, and no output over an input."""

from __future__ import annotations

from pathlib import Path

import pytest

from longseq.core.command_line import CommandParser
from longseq.core.errors import ConfigError
from longseq.core.shell.cli import main


def parser() -> CommandParser:
    made = CommandParser(prog="longseq x")
    made.add_argument("files", nargs="+")
    made.add_argument("--level", type=int, action="append")
    made.add_argument("--figure", help="picture to write")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--out", required=True)
    return made


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["a", "--out=b", "--levl=90"], "--levl: no such option; did you mean '--level'?"),
        (["a", "--out=b", "--level=x"], "--level: invalid int value: 'x' (longseq x --help)"),
        ([], "needed: files, --out"),
        (["a", "--out=b", "--figure=./b"], "--figure and --out are the same file"),
        (["a", "--out=b", "--seed=-1"], "--seed must be 0 … 2^63 - 1, got -1"),
        (["a", "--out=b", f"--seed={2**63}"], "--seed must be 0 … 2^63 - 1, got 9"),
    ],
)
def test_mistakes_are_one_line(argv: list[str], says: str) -> None:
    with pytest.raises(ConfigError) as error:
        parser().parse_args(argv)
    assert says in str(error.value) and "\n" not in str(error.value)


def test_no_output_is_an_input(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file, link = tmp_path / "a.csv", tmp_path / "link.csv"
    file.write_text("unique_id,ds,y\na,2024-01-01,1\na,2024-01-02,2\n")
    link.symlink_to(file)
    for option in ("--out", "--figure"):
        for name in (file, link, f"{tmp_path}/../{tmp_path.name}/a.csv"):
            with pytest.raises(ConfigError, match=f"{option} .* would overwrite the input"):
                parser().parse_args(["x", str(file), "--out=new", option, str(name)])
    assert parser().parse_args([str(file), "--out=new"]).out == "new"
    lists = (f"new.csv,{file}", f"new.csv+{link},horizon=3", f"name={file}")
    for text in lists:  # files in a list, in a sum, by name
        with pytest.raises(ConfigError, match=r"--out .* would overwrite the input"):
            parser().parse_args([text, f"--out={file}"])
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ConfigError, match=r"--out ~/a\.csv would overwrite the input"):
        parser().parse_args([str(file), "--out=~/a.csv"])
    before = file.read_bytes()
    assert main(["timeseries", "predict", str(file), "--horizon=1", f"--out={link}"]) == 2
    assert "would overwrite the input" in capsys.readouterr().err and file.read_bytes() == before


def test_help_begins_with_an_example() -> None:
    made = parser()
    assert made.format_help().startswith("for example\n  longseq x FILES --out out\n\nusage: ")
    made.example = "longseq x a\nlongseq x b"
    assert made.format_help().startswith("for example\n  longseq x a\n  longseq x b\n\nusage: ")
