"""The help of task commands is made once: the second time neither torch nor Lightning is
imported."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
from lightning.pytorch import Trainer

from longseq.core.domain import DOMAINS, load_domain
from longseq.core.errors import ConfigError
from longseq.core.shell import short_help, task_help

CODE = """
import sys
from longseq.core.shell.cli import main
status = main(sys.argv[1:])
print("heavy" if "torch" in sys.modules or "lightning" in sys.modules else "light", file=sys.stderr)
sys.exit(status)
"""


def help_twice(*words: str) -> list[subprocess.CompletedProcess[str]]:
    line = [sys.executable, "-c", CODE, *words, "--help"]
    return [subprocess.run(line, capture_output=True, text=True, check=True) for _ in range(2)]


@pytest.mark.parametrize("words", ["timeseries compare", "weather predict", "bench recall"])
def test_every_help_is_light_the_second_time_and_begins_with_an_example(
    words: str, tmp_path, monkeypatch
) -> None:
    monkeypatch.setenv("LONGSEQ_CACHE_DIR", str(tmp_path))
    first, second = help_twice(*words.split())
    assert "heavy" in first.stderr and "light" in second.stderr
    assert first.stdout == second.stdout
    assert first.stdout.startswith(f"for example\n  longseq {words}")


def test_the_second_help_is_light_and_equal(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("LONGSEQ_CACHE_DIR", str(tmp_path))
    first, second = help_twice("genomics", "fit")
    assert "heavy" in first.stderr and "light" in second.stderr
    assert first.stdout == second.stdout
    assert "--trainer.devices" in first.stdout and "--ckpt_path" in first.stdout
    assert len(list((tmp_path / "help").iterdir())) == 1


@pytest.mark.parametrize("name", DOMAINS)
def test_an_example_first_then_the_arguments_of_model_and_data(name: str) -> None:
    domain = load_domain(name)
    text = short_help.text(domain, "fit")
    lines = text.splitlines()
    assert len(lines) < 130 and max(map(len, lines)) <= 200
    example = lines[lines.index("for example") + 1].split()
    assert example[:3] == ["longseq", name, "fit"]
    config = domain.resolve_config(example[example.index("--config") + 1])
    assert Path(config).is_file()
    shown = set(re.findall(r"^  (--[\w.]+)", text, re.MULTILINE))
    assert {flag for flag in example if flag.startswith("--")} <= shown | {"--config"}
    for key, cls in short_help.classes(domain, []).items():
        for argument, kind, words in short_help.arguments(cls):
            assert f"--{key}.{argument}" in shown and kind and words.split(" (")[0], (cls, argument)
    assert sum(flag.startswith("--trainer.") for flag in shown) == len(short_help.TRAINER) == 11
    assert "--help_all" in text and "--config NAME --help" in text


def test_flags_and_configurations_choose_whose_arguments_are_shown() -> None:
    domain = load_domain("timeseries")
    assert "--model.norm_order" in short_help.text(domain, "fit", ["--config", "spacetime"])
    assert "--model.norm_order" in short_help.text(domain, "fit", ["--model=SpaceTime", "--help"])
    assert "--model.norm_order" not in short_help.text(domain, "fit")
    assert "--model." not in short_help.text(domain, "test", ["--ckpt_path", "x.ckpt"])
    with pytest.raises(
        ConfigError, match="no class named 'SpaceTim' in longseq timeseries; did you mean"
    ):
        short_help.text(domain, "fit", ["--model", "SpaceTim"])
    with pytest.raises(ConfigError, match=r"mine\.Model cannot be imported"):
        short_help.text(domain, "fit", ["--model", "mine.Model"])


def test_every_trainer_flag_is_one_of_lightnings() -> None:
    known = inspect.signature(Trainer).parameters
    assert set(short_help.TRAINER) <= set(known) and set(short_help.DEVICE) <= set(
        short_help.TRAINER
    )


def test_the_first_of_two_configurations_may_name_the_class(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("trainer: {max_steps: 3}")
    domain = load_domain("timeseries")
    assert "--model.norm_order" in short_help.text(
        domain, "fit", ["--config=spacetime", f"--config={file}"]
    )
    before = task_help._fingerprint("genomics-fit", "longseq.genomics", [f"--config={file}"])
    file.write_text("model: SpaceTime")
    assert (
        task_help._fingerprint("genomics-fit", "longseq.genomics", [f"--config={file}"]) != before
    )
