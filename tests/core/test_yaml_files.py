"""YAML: plain values, or one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from longseq.core.errors import ConfigError
from longseq.core.shell.cli import main
from longseq.core.yaml_files import read_yaml

BOMB = "a0: &a0 [1, 1]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10)
)


def test_aliases_are_counted_as_often_as_they_are_named(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text("a: &a [1, 2]\nb: {c: *a, d: *a}\n")
    assert read_yaml(file) == {"a": [1, 2], "b": {"c": [1, 2], "d": [1, 2]}}
    file.write_text(BOMB)
    with pytest.raises(ConfigError, match="its aliases stand for more than 1,000,000 values"):
        read_yaml(file)
    assert main(["genomics", "fit", "--config", str(file)]) == 2


@pytest.mark.parametrize(
    "text",
    ["a: [", "&a [*a]", "[" * 3000, "a: \x00", "? [a]\n: b", "{a: b}: c", "a: !!python/name:os.x"],
)
def test_what_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"x\.yaml: (line \d+: )?is not valid YAML") as error:
        read_yaml(file)
    assert len(str(error.value).splitlines()) == 1


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        read_yaml(tmp_path / "none.yaml")
